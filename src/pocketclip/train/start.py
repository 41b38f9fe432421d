"""Training that starts from a bundle: whose weights, which of them learn, and how far the result moves from them.

Sources: Zhai et al. 2022, "LiT" (locked towers); Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"
(interpolation, WiSE-FT).
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from pocketclip.bundle import load
from pocketclip.errors import TrainingError
from pocketclip.model.clip import CLIP
from pocketclip.model.image_tower import interpolated
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.towers import TransformerSettings

POSITIONS = {"visual.positional_embedding", "visual.attnpool.positional_embedding"}
OF_LOSS = {"logit_bias"}  # what a bundle that was trained with another loss may lack or have


def start_from(model: CLIP, bundle: Path) -> None:
    """Give a model the weights of a bundle; positions are interpolated where the image's size differs.

    Raises BundleError where the bundle cannot be read, TrainingError where it holds another architecture.
    """
    state = load(bundle, "cpu").model.state_dict()
    own = model.state_dict()
    for name in POSITIONS & own.keys() & state.keys():
        state[name] = interpolated(state[name], math.isqrt(len(own[name])))
    wrong = [f"{name} is missing there" for name in own if name not in state and name not in OF_LOSS]
    wrong += [f"{name} is not here" for name in state if name not in own and name not in OF_LOSS]
    wrong += [
        f"{name} is {tuple(value.shape)} there and {tuple(own[name].shape)} here"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if wrong:
        raise TrainingError(
            f"train.start_from = {bundle}: weights of another architecture ({wrong[0]}, {len(wrong)} differences); "
            "leave the sizes out of the recipe, or name another bundle"
        )
    model.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)


def lock(model: CLIP, recipe: Recipe) -> None:
    """Keep what the recipe locks from learning; batch norms in it keep their statistics."""
    for tower, settings in ((model.visual, recipe.image_tower), (model.text, recipe.text_tower)):
        for part in _locked_parts(tower, settings):
            if isinstance(part, nn.Module):
                part.eval()
                part.requires_grad_(False)
            else:
                part.requires_grad = False


def _locked_parts(tower: nn.Module, settings: TransformerSettings) -> list[nn.Module | nn.Parameter]:
    if not settings.locked_layers:
        return []
    if settings.locked:
        return [tower]
    blocks = tower.get_submodule("transformer.resblocks")
    assert isinstance(blocks, nn.ModuleList)
    above = {"transformer", "ln_post", "ln_final"}
    parts: list[nn.Module | nn.Parameter] = [part for name, part in tower.named_children() if name not in above]
    parts += [one for name, one in tower.named_parameters(recurse=False) if "proj" not in name]
    return parts + list(blocks[: settings.locked_layers])


@torch.no_grad()
def interpolate(model: CLIP, start: dict[str, Tensor], share: float) -> None:
    """Move a model's weights back towards those it started from; share: of the trained ones."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and name in start:
            value.lerp_(start[name].to(value.device), 1 - share)
