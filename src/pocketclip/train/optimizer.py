"""AdamW with two groups: what decays and what does not."""

import torch
from torch import nn

from pocketclip.recipe.schema import TrainSettings


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(decayed, not decayed): matrices and convolutions decay; biases, norms, embeddings and the temperature do not.

    Each parameter is in exactly one of the two (Radford et al. 2021, section 2.5).
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and "embedding" not in name
        (decayed if matrix else kept).append(parameter)
    return decayed, kept


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), in torch's fused form: one pass over memory instead of a dozen."""
    decayed, kept = parameter_groups(model)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.beta_1, settings.beta_2),
        eps=settings.epsilon,
        fused=True,
    )
