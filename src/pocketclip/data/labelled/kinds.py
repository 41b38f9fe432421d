"""What every source of labelled images gives."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pocketclip.data.images import Pixels
from pocketclip.data.rows import storable

SPLITS = {"test": ("test", "val", "validation", "valid"), "train": ("train",)}  # and what folders and files call them


@dataclass(frozen=True, slots=True)
class Labelled:
    """An image with its class, before anybody looked at it.

    name: what the source calls it. image: its encoded bytes, where they lie, or uint8 [height, width, 3].
    label: the class, by its number or by its name in the source.
    """

    name: str
    image: bytes | Path | Pixels
    label: int | str


@dataclass(frozen=True, slots=True)
class Dropped:
    """An image, or a line that should have led to one, that cannot be used; never left out in silence."""

    name: str
    reason: str

    def __post_init__(self) -> None:
        """It is for a file and the console, and names may hold what neither can."""
        object.__setattr__(self, "name", storable(self.name))
        object.__setattr__(self, "reason", storable(self.reason))


class LabelledImages(Protocol):
    """A source's images of one split.

    classes: what the source calls its classes, by number; () where it does not say.
    templates: the prompts that it brings, with `{}` where the class goes; () where it brings none.
    total: images, at most; None where nobody knows before they are read.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    total: int | None

    def items(self, dropped: list[Dropped]) -> Iterator[Labelled]:
        """The images, in the source's order. dropped: takes what is no image with a label."""
        ...
