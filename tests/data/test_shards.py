import io
import json
import mmap
import pickle
import random
import re
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import draw, example_rows
from pocketclip.data import shards
from pocketclip.data.rows import Row
from pocketclip.data.shards import (
    Shard,
    Split,
    index_path,
    read_manifest,
    splits_in,
    write_index,
    write_manifest,
    write_shards,
)
from pocketclip.errors import DataError

keys = st.text(st.characters(categories=("Ll", "Nd"), include_characters="-_ é字"), min_size=1, max_size=120)
captions = st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4)
rows = st.lists(
    st.tuples(keys, st.binary(max_size=2000), captions), min_size=1, max_size=12, unique_by=lambda row: row[0]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows, st.integers(1, 5))
def test_what_is_written_is_read_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, content: list[tuple[str, bytes, list[str]]], per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    wanted = [Row(key, image, "png", tuple(texts), {"n": n}) for n, (key, image, texts) in enumerate(content)]
    assert write_shards(wanted, folder, "train", per_shard) == len(wanted)
    split = Split(folder, "train")
    assert len(split) == len(wanted)
    order = list(range(len(wanted)))
    random.Random(0).shuffle(order)
    split.announce(order)
    for number in order:
        row = wanted[number]
        assert split.image(number) == row.image
        assert split.captions(number) == [text.strip() for text in row.captions]
        assert split.metadata(number)["n"] == number
        assert split.key(number) == row.key


def test_the_tars_are_webdataset_and_deterministic(folder: Path, tmp_path: Path) -> None:
    write_shards(example_rows(test=False), tmp_path, "train", rows_per_shard=20)
    for tar in sorted(tmp_path.glob("*.tar")):
        assert tar.read_bytes() == (folder / tar.name).read_bytes()
    with tarfile.open(tmp_path / "train-00000.tar") as tar_file:
        names = tar_file.getnames()
        assert names[:3] == ["red-circle-left.png", "red-circle-left.txt", "red-circle-left.json"]
        text = tar_file.extractfile("red-circle-left.txt")
        assert text is not None
        assert text.read() == b"red circle left"


def foreign_tar(path: Path, members: dict[str, bytes]) -> Path:
    import io

    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_a_foreign_tar_is_indexed_on_first_use(tmp_path: Path) -> None:
    image = draw("red", "bar", "left")
    members = {
        "000.jpg": image, "000.txt": b" a caption \n", "000.json": b'{"url": "x"}',
        "001.jpeg": image, "001.txt": b"second",
        "002.txt": b"no image",
        "003.png": image,
        "004.PNG": image, "004.json": b"not json", "004.txt": b"",
        "../../evil.png": image, "../../evil.txt": b"a caption",
    }  # fmt: skip
    foreign_tar(tmp_path / "train-0.tar", members)
    split = Split(tmp_path, "train")
    assert [split.key(row) for row in range(len(split))] == ["000", "001", "004"]
    assert [split.captions(row) for row in range(3)] == [["a caption"], ["second"], []]
    assert split.dropped == {"no caption file": 1, "no image file": 1, "name that leads out of the folder": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-0.index.npz", "train-0.tar"]


@pytest.mark.parametrize("keep", [0.2, 0.4, 0.6])
def test_a_truncated_tar_is_named(folder: Path, tmp_path: Path, keep: float) -> None:
    whole = folder / "train-00000.tar"
    cut = tmp_path / "train-00000.tar"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * keep)])
    with pytest.raises(DataError, match=r"train-00000\.tar.*truncated"):
        Split(tmp_path, "train")
    assert not index_path(cut).exists()
    index_path(cut).write_bytes(index_path(whole).read_bytes())
    with pytest.raises(DataError, match=r"train-00000\.tar.*truncated"):
        Split(tmp_path, "train")


def test_a_tar_cut_between_two_members_is_truncated_too(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(folder / "train-00000.tar") as tar:
        end = tar.getmembers()[3].offset
    cut = tmp_path / "train-00000.tar"
    cut.write_bytes((folder / "train-00000.tar").read_bytes()[:end])
    with pytest.raises(DataError, match="truncated"):
        Split(tmp_path, "train")


@given(st.integers(0, 19), st.integers(0, 2), st.integers(0, 511), st.integers(0, 7))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_in_a_header_loses_no_row_unnoticed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, row: int, member: int, byte: int, bit: int
) -> None:
    whole = folder / "train-00000.tar"
    with tarfile.open(whole) as tar:
        header = [info.offset for info in tar][3 * row + member]
    content = bytearray(whole.read_bytes())
    content[header + byte] ^= 1 << bit
    damaged = tmp_path_factory.mktemp("damaged") / "train-00000.tar"
    damaged.write_bytes(content)
    try:
        split = Split(damaged.parent, "train")
    except DataError as error:
        assert re.search(r"train-00000\.tar: (damaged at byte|not a whole tar|ends inside)", str(error))
    else:  # one byte of a header, behind its checksum, says nothing
        assert byte == 155
        assert [split.captions(n) for n in range(20)] == [Split(folder, "train").captions(n) for n in range(20)]


def test_a_tar_that_was_replaced_by_one_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    rows = list(example_rows(test=False))
    write_shards(rows, tmp_path, "train")
    size = (tmp_path / "train-00000.tar").stat().st_size
    index = index_path(tmp_path / "train-00000.tar").read_bytes()
    write_shards(reversed(rows), tmp_path, "train")
    assert (tmp_path / "train-00000.tar").stat().st_size == size
    index_path(tmp_path / "train-00000.tar").write_bytes(index)
    with pytest.raises(DataError, match="was replaced"):
        Split(tmp_path, "train")


def test_a_split_takes_no_shards_of_another_whose_name_begins_like_it(tmp_path: Path) -> None:
    rows = list(example_rows(test=False))
    write_shards(rows[:5], tmp_path, "train")
    write_shards(rows[5:9], tmp_path, "train-2020")
    assert splits_in(tmp_path) == ["train", "train-2020"]
    assert (len(Split(tmp_path, "train")), len(Split(tmp_path, "train-2020"))) == (5, 4)
    with pytest.raises(DataError, match="no shards named"):
        Split(tmp_path, "*")


def test_captions_that_no_tokenizer_takes_are_mended(tmp_path: Path) -> None:
    image = draw("red", "bar", "left")
    captions = ["\\ud83d half", "x" * 50_000]
    members = {
        "0.png": image, "0.json": b'{"captions": ["%s", "%s"]}' % tuple(text.encode() for text in captions),
        "1.png": image, "1.json": b'{"captions": ' + b"[" * 100_000, "1.txt": b"deep",
    }  # fmt: skip
    foreign_tar(tmp_path / "train-0.tar", members)
    split = Split(tmp_path, "train")
    assert split.captions(0) == ["? half", "x" * 10_000]
    assert split.captions(1) == ["deep"]


def test_more_shards_than_files_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    rows = list(example_rows(test=False))
    write_shards(rows, tmp_path, "train", rows_per_shard=1)
    monkeypatch.setattr(shards, "_mapped", lru_cache(maxsize=8)(shards._mapped.__wrapped__))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(file.name) for file in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 16, before[1]))
    try:
        split = Split(tmp_path, "train")
        assert [split.image(row) for row in range(len(split))] == [row.image for row in rows]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_announced_rows_are_asked_for_whole_and_page_by_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[Path, set[int]] = {}

    class Noted:
        def __init__(self, shard: Shard) -> None:
            self.shard = shard

        def madvise(self, option: int, start: int, length: int) -> None:
            assert (option, start % mmap.PAGESIZE) == (shards.WILL_NEED, 0)
            assert start + length <= self.shard.path.stat().st_size
            asked.setdefault(self.shard.path, set()).update(range(start, start + length))

    split, rows = Split(folder, "train"), [44, 3, 20]
    monkeypatch.setattr(shards, "_mapped", Noted)
    monkeypatch.setattr(shards, "WILL_NEED", 3)
    split.announce(rows)
    needed: dict[Path, set[int]] = {}
    for row in rows:
        shard = split.shards[row // 20]
        for start, length in shard.spans[row % 20].reshape(3, 2).tolist():
            needed.setdefault(shard.path, set()).update(range(start, start + length))
    assert asked.keys() == needed.keys()
    for path, places in needed.items():
        assert places <= asked[path]
        assert len(asked[path]) < len(places) + 3 * 3 * mmap.PAGESIZE
    monkeypatch.setattr(shards, "WILL_NEED", 0)  # as on Windows
    asked.clear()
    split.announce(rows)
    assert not asked


def test_damaged_indexes_are_named(folder: Path, tmp_path: Path) -> None:
    tar = tmp_path / "train-00000.tar"
    tar.write_bytes((folder / tar.name).read_bytes())
    write_index(tar)
    good = index_path(tar).read_bytes()
    for damage in (b"", b"rubbish", good[: len(good) // 2]):
        index_path(tar).write_bytes(damage)
        with pytest.raises(DataError, match=r"index\.npz: damaged index; delete it"):
            Split(tmp_path, "train")
    arrays = dict(np.load(folder / "train-00000.index.npz"))
    arrays["spans"] = arrays["spans"] + 10**9
    np.savez(index_path(tar), **arrays)
    with pytest.raises(DataError, match="points outside the tar"):
        Split(tmp_path, "train")
    index_path(tar).write_bytes(pickle.dumps("a pickle is never run"))
    with pytest.raises(DataError, match="damaged index"):
        Split(tmp_path, "train")


def test_missing_and_empty_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no shards named train-00000"):
        Split(tmp_path, "train")
    foreign_tar(tmp_path / "train-0.tar", {})
    with pytest.raises(DataError, match="hold no rows"):
        Split(tmp_path, "train")


def test_a_shard_travels_to_another_process(folder: Path) -> None:
    split = Split(folder, "train")
    first = split.image(0)
    assert pickle.loads(pickle.dumps(split)).image(0) == first


def test_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"rows": {"train": 1}, "name": "é"})
    assert read_manifest(tmp_path) == {"rows": {"train": 1}, "name": "é"}
    with pytest.raises(DataError, match="missing"):
        read_manifest(tmp_path / "nowhere")
    for text in ("{", json.dumps([1])):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=r"manifest\.json: not"):
            read_manifest(tmp_path)


def test_splits_in(folder: Path) -> None:
    assert splits_in(folder) == ["test", "train"]


def test_tars_named_by_a_number_alone_are_the_split_train(tmp_path: Path) -> None:
    """As img2dataset names them."""
    for name in ("00000.tar", "00001.tar", "test-00000.tar", "00000-a.tar", "notes.tar"):
        foreign_tar(tmp_path / name, {f"{name[:4]}.png": draw("red", "bar", "left"), f"{name[:4]}.txt": b"a bar"})
    assert splits_in(tmp_path) == ["test", "train"]
    train = Split(tmp_path, "train")
    assert [shard.path.name for shard in train.shards] == ["00000.tar", "00001.tar"]
    assert train.captions(1) == ["a bar"]


RED, BLUE = draw("red", "bar", "left"), draw("blue", "pole", "left")


@pytest.mark.parametrize(
    ("members", "rows", "dropped"),
    [
        ("a.png=R a.txt=1 a.png=B a.txt=2", [(RED, ["1"])], 1),
        ("a.png=R a.txt=1 b.png=B b.txt=2 a.png=B a.txt=3", [(RED, ["1"]), (BLUE, ["2"])], 1),
        ("a.png=R a.txt=1 b.png=B b.txt=2 a.json={} a.png=B", [(RED, ["1"]), (BLUE, ["2"])], 1),
        ("a.png=R b.png=B a.txt=1 b.txt=2", [(RED, ["1"]), (BLUE, ["2"])], 0),
        ("a.png=R a.txt=1 a.PNG=B a.txt=2 a.png=B a.txt=3", [(RED, ["1"])], 2),
    ],
)
def test_a_key_that_comes_again_is_another_row_and_counted(
    tmp_path: Path, members: str, rows: list[tuple[bytes, list[str]]], dropped: int
) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, text in (one.split("=") for one in members.split()):
            content = {"R": RED, "B": BLUE}.get(text, text.encode())
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    split = Split(tmp_path, "train")
    assert [(split.image(row), split.captions(row)) for row in range(len(split))] == rows
    assert split.dropped == ({"key that another row has": dropped} if dropped else {})


@pytest.mark.parametrize("name", ["../a", "/etc/a", "x/../../a", "..\\a", "C:\\a", "\\\\host\\a"])
def test_names_that_lead_out_of_the_folder_are_counted(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for key, image in ((name, RED), ("folder/..a..b", BLUE)):
            for extension, content in (("png", image), ("txt", b"a bar")):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    split = Split(tmp_path, "train")
    assert [split.image(row) for row in range(len(split))] == [BLUE]
    assert split.dropped == {"name that leads out of the folder": 1}


def test_names_that_are_too_long_or_not_utf8_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for key in ("good", "n" * 100_000, "caf\udce9"):
            for extension in ("png", "txt"):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = 4
                tar.addfile(member, io.BytesIO(b"some"))
    split = Split(tmp_path, "train")
    assert [split.key(row) for row in range(len(split))] == ["good"]
    assert split.dropped == {"name of more than 500 characters": 1, "name that is not UTF-8": 1}
    assert index_path(path).stat().st_size < 20_000


def test_what_kind_of_image_it_is_does_not_hang_on_its_name(tmp_path: Path) -> None:
    long = "x" * 120
    images = {f"{long}1.JPG": "JPEG", f"{long}2.png": "PNG", "c.WebP": "WEBP", "d.jpeg": "JPEG"}
    members = {}
    for name, kind in images.items():
        file = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(file, kind)
        members |= {name: file.getvalue(), name.rpartition(".")[0] + ".txt": b"a caption"}
    shard = Shard(foreign_tar(tmp_path / "00000.tar", members))
    assert [shard.extension(row) for row in range(len(shard))] == ["jpg", "png", "webp", "jpg"]


def test_a_row_that_no_index_would_show_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.JPG: the extension is none of jpg"):
        write_shards([Row("a", b"", "JPG", ("text",), {})], tmp_path, "train")
    assert not list(tmp_path.iterdir())


def test_half_characters_in_metadata_are_written_as_question_marks(tmp_path: Path) -> None:
    write_shards([Row("a", b"", "png", ("x",), {"alt": "cut \ud83d"})], tmp_path, "train")
    assert Split(tmp_path, "train").metadata(0)["alt"] == "cut ?"


@pytest.mark.parametrize(
    "changed",
    [
        {"keys": np.array(["a"])},
        {"keys": np.array([1, 2])},
        {"keys": np.array("a")},
        {"spans": np.zeros((2, 4), np.int64)},
        {"spans": np.zeros(6, np.int64)},
        {"spans": np.zeros((2, 6))},
        {"tar_size": np.zeros(3, np.int64)},
        {"format": np.array("x")},
        {"dropped": np.array(["x y"])},
    ],
)
def test_an_index_of_another_shape_is_named(tmp_path: Path, changed: dict[str, np.ndarray]) -> None:
    write_shards([Row(key, b"", "png", ("x",), {}) for key in "ab"], tmp_path, "train")
    index = index_path(tmp_path / "train-00000.tar")
    with np.load(index) as arrays:
        content = dict(arrays) | changed
    np.savez(index, **content)
    with pytest.raises(DataError, match=r"train-00000\.index\.npz: damaged index"):
        Split(tmp_path, "train")
