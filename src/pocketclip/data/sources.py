"""Anybody's images with captions -> rows: folders, tables, Parquet with the images inside.

A row that cannot be used (no caption, a path that leads nowhere or out of its folder, not an image) is counted with its
reason and left out.
"""

import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pocketclip.data.images import BadImage, shrink
from pocketclip.data.outcomes import arrow
from pocketclip.data.rows import Row
from pocketclip.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CAPTION_SUFFIXES = (".txt", ".caption", ".json")
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
PATH_COLUMNS = ("path", "image_path", "filepath", "file_path", "file_name", "filename", "file", "image")
CAPTION_COLUMNS = ("captions", "caption", "text", "texts", "title", "description", "alt_text", "sentences", "label")
LONGEST_FIELD = 1_000_000  # characters of one CSV field
LARGEST_IMAGE = 100_000_000  # bytes


class Source:
    """Rows of one place, with what was left out of it.

    short_side: larger images are shrunk to this short side, pixels; 0 keeps all as they are.
    dropped: reason -> rows left out, complete when `rows` has ended.
    """

    def __init__(self, place: Path, short_side: int, caption_columns: Sequence[str] = ()) -> None:
        self.place, self.short_side, self.caption_columns = place, short_side, caption_columns
        self.dropped: Counter[str] = Counter()
        self._read = _reader(place)

    def rows(self) -> Iterator[Row]:
        """The usable rows, in a fixed order."""
        for name, image, captions, metadata in self._read(self):
            key = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
            texts = tuple(dict.fromkeys(text.strip() for text in captions if text.strip()))
            try:
                if not texts:
                    raise BadImage("empty caption")
                data, extension = shrink(image(), self.short_side or sys.maxsize, quality=90)
            except BadImage as error:
                self.dropped[str(error)] += 1
            else:
                yield Row(key, data, extension, texts, {"source": name, **metadata})


Found = tuple[str, Callable[[], bytes], Iterable[str], dict[str, Any]]


def _reader(place: Path) -> Callable[[Source], Iterator[Found]]:
    if place.is_dir():
        files = [path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise DataError(f"{place}: holds no .jpg, .png or .webp file")
        beside = any(path.with_suffix(suffix).is_file() for path in files[:1000] for suffix in CAPTION_SUFFIXES)
        return _captions_beside if beside else _class_folders
    if place.suffix.lower() not in TABLES:
        raise DataError(f"{place}: unknown source; known: openmoji, a folder, or a file of {', '.join(TABLES)}")
    if not place.is_file():
        raise DataError(f"{place}: no such file")
    return _parquet if place.suffix.lower() == ".parquet" else _table


def _image_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _captions_beside(source: Source) -> Iterator[Found]:
    """IMAGE.jpg with IMAGE.txt or IMAGE.caption (one caption a line), or IMAGE.json ("caption" or "captions")."""
    for name, path in _image_files(source.place):
        captions: list[str] = []
        for suffix in CAPTION_SUFFIXES:
            beside = path.with_suffix(suffix)
            if beside.is_file():
                captions += _read_captions(beside, source.caption_columns)
        yield name, _bytes_of(path), captions, {}


def _read_captions(path: Path, columns: Sequence[str]) -> list[str]:
    text = path.read_bytes()[:LONGEST_FIELD].decode("utf-8", errors="replace")
    if path.suffix != ".json":
        return text.splitlines()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return _captions_in(found, columns) if isinstance(found, dict) else []


def _class_folders(source: Source) -> Iterator[Found]:
    """CLASS/IMAGE.jpg, as in ImageNet and Caltech101: the folder's name is the caption."""
    for name, path in _image_files(source.place):
        folder = path.parent.name if path.parent != source.place else ""
        yield name, _bytes_of(path), [folder.replace("_", " ").replace("-", " ")], {"group": folder}


def _table(source: Source) -> Iterator[Found]:
    """CSV, TSV or JSON Lines with a path, relative to the file, and captions in each line."""
    place = source.place
    lines = _json_lines(source) if place.suffix.lower() == ".jsonl" else _delimited(place)
    for number, values in enumerate(lines):
        column = _column(values, PATH_COLUMNS, place, "with the images' paths")
        path = _inside(place.parent, str(values.get(column) or ""))
        if path is None:
            source.dropped["path outside the table's folder"] += 1
            continue
        yield f"{number} {values[column]}", _bytes_of(path), _captions_in(values, source.caption_columns), {}


def _delimited(place: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LONGEST_FIELD)
    delimiter = "\t" if place.suffix.lower() == ".tsv" else ","
    with place.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        while True:
            try:
                yield next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                raise DataError(f"{place}: line {reader.line_num + 1}: {error}; mend it, or save it as UTF-8") from None


def _json_lines(source: Source) -> Iterator[dict[str, Any]]:
    with source.place.open("rb") as file:
        for line in file:
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                values = None
            if isinstance(values, dict):
                yield values
            elif line.strip():
                source.dropped["line is no JSON object"] += 1


def _parquet(source: Source) -> Iterator[Found]:
    """Parquet with paths, or with the images inside as Hugging Face's `datasets` keeps them ({bytes, path})."""
    pa, pq = arrow()
    try:
        file = pq.ParquetFile(source.place)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{source.place}: not a Parquet file ({error})") from None
    with file:
        names = dict.fromkeys(file.schema_arrow.names)
        column = _column(names, PATH_COLUMNS, source.place, "with the images or their paths")
        _column(names, source.caption_columns or CAPTION_COLUMNS, source.place, "with captions")
        number = 0
        for batch in file.iter_batches(batch_size=256):
            for values in batch.to_pylist():
                yield from _parquet_row(source, number, values, column)
                number += 1


def _parquet_row(source: Source, number: int, values: dict[str, Any], column: str) -> Iterator[Found]:
    image = values[column]
    captions = _captions_in(values, source.caption_columns)
    inside = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(inside, bytes):
        yield str(number), lambda: inside, captions, {}
        return
    named = image.get("path") if isinstance(image, dict) else image
    path = _inside(source.place.parent, str(named or ""))
    if path is None:
        source.dropped["path outside the table's folder"] += 1
    else:
        yield f"{number} {named}", _bytes_of(path), captions, {}


def _captions_in(values: dict[str, Any], columns: Sequence[str]) -> list[str]:
    """All texts of the caption columns; a cell may hold one or a list of them."""
    found: list[str] = []
    for column in columns or CAPTION_COLUMNS:
        cell = values.get(column)
        for text in cell if isinstance(cell, list) else [cell]:
            text = text.get("raw") if isinstance(text, dict) else text  # COCO's "sentences"
            if isinstance(text, str):
                found.append(text)
    return found


def _column(values: dict[str, Any], known: Sequence[str], place: Path, what: str) -> str:
    folded = {str(name).casefold(): str(name) for name in values}
    for name in known:
        if name.casefold() in folded:
            return folded[name.casefold()]
    raise DataError(
        f"{place}: has no column {what}; it has {', '.join(folded) or 'none'}, known are {', '.join(known)}"
    )


def _inside(folder: Path, name: str) -> Path | None:
    """The file that a table names, None if it leads out of the table's folder."""
    path = (folder / name).resolve()
    return path if name and path.is_relative_to(folder.resolve()) else None


def _bytes_of(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            if path.stat().st_size > LARGEST_IMAGE:
                raise BadImage(f"more than {LARGEST_IMAGE} bytes")
            return path.read_bytes()
        except OSError as error:
            raise BadImage(f"file: {error.strerror}") from None

    return read
