"""A place on disk -> its labelled images, whatever format they are in."""

from pathlib import Path
from typing import Protocol

from pocketclip.data.labelled.cifar import CifarImages
from pocketclip.data.labelled.folders import ClassFolders, ListedImages
from pocketclip.data.labelled.idx import IdxImages
from pocketclip.data.labelled.kinds import LabelledImages
from pocketclip.data.labelled.parquet import ParquetImages
from pocketclip.data.labelled.tars import TarImages
from pocketclip.errors import DataError


class _Format(Protocol):
    @staticmethod
    def known(place: Path, /) -> bool: ...

    def __call__(self, place: Path, split: str, /) -> LabelledImages: ...


# The most telling first: any folder of folders is taken for one of classes.
FORMATS: tuple[_Format, ...] = (TarImages, CifarImages, IdxImages, ListedImages, ParquetImages, ClassFolders)


def open_labelled(place: Path, split: str = "test") -> LabelledImages:
    """The images of one split at a place: a folder, or a Parquet file.

    split: "test", or "train" for what learns from the images' embeddings.
    Raises DataError where nothing known is there, or not that split.
    """
    if not place.exists():
        raise DataError(f"{place}: no such folder or file")
    for kind in FORMATS:
        if kind.known(place):
            return kind(place, split)
    raise DataError(
        f"{place}: holds no labelled images in a known format: clip-benchmark's tars, CIFAR's batches, IDX files, "
        "lists like Food-101's and Oxford's pets', Parquet of Hugging Face, or a folder for each class"
    )
