"""AdamW, or Muon for the matrices inside the blocks beside it; what decays, and how fast each layer learns."""

import re
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from pocketclip.recipe.training import TrainSettings

BLOCK = re.compile(r"(visual|text)\.transformer\.resblocks\.(\d+)\.")
ABOVE_BLOCKS = re.compile(r"visual\.(ln_post|proj|attnpool)|text\.(ln_final|text_projection)|logit_")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Matrices and convolutions decay; biases, norms, embeddings and the temperature do not.

    Source: Radford et al. 2021, section 2.5.
    """
    return parameter.ndim >= 2 and "embedding" not in name


def depths_from_top(model: nn.Module) -> dict[str, int]:
    """Each parameter's name -> how many layers stand between it and the embedding: 0 for what is above all blocks."""
    names = [name for name, _ in model.named_parameters()]
    layers: dict[str, int] = defaultdict(int)
    for name in names:
        if found := BLOCK.match(name):
            layers[found[1]] = max(layers[found[1]], int(found[2]) + 1)
    depths = {}
    for name in names:
        found, tower = BLOCK.match(name), name.partition(".")[0]
        above = 0 if found is None else layers[tower] - int(found[2])
        depths[name] = above if found or ABOVE_BLOCKS.match(name) else layers[tower] + 1
    return depths


class Optimizer:
    """Torch's fused AdamW (Loshchilov & Hutter 2019), and Muon (Jordan et al. 2024) where the recipe says so.

    Muon takes the matrices of the transformer blocks, with steps of the length that AdamW's have (Liu et al. 2025,
    "Muon is scalable for LLM training", section 2.2), so that one learning rate serves both. Layers below the top learn
    slower by `layer_decay` each (Clark et al. 2020, ELECTRA, section 3.1).
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        depths = depths_from_top(model)
        groups: dict[tuple[bool, bool, int], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                by_muon = settings.optimizer == "muon" and parameter.ndim == 2 and BLOCK.match(name) is not None
                depth = depths[name] if settings.layer_decay < 1 else 0
                groups[by_muon, decays(name, parameter), depth].append(parameter)
        by_kind: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for (by_muon, decayed, depth), parameters in groups.items():
            decay = settings.weight_decay if decayed else 0.0
            share = settings.layer_decay**depth
            by_kind[by_muon].append({"params": parameters, "weight_decay": decay, "share": share})
        betas = (settings.beta_1, settings.beta_2)
        self.parts: list[torch.optim.Optimizer] = []
        if by_kind[False]:
            self.parts.append(torch.optim.AdamW(by_kind[False], betas=betas, eps=settings.epsilon, fused=True))
        if by_kind[True]:
            self.parts.append(torch.optim.Muon(by_kind[True], momentum=0.95, adjust_lr_fn="match_rms_adamw"))

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all parts; `share` is what the learning rate is multiplied with."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self, rate: float) -> None:
        """Move the weights at a learning rate, and forget their gradients."""
        for group in self.groups:
            group["lr"] = rate * group["share"]
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        """What `restore` takes."""
        return [part.state_dict() for part in self.parts]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Take over a state that `state` gave."""
        for part, one in zip(self.parts, state, strict=True):
            part.load_state_dict(one)
