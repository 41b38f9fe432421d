"""Any source of rows -> a folder of shards with indexes and a manifest."""

import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from pocketclip.data import openmoji
from pocketclip.data.rows import Row
from pocketclip.data.shards import (
    Shard,
    add_row,
    index_path,
    read_manifest,
    split_of,
    splits_in,
    write_index,
    write_manifest,
)
from pocketclip.data.sources import Folder, Found, make_rows
from pocketclip.data.tables import SUFFIXES, Columns, count_rows, read_table
from pocketclip.errors import DataError
from pocketclip.files import sync
from pocketclip.progress import WorkProgress

MANIFEST_FORMAT = 1
OPENMOJI = "openmoji"
WEBDATASET = "WebDataset tars, indexed in place"
LOCK = ".lock"
QUIET = Console(quiet=True)


@dataclass(frozen=True, slots=True)
class PackOptions:
    """How a source is packed.

    size: side of openmoji's pictures, pixels. validation: of openmoji only train, cut anew (`openmoji.rows`).
    short_side: larger images are shrunk to this short side, pixels; 0 keeps all as they are.
    image_column, caption_columns: of a table; empty: by their usual names. In an IMAGE.json beside its image,
        caption_columns are the keys. image_folder: where a table's paths begin; None: the table's own folder. No path
        may lead out of it.
    test: share of the rows, by a hash of their names, that become the split "test"; the others are "train".
    rows_per_shard: rows in each tar but the last.
    """

    size: int = 72
    validation: bool = False
    short_side: int = 0
    image_column: str = ""
    caption_columns: tuple[str, ...] = ()
    image_folder: Path | None = None
    test: float = 0.0
    rows_per_shard: int = 10_000


def pack(
    source: str, folder: Path | None = None, options: PackOptions | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Write a source's rows into `folder` as shards; returns the manifest, and prints what was left out and why.

    source is one of
        openmoji            the embedded data set
        a table             .csv, .tsv, .txt, .jsonl or .parquet with a column of paths, or of images in Parquet
        a folder of Parquet its files in the order of their names; those named SPLIT-00000-of-00003.parquet, as Hugging
                            Face names them, keep their split (a single file of such a name does so too)
        a folder of tars    as WebDataset and img2dataset write them: each gets its index, and they get a manifest.json,
                            where they lie. Nothing is copied, nothing is decoded, images stay as they are; `folder`
                            is left out, or is the same folder. Run again to index tars that came later.
        a folder of images  with captions beside them, or in class folders (`sources.Folder`)

    Otherwise the shards are made in a hidden folder beside `folder` and moved there when all are whole, manifest.json
    last; the hidden folder of a killed run is removed by the next, whose shards are the same bytes as those of an
    undisturbed run. Memory does not grow with the source.
    Raises DataError if the folder holds shards already or cannot be written, or if the source cannot be read or has no
    row of use.
    """
    options, console = options or PackOptions(), console or QUIET
    if not 0 <= options.test < 1 or options.rows_per_shard < 1 or options.short_side < 0:
        raise DataError("test is a share from 0 to below 1, rows_per_shard 1 or more, short_side 0 or more")
    place = Path(source)
    try:
        if source != OPENMOJI and place.is_dir() and any(place.glob("*.tar")):
            return _index(place, folder, options, console)
        if folder is None:
            raise DataError(f"{source}: where to? Name the folder for the shards")
        with _hidden(folder.resolve()) as hidden:
            manifest = _write(source, hidden, options, console)
            _move(hidden, folder.resolve())
    except OSError as error:
        where = error.filename or folder or source
        raise DataError(f"{where}: {error.strerror}; make it readable, choose another folder or make room") from None
    return manifest


def _write(source: str, hidden: Path, options: PackOptions, console: Console) -> dict[str, Any]:
    """Write all shards and the manifest into a folder."""
    dropped: Counter[str] = Counter()
    shards = _Shards(hidden, options.rows_per_shard, dropped)
    if source == OPENMOJI:
        rendered = openmoji.rows(options.size, options.validation)
        about: dict[str, Any] = {
            "source": "openmoji, train cut for validation" if options.validation else "openmoji",
            "image_size": options.size,
            "attribution": openmoji.licence(),
        }
        found: Iterable[tuple[str, Row | None]] = ((split, row) for split, rows in rendered.items() for row in rows)
        total: int | None = sum(map(len, rendered.values()))
    else:
        about = {"source": source, "short_side": options.short_side}
        total, images = _open(Path(source), options, dropped)
        rows = make_rows(images, options.short_side, dropped)
        found = ((one.split_of(options.test), row) for one, row in rows)
    with shards, WorkProgress(console, "pack", "rows", total) as progress:
        for split, row in found:
            if row is not None:
                shards.add(split, row)
            progress.advance(1, f"{dropped.total():,} left out" if dropped.total() else "")
    reasons = {reason: count for reason, count in sorted(dropped.items()) if count}
    listed = ", ".join(f"{count:,} x {reason}" for reason, count in reasons.items())
    if not shards.rows:
        raise DataError(f"{source}: has no row of use" + (f" (left out: {listed})" if listed else ""))
    if listed:
        console.print(f"left out: {listed}", highlight=False, markup=False)
    manifest = {"format": MANIFEST_FORMAT, "source": about.pop("source"), **about, "rows": dict(shards.rows)}
    manifest |= {"dropped": reasons, "shards": sorted(shards.names)}
    write_manifest(hidden, manifest)
    return manifest


def _open(place: Path, options: PackOptions, dropped: Counter[str]) -> tuple[int | None, Iterator[Found]]:
    """How many rows a source has, if that is known, and the rows."""
    columns = Columns(options.image_column, options.caption_columns, options.image_folder)
    if place.is_dir():
        folder = Folder.look(place)
        if folder.total:
            return folder.total, folder.found(dropped, options.caption_columns)
        tables = sorted(path for path in place.rglob("*.parquet") if path.name[0] != ".")
        if not tables:
            raise DataError(f"{place}: holds no .jpg, .png, .webp, .parquet or .tar file")
        counts = [count_rows(table) or 0 for table in tables]
        return sum(counts), chain.from_iterable(read_table(table, columns, dropped) for table in tables)
    if place.suffix.lower() not in SUFFIXES:
        known = f"openmoji, a folder of images, of tars or of Parquet, or a file of {', '.join(SUFFIXES)}"
        raise DataError(f"{place}: unknown source; known: {known}")
    if not place.is_file():
        raise DataError(f"{place}: no such file")
    return count_rows(place), read_table(place, columns, dropped)


class _Shards:
    """Writes rows, in whatever order their splits come, as SPLIT-00000.tar, SPLIT-00001.tar, ... with indexes.

    rows: split -> rows written. names: of the tars.
    """

    def __init__(self, folder: Path, rows_per_shard: int, dropped: Counter[str]) -> None:
        self.folder, self.rows_per_shard, self.dropped = folder, rows_per_shard, dropped
        self.rows: Counter[str] = Counter()
        self.names: list[str] = []
        self._open: dict[str, tuple[tarfile.TarFile, set[str]]] = {}

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for split in list(self._open):
            self._close(split, whole=kind is None)

    def add(self, split: str, row: Row) -> None:
        """Write a row; one whose key the shard has already is left out, as a tar would lose one of the two."""
        if split not in self._open:
            name = f"{split}-{self.rows[split] // self.rows_per_shard:05d}.tar"
            tar = tarfile.open(self.folder / name, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
            self._open[split] = tar, set()
            self.names.append(name)
        tar, keys = self._open[split]
        if row.key in keys:
            self.dropped["key that another row has"] += 1
            return
        keys.add(row.key)
        add_row(tar, row)
        self.rows[split] += 1
        if len(keys) == self.rows_per_shard:
            self._close(split, whole=True)

    def _close(self, split: str, whole: bool) -> None:
        tar, _ = self._open.pop(split)
        tar.close()
        if whole:
            sync(Path(str(tar.name)))
            write_index(Path(str(tar.name)))


@contextmanager
def _hidden(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`, empty, ours alone, and gone in the end; raises DataError if there are shards."""
    hidden = folder.with_name(f".{folder.name}.part")
    hidden.mkdir(parents=True, exist_ok=True)
    lock = FileLock(hidden / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"{folder}: another process is packing into it; wait, or choose another folder") from None
    try:
        _undo_move(hidden, folder)
        if splits_in(folder) or (folder / "manifest.json").exists():
            raise DataError(f"{folder}: already holds shards; choose another folder, or delete them first")
        for leftover in hidden.iterdir():
            if leftover.name != LOCK:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield hidden
    finally:
        lock.release()
        shutil.rmtree(hidden, ignore_errors=True)


def _move(hidden: Path, folder: Path) -> None:
    """Move what was written into its folder: at once if that is new or empty, else file by file, the manifest last."""
    (hidden / LOCK).unlink(missing_ok=True)
    sync(hidden)
    if not folder.exists() or not any(folder.iterdir()):
        if folder.exists():
            folder.rmdir()
        hidden.rename(folder)
    else:
        for name in [*_names(read_manifest(hidden)), "manifest.json"]:
            (hidden / name).replace(folder / name)
        sync(folder)
    sync(folder.parent)


def _undo_move(hidden: Path, folder: Path) -> None:
    """Take back the files that a run had moved when it was killed between the first and the last."""
    if (hidden / "manifest.json").exists():
        for name in _names(read_manifest(hidden)):
            if not (hidden / name).exists():
                (folder / name).unlink(missing_ok=True)


def _names(manifest: dict[str, Any]) -> list[str]:
    return [name for tar in manifest["shards"] for name in (tar, index_path(Path(tar)).name)]


def _index(place: Path, folder: Path | None, options: PackOptions, console: Console) -> dict[str, Any]:
    """Give each tar in a folder its index, and the folder its manifest."""
    if folder is not None and folder.resolve() != place.resolve():
        raise DataError(f"{folder}: tars are indexed where they lie; leave this folder out, and train on {place}")
    if options != PackOptions(size=options.size):
        raise DataError(f"{place}: tars stay as they are; leave out all settings (columns, short side, test share)")
    if (place / "manifest.json").exists() and read_manifest(place).get("source") != WEBDATASET:
        raise DataError(f"{place}: already holds packed shards; there is nothing to do")
    tars = sorted(place.glob("*.tar"))
    rows: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    nameless = [tar.name for tar in tars if not split_of(tar)]
    if nameless:
        raise DataError(f"{place}: {nameless[0]} belongs to no split by its name; call it train-00000.tar or 00000.tar")
    with WorkProgress(console, "index", "tars", len(tars)) as progress:
        for tar in tars:
            shard = Shard(tar)
            rows[split_of(tar)] += len(shard)
            dropped += shard.dropped
            progress.advance(1, f"{rows.total():,} rows")
    reasons = dict(sorted(dropped.items()))
    listed = ", ".join(f"{count:,} x {reason}" for reason, count in reasons.items())
    if not rows.total():
        raise DataError(f"{place}: has no row of use" + (f" (left out: {listed})" if listed else ""))
    if listed:
        console.print(f"left out: {listed}", highlight=False, markup=False)
    manifest = {"format": MANIFEST_FORMAT, "source": WEBDATASET, "rows": dict(rows), "dropped": reasons}
    manifest["shards"] = [tar.name for tar in tars]
    write_manifest(place, manifest)
    return manifest
