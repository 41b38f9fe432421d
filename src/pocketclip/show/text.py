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


@cache
def installed_families() -> tuple[str, ...]:
    """Those of FAMILIES that this machine has, in order."""
    found = {font.name for font in fontManager.ttflist}
    return tuple(family for family in FAMILIES if family in found)


def fitted(text: str, columns: int, lines: int = 1) -> str:
    """Wrap a caption to so many columns, cut it with an ellipsis after so many lines.

    Characters that no installed font can draw become white squares; wide ones count as two columns.
    """
    # Marks that join emoji or turn the writing direction have no width and no place in a label.
    plain = "".join(char for char in " ".join(text.split()) if unicodedata.category(char) not in ("Cf", "Mn", "Cc"))
    known = "".join(char if ord(char) in _glyphs() else UNKNOWN for char in unicodedata.normalize("NFC", plain))
    if any(unicodedata.east_asian_width(char) in "WF" for char in known):
        columns //= 2
    wrapped = textwrap.wrap(known, columns)
    if len(wrapped) > lines:
        wrapped[lines - 1] = wrapped[lines - 1][: columns - 1] + "…"
    return "\n".join(wrapped[:lines])


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(code for family in installed_families() for code in get_font(findfont(family)).get_charmap())
