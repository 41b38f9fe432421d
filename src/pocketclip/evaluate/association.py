"""How differently two groups lie to an attribute, how unevenly a search returns groups; arrays in, numbers out.

Sources: Caliskan et al. 2017, "Semantics derived automatically from language corpora contain human-like biases" (effect
size and permutation test; with images as in Steed and Caliskan 2021); Geyik et al. 2019, "Fairness-aware ranking in
search and recommendation systems", section 3 (skew, NDKL).
"""

from collections.abc import Iterator
from itertools import combinations, islice
from math import comb, log

import numpy as np
from numpy.typing import NDArray

EXACT = 20_000  # partitions; where there are more, as many are drawn by lot
VALUES = 1 << 22  # numbers of partitions that are held at a time
Numbers = NDArray[np.float64]


def effect_size(first: Numbers, second: Numbers) -> float:
    """By how many standard deviations of all the first group's associations lie above the second's, in the mean.

    first, second: an association for each member. 0 where all are equal.
    """
    spread = float(np.std(np.concatenate([first, second]), ddof=1)) if len(first) + len(second) > 1 else 0.0
    return float(first.mean() - second.mean()) / spread if spread > 0 else 0.0


def p_values(first: Numbers, second: Numbers) -> Numbers:
    """How often means of groups of the same sizes, dealt by lot, lie as far apart as these or further; two-sided.

    first, second: [members, attributes], the groups' associations with each attribute. Returns [attributes].
    All partitions are counted where there are at most EXACT; else that many are drawn, these groups being one of them.
    """
    both, size = np.concatenate([first, second]), len(first)
    count, total = len(both), both.sum(axis=0)
    distance = np.abs(first.mean(axis=0) - second.mean(axis=0)) * (1 - 1e-9)  # rounding shall not part equal ones
    further, dealt = np.zeros(both.shape[1]), 0
    for chosen in _partitions(count, size):
        inside = np.zeros((len(chosen), count))
        np.put_along_axis(inside, chosen, 1, axis=1)
        sums = inside @ both
        further += (np.abs(sums / size - (total - sums) / (count - size)) >= distance).sum(axis=0)
        dealt += len(chosen)
    these = 0 if comb(count, size) <= EXACT else 1  # drawn ones hardly have them among them
    result: Numbers = (further + these) / (dealt + these)
    return result


def _partitions(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Which of `count` are in the first group: [partitions, size], some at a time."""
    at_once = max(1, VALUES // count)
    if comb(count, size) <= EXACT:
        every = combinations(range(count), size)
        while some := list(islice(every, at_once)):
            yield np.array(some)
        return
    random = np.random.default_rng(0)
    for start in range(0, EXACT - 1, at_once):
        drawn = random.random((min(at_once, EXACT - 1 - start), count))
        yield np.argpartition(drawn, size - 1, axis=1)[:, :size]


def skews(ranked: NDArray[np.int64], groups: int, k: int) -> Numbers:
    """Each group's ln(share among the first k / share among all); negative infinity where none is among the first.

    ranked: the group of each result, best first. Returns [groups].
    """
    wanted = np.bincount(ranked, minlength=groups) / len(ranked)
    found = np.bincount(ranked[:k], minlength=groups) / min(k, len(ranked))
    with np.errstate(divide="ignore"):
        result: Numbers = np.log(found / wanted)
    return result


def max_skew(ranked: NDArray[np.int64], groups: int, k: int) -> float:
    """The largest of `skews`: how much the most favoured group is favoured; 0 where all have their share."""
    return float(skews(ranked, groups, k).max())


def ndkl(ranked: NDArray[np.int64], groups: int) -> float:
    """Mean divergence of the first 1, 2, 3, ... results' groups from those of all, early ones counting most; nats."""
    wanted = np.bincount(ranked, minlength=groups) / len(ranked)
    counts = np.zeros(groups)
    total = weights = 0.0
    for place, group in enumerate(ranked.tolist(), start=1):
        counts[group] += 1
        share = counts / place
        there = share > 0
        weight = 1 / log(place + 1, 2)
        total += weight * float((share[there] * np.log(share[there] / wanted[there])).sum())
        weights += weight
    return total / weights
