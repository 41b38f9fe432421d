"""Shards -> fewer, better shards, in three passes: look at every row, choose among all of them, write what is kept.

The first and the last work shard by shard, here or on a cluster; the second holds about 60 bytes a row, and 224 more
in files that are mapped into memory. Everything follows from the rows and the settings alone, so that a
killed run goes on with the shards that are not finished.
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rich.console import Console

from pocketclip.clean.balance import draw
from pocketclip.clean.choose import Choice, Part, choose
from pocketclip.clean.features import Look, look_at_shard, read_features
from pocketclip.data.rows import Row
from pocketclip.data.shards import Shard, read_manifest, split_of, splits_in, write_manifest, write_shard
from pocketclip.engine import Engine
from pocketclip.errors import DataError
from pocketclip.files import whole_file
from pocketclip.progress import WorkProgress
from pocketclip.recipe.schema import CleanSettings, Recipe

UNDER_WAY = "cleaning"  # the folder of what the passes tell each other
RECORD = "clean.json"
TEST = "test"


def clean(
    source: Path, folder: Path, recipe: Recipe, words: tuple[str, ...], engine: Engine, console: Console
) -> dict[str, Any]:
    """Write the rows of a folder of shards that are of use into another folder; returns its manifest.

    recipe: its `clean` settings; `image.size`, below which no side needs to be; `data.split`, whose rows are the ones
    dropped where splits share a picture; `seed`. words: the list that rows are balanced over, if they are.
    Raises DataError if the source cannot be read, if the folder holds something else or was cleaned otherwise.
    """
    if folder.resolve() == source.resolve():
        raise DataError(f"{folder}: cleaned shards go to another folder than that of the shards they come from")
    if recipe.clean.balance and not words:
        raise DataError("clean.balance needs a word list; `pocketclip words` writes it, or set clean.balance=0")
    tars = _tars(source)
    benchmarks = [(Path(one), tar) for one in recipe.clean.benchmarks for tar in _tars(Path(one))]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "clean.lock", timeout=0):
            if _same_clean(source, [*tars, *(tar for _, tar in benchmarks)], folder, recipe, words):
                return read_manifest(folder)
            parts, missing = _look(tars, benchmarks, folder, recipe, words, engine, console)
            choice = choose(parts, recipe, len(words), folder / UNDER_WAY, folder / "cleaned.parquet")
            rows = _write(parts, choice, folder, recipe, engine, console)
            manifest = _manifest(source, folder, choice, missing, rows)
            shutil.rmtree(folder / UNDER_WAY)
    except Timeout:
        raise DataError(f"{folder}: another process is cleaning into it; wait, or choose another folder") from None
    return manifest


def _tars(folder: Path) -> list[Path]:
    tars = sorted(path for path in folder.glob("*.tar") if split_of(path))
    if not tars:
        raise DataError(f"{folder}: no shards named train-00000.tar, ...; `pocketclip fetch` and `pack` write them")
    return tars


def _same_clean(source: Path, tars: list[Path], folder: Path, recipe: Recipe, words: tuple[str, ...]) -> bool:
    """Whether all is done; raises DataError if an earlier run in this folder had other rows or settings."""
    asked = {
        "source": str(source.resolve()),
        "shards": {str(tar): tar.stat().st_size for tar in tars},
        "words": f"{len(words)} words, {draw(0, ' '.join(words)):.16f}" if recipe.clean.balance else "",
        "image_size": recipe.image.size,
        "split": recipe.data.split,
        "seed": recipe.seed,
        **recipe.clean.model_dump(mode="json"),
    }
    record = folder / RECORD
    if not record.exists():
        if splits_in(folder) or (folder / "manifest.json").exists():
            raise DataError(f"{folder}: holds shards that were not cleaned here; choose another folder")
        with whole_file(record) as temporary:
            temporary.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
        return False
    try:
        before = dict(json.loads(record.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise DataError(f"{record}: damaged; delete it and the shards beside it to clean anew") from None
    if changed := [name for name, value in asked.items() if before.get(name) != value]:
        was = "" if changed[0] == "shards" else f" ({before.get(changed[0])}, now {asked[changed[0]]})"
        raise DataError(
            f"{folder}: was cleaned with other {changed[0]}{was}; choose another data.folder, or delete {RECORD}, "
            f"manifest.json, {UNDER_WAY} and the .tar and .npz files there"
        )
    return (folder / "manifest.json").exists()


def _look(
    tars: list[Path],
    benchmarks: list[tuple[Path, Path]],
    folder: Path,
    recipe: Recipe,
    words: tuple[str, ...],
    engine: Engine,
    console: Console,
) -> tuple[list[Part], Counter[str]]:
    """The first pass; returns where the features lie, and what the source's shards themselves had to leave out."""
    under_way = folder / UNDER_WAY
    listed = ""
    if recipe.clean.balance:
        listed = str(under_way / "words.txt")
        with whole_file(Path(listed)) as temporary:
            temporary.write_text("\n".join(words), encoding="utf-8")
    short_side = min(recipe.clean.short_side, recipe.image.size)
    of_benchmarks = [
        Part(tar, under_way / f"benchmark-{number:03d}-{tar.stem}.parquet", place.name)
        for number, (place, tar) in enumerate(benchmarks)
    ]
    parts = [*of_benchmarks, *(Part(tar, under_way / f"{tar.stem}.parquet") for tar in tars)]
    looks = [
        Look(str(one.tar), str(one.features), recipe.clean, short_side, listed, bool(one.benchmark)) for one in parts
    ]
    missing: Counter[str] = Counter()
    with WorkProgress(console, "look", "rows", sum(len(Shard(one.tar)) for one in parts)) as progress:
        for part, (rows, dropped) in zip(parts, engine.map(look_at_shard, looks), strict=True):
            if not part.benchmark:
                missing.update(dropped)
            progress.advance(rows)
    return parts, missing


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One shard to be written anew.

    keep: bool [rows] as bytes. test: share of them that become the split "test".
    """

    tar: str
    features: str
    folder: str
    keep: bytes
    test: float
    seed: int

    @property
    def done(self) -> Path:
        """Says how many rows of each split were written; its existence means that they were."""
        return Path(self.features).with_suffix(".json")


def write_kept(rewrite: Rewrite) -> dict[str, int]:
    """Write what is kept of a shard; returns rows by split. Runs in a worker."""
    if rewrite.done.exists():
        return dict(json.loads(rewrite.done.read_text(encoding="utf-8")))
    tar, shard = Path(rewrite.tar), Shard(Path(rewrite.tar))
    split = split_of(tar)
    number = tar.stem.rpartition("-")[2]
    captions = read_features(Path(rewrite.features), ("captions",))["captions"].to_pylist()
    rows: dict[str, list[int]] = {}
    for row in np.nonzero(np.frombuffer(rewrite.keep, dtype=np.bool_))[0].tolist():
        chosen = rewrite.test and draw(rewrite.seed, f"test\0{shard.keys[row]}") < rewrite.test
        rows.setdefault(TEST if chosen else split, []).append(row)
    for name, some in rows.items():
        kept = (_row(shard, row, captions[row]) for row in some)
        write_shard(kept, Path(rewrite.folder) / f"{name}-{number}.tar")
    written = {name: len(some) for name, some in rows.items()}
    with whole_file(rewrite.done) as temporary:
        temporary.write_text(json.dumps(written), encoding="utf-8")
    return written


def _row(shard: Shard, row: int, captions: list[str]) -> Row:
    metadata = {name: value for name, value in shard.metadata(row).items() if name != "captions"}
    return Row(str(shard.keys[row]), shard.image(row), shard.extension(row), tuple(captions), metadata)


def _write(
    parts: list[Part], choice: Choice, folder: Path, recipe: Recipe, engine: Engine, console: Console
) -> Counter[str]:
    """The last pass; returns rows by split."""
    settings: CleanSettings = recipe.clean
    keeps: list[NDArray[np.bool_]] = choice.keep
    pieces = [
        Rewrite(str(one.tar), str(one.features), str(folder), keep.tobytes(), settings.test, recipe.seed)
        for one, keep in zip((part for part in parts if not part.benchmark), keeps, strict=True)
    ]
    rows: Counter[str] = Counter()
    with WorkProgress(console, "write", "rows", int(sum(keep.sum() for keep in keeps))) as progress:
        for written in engine.map(write_kept, pieces):
            rows.update(written)
            progress.advance(sum(written.values()))
    if not rows.total():
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in choice.outcomes.most_common(5))
        raise DataError(f"no row is left ({reasons}); loosen the settings of [clean]")
    return rows


def _manifest(source: Path, folder: Path, choice: Choice, missing: Counter[str], rows: Counter[str]) -> dict[str, Any]:
    try:
        about = {name: value for name, value in read_manifest(source).items() if name in {"attribution", "image_size"}}
    except DataError:
        about = {}
    dropped = Counter({reason: count for reason, count in choice.outcomes.items() if reason != choice.KEPT}) + missing
    manifest = {
        "format": 1,
        "source": str(source),
        **about,
        "rows": dict(sorted(rows.items())),
        "dropped": dict(dropped.most_common()),
        "dropped_captions": dict(choice.captions.most_common()),
        "shards": sorted(path.name for path in folder.glob("*.tar")),
    }
    write_manifest(folder, manifest)
    return manifest
