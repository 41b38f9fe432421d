"""The first pass: what each row of a shard is judged by, one row of a Parquet file for each.

All that can be told of a row alone is settled here; what needs the other rows is kept for the second pass.
"""

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pocketclip.clean.balance import WordList
from pocketclip.clean.captions import why_not
from pocketclip.clean.duplicates import GRID, WORDS, colour_grid, look_hash
from pocketclip.data.images import FORMATS, BadImage, open_image
from pocketclip.data.outcomes import arrow
from pocketclip.data.rows import storable
from pocketclip.data.shards import Shard
from pocketclip.errors import DataError
from pocketclip.files import whole_file
from pocketclip.recipe.collecting import CleanSettings

SEEN_AT = 128  # pixels of the short side that hash and colours are taken from
NO_CAPTION = "no caption of use"


@dataclass(frozen=True, slots=True)
class Look:
    """One shard to be looked at.

    features: the file to be written. words: a file with a word a line, "" where rows are not balanced.
    benchmark: rows are only compared with, nothing else of them matters.
    short_side: pixels below which a short side is too small.
    """

    tar: str
    features: str
    settings: CleanSettings
    short_side: int
    words: str = ""
    benchmark: bool = False


@dataclass(slots=True)
class Features:
    """One row.

    reason: why it is of no use, "" if nothing is known against it yet. content: the first 8 bytes of the SHA-256 of
    its image file. hash, grid: see `duplicates`. pixels: of the image. captions: those of use. dropped_captions: why
    the others are of none. words: the numbers of the listed words in its captions.
    """

    key: str
    reason: str
    content: int = 0
    hash: bytes = bytes(8 * WORDS)
    grid: bytes = bytes(GRID)
    pixels: int = 0
    captions: tuple[str, ...] = ()
    dropped_captions: tuple[str, ...] = ()
    words: tuple[int, ...] = ()


def look_at_shard(look: Look) -> tuple[int, dict[str, int]]:
    """Write a shard's features, unless they are there; returns its rows, and those that its index left out, by reason.

    Runs in a worker.
    """
    path = Path(look.features)
    shard = Shard(Path(look.tar))
    if path.exists():
        return len(shard), dict(shard.dropped)
    rows = [_features(shard, row, look) for row in range(len(shard))]
    pa, pq = arrow()
    columns = {name: [getattr(one, name) for one in rows] for name in Features.__slots__}
    with whole_file(path) as temporary:
        pq.write_table(pa.table(columns, schema=schema()), temporary, compression="zstd")
    return len(shard), dict(shard.dropped)


def _features(shard: Shard, row: int, look: Look) -> Features:
    found = Features(str(shard.keys[row]), "")
    data = shard.image(row)
    try:
        width, height = _see(data, found)
    except BadImage as error:
        found.reason = str(error)
        return found
    if look.benchmark:
        return found
    found.reason = _shape(width, height, look)
    _read(shard, row, found, look)
    if not found.captions and not found.reason:
        found.reason = NO_CAPTION
    return found


def _see(data: bytes, found: Features) -> tuple[int, int]:
    """Fill in what the image says; returns its width and height in pixels. Raises BadImage."""
    image = open_image(data, SEEN_AT)
    with Image.open(io.BytesIO(data), formats=FORMATS) as original:
        width, height = original.size
    found.content = int.from_bytes(hashlib.sha256(data).digest()[:8], "big", signed=True)
    found.hash, found.grid = look_hash(image).tobytes(), colour_grid(image).tobytes()
    found.pixels = width * height
    return width, height


def _shape(width: int, height: int, look: Look) -> str:
    if min(width, height) < look.short_side:
        return f"short side below {look.short_side} pixels"
    if max(width, height) > look.settings.aspect * min(width, height):
        return f"aspect above {look.settings.aspect:g}"
    return ""


def _read(shard: Shard, row: int, found: Features, look: Look) -> None:
    """Fill in what the captions say; where none is of use, what the image was found by takes their place."""
    reasons = {caption: why_not(caption, look.settings) for caption in shard.captions(row)}
    found.dropped_captions = tuple(reason for reason in reasons.values() if reason)
    kept = [caption for caption, reason in reasons.items() if not reason]
    found.captions = tuple(kept or _queries(shard.metadata(row)))
    if look.words:
        found.words = tuple(_word_list(look.words).find(found.captions))


def _queries(metadata: dict[str, Any]) -> list[str]:
    """What the image was found by; half characters, which JSON can hold but Arrow cannot, are marked."""
    queries = metadata.get("queries")
    texts = [text for text in queries if isinstance(text, str)] if isinstance(queries, list) else []
    return [storable(text) for text in texts if text.strip()]


@lru_cache(maxsize=1)
def _word_list(path: str) -> WordList:
    return WordList(Path(path).read_text(encoding="utf-8").splitlines())


def schema() -> Any:
    """The columns of a file of features."""
    pa, _ = arrow()
    texts = pa.list_(pa.string())
    return pa.schema(
        {
            "key": pa.string(),
            "reason": pa.string(),
            "content": pa.int64(),
            "hash": pa.binary(8 * WORDS),
            "grid": pa.binary(GRID),
            "pixels": pa.int64(),
            "captions": texts,
            "dropped_captions": texts,
            "words": pa.list_(pa.int32()),
        }
    )


def read_features(path: Path, columns: tuple[str, ...]) -> Any:
    """Some columns of a shard's features, as an Arrow table; raises DataError if the file is damaged."""
    pa, pq = arrow()
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(columns=list(columns))
        table.validate(full=True)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged ({error}); delete it, and its shard is looked at again") from None
    return table


def fixed_width(column: Any, dtype: type[np.generic], width: int) -> Any:
    """A column of fixed-size binary values as an array [rows, width]."""
    return np.frombuffer(b"".join(column.to_pylist()), dtype=dtype).reshape(-1, width)
