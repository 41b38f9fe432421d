"""Words x providers -> found/*.jsonl, one request after the other at each provider, all providers at once.

A provider has two files, only ever appended to: PROVIDER.jsonl with a row a line, and PROVIDER.requests.jsonl with a
line for each finished request. The rows are on the disk before the request's line is written, and the line says how
long their file is then. What a killed search left behind the last line is cut off; what stands in a line is not asked
again, but for a page of which images_per_word left rows out: a search for more images takes the rest of it.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from filelock import FileLock, Timeout
from rich.console import Console

from pocketclip import __version__
from pocketclip.collect.payload import clean, decode
from pocketclip.collect.providers import Page, Provider
from pocketclip.errors import CollectError, Stopped
from pocketclip.progress import WorkProgress
from pocketclip.recipe.collecting import SearchSettings

if TYPE_CHECKING:
    from aiohttp import ClientSession

USER_AGENT = (
    f"PocketCLIP/{__version__} (open-source search for openly licensed images, one request at a time; "
    "contact: whoever runs it at this address)"
)
TIMEOUT = 60.0  # seconds for one request, from connection to last byte
RETRIES = 3  # after a failure that may pass
BACKOFF = 5.0  # seconds before the first retry, doubled each time; what MediaWiki asks for when it lags
FAILURES = 5  # queries in a row, then the provider is left alone
MOST_BYTES = 20 << 20  # of one answer; a page of 50 images with all their texts has well under 1 MB


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """A line of PROVIDER.requests.jsonl.

    page, next: names of pages that only the provider understands; next is None where the query has no more, and `page`
    itself where images_per_word left rows of it out.
    rows, skipped: images kept, and those that cannot be used. length: bytes of PROVIDER.jsonl with this page's rows.
    limited_until: when the next request is welcome, where this one used up a limit (ISO 8601).
    """

    query: str
    page: str
    rows: int
    skipped: int
    next: str | None
    length: int
    limited_until: str | None = None


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search did at one provider.

    requests, rows, skipped, failed: of this run; failed queries are tried again by the next one.
    finished: of all `queries`, in this run or before.
    stopped_because: "" where every query was tried. goes_on_at: when a rate limit lifts.
    """

    provider: str
    requests: int
    rows: int
    skipped: int
    failed: int
    finished: int
    queries: int
    stopped_because: str = ""
    goes_on_at: datetime | None = None


def search_images(
    words: Sequence[str], providers: Sequence[Provider], folder: Path, settings: SearchSettings, console: Console
) -> tuple[Searched, ...]:
    """Ask each provider for images of each word, keep its answers in `folder`, go on where a search stopped.

    Raises CollectError where `folder` cannot be used or is in use, and Stopped after Ctrl-C. A provider that fails, or
    wants to be left alone, raises nothing: the others go on, and its entry in the result says why it stopped.
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise CollectError("search needs aiohttp, which is not installed: pip install 'pocketclip[collect]'") from None
    queries = tuple(dict.fromkeys(filter(None, map(clean, words))))
    if len({provider.name for provider in providers}) < len(providers):
        raise CollectError("search.providers: a provider is named twice; name each once")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "search.lock", timeout=0), ExitStack() as stack:
            files = [stack.enter_context(FoundFiles(folder, provider.name)) for provider in providers]
            return asyncio.run(_search_all(queries, providers, files, settings, console))
    except Timeout:
        raise CollectError(f"{folder}: another search writes into it; wait for it, or choose another folder") from None
    except BaseExceptionGroup as group:  # of tasks that were stopped because one failed
        raise group.exceptions[0] from None
    except KeyboardInterrupt:
        raise Stopped(f"search stopped, all that was found is in {folder}; the same command goes on") from None


async def _search_all(
    queries: tuple[str, ...],
    providers: Sequence[Provider],
    files: Sequence["FoundFiles"],
    settings: SearchSettings,
    console: Console,
) -> tuple[Searched, ...]:
    import aiohttp

    session = aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=TIMEOUT),
        headers={"User-Agent": USER_AGENT, "Accept": "application/json"},
        cookie_jar=aiohttp.DummyCookieJar(),
    )
    progress = WorkProgress(console, "search", "images", None, sum(file.rows for file in files))

    def show(rows: int) -> None:
        finished, requests = sum(one.finished for one in searches), sum(one.requests for one in searches)
        of = len(queries) * len(searches)
        progress.advance(rows, f"{finished:,} of {of:,} queries, {requests:,} requests")

    searches = [
        ProviderSearch(provider, file, queries, session, settings, console, show)
        for provider, file in zip(providers, files, strict=True)
    ]
    async with session:
        with progress:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(search.run()) for search in searches]
    return tuple(task.result() for task in tasks)


class _Query(NamedTuple):
    """How far a query has come: rows kept so far, the page to ask for, None behind the last, rows kept of that page."""

    rows: int = 0
    next: str | None = ""
    taken: int = 0


class FoundFiles:
    """The two files of a provider, and what they say of each query.

    Raises CollectError where they are damaged in a way that no killed search explains.
    """

    def __init__(self, folder: Path, provider: str) -> None:
        self.path, self.log = folder / f"{provider}.jsonl", folder / f"{provider}.requests.jsonl"
        self.rows = self.length = 0
        self.limited_until: datetime | None = None
        self._queries: dict[str, _Query] = {}
        if not self.log.exists() and self.path.exists() and self.path.stat().st_size:
            raise CollectError(f"{self.log}: is missing, so {self.path.name} cannot be gone on with; move that away")
        for path in (self.log, self.path):  # in this order: rows without a log are refused above
            path.touch()
        os.truncate(self.log, self._restore())
        os.truncate(self.path, self.length)
        self._rows_file, self._log_file = self.path.open("ab"), self.log.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._rows_file, self._log_file):
            with suppress(OSError):  # what a full disk did not take belongs to no finished request
                file.close()

    def of(self, query: str) -> _Query:
        """How far a query has come."""
        return self._queries.get(query, _Query())

    def finish(self, query: str, page: str, answer: Page, limited_until: datetime | None) -> None:
        """Keep a page's rows, then that its request is finished."""
        rows = b"".join(_line(row.to_json()) for row in answer.rows)
        until = limited_until.isoformat() if limited_until else None
        request = FinishedRequest(
            query, page, len(answer.rows), answer.skipped, answer.next, self.length + len(rows), until
        )
        try:
            self._rows_file.write(rows)
            self._rows_file.flush()
            os.fsync(self._rows_file.fileno())
            self._log_file.write(_line(asdict(request)))
            self._log_file.flush()
        except OSError as error:
            raise CollectError(f"{self.path}: cannot be written: {error.strerror}; the same command goes on") from None
        self._count(request)

    def _restore(self) -> int:
        """Read the log up to its last whole line whose rows are there; return where that ends."""
        size, end = self.path.stat().st_size, 0
        with self.log.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                request = _read_line(line)
                if request is None or request.length < self.length:
                    raise CollectError(
                        f"{self.log}: line {number} is no finished request; put the file back as it was, or move it "
                        f"and {self.path.name} away to search anew"
                    )
                if request.length > size:  # the machine lost power before these rows reached the disk
                    break
                self._count(request)
                end += len(line)
        return end

    def _count(self, request: FinishedRequest) -> None:
        self.rows += request.rows
        self.length = request.length
        self.limited_until = datetime.fromisoformat(request.limited_until) if request.limited_until else None
        before = self.of(request.query)
        taken = before.taken + request.rows if request.next == request.page else 0
        self._queries[request.query] = _Query(before.rows + request.rows, request.next, taken)


class _Passing(Exception):
    """A failure that may pass: worth another try."""


class _Failed(Exception):
    """A query that is left for the next run."""


class _Stop(Exception):
    """A provider that is left alone."""

    def __init__(self, reason: str, goes_on_at: datetime | None = None) -> None:
        super().__init__(reason)
        self.goes_on_at = goes_on_at


class ProviderSearch:
    """The search at one provider, one request after the other."""

    def __init__(
        self,
        provider: Provider,
        files: FoundFiles,
        queries: tuple[str, ...],
        session: "ClientSession",
        settings: SearchSettings,
        console: Console,
        show: Callable[[int], None],
    ) -> None:
        self.provider, self.files, self.queries, self.session = provider, files, queries, session
        self.settings, self.console, self.show = settings, console, show
        self.requests = self.rows = self.skipped = self.failed = 0
        self.finished = sum(self._is_finished(query) for query in queries)
        self._failed_in_a_row = 0
        self._limited_until = files.limited_until
        self._next_request = 0.0

    async def run(self) -> Searched:
        """Ask for all queries that are not finished, as far as the provider allows."""
        because, goes_on_at = "", None
        if self.provider.notice and self.finished < len(self.queries):
            self._say(self.provider.notice)
        try:
            for query in self.queries:
                if not self._is_finished(query):
                    await self._search(query)
        except _Stop as stop:
            because, goes_on_at = str(stop), stop.goes_on_at
            when = f" at {_clock(goes_on_at)}" if goes_on_at else ""
            self._say(f"stopped: {because}; the same command goes on{when}")
        return Searched(
            self.provider.name, self.requests, self.rows, self.skipped, self.failed, self.finished, len(self.queries),
            because, goes_on_at,
        )  # fmt: skip

    async def _search(self, query: str) -> None:
        """All pages of a query that are not there yet."""
        try:
            while not self._is_finished(query):
                await self._search_page(query, self.files.of(query).next or "")
                self._failed_in_a_row = 0
            self.finished += 1
        except _Failed as failure:
            self.failed += 1
            self._failed_in_a_row += 1
            self._say(f"{query}: {failure}; left for the next run")
            if self._failed_in_a_row >= FAILURES:
                raise _Stop(f"{FAILURES} queries failed in a row, the last one with: {failure}") from None

    async def _search_page(self, query: str, page: str) -> None:
        answer = await self._ask(query, page)
        so_far = self.files.of(query)
        room = self.settings.images_per_word - so_far.rows
        rows = answer.rows[so_far.taken :]
        # A page without a row, or one that leads to itself, would go on for ever.
        onward = answer.next if answer.rows and answer.next != page else None
        kept = Page(rows[:room], 0 if so_far.taken else answer.skipped, page if len(rows) > room else onward)
        self.files.finish(query, page, kept, self._limited_until)
        self.rows += len(kept.rows)
        self.skipped += kept.skipped
        self.show(len(kept.rows))

    async def _ask(self, query: str, page: str) -> Page:
        """One page, tried again while that may help. Raises _Failed or _Stop."""
        for attempt in range(RETRIES + 1):
            if attempt and not self._limited_until:
                await asyncio.sleep(BACKOFF * 2 ** (attempt - 1))
            await self._wait_for_limit()
            try:
                status, body = await self._get(query, page)
                if status == 200:
                    return self.provider.parse(decode(body, self.provider.name, query), query, page)
            except (_Passing, CollectError) as error:
                failure = str(error).removeprefix(f"{self.provider.name}: {query}: ")
            else:
                failure = f"answered with HTTP status {status}"
                if self._limited_until or status >= 500:
                    continue
                if status in (401, 403):
                    raise _Stop(f"refuses this program (HTTP status {status}); check its key, if it needs one")
                break
        raise _Failed(failure)

    async def _get(self, query: str, page: str) -> tuple[int, bytes]:
        """One request. Raises _Passing where no answer came, _Failed where it was too long."""
        from aiohttp import ClientError

        request = self.provider.request(query, page)
        await asyncio.sleep(max(0.0, self._next_request - time.monotonic()))
        self._next_request = time.monotonic() + self.provider.pause
        self.requests += 1
        body = bytearray()
        try:
            async with self.session.get(
                request.url, params=request.params, headers=request.headers, allow_redirects=False
            ) as response:
                async for chunk in response.content.iter_chunked(1 << 16):
                    body += chunk
                    if len(body) > MOST_BYTES:
                        raise _Failed(f"answered with more than {MOST_BYTES >> 20} MB")
        except (ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            raise _Passing(str(error) or type(error).__name__) from None
        now = datetime.now(UTC)
        self._limited_until = self.provider.limited_until(response.status, response.headers, bytes(body), now)
        return response.status, bytes(body)

    async def _wait_for_limit(self) -> None:
        if self._limited_until is None:
            return
        seconds = (self._limited_until - datetime.now(UTC)).total_seconds()
        if seconds > self.settings.longest_wait * 60:
            raise _Stop("rate limit reached", self._limited_until)
        if seconds > 0:
            self._say(f"rate limit reached; waiting until {_clock(self._limited_until)}")
            await asyncio.sleep(seconds)
        self._limited_until = None

    def _is_finished(self, query: str) -> bool:
        so_far = self.files.of(query)
        return so_far.next is None or so_far.rows >= self.settings.images_per_word

    def _say(self, message: str) -> None:
        # What comes from words and providers is no markup.
        self.console.print(f"{self.provider.name}: {message}", markup=False, highlight=False, soft_wrap=True)


def _clock(moment: datetime) -> str:
    """Local time, with the day where it is another one."""
    local = moment.astimezone()
    today = local.date() == datetime.now().astimezone().date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _read_line(line: bytes) -> FinishedRequest | None:
    """A finished request, None where the line is none."""
    try:
        request = FinishedRequest(**json.loads(line))
        zone = datetime.fromisoformat(request.limited_until).tzinfo if request.limited_until else UTC
    except (ValueError, TypeError, RecursionError):
        return None
    texts = isinstance(request.query, str) and isinstance(request.page, str) and isinstance(request.next, str | None)
    numbers = isinstance(request.rows, int) and isinstance(request.length, int)
    return request if texts and numbers and zone else None
