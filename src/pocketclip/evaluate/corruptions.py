"""What befalls images outside the laboratory, at five strengths each; and words drawn upon them.

Sources: Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations"
(five strengths, no training on them; the amounts are ours, as shares of the side, so that they mean the same at any
size); Goh et al. 2021, "Multimodal neurons in artificial neural networks" (typographic attacks).
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pocketclip.data.images import Pixels

STRENGTHS = (1, 2, 3, 4, 5)
AMOUNTS = {
    "blur": (0.01, 0.02, 0.03, 0.045, 0.07),  # standard deviation, share of the side
    "noise": (0.04, 0.08, 0.12, 0.2, 0.3),  # standard deviation, share of the range of values
    "JPEG": (50, 30, 15, 8, 4),  # quality
    "grey": (0.2, 0.4, 0.6, 0.8, 1.0),  # share of the colour that is lost
    "rotation": (5, 10, 20, 45, 90),  # degrees, counter-clockwise; the corners show the nearest edge
    "crop": (0.9, 0.75, 0.6, 0.45, 0.3),  # side that is left around the middle
}
FONT = "DejaVuSans-Bold.ttf"  # comes with matplotlib: the same letters everywhere
WIDEST = 0.96  # a word's share of the side
FINE = 8  # letters are drawn so many times as large, and then shrunk


def corrupt(pixels: Pixels, kind: str, strength: int, number: int) -> Pixels:
    """An image after one kind of damage: uint8 [side, side, 3] -> the same.

    kind: of AMOUNTS. strength: 1 to 5. number: of the image, which seeds the noise.
    """
    return _CORRUPTIONS[kind](pixels, AMOUNTS[kind][strength - 1], number)


def _blur(pixels: Pixels, amount: float, _: int) -> Pixels:
    return _pixels(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(amount * len(pixels))))


def _noise(pixels: Pixels, amount: float, number: int) -> Pixels:
    noise = np.random.default_rng(number).normal(0, 255 * amount, pixels.shape)
    return (pixels + noise).round().clip(0, 255).astype(np.uint8)


def _jpeg(pixels: Pixels, amount: float, _: int) -> Pixels:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=int(amount))
    return _pixels(Image.open(content))


def _grey(pixels: Pixels, amount: float, _: int) -> Pixels:
    image = Image.fromarray(pixels)
    return _pixels(Image.blend(image, image.convert("L").convert("RGB"), amount))


def _rotation(pixels: Pixels, amount: float, _: int) -> Pixels:
    side = len(pixels)
    around = np.pad(pixels, ((side, side), (side, side), (0, 0)), mode="edge")
    turned = Image.fromarray(around).rotate(amount, Image.Resampling.BICUBIC)
    return _pixels(turned.crop((side, side, 2 * side, 2 * side)))


def _crop(pixels: Pixels, amount: float, _: int) -> Pixels:
    side = len(pixels)
    edge = side * (1 - amount) / 2
    box = (edge, edge, side - edge, side - edge)
    return _pixels(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC, box))


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.uint8)


_CORRUPTIONS: dict[str, Callable[[Pixels, float, int], Pixels]] = {
    "blur": _blur,
    "noise": _noise,
    "JPEG": _jpeg,
    "grey": _grey,
    "rotation": _rotation,
    "crop": _crop,
}


@dataclass(frozen=True, slots=True)
class Writing:
    """How a word is drawn. size: height of its letters, share of the side. place: "top", "middle" or "bottom".

    contrast: 1 is black letters on a white label; less mixes both with what is below.
    """

    size: float
    place: str
    contrast: float

    def __str__(self) -> str:
        return f"{100 * self.size:.0f} % high, {self.place}, contrast {self.contrast:g}"


WRITINGS = tuple(
    Writing(size, place, contrast) for size in (0.1, 0.2) for place in ("middle", "bottom") for contrast in (0.4, 1.0)
)


def write(pixels: Pixels, word: str, writing: Writing) -> Pixels:
    """Draw a word on an image, in smaller letters where it would not fit: uint8 [side, side, 3] -> the same.

    What cannot be printed, as the ends of lines, is a space.
    """
    word = " ".join("".join(letter if letter.isprintable() else " " for letter in word).split()) or "?"
    side = len(pixels)
    height = writing.size * side * FINE
    width = _font(round(height)).getlength(word)
    font = _font(max(FINE, int(height * min(1.0, WIDEST * side * FINE / max(width, 1)))))
    left, top, right, bottom = font.getbbox(word)
    margin = 0.15 * (bottom - top)
    label = Image.new("L", (round(right - left + 2 * margin), round(bottom - top + 2 * margin)), 255)
    ImageDraw.Draw(label).text((margin - left, margin - top), word, 0, font)
    columns, rows = (min(side, max(1, round(length / FINE))) for length in label.size)
    drawn = np.asarray(label.resize((columns, rows), Image.Resampling.BOX), dtype=np.float32)[:, :, None]
    down = {"top": 0, "middle": (side - rows) // 2, "bottom": side - rows}[writing.place]
    across = (side - columns) // 2
    result = pixels.copy()
    part = result[down : down + rows, across : across + columns]
    part[:] = ((1 - writing.contrast) * part + writing.contrast * drawn).round().astype(np.uint8)
    return result


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", FONT), size)
