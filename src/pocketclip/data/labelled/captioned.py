"""Images with several captions each, as benchmarks of retrieval come: COCO, Flickr, clip-benchmark's tars, any table.

Sources: Chen et al. 2015, "Microsoft COCO captions"; Karpathy and Fei-Fei 2015, whose `dataset_coco.json` and
`dataset_flickr30k.json` say which images the field tests on.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pocketclip.data.columns import Columns
from pocketclip.data.labelled.kinds import SPLITS, Dropped
from pocketclip.data.labelled.tars import complete, lines_of, rows_of_tar, split_tars
from pocketclip.data.rows import storable
from pocketclip.data.sources import OUTSIDE, inside, texts_in
from pocketclip.data.tables import LARGEST_JSON, SUFFIXES, Table
from pocketclip.errors import DataError

LISTS = ("dataset_*.json", "annotations/captions_val*.json", "captions_val*.json")  # Karpathy's, COCO's
FOLDERS = (
    "images",
    "Images",
    "flickr30k-images",
    "flickr30k_images",
    "flickr-images",
    "",
)  # beside a list, or above


@dataclass(frozen=True, slots=True)
class Captioned:
    """An image with its captions, before anybody looked at it; else as `Labelled`."""

    name: str
    image: bytes | Path
    captions: Sequence[str]


class CaptionedSource(Protocol):
    """A source's images for testing. total: images, at most; None where nobody knows before they are read."""

    total: int | None

    def items(self, dropped: list[Dropped]) -> Iterator[Captioned]:
        """The images, in the source's order. dropped: takes what is no image with captions."""
        ...


class CaptionedTars:
    """clip-benchmark's layout for retrieval: KEY.webp (or .jpg, .png) and KEY.txt, a caption a line."""

    total: int | None = None

    def __init__(self, folder: Path) -> None:
        self.paths = complete(split_tars(folder, "test"))

    @staticmethod
    def known(folder: Path) -> bool:
        """Whether a folder says that it has this layout."""
        return lines_of(folder / "dataset_type.txt") == ["retrieval"] and bool(split_tars(folder, "test"))

    def items(self, dropped: list[Dropped]) -> Iterator[Captioned]:
        """See CaptionedSource; raises DataError where a tar is damaged or ends early."""
        for path in self.paths:
            for name, image, text in rows_of_tar(path, "txt", dropped):
                yield Captioned(name, image, text.decode("utf-8", errors="replace").splitlines())


class KarpathyTest:
    """The test images of one of Karpathy's lists: {"images": [{"filename", "split", "sentences": [{"raw"}]}]}."""

    def __init__(self, path: Path, images: Sequence[Any]) -> None:
        tests = [one for one in images if isinstance(one, dict) and one.get("split") == "test"]
        self.images = tests
        self.total: int | None = len(tests)
        if not tests:
            raise DataError(f'{path}: has no image whose split is "test"')
        self.root = _root(path, (_name(one) for one in tests))

    def items(self, dropped: list[Dropped]) -> Iterator[Captioned]:
        """See CaptionedSource."""
        for one in self.images:
            file = inside(self.root, _name(one))
            if file is None:
                dropped.append(Dropped(_name(one), OUTSIDE))
            else:
                yield _captioned(_name(one), file, texts_in(one.get("sentences")))


class CaptionedTable:
    """A table, or COCO's annotations, as `data.tables` reads them."""

    def __init__(self, path: Path, folder: Path | None = None) -> None:
        self.table = Table.look(path, Columns(folder=folder))
        self.total = self.table.total

    def items(self, dropped: list[Dropped]) -> Iterator[Captioned]:
        """See CaptionedSource; lines of no use are named by their table, which counts them."""
        reasons: Counter[str] = Counter()
        for found in self.table.found(reasons):
            yield _captioned(found.name, found.image, found.captions)
        dropped += [Dropped(self.table.path.name, reason) for reason, count in reasons.items() for _ in range(count)]


def open_captioned(place: Path, name: str = "") -> CaptionedSource:
    """The images for testing at a place.

    name: of the data set, where lists of several lie together.
    place: a folder of clip-benchmark's, of COCO's (`annotations/captions_val2017.json` and `val2017`), with one of
        Karpathy's lists, or with Hugging Face's test-*.parquet; or a list or a table itself.
    Raises DataError where nothing of that is there.
    """
    if place.is_file():
        if place.suffix.lower() not in SUFFIXES:
            raise DataError(f"{place}: no list of images with captions; known are {', '.join(SUFFIXES)}")
        return _list(place) if place.suffix.lower() == ".json" else CaptionedTable(place)
    if CaptionedTars.known(place):
        return CaptionedTars(place)
    for pattern in LISTS:
        found = sorted(place.glob(pattern), key=lambda path: (path.stem == f"dataset_{name}", path))
        if found:
            return _list(found[-1])  # of COCO's years the last
    tables = [path for name in SPLITS["test"] for path in sorted(place.glob(f"**/{name}-*.parquet"))]
    if len(tables) == 1:
        return CaptionedTable(tables[0])
    raise DataError(
        f"{place}: holds no images with captions in a known format: clip-benchmark's tars of retrieval, COCO's "
        "annotations/captions_val2017.json, Karpathy's dataset_*.json, or one test-*.parquet"
    )


def is_captioned(place: Path) -> bool:
    """Whether what lies at a place of one's own is for retrieval rather than for classes."""
    if place.is_file():
        return place.suffix.lower() in set(SUFFIXES) - {".parquet"}
    return CaptionedTars.known(place) or any(next(place.glob(pattern), None) for pattern in LISTS)


def _list(path: Path) -> CaptionedSource:
    """One of Karpathy's lists, or COCO's annotations."""
    if path.stat().st_size > LARGEST_JSON:
        raise DataError(f"{path}: has more than {LARGEST_JSON:,} bytes, too many for one JSON; write it as JSON Lines")
    try:
        found = json.loads(path.read_bytes())
        images = found["images"] if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: is not JSON; fetch or write it again") from None
    except KeyError:
        images = None
    if not isinstance(images, list) or not images:
        raise DataError(f"{path}: has no list \"images\"; known are COCO's annotations and Karpathy's lists")
    if isinstance(images[0], dict) and "sentences" in images[0]:
        return KarpathyTest(path, images)
    names = (one.get("file_name", "") for one in images if isinstance(one, dict))
    return CaptionedTable(path, _root(path, map(str, names)))


def _captioned(name: str, image: bytes | Path, captions: Iterable[str]) -> Captioned:
    """With texts as files can hold them: an escape may be half of a pair."""
    return Captioned(storable(name), image, list(map(storable, captions)))


def _name(image: dict[str, Any]) -> str:
    parts = (image.get("filepath"), image.get("filename"))  # COCO's lists have a folder for each year
    return "/".join(part for part in parts if isinstance(part, str))


def _root(path: Path, names: Iterable[str]) -> Path:
    """The folder in which a list's images lie: the first usual one that has one of the first hundred."""
    year = re.sub(r"^captions_|\.json$", "", path.name)
    roots = [
        folder / name for folder in (path.parent, path.parent.parent) for name in (year, f"images/{year}", *FOLDERS)
    ]
    some = [name for name, _ in zip(names, range(100), strict=False)]
    for root in roots:
        real = root.resolve()
        if any(name and (found := inside(real, name)) and found.is_file() for name in some):
            return real
    raise DataError(f"{path}: none of its images ({', '.join(some[:2])}, ...) is in {', '.join(map(str, roots))}")
