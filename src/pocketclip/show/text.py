"""Captions as figures can draw them: any Unicode comes in, short lines of known glyphs go out."""

import textwrap
import unicodedata
from functools import cache

from matplotlib.font_manager import findfont, fontManager, get_font

# The first comes with matplotlib and has the Latin, Greek, Cyrillic, Arabic and Hebrew letters; the others are
# common on desktops and add Chinese, Japanese and Korean.
FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
)
UNKNOWN = "\N{WHITE SQUARE}"
SMALL_LETTERS = "etaoin shrdlu cmfwyp"  # by how frequent they are, and the space
SIZE = 100  # points, of letters that are measured
SLACK = 1.08  # by which a line may be wider than so many mean letters


@cache
def installed_families() -> tuple[str, ...]:
    """Those of FAMILIES that this machine has, in order."""
    found = {font.name for font in fontManager.ttflist}
    return tuple(family for family in FAMILIES if family in found)


def fitted(text: str, columns: int, lines: int = 1) -> str:
    """Wrap a caption to so many columns, each as wide as a small letter, cut it with an ellipsis after so many lines.

    Characters that no installed font can draw become white squares; of capitals and other wide ones fewer fit.
    """
    # Marks that join emoji or turn the writing direction have no width and no place in a label.
    plain = "".join(char for char in " ".join(text.split()) if unicodedata.category(char) not in ("Cf", "Mn", "Cc"))
    known = "".join(char if ord(char) in _glyphs() else UNKNOWN for char in unicodedata.normalize("NFC", plain))
    columns = max(2, int(columns / max([1.0, *(_mean_width(part) / SLACK for part in _parts(known, columns))])))
    wrapped = textwrap.wrap(known, columns)
    if len(wrapped) > lines:
        wrapped[lines - 1] = wrapped[lines - 1][: columns - 1] + "…"
    return "\n".join(wrapped[:lines])


def _parts(text: str, letters: int) -> list[str]:
    return [text[start : start + letters] for start in range(0, len(text), letters)]


def _mean_width(text: str) -> float:
    """Of a text's characters, beside that of small letters."""
    return sum(map(_width, text)) / len(text) / (sum(map(_width, SMALL_LETTERS)) / len(SMALL_LETTERS))


@cache
def _width(char: str) -> float:
    """How far a character goes in the first font that has it, in parts of that font's size."""
    for family in installed_families():
        font = get_font(findfont(family))
        if font.get_char_index(ord(char)):
            font.set_size(SIZE, 72)
            return float(font.load_char(ord(char)).linearHoriAdvance) / 65536 / SIZE
    return 1.0


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(code for family in installed_families() for code in get_font(findfont(family)).get_charmap())
