"""Encoded images -> smaller ones, as they are kept in shards."""

from pocketclip.data.images import JPEGS, MAX_PIXELS, BadImage, judged, to_pixels

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
LONGEST_SIDE = 65_500  # pixels; a JPEG has no more


def shrink(data: bytes, short_side: int, quality: int, most_pixels: int = MAX_PIXELS) -> tuple[bytes, str]:
    """Encoded bytes -> encoded bytes whose short side has at most `short_side` pixels, and their extension.

    An image that is small enough stays as it is, byte for byte; a larger one becomes a JPEG of the given quality.
    Either way it was decoded whole, so that what is kept can be read. Raises BadImage.
    """
    # These import torch or simplejpeg: seconds, and most importers of this module never shrink anything.
    from simplejpeg import encode_jpeg

    from pocketclip.data.square import SHRINKS, resized

    found = judged(data, most_pixels)
    reach = min(found.size) / short_side
    if reach <= 1:
        to_pixels(data, found, 1)
        return data, EXTENSIONS[str(found.format)]
    pixels = to_pixels(data, found, next((by for by in SHRINKS if by <= reach and found.format in JPEGS), 1))
    height, width = pixels.shape[:2]
    scale = short_side / min(width, height)
    columns, rows = max(short_side, round(width * scale)), max(short_side, round(height * scale))
    if max(columns, rows) > LONGEST_SIDE:
        raise BadImage(f"more than {LONGEST_SIDE} pixels long")
    smaller = resized(pixels, width, height, columns, rows)
    return encode_jpeg(smaller, quality, "RGB", "420"), "jpg"
