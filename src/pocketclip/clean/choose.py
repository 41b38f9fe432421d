"""The second pass: what can only be told by looking at all rows together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pocketclip.clean.balance import draw, drawn_for_test, keep_probabilities, row_probability
from pocketclip.clean.duplicates import GRID, WORDS, Looks
from pocketclip.clean.features import fixed_width, read_features
from pocketclip.data.outcomes import arrow
from pocketclip.data.shards import split_of
from pocketclip.files import whole_file
from pocketclip.recipe.schema import Recipe

EXACT, NEAR = "exact duplicate", "near duplicate"
UNLISTED, BALANCED = "no word of the list", "balanced away"


@dataclass(frozen=True, slots=True)
class Part:
    """A shard and its features; benchmark: the name of the one it belongs to, "" for a shard that is cleaned."""

    tar: Path
    features: Path
    benchmark: str = ""


@dataclass(slots=True)
class Choice:
    """What is kept: bool [rows] for each cleaned shard. outcomes: rows by what became of them. captions: by why not."""

    KEPT: ClassVar[str] = "kept"
    keep: list[NDArray[np.bool_]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)


class Rows:
    """All rows of all parts, numbered in the order of the parts; benchmarks come first.

    reasons: object [rows], "" while nothing is known against a row. repeats: the row that it repeats, or -1.
    """

    def __init__(self, parts: Sequence[Part], split: str) -> None:
        self.parts = parts
        tables = [read_features(part.features, ("key", "reason", "pixels", "content")) for part in parts]
        pa, _ = arrow()
        joined = pa.concat_tables(tables)
        self.ends = np.cumsum([table.num_rows for table in tables])
        # In one piece: `take` would join the pieces anew for every part.
        self.keys = joined["key"].cast(pa.large_string()).combine_chunks()
        self.content = joined["content"].to_numpy()
        # Few reasons, many rows: numbers into a list of names.
        self.names: list[str] = [""]
        self.reasons = np.zeros(joined.num_rows, dtype=np.int32)
        coded = joined["reason"].combine_chunks().dictionary_encode()
        for number, name in enumerate(coded.dictionary.to_pylist()):
            if name:
                self.reasons[coded.indices.to_numpy() == number] = self.code(name)
        self.repeats = np.full(joined.num_rows, -1, dtype=np.int64)
        self.benchmarks = int(sum(table.num_rows for table, part in zip(tables, parts, strict=True) if part.benchmark))
        # Kept first: benchmarks, then splits that are evaluated on, then the larger image, then the earlier one.
        last = np.concatenate(
            [
                np.full(t.num_rows, not p.benchmark and split_of(p.tar) == split)
                for t, p in zip(tables, parts, strict=True)
            ]
        )
        ours = np.arange(joined.num_rows) >= self.benchmarks
        self.order = np.lexsort((-joined["pixels"].to_numpy(), last, ours)).astype(np.int64)

    def code(self, reason: str) -> int:
        """A reason's number."""
        if reason not in self.names:
            self.names.append(reason)
        return self.names.index(reason)

    def start(self, part: int) -> int:
        """The first row of a part."""
        return int(self.ends[part - 1]) if part else 0

    def drop(self, rows: NDArray[np.int64], reason: str, repeats: NDArray[np.int64] | None = None) -> None:
        """Note why rows are dropped."""
        self.reasons[rows] = self.code(reason)
        if repeats is not None:
            self.repeats[rows] = repeats


def choose(parts: Sequence[Part], recipe: Recipe, words: int, under_way: Path, outcomes: Path) -> Choice:
    """Choose which rows are kept, and write what became of each row.

    words: how many the list has that rows are balanced over. under_way: a folder for files mapped into memory.
    outcomes: the Parquet file to write.
    """
    rows = Rows(parts, recipe.data.split)
    if recipe.clean.benchmarks or recipe.clean.duplicates == "near":
        looks = _looks(rows, under_way, recipe.clean.duplicate_distance)
        if recipe.clean.benchmarks:
            _drop_leaks(rows, looks)
    if recipe.clean.duplicates != "keep":
        _drop_exact(rows)
    if recipe.clean.duplicates == "near":
        _drop_near(rows, looks)
    if recipe.clean.balance:
        _balance(rows, recipe, words)
    return _write_outcomes(rows, outcomes)


def _looks(rows: Rows, under_way: Path, distance: int) -> Looks:
    """How all rows look, in the order of preference, in files that are mapped into memory."""
    count = len(rows.order)
    hashes = np.lib.format.open_memmap(under_way / "hashes.npy", "w+", np.uint64, (count, WORDS))
    grids = np.lib.format.open_memmap(under_way / "grids.npy", "w+", np.uint8, (count, GRID))
    rank = np.empty(count, dtype=np.int64)
    rank[rows.order] = np.arange(count)
    for number, part in enumerate(rows.parts):
        table = read_features(part.features, ("hash", "grid"))
        places = rank[rows.start(number) : rows.ends[number]]
        hashes[places] = fixed_width(table["hash"], np.uint64, WORDS)
        grids[places] = fixed_width(table["grid"], np.uint8, GRID)
    return Looks(hashes, grids, distance)


def _drop_leaks(rows: Rows, looks: Looks) -> None:
    alive = rows.reasons[rows.order] == 0
    repeats = looks.duplicates(alive, fixed=rows.benchmarks)
    found = np.nonzero(repeats >= 0)[0]
    leaked, of = rows.order[found], rows.order[repeats[found]]
    owners = np.searchsorted(rows.ends, of, side="right")
    for number, part in enumerate(rows.parts):
        some = owners == number
        if some.any():
            rows.drop(leaked[some], f"in benchmark {part.benchmark}", of[some])


def _drop_exact(rows: Rows) -> None:
    """Of rows with the same file keep the first in the order of preference."""
    alive = rows.order[(rows.reasons[rows.order] == 0) & (rows.order >= rows.benchmarks)]
    _, first, same = np.unique(rows.content[alive], return_index=True, return_inverse=True)
    kept = first[same]
    repeated = kept != np.arange(len(alive))
    rows.drop(alive[repeated], EXACT, alive[kept[repeated]])


def _drop_near(rows: Rows, looks: Looks) -> None:
    alive = (rows.reasons[rows.order] == 0) & (rows.order >= rows.benchmarks)
    repeats = looks.duplicates(alive)
    found = np.nonzero(repeats >= 0)[0]
    rows.drop(rows.order[found], NEAR, rows.order[repeats[found]])


def _balance(rows: Rows, recipe: Recipe, words: int) -> None:
    """Count the words of the training rows that are left, then draw each one's lot.

    What is evaluated on stays as it is: other splits, and what becomes one of them.
    """
    training = [(number, part) for number, part in _cleaned(rows) if split_of(part.tar) == recipe.data.split]
    counts = np.zeros(words, dtype=np.int64)
    balanced = []
    for number, part in training:
        alive = rows.reasons[rows.start(number) : rows.ends[number]] == 0
        table = read_features(part.features, ("key", "words"))
        if recipe.clean.test:
            tested = [drawn_for_test(recipe.seed, key, recipe.clean.test) for key in table["key"].to_pylist()]
            alive &= ~np.array(tested, dtype=np.bool_)
        balanced.append(alive)
        listed = table["words"].combine_chunks().filter(arrow()[0].array(alive))
        counts += np.bincount(listed.flatten().to_numpy(), minlength=words)
    probabilities = keep_probabilities(counts, recipe.clean.balance)
    for (number, part), alive in zip(training, balanced, strict=True):
        some = read_features(part.features, ("key", "words")).filter(arrow()[0].array(alive))
        places = rows.start(number) + np.nonzero(alive)[0]
        for row, key, found in zip(places, some["key"].to_pylist(), some["words"].to_pylist(), strict=True):
            if not found:
                rows.reasons[row] = rows.code(UNLISTED)
            elif draw(recipe.seed, key) >= row_probability(found, probabilities):
                rows.reasons[row] = rows.code(BALANCED)


def _cleaned(rows: Rows) -> list[tuple[int, Part]]:
    return [(number, part) for number, part in enumerate(rows.parts) if not part.benchmark]


def _write_outcomes(rows: Rows, path: Path) -> Choice:
    """Write a line a row, and count."""
    pa, pq = arrow()
    names = ("shard", "key", "outcome", "repeats")
    schema = pa.schema([(name, pa.string()) for name in names])
    outcome_names = pa.array([name or Choice.KEPT for name in rows.names])
    choice = Choice()
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for number, part in _cleaned(rows):
            places = slice(rows.start(number), int(rows.ends[number]))
            reasons, repeats = rows.reasons[places], rows.repeats[places]
            outcomes = outcome_names.take(pa.array(reasons))
            of = rows.keys.take(pa.array(repeats, mask=repeats < 0)).cast(pa.string())
            keys = rows.keys.slice(places.start, len(reasons)).cast(pa.string())
            shard = pa.array([part.tar.name] * len(reasons))
            writer.write_table(pa.table([shard, keys, outcomes, of], schema=schema))
            choice.keep.append(reasons == 0)
            choice.outcomes.update(_count(outcomes))
            dropped: Any = read_features(part.features, ("dropped_captions",))["dropped_captions"].combine_chunks()
            choice.captions.update(_count(dropped.flatten()))
    return choice


def _count(values: Any) -> dict[str, int]:
    return {pair["values"]: pair["counts"] for pair in values.value_counts().to_pylist()}
