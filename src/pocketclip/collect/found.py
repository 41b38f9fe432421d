"""One image that was found: where it lies, what is said of it, who made it and under which licence."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Found:
    """A row of found/*.jsonl and of rows.parquet.

    url: of the image itself, http or https.
    captions: every text the source gives, most telling first (description, alternative text, title, tags joined by
        commas); the query is not among them.
    queries: the words that it was found by; empty for lists of someone else's.
    provider, id: who listed it, and its name there; (provider, id) and url each name one image.
    page, author, licence, licence_url: provenance, "" where unknown.
    width, height: pixels as the source says, None where unknown.
    """

    url: str
    captions: tuple[str, ...]
    queries: tuple[str, ...] = ()
    provider: str = ""
    id: str = ""
    page: str = ""
    author: str = ""
    licence: str = ""
    licence_url: str = ""
    width: int | None = None
    height: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As found/*.jsonl holds it."""
        return asdict(self)
