"""Which columns of a table hold the image and the captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketclip.errors import DataError

IMAGE_COLUMNS = (
    "path", "image_path", "filepath", "file_path", "file_name", "filename", "image_name", "file", "image", "img",
)  # fmt: skip
CAPTION_COLUMNS = ("captions", "caption", "text", "texts", "title", "description", "alt_text", "sentences", "comment")
CLASS_COLUMNS = ("label", "class", "class_name", "category", "fine_label")  # where no caption column is


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what; empty: by their usual names. folder: where paths begin, None for the table's own."""

    image: str = ""
    captions: tuple[str, ...] = ()
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line: the image's bytes, or its path, "" where there is none."""

    image: bytes | str
    captions: list[str]
    metadata: Mapping[str, Any]


def choose(path: Path, names: Sequence[str], columns: Columns) -> tuple[str, list[str]]:
    """The column of images and those of captions, as asked for or by their usual names; raises DataError."""
    shown = ", ".join(repr(name[:40]) for name in names[:20]) or "none"
    known = {name.strip().casefold(): name for name in reversed(names)}
    missing = [name for name in (columns.image, *columns.captions) if name and name not in names]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}; its columns are {shown}")
    image = columns.image or next((known[name] for name in IMAGE_COLUMNS if name in known), "")
    if not image:
        raise DataError(f"{path}: has no image column of a known name; its columns are {shown}: name the image column")
    captions = list(columns.captions) or [
        known[name] for name in CAPTION_COLUMNS if name in known and known[name] != image
    ]
    captions = captions or [known[name] for name in CLASS_COLUMNS if name in known][:1]
    if not captions:
        raise DataError(
            f"{path}: has no caption column of a known name; its columns are {shown}: name the caption columns"
        )
    return image, captions
