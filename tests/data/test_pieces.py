"""Pieces of a source and the engines that do them: always the same shards."""

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_pack import PICTURES, Counting, class_folders, contents, stopped
from typer.testing import CliRunner

from pocketclip.cli.main import app
from pocketclip.data import pack as packing
from pocketclip.data import pieces as cutting
from pocketclip.data import sources, tables
from pocketclip.data.columns import Columns
from pocketclip.data.pack import PackOptions, pack
from pocketclip.data.pieces import Source
from pocketclip.data.rows import Row
from pocketclip.data.shards import Split, read_manifest
from pocketclip.data.sources import Folder, Found
from pocketclip.data.tables import Table
from pocketclip.engine import open_engine
from pocketclip.errors import DataError
from pocketclip.progress import WorkProgress


def coco(path: Path, images: Path) -> Path:
    names = sorted(file.relative_to(images).as_posix() for file in images.rglob("*.png"))
    listed = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    said = [{"id": n, "image_id": one["id"], "caption": f"caption {n}"} for n, one in enumerate(listed * 2)]
    path.write_text(json.dumps({"info": {}, "images": listed, "annotations": said}))
    return path


def sources_of_every_kind(folder: Path) -> dict[str, tuple[Path, PackOptions]]:
    """Sources of 96 images in seven pieces or more, some rows of which are of no use."""
    images = class_folders(folder / "images", copies=4)
    (images / "red_bar" / "bad.png").write_bytes(b"no image")
    names = [f"images/{name}/{number}.png" for number in range(4) for name in PICTURES]
    said = [f"{name},caption {n}\n" for n in range(3) for name in [*names, "images/gone.png"]]
    (folder / "table.csv").write_text("path,caption\n" + "".join(said))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    (folder / "hf").mkdir()
    for part in range(2):
        images_inside = [{"bytes": (folder / name).read_bytes(), "path": None} for name in names[part::2]]
        images_inside[5] = {"bytes": b"no image", "path": None}
        images_inside[7] = {"bytes": None, "path": "../gone.png"}
        inside = pa.table({"image": pa.array(images_inside, kind), "caption": names[part::2]})
        pq.write_table(inside, folder / "hf" / f"part-{part}.parquet", row_group_size=5)
    options = PackOptions(rows_per_shard=15, test=0.3, short_side=20)
    return {
        "folder": (images, options),
        "table": (folder / "table.csv", options),
        "parquet": (folder / "hf", options),
        "coco": (coco(folder / "captions.json", images), replace(options, image_folder=images)),
    }


def test_the_same_bytes_whatever_the_engine(tmp_path: Path) -> None:
    every = sources_of_every_kind(tmp_path)
    for name, (source, options) in every.items():
        manifest = pack(str(source), tmp_path / f"{name}-here", options)
        assert len({shard[-9:] for shard in manifest["shards"]}) >= 7
        lost = {"parquet": {"no JPEG, PNG or WebP": 2, sources.OUTSIDE: 2}, "folder": {"no JPEG, PNG or WebP": 1}}
        lost |= {"table": {"cannot be read: No such file or directory": 1}, "coco": {"no JPEG, PNG or WebP": 1}}
        assert manifest["dropped"] == lost[name]
        assert sum(manifest["rows"].values()) == (92 if name == "parquet" else 96)
    for workers in (1, 2, 3):
        with open_engine("local", workers) as engine:
            for name, (source, options) in every.items():
                out = tmp_path / f"{name}-{workers}"
                pack(str(source), out, options, None, engine)
                assert contents(out) == contents(tmp_path / f"{name}-here")


def test_rows_lie_in_the_shards_in_the_order_of_their_source(tmp_path: Path) -> None:
    every = sources_of_every_kind(tmp_path)
    for name, (source, options) in every.items():
        pack(str(source), tmp_path / f"{name}-cut", replace(options, test=0))
        pack(str(source), tmp_path / f"{name}-whole", replace(options, test=0, rows_per_shard=1000))
        cut, whole = Split(tmp_path / f"{name}-cut", "train"), Split(tmp_path / f"{name}-whole", "train")
        assert len(cut.shards) >= 7
        assert len(whole.shards) == 1
        assert [cut.key(row) for row in range(len(cut))] == [whole.key(row) for row in range(len(whole))]
        assert [cut.captions(row) for row in range(len(cut))] == [whole.captions(row) for row in range(len(whole))]


def test_the_parent_holds_the_rows_of_the_pieces_in_flight_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    found = Folder.found

    def counted(self: Folder, *asked: Any) -> Iterator[Found]:
        for one in found(self, *asked):
            taken.append(one.name)
            yield one

    monkeypatch.setattr(Folder, "found", counted)
    ahead = []

    class Lazy(Counting):
        def map(self, function: Any, pieces: Iterable[Any], _: int | None = None) -> Iterator[Any]:
            for number, piece in enumerate(pieces):
                ahead.append(len(taken) - 10 * number)
                yield function(piece)

    pack(str(class_folders(tmp_path / "in", copies=10)), tmp_path / "out", PackOptions(rows_per_shard=10), None, Lazy())
    assert len(taken) == 240
    assert ahead == [10] * 24


def test_images_in_parquet_do_not_travel(tmp_path: Path) -> None:
    source, options = sources_of_every_kind(tmp_path)["parquet"]

    class Weighing(Counting):
        def map(self, function: Any, pieces: Iterable[Any], _: int | None = None) -> Iterator[Any]:
            for piece in pieces:
                assert len(pickle.dumps(piece)) < 2_000
                yield function(piece)

    manifest = pack(str(source), tmp_path / "out", options, None, Weighing())
    assert sum(manifest["rows"].values()) == 92


@given(st.integers(0, 10_000_000) | st.none(), st.integers(1, 20_000))
def test_small_sources_are_cut_finely_and_no_shard_is_too_large(total: int | None, most: int) -> None:
    number, rows = cutting.pieces_of(total, most), cutting.rows_in_piece(total, most)
    assert 1 <= rows <= most
    if total is None:
        assert rows == most
    else:
        assert number * rows >= total
        assert rows == most or number <= max(64, -(-total // most))
        assert number == 1 or rows >= min(cutting.FEWEST_ROWS, most) or -(-total // most) == number
        assert total < cutting.FEWEST_ROWS * 64 or number >= 64


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=6), max_size=5), st.integers(1, 25))
def test_every_row_of_parquet_is_in_one_piece_and_files_are_cut_between_groups(groups: Any, most: int) -> None:
    tables = [Table(Path(f"/{n}"), Columns(), sum(some), tuple(some)) for n, some in enumerate(groups)]
    pieces = Source(None, tables, "").pieces(Path(), PackOptions(rows_per_shard=most), Counter(), alone=True)
    parts = [piece.content for piece in pieces]
    rows = [(part.path, row) for some in parts for part in some for row in range(part.start, part.stop)]
    assert rows == [(table.path, row) for table in tables for row in range(table.total or 0)]
    assert all(sum(part.stop - part.start for part in some) <= most for some in parts)
    assert all(len({part.path for part in some}) == len(some) for some in parts), "neighbours are one part"
    ends = {(table.path, sum(table.groups[:n])) for table in tables for n in range(len(table.groups) + 1)}
    for table in tables:
        start = 0
        for size in table.groups:
            ends |= {(table.path, first) for first in range(start, start + size, most)}
            start += size
    assert all({(part.path, part.start), (part.path, part.stop)} <= ends for some in parts for part in some)


def test_progress_knows_what_was_done_before_and_how_much_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[Any, ...]] = []

    class Shown(WorkProgress):
        def __init__(self, console: Console, what: str, unit: str, total: float | None, start: float = 0) -> None:
            shown.append((unit, total, start))
            super().__init__(console, what, unit, total, start)

        def advance(self, amount: float, note: str = "") -> None:
            shown.append((amount, note))

    monkeypatch.setattr(packing, "WorkProgress", Shown)
    every = sources_of_every_kind(tmp_path)
    source, options = every["folder"]
    stopped(source, tmp_path / "folder", options, pieces=2)
    assert shown == [("rows", 97, 0), (14, ""), (14, "")]
    shown.clear()
    pack(str(source), tmp_path / "folder", options)
    assert shown[0] == ("rows", 97, 28)
    assert sum(amount for amount, _ in shown[1:]) == 97 - 28
    assert shown[-1][1] == "1 left out"
    for name, total in (("table", 97), ("parquet", 96), ("coco", 97)):
        shown.clear()
        pack(str(every[name][0]), tmp_path / name, every[name][1])
        assert shown[0] == ("rows", total, 0)
        assert sum(amount for amount, _ in shown[1:]) == total
    monkeypatch.setattr(tables, "MERGED_LINES", 40)
    shown.clear()
    pack(str(every["table"][0]), tmp_path / "long", every["table"][1])
    assert shown[0] == ("rows", None, 0), "nobody knows"


def test_a_shard_that_is_not_there_in_the_end_is_missed(tmp_path: Path) -> None:
    class Elsewhere(Counting):
        def map(self, function: Any, pieces: Iterable[Any], _: int | None = None) -> Iterator[Any]:
            for piece in pieces:
                elsewhere = Path(shutil.copytree(piece.folder, tmp_path / str(piece.number)))
                yield function(replace(piece, folder=elsewhere))

    source = class_folders(tmp_path / "in", copies=1)
    with pytest.raises(DataError, match="lacks shard 0, which was written; all machines must share the folder"):
        pack(str(source), tmp_path / "out", None, None, Elsewhere())


def test_the_verb_has_workers_and_draws_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Any, ...]] = []

    def recorded(*how: Any) -> Any:
        opened.append(how)
        return open_engine("local", 1)

    monkeypatch.setattr("pocketclip.engine.open_engine", recorded)
    monkeypatch.setattr(packing.openmoji, "rows", lambda *_: {"train": [Row("a", PICTURES["red_bar"], "png", ("a",))]})
    source = class_folders(tmp_path / "in", copies=1)
    asked = ["pack", str(source), str(tmp_path / "out"), "--engine", "ray", "--workers", "3", "--address", "x"]
    assert CliRunner().invoke(app, asked, catch_exceptions=False).exit_code == 0
    assert opened == [("ray", 3, "x")]
    assert CliRunner().invoke(app, ["pack", "openmoji", str(tmp_path / "drawn")], catch_exceptions=False).exit_code == 0
    assert len(opened) == 1
    assert read_manifest(tmp_path / "drawn")["rows"] == {"train": 1}
    pack(str(source), tmp_path / "here")
    assert contents(tmp_path / "here") == contents(tmp_path / "out")
