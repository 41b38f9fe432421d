"""Lists of images that are there already -> tables with the columns of `Found`, in the order of the file.

Read as they were published: our own found/*.jsonl and rows.parquet, Unsplash Lite and Full (photos.tsv000 with its
keywords.tsv000), CC3M and CC12M (two columns, no header), WIT; and any CSV, TSV, JSONL or Parquet with a column of
URLs and one of captions. Text is UTF-8, plain or gzip. It is read line by line here and not by DuckDB or Arrow, whose
readers are faster but give up a file at a mixed line end or a lone surrogate; here a bad line costs that line alone.
"""

import csv
import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pocketclip.collect.layouts import CC3M, CC12M, NAME, TEXTS, UNSPLASH, Asked, Layout, choose_layout
from pocketclip.data.rows import storable
from pocketclip.errors import CollectError

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_ROWS = 1 << 15  # read, cleaned and passed on at once
LONGEST_LINE = 1 << 20  # bytes; a longer one is no row of text
MOST_LINES = 100  # of one row; more means a quote that is never closed
SAMPLE_LINES = 100  # of JSONL, looked at for the names of its columns
# What lies beside lists and is none: of Unsplash's photos, and our own search's log.
COMPANION = re.compile(r"^(keywords|collections|conversions|colors)\.[ct]sv\d*|.*\.requests\.jsonl$", re.IGNORECASE)
PACKED = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "Zstandard", b"\xfd7zXZ": "xz"}


def find_lists(sources: Sequence[Path]) -> list[Path]:
    """The files to read: sources as they are, the lists in a folder by name. Raises CollectError if there are none."""
    found: list[Path] = []
    for source in sources:
        if not source.exists():
            raise CollectError(
                f"{source}: missing; run `pocketclip search`, which writes found/, or name lists that are there"
            )
        if not source.is_dir():
            found.append(source)
            continue
        inside = sorted(path for path in source.iterdir() if NAME.search(path.name) and path.name[0] != ".")
        lists = [path for path in inside if not COMPANION.match(path.name)]
        if not lists:
            raise CollectError(
                f"{source}: holds no .jsonl, .csv, .tsv or .parquet file; `pocketclip search` writes found/*.jsonl"
            )
        found += lists
    if not found:
        raise CollectError("no list of images was given")
    return found


def read_list(path: Path, asked: Asked, left_out: Counter[str], scratch: Path) -> "Iterator[pa.Table]":
    """A list's rows as tables of at most BLOCK_ROWS rows, in the file's order; the columns are those of Found.

    Values are as they stand in the list: URLs may be none, captions empty. Lines that are no row at all are added to
    `left_out` by reason. scratch: a folder for temporary files. Raises CollectError where the file cannot be used.
    """
    kind = NAME.search(path.name)
    if kind is None:
        raise CollectError(f"{path}: is it CSV, TSV, JSONL or Parquet? Name it .csv, .tsv, .jsonl or .parquet")
    try:
        with path.open("rb") as beginning:
            magic = beginning.read(6)
        for start, what in PACKED.items():
            if magic.startswith(start):
                raise CollectError(f"{path}: is packed by {what}; unpack it, or pack it by gzip")
        if magic.startswith(b"PAR1"):
            yield from _read_parquet(path, asked, left_out)
            return
        if kind[1].lower() == "parquet":
            raise CollectError(f"{path}: is no Parquet file, its first bytes are {magic!r}")
        packed = magic.startswith(b"\x1f\x8b")
        with cast("BinaryIO", gzip.open(path)) if packed else path.open("rb") as file:
            if kind[1].lower() in ("jsonl", "ndjson"):
                yield from _read_jsonl(path, file, asked, left_out)
            else:
                yield from _read_csv(path, file, asked, left_out, scratch)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CollectError(f"{path}: damaged or truncated ({error}); download it again") from None
    except OSError as error:
        raise CollectError(f"{path}: cannot be read: {error.strerror or error}") from None


def _lines(path: Path, file: BinaryIO, left_out: Counter[str]) -> Iterator[str]:
    """The lines that are UTF-8 and of a sane length."""
    first = True
    while line := file.readline(LONGEST_LINE):
        if first and line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise CollectError(f"{path}: is UTF-16; save it as UTF-8")
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while (line := file.readline(LONGEST_LINE)) and not line.endswith(b"\n"):
                pass
            left_out["line too long"] += 1
            continue
        try:
            yield line.decode("utf-8-sig" if first else "utf-8")
        except UnicodeDecodeError:
            left_out["not UTF-8"] += 1
        first = False


def _read_csv(path: Path, file: BinaryIO, asked: Asked, left_out: Counter[str], scratch: Path) -> "Iterator[pa.Table]":
    lines = _lines(path, file, left_out)
    head = next(lines, "")
    if not head.strip() or "\0" in head:
        raise CollectError(f"{path}: {'the first line is no text' if head.strip() else 'empty, or its first line is'}")
    delimiter = max("\t,;|", key=head.count)
    if delimiter == "\t" and len(names := head.rstrip("\r\n").split("\t")) == 2 and any(map(_is_url, names)):
        layout = CC12M if _is_url(names[0]) else CC3M
        rows = _split(_chain(head, lines), delimiter, layout, 2, left_out)
        names = list(layout.names[:2])
    else:
        csv.field_size_limit(LONGEST_LINE)
        try:
            names = next(csv.reader(_chain(head, lines), delimiter=delimiter))
        except csv.Error as error:
            raise CollectError(f"{path}: the header cannot be read: {error}") from None
        if any(map(_is_url, names)):
            raise CollectError(f"{path}: the first line holds a URL and no names of columns; write a header above it")
        layout = choose_layout(path, names, asked)
        rows = _split(lines, delimiter, layout, len(names), left_out)
    keywords = Keywords(path, scratch, left_out) if layout is UNSPLASH else None
    places = {name: names.index(name) for name in layout.names if name in names}
    while block := list(islice(rows, BLOCK_ROWS)):
        columns = {name: [row[place] for row in block] for name, place in places.items()}
        if keywords:
            columns["keywords"] = keywords.of(columns["photo_id"])
        yield _table(columns, layout, left_out)


def _chain(head: str, lines: Iterator[str]) -> Iterator[str]:
    yield head
    yield from lines


def _is_url(text: str) -> bool:
    return text.strip().lower().startswith(("http://", "https://"))


def _split(
    lines: Iterable[str], delimiter: str, layout: Layout, width: int, left_out: Counter[str]
) -> Iterator[list[str]]:
    """Lines -> rows of `width` fields; a row left out counts as many lines as it took, so that none is lost unseen."""
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if layout.quotes else csv.QUOTE_NONE)
    before = 0
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:  # a field beyond the limit is what a quote that is never closed comes to
            reason = "quote not closed" if "limit" in str(error) else "carriage return inside a field"
            left_out[reason] += reader.line_num - before
        else:
            if row is None:
                return
            if reader.line_num - before > MOST_LINES:
                left_out["quote not closed"] += reader.line_num - before
            elif len(row) == width:
                yield row
            elif row:
                left_out["wrong number of fields"] += reader.line_num - before
        before = reader.line_num


def _read_jsonl(path: Path, file: BinaryIO, asked: Asked, left_out: Counter[str]) -> "Iterator[pa.Table]":
    records = _records(_lines(path, file, left_out), left_out)
    sample = list(islice(records, SAMPLE_LINES))
    if not sample:
        if left_out.total():
            raise CollectError(f"{path}: no line is a JSON object in UTF-8; JSONL has one a line")
        return  # a word of which nothing was found
    layout = choose_layout(path, list(dict.fromkeys(name for record in sample for name in record)), asked)
    while block := sample + list(islice(records, BLOCK_ROWS - len(sample))):
        sample = []
        yield _table({name: [record.get(name) for record in block] for name in layout.names}, layout, left_out)


def _records(lines: Iterable[str], left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "\\ud" in line.lower():  # half of a pair is JSON, and no text
                json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            left_out["not UTF-8"] += 1
        except (ValueError, RecursionError):
            left_out["not JSON"] += 1
        else:
            if isinstance(record, dict):
                yield record
            else:
                left_out["not a JSON object"] += 1


def _table(columns: Mapping[str, Sequence[Any]], layout: Layout, left_out: Counter[str]) -> "pa.Table":
    """Columns of text or JSON -> a table with the columns of Found."""
    import pyarrow as pa

    rows = len(next(iter(columns.values())))

    def values(what: str) -> list[Sequence[Any]]:
        return [columns[name] for name in layout.columns.get(what, ()) if name in columns]

    def lists(what: str) -> list[list[str]]:
        found = values(what)
        return [[text for value in row for text in _texts(value)] for row in zip(*found, strict=True)] or [[]] * rows

    made: dict[str, pa.Array] = {
        "url": pa.array([_text(value) for value in values("url")[0]], pa.string()),
        "captions": pa.array(lists("captions"), pa.list_(pa.string())),
        "queries": pa.array(lists("queries"), pa.list_(pa.string())),
    }
    for what in TEXTS:
        parts = values(what)
        constant = layout.constants.get(what, "")
        texts = [" ".join(filter(None, map(_text, row))) for row in zip(*parts, strict=True)] or [constant] * rows
        made[what] = pa.array(texts, pa.string())
    for what in ("width", "height"):
        sizes = [_pixels(value) for value in values(what)[0]] if values(what) else [None] * rows
        made[what] = pa.array(sizes, pa.int32())
    table = pa.table(made)
    if not layout.language[0]:
        return table
    wanted = [value == layout.language[1] for value in columns[layout.language[0]]]
    left_out[f"language is not {layout.language[1]}"] += rows - sum(wanted)
    return table.filter(pa.array(wanted, pa.bool_()))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _texts(value: Any) -> list[str]:
    """A text, or a list of them, which our own CSV holds as JSON."""
    if isinstance(value, list):
        return [_text(one) for one in value]
    if isinstance(value, str) and value.startswith(('["', "[]")):
        try:
            texts = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
        if all(isinstance(text, str) for text in texts):
            return [storable(text) for text in texts]  # an escape may be half of a pair
    return [_text(value)]


def _pixels(value: Any) -> int | None:
    try:
        pixels = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return pixels if 0 < pixels < 1 << 31 else None


def _read_parquet(path: Path, asked: Asked, left_out: Counter[str]) -> "Iterator[pa.Table]":
    import duckdb
    import pyarrow as pa

    source = "read_parquet(?, hive_partitioning = false)"
    name = [re.sub(r"([*?\[])", r"[\1]", str(path))]  # or DuckDB takes it for a pattern
    try:
        with duckdb.connect(config={"threads": 1, "memory_limit": "256MB"}) as connection:  # one thread keeps the order
            connection.execute("SET enable_progress_bar = false")
            described = connection.execute("DESCRIBE SELECT * FROM " + source, name).fetchall()  # noqa: S608
            types = {column: kind for column, kind, *_ in described}
            layout = choose_layout(path, list(types), asked)
            select = ", ".join(f"{expression} AS {what}" for what, expression in _expressions(path, types, layout))
            where = "true"
            if layout.language[0]:
                where = f"coalesce({_identifier(layout.language[0])} = {_literal(layout.language[1])}, false)"
                others = f"SELECT count(*) FROM {source} WHERE NOT {where}"  # noqa: S608
                left_out[f"language is not {layout.language[1]}"] += connection.execute(others, name).fetchall()[0][0]
            found = connection.sql(f"SELECT {select} FROM {source} WHERE {where}", params=name)  # noqa: S608
            for batch in found.to_arrow_reader(BLOCK_ROWS):
                yield pa.Table.from_batches([batch])
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CollectError(f"{path}: damaged, truncated or no Parquet file ({reason}); download it again") from None


def _expressions(path: Path, types: Mapping[str, str], layout: Layout) -> Iterator[tuple[str, str]]:
    """Each field of Found with the SQL that makes it of a Parquet's columns."""
    for what in ("url", "captions", "queries", *TEXTS, "width", "height"):
        names = [name for name in layout.columns.get(what, ()) if name in types]
        columns = [_identifier(name) for name in names]
        if what in ("url", "captions", "queries"):
            allowed = ("VARCHAR",) if what == "url" else ("VARCHAR", "VARCHAR[]")
            for name in names:
                if types[name] not in allowed:
                    raise CollectError(
                        f"{path}: column {name!r} is {types[name]}; {what} must be {' or '.join(allowed)}"
                    )
        if what == "url":
            yield what, columns[0]
        elif what in TEXTS:
            texts = [f"CAST({column} AS VARCHAR)" for column in columns]
            yield what, f"concat_ws(' ', {', '.join(texts)})" if texts else _literal(layout.constants.get(what, ""))
        elif what in ("width", "height"):
            size = f"TRY_CAST({columns[0]} AS INTEGER)" if columns else "CAST(NULL AS INTEGER)"
            yield what, f"CASE WHEN {size} > 0 THEN {size} END"
        else:
            lists = [c if types[n].endswith("[]") else f"[{c}]" for n, c in zip(names, columns, strict=True)]
            yield what, f"flatten([{', '.join(lists)}])" if lists else "CAST([] AS VARCHAR[])"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class Keywords:
    """Unsplash's keywords.tsv000 beside a list of photos; kept on the disk, as Full has more than fit into memory."""

    def __init__(self, photos: Path, scratch: Path, left_out: Counter[str]) -> None:
        import duckdb

        folder = photos.parent.resolve()
        database = scratch / f"keywords-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.duckdb"
        read = database.exists()  # for photos.tsv000 already, when it is photos.tsv001's turn
        self._connection = duckdb.connect(str(database), config={"memory_limit": "256MB", "threads": 1})
        if read:
            return
        self._connection.execute("CREATE TABLE keywords (number BIGINT, photo_id VARCHAR, keyword VARCHAR)")
        number = 0
        for path in sorted(folder.glob("keywords.[ct]sv*")):
            for block in _keyword_rows(path, left_out):
                self._connection.register("block", block)
                self._connection.execute(
                    "INSERT INTO keywords SELECT ? + number, photo_id, keyword FROM block", [number]
                )
                number += block.num_rows

    def of(self, photos: Sequence[str]) -> list[str]:
        """Each photo's keywords, joined by commas, in the file's order."""
        import pyarrow as pa

        self._connection.register("photos", pa.table({"photo_id": pa.array(photos, pa.string())}))
        found = self._connection.execute(
            "SELECT photo_id, string_agg(keyword, ', ' ORDER BY number) FROM keywords "
            "WHERE photo_id IN (SELECT photo_id FROM photos) AND keyword <> '' GROUP BY photo_id"
        ).fetchall()
        by_photo = dict(found)
        return [by_photo.get(photo, "") for photo in photos]


def _keyword_rows(path: Path, left_out: Counter[str]) -> "Iterator[pa.Table]":
    import pyarrow as pa

    counted: Counter[str] = Counter()
    with path.open("rb") as file:
        lines = _lines(path, file, counted)
        names = next(csv.reader([next(lines, "")], delimiter="\t"), [])
        if not {"photo_id", "keyword"} <= set(names):
            raise CollectError(f"{path}: has no columns photo_id and keyword; move it away to read the photos without")
        rows = _split(lines, "\t", UNSPLASH, len(names), counted)
        places = {name: names.index(name) for name in ("photo_id", "keyword")}
        while block := list(islice(rows, BLOCK_ROWS)):
            columns = {name: pa.array([row[place] for row in block]) for name, place in places.items()}
            yield pa.table({"number": pa.array(range(len(block))), **columns})
    left_out.update({f"keyword: {reason}": count for reason, count in counted.items()})
