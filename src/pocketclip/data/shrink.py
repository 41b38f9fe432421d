"""Encoded images -> smaller ones, as they are kept in shards."""

import io

import numpy as np
from PIL import Image

from pocketclip.data.images import MAX_PIXELS, BadImage, decoded, judged

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
LONGEST_SIDE = 65_500  # pixels; a JPEG has no more


def shrink(data: bytes, short_side: int, quality: int, most_pixels: int = MAX_PIXELS) -> tuple[bytes, str]:
    """Encoded bytes -> encoded bytes whose short side has at most `short_side` pixels, and their extension.

    An image that is small enough stays as it is, byte for byte; a larger one becomes a JPEG of the given quality.
    Either way it was decoded whole, so that what is kept can be read. Raises BadImage.
    """
    found = judged(data, most_pixels)
    extension, small = EXTENSIONS[str(found.format)], min(found.size) <= short_side
    image = decoded(found, short_side)
    if small:
        return data, extension
    scale = short_side / min(image.size)
    size = (max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale)))
    if max(size) > LONGEST_SIDE:
        raise BadImage(f"more than {LONGEST_SIDE} pixels long")
    from pocketclip.data.square import resized  # imports torch: seconds, and most importers of this never shrink

    buffer = io.BytesIO()
    pixels = resized(np.array(image), image.width, image.height, *size)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), "jpg"
