"""The processes of a run, each with a part of every batch; one process needs none of this and pays nothing for it."""

from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.distributed import ReduceOp


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on each of them; no gradient flows through it."""
        if self.count == 1:
            return values.detach()
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total

    def gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """The rows of all ranks, in their order, and where this rank's begin; parts may differ in length.

        No gradient flows through it.
        """
        if self.count == 1:
            return rows, 0
        lengths = self._lengths(rows)
        longest = max(lengths)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in lengths]
        distributed.all_gather(parts, padded)
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

    def _lengths(self, rows: Tensor) -> list[int]:
        mine = torch.tensor([len(rows)], device=rows.device)
        found = [torch.empty_like(mine) for _ in range(self.count)]
        distributed.all_gather(found, mine)
        return [int(one) for one in found]
