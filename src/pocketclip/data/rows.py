"""One image with its captions: the unit that every source gives and every shard holds."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """An encoded image and the captions that are true of it.

    key: the row's name inside its data set, the stem of its files in a shard.
    image: the file's bytes as they are (JPEG, PNG or WebP).
    extension: "jpg", "png" or "webp".
    captions: one or more; training samples one of them each time the row is drawn.
    metadata: whatever else is known (provenance, licence, group), kept as JSON beside the image.
    """

    key: str
    image: bytes
    extension: str
    captions: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


def storable(text: str) -> str:
    """A text as files can hold it: "?" for each half character, or byte of a name that is not UTF-8."""
    return text.encode(errors="replace").decode()
