"""Sorted rows of found images -> a row an image, chunk by chunk, in Arrow."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

MOST_CAPTIONS = 1000  # of one image, and queries; a URL with more is a placeholder or a counter
FIELDS = ("url", "captions", "queries", "provider", "id", "page", "author", "licence", "licence_url", "width", "height")


def found_schema(key: str) -> "pa.Schema":
    """The columns of Found behind a column named `key`."""
    import pyarrow as pa

    kinds = {
        "captions": pa.list_(pa.string()),
        "queries": pa.list_(pa.string()),
        "width": pa.int32(),
        "height": pa.int32(),
    }
    return pa.schema([(name, kinds.get(name, pa.string())) for name in (key, *FIELDS)])


def regroup(tables: "Iterable[pa.Table]", rows: int) -> "Iterator[pa.Table]":
    """The same rows in tables of exactly `rows`, but for the last, so that what is done with them never varies."""
    import pyarrow as pa

    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += len(table)
        while count >= rows:
            together = pa.concat_tables(waiting)
            yield together.slice(0, rows).combine_chunks()
            waiting, count = [together.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(waiting).combine_chunks()


def merge_neighbours(table: "pa.Table") -> "pa.Table":
    """Rows sorted by image -> a row an image: its first one, with the captions and queries of all, without repeats.

    At most MOST_CAPTIONS + 1 of each are kept, the last to show that there were more. Merging what was merged, with the
    rows that follow, gives the same as merging all at once.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    image = table.column("image").combine_chunks()
    starts = np.flatnonzero(
        np.concatenate([[True], pc.not_equal(image[1:], image[:-1]).to_numpy(zero_copy_only=False)])
    )
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(image))))
    merged = table.take(pa.array(starts))
    for name in ("captions", "queries"):
        column = table.column(name).combine_chunks()
        of = group[pc.list_parent_indices(column).to_numpy()]
        values = column.flatten()
        same = values.dictionary_encode()
        pair = of * (len(same.dictionary) + 1) + same.indices.to_numpy()
        kept = np.sort(np.unique(pair, return_index=True)[1])
        counts = np.bincount(of[kept], minlength=len(starts))
        place = np.arange(len(kept)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = kept[place <= MOST_CAPTIONS]
        offsets = np.concatenate([[0], np.cumsum(np.minimum(counts, MOST_CAPTIONS + 1))]).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(offsets), values.take(pa.array(kept)))
        merged = merged.set_column(merged.schema.get_field_index(name), merged.schema.field(name), lists)
    return merged
