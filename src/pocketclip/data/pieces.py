"""A source cut into pieces, each the work of one process, which makes of it a shard of each split that has rows there.

    shards/SPLIT-00007.tar, .index.npz    the rows of piece 7 that belong to SPLIT, in the source's order
    00007.json                            how many they are and what was left out; written last: the piece is finished

Where the cuts are follows from the source alone, so that the shards are the same, whoever makes them.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from pocketclip.data.rows import Row
from pocketclip.data.shards import ShardWriter, index_path, new_shard
from pocketclip.data.sources import WORKERS, Folder, Found, make_rows
from pocketclip.data.tables import Table
from pocketclip.files import remove_unfinished, whole_file

SHARDS = "shards"
PATIENCE = 30  # seconds for a worker of a killed run to end
PIECES, FEWEST_ROWS = 64, 512  # a source that fills fewer shards is cut so finely, for as many processes to share it


@dataclass(frozen=True, slots=True)
class PackOptions:
    """How a source is packed.

    size: side of openmoji's pictures, pixels. validation: of openmoji only train, cut anew (`openmoji.rows`).
    short_side: larger images are shrunk to this short side, pixels; 0 keeps all as they are.
    image_column, caption_columns: of a table; empty: by their usual names. In an IMAGE.json beside its image,
        caption_columns are the keys. image_folder: where a table's paths begin; None: the table's own folder. No path
        may lead out of it.
    test: share of the rows, by a hash of their names, or of images inside Parquet, that become the split "test"; the
        others are "train".
    rows_per_shard: rows of the source, of all splits together, in the shards of one number, at most.
    """

    size: int = 72
    validation: bool = False
    short_side: int = 0
    image_column: str = ""
    caption_columns: tuple[str, ...] = ()
    image_folder: Path | None = None
    test: float = 0.0
    rows_per_shard: int = 10_000


class Counts(NamedTuple):
    """What became of a piece: split -> rows in its shard, reason -> rows left out."""

    rows: dict[str, int]
    dropped: dict[str, int]

    @property
    def total(self) -> int:
        """Rows, in shards or left out."""
        return sum(self.rows.values()) + sum(self.dropped.values())


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows that become SPLIT-NUMBER.tar.

    folder: where all of them come to lie, an absolute path. content: images that were found, or parts of Parquet files,
        which are read only where the piece is done, so that images never travel. threads: images decoded at a time.
    """

    folder: Path
    number: int
    content: Sequence[Found | Table]
    options: PackOptions
    threads: int


def pack_shard(piece: Piece) -> Counts:
    """Write a piece's shards, unless they are written; returns its counts. Runs in a worker.

    A worker of a killed run may take a moment to end: a lock keeps the two from writing the same files. Raises
    filelock's Timeout where it is held for longer.
    """
    options, dropped = piece.options, Counter[str]()
    with FileLock(piece.folder / f"{piece.number:05d}.lock", timeout=PATIENCE):
        if counts := finished(piece.folder, piece.number):
            return counts
        remove_unfinished(piece.folder / SHARDS, f"*-{piece.number:05d}")
        found = chain.from_iterable(one.found(dropped) if isinstance(one, Table) else (one,) for one in piece.content)
        made = make_rows(found, options.short_side, dropped, piece.threads)
        rows = ((one.split_of(options.test), row) for one, row in made if row)
        return write_piece(piece.folder, piece.number, rows, dropped)


def write_piece(folder: Path, number: int, rows: Iterable[tuple[str, Row]], dropped: Counter[str]) -> Counts:
    """Write rows, each with its split, as the shards of one number; counts are complete when all rows were taken.

    A row whose key the shard has already is left out, as a tar would lose one of the two.
    """
    shards: dict[str, ShardWriter] = {}
    keys: dict[str, set[str]] = {}
    with ExitStack() as stack:
        for split, row in rows:
            if split not in shards:
                shards[split] = stack.enter_context(new_shard(_tar(folder, split, number)))
                keys[split] = set()
            if row.key in keys[split]:
                dropped["key that another row has"] += 1
            else:
                keys[split].add(row.key)
                shards[split].add(row)
    counts = Counts({split: len(found) for split, found in keys.items()}, dict(+dropped))
    with whole_file(_counts(folder, number)) as temporary:
        temporary.write_text(json.dumps(counts._asdict()), encoding="utf-8")
    return counts


def finished(folder: Path, number: int) -> Counts | None:
    """A finished piece's counts; None if it is not finished, or a shard of it is gone."""
    try:
        counts = Counts(**json.loads(_counts(folder, number).read_text(encoding="utf-8")))
        tars = [_tar(folder, split, number) for split in counts.rows]
    except (OSError, ValueError, TypeError):
        return None
    return counts if all(tar.exists() and index_path(tar).exists() for tar in tars) else None


def _tar(folder: Path, split: str, number: int) -> Path:
    return folder / SHARDS / f"{split}-{number:05d}.tar"


def _counts(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


@dataclass(frozen=True, slots=True)
class Source:
    """A folder of images, or tables. state: another one where the files have changed."""

    images: Folder | None
    tables: Sequence[Table]
    state: str

    @property
    def total(self) -> int | None:
        """Rows at most, None while it is not known, which a text table's may be until its first row (`Table`)."""
        if self.images:
            return self.images.total
        totals = [table.total for table in self.tables if table.total is not None]
        return sum(totals) if len(totals) == len(self.tables) else None

    def pieces(self, folder: Path, options: PackOptions, dropped: Counter[str], alone: bool) -> Iterator[Piece]:
        """Its rows, in pieces that follow from the source and `options.rows_per_shard`.

        folder: of `Piece`. dropped: takes rows that are left out before they are in a piece. alone: one process does
        all pieces, one after the other, so that each may use all cores; else each has its share of them.
        """
        for number, content in enumerate(self._contents(options, dropped)):
            threads = WORKERS if alone else max(1, WORKERS // pieces_of(self.total, options.rows_per_shard))
            yield Piece(folder, number, content, options, threads)

    def _contents(self, options: PackOptions, dropped: Counter[str]) -> Iterator[Sequence[Found | Table]]:
        if self.images:
            yield from self._lists(self.images.found(dropped, options.caption_columns), options)
        for images_inside, tables in groupby(self.tables, key=lambda table: bool(table.groups)):
            if images_inside:
                yield from self._parts(tables, options)
            else:
                yield from self._lists(chain.from_iterable(table.found(dropped) for table in tables), options)

    def _lists(self, found: Iterator[Found], options: PackOptions) -> Iterator[list[Found]]:
        """Images that were found, so many at a time."""
        for first in found:  # the total is known from here on
            yield [first, *islice(found, rows_in_piece(self.total, options.rows_per_shard) - 1)]

    def _parts(self, tables: Iterable[Table], options: PackOptions) -> Iterator[list[Table]]:
        """Parts of Parquet files, cut between groups where that is possible, as a group is read from its start."""
        rows, most = rows_in_piece(self.total, options.rows_per_shard), options.rows_per_shard
        held: list[Table] = []
        number = 0
        for part, size in chain.from_iterable(_groups(table, most) for table in tables):
            if held and number + size > rows:
                yield held
                held, number = [], 0
            if held and held[-1].path == part.path:
                held[-1] = replace(held[-1], stop=part.stop)
            else:
                held.append(part)
            number += size
        if held:
            yield held


def _groups(table: Table, most: int) -> Iterator[tuple[Table, int]]:
    """A Parquet file's groups and how many rows they have, those with more than `most` in parts of so many."""
    start = 0
    for size in table.groups:
        for first in range(start, start + size, most):
            stop = min(first + most, start + size)
            yield replace(table, groups=(), start=first, stop=stop), stop - first
        start += size


def pieces_of(total: int | None, most: int) -> int:
    """Into how many pieces so many rows are cut; as many as there may be where their number is not known."""
    if total is None:
        return WORKERS
    return max(1, min(PIECES, total // FEWEST_ROWS), -(-total // most))


def rows_in_piece(total: int | None, most: int) -> int:
    """Rows of each piece: `most` where the source has many, or nobody knows how many; else all pieces alike."""
    return most if total is None else max(1, -(-total // pieces_of(total, most)))
