"""Bytes -> pixels: the one path that training, evaluation and search share.

Images come from outside, so size and format are judged from the bytes before anything is decoded.
"""

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from torch import Tensor

    from pocketclip.recipe.schema import ImageSettings

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000


class BadImage(Exception):
    """An image that cannot be used; the message is the reason that rows are counted under."""


def open_image(data: bytes, at_least: int = 0, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a JPEG, PNG or WebP to RGB, upright by its EXIF, transparency on white.

    at_least: sides that suffice, pixels; a much larger JPEG is then decoded at a half, a quarter or an eighth of its
        size, which libjpeg does in a fraction of the time. 0: whole.
    Raises BadImage with one of a few fixed reasons.
    """
    return decoded(judged(data, most_pixels), at_least)


def judged(data: bytes, most_pixels: int) -> Image.Image:
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
    if at_least and image.format == "JPEG":
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


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Shrink or grow the short side to `size` (bicubic, antialiased), cut the middle: uint8 [size, size, 3]."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def decode(data: bytes, size: int) -> NDArray[np.uint8]:
    """Encoded bytes -> uint8 [size, size, 3]; raises BadImage."""
    return to_square(open_image(data), size)


def normalise(pixels: "Tensor", settings: "ImageSettings") -> "Tensor":
    """uint8 [batch, size, size, 3] -> float32 [batch, 3, size, size], 0-1, less the mean, over the std.

    Runs on the device where the pixels lie.
    """
    # Computed as [batch, size, 3 size] in the order in which the values lie: ten times faster than by channel, and the
    # result is "channels last", as convolutions want it.
    batch, size = pixels.shape[:2]
    values = pixels.reshape(batch, size, 3 * size).float()
    factor = values.new_tensor([1 / (255 * std) for std in settings.std]).repeat(size)
    offset = values.new_tensor([-mean / std for mean, std in zip(settings.mean, settings.std, strict=True)]).repeat(
        size
    )
    return values.mul_(factor).add_(offset).view(batch, size, size, 3).permute(0, 3, 1, 2)
