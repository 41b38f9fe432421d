"""rows.parquet -> shards of images: one outcome with a reason for every row.

Rows are cut into shards by their order, so a shard is the same however it came about: train-00007.tar holds what could
be fetched of rows 70,000 to 79,999, in their order. Each shard is the work of one process, here or on a cluster, which
keeps what it has fetched in a spool: when it is killed half-way, the next one goes on with the rows not yet finished.
"""

import asyncio
import json
import platform
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from filelock import FileLock, Timeout
from rich.console import Console

from pocketclip.data.download import Downloader, host_of
from pocketclip.data.images import BadImage
from pocketclip.data.outcomes import FETCHED, Outcome, arrow, count, join_outcomes, read_outcomes, write_outcomes
from pocketclip.data.rows import Row
from pocketclip.data.shards import IMAGE_EXTENSIONS, write_manifest, write_shard
from pocketclip.data.shrink import shrink
from pocketclip.data.spool import Spool, Tally, count_path
from pocketclip.engine import Engine
from pocketclip.errors import DataError
from pocketclip.files import remove_unfinished, sha256, whole_file
from pocketclip.progress import WorkProgress
from pocketclip.recipe.collecting import FetchSettings

SPLIT = "train"
KEY = re.compile(r"[\w-][\w.-]{0,199}")  # names a file in a tar, and nothing outside of it
RESOLVERS = 64  # names looked up at a time; those that nobody answers for take many seconds
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
        """Where its outcomes go, when it is finished."""
        return Path(self.folder) / "outcomes" / f"{SPLIT}-{self.number:05d}.parquet"

    @property
    def spool(self) -> Path:
        """Where its rows lie while it is under way."""
        return Path(self.folder) / "outcomes" / f".{SPLIT}-{self.number:05d}.spool"

    @property
    def lock(self) -> Path:
        """Held by the one process that works on it; the worker of a killed fetch may take a moment to end."""
        return self.spool.with_suffix(".lock")

    @property
    def written(self) -> bool:
        """Whether the shard and its outcomes are there; rows of a later try may still wait in a spool."""
        return self.outcomes.exists() and self.tar.exists()


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "fetch.lock", timeout=0):
            _same_fetch(table, folder, short_side, settings)
            jobs = _jobs(table, rows, folder, short_side, settings, again)
            _run(jobs, rows, engine, console)
            reasons, hosts = join_outcomes([job.outcomes for job in jobs], folder / "outcomes.parquet")
            manifest = {"format": 1, "source": str(table), "short_side": short_side, "rows": {SPLIT: reasons[FETCHED]}}
            write_manifest(folder, manifest | {"outcomes": dict(reasons.most_common())})
            for job in jobs:
                job.lock.unlink(missing_ok=True)
                count_path(job.spool).unlink(missing_ok=True)
            for kind in ("manifest", "outcomes", "fetch"):
                remove_unfinished(folder, kind)
    except Timeout:
        raise DataError(
            f"{folder}: another process is fetching into it; wait for it, or choose another folder"
        ) from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise DataError(f"{folder}: cannot be written to ({error.strerror}); choose another folder") from None
    return Fetched(reasons, hosts)


def _jobs(table: Path, rows: int, folder: Path, short_side: int, settings: FetchSettings, again: bool) -> list[Job]:
    size, source, target = settings.rows_per_shard, str(table.resolve()), str(folder.resolve())
    starts = enumerate(range(0, rows, size))
    return [Job(source, at, min(at + size, rows), target, n, short_side, settings, again) for n, at in starts]


def _run(jobs: Sequence[Job], rows: int, engine: Engine, console: Console) -> None:
    """Do the jobs that are not done."""
    open_jobs = [job for job in jobs if job.again or not job.written or job.spool.exists()]
    tally = Tally({job.spool: job.stop - job.start for job in open_jobs}, rows)
    with WorkProgress(console, "fetch", "rows", rows, tally.rows) as progress, tally.shown(progress):
        for job, reasons in zip(open_jobs, engine.map(fetch_shard, open_jobs), strict=True):
            tally.finish(job.spool, reasons)


def fetch_shard(job: Job) -> Counter[str]:
    """Fetch one shard's rows and write it; returns rows by outcome. Runs in a worker.

    Rows in the spool of a killed process are finished; a later try that was killed is merged into the shard even where
    nothing is to be tried again now, as the shard may hold some of its rows already.
    """
    job.lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(job.lock, timeout=30):
        for folder in (job.tar.parent, job.outcomes.parent):
            remove_unfinished(folder, job.tar.stem)
        outcomes = read_outcomes(job.outcomes) if job.written else []
        if outcomes and [one.row for one in outcomes] != list(range(job.start, job.stop)):
            raise DataError(f"{job.outcomes}: damaged (other rows); delete it, and its rows are fetched again")
        due = {one.row for one in outcomes if one.may_pass and job.again} if outcomes else {*range(job.start, job.stop)}
        if not due and not job.spool.exists():
            return count(outcomes)
        rows = _read_rows(job)
        with Spool(job.spool) as spool:
            unfit = _unfit(rows)
            missing = [row for row in sorted(due) if row not in spool.outcomes]
            for row in missing:
                if reason := unfit.get(row - job.start):
                    values = rows[row - job.start]
                    url = values["url"] or ""
                    spool.add(Outcome(row, values["key"] or "", url, host_of(url), reason), None)
            todo = {row: rows[row - job.start] for row in missing if row - job.start not in unfit}
            asyncio.run(_fetch_rows(job, todo, spool))
            known = {one.row: one for one in outcomes} | spool.outcomes
            write_shard(_images(job, rows, known, spool), job.tar)
            ordered = [known[row] for row in range(job.start, job.stop)]
            write_outcomes(ordered, job.outcomes)
        job.spool.unlink()
    return count(ordered)


def _unfit(rows: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Rows that need no request, as no shard could hold them, with the reason."""
    unfit: dict[int, str] = {}
    keys: set[str] = set()
    for number, values in enumerate(rows):
        if not KEY.fullmatch(values["key"] or ""):
            unfit[number] = "key names no file"
        elif values["key"] in keys:
            unfit[number] = "key of another row"
        elif not _captions(values):
            unfit[number] = "no caption"
        keys.add(values["key"])
    return unfit


def _captions(values: dict[str, Any]) -> tuple[str, ...]:
    """A row's captions, or what it was found by if it has none."""
    for name in ("captions", "queries"):
        if texts := tuple(text for text in values[name] or () if text and text.strip()):
            return texts
    return ()


def _images(job: Job, rows: list[dict[str, Any]], known: dict[int, Outcome], spool: Spool) -> Iterator[Row]:
    """The shard's rows in order: from the spool, or from the tar that is there already."""
    fetched = [row for row, one in sorted(known.items()) if one.outcome == FETCHED]
    before: dict[str, tuple[int, int, str]] = {}
    with ExitStack() as stack:
        try:
            if not set(fetched) <= set(spool.outcomes):
                file = stack.enter_context(job.tar.open("rb"))
                before = _where(file)
            for row in fetched:
                values = rows[row - job.start]
                image = spool.image(row)
                if image is None:
                    start, length, extension = before[values["key"]]
                    file.seek(start)
                    image = file.read(length), extension
                metadata = {
                    name: values[name] for name in KEPT if isinstance(values.get(name), str | list) and values[name]
                }
                yield Row(values["key"], *image, _captions(values), metadata)
        except (tarfile.TarError, KeyError):
            raise DataError(f"{job.tar}: damaged; delete it, and its rows are fetched again") from None


def _where(file: BinaryIO) -> dict[str, tuple[int, int, str]]:
    """KEY -> start, length and extension of the images in a tar."""
    found = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            key, _, extension = member.name.rpartition(".")
            if extension in IMAGE_EXTENSIONS:
                found[key] = (member.offset_data, member.size, extension)
    return found


async def _fetch_rows(job: Job, rows: dict[int, dict[str, Any]], spool: Spool) -> None:
    """Fetch rows, many hosts at a time, at most a few connections to each."""
    by_host: dict[str, list[int]] = defaultdict(list)
    for row, values in rows.items():
        by_host[host_of(values["url"] or "")].append(row)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(RESOLVERS))
    with ThreadPoolExecutor(1) as decoder:
        async with Downloader(job.settings) as downloader, asyncio.TaskGroup() as tasks:
            # One line of waiting rows a host, each with its few clerks: a slow host holds up no other.
            for host, waiting in by_host.items():
                clerk = Clerk(job, rows, host, iter(waiting), downloader, decoder, spool)
                for _ in range(min(job.settings.connections_per_host, len(waiting))):
                    tasks.create_task(clerk.serve())


@dataclass(frozen=True, slots=True)
class Clerk:
    """Fetches the rows of one host's line, one after the other."""

    job: Job
    rows: dict[int, dict[str, Any]]
    host: str
    line: Iterator[int]
    downloader: Downloader
    decoder: ThreadPoolExecutor
    spool: Spool

    async def serve(self) -> None:
        """Until the line is empty; several may serve the same line."""
        for row in self.line:
            await self._fetch(row, self.rows[row]["key"], self.rows[row]["url"] or "")

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
            except Exception as error:  # what Pillow says of one strange file is no reason to stop for the others
                bad = f"cannot be shrunk ({type(error).__name__})"

        found = await self.downloader.get(url, use)
        reason = found.reason or bad or FETCHED
        outcome = Outcome(row, key, url, self.host, reason, found.may_pass, found.status, found.attempts, found.size)
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
        types = {column.name: column.type for column in file.schema_arrow}
        for name, kind in (("key", "text"), ("url", "text"), ("captions", "list"), ("queries", "list")):
            if name not in types:
                raise DataError(f"{table}: has no column {name}; `pocketclip join` makes such tables of any list")
            inner = types[name].value_type if kind == "list" and pa.types.is_list(types[name]) else types[name]
            if not pa.types.is_string(inner) or (kind == "list") != pa.types.is_list(types[name]):
                raise DataError(f"{table}: column {name} is {types[name]}, not {kind}; make it with `pocketclip join`")
        if not file.metadata.num_rows:
            raise DataError(f"{table}: holds no rows")
        return int(file.metadata.num_rows)


def _read_rows(job: Job) -> list[dict[str, Any]]:
    """The job's rows, reading only the groups of the file that hold them."""
    pa, pq = arrow()
    try:
        with pq.ParquetFile(job.table) as file:
            names = [name for name in file.schema_arrow.names if name in {*KEPT, "key", "captions"}]
            found, first = [], 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if first < job.stop and first + size > job.start:
                    start, stop = max(0, job.start - first), min(size, job.stop - first)
                    found.append(file.read_row_group(group, columns=names).slice(start, stop - start))
                first += size
        rows: list[dict[str, Any]] = pa.concat_tables(found).to_pylist()
    except FileNotFoundError:
        raise DataError(
            f"{job.table}: not there on {platform.node()}; a cluster's machines all need it at this path"
        ) from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{job.table}: damaged ({error}); write it again with `pocketclip join`") from None
    return rows


def _same_fetch(table: Path, folder: Path, short_side: int, settings: FetchSettings) -> None:
    """Keep what the shards depend on, or raise DataError if an earlier run in this folder had it otherwise."""
    decisive = {"rows_per_shard", "quality", "most_bytes", "most_pixels", "opt_out"}
    asked = {"table": sha256(table), "short_side": short_side, **settings.model_dump(include=decisive)}
    kept = folder / "fetch.json"
    try:
        before = dict(json.loads(kept.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if any(folder.glob("*.tar")):
            raise DataError(f"{folder}: holds shards that were not fetched here; choose another folder") from None
        with whole_file(kept) as temporary:
            temporary.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
        return
    except (ValueError, TypeError):
        raise DataError(f"{kept}: damaged; delete the folder to fetch anew") from None
    changed = [name for name, value in asked.items() if before.get(name) != value]
    if changed:
        raise DataError(
            f"{folder}: was begun with another {changed[0]} ({before.get(changed[0])}, now {asked[changed[0]]}); "
            "choose another folder, or delete it to fetch anew"
        )
