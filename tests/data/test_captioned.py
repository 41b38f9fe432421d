"""Every format of images with several captions each, from small samples that are true to it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelled_samples import encoded, write_clip_benchmark, write_coco, write_karpathy
from pocketclip.data.labelled.captioned import Captioned, is_captioned, open_captioned
from pocketclip.data.labelled.kinds import Dropped
from pocketclip.errors import DataError


def read(place: Path) -> tuple[list[Captioned], list[Dropped]]:
    dropped: list[Dropped] = []
    return list(open_captioned(place).items(dropped)), dropped


def test_cocos_annotations(tmp_path: Path) -> None:
    images = {"1.jpg": (encoded("red", "JPEG"), ["red", "a red one"]), "2.jpg": (encoded("blue", "JPEG"), ["blue"])}
    path = write_coco(tmp_path, images)
    path.write_text(
        path.read_text().replace('"annotations": [', '"annotations": [{"image_id": 7, "caption": "none"}, ')
    )
    for place in (tmp_path, path):
        found, dropped = read(place)
        assert [(one.name, list(one.captions)) for one in found] == [
            ("1.jpg", ["red", "a red one"]),
            ("2.jpg", ["blue"]),
        ]
        assert found[0].image == (tmp_path / "val2017" / "1.jpg").resolve()
        assert dropped == [Dropped("captions_val2017.json", "annotation of no image")]


def test_karpathys_lists(tmp_path: Path) -> None:
    for name in ("val2014/a.jpg", "flickr30k-images/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded("red", "JPEG"))
    write_karpathy(
        tmp_path / "dataset_coco.json",
        [
            ("val2014", "a.jpg", "test", ["One.", "Two."]),
            ("val2014", "z.jpg", "restval", ["Three."]),
            ("..", "secret.jpg", "test", ["Four."]),
        ],
    )
    found, dropped = read(tmp_path)
    assert [(one.name, one.captions) for one in found] == [("val2014/a.jpg", ["One.", "Two."])]
    assert dropped == [Dropped("../secret.jpg", "path outside the folder")]
    (tmp_path / "dataset_coco.json").unlink()
    write_karpathy(tmp_path / "dataset_flickr30k.json", [("", "b.jpg", "test", ["Five."])])
    found, _ = read(tmp_path)
    assert [(one.name, one.image, one.captions) for one in found] == [
        ("b.jpg", (tmp_path / "flickr30k-images" / "b.jpg").resolve(), ["Five."])
    ]
    write_karpathy(tmp_path / "dataset_flickr30k.json", [("", "b.jpg", "train", ["Five."])])
    with pytest.raises(DataError, match='has no image whose split is "test"'):
        open_captioned(tmp_path)


def test_of_several_lists_that_of_the_data_set_is_taken(tmp_path: Path) -> None:
    """Karpathy's three come in one archive."""
    for name in ("coco", "flickr30k", "flickr8k"):
        (tmp_path / f"{name}.jpg").write_bytes(encoded("red", "JPEG"))
        write_karpathy(tmp_path / f"dataset_{name}.json", [("", f"{name}.jpg", "test", ["One."])])
    for name in ("coco", "flickr30k"):
        assert [one.name for one in open_captioned(tmp_path, name).items([])] == [f"{name}.jpg"]


def test_cocos_images_below_a_folder_of_images(tmp_path: Path) -> None:
    write_coco(tmp_path, {"1.jpg": (encoded("red", "JPEG"), ["red"])})
    (tmp_path / "images").mkdir()
    (tmp_path / "val2017").rename(tmp_path / "images" / "val2017")
    assert [one.name for one in read(tmp_path)[0]] == ["1.jpg"]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["test", "a.jpg", "../a.jpg", "", "red"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["images", "filename", "filepath", "split", "sentences", "raw", "id"]), inner)
    ),
    max_leaves=12,
)


@given(ANYTHING, st.booleans())
def test_no_list_does_more_than_fail(
    tmp_path_factory: pytest.TempPathFactory, content: object, of_images: bool
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    (folder / "a.jpg").write_bytes(encoded("red", "JPEG"))
    path = folder / "dataset_x.json"
    path.write_text(json.dumps({"images": [content, {"filename": "a.jpg", "split": "test"}]} if of_images else content))
    try:
        found, _ = read(path)
        assert all(one.image.is_relative_to(folder.resolve()) for one in found), "whether it is there or not"
    except DataError as error:
        assert str(path) in str(error)


def test_clip_benchmarks_retrieval(tmp_path: Path) -> None:
    rows = [
        {"jpg": encoded("red", "JPEG"), "txt": b"A red one.\nIt is red."},
        {"jpg": encoded("blue", "JPEG")},
        {"txt": b"nothing"},
    ]
    write_clip_benchmark(tmp_path, rows, [], [])
    assert not is_captioned(tmp_path)
    (tmp_path / "dataset_type.txt").write_text("retrieval\n")
    assert is_captioned(tmp_path)
    found, dropped = read(tmp_path)
    assert found == [Captioned("0.tar/s0000000", rows[0]["jpg"], ["A red one.", "It is red."])]
    assert dropped == [Dropped("0.tar/s0000001", "no txt file"), Dropped("1.tar/s0000002", "no image")]


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("red"))
    (tmp_path / "list.csv").write_text("path,caption\na.png,red\na.png,a red one\n")
    assert is_captioned(tmp_path / "list.csv")
    found, _ = read(tmp_path / "list.csv")
    assert [(one.name, list(one.captions)) for one in found] == [("a.png", ["red", "a red one"])]


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images with captions in a known format"):
        open_captioned(tmp_path)
    path = write_coco(tmp_path, {"1.jpg": (encoded("red", "JPEG"), ["red"])})
    (tmp_path / "val2017" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"none of its images \(1\.jpg, \.\.\.\) is in .*val2017"):
        open_captioned(tmp_path)
    for content, message in {"{": "is not JSON", "[]": 'has no list "images"', '{"images": []}': "has no list"}.items():
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            open_captioned(path)
    (tmp_path / "x.doc").write_text("")
    with pytest.raises(DataError, match="no list of images with captions"):
        open_captioned(tmp_path / "x.doc")
