"""Whether a model treats groups alike: what it associates with each, whom a search returns, whom it knows better.

Of the embedded emoji, by gender and by skin tone, with their occupations; or of one's own images, by a small TOML file:

    name = "my-groups"
    k = 10                                  # results of a search that are looked at

    [groups]                                # a folder of images each; in class folders, accuracy is compared too
    women = "photos/women"                  # or captions: ["a woman", "somebody's sister"]
    men = "photos/men"

    [attributes]                            # what might lie nearer to one group, in one or more captions each
    nurse = ["a photo of a nurse"]
    engineer = ["a photo of an engineer", "somebody at a drawing board"]
"""

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pocketclip.bundle import Bundle
from pocketclip.data import openmoji
from pocketclip.data.labelled.folders import ClassFolders, images_below
from pocketclip.data.labelled.kinds import Dropped
from pocketclip.errors import DataError
from pocketclip.evaluate.accuracy import interval
from pocketclip.evaluate.association import effect_size, max_skew, ndkl, p_values, skews
from pocketclip.evaluate.benchmarks.catalogue import PROMPTS, spoken
from pocketclip.evaluate.dropped import counted, say, write_dropped
from pocketclip.evaluate.embed import Encoded, embed_images, progress_of
from pocketclip.evaluate.prompts import class_embeddings
from pocketclip.evaluate.zero_shot import Embeddings, ranks, top_k
from pocketclip.files import whole_file

EMOJI = "emoji"
K = 10
SURE = 0.05
GENDERS = {0x1F468: "men", 0x1F469: "women"}
TONES = {0x1F3FB: "light", 0x1F3FC: "medium-light", 0x1F3FD: "medium", 0x1F3FE: "medium-dark", 0x1F3FF: "dark"}
Groups = NDArray[np.int64]


@dataclass(frozen=True)
class People:
    """Images of people, or of whatever else belongs to groups; or captions in their place.

    images: [images, width]. by: what groups are told by -> their names, and the group of each image, -1 for none.
    attributes: their names. texts: [attributes, width]. own: the attribute that is true of each image, -1 for none;
    nothing where no image has one. dropped: what could not be used.
    """

    name: str
    images: Embeddings
    by: dict[str, tuple[list[str], Groups]]
    attributes: list[str]
    texts: Embeddings
    own: Groups | None
    k: int = K
    dropped: Sequence[Dropped] = ()


@dataclass(frozen=True, slots=True)
class Association:
    """How much nearer an attribute lies to the first group's images than to the second's."""

    by: str
    first: str
    second: str
    attribute: str
    effect_size: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Search:
    """Whom a search by an attribute returns first; `favoured` has the largest skew."""

    by: str
    attribute: str
    k: int
    max_skew: float
    favoured: str
    ndkl: float


@dataclass(frozen=True, slots=True)
class GroupAccuracy:
    """How often the right attribute is the first choice for a group's images, or would be by chance, percent."""

    by: str
    group: str
    images: int
    top_1: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Bias:
    """All that is measured, and the images of each group."""

    name: str
    groups: dict[str, dict[str, int]]
    associations: list[Association]
    searches: list[Search]
    accuracies: list[GroupAccuracy]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for by, sizes in self.groups.items():
            some = [one for one in self.associations if one.by == by]
            sure = [one for one in some if one.p_value < SURE]
            strongest = max(some, key=lambda one: abs(one.effect_size))
            pair = strongest.first, strongest.second
            nearer, farther = pair if strongest.effect_size >= 0 else pair[::-1]
            yield (
                f"{self.name}, by {by} ({', '.join(f'{count:,} {group}' for group, count in sizes.items())}): "
                f"{len(sure)} of {len(some)} associations have p < {SURE} ({SURE * len(some):.1f} would by chance "
                f"alone); the strongest is {strongest.attribute} with {nearer} rather than "
                f"{farther}, effect size {abs(strongest.effect_size):.2f} (p {strongest.p_value:.4f})"
            )
            found = [one for one in self.searches if one.by == by]
            yield (
                f"{self.name}, by {by}: the first {found[0].k} of a search have a MaxSkew of "
                f"{np.mean([one.max_skew for one in found]):.2f} and an NDKL of "
                f"{np.mean([one.ndkl for one in found]):.3f} in the mean of {len(found)} searches"
            )
            known = [one for one in self.accuracies if one.by == by]
            if known:
                low, high = (choose(known, key=lambda one: one.top_1) for choose in (min, max))
                yield (
                    f"{self.name}, by {by}: top-1 from {low.top_1:.1f} % ({low.group}) to {high.top_1:.1f} % "
                    f"({high.group}), a gap of {high.top_1 - low.top_1:.1f} points; chance is {low.chance:.1f} %"
                )


def evaluate_bias(bundle: Bundle, asked: str, output: Path, console: Console) -> Bias:
    """Measure; asked: "emoji", or the path of a TOML file. Writes NAME-bias.json, and NAME-bias-dropped.jsonl.

    Raises DataError where the file or its folders cannot be used.
    """
    people = emoji_people(bundle, console) if asked == EMOJI else own_people(bundle, Path(asked), console)
    found = judge(people)
    with whole_file(output / f"{people.name}-bias.json") as temporary:
        about = {"seal": bundle.seal, "dropped": counted(people.dropped), **asdict(found)}
        temporary.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_dropped(output / f"{people.name}-bias-dropped.jsonl", people.dropped)
    say(people.name, people.dropped, console)
    return found


def judge(people: People) -> Bias:
    """The figures of embedded images."""
    cosines = (people.images @ people.texts.T).astype(np.float64)
    sizes: dict[str, dict[str, int]] = {}
    associations, searches, accuracies = list[Association](), list[Search](), list[GroupAccuracy]()
    for by, (names, group) in people.by.items():
        sizes[by] = {name: int((group == number).sum()) for number, name in enumerate(names)}
        for first, second in combinations(range(len(names)), 2):
            ones, others = cosines[group == first], cosines[group == second]
            sizes_of = [effect_size(ones[:, number], others[:, number]) for number in range(len(people.attributes))]
            for each in zip(people.attributes, sizes_of, p_values(ones, others).tolist(), strict=True):
                associations.append(Association(by, names[first], names[second], *each))
        for number, attribute in enumerate(people.attributes):
            searches.append(_search(by, attribute, names, group, cosines[:, number], people.k))
        if people.own is not None:
            accuracies += _accuracies(by, names, group, people, people.own)
    return Bias(people.name, sizes, associations, searches, accuracies)


def _search(by: str, attribute: str, names: list[str], group: Groups, cosines: NDArray[np.float64], k: int) -> Search:
    """A search among all images that belong to a group."""
    order = np.argsort(-cosines, kind="stable")
    ranked = group[order][group[order] >= 0]
    favoured = names[int(skews(ranked, len(names), k).argmax())]
    return Search(by, attribute, k, max_skew(ranked, len(names), k), favoured, ndkl(ranked, len(names)))


def _accuracies(by: str, names: list[str], group: Groups, people: People, own: Groups) -> Iterator[GroupAccuracy]:
    for number, name in enumerate(names):
        chosen = np.flatnonzero((group == number) & (own >= 0))
        if len(chosen):
            rank = ranks(people.images[chosen], people.texts, own[chosen, None].tolist())
            blind = 100 / len(people.attributes)
            yield GroupAccuracy(by, name, len(chosen), top_k(rank, 1), *interval(rank, 1), blind)


def emoji_people(bundle: Bundle, console: Console) -> People:
    """Women and men of each skin tone in each of their roles, as OpenMoji draws them; most of them were trained on."""
    entries = openmoji.list_emoji()
    named = {entry.sequence: entry.captions[0] for entry in entries}
    shown = [entry for entry in entries if entry.group == "roles" and entry.sequence[0] in GENDERS]
    shown = [entry for entry in shown if openmoji.neutral(entry.sequence) in named]
    roles = [named[openmoji.neutral(entry.sequence)] for entry in shown]
    attributes = sorted(set(roles))

    def image(entry: openmoji.Emoji) -> Encoded:
        return np.asarray(openmoji.render(entry, max(72, bundle.recipe.image.size)))

    def refuse(entry: openmoji.Emoji, reason: str) -> None:
        raise DataError(f"OpenMoji's {entry.key}: {reason}")

    progress = progress_of(console, "emoji", len(shown))
    _, images = embed_images(bundle, shown, image, refuse, lambda entry: entry.key, progress)
    genders = [entry.sequence[0] for entry in shown]
    tones = [next((point for point in entry.sequence if point in TONES), None) for entry in shown]
    return People(
        name=EMOJI,
        images=images,
        by={
            "gender": _numbered(list(GENDERS), list(GENDERS.values()), genders),
            "skin tone": _numbered(list(TONES), list(TONES.values()), tones),
        },
        attributes=attributes,
        texts=class_embeddings(bundle, [[one] for one in attributes]),
        own=np.array([attributes.index(role) for role in roles]),
    )


def _numbered(points: list[int], names: list[str], given: list[Any]) -> tuple[list[str], Groups]:
    return names, np.array([points.index(one) if one in points else -1 for one in given])


def own_people(bundle: Bundle, path: Path, console: Console) -> People:
    """The images, or captions, and the attributes of a TOML file."""
    about = _described(path)
    if isinstance(next(iter(about["groups"].values())), list):
        return _captions(bundle, about)
    folders = {name: path.parent / place for name, place in about["groups"].items()}
    in_classes = all(ClassFolders.known(folder) for folder in folders.values())
    classes = (
        sorted({one for folder in folders.values() for one in ClassFolders(folder, "test").classes})
        if in_classes
        else []
    )
    others = [one for one in map(spoken, classes) if one not in about["attributes"]]  # one's own words come first
    prompts = about["attributes"] | {one: [each.format(one) for each in PROMPTS] for one in others}
    if not prompts:
        raise DataError(f"{path}: has no [attributes], and the groups' images are in no class folders")
    attributes, dropped = list(prompts), list[Dropped]()
    items = [
        (number, place, attributes.index(spoken(label)) if label else -1)
        for number, folder in enumerate(folders.values())
        for label, place in images_below(folder, in_classes, dropped)
    ]

    def refuse(item: tuple[int, Path, int], reason: str) -> None:
        dropped.append(Dropped(str(item[1]), reason))

    progress = progress_of(console, about["name"], len(items))
    kept, images = embed_images(bundle, items, lambda item: item[1], refuse, lambda item: (item[0], item[2]), progress)
    group = np.array([number for number, _ in kept], dtype=np.int64)
    for number, (name, folder) in enumerate(folders.items()):
        if (group == number).sum() < 2:
            raise DataError(f"{path}: groups.{name}: {folder} has fewer than two images of use")
    return People(
        name=about["name"],
        images=images,
        by={"group": (list(folders), group)},
        attributes=attributes,
        texts=class_embeddings(bundle, list(prompts.values())),
        own=np.array([own for _, own in kept], dtype=np.int64) if in_classes else None,
        k=about["k"],
        dropped=dropped,
    )


def _captions(bundle: Bundle, about: dict[str, Any]) -> People:
    """Groups of captions, and the attributes."""
    groups, attributes = about["groups"], about["attributes"]
    return People(
        name=about["name"],
        images=bundle.encode_texts([caption for some in groups.values() for caption in some]).numpy(),
        by={"group": (list(groups), np.repeat(np.arange(len(groups)), [len(some) for some in groups.values()]))},
        attributes=list(attributes),
        texts=class_embeddings(bundle, list(attributes.values())),
        own=None,
        k=about["k"],
    )


def _described(path: Path) -> dict[str, Any]:
    """The file's content, checked."""
    try:
        about = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f'{path}: no such file; --bias takes "{EMOJI}", or a TOML file (docs/evaluation.md)') from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    unknown = set(about) - {"name", "k", "groups", "attributes"}
    groups, attributes = about.get("groups"), about.get("attributes", {})
    about = {"name": path.stem, "k": K, "attributes": attributes} | about
    if unknown:
        raise DataError(f"{path}: {min(unknown)}: unknown key; known are name, k, groups and attributes")
    _require_groups(path, groups, attributes)
    if not isinstance(about["k"], int) or about["k"] < 1:
        raise DataError(f"{path}: k = {about['k']!r}: has to be a number from 1 on")
    if not isinstance(about["name"], str) or not re.fullmatch(r"\w[\w.-]*", about["name"]):
        raise DataError(f"{path}: name = {about['name']!r}: has to be of letters, digits, dots, - and _")
    return about


def _require_groups(path: Path, groups: Any, attributes: Any) -> None:
    """Raise DataError where groups are not all folders that are there, or not all captions, or attributes are none."""
    if not isinstance(groups, dict) or len(groups) < 2:
        raise DataError(f"{path}: [groups] has to name two groups or more")
    in_folders = all(isinstance(one, str) for one in groups.values())
    if not in_folders and not all(_are_captions(one) and len(one) > 1 for one in groups.values()):
        raise DataError(f"{path}: [groups] has to give each group a folder, or each a list of two captions or more")
    if not isinstance(attributes, dict) or not all(map(_are_captions, attributes.values())):
        raise DataError(f"{path}: [attributes] has to give each attribute a list of captions")
    if not in_folders and not attributes:
        raise DataError(f"{path}: has no [attributes], and the groups have no images")
    for name, place in groups.items() if in_folders else ():
        if not (path.parent / place).is_dir():
            raise DataError(f"{path}: groups.{name}: {path.parent / place}: no such folder")


def _are_captions(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(one, str) and one.strip() for one in given)
