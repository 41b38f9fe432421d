"""The softmax loss over the whole data set, from small batches.

In a batch of 64 a pair meets 63 others; in the loss of the whole data set it would meet all. Each row remembers how
much its negatives weighed, a moving average over its visits, and its gradient is divided by that instead of by what one
small batch happens to hold. Sources: Yuan et al. 2022, "Provable stochastic optimization for global contrastive
learning" (SogCLR), algorithm 1; Wei et al. 2024, "FastCLIP", section 4 (`schedule.renewed_share`).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketclip.train.losses import log_sums
from pocketclip.train.ranks import Ranks

LEAST = -(2.0**100)  # stands for the logarithm of nothing: minus infinity times nothing would be no number


class RememberedNegatives:
    """One number a row and direction: the logarithm of a mean of e^(a negative's logit - the positive's).

    The same on all ranks; NaN for a row that was not seen yet.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.means = torch.full((2, rows), torch.nan, device=device)

    def renew(self, rows: Tensor, found: Tensor, share: float, ranks: Ranks) -> Tensor:
        """Move the means of some rows towards those that were found in a batch; returns what they are now.

        rows: [pairs] int64. found: [2, pairs]. share: of the new mean that is `found`'s, above 0; a row's first is all.
        """
        known = self.means[:, rows]
        now = torch.logaddexp(known + math.log1p(-share), found + math.log(share)) if share < 1 else found
        now = torch.where(known.isnan(), found, now).to(known)
        where, _ = ranks.gather(rows)
        self.means[:, where] = ranks.gather(now.T.contiguous())[0].T
        return now


def global_loss(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    captions: Tensor,
    rows: Tensor,
    remembered: RememberedNegatives,
    share: float,
    ranks: Ranks,
) -> Tensor:
    """An estimate of `softmax_loss` as it would be with the whole data set for a batch, and of its gradient.

    rows: [pairs] int64, which of the data set's. share: see `renew`; 1 forgets. The other arguments, and the share of
    several ranks, are those of `softmax_loss`; in a batch of the whole data set with a share of 1 it is that.
    """
    of_images, of_texts, positive_images, positive_texts = log_sums(images, texts, scale, captions, ranks)
    pairs = ranks.total(len(images))
    others = math.log(max(1, pairs - 1))
    found = torch.stack([of_images - positive_images, of_texts - positive_texts]) - others
    found = torch.where(found.isneginf(), LEAST, found)
    means = remembered.renew(rows, found.detach(), share, ranks)
    everything = means + math.log(remembered.means.shape[1] - 1)
    # The slope of log(1 + rows * mean), of which e^(found - mean) is an estimate that needs this batch alone.
    weights = everything.sigmoid() * (found.detach() - means).exp()
    by_weights = weights * found
    value: Tensor = (F.softplus(everything) + by_weights - by_weights.detach()).sum() / (2 * pairs)
    return value
