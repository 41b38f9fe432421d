"""rows.parquet -> shards of images: one outcome with a reason for every row.

Rows are cut into shards by their order, so a shard is the same however it came about: train-00007.tar holds what could
be fetched of rows 70,000 to 79,999, in their order. Each shard is the work of one process, here or on a cluster; what it
has fetched it keeps in a spool, so that a process killed half-way goes on with the rows it had not finished.
"""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from rich.console import Console

from pocketclip.data.download import Downloader, host_of
from pocketclip.data.images import BadImage, shrink
from pocketclip.data.outcomes import FETCHED, Outcome, arrow, count, join_outcomes, read_outcomes, write_outcomes
from pocketclip.data.rows import Row
from pocketclip.data.shards import Shard, write_manifest, write_shard
from pocketclip.data.spool import Spool
from pocketclip.engine import Engine
from pocketclip.errors import DataError
from pocketclip.files import sha256, whole_file
from pocketclip.progress import WorkProgress
from pocketclip.recipe.schema import FetchSettings

SPLIT = "train"
KEPT = ("url", "queries", "provider", "id", "page", "author", "licence", "licence_url")  # beside the image, as JSON


@dataclass(frozen=True, slots=True)
class Job:
    """One shard: rows `start` to `stop` of a table.

    again: fetch anew the rows whose failure may pass; else only rows that have no outcome yet.
    """

    table: str
    start: int
    stop: int
    folder: str
    number: int
    short_side: int
    settings: FetchSettings
    again: bool

    @property
    def tar(self) -> Path:
        """Where the shard goes."""
        return Path(self.folder) / f"{SPLIT}-{self.number:05d}.tar"

    @property
    def outcomes(self) -> Path:
        """Where its outcomes go; the file's existence means that the shard is finished."""
        return Path(self.folder) / "outcomes" / f"{SPLIT}-{self.number:05d}.parquet"

    @property
    def spool(self) -> Path:
        """Where its rows lie while it is under way."""
        return Path(self.folder) / "outcomes" / f".{SPLIT}-{self.number:05d}.spool"


class Fetched(NamedTuple):
    """What all shards of a fetch hold: rows by outcome, failures by host and reason."""

    reasons: Counter[str]
    hosts: Counter[tuple[str, str]]


def fetch(
    table: Path, folder: Path, short_side: int, settings: FetchSettings, engine: Engine, console: Console, again: bool
) -> Fetched:
    """Download the images of a table into shards, or go on with that.

    table: rows.parquet, as `join` writes it. short_side: pixels to which the short side of larger images is shrunk.
    again: try rows once more whose failure may pass.
    Raises DataError where the table or the folder cannot be used.
    """
    rows = _rows_in(table)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "fetch.lock", timeout=0):
            _same_fetch(table, folder, short_side, settings)
            size = settings.rows_per_shard
            jobs = [
                Job(
                    str(table.resolve()),
                    start,
                    min(start + size, rows),
                    str(folder.resolve()),
                    number,
                    short_side,
                    settings,
                    again,
                )
                for number, start in enumerate(range(0, rows, size))
            ]
            _run(jobs, rows, engine, console)
            reasons, hosts = join_outcomes([job.outcomes for job in jobs], folder / "outcomes.parquet")
            manifest = {"format": 1, "source": str(table), "short_side": short_side, "rows": {SPLIT: reasons[FETCHED]}}
            write_manifest(folder, manifest | {"outcomes": dict(reasons.most_common())})
    except Timeout:
        raise DataError(
            f"{folder}: another process is fetching into it; wait for it, or choose another folder"
        ) from None
    return Fetched(reasons, hosts)


def _run(jobs: Sequence[Job], rows: int, engine: Engine, console: Console) -> None:
    """Do the jobs that are not done."""
    open_jobs = [job for job in jobs if job.again or not job.outcomes.exists()]
    done = rows - sum(job.stop - job.start for job in open_jobs)
    failed: Counter[str] = Counter()
    fetched = 0
    with WorkProgress(console, "fetch", "rows", rows, done) as progress:
        for job, reasons in zip(open_jobs, engine.map(fetch_shard, open_jobs), strict=True):
            failed.update({reason: number for reason, number in reasons.items() if reason != FETCHED})
            fetched += reasons[FETCHED]
            worst = ", ".join(f"{reason} {number:,}" for reason, number in failed.most_common(3))
            progress.advance(job.stop - job.start, f"{fetched:,} images  {worst}")


def fetch_shard(job: Job) -> Counter[str]:
    """Fetch one shard's rows and write it; returns rows by outcome. Runs in a worker."""
    outcomes = read_outcomes(job.outcomes) if job.outcomes.exists() else []
    due = {one.row for one in outcomes if one.may_pass} if outcomes else set(range(job.start, job.stop))
    if not due:
        return count(outcomes)
    rows = _read_rows(job)
    with FileLock(str(job.spool) + ".lock", timeout=30), Spool(job.spool) as spool:
        missing = [row for row in sorted(due) if row not in spool.outcomes]
        asyncio.run(_fetch_rows(job, {row: rows[row - job.start] for row in missing}, spool))
        known = {one.row: one for one in outcomes} | spool.outcomes
        write_shard(_images(job, rows, known, spool), job.tar)
        ordered = [known[row] for row in range(job.start, job.stop)]
        write_outcomes(ordered, job.outcomes)
    job.spool.unlink()
    Path(str(job.spool) + ".lock").unlink(missing_ok=True)
    return count(ordered)


def _images(job: Job, rows: list[dict[str, Any]], known: dict[int, Outcome], spool: Spool) -> Iterator[Row]:
    """The shard's rows in order: from the spool, or from the tar that is there already."""
    before: dict[str, tuple[bytes, str]] = {}
    if any(one.outcome == FETCHED and row not in spool.outcomes for row, one in known.items()):
        shard = Shard(job.tar)
        before = {str(key): (shard.image(number), shard.extension(number)) for number, key in enumerate(shard.keys)}
    for row in range(job.start, job.stop):
        if known[row].outcome == FETCHED:
            values = rows[row - job.start]
            image, extension = spool.image(row) or before[values["key"]]
            metadata = {name: values[name] for name in KEPT if values.get(name)}
            captions = tuple(values["captions"]) or tuple(values["queries"])
            yield Row(values["key"], image, extension, captions, metadata)


async def _fetch_rows(job: Job, rows: dict[int, dict[str, Any]], spool: Spool) -> None:
    """Fetch rows, many hosts at a time, at most a few connections to each."""
    by_host: dict[str, list[int]] = defaultdict(list)
    for row, values in rows.items():
        by_host[host_of(values["url"])].append(row)
    with ThreadPoolExecutor(1) as decoder:
        async with Downloader(job.settings) as downloader, asyncio.TaskGroup() as tasks:
            # One line of waiting rows a host, each with its few clerks: a slow host holds up no other.
            for waiting in by_host.values():
                clerk = Clerk(job, rows, iter(waiting), downloader, decoder, spool)
                for _ in range(min(job.settings.connections_per_host, len(waiting))):
                    tasks.create_task(clerk.serve())


@dataclass(frozen=True, slots=True)
class Clerk:
    """Fetches the rows of one host's line, one after the other."""

    job: Job
    rows: dict[int, dict[str, Any]]
    line: Iterator[int]
    downloader: Downloader
    decoder: ThreadPoolExecutor
    spool: Spool

    async def serve(self) -> None:
        """Until the line is empty; several may serve the same line."""
        for row in self.line:
            await self._fetch(row, self.rows[row]["key"], self.rows[row]["url"])

    async def _fetch(self, row: int, key: str, url: str) -> None:
        settings, loop = self.job.settings, asyncio.get_running_loop()
        shrunk: list[tuple[bytes, str]] = []
        bad = ""

        async def use(data: bytes) -> None:
            nonlocal bad
            try:
                arguments = (data, self.job.short_side, settings.quality, settings.most_pixels)
                shrunk.append(await loop.run_in_executor(self.decoder, shrink, *arguments))
            except BadImage as error:
                bad = str(error)

        found = await self.downloader.get(url, use)
        reason = found.reason or bad or FETCHED
        outcome = Outcome(row, key, url, host_of(url), reason, found.may_pass, found.status, found.attempts, found.size)
        image, extension = shrunk[0] if shrunk else (None, "")
        self.spool.add(outcome, image, extension)


def _rows_in(table: Path) -> int:
    pa, pq = arrow()
    try:
        file = pq.ParquetFile(table)
    except FileNotFoundError:
        raise DataError(f"{table}: missing; `pocketclip join` writes it") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{table}: not a Parquet file ({error}); write it again with `pocketclip join`") from None
    with file:
        missing = {"key", "url", "captions", "queries"} - set(file.schema_arrow.names)
        if missing:
            raise DataError(
                f"{table}: has no column {sorted(missing)[0]}; `pocketclip join` makes such tables of any list"
            )
        if not file.metadata.num_rows:
            raise DataError(f"{table}: holds no rows")
        return int(file.metadata.num_rows)


def _read_rows(job: Job) -> list[dict[str, Any]]:
    """The job's rows, reading only the groups of the file that hold them."""
    pa, pq = arrow()
    with pq.ParquetFile(job.table) as file:
        found, first = [], 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if first < job.stop and first + size > job.start:
                part = file.read_row_group(group)
                found.append(
                    part.slice(max(0, job.start - first), min(size, job.stop - first) - max(0, job.start - first))
                )
            first += size
    rows: list[dict[str, Any]] = pa.concat_tables(found).to_pylist()
    return rows


def _same_fetch(table: Path, folder: Path, short_side: int, settings: FetchSettings) -> None:
    """Keep what the shards depend on, or raise DataError if an earlier run in this folder had it otherwise."""
    decisive = {"rows_per_shard", "quality", "most_bytes", "most_pixels"}
    asked = {"table": sha256(table), "short_side": short_side, **settings.model_dump(include=decisive)}
    kept = folder / "fetch.json"
    try:
        before = json.loads(kept.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(folder.glob("*.tar")):
            raise DataError(f"{folder}: holds shards that were not fetched here; choose another folder") from None
        with whole_file(kept) as temporary:
            temporary.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
        return
    except ValueError:
        raise DataError(f"{kept}: damaged; delete the folder to fetch anew") from None
    changed = [name for name, value in asked.items() if before.get(name) != value]
    if changed:
        raise DataError(
            f"{folder}: was begun with another {changed[0]} ({before.get(changed[0])}, now {asked[changed[0]]}); choose "
            "another folder, or delete it to fetch anew"
        )
