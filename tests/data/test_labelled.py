"""Every format of labelled images, from small samples that are true to it."""

import gzip
import io
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from labelled_samples import (
    encoded,
    idx,
    picture,
    python_2_pickle,
    write_cifar,
    write_class_folders,
    write_clip_benchmark,
    write_idx,
    write_parquet,
)
from pocketclip.data.labelled.cifar import CifarImages
from pocketclip.data.labelled.folders import ClassFolders, ListedImages
from pocketclip.data.labelled.idx import IdxImages, read_idx
from pocketclip.data.labelled.kinds import Dropped, Labelled
from pocketclip.data.labelled.parquet import ParquetImages
from pocketclip.data.labelled.source import open_labelled
from pocketclip.data.labelled.tars import TarImages
from pocketclip.errors import DataError


def read(place: Path, split: str = "test") -> tuple[list[Labelled], list[Dropped]]:
    dropped: list[Dropped] = []
    return list(open_labelled(place, split).items(dropped)), dropped


@pytest.mark.parametrize("hundred", [False, True])
def test_cifars_batches(tmp_path: Path, hundred: bool) -> None:
    test, train = ("test", ["train"]) if hundred else ("test_batch", [f"data_batch_{number}" for number in range(1, 6)])
    names = ["apple", "bear", "can"]
    write_cifar(tmp_path, {test: [2, 0, 1], **{name: [number] for number, name in enumerate(train)}}, names, hundred)
    source = open_labelled(tmp_path)
    assert isinstance(source, CifarImages)
    assert source.classes == ("apple", "bear", "can")
    found, dropped = read(tmp_path)
    assert [(one.name, one.label) for one in found] == [(f"{test}/0", 2), (f"{test}/1", 0), (f"{test}/2", 1)]
    for one, colour in zip(found, ("blue", "red", "green"), strict=True):
        assert np.array_equal(one.image, picture(colour))
    assert not dropped
    again = pickle.loads((tmp_path / test).read_bytes(), encoding="bytes")
    (tmp_path / test).write_bytes(pickle.dumps(again, 2))  # as somebody's Python 3 wrote it anew
    assert [one.label for one in read(tmp_path)[0]] == [2, 0, 1]
    assert [one.label for one in read(tmp_path, "train")[0]] == list(range(len(train)))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path, {"test_batch": [0]}, ["a"])
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}, 2))
    with pytest.raises(DataError, match=r"test_batch: refused: it holds more than arrays \((posix|nt)\.mkdir\)"):
        read(tmp_path)
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    "call",
    [
        b"cnumpy\nndarray\n(I100000000\ntR.",  # an array of a terabyte
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I100000000\ntU\x01btR.",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.",
    ],
)
def test_pickled_words_cannot_be_abused(tmp_path: Path, call: bytes) -> None:
    write_cifar(tmp_path, {"test_batch": [0]}, ["a"])
    (tmp_path / "test_batch").write_bytes(call)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"damaged|holds no dictionary"):
        read(tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000


def test_a_pickle_cannot_ask_for_memory_by_numbering_what_it_remembers(tmp_path: Path) -> None:
    write_cifar(tmp_path, {"test_batch": [0]}, ["a"])
    (tmp_path / "test_batch").write_bytes(b"\x80\x02}r\xff\xff\xff\x0f.")  # Python makes room for 2^28 things
    with pytest.raises(DataError, match="test_batch: damaged: it remembers something as number 268,435,455"):
        read(tmp_path)


def test_half_of_cifars_batches_are_not_all(tmp_path: Path) -> None:
    write_cifar(tmp_path, {"test_batch": [0], "data_batch_1": [0], "data_batch_3": [0]}, ["a"])
    with pytest.raises(DataError, match="has no data_batch_2, data_batch_4, data_batch_5; fetch"):
        open_labelled(tmp_path, "train")


def test_damaged_batches_are_named(tmp_path: Path) -> None:
    write_cifar(tmp_path, {"test_batch": [0, 1]}, ["a", "b"])
    whole = (tmp_path / "test_batch").read_bytes()
    for content, message in {
        whole[:200]: "damaged or truncated",
        python_2_pickle({b"data": np.zeros((2, 3), np.uint8), b"labels": [0, 1]}): "no array of 3072 bytes",
        python_2_pickle({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}): "no label for each",
        python_2_pickle({}): "no array",
        b"": "damaged or truncated",
    }.items():
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(DataError, match=rf"test_batch: .*{message}"):
            read(tmp_path)


class Reduced:
    """Is pickled as what it is made with."""

    def __init__(self, *reduced: object) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


def test_what_an_array_says_of_its_bytes_is_not_believed(tmp_path: Path) -> None:
    write_cifar(tmp_path, {"test_batch": [0]}, ["a"])
    pixels = bytes(range(256)) * 12
    flags = Reduced(np.dtype, ("u1", False, True), (3, "|", None, None, None, -1, -1, 255))  # breaks NumPy's own dtype
    make = np.zeros(1).__reduce__()[:2]
    for shape, message in (
        ((1, 3072), ""),
        ((-1, 3072), "no array"),
        ((2, 3072), "damaged"),
        ((1 << 60, 3072), "damaged"),
    ):
        data = Reduced(*make, (1, shape, flags, False, pixels))
        (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": data, "labels": [0]}, protocol=2))
        if message:
            with pytest.raises(DataError, match=message):
                read(tmp_path)
        else:
            ((one,), _) = read(tmp_path)
            assert np.array_equal(one.image, np.frombuffer(pixels, np.uint8).reshape(3, 32, 32).transpose(1, 2, 0))


@given(st.binary(max_size=60), st.integers(0, 400))
def test_no_batch_does_more_than_fail(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    folder = tmp_path_factory.mktemp("cifar")
    write_cifar(folder, {"test_batch": [0]}, ["a"])
    content = bytearray((folder / "test_batch").read_bytes())
    content[at : at + len(noise)] = noise
    (folder / "test_batch").write_bytes(content)
    try:
        read(folder)
    except DataError as error:
        assert "test_batch" in str(error)


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files(tmp_path: Path, compressed: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 20), dtype=np.uint8)
    write_idx(tmp_path, "t10k", images, [3, 1, 4, 1, 5], compressed)
    write_idx(tmp_path, "train", images[:2], [9, 2], compressed)
    source = open_labelled(tmp_path)
    assert isinstance(source, IdxImages)
    assert source.total == 5
    found, _ = read(tmp_path)
    assert [one.label for one in found] == [3, 1, 4, 1, 5]
    for one, image in zip(found, images, strict=True):
        for channel in range(3):
            assert np.array_equal(one.image[:, :, channel], image)
    assert [one.label for one in read(tmp_path, "train")[0]] == [9, 2]


def test_idx_images_without_pixels_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, "t10k", np.zeros((3, 0, 4), np.uint8), [0, 1, 2], compressed=False)
    with pytest.raises(DataError, match="says that its images have no pixels"):
        open_labelled(tmp_path)


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    whole = idx(np.zeros((3, 4, 4), np.uint8))
    path = tmp_path / "x"
    for content, message in {
        b"": "not an IDX file of images",
        whole[:-1]: "says that it has 48 values and has 47",
        whole + b"x": "says that it has 48 values and has more",
        b"\0\0\x0d\3" + whole[4:]: "not an IDX file of images",  # floats
        whole[:4] + b"\xff" * 12: "more than 4,294,967,296",
    }.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_idx(path, 3)
    path = tmp_path / "x.gz"
    for content in (b"no gzip", gzip.compress(whole)[:-4], gzip.compress(whole)[:20] + b"noise"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.gz: "):
            read_idx(path, 3)
    bomb = gzip.compress(whole + bytes(50_000_000))
    path.write_bytes(bomb)
    with pytest.raises(DataError, match="has more"):
        read_idx(path, 3)
    write_idx(tmp_path, "t10k", np.zeros((3, 4, 4), np.uint8), [1], compressed=True)
    with pytest.raises(DataError, match=r"3 images, but .* has 1 labels"):
        open_labelled(tmp_path)


@given(st.binary(max_size=40), st.integers(0, 20), st.booleans())
def test_no_idx_file_does_more_than_fail(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, compressed: bool
) -> None:
    content = bytearray(idx(np.zeros((2, 3, 3), np.uint8)))
    content[at : at + len(noise)] = noise
    path = tmp_path_factory.mktemp("idx") / ("x.gz" if compressed else "x")
    path.write_bytes(gzip.compress(content) if compressed else content)
    try:
        assert read_idx(path, 3).ndim == 3
    except DataError as error:
        assert str(path) in str(error)


def test_class_folders(tmp_path: Path) -> None:
    images = {
        "n01440764/ILSVRC2012_val_00000293.JPEG": encoded("red", "JPEG"),
        "n01440764/more/x.png": encoded("blue"),
        "n01443537/a.webp": encoded("green", "WEBP"),
        "n01443537/notes.txt": b"",
        "n01443537/.hidden.png": b"",
        "alone.png": encoded("red"),
    }
    write_class_folders(tmp_path / "val", images)
    write_class_folders(tmp_path / "train", {"n01440764/y.png": encoded("red")})
    source = open_labelled(tmp_path)
    assert isinstance(source, ClassFolders)
    assert source.classes == ("n01440764", "n01443537")
    found, dropped = read(tmp_path)
    assert [(one.name, one.label) for one in found] == [
        ("n01440764/ILSVRC2012_val_00000293.JPEG", "n01440764"),
        ("n01440764/more/x.png", "n01440764"),
        ("n01443537/a.webp", "n01443537"),
    ]
    assert dropped == [
        Dropped("alone.png", "not in a class folder"),
        Dropped("n01443537/notes.txt", "file of another kind"),
    ]
    assert read(tmp_path / "val")[0] == found
    assert [one.name for one in read(tmp_path, "train")[0]] == ["n01440764/y.png"]
    with pytest.raises(DataError, match="has no folder 'train'"):
        open_labelled(tmp_path / "val", "train")


def test_lists_of_images(tmp_path: Path) -> None:
    food, pets = tmp_path / "food-101", tmp_path / "pets"
    write_class_folders(food / "images", {"apple_pie/1005649.jpg": encoded("red", "JPEG")})
    write_class_folders(food / "meta", {"test.txt": b"apple_pie/1005649\n../../secret/1\na\0b/1\n", "train.txt": b""})
    write_class_folders(pets / "images", {"Egyptian_Mau_7.jpg": encoded("red", "JPEG")})
    write_class_folders(pets / "annotations", {"test.txt": b"#Image CLASS-ID\nEgyptian_Mau_7 10 1 5\n"})
    assert isinstance(open_labelled(food), ListedImages)
    found, dropped = read(food)
    assert found == [Labelled("apple_pie/1005649", food / "images" / "apple_pie/1005649.jpg", "apple_pie")]
    assert [one.reason for one in dropped] == ["path outside the folder"] * 2
    assert read(pets)[0] == [Labelled("Egyptian_Mau_7", pets / "images" / "Egyptian_Mau_7.jpg", "Egyptian_Mau")]
    with pytest.raises(DataError, match=r"none of the lists .*trainval\.txt"):
        open_labelled(pets, "train")


def test_parquet(tmp_path: Path) -> None:
    images = [encoded("red"), None, encoded("blue"), encoded("green")]
    write_parquet(tmp_path / "data" / "test-00000-of-00002.parquet", images[:3], [1, 0, 2], ["a", "b", "c d"])
    write_parquet(tmp_path / "data" / "test-00001-of-00002.parquet", [*images[3:], b"x"], [0, None], ["a", "b", "c d"])
    source = open_labelled(tmp_path)
    assert isinstance(source, ParquetImages)
    assert (source.classes, source.total) == (("a", "b", "c d"), 5)
    found, dropped = read(tmp_path)
    assert [(one.image, one.label) for one in found] == [(images[0], 1), (images[2], 2), (images[3], 0)]
    assert dropped == [
        Dropped("test-00000-of-00002.parquet/1", "no image"),
        Dropped("test-00001-of-00002.parquet/1", "no label"),
    ]
    with pytest.raises(DataError, match=r"has no train-\*\.parquet"):
        open_labelled(tmp_path, "train")
    (tmp_path / "data" / "test-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"data: 1 of 2 files are there, not 1; fetch them"):
        open_labelled(tmp_path)


def test_a_test_split_without_labels_gives_way_to_validation(tmp_path: Path) -> None:
    """ImageNet's, as Hugging Face and as Kaggle have it."""
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [encoded("red")], [-1], ["a", "b"])
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", [encoded("blue")], [1], ["a", "b"])
    assert [one.label for one in read(tmp_path)[0]] == [1]
    write_class_folders(tmp_path / "net", {"test/a.png": encoded("red"), "val/n1/b.png": encoded("blue")})
    assert [one.name for one in read(tmp_path / "net")[0]] == ["n1/b.png"]
    write_class_folders(tmp_path / "flat", {"val/a.png": encoded("red"), "train/n1/b.png": encoded("blue")})
    with pytest.raises(DataError, match="val: has no folder for each class; put each class's images into one"):
        open_labelled(tmp_path / "flat")


def test_splits_are_never_taken_for_classes(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "x", {"train/a/1.png": encoded("red")})
    with pytest.raises(DataError, match="has no folder 'test' of class folders"):
        open_labelled(tmp_path / "x")
    write_class_folders(tmp_path / "x", {"valid/a/2.png": encoded("red")})
    assert [one.name for one in read(tmp_path / "x")[0]] == ["a/2.png"]


def test_a_linked_folder_in_a_class_is_named(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"x/a/1.png": encoded("red"), "x/b/2.png": encoded("red"), "y/3.png": b""})
    (tmp_path / "x" / "a" / "more").symlink_to(tmp_path / "y")
    found, dropped = read(tmp_path / "x")
    assert [one.name for one in found] == ["a/1.png", "b/2.png"]
    assert dropped == [Dropped("a/more", "link to a folder")]


def test_parquet_whose_labels_are_words(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [encoded("red")], ["dog"])
    assert [one.label for one in read(tmp_path / "x.parquet")[0]] == ["dog"]


def test_clip_benchmarks_tars(tmp_path: Path) -> None:
    rows = [
        {"webp": encoded("red", "WEBP"), "cls": b"1"},
        {"jpg": encoded("blue", "JPEG"), "cls": b"0\n"},
        {"cls": b"0"},
        {"png": encoded("green")},
        {"png": encoded("green"), "cls": b"two"},
    ]
    write_clip_benchmark(tmp_path, rows, ["a cat", "dog"], ["a photo of a {c}.", "{c}"])
    for number in range(3, 11):  # ten tars and more, whose order is not that of their names
        (tmp_path / "test" / f"{number}.tar").write_bytes((tmp_path / "test" / "0.tar").read_bytes())
    source = open_labelled(tmp_path)
    assert isinstance(source, TarImages)
    assert source.classes == ("a cat", "dog")
    assert source.templates == ("a photo of a {}.", "{}")
    found, dropped = read(tmp_path)
    assert [one.name for one in found[:4]] == ["0.tar/s0000000", "0.tar/s0000001", "3.tar/s0000000", "3.tar/s0000001"]
    assert found[-1].name == "10.tar/s0000001"
    assert [(one.image, one.label) for one in found[:2]] == [(rows[0]["webp"], 1), (rows[1]["jpg"], 0)]
    assert dropped == [
        Dropped("1.tar/s0000002", "no image"),
        Dropped("1.tar/s0000003", "no cls file"),
        Dropped("2.tar/s0000004", "label that is no number"),
    ]
    (tmp_path / "test" / "nshards.txt").write_text("12\n")
    with pytest.raises(DataError, match=r"test: 11 of 12 tars are there, not 11\.tar"):
        open_labelled(tmp_path)
    (tmp_path / "test" / "nshards.txt").unlink()
    (tmp_path / "test" / "4.tar").unlink()
    with pytest.raises(DataError, match=r"test: 10 of 11 tars are there, not 4\.tar"):
        open_labelled(tmp_path)


def test_a_label_that_is_no_number_and_a_cut_tar(tmp_path: Path) -> None:
    rows = [{"png": encoded("green"), "cls": b"two"}, {"png": encoded("red"), "cls": b"0"}]
    write_clip_benchmark(tmp_path, rows, ["a"], [])
    found, dropped = read(tmp_path)
    assert dropped == [Dropped("0.tar/s0000000", "label that is no number")]
    assert [one.label for one in found] == [0]
    path = tmp_path / "test" / "0.tar"
    for length in (700, path.stat().st_size - 9000):
        content = path.read_bytes()
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"0\.tar: "):
            read(tmp_path)
        path.write_bytes(content)
    (tmp_path / "classnames.txt").unlink()
    with pytest.raises(DataError, match=r"has no classnames\.txt"):
        open_labelled(tmp_path)


def test_places_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or file"):
        open_labelled(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no labelled images in a known format: clip-benchmark's tars"):
        open_labelled(tmp_path)


def test_samples_are_what_they_say() -> None:
    image = Image.open(io.BytesIO(encoded("blue")))
    assert np.array_equal(np.asarray(image), picture("blue"))
    assert pickle.loads(python_2_pickle({b"data": np.arange(3)}), encoding="latin-1")["data"].tolist() == [0, 1, 2]
