"""pack: from a source to shards, beside a plain reading of the source."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import pocketclip
from conftest import COLOURS, SHAPES, draw
from pocketclip.data import pack as packing
from pocketclip.data import sources
from pocketclip.data.pack import PackOptions, pack
from pocketclip.data.rows import Row
from pocketclip.data.shards import Split, read_manifest, splits_in
from pocketclip.errors import DataError

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
        assert [len(shard) for shard in rows.shards][:-1] == [10] * (len(rows.shards) - 1)
    assert manifest["shards"] == sorted(shard_bytes(tmp_path / "out"))
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
    with pytest.raises(DataError, match=r"Not a directory|File exists"):
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
    assert manifest["rows"] == {"train": 46}
    assert manifest["dropped"] == {"no image file": 2}
    assert "left out: 2 x no image file" in heard.file.getvalue()  # type: ignore[attr-defined]
    assert shard_bytes(folder) == tars
    rows = Split(folder, "train")
    names = [name for row, name in enumerate(PICTURES) if row != 3]
    assert [rows.captions(row) for row in range(46)] == [[name] for name in names] * 2
    assert [rows.image(row) for row in range(23)] == [PICTURES[name] for name in names]
    assert [path.name for path in tmp_path.iterdir()] == ["laion"], "a member's name is a name and no path"
    img2dataset(folder, 2)
    assert pack(str(folder), folder)["rows"] == {"train": 69}, "again, for tars that came later"
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

CHILD = """
import sys
from pathlib import Path
from pocketclip.data.pack import PackOptions, pack
pack(sys.argv[1], Path(sys.argv[2]), PackOptions(rows_per_shard=20, short_side=16))
"""


def test_a_killed_run_leaves_only_the_hidden_folder_and_the_next_is_as_if_undisturbed(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", copies=20)
    pack(str(source), tmp_path / "whole", PackOptions(rows_per_shard=20, short_side=16))
    out, hidden = tmp_path / "out", tmp_path / ".out.part"
    for tars in (1, 10):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(source), str(out)])
        try:
            while len(list(hidden.glob("*.tar"))) < tars:
                assert child.poll() is None, "over before it was killed"
                time.sleep(0.001)
            with pytest.raises(DataError, match="another process is packing"):
                pack(str(source), out)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert not out.exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == [".out.part", "in", "whole"]
    pack(str(source), out, PackOptions(rows_per_shard=20, short_side=16))
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


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


@pytest.mark.parametrize("moves", [0, 1, 6])
def test_a_run_killed_while_it_moves_files_is_taken_back(tmp_path: Path, moves: int) -> None:
    source = str(class_folders(tmp_path / "in", copies=1))
    out = tmp_path / "out"
    out.mkdir()
    (out / "tokenizer.json").write_text("mine")
    killed = subprocess.run([sys.executable, "-c", DYING, source, str(out), str(moves)], check=False)
    assert killed.returncode == 9
    assert len(list(out.iterdir())) == moves + 1
    pack(source, out, PackOptions(rows_per_shard=12))
    pack(source, tmp_path / "whole", PackOptions(rows_per_shard=12))
    assert contents(out) == {**contents(tmp_path / "whole"), "tokenizer.json": b"mine"}


def test_what_a_killed_run_left_is_not_taken_for_shards(tmp_path: Path) -> None:
    source = str(class_folders(tmp_path / "in", copies=1))
    hidden = tmp_path / ".out.part"
    (hidden / "deep").mkdir(parents=True)
    (hidden / "train-00099.tar").write_bytes(b"half a tar")
    pack(source, tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["manifest.json", "train-00000.index.npz", "train-00000.tar"]


def test_a_new_folder_appears_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(class_folders(tmp_path / "in", copies=1))

    def refused(_: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(DataError, match="No space left"):
        pack(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
