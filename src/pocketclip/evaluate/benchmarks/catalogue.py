"""The benchmarks that are known by name, a TOML file each beside this one, and anybody's own folder as one.

title      what it is
kind       "classes" to tell apart, or "captions" to retrieve by; those of the second kind have nothing below `folders`
folders    where people have it, below the recipe's evaluate.folder
ignored    classes of the source that are none
prompts    `{}` stands for the class; the words are ours
[classes]  what the source calls a class = what a prompt calls it; in the order of the classes' numbers
"""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from pocketclip.data.labelled.captioned import is_captioned
from pocketclip.data.labelled.kinds import SPLITS, LabelledImages
from pocketclip.errors import DataError

PROMPTS = ("a photo of a {}", "a picture of a {}", "a drawing of a {}", "a {} seen from nearby", "one {}", "{}")
NEARLY = 0.8  # of difflib's likeness


@dataclass(frozen=True)
class Benchmark:
    """What is to be told apart, and in which words.

    keys: what the source calls each class, by its number here. classes: what figures call it, each otherwise.
    words: what prompts call it. order: the class's number here by its number in the source; None where it is not known.
    """

    name: str
    title: str
    prompts: tuple[str, ...]
    keys: tuple[str, ...]
    classes: tuple[str, ...]
    words: tuple[str, ...]
    order: tuple[int | None, ...]
    ignored: tuple[str, ...] = ()

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return numbers_of(self.keys)

    def number(self, label: int | str) -> int | None:
        """A class's number here by the source's number or name; None where it is not known."""
        if isinstance(label, str):
            return self._numbers.get(label, self._numbers.get(_folded(label)))
        return self.order[label] if 0 <= label < len(self.order) else None

    def prompts_by_class(self) -> list[list[str]]:
        """Each class's prompts."""
        return [[prompt.replace("{}", name) for prompt in self.prompts] for name in self.words]


@dataclass(frozen=True)
class Place:
    """A benchmark's name, where its files are, and whether it has classes or captions.

    known: whether it is the one of that name, rather than somebody's own.
    """

    name: str
    path: Path
    kind: str = "classes"
    known: bool = False


def known_benchmarks() -> list[str]:
    """The names of all that are known."""
    return sorted(
        file.name.removesuffix(".toml") for file in files(__package__).iterdir() if file.name.endswith(".toml")
    )


def find(asked: str, folder: Path) -> Place:
    """Where a benchmark lies.

    asked: NAME, looked for in the usual places below `folder`; NAME=PATH; or the PATH of one's own, whose name then is
        that of its folder, or any other NAME=PATH.
    Raises DataError where nothing is there, saying where it was looked for, and where two things could be meant.
    """
    name, given, path = asked.partition("=")
    if given:
        return _given(asked, name, Path(path))
    if asked not in known_benchmarks():
        own = Path(asked)
        if not own.exists():
            raise DataError(f"{asked}: no such folder and no benchmark of that name; {_known(asked)}")
        name = _named(own.resolve())
        if name in known_benchmarks():
            raise DataError(f"{asked}: if that is {name}, say {name}={asked}; if it is not, my-{name}={asked}")
        return _own(name, own)
    usual = [folder / name for name in _read(asked)["folders"]]
    for one in usual:
        if one.is_dir():
            return Place(asked, one, _read(asked)["kind"], known=True)
    raise DataError(
        f"{asked}: not found in {', '.join(map(str, usual))}; put it there, set evaluate.folder, or say {asked}=PATH"
    )


def describe(place: Place, source: LabelledImages) -> Benchmark:
    """The benchmark at a place, by its name's file; where there is none, by what the source itself says.

    Raises DataError where the source is another data set than its name says, or says nothing of its classes.
    """
    if place.known:
        found = _read(place.name)
        keys, classes = tuple(found["classes"]), tuple(found["classes"].values())
        order, ignored = _order(place, source, keys, classes), tuple(found["ignored"])
        return Benchmark(place.name, found["title"], tuple(found["prompts"]), keys, classes, classes, order, ignored)
    keys = source.classes
    if not keys:
        raise DataError(f"{place.path}: does not say what its classes are called")
    if len(keys) < 2:
        raise DataError(f"{place.path}: has one class alone, {keys[0]!r}; there is nothing to tell apart")
    prompts = tuple(template for template in source.templates if "{}" in template)
    words = keys if prompts else tuple(map(spoken, keys))  # names that come with prompts are made for them
    twice = [key for key, word in zip(keys, words, strict=True) if words.count(word) > 1]
    if twice and not prompts:
        raise DataError(f"{place.path}: classes {twice[0]!r} and {twice[1]!r} have one name in a prompt; rename one")
    # published lists have some names twice
    classes = tuple(f"{word} ({number})" if word in twice else word for number, word in enumerate(words))
    return Benchmark(place.name, place.name, prompts or PROMPTS, keys, classes, words, tuple(range(len(keys))))


def _order(place: Place, source: LabelledImages, keys: Sequence[str], classes: Sequence[str]) -> tuple[int | None, ...]:
    """Our number of each class that a source numbers: by its name where the names are ours, else in the same order.

    keys, classes: our classes, as their authors call them and as we do.
    """
    theirs, numbers = source.classes, numbers_of(classes) | numbers_of(keys)
    by_name = tuple(numbers.get(name, numbers.get(_folded(name))) for name in theirs)
    strangers = [name for name, number in zip(theirs, by_name, strict=True) if number is None]
    if source.templates and strangers and 2 * len(strangers) <= len(theirs):
        raise DataError(
            f"{place.path}: its classes {', '.join(map(repr, strangers[:5]))} ({len(strangers)} in all) are called "
            f"otherwise than {place.name}'s; say my-{place.name}={place.path}, which takes its own names and prompts"
        )
    if theirs and 2 * sum(number is not None for number in by_name) >= min(len(theirs), len(keys)):
        return by_name
    if theirs and len(theirs) != len(keys):
        raise DataError(
            f"{place.path}: has {len(theirs)} classes ({', '.join(theirs[:3])}, ...), {place.name} has {len(keys)} "
            f"({', '.join(keys[:3])}, ...); is it that data set?"
        )
    return tuple(range(len(keys)))


def numbers_of(keys: Sequence[str]) -> dict[str, int]:
    """Each class's number by its name, and by what is left of that in other writing where no other has the same."""
    common = Counter(map(_folded, keys))
    folded = {_folded(key): number for number, key in enumerate(keys) if common[_folded(key)] == 1}
    return folded | {key: number for number, key in enumerate(keys)}


def spoken(key: str) -> str:
    """A folder's name as a caption says it."""
    return key.replace("_", " ").replace("-", " ").strip()


def _folded(key: str) -> str:
    """A name without what its writers differ in: capitals, and what stands between words."""
    return re.sub(r"[^\w]|_", "", key).casefold()


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def _named(path: Path) -> str:
    """What one's own data set is called: its folder, and the one around it where that says no more than which part."""
    parts = {name for names in SPLITS.values() for name in names}
    return f"{path.parent.name}-{path.name}" if path.name in parts else path.stem if path.is_file() else path.name


def _given(asked: str, name: str, path: Path) -> Place:
    """What NAME=PATH means: a known benchmark, or one's own by a name that is not nearly a known one's."""
    if not path.exists():
        raise DataError(f"{path}: no such folder or file")
    if name in known_benchmarks():
        return Place(name, path, _read(name)["kind"], known=True)
    near = get_close_matches(name, known_benchmarks(), 1, NEARLY)
    if near and near[0] not in name:  # imagenet-v2 is a name, imagnet a mistake
        raise DataError(f"{asked}: no benchmark {name!r}; {_known(name)}")
    if not re.fullmatch(r"\w[\w.-]*", name):  # files are called after it
        raise DataError(f"{asked}: the name {name!r} has to be of letters, digits, dots, - and _")
    return _own(name, path)


def _own(name: str, path: Path) -> Place:
    return Place(name, path, "captions" if is_captioned(path) else "classes")


def _known(name: str) -> str:
    near = get_close_matches(name, known_benchmarks(), 1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known_benchmarks())}, or a folder"
