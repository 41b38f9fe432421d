"""pack: from a source to shards, beside a plain reading of the source."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from rich.console import Console

import pocketclip
from conftest import COLOURS, PLACES, SHAPES, draw
from pocketclip.data import pack as packing
from pocketclip.data import pieces as cutting
from pocketclip.data import sources
from pocketclip.data.pack import PackOptions, pack
from pocketclip.data.pieces import Piece, pack_shard
from pocketclip.data.rows import Row
from pocketclip.data.shards import Shard, Split, read_manifest, splits_in
from pocketclip.data.sources import Found
from pocketclip.errors import DataError, Stopped

PICTURES = {f"{colour}_{shape}": draw(colour, shape, "left") for colour in COLOURS for shape in SHAPES}


def class_folders(folder: Path, copies: int = 3) -> Path:
    for name, image in PICTURES.items():
        (folder / name).mkdir(parents=True)
        for number in range(copies):
            (folder / name / f"{number}.png").write_bytes(image)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.endswith(".tar")}


def read_back(folder: Path) -> dict[str, tuple[bytes, list[str]]]:
    found = {}
    for split in splits_in(folder):
        rows = Split(folder, split)
        for row in range(len(rows)):
            found[rows.metadata(row)["source"]] = (rows.image(row), rows.captions(row))
    return found


def test_the_package_under_test_is_this_one() -> None:
    assert Path(pocketclip.__file__).is_relative_to(Path(__file__).parents[2])


def test_a_folder_becomes_shards_that_hold_all_of_it(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in")
    (source / "red_bar" / "bad.png").write_bytes(b"no image")
    heard = Console(file=io.StringIO(), width=200)
    manifest = pack(str(source), tmp_path / "out", PackOptions(rows_per_shard=10, test=0.25), heard)
    wanted = {
        Path(folder, name).relative_to(source).as_posix(): (
            Path(folder, name).read_bytes(),
            [Path(folder).name.replace("_", " ")],
        )
        for folder, _, names in os.walk(source)
        for name in names
        if name != "bad.png"
    }
    assert read_back(tmp_path / "out") == wanted
    assert manifest == read_manifest(tmp_path / "out")
    assert manifest["dropped"] == {"no JPEG, PNG or WebP": 1}
    assert sum(manifest["rows"].values()) == len(wanted) == 72
    assert 8 < manifest["rows"]["test"] < 30
    assert "left out: 1 x no JPEG, PNG or WebP" in heard.file.getvalue()  # type: ignore[attr-defined]
    for split in ("train", "test"):
        rows = Split(tmp_path / "out", split)
        assert len(rows) == manifest["rows"][split]
    assert manifest["shards"] == sorted(shard_bytes(tmp_path / "out"))
    numbers = sorted({name[-9:-4] for name in manifest["shards"]})
    together = [sum(len(Shard(tar)) for tar in (tmp_path / "out").glob(f"*-{number}.tar")) for number in numbers]
    assert numbers == [f"{number:05d}" for number in range(8)]
    assert max(together) <= 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"], "no hidden folder stays"


def test_twice_the_same_bytes_and_never_over_shards(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", copies=1)
    pack(str(source), tmp_path / "1", PackOptions(rows_per_shard=7, short_side=16))
    pack(str(source), tmp_path / "2", PackOptions(rows_per_shard=7, short_side=16))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    before = contents(tmp_path / "1")
    with pytest.raises(DataError, match="already holds shards"):
        pack(str(source), tmp_path / "1")
    assert contents(tmp_path / "1") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "in"]


def test_a_table_of_captions(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", copies=1)
    lines = [f"images/{name}/0.png,{name} {n}" for n in range(5) for name in PICTURES]
    lines += ["../../etc/passwd,x", "images/gone.png,x"]
    (tmp_path / "captions.csv").write_text("image,caption\n" + "\n".join(lines) + "\n")
    manifest = pack(str(tmp_path / "captions.csv"), tmp_path / "out")
    assert manifest["rows"] == {"train": 24}
    assert manifest["dropped"] == {
        "cannot be read: No such file or directory": 1,
        sources.OUTSIDE: 1,
    }
    assert read_back(tmp_path / "out") == {
        f"images/{name}/0.png": (image, [f"{name} {n}" for n in range(5)]) for name, image in PICTURES.items()
    }


def test_parts_of_a_hugging_face_data_set_keep_their_splits(tmp_path: Path) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    note = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": list(PICTURES)}}}}
    for split, part in (("train", 0), ("train", 1), ("test", 0)):
        images = pa.array([{"bytes": image, "path": "0.png"} for image in PICTURES.values()], kind)
        table = pa.table({"image": images, "label": list(range(24))})
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "data" / f"{split}-{part:05d}-of-{2 if split == 'train' else 1:05d}.parquet")
    manifest = pack(str(tmp_path), tmp_path / "out")
    assert manifest["rows"] == {"train": 48, "test": 24}
    assert manifest["dropped"] == {}
    test = Split(tmp_path / "out", "test")
    assert [(test.image(row), test.captions(row)) for row in range(24)] == [
        (image, [name.replace("_", " ")]) for name, image in PICTURES.items()
    ]


@pytest.mark.parametrize("inside", [True, False])
def test_parquet_files_of_one_name_are_not_taken_for_each_other(tmp_path: Path, inside: bool) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(20):
        (pictures / f"{number}.png").write_bytes(draw(COLOURS[number % 6], SHAPES[number % 4], "left"))
    for language in ("en", "fr"):
        (tmp_path / "data" / language).mkdir(parents=True)
        names = [f"{number}.png" for number in range(20)]
        images = [(pictures / name).read_bytes() for name in names] if inside else names
        table = pa.table({"image": images, "caption": [f"{language} {name}" for name in names]})
        pq.write_table(table, tmp_path / "data" / language / "train-00000-of-00001.parquet")
    options = PackOptions(image_folder=pictures, rows_per_shard=7)
    assert pack(str(tmp_path / "data"), tmp_path / "out", options)["rows"] == {"train": 40}
    split = Split(tmp_path / "out", "train")
    assert len({split.key(row) for row in range(40)}) == 40
    assert {split.captions(row)[0][:2] for row in range(40)} == {"en", "fr"}


def test_a_picture_of_many_captions_is_for_training_or_for_testing(tmp_path: Path) -> None:
    pictures = [draw(colour, shape, place) for colour in COLOURS for shape in SHAPES for place in PLACES]
    rows = [{"image": picture, "caption": f"view {view}"} for picture in pictures for view in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    pack(str(tmp_path / "data.parquet"), tmp_path / "out", PackOptions(test=0.3))
    train, test = (Split(tmp_path / "out", name) for name in ("train", "test"))
    assert len(train) + len(test) == len(rows)
    assert not {train.image(n) for n in range(len(train))} & {test.image(n) for n in range(len(test))}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts as Linux does")
def test_a_folder_that_is_a_disk_of_its_own(tmp_path: Path) -> None:
    source, disk = class_folders(tmp_path / "in"), tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", disk], capture_output=True).returncode:
        pytest.skip("only root mounts")
    try:
        pack(str(source), disk)
        pack(str(source), tmp_path / "out")
        assert contents(disk) == contents(tmp_path / "out")
        assert not [path for path in disk.iterdir() if path.name[0] == "."]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_two_rows_of_one_key_do_not_meet_in_a_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(key, PICTURES["red_bar"], "png", (key,)) for key in ("a", "b", "a")]
    monkeypatch.setattr(packing.openmoji, "rows", lambda *_: {"train": rows})
    manifest = pack("openmoji", tmp_path / "out")
    assert manifest["rows"] == {"train": 2}
    assert manifest["dropped"] == {"key that another row has": 1}


def test_openmoji_keeps_its_size_and_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rows(*how: object) -> dict[str, list[Row]]:
        asked.append(how)
        return {"train": [Row("a", PICTURES["red_bar"], "png", ("a",))], "unseen": []}

    monkeypatch.setattr(packing.openmoji, "rows", rows)
    manifest = pack("openmoji", tmp_path / "out", PackOptions(size=40, validation=True))
    assert asked == [(40, True)]
    assert manifest["source"] == "openmoji, train cut for validation"
    assert manifest["image_size"] == 40
    assert manifest["attribution"]["licence"] == "CC BY-SA 4.0"


@pytest.mark.parametrize(
    ("files", "source", "said"),
    [
        ({}, "", "holds no .jpg"),
        ({"a.gif": b""}, "", "holds no .jpg"),
        ({"top.png": PICTURES["red_bar"]}, "", "no row of use (left out: 1 x not in a class folder)"),
        ({"a/bad.png": b"x"}, "", "no row of use (left out: 1 x no JPEG, PNG or WebP)"),
        ({}, "gone.csv", "no such file"),
        ({"a.zip": b""}, "a.zip", "unknown source; known: openmoji"),
        ({"a.csv": b""}, "a.csv", "is empty"),
        ({"a.csv": b"path,caption\n"}, "a.csv", "has no row of use"),
        ({"a.parquet": b"PAR1"}, "", "not a Parquet file"),
        ({"notes.tar": b""}, "", "belongs to no split by its name"),
        ({"00000.tar": b"x" * 3000}, "", "not a whole tar"),
    ],
)
def test_a_source_of_no_use_is_one_clear_error(tmp_path: Path, files: dict[str, bytes], source: str, said: str) -> None:
    place = tmp_path / "in"
    place.mkdir()
    for name, content in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content)
    tars = any(name.endswith(".tar") for name in files)
    with pytest.raises(DataError) as caught:
        pack(str(place / source), None if tars else tmp_path / "out")
    assert said in str(caught.value)
    assert str(place) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_folder_that_cannot_be_written_and_options_that_cannot_be(tmp_path: Path) -> None:
    source = str(class_folders(tmp_path / "in", copies=1))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: is no folder; choose another one"):
        pack(source, tmp_path / "file")
    with pytest.raises(DataError, match=r"Not a directory|File exists"):
        pack(source, tmp_path / "file" / "below")
    with pytest.raises(DataError, match="where to"):
        pack(source)
    with pytest.raises(DataError, match="test is a share"):
        pack(source, tmp_path / "out", PackOptions(test=1.5))


# --- WebDataset tars


def img2dataset(folder: Path, number: int) -> None:
    """A shard as img2dataset writes it: failed downloads have a JSON alone, and a Parquet and statistics lie beside."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
        for row, (name, image) in enumerate(PICTURES.items()):
            key = f"{number:05d}{row:04d}"
            details = {"caption": name, "url": "https://example.org", "key": key, "status": "success"}
            members = {"jpg": image, "txt": name.encode(), "json": json.dumps(details).encode()}
            if row == 3:
                del members["jpg"]
            if row == 4:
                key = f"../../{key}"
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (folder / f"{number:05d}.parquet").write_bytes(b"PAR1")
    (folder / f"{number:05d}_stats.json").write_text("{}")


def test_tars_are_indexed_where_they_lie(tmp_path: Path) -> None:
    folder = tmp_path / "laion"
    for number in range(2):
        img2dataset(folder, number)
    tars = shard_bytes(folder)
    heard = Console(file=io.StringIO(), width=200)
    manifest = pack(str(folder), console=heard)
    assert manifest["rows"] == {"train": 44}
    assert manifest["dropped"] == {"name that leads out of the folder": 2, "no image file": 2}
    assert "left out: 2 x name that leads out of the folder, 2 x no image file" in heard.file.getvalue()  # type: ignore[attr-defined]
    assert shard_bytes(folder) == tars
    rows = Split(folder, "train")
    names = [name for row, name in enumerate(PICTURES) if row not in (3, 4)]
    assert [rows.captions(row) for row in range(44)] == [[name] for name in names] * 2
    assert [rows.image(row) for row in range(22)] == [PICTURES[name] for name in names]
    assert [path.name for path in tmp_path.iterdir()] == ["laion"]
    img2dataset(folder, 2)
    assert pack(str(folder), folder)["rows"] == {"train": 66}, "again, for tars that came later"
    with pytest.raises(DataError, match="indexed where they lie"):
        pack(str(folder), tmp_path / "out")
    with pytest.raises(DataError, match="tars stay as they are"):
        pack(str(folder), None, PackOptions(short_side=64))


def test_our_own_shards_are_not_indexed_again(tmp_path: Path) -> None:
    pack(str(class_folders(tmp_path / "in", copies=1)), tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match="already holds packed shards"):
        pack(str(tmp_path / "out"))
    assert contents(tmp_path / "out") == before


# --- Killed

# Packs slowly, so that it can be killed half-way; its workers are forked and have the slowness from it.
CHILD = """
import os, signal, sys, time
from pathlib import Path
from pocketclip.data import sources
from pocketclip.data.pack import PackOptions, pack
from pocketclip.engine import open_engine
from pocketclip.errors import EngineError
source, out, deadly = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
shrink, images = sources.shrink, []
def slow(*arguments, **more):
    images.append(1)
    if len(images) == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return shrink(*arguments, **more)
sources.shrink = slow
try:
    with open_engine("local", 2) as engine:
        pack(source, out, PackOptions(rows_per_shard=20, short_side=16, test=0.3), None, engine)
except EngineError as error:
    sys.exit(str(error))
"""
KILLED = PackOptions(rows_per_shard=20, short_side=16, test=0.3)


def child(source: Path, out: Path, deadly: int = 0) -> "subprocess.Popen[str]":
    """A process that packs with two workers, each of which kills itself at its image number `deadly`."""
    command = [sys.executable, "-c", CHILD, str(source), str(out), str(deadly)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def state(paths: Iterable[Path]) -> dict[str, tuple[int, int]]:
    """Which file it is that has a name: one that is written again is another."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def finished_files(hidden: Path) -> dict[str, tuple[int, int]]:
    return state(path for counts in hidden.rglob("0*.json") for path in counts.parent.rglob(f"*-{counts.stem}.*[rz]"))


class Counting:
    """An engine that does pieces in this process, and is stopped before it does more than `most`."""

    def __init__(self, most: int = 1_000_000) -> None:
        self.most, self.done = most, 0

    def map(self, function: Callable[[Any], Any], pieces: Iterable[Any], _: int | None = None) -> Iterator[Any]:
        for piece in pieces:
            if self.done == self.most:
                raise Stopped("stopped")
            self.done += 1
            yield function(piece)


def stopped(source: Path, out: Path, options: PackOptions, pieces: int) -> None:
    with pytest.raises(Stopped):
        pack(str(source), out, options, None, Counting(pieces))


@pytest.mark.skipif(sys.platform != "linux", reason="forked workers, and signals")
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", copies=20)
    pack(str(source), tmp_path / "whole", KILLED)
    out, hidden = tmp_path / "out", tmp_path / ".out.part"
    kept: dict[str, tuple[int, int]] = {}
    for pieces in (1, 8):
        running = child(source, out)
        try:
            while len(list(hidden.rglob("0*.json"))) < pieces:
                assert running.poll() is None, "over before it was killed"
                time.sleep(0.001)
            with pytest.raises(DataError, match="another process is packing"):
                pack(str(source), out)
        finally:
            running.kill()
            running.communicate()
        assert finished_files(hidden).items() >= kept.items()
        kept = finished_files(hidden)
        assert not out.exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == [".out.part", "in", "whole"]
    assert 16 <= len(kept) < len(contents(tmp_path / "whole")) - 10
    pack(str(source), out, KILLED)
    assert state(out.iterdir()).items() >= kept.items()
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


@pytest.mark.skipif(sys.platform != "linux", reason="forked workers, and signals")
def test_a_killed_worker_is_said_plainly_and_costs_nothing_that_was_finished(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", copies=20)
    pack(str(source), tmp_path / "whole", KILLED)
    _, said = child(source, tmp_path / "out", deadly=70).communicate(timeout=60)
    assert "a worker process died (killed, or out of memory); the same command goes on" in said
    kept = finished_files(tmp_path / ".out.part")
    assert len(kept) >= 3 * 2
    pack(str(source), tmp_path / "out", KILLED)
    assert state((tmp_path / "out").iterdir()).items() >= kept.items()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def write_unnoticed(path: Path, content: bytes) -> None:
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size != before.st_size


CHANGES: dict[str, tuple[bool, PackOptions, Callable[[Path], object]]] = {
    "nothing": (True, KILLED, lambda _: None),
    "another file": (True, KILLED, lambda source: (source / "read me").write_text("")),
    "rows in a shard": (False, replace(KILLED, rows_per_shard=19), lambda _: None),
    "short side": (False, replace(KILLED, short_side=15), lambda _: None),
    "share for testing": (False, replace(KILLED, test=0.2), lambda _: None),
    "columns": (False, replace(KILLED, caption_columns=("text",)), lambda _: None),
    "image's time": (False, KILLED, lambda source: os.utime(source / "red_bar" / "0.png", ns=(1, 1))),
    "image's size": (False, KILLED, lambda source: write_unnoticed(source / "red_bar" / "0.png", PICTURES["red_pole"])),
    "image more": (False, KILLED, lambda source: (source / "red_bar" / "x.png").write_bytes(PICTURES["red_bar"])),
    "image less": (False, KILLED, lambda source: (source / "red_bar" / "0.png").unlink()),
    "image's name": (False, KILLED, lambda source: (source / "red_bar" / "0.png").rename(source / "red_bar" / "9.png")),
    "captions": (False, KILLED, lambda source: (source / "red_bar" / "0.txt").write_text("x")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_the_same_source_with_the_same_options_goes_on(tmp_path: Path, change: str) -> None:
    source, out = class_folders(tmp_path / "in"), tmp_path / "out"
    stopped(source, out, KILLED, pieces=2)
    same, options, do = CHANGES[change]
    do(source)
    again, whole = Counting(), Counting()
    pack(str(source), out, options, None, again)
    pack(str(source), tmp_path / "whole", options, None, whole)
    assert contents(out) == contents(tmp_path / "whole")
    assert again.done == whole.done - 2 * same
    assert not (tmp_path / ".out.part").exists()


def test_another_source_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "a" / "in")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    monkeypatch.chdir(tmp_path / "a")
    stopped(Path("in"), tmp_path / "out", KILLED, pieces=2)
    monkeypatch.chdir(tmp_path / "b")
    again = Counting()
    pack("in", tmp_path / "out", KILLED, None, again)
    assert again.done == 4


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_changed_table_begins_anew(tmp_path: Path, suffix: str) -> None:
    class_folders(tmp_path / "in", copies=1)
    path, out, options = tmp_path / f"t{suffix}", tmp_path / "out", PackOptions(rows_per_shard=5)
    columns = {"path": [f"in/{name}/0.png" for name in PICTURES], "caption": list(PICTURES)}
    if suffix == ".csv":
        path.write_text("path,caption\n" + "".join(map("{},{}\n".format, *columns.values())))
    else:
        pq.write_table(pa.table(columns), path)
    stopped(path, out, options, pieces=2)
    stopped(path, out, options, pieces=1)
    assert len(finished_files(tmp_path / ".out.part")) == 3 * 2, "it went on"
    os.utime(path, ns=(1, 1))
    again = Counting()
    pack(str(path), out, options, None, again)
    assert again.done == 5


def test_pieces_that_lost_a_file_are_done_again(tmp_path: Path) -> None:
    source, out = class_folders(tmp_path / "in", copies=5), tmp_path / "out"
    pack(str(source), tmp_path / "whole", KILLED)
    stopped(source, out, KILLED, pieces=5)
    (shards,) = (tmp_path / ".out.part").rglob("shards")
    for lost in ("train-00000.tar", "train-00001.index.npz", "../00002.json"):
        (shards / lost).unlink()
    (shards / "../00003.json").write_text("{")
    (shards / ".train-00004.tar.4711.part").write_bytes(b"half a tar")
    again = Counting()
    pack(str(source), out, KILLED, None, again)
    assert again.done == 6 - 5 + 4
    assert contents(out) == contents(tmp_path / "whole")


def test_a_worker_of_a_killed_run_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = class_folders(tmp_path / "in"), tmp_path / "out"
    stopped(source, out, KILLED, pieces=1)
    (shards,) = (tmp_path / ".out.part").rglob("shards")
    lock = FileLock(shards.parent / "00002.lock", thread_local=False)
    with lock:
        monkeypatch.setattr(cutting, "PATIENCE", 0.1)
        with pytest.raises(DataError, match=r"00002\.lock: held by a worker of an earlier run; wait for it to end"):
            pack(str(source), out, KILLED)
        assert sorted(path.name for path in shards.parent.glob("*.json")) == ["00000.json", "00001.json"]
    monkeypatch.setattr(cutting, "PATIENCE", 60)
    lock.acquire()
    threading.Timer(0.5, lock.release).start()
    began = time.monotonic()
    pack(str(source), out, KILLED)
    assert time.monotonic() - began >= 0.4
    pack(str(source), tmp_path / "whole", KILLED)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_piece_that_somebody_finished_meanwhile_is_not_written_again(tmp_path: Path) -> None:
    found = [Found(f"{number}.png", image, [str(number)]) for number, image in enumerate(PICTURES.values())]
    piece = Piece(tmp_path, 3, found, KILLED, 1)
    counts = pack_shard(piece)
    before = state((tmp_path / "shards").iterdir())
    assert pack_shard(piece) == counts
    assert state((tmp_path / "shards").iterdir()) == before
    assert sorted(before) == [f"{split}-00003.{kind}" for split in ("test", "train") for kind in ("index.npz", "tar")]
    assert sum(counts.rows.values()) == 24


DYING = """
import os, sys
from pathlib import Path
from pocketclip.data.pack import PackOptions, pack
source, out, moves = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
replace, done = Path.replace, []
def dying(self, target):
    if target.parent == out:
        if len(done) == moves:
            os._exit(9)
        done.append(target)
    return replace(self, target)
Path.replace = dying
pack(source, out, PackOptions(rows_per_shard=8))
"""


@pytest.mark.parametrize(("rows", "pieces"), [(12, 2), (8, 0)])
@pytest.mark.parametrize("moves", [0, 1, 6])
def test_a_run_killed_while_it_moves_files_is_taken_back(tmp_path: Path, moves: int, rows: int, pieces: int) -> None:
    source = str(class_folders(tmp_path / "in", copies=1))
    out = tmp_path / "out"
    out.mkdir()
    (out / "tokenizer.json").write_text("mine")
    killed = subprocess.run([sys.executable, "-c", DYING, source, str(out), str(moves)], check=False)
    assert killed.returncode == 9
    assert len(list(out.iterdir())) == moves + 2, "what was moved, the tokenizer and what is hidden"
    again = Counting()
    pack(source, out, PackOptions(rows_per_shard=rows), None, again)
    assert again.done == pieces, "what was moved is taken back, and used where it is the same"
    pack(source, tmp_path / "whole", PackOptions(rows_per_shard=rows))
    assert contents(out) == {**contents(tmp_path / "whole"), "tokenizer.json": b"mine"}


def test_what_a_killed_run_left_is_not_taken_for_shards(tmp_path: Path) -> None:
    source = str(class_folders(tmp_path / "in", copies=1))
    hidden = tmp_path / ".out.part"
    (hidden / "deep").mkdir(parents=True)
    (hidden / "train-00099.tar").write_bytes(b"half a tar")
    pack(source, tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["manifest.json", "train-00000.index.npz", "train-00000.tar"]
    assert not hidden.exists()


def test_a_new_folder_appears_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(class_folders(tmp_path / "in", copies=1))

    def refused(_: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(DataError, match=r"No space left .* make room and run the same command again"):
            pack(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.part", "in"]
    again = Counting()
    pack(source, tmp_path / "out", None, None, again)
    assert again.done == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_run_that_fails_before_its_first_shard_leaves_nothing(tmp_path: Path) -> None:
    stopped(class_folders(tmp_path / "in"), tmp_path / "out", KILLED, pieces=0)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
