"""What became of each row that was fetched: one line a row, with its reason.

outcomes.parquet      row, key, url, host, outcome ("fetched" or the reason), status, attempts, bytes
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketclip.errors import DataError
from pocketclip.files import whole_file

FETCHED = "fetched"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row.

    row: its number in rows.parquet. outcome: "fetched", or why there is no image. may_pass: another try later makes
    sense. status: the server's, None where it gave none. attempts: tries that were made, 0 where its host had been
    given up. bytes: of the file as it came.
    """

    row: int
    key: str
    url: str
    host: str
    outcome: str
    may_pass: bool = False
    status: int | None = None
    attempts: int = 0
    bytes: int = 0


def write_outcomes(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write outcomes, in the order of their rows, as Parquet."""
    pa, pq = arrow()
    columns = {name: [getattr(one, name) for one in outcomes] for name in Outcome.__slots__}
    with whole_file(path) as temporary:
        pq.write_table(pa.table(columns, schema=_schema(pa)), temporary)


def read_outcomes(path: Path) -> list[Outcome]:
    """Read what `write_outcomes` wrote; raises DataError if it is damaged."""
    return [Outcome(**line) for line in _read(path).to_pylist()]


def join_outcomes(parts: Sequence[Path], path: Path) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """All parts as one file; returns rows by outcome, and failures by (host, outcome)."""
    pa, pq = arrow()
    reasons: Counter[str] = Counter()
    hosts: Counter[tuple[str, str]] = Counter()
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, _schema(pa)) as writer:
        for part in parts:
            table = _read(part)
            writer.write_table(table)
            outcomes = table["outcome"].to_pylist()
            reasons.update(outcomes)
            failed = zip(table["host"].to_pylist(), outcomes, strict=True)
            hosts.update((host, outcome) for host, outcome in failed if outcome != FETCHED)
    return reasons, hosts


def _read(path: Path) -> Any:
    pa, pq = arrow()
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        if not table.schema.equals(_schema(pa)):
            raise ValueError("other columns than outcomes have")
        table.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged ({error}); delete it, and its rows are fetched again") from None
    return table


def count(outcomes: Iterable[Outcome]) -> Counter[str]:
    """Rows by outcome."""
    return Counter(one.outcome for one in outcomes)


def arrow() -> tuple[Any, Any]:
    """Pyarrow and its Parquet module; raises DataError where the extra is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("Parquet files need the extra: pip install 'pocketclip[collect]'") from None
    return pyarrow, pyarrow.parquet


def _schema(pa: Any) -> Any:
    return pa.schema(
        {
            "row": pa.int64(),
            "key": pa.string(),
            "url": pa.string(),
            "host": pa.string(),
            "outcome": pa.string(),
            "may_pass": pa.bool_(),
            "status": pa.int16(),
            "attempts": pa.int16(),
            "bytes": pa.int64(),
        }
    )
