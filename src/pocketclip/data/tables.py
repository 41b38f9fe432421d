"""Tables with an image and captions in each line -> rows: CSV, TSV, JSON Lines, and Parquet as Hugging Face writes it.

The image is a path, or in Parquet the file's bytes. Text is UTF-8. A bad line costs that line, and is counted.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pocketclip.data.outcomes import arrow
from pocketclip.data.sources import OUTSIDE, Found, inside, texts_in
from pocketclip.errors import DataError

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet")
IMAGE_COLUMNS = (
    "path", "image_path", "filepath", "file_path", "file_name", "filename", "image_name", "file", "image", "img",
)  # fmt: skip
CAPTION_COLUMNS = ("captions", "caption", "text", "texts", "title", "description", "alt_text", "sentences", "comment")
CLASS_COLUMNS = ("label", "class", "class_name", "category", "fine_label")  # where no caption column is
DELIMITERS = {".tsv": "\t"}  # of all else: the first of these that makes the header's names known ones
LONGEST_FIELD = 1 << 17  # characters
USUAL_DELIMITERS = ",;\t|"
LONGEST_LINE = 1 << 20  # bytes; a longer one is no line of captions
MERGED_LINES, MERGED_CHARACTERS = 1_000_000, 100_000_000  # held in memory to find lines of the same image
PARQUET_ROWS = 64  # read at a time, images and all
SPLIT = re.compile(r"(train|test|validation)-\d+-of-\d+\.parquet")  # as Hugging Face names the parts of a data set


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what; empty: by their usual names. folder: where paths begin, None for the table's own."""

    image: str = ""
    captions: tuple[str, ...] = ()
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class _Line:
    image: bytes | str
    captions: list[str]
    metadata: Mapping[str, Any]


def read_table(path: Path, columns: Columns, dropped: Counter[str]) -> Iterator[Found]:
    """A table's images.

    Lines that name the same file, as in COCO, Flickr and their kin, become one row with all the captions in their
    order, if they lie within one million lines (or 100 million characters of captions) of the table, wherever among
    them. In a larger table the same file can come again, once in each further million: as a row of its own, in the same
    split. Images that lie in the table as bytes are a row each.
    Raises DataError if the table cannot be read or has no column of images or of captions.
    """
    named = SPLIT.fullmatch(path.name)
    split = named[1] if named else ""
    root = Path(os.path.realpath(columns.folder or path.parent))
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; the images' paths begin there")
    held: dict[str, _Line] = {}
    window = lines = characters = 0
    for number, line in enumerate(_lines_of(path, columns, dropped)):
        if isinstance(line.image, bytes):
            yield Found(f"{path.name} row {number}", line.image, line.captions, line.metadata, split=split)
            continue
        file = inside(root, line.image)
        if file is None:
            dropped["no path" if not line.image else OUTSIDE] += 1
            continue
        name = file.relative_to(root).as_posix()
        if lines >= MERGED_LINES or characters >= MERGED_CHARACTERS:
            yield from _held(held, root, window, split)
            held, window, lines, characters = {}, window + 1, 0, 0
        held.setdefault(name, _Line(name, [], line.metadata)).captions.extend(line.captions)
        lines, characters = lines + 1, characters + len(name) + sum(map(len, line.captions))
    yield from _held(held, root, window, split)


def _held(held: dict[str, _Line], root: Path, window: int, split: str) -> Iterator[Found]:
    for name, line in held.items():
        yield Found(name, root / name, line.captions, line.metadata, window, split)


def count_rows(path: Path) -> int | None:
    """How many lines a table has, None where that is not known beforehand."""
    if path.suffix.lower() != ".parquet":
        return None
    with _open_parquet(path) as file:
        return int(file.metadata.num_rows)


def _lines_of(path: Path, columns: Columns, dropped: Counter[str]) -> Iterator[_Line]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(path, columns)
        return
    try:
        with path.open("rb") as file:
            yield from (_json_lines if suffix in (".jsonl", ".ndjson") else _delimited)(path, file, columns, dropped)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _text_lines(path: Path, file: BinaryIO, dropped: Counter[str]) -> Iterator[str]:
    """The lines of a file, with their ends; those that are too long, not UTF-8 or hold a NUL are counted instead."""
    start = file.read(4)
    file.seek(0)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: is UTF-16; save it as UTF-8")
    if not start:
        raise DataError(f"{path}: is empty")
    first = True
    while line := file.readline(LONGEST_LINE + 1):
        if first:
            line, first = line.removeprefix(b"\xef\xbb\xbf"), False
        if len(line) > LONGEST_LINE:
            while not line.endswith(b"\n") and (line := file.readline(LONGEST_LINE)):
                pass
            dropped[f"line longer than {LONGEST_LINE:,} bytes"] += 1
        elif b"\0" in line:
            dropped["NUL in the line"] += 1
        else:
            try:
                yield line.decode()
            except UnicodeDecodeError:
                dropped["line is not UTF-8"] += 1


def _delimited(path: Path, file: BinaryIO, columns: Columns, dropped: Counter[str]) -> Iterator[_Line]:
    lines = _text_lines(path, file, dropped)
    header = next(lines, None)
    if header is None:
        raise DataError(f"{path}: has no line of text in UTF-8 ({_counted(dropped)}); save it as UTF-8")
    delimiter, names = _header(path, header, columns)
    image, captions = _choose(path, names, columns)
    # Strict, as else a quote that is never closed takes the lines after it into its own field, and nobody learns of it.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    before = 0
    csv.field_size_limit(LONGEST_FIELD)
    while True:
        try:
            values = next(reader, None)
        except csv.Error:
            dropped["quotes not closed, or a field too long"] += reader.line_num - before
        else:
            if values is None:
                return
            if len(values) == len(names):
                cells = dict(zip(names, values, strict=True))
                yield _Line(cells[image].strip(), [t for name in captions for t in texts_in(cells[name])], {})
            elif values:
                dropped["wrong number of fields"] += reader.line_num - before
        before = reader.line_num


def _header(path: Path, line: str, columns: Columns) -> tuple[str, list[str]]:
    """The delimiter, and the names of the columns."""
    csv.field_size_limit(LONGEST_FIELD)  # of the whole process: another reader may have set it otherwise
    given = DELIMITERS.get(path.suffix.lower(), USUAL_DELIMITERS)
    split: list[tuple[str, list[str]]] = []
    for delimiter in given:
        try:
            names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
        except csv.Error as error:
            raise DataError(f"{path}: the line of column names cannot be read: {error}") from None
        split.append((delimiter, names))
    for delimiter, names in split:
        try:
            _choose(path, names, columns)
        except DataError:
            continue
        return delimiter, names
    return max(split, key=lambda one: len(one[1]))


def _json_lines(path: Path, file: BinaryIO, columns: Columns, dropped: Counter[str]) -> Iterator[_Line]:
    for line in _text_lines(path, file, dropped):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError):
            dropped["line is not JSON"] += 1
            continue
        if not isinstance(cells, dict):
            dropped["line is not a JSON object"] += 1
            continue
        try:
            image, captions = _choose(path, list(cells), columns)
        except DataError:
            dropped["line without a known column of paths or of captions"] += 1
        else:
            named = cells[image] if isinstance(cells[image], str) else ""
            yield _Line(named, [text for name in captions for text in texts_in(cells[name])], {})


def _parquet(path: Path, columns: Columns) -> Iterator[_Line]:
    """Parquet with paths, or with the images as Hugging Face's `datasets` keeps them: {bytes, path}."""
    pa, _ = arrow()
    with _open_parquet(path) as file:
        schema = file.schema_arrow
        features = _features(schema)
        if not columns.image:
            images = [name for name, kind in features.items() if kind.get("_type") == "Image" and name in schema.names]
            columns = Columns(images[0] if images else "", columns.captions, columns.folder)
        image, captions = _choose(path, schema.names, columns)
        _check_image(path, schema, image)
        classes = {name: features.get(name, {}).get("names") for name in captions}
        wanted = list(dict.fromkeys([image, *captions]))
        try:
            for batch in file.iter_batches(PARQUET_ROWS, columns=wanted):
                for cells in batch.to_pylist():
                    yield _parquet_line(cells, image, captions, classes)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{path}: damaged ({_first_line(error)}); fetch or write it again") from None


def _parquet_line(cells: Mapping[str, Any], image: str, captions: Sequence[str], classes: Mapping[str, Any]) -> _Line:
    found: list[str] = []
    metadata = {}
    for name in captions:
        cell, names = cells[name], classes[name]
        if isinstance(cell, int) and isinstance(names, list) and 0 <= cell < len(names):
            cell = metadata["group"] = str(names[cell])
            cell = cell.replace("_", " ")
        found += texts_in(cell)
    picture = cells[image]
    if isinstance(picture, dict):
        picture = picture.get("bytes") or picture.get("path")
    return _Line(picture or "", found, metadata)


def _open_parquet(path: Path) -> Any:
    pa, pq = arrow()
    try:
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)  # or whole row groups are held
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged, or not a Parquet file ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face's `datasets` notes of the columns, {} without."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: kind for name, kind in found.items() if isinstance(kind, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _check_image(path: Path, schema: Any, column: str) -> None:
    """Raise DataError if a column cannot hold images."""
    pa, _ = arrow()
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    parts = {part.name: part.type for part in kind} if pa.types.is_struct(kind) else {"path": kind}
    holds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    known = [part for name, part in parts.items() if name in ("bytes", "path")]
    if not known or not all(any(check(part) for check in holds) for part in known):
        raise DataError(
            f"{path}: column {column!r} is {kind}; images are paths, bytes, or a struct of bytes and path. "
            "Name another image column"
        )


def _choose(path: Path, names: Sequence[str], columns: Columns) -> tuple[str, list[str]]:
    """The column of images and those of captions, as asked for or by their usual names; raises DataError."""
    shown = ", ".join(repr(name[:40]) for name in names[:20]) or "none"
    known = {name.strip().casefold(): name for name in reversed(names)}
    missing = [name for name in (columns.image, *columns.captions) if name and name not in names]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}; its columns are {shown}")
    image = columns.image or next((known[name] for name in IMAGE_COLUMNS if name in known), "")
    if not image:
        raise DataError(f"{path}: has no image column of a known name; its columns are {shown}: name the image column")
    captions = list(columns.captions) or [
        known[name] for name in CAPTION_COLUMNS if name in known and known[name] != image
    ]
    captions = captions or [known[name] for name in CLASS_COLUMNS if name in known][:1]
    if not captions:
        raise DataError(
            f"{path}: has no caption column of a known name; its columns are {shown}: name the caption columns"
        )
    return image, captions


def _counted(dropped: Counter[str]) -> str:
    return ", ".join(f"{count:,} x {reason}" for reason, count in dropped.items())
