"""Images in a folder of their class, as ImageNet's validation set by synsets, Caltech101 or anybody's own; and the same
with a list that says which images are for testing, as Food-101 and Oxford's pets come.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pocketclip.data.labelled.kinds import SPLITS, Dropped, Labelled
from pocketclip.data.rows import storable
from pocketclip.data.sources import IMAGE_SUFFIXES, OUTSIDE, inside
from pocketclip.errors import DataError
from pocketclip.files import text_lines

LISTS = {
    "test": ("meta/test.txt", "annotations/test.txt"),  # Food-101, Oxford-IIIT Pet
    "train": ("meta/train.txt", "annotations/trainval.txt"),
}
LISTED = "images"
LARGEST_LIST = 1 << 26  # bytes


class ClassFolders:
    """FOLDER/CLASS/.../IMAGE, or FOLDER/SPLIT/CLASS/.../IMAGE; names that begin with a dot are passed over."""

    templates: tuple[str, ...] = ()
    total: int | None = None

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = _split_of(folder, split)
        self.classes = tuple(map(storable, _folders(self.folder)))
        if not self.classes:
            raise DataError(f"{self.folder}: has no folder for each class; put each class's images into one")

    @staticmethod
    def known(folder: Path) -> bool:
        """Whether a folder has folders in it."""
        return folder.is_dir() and bool(_folders(folder))

    def items(self, dropped: list[Dropped]) -> Iterator[Labelled]:
        """See LabelledImages; in the order of the names."""
        dropped += [Dropped(name, "not in a class folder") for name in _files(self.folder) if _is_image(name)]
        for label in _folders(self.folder):
            for path, inner, names in sorted(os.walk(self.folder / label, onerror=_unreadable)):
                for name in sorted(name for name in names if not name.startswith(".")):
                    place = Path(path) / name
                    shown = storable(place.relative_to(self.folder).as_posix())
                    if _is_image(name):
                        yield Labelled(shown, place, storable(label))
                    else:
                        dropped.append(Dropped(shown, "file of another kind"))
                for link in sorted(name for name in inner if (Path(path) / name).is_symlink()):
                    dropped.append(Dropped((Path(path) / link).relative_to(self.folder).as_posix(), "link to a folder"))


class ListedImages:
    """Images that a list names, a line each: its path without the suffix, then whatever else.

    The class is the folder that the image lies in, or else its name without the number at its end.
    """

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __init__(self, folder: Path, split: str) -> None:
        path = _list(folder, split)
        if path is None:
            raise DataError(f"{folder}: has none of the lists {', '.join(LISTS[split])}")
        self.folder = (folder / LISTED).resolve()
        self.names = [line.split()[0] for line in text_lines(path, LARGEST_LIST) if not line.startswith("#")]
        self.total: int | None = len(self.names)

    @staticmethod
    def known(folder: Path) -> bool:
        """Whether a folder has such a list, and images."""
        return (folder / LISTED).is_dir() and any(_list(folder, split) for split in LISTS)

    def items(self, dropped: list[Dropped]) -> Iterator[Labelled]:
        """See LabelledImages; in the order of the list."""
        for name in self.names:
            label, _, stem = name.rpartition("/")
            path = inside(self.folder, f"{name}.jpg")
            if path is None:
                dropped.append(Dropped(name, OUTSIDE))
            else:
                yield Labelled(name, path, label or re.sub(r"_\d+$", "", stem))


def images_below(folder: Path, in_classes: bool, dropped: list[Dropped]) -> Iterator[tuple[str, Path]]:
    """All images of a folder, each with its class's folder, or "" where those are not asked for."""
    if in_classes:
        for item in ClassFolders(folder, "test").items(dropped):
            if isinstance(item.image, Path):
                yield str(item.label), item.image
        return
    for path, inner, names in sorted(os.walk(folder, onerror=_unreadable)):
        for name in sorted(name for name in names if not name.startswith(".")):
            if _is_image(name):
                yield "", Path(path) / name
            else:
                dropped.append(Dropped(name, "file of another kind"))
        dropped += [Dropped(name, "link to a folder") for name in sorted(inner) if (Path(path) / name).is_symlink()]


def _split_of(folder: Path, split: str) -> Path:
    """The folder of a split's class folders: that of its name, or for testing the whole, where it has no splits.

    ImageNet's `test` is a heap of images without labels, beside a `val` of class folders.
    """
    named = [folder / name for name in SPLITS[split] if (folder / name).is_dir()]
    if named:
        return next((one for one in named if _folders(one)), named[0])
    parts = {name for names in SPLITS.values() for name in names}
    if split != "test" or parts & set(_folders(folder)):
        raise DataError(f"{folder}: has no folder {SPLITS[split][0]!r} of class folders")
    return folder


def _list(folder: Path, split: str) -> Path | None:
    return next((folder / name for name in LISTS[split] if (folder / name).is_file()), None)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def _files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if entry.is_file())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        _unreadable(error)
        return []


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror}; make it readable, or move it away") from None
