"""What training changed for the same images: a bundle's evaluation beside that of the bundle it started from; no torch.

Both live in one folder: the start's in `before/` inside that of the trained one. Source: McNemar 1947, "Note on the
sampling error of the difference between correlated proportions", exactly, by the binomial; for the standard error
Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketclip.errors import DataError
from pocketclip.evaluate.results import read_lines, read_results

BEFORE = "before"
DROP = 1.0  # points of top-1; less is not called forgetting, however sure
CHANCE = 0.05  # nor is what luck alone would do more often than this


@dataclass(frozen=True, slots=True)
class Change:
    """One split before and after.

    images: those that both evaluations have. right_before: of them, those whose right caption came first before.
    lost, gained: right before alone, right after alone. chance: top-1 of blind guessing, percent.
    """

    split: str
    images: int
    right_before: int
    lost: int
    gained: int
    chance: float

    @property
    def before(self) -> float:
        """Top-1, percent."""
        return 100 * self.right_before / self.images

    @property
    def after(self) -> float:
        """Top-1, percent."""
        return 100 * (self.right_before - self.lost + self.gained) / self.images

    @property
    def difference(self) -> float:
        """Points."""
        return 100 * (self.gained - self.lost) / self.images

    @property
    def standard_error(self) -> float:
        """Of the difference, points; with half an image more in each of the four cells, so that few are not sure."""
        images, moved, net = self.images + 2, self.lost + self.gained + 1, self.gained - self.lost
        return 100 * math.sqrt(moved - net**2 / images) / images

    @property
    def p_value(self) -> float:
        """How often luck alone would move the images as much more one way than the other, or still more: McNemar's."""
        moved, fewer = self.lost + self.gained, min(self.lost, self.gained)
        ways = (math.lgamma(moved + 1) - math.lgamma(k + 1) - math.lgamma(moved - k + 1) for k in range(fewer + 1))
        return min(1.0, 2 * math.fsum(math.exp(one - moved * math.log(2)) for one in ways))

    @property
    def forgotten(self) -> bool:
        """Whether the drop is more than a point and more than luck."""
        return self.difference < -DROP and self.p_value < CHANCE

    def __str__(self) -> str:
        return (
            f"{self.split}: top-1 {self.before:.1f} % before, {self.after:.1f} % after: {self.difference:+.1f} points "
            f"(standard error {self.standard_error:.1f}; {self.gained:,} images gained, {self.lost:,} lost)"
        )


def read_changes(folder: Path) -> list[Change]:
    """The changes of all splits that were evaluated before and after; none where there is no `before`.

    folder: of the trained bundle's evaluation. Raises DataError where the two are of different data.
    """
    before = folder / BEFORE
    if not (before / "results.json").exists():
        return []
    known = {result.benchmark for result in read_results(before / "results.json")}
    return [
        _change(folder, result.benchmark, result.chance_top_1)
        for result in read_results(folder / "results.json")
        if result.benchmark in known
    ]


def _change(folder: Path, split: str, chance: float) -> Change:
    first, second = (
        {line["row"]: line for line in read_lines(where / f"{split}-predictions.jsonl")}
        for where in (folder / BEFORE, folder)
    )
    rows = sorted(first.keys() & second.keys())
    if not rows or any(first[row]["captions"] != second[row]["captions"] for row in rows):
        raise DataError(
            f"{folder / BEFORE}: is of other images than {folder} ({split}); delete it and evaluate the run again"
        )
    right = [(first[row]["rank"] == 0, second[row]["rank"] == 0) for row in rows]
    lost, gained = right.count((True, False)), right.count((False, True))
    return Change(split, len(rows), right.count((True, True)) + lost, lost, gained, chance)


def what_it_has_forgotten(changes: Sequence[Change]) -> str:
    """A plain sentence, or nothing where no split has become worse by more than luck."""
    splits = [f"{one.split} ({one.before:.1f} % before, {one.after:.1f} % after)" for one in changes if one.forgotten]
    if not splits:
        return ""
    return (
        f"it has forgotten: {', '.join(splits)}. A lower train.interpolation or train.learning_rate, fewer steps, or "
        "some of the old rows among the new keep more."
    )
