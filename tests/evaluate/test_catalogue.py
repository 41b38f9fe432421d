"""Known benchmarks, where they are looked for, and which class is which."""

from pathlib import Path

import pytest

from labelled_samples import encoded, write_cifar, write_class_folders, write_clip_benchmark, write_parquet
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
    return describe(Place(name, Path("x")), Source(*classes))


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
    assert find("cifar10", tmp_path) == Place("cifar10", tmp_path / "cifar-10-batches-py")
    elsewhere = f"cifar10={tmp_path}"
    assert find(elsewhere, Path("x")) == Place("cifar10", tmp_path)
    assert find(str(tmp_path), Path("x")).name == tmp_path.name
    (tmp_path / "my" / "val").mkdir(parents=True)
    assert find(str(tmp_path / "my" / "val"), Path("x")).name == "my-val", "or it would be a split of that name"
    for asked, message in {
        "cifar1": "no such folder and no benchmark of that name; did you mean cifar10",
        "zzz": "known are caltech101, cifar10, ",
        "cifar11=x": "no benchmark 'cifar11'; did you mean cifar10",
        f"cifar10={tmp_path}/x": "no such folder or file",
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
