"""From the ranks of images' right answers to accuracies, with what chance would give and how sure they are."""

import numpy as np
from numpy.typing import NDArray

from pocketclip.evaluate.results import CUTS, GroupResult
from pocketclip.evaluate.zero_shot import top_k

RESAMPLES = 10_000


def by_group(rank: NDArray[np.int64], groups: list[str]) -> dict[str, GroupResult]:
    """Accuracies of each group's images, by the groups' names."""
    names, members = np.unique(np.array(groups), return_inverse=True)
    return {
        str(name): GroupResult(len(own), top_k(own, 1), top_k(own, 5))
        for number, name in enumerate(names)
        for own in [rank[members == number]]
    }


def mean_top_1(groups: dict[str, GroupResult]) -> float:
    """The mean over groups of their top-1, percent."""
    return float(np.mean([group.top_1 for group in groups.values()]))


def chance(right: NDArray[np.int64], candidates: int, k: int) -> float:
    """Percent of images for which k different candidates drawn blindly hold a right one.

    right: how many candidates are right for each image.
    """
    miss = np.ones(len(right))
    for drawn in range(min(k, candidates)):
        miss *= np.clip(candidates - drawn - right, 0, None) / (candidates - drawn)
    return 100.0 * float(np.mean(1 - miss))


def intervals(rank: NDArray[np.int64], groups: dict[str, GroupResult]) -> dict[str, tuple[float, float]]:
    """95 % intervals of top_1, top_5, top_10 and mean_group_top_1, percent, by the percentile bootstrap.

    Images are drawn again with replacement, for the mean over groups within each group. How many of n redrawn images
    are right is binomial, and is drawn as such: the same distribution, without redrawing. Source: Efron and Tibshirani
    1993, "An introduction to the bootstrap", chapters 6 and 13.
    """
    random = np.random.default_rng(0)
    found = {f"top_{k}": interval(rank, k) for k in CUTS}
    redrawn = np.zeros(RESAMPLES)
    for group in groups.values():
        redrawn += random.binomial(group.images, group.top_1 / 100, RESAMPLES) / group.images
    found["mean_group_top_1"] = _middle(redrawn / len(groups))
    return found


def interval(rank: NDArray[np.int64], k: int) -> tuple[float, float]:
    """The 95 % interval of a top-k alone, percent."""
    redrawn = np.random.default_rng(k).binomial(len(rank), top_k(rank, k) / 100, RESAMPLES)
    return _middle(redrawn / len(rank))


def _middle(shares: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(100 * shares, (2.5, 97.5))
    return float(low), float(high)
