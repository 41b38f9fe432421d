"""Values out of JSON that someone else wrote: a text, a number, an address of the expected kind, or Unusable.

Unusable costs one image (it is counted as skipped); an answer that is no page of images at all is a CollectError.
"""

import html
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from pocketclip.collect.found import Found
from pocketclip.errors import CollectError

LONGEST_TEXT = 50_000  # characters; the longest descriptions on Commons have some thousands
LONGEST_URL = 4096
LONGEST_SIDE = 1_000_000  # pixels
FORMAT_CHANGED = 5  # images, all of them unusable: then it is not the images that are wrong

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Artwork templates on Commons carry Wikidata statements in elements that no reader sees.
HIDDEN = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1\s*>|\Z)"
    r"|<(\w+)\b[^<>]*display:\s?none[^<>]*>.*?(?:</\2\s*>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
BREAK = re.compile(r"</?(?:br|p|div|li|[uod]l|d[dt]|t[rdh]|table|h[1-6]|hr|blockquote)\b[^<>]*>", re.IGNORECASE)
TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<![^<>]*>")


def decode(body: bytes, provider: str, query: str) -> Any:
    """An answer's JSON. Raises CollectError where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise CollectError(f"{provider}: {query}: answered {len(body):,} bytes that are no JSON") from None


def clean(text: str) -> str:
    """One line of text that every file can hold: no control characters, no halves of surrogate pairs."""
    return " ".join(UNPRINTABLE.sub(" ", text).split())


def strip_html(text: str) -> str:
    """What a reader sees of a piece of HTML, on one line. Linear in its length, and no markup is too broken."""
    return clean(html.unescape(TAG.sub("", BREAK.sub(" ", HIDDEN.sub(" ", text)))))


class Unusable(Exception):
    """An image that is left out; names the key that is missing or wrong."""


def answer_object(payload: Any, provider: str, query: str) -> dict[str, Any]:
    """A whole answer. Raises CollectError where it is no object."""
    if not isinstance(payload, dict):
        raise CollectError(f"{provider}: {query}: answered JSON that is no object but {type(payload).__name__}")
    return payload


def answer_number(answer: Mapping[str, Any], key: str, provider: str, query: str) -> int:
    """A number that an answer needs. Raises CollectError where it is missing."""
    value = answer.get(key)
    if not isinstance(value, int):
        raise CollectError(f"{provider}: {query}: answered JSON without a number {key!r}")
    return value


def read_rows(
    images: Any, read: Callable[[Mapping[str, Any], str], Found], provider: str, query: str
) -> tuple[tuple[Found, ...], int]:
    """The rows of those images that can be used, and how many cannot.

    Raises CollectError where there is no list, or so many wrong images in it that the service must have changed.
    """
    if not isinstance(images, list):
        raise CollectError(f"{provider}: {query}: answered JSON without a list of images")
    rows, wrong = [], ""
    for image in images:
        try:
            if not isinstance(image, dict):
                raise Unusable("image")
            rows.append(read(image, query))
        except Unusable as unusable:
            wrong = str(unusable)
    if not rows and len(images) >= FORMAT_CHANGED:
        raise CollectError(
            f"{provider}: {query}: none of {len(images)} images can be used (the last for its {wrong!r}); "
            "has the service changed its format?"
        )
    return tuple(rows), len(images) - len(rows)


def read_text(record: Mapping[str, Any], key: str, longest: int = LONGEST_TEXT) -> str:
    """A text, "" where there is none."""
    value = record.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > longest:
        raise Unusable(key)
    return clean(value)


def read_needed(record: Mapping[str, Any], key: str) -> str:
    """A text without which the image is of no use."""
    value = read_text(record, key, LONGEST_URL)
    if not value:
        raise Unusable(key)
    return value


def read_object(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object inside another, empty where there is none."""
    value = record.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Unusable(key)
    return value


def web_address(text: str) -> str:
    """The text where it is an address on the web, else ""."""
    try:
        parts = urlsplit(text)
        web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in text
    except ValueError:  # brackets that hold no IPv6 address, a port that is no number
        return ""
    return text if web else ""


def read_address(record: Mapping[str, Any], key: str) -> str:
    """A web address, "" where there is none or it is something else."""
    return web_address(read_text(record, key, LONGEST_URL))


def read_needed_address(record: Mapping[str, Any], key: str) -> str:
    """A web address without which the image is of no use."""
    found = read_address(record, key)
    if not found:
        raise Unusable(key)
    return found


def read_number(record: Mapping[str, Any], key: str, most: int = LONGEST_SIDE) -> int | None:
    """A whole number above 0, None where there is none or 0."""
    value = record.get(key)
    if value is None or value == 0:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise Unusable(key)
    return value


def read_names(record: Mapping[str, Any], key: str, name: str) -> str:
    """The names in a list of objects, joined by commas."""
    values = record.get(key)
    if values is None:
        return ""
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise Unusable(key)
    joined = ", ".join(dict.fromkeys(filter(None, (read_text(value, name) for value in values))))
    if len(joined) > LONGEST_TEXT:
        raise Unusable(key)
    return joined
