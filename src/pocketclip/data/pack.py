"""Any source of rows -> a folder of shards with indexes and a manifest."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from pocketclip.data import openmoji
from pocketclip.data.columns import Columns
from pocketclip.data.pieces import SHARDS, Counts, Piece, Source, finished, pack_shard, write_piece
from pocketclip.data.pieces import PackOptions as PackOptions
from pocketclip.data.shards import Shard, index_path, read_manifest, split_of, splits_in, write_manifest
from pocketclip.data.sources import Folder, state_of
from pocketclip.data.tables import SUFFIXES, Table
from pocketclip.engine import Engine
from pocketclip.errors import DataError
from pocketclip.files import sync
from pocketclip.progress import WorkProgress

MANIFEST_FORMAT = 1
OPENMOJI = "openmoji"
WEBDATASET = "WebDataset tars, indexed in place"
LOCK = ".lock"
QUIET = Console(quiet=True)


def pack(
    source: str,
    folder: Path | None = None,
    options: PackOptions | None = None,
    console: Console | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Write a source's rows into `folder` as shards; returns the manifest, and prints what was left out and why.

    source is one of
        openmoji            the embedded data set
        a table             .csv, .tsv, .txt, .jsonl or .parquet with a column of paths, or of images in Parquet; .json
                            of COCO's annotations
        a folder of Parquet its files in the order of their names; those named SPLIT-00000-of-00003.parquet, as Hugging
                            Face names them, keep their split (a single file of such a name does so too)
        a folder of tars    as WebDataset and img2dataset write them: each gets its index, and they get a manifest.json,
                            where they lie. Nothing is copied, nothing is decoded, images stay as they are; `folder`
                            is left out, or is the same folder. Run again to index tars that came later.
        a folder of images  with captions beside them, or in class folders (`sources.Folder`)
    engine: where the work is done; None: in this process, on all cores. The shards are the same.

    Otherwise the shards are made in a hidden folder, beside `folder` or in it, and moved there when all are whole,
    manifest.json last. What a killed run has finished stays in the hidden folder: the same command goes on with it,
    another one, or one whose source has changed, begins anew. Memory does not grow with the source.
    Raises DataError if the folder holds shards already or cannot be written, or if the source cannot be read or has no
    row of use.
    """
    options, console = options or PackOptions(), console or QUIET
    if not 0 <= options.test < 1 or options.rows_per_shard < 1 or options.short_side < 0:
        raise DataError("test is a share from 0 to below 1, rows_per_shard 1 or more, short_side 0 or more")
    place = Path(source)
    try:
        if source != OPENMOJI and place.is_dir() and any(place.glob("*.tar")):
            return _index(place, folder, options, console, engine or _Here())
        if folder is None:
            raise DataError(f"{source}: where to? Name the folder for the shards")
        rows = None if source == OPENMOJI else _look(place, options)
        with _hidden(folder.resolve(), _identity(source, rows, options)) as work:
            manifest = _write(source, rows, work, options, console, engine)
            _move(work / SHARDS, folder.resolve())
    except Timeout as error:
        raise DataError(
            f"{error.lock_file}: held by a worker of an earlier run; wait for it to end, then run the same command "
            "again"
        ) from None
    except OSError as error:
        where = error.filename or folder or source
        raise DataError(
            f"{where}: {error.strerror}; make it readable, choose another folder, or make room and run the same "
            "command again"
        ) from None
    return manifest


class _Here:
    """An engine that does the work in this process."""

    def map(self, function: Callable[[Any], Any], pieces: Iterable[Any], inflight: int | None = None) -> Iterator[Any]:
        """See Engine."""
        del inflight
        return map(function, pieces)


def _look(place: Path, options: PackOptions) -> Source:
    """What a source has, before it is read."""
    columns = Columns(options.image_column, options.caption_columns, options.image_folder)
    if place.is_dir():
        images = Folder.look(place)
        if images.total:
            return Source(images, (), images.state)
        paths = sorted(path for path in place.rglob("*.parquet") if path.name[0] != ".")
        if not paths:
            raise DataError(f"{place}: holds no .jpg, .png, .webp, .parquet or .tar file")
    elif place.suffix.lower() not in SUFFIXES:
        known = f"openmoji, a folder of images, of tars or of Parquet, or a file of {', '.join(SUFFIXES)}"
        raise DataError(f"{place}: unknown source; known: {known}")
    elif not place.is_file():
        raise DataError(f"{place}: no such file")
    else:
        paths = [place]
    state = [(str(path), state_of(path)) for path in paths]
    names = [path.relative_to(place).as_posix() if path != place else "" for path in paths]
    return Source(None, [Table.look(path, columns, name) for path, name in zip(paths, names, strict=True)], str(state))


def _identity(source: str, rows: Source | None, options: PackOptions) -> str:
    """16 hexadecimal digits that are others for another source, a changed one, or other options."""
    made_of = {"source": rows and str(Path(source).resolve()), "state": rows and rows.state, **asdict(options)}
    made_of["image_folder"] = options.image_folder and str(options.image_folder.resolve())
    return hashlib.sha256(json.dumps(made_of).encode(errors="surrogatepass")).hexdigest()[:16]


def _write(
    source: str, rows: Source | None, work: Path, options: PackOptions, console: Console, engine: Engine | None
) -> dict[str, Any]:
    """Write all shards and the manifest into the work folder."""
    dropped: Counter[str] = Counter()
    if rows is None:
        about: dict[str, Any] = {
            "source": "openmoji, train cut for validation" if options.validation else "openmoji",
            "image_size": options.size,
            "attribution": openmoji.licence(),
        }
        number = _draw(work, options)
    else:
        about = {"source": source, "short_side": options.short_side}
        number = _read(rows, work, options, dropped, console, engine)
    written: Counter[str] = Counter()
    names = []
    for piece in range(number):
        counts = finished(work, piece)
        if counts is None:
            raise DataError(f"{work}: lacks shard {piece}, which was written; all machines must share the folder")
        written.update(counts.rows)
        dropped.update(counts.dropped)
        names += [f"{split}-{piece:05d}.tar" for split in counts.rows]
    reasons = _report(source, written, dropped, console)
    manifest = {"format": MANIFEST_FORMAT, **about, "rows": dict(written), "dropped": reasons, "shards": sorted(names)}
    write_manifest(work / SHARDS, manifest)
    return manifest


def _draw(work: Path, options: PackOptions) -> int:
    """Write the embedded data set, in this process: it is small. Returns the number of pieces."""
    rendered = openmoji.rows(options.size, options.validation)
    rows = [(split, row) for split, some in rendered.items() for row in some]
    starts = range(0, len(rows), options.rows_per_shard)
    for number, start in enumerate(starts):
        write_piece(work, number, rows[start : start + options.rows_per_shard], Counter())
    return len(starts)


def _read(
    rows: Source, work: Path, options: PackOptions, dropped: Counter[str], console: Console, engine: Engine | None
) -> int:
    """Do the pieces of a source that are not done; returns their number, and in `dropped` what is in none of them."""
    pieces = rows.pieces(work, options, dropped, alone=engine is None)
    first = next(pieces, None)  # a table knows its rows from here on
    number = 0
    lost: Counter[str] = Counter()

    def unfinished() -> Iterator[Piece]:
        nonlocal number
        for piece in chain([first] if first else [], pieces):
            number += 1
            if finished(work, piece.number) is None:
                yield piece

    done = sum(counts.total for counts in _finished_before(work))
    with WorkProgress(console, "pack", "rows", rows.total, done) as progress:
        for counts in (engine or _Here()).map(pack_shard, unfinished()):
            lost.update(counts.dropped)
            left_out = dropped.total() + lost.total()
            progress.advance(counts.total, f"{left_out:,} left out" if left_out else "")
    return number


def _finished_before(work: Path) -> list[Counts]:
    found = (finished(work, int(path.stem)) for path in work.glob("*.json"))
    return [counts for counts in found if counts]


def _report(source: object, rows: Counter[str], dropped: Counter[str], console: Console) -> dict[str, int]:
    """Print what was left out, and give it in the order of the reasons; raises DataError if that is all there was."""
    reasons = {reason: count for reason, count in sorted(dropped.items()) if count}
    listed = ", ".join(f"{count:,} x {reason}" for reason, count in reasons.items())
    if not rows.total():
        raise DataError(f"{source}: has no row of use" + (f" (left out: {listed})" if listed else ""))
    if listed:
        console.print(f"left out: {listed}", highlight=False, markup=False)
    return reasons


@contextmanager
def _hidden(folder: Path, identity: str) -> Iterator[Path]:
    """The hidden folder beside `folder`, ours alone: in it, what an earlier run of this identity has finished.

    Where `folder` is there already the hidden one is inside it, as `folder` can be another disk, mounted.

    It goes when all is done, and where a run failed before its first shard was whole. Each identity has a folder of its
    own in it, so that the workers of a killed run, which may take a moment to end, write into no other's shards.
    Raises DataError if `folder` holds shards, or is none.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is no folder; choose another one")
    hidden = folder / ".part" if folder.exists() else folder.with_name(f".{folder.name}.part")
    work = hidden / identity
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
            if leftover.name not in (LOCK, identity):
                shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
        (work / SHARDS).mkdir(parents=True, exist_ok=True)
        yield work
    finally:
        keep = any((work / SHARDS).glob("*.tar"))  # not yet moved
        lock.release()
        if not keep:
            shutil.rmtree(hidden, ignore_errors=True)


def _move(shards: Path, folder: Path) -> None:
    """Move what was written into its folder: at once if that is new, else file by file, the manifest last."""
    names = _names(read_manifest(shards))
    for leftover in {path.name for path in shards.iterdir()} - {*names, "manifest.json"}:
        (shards / leftover).unlink()  # half a file of a killed process
    sync(shards)
    if not folder.exists():
        shards.rename(folder)
    else:
        for name in [*names, "manifest.json"]:
            (shards / name).replace(folder / name)
        sync(folder)
    sync(folder.parent)


def _undo_move(hidden: Path, folder: Path) -> None:
    """Take back the files that a run had moved when it was killed between the first and the last."""
    for manifest in hidden.glob(f"*/{SHARDS}/manifest.json"):
        for name in _names(read_manifest(manifest.parent)):
            if (folder / name).exists() and not (manifest.parent / name).exists():
                (folder / name).replace(manifest.parent / name)


def _names(manifest: dict[str, Any]) -> list[str]:
    return [name for tar in manifest["shards"] for name in (tar, index_path(Path(tar)).name)]


def _index(place: Path, folder: Path | None, options: PackOptions, console: Console, engine: Engine) -> dict[str, Any]:
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
        for counts in engine.map(index_tar, [tar.absolute() for tar in tars]):
            rows.update(counts.rows)
            dropped.update(counts.dropped)
            progress.advance(1, f"{rows.total():,} rows")
    reasons = _report(place, rows, dropped, console)
    manifest = {"format": MANIFEST_FORMAT, "source": WEBDATASET, "rows": dict(rows), "dropped": reasons}
    manifest["shards"] = [tar.name for tar in tars]
    write_manifest(place, manifest)
    return manifest


def index_tar(tar: Path) -> Counts:
    """Give a tar its index, unless it has one; returns what it holds. Runs in a worker."""
    shard = Shard(tar)
    return Counts({split_of(tar): len(shard)}, dict(shard.dropped))
