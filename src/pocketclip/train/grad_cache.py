"""Gradients of a whole batch in the memory of a part of it.

The loss needs all embeddings, but not what the towers keep for their backward pass. So the batch is embedded part by
part without keeping anything, the loss gives each embedding its gradient, and each part is embedded once more, with
that gradient sent back through it: a third more work, and the very gradient of the whole batch.
Source: Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup", section 3.2.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

Part = TypeVar("Part")
Embeddings = tuple[Tensor, Tensor]


def cached_backward(
    parts: Sequence[Part],
    embed: Callable[[Part], Embeddings],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    model: nn.Module,
    not_last: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Add the gradients of a batch's loss to the model's parameters; returns the loss, detached.

    parts: of the batch. embed: a part -> [rows, width] of its images and of its captions. loss_of: the same of the
    whole batch -> the loss. model: what `embed` runs; its random numbers are the same both times, and its batch norms,
    which see a part at a time, move their statistics once.
    not_last: a context for the backward passes of all parts but the last, as DistributedDataParallel's `no_sync`.
    """
    if len(parts) == 1:
        loss = loss_of(*embed(parts[0]))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()
    states, found = [], []
    with torch.no_grad(), _still_statistics(model):
        for part in parts:
            states.append(_random_state())
            found.append(embed(part))
    leaves = [torch.cat(side).requires_grad_() for side in zip(*found, strict=True)]
    loss = loss_of(*leaves)
    loss.backward()  # type: ignore[no-untyped-call]
    starts = [0, 0]
    for number, (part, state) in enumerate(zip(parts, states, strict=True)):
        _restore_random_state(state)
        with not_last() if number < len(parts) - 1 else nullcontext():
            again = embed(part)
            gradients = []
            for side, (leaf, values) in enumerate(zip(leaves, again, strict=True)):
                assert leaf.grad is not None
                gradients.append(leaf.grad[starts[side] : starts[side] + len(values)])
                starts[side] += len(values)
            learning = [side for side, values in enumerate(again) if values.requires_grad]
            torch.autograd.backward([again[side] for side in learning], [gradients[side] for side in learning])
    return loss.detach()


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _restore_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])


@contextmanager
def _still_statistics(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms as they are while the block runs."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
