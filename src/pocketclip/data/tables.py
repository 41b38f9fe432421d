"""Tables with an image and captions in each line -> rows: CSV, TSV, JSON Lines, COCO's annotations; also `parquet`.

The image is a path, or in Parquet the file's bytes. Text is UTF-8. A bad line costs that line, and is counted.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from pocketclip.data.columns import Columns, Line, choose
from pocketclip.data.parquet import look_into, parquet_lines
from pocketclip.data.sources import OUTSIDE, Found, inside, texts_in
from pocketclip.errors import DataError

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
DELIMITERS = {".tsv": "\t"}  # of all else: the first of these that makes the header's names known ones
LONGEST_FIELD = 1 << 17  # characters
USUAL_DELIMITERS = ",;\t|"
LONGEST_LINE = 1 << 20  # bytes; a longer one is no line of captions
MERGED_LINES, MERGED_CHARACTERS = 1_000_000, 100_000_000  # held in memory to find lines of the same image
LARGEST_JSON = 1 << 29  # bytes, five times COCO's captions; held in memory whole, and there it is larger still
SPLIT = re.compile(r"(train|test|validation)-\d+-of-\d+\.parquet")  # as Hugging Face names the parts of a data set


@dataclass(slots=True)
class Table:
    """A table's images, or those in some rows of a Parquet file.

    Lines that name the same file, as in COCO, Flickr and their kin, become one row with all the captions in their
    order, if they lie within one million lines (or 100 million characters of captions) of the table, wherever among
    them. In a larger table the same file can come again, once in each further million: as a row of its own, in the same
    split. Images that lie in the table as bytes are a row each.

    total: rows, at most; None while it is not known: text is read a million lines ahead, and the rows of a table that
        has no more of them are known from the first one on.
    groups: of Parquet with images inside, the rows of each of its groups, which can be read on their own; paths among
        such images are merged within what is read together. Empty for all other tables.
    start, stop: which rows of a Parquet file are meant, if not all.
    name: its path in the source, where that has several tables: rows of two of them are never the same. "" where it is
        the only one.
    """

    path: Path
    columns: Columns
    total: int | None = None
    groups: tuple[int, ...] = ()
    start: int = 0
    stop: int | None = None
    name: str = ""

    @classmethod
    def look(cls, path: Path, columns: Columns, name: str = "") -> "Table":
        """What is known of a table before it is read.

        Raises DataError if Parquet cannot be read or has no column of images or captions, and where paths would begin
        in no folder.
        """
        root = Path(os.path.realpath(columns.folder or path.parent))
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; the images' paths begin there")
        table = cls(path.absolute(), replace(columns, folder=root), name=name)
        if path.suffix.lower() == ".parquet":
            table.total, table.groups = look_into(table.path, columns)
        return table

    def found(self, dropped: Counter[str]) -> Iterator[Found]:
        """The images; raises DataError if the table cannot be read or has no column of images or of captions."""
        named = SPLIT.fullmatch(self.path.name)
        split = named[1] if named else ""
        root = self.columns.folder or self.path.parent
        held: dict[str, Line] = {}
        window, lines, characters = self.start, 0, 0
        for number, line in enumerate(self._lines(dropped), self.start):
            if isinstance(line.image, bytes):
                name = f"{self.name or self.path.name} row {number}"
                yield Found(name, line.image, line.captions, line.metadata, split=split)
                continue
            file = inside(root, line.image)
            if file is None:
                dropped["no path" if not line.image else OUTSIDE] += 1
                continue
            name = file.relative_to(root).as_posix()
            if lines >= MERGED_LINES or characters >= MERGED_CHARACTERS:
                yield from self._held(held, root, window, split)
                held, window, lines, characters = {}, window + 1, 0, 0
            held.setdefault(name, Line(name, [], line.metadata)).captions.extend(line.captions)
            lines, characters = lines + 1, characters + len(name) + sum(map(len, line.captions))
        if not self.groups and not window:
            self.total = len(held)
        yield from self._held(held, root, window, split)

    def _held(self, held: dict[str, Line], root: Path, window: int, split: str) -> Iterator[Found]:
        again = " ".join(filter(None, (self.name, str(window or ""))))
        for name, line in held.items():
            yield Found(name, root / name, line.captions, line.metadata, again, split)

    def _lines(self, dropped: Counter[str]) -> Iterator[Line]:
        suffix = self.path.suffix.lower()
        if suffix == ".parquet":
            yield from parquet_lines(self.path, self.columns, self.start, self.stop)
            return
        reader = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _coco}.get(suffix, _delimited)
        try:
            with self.path.open("rb") as file:
                yield from reader(self.path, file, self.columns, dropped)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from None


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


def _delimited(path: Path, file: BinaryIO, columns: Columns, dropped: Counter[str]) -> Iterator[Line]:
    lines = _text_lines(path, file, dropped)
    header = next(lines, None)
    if header is None:
        raise DataError(f"{path}: has no line of text in UTF-8 ({_counted(dropped)}); save it as UTF-8")
    delimiter, names = _header(path, header, columns)
    image, captions = choose(path, names, columns)
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
                yield Line(cells[image].strip(), [t for name in captions for t in texts_in(cells[name])], {})
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
            choose(path, names, columns)
        except DataError:
            continue
        return delimiter, names
    return max(split, key=lambda one: len(one[1]))


def _json_lines(path: Path, file: BinaryIO, columns: Columns, dropped: Counter[str]) -> Iterator[Line]:
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
            image, captions = choose(path, list(cells), columns)
        except DataError:
            dropped["line without a known column of paths or of captions"] += 1
        else:
            named = cells[image] if isinstance(cells[image], str) else ""
            yield Line(named, [text for name in captions for text in texts_in(cells[name])], {})


def _coco(path: Path, file: BinaryIO, columns: Columns, dropped: Counter[str]) -> Iterator[Line]:
    """COCO's annotations: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}."""
    text = file.read(LARGEST_JSON + 1)
    if len(text) > LARGEST_JSON:
        raise DataError(f"{path}: has more than {LARGEST_JSON:,} bytes, too many for one JSON; write it as JSON Lines")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: is not JSON; fetch or write it again") from None
    images, annotations = (found.get(name) if isinstance(found, dict) else None for name in ("images", "annotations"))
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise DataError(
            f'{path}: is not of COCO\'s form, {{"images": [{{"id", "file_name"}}], "annotations": [{{"image_id", '
            '"caption"}]}; write other lists as JSON Lines (.jsonl)'
        )
    name, captions = columns.image or "file_name", columns.captions or ("caption",)
    lines: dict[int | str | None, Line] = {}
    for image in images:
        number = _coco_id(image, "id")
        if number is None or number in lines:
            dropped["image without an id" if number is None else "id of another image"] += 1
        else:
            lines[number] = Line(image[name] if isinstance(image.get(name), str) else "", [], {})
    for annotation in annotations:
        line = lines.get(_coco_id(annotation, "image_id"))
        if line is None:
            dropped["annotation of no image"] += 1
        else:
            line.captions.extend(text for column in captions for text in texts_in(annotation.get(column)))
    if lines and not any(line.image for line in lines.values()):
        raise DataError(f"{path}: no image has {name!r}; name the image column, a key in the list of images")
    if lines and not any(line.captions for line in lines.values()):
        raise DataError(f"{path}: no annotation has {captions[0]!r}; give the file with captions, or name their column")
    yield from lines.values()


def _coco_id(entry: object, name: str) -> int | str | None:
    """An image's number in an entry, None if it has none."""
    number = entry.get(name) if isinstance(entry, dict) else None
    return number if isinstance(number, int | str) else None


def _counted(dropped: Counter[str]) -> str:
    return ", ".join(f"{count:,} x {reason}" for reason, count in dropped.items())
