"""IDX files, in which MNIST, Fashion-MNIST and their kin come, compressed or not.

Source: LeCun, "The MNIST database": two zero bytes, the type of the values, the number of sides, each side as a
big-endian integer of four bytes, the values.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketclip.data.labelled.kinds import Dropped, Labelled
from pocketclip.errors import DataError

PREFIXES = {"test": ("t10k", "test"), "train": ("train",)}
UNSIGNED_BYTES = 8  # the type of all of them
LARGEST = 1 << 32  # bytes of values
SIDES = {1: "labels", 3: "images"}


class IdxImages:
    """The two files of one split in a folder."""

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __init__(self, folder: Path, split: str) -> None:
        paths = _paths(folder, split)
        if paths is None:
            raise DataError(f"{folder}: has no {PREFIXES[split][0]}-images-idx3-ubyte[.gz] with its labels")
        self.path = paths[0]
        self.images, self.labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(self.images) != len(self.labels):
            raise DataError(f"{paths[0]}: {len(self.images)} images, but {paths[1]} has {len(self.labels)} labels")
        self.total: int | None = len(self.images)

    @staticmethod
    def known(folder: Path) -> bool:
        """Whether a folder holds such files."""
        return any(_paths(folder, split) for split in PREFIXES)

    def items(self, dropped: list[Dropped]) -> Iterator[Labelled]:
        """See LabelledImages; grey becomes red, green and blue alike."""
        del dropped
        for number, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            yield Labelled(f"{self.path.name}/{number}", np.repeat(image[:, :, None], 3, axis=2), int(label))


def _paths(folder: Path, split: str) -> tuple[Path, Path] | None:
    for prefix in PREFIXES[split]:
        for end in ("", ".gz"):
            images, labels = (folder / f"{prefix}-{name}-ubyte{end}" for name in ("images-idx3", "labels-idx1"))
            if images.is_file() and labels.is_file():
                return images, labels
    return None


def read_idx(path: Path, sides: int) -> NDArray[np.uint8]:
    """The values of a file of unsigned bytes; raises DataError if it is damaged or has another number of sides.

    No more is read than the header says and a hostile one can ask for `LARGEST` bytes at most.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * sides)
            if len(header) < 4 + 4 * sides or header[:4] != bytes((0, 0, UNSIGNED_BYTES, sides)):
                raise DataError(f"{path}: not an IDX file of {SIDES[sides]}; fetch it again")
            shape = tuple(int(side) for side in np.frombuffer(header, ">u4", offset=4))
            size = math.prod(shape)
            if 0 in shape[1:]:
                raise DataError(f"{path}: says that its images have no pixels; fetch it again")
            if size > LARGEST:
                raise DataError(f"{path}: says that it has {size:,} bytes, more than {LARGEST:,}")
            values = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}; fetch it again") from None
    if len(values) != size:
        more = "more" if len(values) > size else f"{len(values):,}"
        raise DataError(f"{path}: says that it has {size:,} values and has {more}; fetch it again")
    return np.frombuffer(values, np.uint8).reshape(shape)
