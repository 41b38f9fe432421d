"""Weights averaged over the steps of a run: what the bundle holds where the recipe asks for it.

Source: Polyak & Juditsky 1992; the growing decay is that of TensorFlow's ExponentialMovingAverage.
"""

import copy

import torch
from torch import Tensor, nn


class AveragedModel:
    """An exponential moving average of a model's weights and statistics.

    decay: share of the old average that is kept at each step; less at first, (1 + step) / (10 + step), so that the
    random weights of the start are forgotten soon.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after a step; step: 0 for the first one."""
        keep = min(self.decay, (1 + step) / (10 + step))
        averages, values = _floating(self.model), _floating(model)
        torch._foreach_lerp_(averages, values, 1 - keep)

    def state(self) -> dict[str, Tensor]:
        """What `restore` takes."""
        return self.model.state_dict()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a state that `state` gave."""
        self.model.load_state_dict(state)


def _floating(model: nn.Module) -> list[Tensor]:
    return [value for value in model.state_dict().values() if value.is_floating_point()]
