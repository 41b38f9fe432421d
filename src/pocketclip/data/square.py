"""Encoded images -> the square that a model sees, the same in training, evaluation and search.

The square is resampled once (bicubic, antialiased), from a JPEG that was decoded no larger than that needs.
"""

import math
from collections.abc import Callable

import torch
from PIL import Image
from torch.nn.functional import interpolate

from pocketclip.data.images import (
    JPEGS,
    Cut,
    Pixels,
    decoded,
    is_long,
    judged,
    middle,
    orientation,
    to_pixels,
    to_square,
)
from pocketclip.recipe.schema import ImageSettings

TURNED = range(5, 9)  # by a right angle
SHRINKS = (8, 4, 2)  # libjpeg-turbo has vector instructions for these; other eighths take longer than the whole image
TINY = 1e-6  # pixels


def decode(data: bytes, settings: ImageSettings, choose: Callable[[int, int, int], Cut] = middle) -> Pixels:
    """Encoded bytes -> uint8 [size, size, 3]; raises BadImage.

    choose: (width, height, size) of the upright image -> what of it is seen.
    """
    image, size = judged(data), settings.size
    width, height = image.size[::-1] if orientation(image) in TURNED else image.size
    cut = choose(width, height, size)
    if settings.decoding == "exact" or is_long(cut, size):
        return to_square(decoded(image, 0), size, cut)
    shrink = possible_shrink(image, min(cut.width / cut.columns, cut.height / cut.rows))
    pixels = to_pixels(data, image, shrink)
    left, top = cut.left // shrink, cut.top // shrink
    part = pixels[top : top + math.ceil(cut.height / shrink), left : left + math.ceil(cut.width / shrink)]
    whole = resized(part, cut.width / shrink, cut.height / shrink, cut.columns, cut.rows)
    return whole[cut.down : cut.down + size, cut.right : cut.right + size]


def possible_shrink(image: Image.Image, reach: float) -> int:
    """By how much a judged image can be shrunk in decoding, at most `reach`; never a PNG or a WebP."""
    for shrink in SHRINKS if image.format in JPEGS else ():
        # The last pixel of a side that is no multiple is a part of one, and turning would put it first.
        if shrink <= reach and (orientation(image) == 1 or not (image.width % shrink or image.height % shrink)):
            return shrink
    return 1


def resized(pixels: Pixels, width: float, height: float, columns: int, rows: int) -> Pixels:
    """uint8 [at least height, at least width, 3] -> [rows, columns, 3], bicubic, antialiased.

    width, height: how much of the pixels is stretched over the result. They can be fractions: of 427 pixels at a half,
    214 are decoded, and 213.5 are the image; taking all would move its far edge by half a pixel.

    In the wildest noise apart, Pillow's result to two levels of 255, in a fourth of the time: PyTorch has vector
    instructions for it.
    """
    factors = (rows + TINY) / height, (columns + TINY) / width
    view = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # PyTorch's "channels last"
    result = interpolate(view, scale_factor=factors, mode="bicubic", antialias=True)
    found: Pixels = result.permute(0, 2, 3, 1)[0].numpy()[:rows, :columns]
    return found
