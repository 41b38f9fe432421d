"""Known benchmarks, where they are looked for, and which class is which."""

from pathlib import Path

import pytest

from labelled_samples import encoded, write_cifar, write_class_folders, write_clip_benchmark, write_coco, write_parquet
from pocketclip.data.labelled.source import open_labelled
from pocketclip.errors import DataError
from pocketclip.evaluate.benchmarks.catalogue import Benchmark, Place, describe, find, known_benchmarks, spoken

SIZES = {
    "caltech101": 101, "cifar10": 10, "cifar100": 100, "fashion-mnist": 10, "food101": 101, "imagenet": 1000,
    "pets": 37,
}  # fmt: skip


class Source:
    templates: tuple[str, ...] = ()
    total = None

    def __init__(self, *classes: str) -> None:
        self.classes = classes

    def items(self, _dropped):
        return iter(())


def known(name: str, *classes: str) -> Benchmark:
    return describe(Place(name, Path("x"), known=True), Source(*classes))


def test_all_benchmarks_are_known() -> None:
    assert set(known_benchmarks()) == {*SIZES, "coco", "flickr30k"}


@pytest.mark.parametrize("name", SIZES)
def test_each_benchmark_has_its_classes_and_prompts(name: str) -> None:
    benchmark = known(name)
    assert len(benchmark.keys) == SIZES[name]
    assert len({one.casefold() for one in benchmark.classes}) == SIZES[name], "two classes of one name"
    assert all(prompt.count("{}") == 1 for prompt in benchmark.prompts)
    assert len(set(benchmark.prompts)) == len(benchmark.prompts) >= 8
    for number, key in enumerate(benchmark.keys):
        assert benchmark.number(key) == number == benchmark.number(number)
    assert benchmark.number(SIZES[name]) is None
    assert benchmark.number(-1) is None
    assert benchmark.prompts_by_class()[3][0] == benchmark.prompts[0].replace("{}", benchmark.classes[3])


def test_imagenets_classes_are_in_the_order_of_their_synsets() -> None:
    benchmark = known("imagenet")
    assert list(benchmark.keys) == sorted(benchmark.keys)
    assert [benchmark.classes[number] for number in (0, 134, 207, 517, 999)] == [
        "tench", "crane bird", "golden retriever", "construction crane", "toilet paper",
    ]  # fmt: skip


def test_names_are_the_same_in_other_writing() -> None:
    pets = known("pets", *(key.replace("_", " ").lower() for key in reversed(known("pets").keys)))
    assert pets.number("Egyptian Mau") == pets.number("egyptian_mau") == pets.keys.index("Egyptian_Mau")
    assert pets.number(0) == 36, "a number means the source's own class of that number"
    assert pets.number("dodo") is None


def test_numbers_of_a_source_with_other_names_are_in_our_order() -> None:
    names = [f"class {number}" for number in range(10)]
    assert known("cifar10", *names).number(7) == 7
    with pytest.raises(DataError, match=r"has 9 classes \(class 0, class 1, class 2, \.\.\.\), cifar10 has 10"):
        known("cifar10", *names[:9])


def test_a_source_that_lacks_a_class_keeps_all_others_in_place() -> None:
    keys = known("cifar10").keys
    some = known("cifar10", *keys[:4], *keys[5:])
    assert [some.number(number) for number in range(9)] == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_where_benchmarks_are_found(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar10: not found in .*cifar-10-batches-py.*set evaluate\.folder, or say"):
        find("cifar10", tmp_path)
    write_cifar(tmp_path / "cifar-10-batches-py", {"test_batch": [0]}, ["a"])
    assert find("cifar10", tmp_path) == Place("cifar10", tmp_path / "cifar-10-batches-py", known=True)
    elsewhere = f"cifar10={tmp_path}"
    assert find(elsewhere, Path("x")) == Place("cifar10", tmp_path, known=True)
    assert find(str(tmp_path), Path("x")).name == tmp_path.name
    (tmp_path / "my" / "val").mkdir(parents=True)
    assert find(str(tmp_path / "my" / "val"), Path("x")).name == "my-val", "or it would be a split of that name"
    for asked, message in {
        "cifar1": "no such folder and no benchmark of that name; did you mean cifar10",
        "zzz": "known are caltech101, cifar10, ",
        f"cifar11={tmp_path}": "no benchmark 'cifar11'; did you mean cifar10",
        f"cifar10={tmp_path}/x": "no such folder or file",
        f"imagnet={tmp_path}": "no benchmark 'imagnet'; did you mean imagenet",
        f"a b={tmp_path}": "the name 'a b' has to be of letters",
        f"../a={tmp_path}": "has to be of letters",
    }.items():
        with pytest.raises(DataError, match=message):
            find(asked, tmp_path)


def test_ones_own_folder(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "my_set", {"hot_dog/a.png": encoded("red"), "not-hot-dog/b.png": encoded("blue")})
    place = find(str(tmp_path / "my_set"), tmp_path)
    benchmark = describe(place, open_labelled(place.path))
    assert (benchmark.name, benchmark.classes) == ("my_set", ("hot dog", "not hot dog"))
    assert benchmark.number("not-hot-dog") == 1
    assert spoken("a_b-c ") == "a b c"


def test_ones_own_folder_may_have_any_name(tmp_path: Path) -> None:
    """A known benchmark is meant where its name is said, and never because a folder happens to be called so."""
    pets = tmp_path / "pets"
    write_class_folders(pets, {"cat/a.png": encoded("red"), "dog/b.png": encoded("blue")})
    with pytest.raises(DataError, match=r"if that is pets, say pets=\S+/pets; if it is not, my-pets=\S+/pets"):
        find(str(pets), tmp_path)
    for name in ("my-pets", "imagenet-v2"):
        place = find(f"{name}={pets}", tmp_path)
        assert place == Place(name, pets)
        assert describe(place, open_labelled(pets)).classes == ("cat", "dog")


def test_classes_that_differ_in_signs_alone_are_told_apart(tmp_path: Path) -> None:
    names = ["C", "C#", "C++", "c", "1.5", "15"]
    write_class_folders(tmp_path / "x", {f"{name}/a.png": encoded("red") for name in names})
    benchmark = describe(find(str(tmp_path / "x"), tmp_path), open_labelled(tmp_path / "x"))
    assert sorted(benchmark.keys) == sorted(names)
    assert [benchmark.number(key) for key in benchmark.keys] == list(range(6))
    write_class_folders(tmp_path / "y", {"hot_dog/a.png": encoded("red"), "hot-dog/a.png": encoded("red")})
    with pytest.raises(DataError, match="classes 'hot-dog' and 'hot_dog' have one name in a prompt"):
        describe(find(str(tmp_path / "y"), tmp_path), open_labelled(tmp_path / "y"))
    write_class_folders(tmp_path / "z", {"dog/a.png": encoded("red")})
    with pytest.raises(DataError, match="has one class alone, 'dog'"):
        describe(find(str(tmp_path / "z"), tmp_path), open_labelled(tmp_path / "z"))


def test_folders_as_others_leave_them_are_found(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "caltech101", {"Annotations/ant/x.mat": b"", "101_ObjectCategories/ant/a.png": b""})
    assert find("caltech101", tmp_path).path == tmp_path / "caltech101" / "101_ObjectCategories"
    write_cifar(tmp_path / "cifar10" / "cifar-10-batches-py", {"test_batch": [0]}, ["a"])
    assert find("cifar10", tmp_path).path == tmp_path / "cifar10" / "cifar-10-batches-py"


def test_coco_is_retrieval_whatever_its_folder_is_called(tmp_path: Path) -> None:
    write_coco(tmp_path / "photos", {"1.jpg": (encoded("red", "JPEG"), ["red"])})
    assert find(str(tmp_path / "photos"), tmp_path).kind == "captions"


def test_a_clip_benchmark_folder_brings_its_prompts(tmp_path: Path) -> None:
    rows = [{"png": encoded("red"), "cls": b"1"}]
    write_clip_benchmark(tmp_path, rows, ["T-shirt", "dog"], ["a good photo of a {c}.", "no place for a class"])
    benchmark = describe(Place("x", tmp_path), open_labelled(tmp_path))
    assert benchmark.prompts_by_class() == [["a good photo of a T-shirt."], ["a good photo of a dog."]]


def test_a_source_without_names_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [encoded("red")], ["dog"])
    place = find(str(tmp_path / "x.parquet"), tmp_path)
    with pytest.raises(DataError, match="does not say what its classes are called"):
        describe(place, open_labelled(place.path))


def test_names_of_ours_are_found_too_and_strangers_are_not_left_out() -> None:
    names = [word if number % 2 else key for number, (key, word) in enumerate(
        zip(known("caltech101").keys, known("caltech101").words, strict=True)
    )]  # fmt: skip
    assert known("caltech101", *names).order == tuple(range(101))
    source = Source("background", *names[:-3], "a stranger")
    source.templates = ("a photo of a {}",)
    with pytest.raises(DataError, match=r"its classes 'background', 'a stranger' \(2 in all\) are called otherwise"):
        describe(Place("caltech101", Path("x"), known=True), source)


def test_two_classes_of_one_name_stay_two() -> None:
    source = Source("missile", "projectile", "missile")
    source.templates = ("a {} on a launcher", "one {}")
    found = describe(Place("mine", Path("x")), source)
    assert found.classes == ("missile (0)", "projectile", "missile (2)")
    assert found.prompts_by_class()[2] == ["a missile on a launcher", "one missile"] == found.prompts_by_class()[0]
