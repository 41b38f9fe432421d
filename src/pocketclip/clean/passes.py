"""Shards -> fewer, better shards, in three passes: look at every row, choose among all of them, write what is kept.

The first and the last work shard by shard, here or on a cluster; the second holds some 150 bytes a row, and 224 more
in files that are mapped into memory. Everything follows from the rows and the settings alone, so that a
killed run goes on with the shards that are not finished.
"""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console

from pocketclip.clean.balance import draw, drawn_for_test
from pocketclip.clean.choose import Choice, Part, choose
from pocketclip.clean.features import Look, look_at_shard, read_features
from pocketclip.data.rows import Row
from pocketclip.data.shards import Shard, index_path, read_manifest, split_of, splits_in, write_manifest, write_shard
from pocketclip.data.sources import state_of
from pocketclip.engine import Engine
from pocketclip.errors import DataError
from pocketclip.files import remove_unfinished, whole_file
from pocketclip.progress import WorkProgress
from pocketclip.recipe.schema import Recipe

UNDER_WAY = "cleaning"  # the folder of what the passes tell each other
RECORD = "clean.json"
OUTCOMES = "cleaned.parquet"
TEST = "test"


def clean(
    source: Path, folder: Path, recipe: Recipe, words: tuple[str, ...], engine: Engine, console: Console
) -> dict[str, Any]:
    """Write the rows of a folder of shards that are of use into another folder; returns its manifest.

    recipe: its `clean` settings; `image.size`, below which no side needs to be; `data.split`, whose rows are the ones
    dropped where splits share a picture; `seed`. words: the list that rows are balanced over, if they are.
    Raises DataError if the source cannot be read or is not whole, if no row is left, or if the folder is in use, holds
    something else or shards that were cleaned otherwise.
    """
    if folder.resolve() == source.resolve():
        raise DataError(f"{folder}: cleaned shards go to another folder than that of the shards they come from")
    if recipe.clean.balance and not words:
        raise DataError("clean.balance needs a word list; `pocketclip words` writes it, or set clean.balance=0")
    tars = _tars(source)
    benchmarks = [(tar, Path(one).resolve().name) for one in recipe.clean.benchmarks for tar in _tars(Path(one))]
    folder = folder.resolve()  # other processes may have another working directory
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "clean.lock", timeout=0):
            asked = _asked(source, [*tars, *(tar for tar, _ in benchmarks)], recipe, words)
            if not _finished(asked, folder):
                under_way = folder / UNDER_WAY / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
                parts = [
                    Part(tar, under_way / f"{number:05d}-{tar.stem}.parquet", benchmark)
                    for number, (tar, benchmark) in enumerate([*benchmarks, *((tar, "") for tar in tars)])
                ]
                missing = _look(parts, under_way, recipe, words, engine, console)
                choice = choose(parts, recipe, len(words), under_way, folder / OUTCOMES)
                rows = _write(parts, choice, folder, recipe, engine, console)
                write_manifest(folder, _manifest(source, choice, missing, rows))
            _clear(folder)
            return read_manifest(folder)
    except Timeout:
        raise DataError(f"{folder}: another process is cleaning into it; wait, or choose another folder") from None


def _tars(folder: Path) -> list[Path]:
    """A folder's shards, in the order of their names; raises DataError if there are none, or not yet all."""
    tars = sorted(path for path in folder.resolve().glob("*.tar") if split_of(path))
    if (folder / "fetch.json").exists() and not _fetched(folder):
        raise DataError(f"{folder}: holds an unfinished fetch; run `pocketclip fetch` to its end first")
    if not tars:
        raise DataError(f"{folder}: no shards named train-00000.tar, ...; `pocketclip fetch` and `pack` write them")
    return tars


def _fetched(folder: Path) -> bool:
    """Whether a fetch into this folder has come to its end, and what it wrote is still there."""
    outcomes = folder / "outcomes"
    whole = {path.stem for path in outcomes.glob("*.parquet")} <= {path.stem for path in folder.glob("*.tar")}
    return whole and (folder / "manifest.json").exists() and not any(outcomes.glob(".*.spool")) and not _held(folder)


def _held(folder: Path) -> bool:
    try:
        with FileLock(folder / "fetch.lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # read-only: no fetch can be under way in it from here
        return False


def _asked(source: Path, tars: list[Path], recipe: Recipe, words: tuple[str, ...]) -> dict[str, Any]:
    """All that the choice depends on, as JSON has it."""
    return {
        "source": str(source.resolve()),
        "shards": {str(tar): state_of(tar) for tar in tars},
        "words": f"{len(words)} words, {draw(0, ' '.join(words)):.16f}" if recipe.clean.balance else "",
        "image_size": recipe.image.size,
        "split": recipe.data.split,
        "seed": recipe.seed,
        **recipe.clean.model_dump(mode="json"),
        "benchmarks": [str(Path(one).resolve()) for one in recipe.clean.benchmarks],
    }


def _finished(asked: dict[str, Any], folder: Path) -> bool:
    """Whether all is done; raises DataError if the folder holds shards of other rows or settings.

    What an earlier run with others only looked at is in nobody's way: it is removed.
    """
    record, manifest = folder / RECORD, folder / "manifest.json"
    try:
        before = dict(json.loads(record.read_text(encoding="utf-8")))
    except FileNotFoundError:
        wrong = "holds shards that were not cleaned here; choose another folder"
    except (ValueError, TypeError):
        wrong = f"{RECORD} is damaged; delete it and the shards beside it to clean anew"
    else:
        changed = [name for name in asked | before if before.get(name) != asked.get(name)]
        if not changed:
            return manifest.exists()
        was = "" if changed[0] == "shards" else f" ({before.get(changed[0])}, now {asked.get(changed[0])})"
        wrong = (
            f"was cleaned with other {changed[0]}{was}; choose another data.folder, or delete {RECORD}, "
            f"manifest.json, {UNDER_WAY} and the .tar and .npz files there"
        )
    if splits_in(folder) or manifest.exists():
        raise DataError(f"{folder}: {wrong}")
    _clear(folder)
    with whole_file(record) as temporary:
        temporary.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
    return False


def _clear(folder: Path) -> None:
    """Remove what the passes told each other, and what killed ones had half written; nobody else cleans here now."""
    shutil.rmtree(folder / UNDER_WAY, ignore_errors=True)
    for name in (RECORD, OUTCOMES, "manifest.json", "*-[0-9]*.tar", "*-[0-9]*.index.npz"):
        remove_unfinished(folder, name)


def _look(
    parts: list[Part], under_way: Path, recipe: Recipe, words: tuple[str, ...], engine: Engine, console: Console
) -> Counter[str]:
    """The first pass; returns what the source's shards themselves had to leave out."""
    listed = ""
    if recipe.clean.balance:
        listed = str(under_way / "words.txt")
        with whole_file(Path(listed)) as temporary:
            temporary.write_text("\n".join(words), encoding="utf-8")
    short_side = min(recipe.clean.short_side, recipe.image.size)
    looks = [
        Look(str(one.tar), str(one.features), recipe.clean, short_side, listed, bool(one.benchmark)) for one in parts
    ]
    missing: Counter[str] = Counter()
    with WorkProgress(console, "look", "rows", sum(len(Shard(one.tar)) for one in parts)) as progress:
        for part, (rows, dropped) in zip(parts, engine.map(look_at_shard, looks), strict=True):
            if not part.benchmark:
                missing.update(dropped)
            progress.advance(rows)
    return missing


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One shard to be written anew.

    number: of the shards to write, which no other shard of the source has: rows of several can go to one split.
    keep: bool [rows] as bytes. test: share of them that become the split "test"; 0 of what is no training split.
    """

    tar: str
    features: str
    folder: str
    number: int
    keep: bytes
    test: float
    seed: int

    @property
    def record(self) -> Path:
        """Says how many rows each file has that was written of this shard; written last."""
        return Path(self.features).with_suffix(".json")

    def written(self) -> dict[str, int] | None:
        """File -> rows; None while they are not written, or one of them is gone."""
        try:
            found = dict(json.loads(self.record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        tars = [Path(self.folder) / name for name in found]
        return found if all(tar.exists() and index_path(tar).exists() for tar in tars) else None


def write_kept(rewrite: Rewrite) -> dict[str, int]:
    """Write what is kept of a shard; returns file -> rows. Runs in a worker."""
    if (before := rewrite.written()) is not None:
        return before
    shard = Shard(Path(rewrite.tar))
    captions = read_features(Path(rewrite.features), ("captions",))["captions"].to_pylist()
    rows: dict[str, list[int]] = {}
    for row in np.nonzero(np.frombuffer(rewrite.keep, dtype=np.bool_))[0].tolist():
        chosen = rewrite.test and drawn_for_test(rewrite.seed, str(shard.keys[row]), rewrite.test)
        split = TEST if chosen else split_of(shard.path)
        rows.setdefault(f"{split}-{rewrite.number:05d}.tar", []).append(row)
    for name, some in rows.items():
        write_shard((_row(shard, row, captions[row]) for row in some), Path(rewrite.folder) / name)
    written = {name: len(some) for name, some in rows.items()}
    with whole_file(rewrite.record) as temporary:
        temporary.write_text(json.dumps(written), encoding="utf-8")
    return written


def _row(shard: Shard, row: int, captions: list[str]) -> Row:
    metadata = {name: value for name, value in shard.metadata(row).items() if name != "captions"}
    return Row(str(shard.keys[row]), shard.image(row), shard.extension(row), tuple(captions), metadata)


def _write(
    parts: list[Part], choice: Choice, folder: Path, recipe: Recipe, engine: Engine, console: Console
) -> Counter[str]:
    """The last pass; returns rows by file."""
    cleaned = (part for part in parts if not part.benchmark)
    pieces = []
    for number, (one, keep) in enumerate(zip(cleaned, choice.keep, strict=True)):
        test = recipe.clean.test if split_of(one.tar) == recipe.data.split else 0.0
        pieces.append(Rewrite(str(one.tar), str(one.features), str(folder), number, keep.tobytes(), test, recipe.seed))
    rows: Counter[str] = Counter()
    with WorkProgress(console, "write", "rows", int(sum(keep.sum() for keep in choice.keep))) as progress:
        for written in engine.map(write_kept, pieces):
            rows.update(written)
            progress.advance(sum(written.values()))
    if not rows.total():
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in choice.outcomes.most_common(5))
        raise DataError(f"no row is left ({reasons}); loosen the settings of [clean]")
    return rows


def _manifest(source: Path, choice: Choice, missing: Counter[str], rows: Counter[str]) -> dict[str, Any]:
    try:
        about = {name: value for name, value in read_manifest(source).items() if name in {"attribution", "image_size"}}
    except DataError:
        about = {}
    dropped = Counter({reason: count for reason, count in choice.outcomes.items() if reason != choice.KEPT}) + missing
    splits: Counter[str] = Counter()
    for name, count in rows.items():
        splits[split_of(Path(name))] += count
    return {
        "format": 1,
        "source": str(source),
        **about,
        "rows": dict(sorted(splits.items())),
        "dropped": dict(dropped.most_common()),
        "dropped_captions": dict(choice.captions.most_common()),
        "shards": sorted(rows),
    }
