"""The layout of `clip-benchmark`'s data sets, some forty of which are published so.

    classnames.txt                          a class a line
    zeroshot_classification_templates.txt   a prompt a line, `{c}` for the class
    SPLIT/0.tar, SPLIT/1.tar, ...           KEY.webp (or .jpg, .png) and KEY.cls, the class's number

Source: CLIP_benchmark (LAION), clip_benchmark/webdataset_builder.py.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pocketclip.data.images import LARGEST_IMAGE
from pocketclip.data.labelled.kinds import SPLITS, Dropped, Labelled
from pocketclip.data.rows import storable
from pocketclip.data.shards import IMAGE_EXTENSIONS, MAX_TEXT_BYTES, check_end, members_by_key
from pocketclip.errors import DataError
from pocketclip.files import text_lines

CLASSES, TEMPLATES, KIND = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"
SHARDS = "nshards.txt"
LARGEST_LIST = 1 << 26  # bytes
LONGEST_LABEL = 32  # bytes


class TarImages:
    """The tars of one split, read from their beginning to their end."""

    total: int | None = None

    def __init__(self, folder: Path, split: str) -> None:
        kind = lines_of(folder / KIND)
        if kind and kind[0] != "classification":
            raise DataError(f"{folder / KIND}: says {kind[0]!r}; of classes alone is known what to do with")
        self.paths = complete(split_tars(folder, split))
        self.classes = tuple(lines_of(folder / CLASSES))
        if not self.paths or not self.classes:
            raise DataError(f"{folder}: has no {CLASSES} with {split}/0.tar, ...")
        self.templates = tuple(line.replace("{c}", "{}") for line in lines_of(folder / TEMPLATES))

    @staticmethod
    def known(folder: Path) -> bool:
        """Whether a folder has this layout."""
        return any(split_tars(folder, split) for split in SPLITS)

    def items(self, dropped: list[Dropped]) -> Iterator[Labelled]:
        """See LabelledImages; raises DataError where a tar is damaged or ends early."""
        for path in self.paths:
            for name, image, text in rows_of_tar(path, "cls", dropped):
                if text.strip().isdigit() and len(text) < LONGEST_LABEL:
                    yield Labelled(name, image, int(text))
                else:
                    dropped.append(Dropped(name, "label that is no number"))


def rows_of_tar(path: Path, extension: str, dropped: list[Dropped]) -> Iterator[tuple[str, bytes, bytes]]:
    """Each row's name, its image and its file of the given extension; rows that lack one of the two are dropped.

    Raises DataError where the tar is damaged or ends early.
    """
    try:
        with path.open("rb") as file, tarfile.open(path, "r:") as tar:
            for key, files in members_by_key(path, tar, path.stat().st_size):
                name = f"{path.name}/{storable(key)}"
                image = next((files[end] for end in IMAGE_EXTENSIONS if end in files), None)
                if image is None:
                    dropped.append(Dropped(name, "no image"))
                elif image[1] > LARGEST_IMAGE:
                    dropped.append(Dropped(name, f"more than {LARGEST_IMAGE:,} bytes"))
                elif extension not in files:
                    dropped.append(Dropped(name, f"no {extension} file"))
                elif files[extension][1] > MAX_TEXT_BYTES:
                    dropped.append(Dropped(name, f"{extension} file of more than {MAX_TEXT_BYTES:,} bytes"))
                else:
                    yield name, _read(file, image), _read(file, files[extension])
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a whole tar file ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    check_end(path, end)


def _read(file: BinaryIO, span: tuple[int, int]) -> bytes:
    file.seek(span[0])
    return file.read(span[1])


def split_tars(folder: Path, split: str) -> list[Path]:
    """A split's tars, in the order of their numbers."""
    for name in SPLITS[split]:
        found = [path for path in (folder / name).glob("*.tar") if path.stem.isdecimal()]
        if found:
            return sorted(found, key=lambda path: int(path.stem))
    return []


def complete(tars: list[Path]) -> list[Path]:
    """The same; raises DataError where one of their numbers is missing, or there are fewer than nshards.txt says."""
    said = lines_of(tars[0].parent / SHARDS) if tars else []
    count = int(said[0]) if said and said[0].isdecimal() and len(said[0]) < LONGEST_LABEL else 0
    count = max(count, 1 + max((int(path.stem) for path in tars), default=-1))
    if len(tars) < count:
        there = {int(path.stem) for path in tars}
        first = next(number for number in range(count) if number not in there)
        raise DataError(
            f"{tars[0].parent}: {len(tars):,} of {count:,} tars are there, not {first}.tar; fetch the others"
        )
    return tars


def lines_of(path: Path) -> list[str]:
    """The lines of a text that are not empty; none where there is no such file."""
    return text_lines(path, LARGEST_LIST) if path.exists() else []
