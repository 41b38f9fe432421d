"""What the columns of a list of images hold: of the lists that are known, as data, and by their names of any other."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pocketclip.data.rows import storable
from pocketclip.errors import CollectError

NAME = re.compile(r"\.(csv|tsv|jsonl|ndjson|parquet)\d*(\.gz)?$", re.IGNORECASE)  # Unsplash numbers its files: .tsv000
TEXTS = ("provider", "id", "page", "author", "licence", "licence_url")

# Names that columns usually have, by field of Found, most telling first. A column "id" counts only beside "provider":
# elsewhere it may number captions or classes, and images of one id would become one.
USUAL: Mapping[str, tuple[str, ...]] = {
    "url": ("url", "image_url", "imageurl", "img_url", "image_link", "link", "src", "image_src", "contenturl"),
    "captions": ("captions", "caption", "text", "description", "alt_text", "alt", "title", "tags", "keywords"),
    "queries": ("queries", "query"),
    "provider": ("provider",),
    "id": ("id",),
    "page": ("page", "page_url", "landing_url", "foreign_landing_url"),
    "author": ("author", "creator", "artist"),
    "licence": ("licence", "license"),
    "licence_url": ("licence_url", "license_url"),
    "width": ("width", "original_width", "image_width"),
    "height": ("height", "original_height", "image_height"),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns of a list hold what.

    columns: field of Found -> the list's own columns: all captions, the parts of an author's name, one for all else.
    constants: what is the same for all its rows. language: a column and the value that it must have, ("", "") for no
    such rule. quotes: whether fields may stand in double quotes.
    """

    columns: Mapping[str, tuple[str, ...]]
    constants: Mapping[str, str] = field(default_factory=dict)
    language: tuple[str, str] = ("", "")
    quotes: bool = True

    @property
    def names(self) -> list[str]:
        """Every column that is read."""
        return list(dict.fromkeys([*(name for names in self.columns.values() for name in names), self.language[0]]))


CC3M = Layout({"captions": ("caption",), "url": ("url",)}, {"provider": "cc3m"}, quotes=False)
CC12M = Layout({"url": ("url",), "captions": ("caption",)}, {"provider": "cc12m"}, quotes=False)
UNSPLASH = Layout(
    {
        "url": ("photo_image_url",),
        "captions": ("photo_description", "ai_description", "keywords"),
        "id": ("photo_id",),
        "page": ("photo_url",),
        "author": ("photographer_first_name", "photographer_last_name"),
        "width": ("photo_width",),
        "height": ("photo_height",),
    },
    {"provider": "unsplash", "licence": "Unsplash", "licence_url": "https://unsplash.com/license"},
)
WIT = Layout(
    {
        "url": ("image_url",),
        "captions": (
            "caption_reference_description",
            "caption_alt_text_description",
            "caption_attribution_description",
            "page_title",
        ),
        "page": ("page_url",),
        "width": ("original_width",),
        "height": ("original_height",),
    },
    {"provider": "wit"},
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the caller says of lists of no known layout, and which language he wants of those in many."""

    url_column: str = ""
    caption_columns: tuple[str, ...] = ()
    language: str = "en"


def choose_layout(path: Path, names: Sequence[str], asked: Asked) -> Layout:
    """What a list's columns hold, by their names. Raises CollectError where none holds URLs or captions."""
    known = set(names)
    if {"photo_id", "photo_image_url"} <= known:
        return UNSPLASH
    if {"language", "image_url", "caption_reference_description"} <= known:
        return Layout(WIT.columns, WIT.constants, ("language", asked.language))
    lowered = {name.strip().lower(): name for name in reversed(names)}
    columns = {
        what: tuple(lowered[name] for name in usual if name in lowered)[: None if what == "captions" else 1]
        for what, usual in USUAL.items()
    }
    if asked.url_column:
        columns["url"] = (asked.url_column,)
    if asked.caption_columns:
        columns["captions"] = asked.caption_columns
    for what, option in (("url", "--url-column"), ("captions", "--caption-column")):
        missing = [name for name in columns[what] if name not in known]
        if missing or not columns[what]:
            named = f"no column {missing[0]!r}" if missing else f"no column of {what} that is known by its name"
            shown = ", ".join(repr(name[:40]) for name in names[:20])
            raise CollectError(f"{path}: {named}; give {option}, one of {shown}")
    constants = {}
    if not columns["provider"]:
        columns["id"] = ()
        constants = {"provider": storable(NAME.sub("", path.name))}
    return Layout({what: found for what, found in columns.items() if found}, constants)
