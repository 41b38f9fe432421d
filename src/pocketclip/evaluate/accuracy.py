"""From the ranks of images' right answers to accuracies, with what chance would give and how sure they are."""

import numpy as np
from numpy.typing import NDArray

from pocketclip.evaluate.results import CUTS, GroupResult
from pocketclip.evaluate.zero_shot import top_k

RESAMPLES, CLUSTERED_RESAMPLES = 10_000, 2_000  # the second are really drawn, cluster by cluster
DRAWN = 1 << 22  # numbers that are held at a time


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


def clustered_interval(right: NDArray[np.bool_], clusters: NDArray[np.int64]) -> tuple[float, float]:
    """The 95 % interval of a share, percent, where whole clusters are drawn again: captions go with their image.

    right: whether each answer is right. clusters: the number of the cluster that each belongs to.
    """
    _, member = np.unique(clusters, return_inverse=True)
    size, hits = np.bincount(member), np.bincount(member, weights=right)
    random, shares = np.random.default_rng(0), list[NDArray[np.float64]]()
    at_once = max(1, DRAWN // len(size))
    for start in range(0, CLUSTERED_RESAMPLES, at_once):
        count = min(at_once, CLUSTERED_RESAMPLES - start)
        times = random.multinomial(len(size), np.full(len(size), 1 / len(size)), count)
        shares.append((times @ hits) / (times @ size))
    return _middle(np.concatenate(shares))


def _middle(shares: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(100 * shares, (2.5, 97.5))
    return float(low), float(high)
