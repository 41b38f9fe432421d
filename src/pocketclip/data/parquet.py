"""Parquet with paths, or with the images as Hugging Face's `datasets` keeps them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketclip.data.columns import Columns, Line, choose
from pocketclip.data.outcomes import arrow
from pocketclip.data.sources import texts_in
from pocketclip.errors import DataError

ROWS = 64  # read at a time, images and all


def look_into(path: Path, columns: Columns) -> tuple[int, tuple[int, ...]]:
    """How many rows a file has, and how many each of its groups, () where it holds no images but paths alone.

    Raises DataError if the file is damaged or has no column of images or of captions.
    """
    with open_parquet(path) as file:
        image, _ = _columns(path, file.schema_arrow, columns)
        groups = (file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
        return int(file.metadata.num_rows), tuple(groups) if _holds_images(file, image) else ()


def parquet_lines(path: Path, columns: Columns, start: int = 0, stop: int | None = None) -> Iterator[Line]:
    """Rows `start` to `stop`, or to the end; an image is a path, bytes, or {bytes, path}."""
    pa, _ = arrow()
    with open_parquet(path) as file:
        image, captions = _columns(path, file.schema_arrow, columns)
        features = features_of(file.schema_arrow)
        classes = {name: features.get(name, {}).get("names") for name in captions}
        stop = file.metadata.num_rows if stop is None else stop
        groups, at, first = [], 0, 0
        for group in range(file.num_row_groups):  # only those that hold wanted rows are read
            last = first + file.metadata.row_group(group).num_rows
            if last <= start:
                at = last
            elif first < stop:
                groups.append(group)
            first = last
        try:
            for batch in file.iter_batches(ROWS, groups, list(dict.fromkeys([image, *captions]))):
                skip = min(max(start - at, 0), batch.num_rows)
                wanted = batch.slice(skip, max(stop - at - skip, 0))
                at += batch.num_rows
                for cells in wanted.to_pylist():
                    yield _line(cells, image, captions, classes)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{path}: damaged ({first_line(error)}); fetch or write it again") from None


def _columns(path: Path, schema: Any, columns: Columns) -> tuple[str, list[str]]:
    """The column of images, before all others the one that Hugging Face calls an image, and those of captions."""
    if not columns.image:
        images = [name for name, kind in features_of(schema).items() if kind.get("_type") == "Image"]
        columns = replace(columns, image=next((name for name in images if name in schema.names), ""))
    image, captions = choose(path, schema.names, columns)
    _check_image(path, schema, image)
    return image, captions


def _holds_images(file: Any, column: str) -> bool:
    """Whether a file holds images, not their paths alone; a column of {bytes, path} without any bytes has paths."""
    pa, _ = arrow()
    kind = file.schema_arrow.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not pa.types.is_struct(kind):
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        chunks = [about.column(number) for number in range(about.num_columns)]
        for known in (chunk.statistics for chunk in chunks if chunk.path_in_schema == f"{column}.bytes"):
            if known is None or known.null_count != about.num_rows:
                return True
    return False


def _line(cells: Mapping[str, Any], image: str, captions: Sequence[str], classes: Mapping[str, Any]) -> Line:
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
    return Line(picture or "", found, metadata)


def open_parquet(path: Path) -> Any:
    """A ParquetFile; raises DataError where it is none."""
    pa, pq = arrow()
    try:
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)  # or whole row groups are held
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged, or not a Parquet file ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """What Arrow says first; the rest is for its authors."""
    return str(error).partition("\n")[0]


def features_of(schema: Any) -> dict[str, dict[str, Any]]:
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
