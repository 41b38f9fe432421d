"""When one run overtakes another: accuracy over training time, in a straight line from one evaluation to the next."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pocketclip.show.page import duration
from pocketclip.show.plots import Table


@dataclass(frozen=True, slots=True)
class Crossing:
    """From here on the faster run is above the slower one, until the next crossing. seconds: of training, in both."""

    split: str
    faster: str
    slower: str
    seconds: float
    top_1: float

    def __str__(self) -> str:
        return (
            f"On {self.split}, {self.faster} overtakes {self.slower} after {duration(self.seconds)}, at "
            f"{self.top_1:.1f} %"
        )


def crossings(table: Table) -> list[Crossing]:
    """Every crossing of two runs on a split, while both were trained.

    table: run, split, seconds, top_1, in the order of training.
    """
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for line in table:
        places, values = curves.setdefault(line["split"], {}).setdefault(line["run"], ([], []))
        places.append(float(line["seconds"]))
        values.append(float(line["top_1"]))
    return [
        crossing
        for split, runs in curves.items()
        for first, second in combinations(runs, 2)
        for crossing in _between(split, (first, second), runs[first], runs[second])
    ]


def last_of_each_pair(found: Sequence[Crossing]) -> list[Crossing]:
    """What holds at the end: runs that are near each other cross many times before."""
    return list({(one.split, frozenset((one.faster, one.slower))): one for one in found}.values())


def _between(
    split: str,
    names: tuple[str, str],
    first: tuple[Sequence[float], Sequence[float]],
    second: tuple[Sequence[float], Sequence[float]],
) -> list[Crossing]:
    start, end = max(first[0][0], second[0][0]), min(first[0][-1], second[0][-1])
    places = np.unique([place for place in (*first[0], *second[0]) if start <= place <= end])
    if len(places) < 2:
        return []
    ones, others = (np.interp(places, *curve) for curve in (first, second))
    ahead = ones - others
    found = []
    before = 0  # the last place at which they were apart
    for now in range(1, len(places)):
        if ahead[now] == 0:
            continue
        if ahead[before] * ahead[now] < 0:
            share = ahead[now - 1] / (ahead[now - 1] - ahead[now])
            seconds = places[now - 1] + share * (places[now] - places[now - 1])
            faster, slower = names if ahead[now] > 0 else names[::-1]
            found.append(Crossing(split, faster, slower, float(seconds), float(np.interp(seconds, *first))))
        before = now
    return found
