"""A teacher's embeddings of a split, as `pocketclip teach` keeps them beside the shards.

teacher/SPLIT-FINGERPRINT/images.npy      float16 [rows, width], NaN where the teacher cannot use an image
teacher/SPLIT-FINGERPRINT/captions.npy    float16 [captions, width]: all of row 0, then all of row 1, ...
teacher/SPLIT-FINGERPRINT/offsets.npy     int64 [rows + 1]: row i's captions are those from offsets[i] to offsets[i + 1]
teacher/SPLIT-FINGERPRINT/teacher.json    which bundle it was, its scale; written last
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketclip.errors import DataError

IMAGES, CAPTIONS, OFFSETS, DESCRIPTION = "images.npy", "captions.npy", "offsets.npy", "teacher.json"
CHANGED = -1  # in the place of a caption's number: it is none that the teacher was shown


@dataclass(frozen=True, slots=True)
class Taught:
    """What a teacher says of the pairs of a batch.

    images: float16 [pairs, its width]. texts: float16 [pairs * captions, its width], NaN where it was not shown that
    caption. scale: what it multiplies cosines with.
    """

    images: Tensor
    texts: Tensor
    scale: float

    def pin_memory(self) -> "Taught":
        """The same in page-locked memory."""
        return replace(self, images=self.images.pin_memory(), texts=self.texts.pin_memory())


class Teacher:
    """The embeddings in a folder; the files are opened where they are read, in a worker or here.

    Raises DataError where they do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.scale = float(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["scale"])
            whole = self._offsets[-1] == len(self._captions) and len(self._offsets) == len(self._images) + 1
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            whole = False
        if not whole:
            raise DataError(f"{folder}: damaged; delete it and run `pocketclip teach`")

    @cached_property
    def _images(self) -> NDArray[np.float16]:
        return _mapped(self.folder / IMAGES)

    @cached_property
    def _captions(self) -> NDArray[np.float16]:
        return _mapped(self.folder / CAPTIONS)

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        return _mapped(self.folder / OFFSETS)

    def __getstate__(self) -> dict[str, object]:
        """A copy in a worker opens the files for itself."""
        return {"folder": self.folder, "scale": self.scale}

    def knows(self, row: int) -> bool:
        """Whether it could use the row's image."""
        return bool(np.isfinite(self._images[row, 0]))

    def of(self, rows: Sequence[int], numbers: Sequence[int]) -> Taught:
        """What it says of some rows, and of the same number of captions of each, one row's after another's.

        numbers: which of its row's captions each one is, or CHANGED.
        """
        which, places = np.array(rows, dtype=np.int64), np.array(numbers, dtype=np.int64)
        first = np.repeat(self._offsets[which], len(places) // max(1, len(which)))
        texts = self._captions[first + places.clip(0)]
        texts[places == CHANGED] = np.nan
        return Taught(torch.from_numpy(self._images[which]), torch.from_numpy(texts), self.scale)


def _mapped(path: Path) -> NDArray[Any]:
    found: NDArray[Any] = np.load(path, mmap_mode="r")
    return found
