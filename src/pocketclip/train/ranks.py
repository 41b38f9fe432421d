"""The processes of a run, each with a part of every batch, as `torchrun` starts them; one process alone pays nothing.

Ranks agree on whether to stop, on what is logged and on where a run goes on; rank 0 alone writes files.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import ReduceOp

from pocketclip.errors import PocketCLIPError, TrainingError

Result = TypeVar("Result")
PATIENCE = timedelta(minutes=10)  # for a rank that does not answer


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is. control: a group for what is no tensor of the model, on the CPU."""

    rank: int = 0
    count: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on each of them; no gradient flows through it."""
        if self.count == 1:
            return values.detach()
        total = values.detach().clone()
        distributed.all_reduce(total, group=self._group(total))
        return total

    def total(self, here: int) -> int:
        """The sum of a number over all ranks."""
        return sum(self.each(here))

    def each(self, here: int) -> list[int]:
        """A number of every rank, in their order; no GPU is asked for it."""
        if self.count == 1:
            return [here]
        mine = torch.tensor([here])
        found = [torch.empty_like(mine) for _ in range(self.count)]
        distributed.all_gather(found, mine, group=self.control)
        return [int(one) for one in found]

    def gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """The rows of all ranks, in their order, and where this rank's begin; parts may differ in length.

        No gradient flows through it.
        """
        if self.count == 1:
            return rows, 0
        lengths = self.each(len(rows))
        longest = max(lengths)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in lengths]
        distributed.all_gather(parts, padded, group=self._group(rows))
        whole = torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
        return whole, sum(lengths[: self.rank])

    def log_sum(self, logarithms: Tensor) -> Tensor:
        """Log of the sum over ranks of e^value, on each of them: the same shape."""
        if self.count == 1:
            return logarithms
        most = logarithms.clone()
        distributed.all_reduce(most, ReduceOp.MAX)
        most.masked_fill_(most.isneginf(), 0)
        total = (logarithms - most).exp_()
        distributed.all_reduce(total)
        return total.log_() + most

    def sum_own(self, rows: Tensor, first: int, count: int) -> Tensor:
        """Of the sum over all ranks, the rows from `first` on that are this rank's."""
        if self.count > 1:
            distributed.all_reduce(rows)
        return rows[first : first + count]

    def _group(self, values: Tensor) -> Any:
        """Who passes such tensors on: what links GPUs takes none of the CPU's."""
        return self.control if values.device.type == "cpu" else None

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        if self.count == 1:
            return here
        flag = torch.tensor(int(here))
        distributed.all_reduce(flag, ReduceOp.MAX, group=self.control)
        return bool(flag)

    def gather_objects(self, mine: Any) -> list[Any]:
        """Small Python objects of all ranks, in their order."""
        if self.count == 1:
            return [mine]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, mine, group=self.control)
        return found

    def first_does(self, work: Callable[[], Result]) -> Result:
        """Rank 0 does some work, and all get what came of it; an error raised on purpose is raised on all."""
        if self.count == 1:
            return work()
        held: list[Any] = [None, None]
        if self.first:
            try:
                held[0] = work()
            except PocketCLIPError as error:
                held[1] = error
        distributed.broadcast_object_list(held, src=0, group=self.control)
        if held[1] is not None:
            held[1].said = not self.first
            raise held[1]
        result: Result = held[0]
        return result


@contextmanager
def open_ranks(device: torch.device) -> Iterator[Ranks]:
    """Meet the other processes that `torchrun` started, if it did.

    Raises TrainingError where they cannot be reached.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    kind = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group(kind, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the {count} processes of this run did not meet: {error}") from None
    try:
        control = distributed.new_group(backend="gloo", timeout=PATIENCE) if kind == "nccl" else None
        yield Ranks(distributed.get_rank(), count, control)
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, distributed.DistBackendError):
            raise
        raise TrainingError(
            f"another of the {count} processes of this run ended or cannot be reached ({str(error).splitlines()[0]}); "
            "the same command goes on from the last checkpoint"
        ) from None
    finally:
        gc.collect()  # what still holds on to the group, as DistributedDataParallel does, must go before it
        distributed.destroy_process_group()
