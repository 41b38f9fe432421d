"""Images and captions of anybody's, each with each: a figure, with its numbers beside it."""

import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.data.images import LARGEST_IMAGE, BadImage, Pixels, open_image, read_file, to_square
from pocketclip.errors import DataError
from pocketclip.files import text_lines, whole_file
from pocketclip.show.explanation import explanations
from pocketclip.show.plots import SOFTWARE, cosines, png

THUMBNAIL = 160  # pixels
MOST = 20  # images or captions, of which a figure can still be read
LONGEST = 1 << 20  # bytes of a file of captions


def write_matrix(
    images: Sequence[Path], captions: Sequence[str], matrix: NDArray[np.floating[Any]], output: Path
) -> None:
    """Write a figure of thumbnails over their cosines with captions, and the same numbers as `output` with .csv.

    matrix: [captions, images]. Raises DataError where an image cannot be shown.
    """
    require_free(output, ".csv")
    thumbnails = [thumbnail(path) for path in images]
    _write_png(output, png(partial(cosines, thumbnails, captions, matrix)))
    with (
        whole_file(output.with_suffix(".csv")) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["caption", *map(str, images)])
        for caption, row in zip(captions, matrix, strict=True):
            writer.writerow([caption, *(f"{value:.6f}" for value in row)])


def write_explanations(
    pixels: Pixels,
    captions: Sequence[str],
    values: Sequence[float],
    blanks: Sequence[float],
    patches: Sequence[NDArray[np.floating[Any]]],
    output: Path,
) -> None:
    """Write the figure of `explanations`, and the same numbers as `output` with .json.

    pixels: as the model saw them. values, blanks: the image's cosine with each caption, and that of its mean colour.
    """
    require_free(output, ".json")
    _write_png(output, png(partial(explanations, pixels, captions, values, patches)))
    table = [
        {"caption": caption, "cosine": value, "cosine_of_mean_colour": blank, "patches": np.asarray(one).tolist()}
        for caption, value, blank, one in zip(captions, values, blanks, patches, strict=True)
    ]
    with whole_file(output.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_captions(path: Path) -> list[str]:
    """The lines of a file that are not empty; raises DataError where there is none."""
    captions = text_lines(path, LONGEST)
    if not captions:
        raise DataError(f"{path}: holds no caption; write one a line")
    return captions


def require_readable(images: Sequence[Path], captions: Sequence[str]) -> None:
    """Raise DataError where a figure would have more images or captions than can be read."""
    for what, count in (("images", len(images)), ("captions", len(captions))):
        if count > MOST:
            raise DataError(f"{count} {what}: more than {MOST} cannot be read in one figure; make several")


def thumbnail(path: Path) -> Pixels:
    """An image's middle square, upright by its EXIF; raises DataError."""
    try:
        return to_square(open_image(read_file(path, LARGEST_IMAGE), THUMBNAIL), THUMBNAIL)
    except BadImage as error:
        raise DataError(f"{path}: {error}") from None


def require_free(figure: Path, data: str) -> None:
    """Raise DataError where a figure, or the file of its numbers beside it, would replace what is not an earlier one.

    data: the suffix of that file.
    """
    if figure.suffix.lower() != ".png":
        raise DataError(f"{figure}: the figure is a PNG; let its name end with .png")
    if is_own(figure):
        return
    for path in (figure, figure.with_suffix(data)):
        if path.exists():
            raise DataError(f"{path}: is there, and not a figure of PocketCLIP's; choose another --output")


def is_own(figure: Path) -> bool:
    """Whether a file is a figure that was drawn here."""
    try:
        with Image.open(figure, formats=["PNG"]) as image:
            return image.info.get("Software") == SOFTWARE
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def require_own_pictures(folder: Path, known: str = "") -> None:
    """Raise DataError where a folder of figures, which is to be replaced, holds something of another hand.

    known: a file that is no figure's and may be replaced.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name != known and not is_own(path.with_suffix(".png")):
            raise DataError(f"{path}: no report wrote it, and {folder} would be replaced; move it away")


def _write_png(path: Path, content: bytes) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
