"""Encoded images -> smaller ones, as they are kept in shards."""

import io

import numpy as np
from PIL import Image

from pocketclip.data.images import MAX_PIXELS, BadImage, decoded, judged

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
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
    buffer = io.BytesIO()
    resized(image, *size).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), "jpg"


def resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """An RGB image in another size (bicubic, antialiased); in the wildest noise apart, Pillow's to two levels of 255.

    PyTorch does it with vector instructions, in a fourth of Pillow's time; see "Fetching beside img2dataset" in
    docs/log.md.
    """
    import torch  # takes seconds, and most of what imports this module never shrinks anything
    from torch.nn.functional import interpolate

    pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)  # a view: PyTorch's "channels last"
    result = interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return Image.fromarray(result.permute(0, 2, 3, 1)[0].numpy())
