"""Lists of found images -> one deduplicated rows.parquet, its rows in an order that spreads a fetch over all hosts.

DuckDB holds what does not fit into memory: rows are cleaned block by block and laid down in a temporary database,
images known under several URLs are linked there, and the sorted rows are merged as they stream past. Only sorts and
groups of values of fixed width are asked of DuckDB, as those spill to the disk; aggregates of lists do not.
"""

import csv
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from rich.console import Console

from pocketclip.collect.layouts import Asked
from pocketclip.collect.lists import find_lists, read_list
from pocketclip.collect.merge import FIELDS, MOST_CAPTIONS, found_schema, merge_neighbours, regroup
from pocketclip.errors import CollectError
from pocketclip.files import whole_file
from pocketclip.progress import WorkProgress

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

MEMORY = 768 << 20  # bytes, for DuckDB; Python, Arrow and the allocator take about as much again
THREAD_MEMORY = 256 << 20  # bytes; a thread with less than that cannot sort
CHUNK_ROWS = 1 << 16  # merged at once
GROUP_ROWS = 1 << 16  # in a row group of the Parquet file
LONGEST_URL = 4096  # characters; servers refuse longer ones
LONGEST_TEXT = 4096  # characters of provenance
LONGEST_CAPTION = 1 << 14  # characters; a model reads some 77 tokens

# The parts of a URL that decide whether two are the same; userinfo and query string stay as they are.
CLEAN = rf"""
WITH trimmed AS (
    SELECT number, trim(url, e' \t\r\n') AS url,
        [text FOR text IN [trim(text, e' \t\r\n') FOR text IN captions] IF text <> ''] AS texts,
        [text FOR text IN [trim(text, e' \t\r\n') FOR text IN queries] IF text <> ''] AS queries,
        trim(provider) AS provider, trim(id) AS id, trim(page) AS page,
        trim(author) AS author, trim(licence) AS licence,
        trim(licence_url) AS licence_url, width, height
    FROM block
), split AS (
    SELECT * REPLACE (CASE WHEN length(url) <= {LONGEST_URL} THEN url ELSE '' END AS url), length(url) AS url_length,
        [text FOR text IN texts IF length(text) <= {LONGEST_CAPTION} AND NOT contains(text, chr(0))] AS captions,
        regexp_extract(
            url, '^(?i:(https?))://([^/?#]*@)?([^/?#@\s]+)((?:[/?][^#]*)?)(?:#|$)', ['scheme', 'user', 'host', 'rest']
        ) AS part
    FROM trimmed
), normal AS (
    SELECT * REPLACE (
        lower(part.scheme) || '://' || part.user
        || CASE lower(part.scheme) WHEN 'http' THEN regexp_replace(lower(part.host), ':(80)?$', '')
            ELSE regexp_replace(lower(part.host), ':(443)?$', '') END
        || CASE WHEN part.rest LIKE '/%' THEN '' ELSE '/' END || part.rest AS url),
        CASE WHEN coalesce(url_length, 0) = 0 THEN 'no URL'
            WHEN url_length > {LONGEST_URL} THEN 'URL too long'
            WHEN part.host = '' THEN 'URL not http or https'
            WHEN regexp_matches(url, '[\x00-\x1f\x7f]') THEN 'control character in URL'
            WHEN len(texts) = 0 AND len(queries) = 0 THEN 'no caption'
            WHEN len(captions) = 0 AND len(texts) > 0 THEN 'caption too long or with a NUL'
            WHEN greatest(length(provider), length(id), length(page), length(author), length(licence),
                length(licence_url), list_max([length(text) FOR text IN queries])) > {LONGEST_TEXT}
                THEN 'provenance too long' END AS reason
    FROM split
)
SELECT md5(url)::UUID AS url_hash,
    CASE WHEN provider <> '' AND id <> '' THEN md5(length(provider) || ':' || provider || id)::UUID END AS id_hash,
    len(texts) - len(captions) AS cut, * EXCLUDE (texts, url_length, part) FROM normal
"""  # noqa: S608

KEEP = "INSERT INTO rows BY NAME SELECT * EXCLUDE (cut, reason) FROM cleaned WHERE reason IS NULL"
ROWS = """
CREATE TABLE rows (number BIGINT, url_hash UUID, id_hash UUID, url VARCHAR, captions VARCHAR[], queries VARCHAR[],
    provider VARCHAR, id VARCHAR, page VARCHAR, author VARCHAR, licence VARCHAR, licence_url VARCHAR,
    width INTEGER, height INTEGER)
"""

# Images known under several URLs. `links` says which ids stand beside which URLs, where that can matter; a URL goes by
# the number of its first row. Each round points every URL to the smallest it shares an id with, follows those
# pointers to their ends and contracts what it found, so the rounds needed grow as the logarithm of a chain's length.
LINKS = """
CREATE TABLE shared AS
    SELECT id_hash FROM rows WHERE id_hash IS NOT NULL GROUP BY id_hash HAVING min(url_hash) <> max(url_hash);
CREATE TABLE members AS
    SELECT DISTINCT url_hash, id_hash FROM rows WHERE id_hash IN (SELECT id_hash FROM shared);
CREATE TABLE nodes AS
    SELECT url_hash, min(number) AS first, min(number) AS root FROM rows
    WHERE url_hash IN (SELECT url_hash FROM members) GROUP BY url_hash;
CREATE TABLE links AS SELECT DISTINCT first AS root, id_hash FROM members JOIN nodes USING (url_hash);
"""
POINT = """
CREATE OR REPLACE TABLE pointers AS
    WITH smallest AS (SELECT id_hash, min(root) AS least FROM links GROUP BY id_hash)
    SELECT root, min(least) AS target FROM links JOIN smallest USING (id_hash) GROUP BY root HAVING min(least) < root
"""
FOLLOW = """
CREATE OR REPLACE TABLE pointers AS
    SELECT one.root, coalesce(two.target, one.target) AS target FROM pointers one LEFT JOIN pointers two
    ON one.target = two.root
"""
UNFINISHED = "SELECT count(*) FROM pointers WHERE target IN (SELECT root FROM pointers)"
CONTRACT = """
CREATE OR REPLACE TABLE nodes AS
    SELECT url_hash, first, coalesce(target, nodes.root) AS root FROM nodes LEFT JOIN pointers USING (root);
CREATE OR REPLACE TABLE links AS
    SELECT DISTINCT coalesce(target, links.root) AS root, id_hash FROM links LEFT JOIN pointers USING (root);
"""
SORTED = """
SELECT replace(coalesce(heads.url_hash, rows.url_hash)::VARCHAR, '-', '') AS image,
    rows.* EXCLUDE (number, url_hash, id_hash)
FROM rows LEFT JOIN nodes ON nodes.url_hash = rows.url_hash LEFT JOIN nodes heads ON heads.first = nodes.root
ORDER BY coalesce(heads.url_hash, rows.url_hash), number
"""


@dataclass(slots=True)
class Summary:
    """What became of the rows of all lists: read = images + merged + the sum of left_out.

    left_out: rows, or lines that are none, by reason. captions_left_out: of images that were kept, too long or with a
    NUL. captions_cut: images with more than MOST_CAPTIONS captions or queries, which keep the first ones.
    """

    read: int = 0
    images: int = 0
    merged: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    captions_left_out: int = 0
    captions_cut: int = 0


def join_lists(
    sources: Sequence[Path], output: Path, console: Console, memory: int = MEMORY, asked: Asked | None = None
) -> Summary:
    """Join lists of found images, or folders of such lists, into one Parquet or CSV file with a row an image.

    output: .parquet, or .csv with captions and queries as JSON. Columns: `key`, the first 16 hexadecimal digits of the
    MD5 of `url`, then those of Found. Sorted by key. memory: bytes that DuckDB may take.

    Rows are one image if they share a URL or a provider and id, or are linked by such rows over any number of steps.
    URLs are compared, and written, with scheme and host in lower case, without a default port, a fragment or space
    around them, and with "/" for an empty path; nothing else of them is changed. An image has the URL and provenance of
    its first row, in the order of the sources and of the rows in each; captions and queries are those of all its rows
    in that order, without repeats. The same sources in the same order give the same bytes with any threads and memory.

    Memory is bounded for any number of rows and of repeats; disk beside `output` is needed for about twice the sources.
    Raises CollectError where a list cannot be used, nothing remains or another process joins into `output`; `output` is
    then what it was before.
    """
    if output.suffix not in (".parquet", ".csv"):
        raise CollectError(f"{output}: name the joined file .parquet or .csv")
    duckdb = _import_duckdb()
    lists = find_lists(sources)
    summary = Summary()
    try:
        with _scratch(output) as scratch, _database(scratch, memory) as connection, whole_file(output) as temporary:
            _read(lists, connection, asked or Asked(), summary, scratch, console)
            rows = _count(connection, "SELECT count(*) FROM rows")
            if not rows:
                raise CollectError(_nothing(lists, summary))
            _link(connection, console)
            write = _write_parquet if output.suffix == ".parquet" else _write_csv
            with WorkProgress(console, "join", "rows", rows) as progress:
                write(temporary, _images(connection, summary, progress.advance))
            summary.merged = rows - summary.images
    except duckdb.OutOfMemoryException as error:
        raise CollectError(
            f"{output}: {memory >> 20} MB are too little to join in; give more memory ({_first(error)})"
        ) from None
    except duckdb.Error as error:
        raise CollectError(f"{output}: the join failed: {_first(error)}") from None
    except OSError as error:
        raise CollectError(f"{output}: cannot be written: {error.strerror or error}") from None
    console.print(f"{output}: {summary.images:,} images of {summary.read:,} rows; {_reasons(summary)}", highlight=False)
    return summary


def _import_duckdb() -> Any:
    try:
        import duckdb
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise CollectError(f"join needs {error.name}: pip install 'pocketclip[collect]'") from None
    return duckdb


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A folder beside `output` for what does not fit into memory; what killed joins left there is removed.

    Raises CollectError where another process joins into `output`.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output.with_name(f".{output.name}.lock"), timeout=0):
            # No dot between the name and .part, or it may be of an output whose name only begins like this one.
            leftover = re.compile(re.escape(f".{output.name}.") + r"\w+\.part")
            for path in output.parent.iterdir():
                if leftover.fullmatch(path.name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".part", dir=output.parent) as folder:
                yield Path(folder)
    except Timeout:
        raise CollectError(
            f"{output}: another process is joining into it; wait for it, or choose another output"
        ) from None


@contextmanager
def _database(scratch: Path, memory: int) -> "Iterator[duckdb.DuckDBPyConnection]":
    import duckdb

    with duckdb.connect(str(scratch / "rows.duckdb")) as connection:
        threads = connection.sql("SELECT current_setting('threads')").fetchall()[0][0]
        connection.execute("SET threads = ?", [max(1, min(threads, memory // THREAD_MEMORY))])
        connection.execute("SET memory_limit = ?", [f"{memory >> 10}KiB"])
        connection.execute("SET temp_directory = ?", [str(scratch / "spilled")])
        connection.execute(
            "SET preserve_insertion_order = false"
        )  # what is ordered says so; the rest takes less memory
        connection.execute("SET enable_progress_bar = false")
        connection.execute(ROWS)
        yield connection


def _read(
    lists: Sequence[Path],
    connection: "duckdb.DuckDBPyConnection",
    asked: Asked,
    summary: Summary,
    scratch: Path,
    console: Console,
) -> None:
    """Lay all usable rows down in the table `rows`, numbered in the order of the sources."""
    with WorkProgress(console, "read", "rows", None) as progress:
        for path in lists:
            no_rows: Counter[str] = Counter()
            for block in read_list(path, asked, no_rows, scratch):
                _lay_down(block, summary, connection)
                progress.advance(len(block), path.name)
            summary.read += no_rows.total()
            summary.left_out += no_rows


def _lay_down(block: "pa.Table", summary: Summary, connection: "duckdb.DuckDBPyConnection") -> None:
    import pyarrow as pa

    connection.register(
        "block", block.append_column("number", pa.array(range(summary.read, summary.read + len(block))))
    )
    connection.execute("CREATE OR REPLACE TEMP TABLE cleaned AS " + CLEAN)
    connection.execute(KEEP)
    counted = connection.sql("SELECT reason, count(*), sum(cut) FROM cleaned GROUP BY reason").fetchall()
    for reason, rows, cut in counted:
        if reason is None:
            summary.captions_left_out += int(cut)
        else:
            summary.left_out[reason] += rows
    summary.read += len(block)


def _link(connection: "duckdb.DuckDBPyConnection", console: Console) -> None:
    """Find the URLs that are one image by their ids."""
    connection.execute(LINKS)
    while True:
        connection.execute(POINT)
        if not _count(connection, "SELECT count(*) FROM pointers"):
            break
        while _count(connection, UNFINISHED):
            connection.execute(FOLLOW)
        connection.execute(CONTRACT)
    if linked := _count(connection, "SELECT count(*) FROM nodes WHERE root <> first"):
        console.print(f"{linked:,} URLs are other addresses of an image, by its id", highlight=False)


def _count(connection: "duckdb.DuckDBPyConnection", query: str) -> int:
    return int(connection.sql(query).fetchall()[0][0])


def _images(
    connection: "duckdb.DuckDBPyConnection", summary: Summary, advance: Callable[[float], None]
) -> "Iterator[pa.Table]":
    """The sorted rows, merged, with the columns of the output."""
    import pyarrow as pa

    batches = connection.sql(SORTED).to_arrow_reader(CHUNK_ROWS)
    held = found_schema("image").empty_table()  # the last image, whose rows may go on in the next chunk
    for chunk in regroup((pa.Table.from_batches([batch]) for batch in batches), CHUNK_ROWS):
        merged = merge_neighbours(pa.concat_tables([held, chunk.cast(held.schema)]))
        yield _finish(merged.slice(0, len(merged) - 1), summary)
        held = merged.slice(len(merged) - 1)
        advance(len(chunk))
    yield _finish(held, summary)


def _finish(merged: "pa.Table", summary: Summary) -> "pa.Table":
    """Merged rows as they are written: with a key, and no more captions than are allowed."""
    import pyarrow.compute as pc

    summary.images += len(merged)
    over = [pc.greater(pc.list_value_length(merged.column(name)), MOST_CAPTIONS) for name in ("captions", "queries")]
    cut = pc.sum(pc.or_(*over)).as_py() or 0
    if cut:
        summary.captions_cut += cut
        for name in ("captions", "queries"):
            place, kind = merged.schema.get_field_index(name), merged.schema.field(name)
            merged = merged.set_column(
                place, kind, pc.list_slice(merged.column(name), 0, MOST_CAPTIONS).cast(kind.type)
            )
    keys = pc.utf8_slice_codeunits(merged.column("image"), 0, 16)
    return merged.set_column(0, "key", keys).cast(found_schema("key"))


def _unique(tables: "Iterable[pa.Table]") -> "Iterator[pa.Table]":
    """Pass sorted tables on; raises CollectError where two images have one key, as once in 60,000 joins of 24 M."""
    import pyarrow.compute as pc

    last = None
    for table in tables:
        keys = table.column("key").combine_chunks()
        if len(keys) and (keys[0] == last or pc.any(pc.equal(keys[1:], keys[:-1])).as_py()):
            raise CollectError("two URLs have the same key, the first half of their MD5; leave one of them out")
        last = keys[-1] if len(keys) else last
        yield table


def _write_parquet(path: Path, tables: "Iterator[pa.Table]") -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, found_schema("key"), compression="zstd") as writer:
        for table in regroup(_unique(tables), GROUP_ROWS):
            writer.write_table(table, row_group_size=GROUP_ROWS)


def _write_csv(path: Path, tables: "Iterator[pa.Table]") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("key", *FIELDS))
        for table in _unique(tables):
            columns = [
                [json.dumps(value, ensure_ascii=False) for value in column]
                if name in ("captions", "queries")
                else column
                for name, column in table.to_pydict().items()
            ]
            writer.writerows(zip(*columns, strict=True))


def _nothing(lists: Sequence[Path], summary: Summary) -> str:
    """Why no image remains."""
    named = str(lists[0]) + (f" and {len(lists) - 1:,} more" if len(lists) > 1 else "")
    if not summary.read:
        return f"{named}: no image in it; let `pocketclip search` find some, or name another list"
    return f"{named}: none of {summary.read:,} rows can be used; {_reasons(summary)}"


def _reasons(summary: Summary) -> str:
    reasons = [f"{count:,} {reason}" for reason, count in summary.left_out.most_common()]
    return "left out: " + (", ".join(reasons) or "none")


def _first(error: Exception) -> str:
    return str(error).splitlines()[0]
