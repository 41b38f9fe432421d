"""Bytes -> pixels: the one path that training, evaluation and search share.

Images come from outside, so size and format are judged from the bytes before anything is decoded.
"""

import io
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from simplejpeg import decode_jpeg

if TYPE_CHECKING:
    from torch import Tensor

    from pocketclip.recipe.schema import ImageSettings

FORMATS = ("JPEG", "PNG", "WEBP")
JPEGS = ("JPEG", "MPO")  # Pillow's name of a JPEG with another behind it, as phones write them
MAX_PIXELS = 50_000_000
LARGEST_IMAGE = 50_000_000  # bytes
LONGEST = 8  # squares in a row
Pixels = NDArray[np.uint8]


class BadImage(Exception):
    """An image that cannot be used; the message is the reason that rows are counted under."""


def read_file(path: Path, most: int) -> bytes:
    """A file's bytes; raises BadImage if it is too large, no plain file, or cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a named pipe would be waited for
            raise BadImage("not a plain file")
        if status.st_size > most:
            raise BadImage(f"more than {most:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from None


def open_image(data: bytes, at_least: int = 0, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a JPEG, PNG or WebP to RGB, upright by its EXIF, transparency on white.

    at_least: sides that suffice, pixels; a much larger JPEG is then decoded at a half, a quarter or an eighth of its
        size, which libjpeg does in a fraction of the time. 0: whole.
    Raises BadImage with one of a few fixed reasons.
    """
    return decoded(judged(data, most_pixels), at_least)


def judged(data: bytes, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image by its header, not decoded yet; raises BadImage where it is none or too large."""
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:  # Pillow's own limit, which holds where ours is higher
        raise BadImage(f"more than {min(most_pixels, 2 * (Image.MAX_IMAGE_PIXELS or 0))} pixels") from None
    except Exception:
        raise BadImage("no JPEG, PNG or WebP") from None
    if image.width * image.height > most_pixels:
        raise BadImage(f"more than {most_pixels} pixels")
    return image


def decoded(image: Image.Image, at_least: int) -> Image.Image:
    """The pixels of an image that was judged, in place where it is RGB and upright: copies take as long as decoding."""
    if at_least and image.format in JPEGS:
        image.draft(image.mode, (at_least, at_least))
    try:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255 instead of scaling
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            background = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(background, image.convert("RGBA"))
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception:
        raise BadImage("damaged image") from None


def orientation(image: Image.Image) -> int:
    """How a judged image has to be turned, by its EXIF: 1 not at all, 5 to 8 by a right angle. Raises BadImage."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        raise BadImage("damaged image") from None


def to_pixels(data: bytes, image: Image.Image, shrink: int) -> Pixels:
    """The pixels of an image that was judged, upright: uint8 [height, width, 3], at 1 / `shrink` of its size.

    shrink: 1, or for a JPEG 2, 4 or 8; sides are rounded up. Raises BadImage.
    """
    if image.format in JPEGS and image.mode in ("L", "RGB") and orientation(image) == 1:
        try:  # the same library as Pillow's and the same pixels, without copies
            height, width = -(-image.height // shrink), -(-image.width // shrink)
            pixels: Pixels = decode_jpeg(data, "RGB", min_height=height, min_width=width, min_factor=shrink)
            if pixels.shape == (height, width, 3):  # a file made to be misread may say one thing to each library
                return pixels
        except ValueError:  # damaged, or of a kind that Pillow can read
            pass
    return np.array(decoded(image, min(image.size) // shrink if shrink > 1 else 0))


@dataclass(frozen=True, slots=True)
class Cut:
    """Which square of an upright image a model sees.

    A part of the image, `width` x `height` pixels from (`left`, `top`) on, becomes `columns` x `rows` pixels large; the
    square's corner lies at (`right`, `down`) in that.
    """

    left: int
    top: int
    width: int
    height: int
    columns: int
    rows: int
    right: int = 0
    down: int = 0


def middle(width: int, height: int, size: int) -> Cut:
    """The short side becomes `size`, its middle is seen: the geometry of OpenCLIP's evaluation (torchvision's)."""
    short = min(width, height)
    columns, rows = size * width // short, size * height // short
    return Cut(0, 0, width, height, columns, rows, round((columns - size) / 2), round((rows - size) / 2))


def is_long(cut: Cut, size: int) -> bool:
    """Whether what is not seen is so much that it must not even be resized: few bytes could ask for gigabytes."""
    return max(cut.columns, cut.rows) > LONGEST * size


def to_square(image: Image.Image, size: int, cut: Cut | None = None) -> Pixels:
    """An RGB image's middle, or another cut of it, by Pillow (bicubic, antialiased): uint8 [size, size, 3]."""
    cut = cut or middle(*image.size, size)
    if (cut.width, cut.height) != image.size:
        image = image.crop((cut.left, cut.top, cut.left + cut.width, cut.top + cut.height))
    edges = (cut.right, cut.down, cut.right + size, cut.down + size)
    if is_long(cut, size):
        across, along = cut.width / cut.columns, cut.height / cut.rows
        box = (edges[0] * across, edges[1] * along, edges[2] * across, edges[3] * along)
        square = image.resize((size, size), Image.Resampling.BICUBIC, box)
    else:
        square = image.resize((cut.columns, cut.rows), Image.Resampling.BICUBIC).crop(edges)
    return np.asarray(square, dtype=np.uint8)


def normalise(pixels: "Tensor", settings: "ImageSettings") -> "Tensor":
    """uint8 [batch, size, size, 3] -> float32 [batch, 3, size, size], 0-1, less the mean, over the std.

    Runs on the device where the pixels lie.
    """
    # Computed as [batch, size, 3 size] in the order in which the values lie: ten times faster than by channel, and the
    # result is "channels last", as convolutions want it.
    batch, size = pixels.shape[:2]
    values = pixels.reshape(batch, size, 3 * size).float()
    factor, offset = values.new_empty(2, size, 3)
    for channel, (mean, std) in enumerate(zip(settings.mean, settings.std, strict=True)):
        factor[:, channel], offset[:, channel] = 1 / (255 * std), -mean / std  # on a GPU without waiting for it
    return values.mul_(factor.flatten()).add_(offset.flatten()).view(batch, size, size, 3).permute(0, 3, 1, 2)
