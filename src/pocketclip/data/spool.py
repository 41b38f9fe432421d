"""What a shard under way has so far: rows as they come, kept so that a killed process loses none that was finished.

A tar of ROW.json (the outcome) behind ROW.EXTENSION (the image, if there is one), in the order in which downloads end.
A last member that was cut short is dropped when the file is opened again. A small file beside it says from time to time
how many rows it holds, for whoever shows the progress.
"""

import io
import json
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from pocketclip.data.outcomes import FETCHED, Outcome
from pocketclip.data.tar import BLOCK, member
from pocketclip.errors import DataError
from pocketclip.progress import WorkProgress

SAID_EVERY = 1.0  # seconds between two counts
LOOK_EVERY = 2.0  # seconds between two looks at them


class Spool:
    """Finished rows of one shard; `with` opens and closes it.

    outcomes: row -> outcome, of this process and of those before. Images are read back from the file, not held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[int, Outcome] = {}
        self._reasons: Counter[str] = Counter()
        self._said = 0.0
        self._images: dict[int, tuple[int, int, str]] = {}

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        end = self._read()
        self._file.truncate(end)
        self._reasons.update(one.outcome for one in self.outcomes.values())
        self._say()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._say()

    def _read(self) -> int:
        """Take over what the file holds; returns where the last whole row ends."""
        whole = 0
        image: dict[int, tuple[int, int, str]] = {}
        self._file.seek(0)
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for one in tar:
                    row, _, extension = one.name.partition(".")
                    if extension != "json":
                        image[int(row)] = (one.offset_data, one.size, extension)
                        continue
                    content = tar.extractfile(one)
                    text = content.read() if content else b""
                    if len(text) < one.size:
                        break
                    self.outcomes[int(row)] = Outcome(**json.loads(text))
                    if int(row) in image:
                        self._images[int(row)] = image.pop(int(row))
                    whole = one.offset_data + -(-one.size // BLOCK) * BLOCK
        except (tarfile.TarError, ValueError, TypeError, OSError):
            pass  # the tail of a killed process
        return whole

    def add(self, outcome: Outcome, image: bytes | None, extension: str = "") -> None:
        """Keep a finished row; it outlives this process from here on."""
        start = self._file.seek(0, io.SEEK_END)
        content = json.dumps({name: getattr(outcome, name) for name in Outcome.__slots__}).encode()
        if image is None:
            self._file.write(member(f"{outcome.row}.json", content))
        else:
            self._file.write(member(f"{outcome.row}.{extension}", image) + member(f"{outcome.row}.json", content))
            self._images[outcome.row] = (start + BLOCK, len(image), extension)
        self._file.flush()
        self.outcomes[outcome.row] = outcome
        self._reasons[outcome.outcome] += 1
        if time.monotonic() - self._said > SAID_EVERY:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        count_path(self.path).write_text(json.dumps(self._reasons), encoding="utf-8")

    def image(self, row: int) -> tuple[bytes, str] | None:
        """A row's image and its extension; None where it has none."""
        if row not in self._images:
            return None
        start, size, extension = self._images[row]
        self._file.seek(start)
        data = self._file.read(size)
        if len(data) != size:
            raise DataError(f"{self.path}: damaged; delete it, and its rows are fetched again")
        return data, extension


def count_path(spool: Path) -> Path:
    """Where a spool's count is; it outlives the spool, until its shard has been counted."""
    return spool.with_suffix(".count")


def read_count(path: Path) -> Counter[str]:
    """Rows by outcome that a spool held lately; none where nothing is known, or it is being written just now."""
    try:
        return Counter(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Counter()


class Tally:
    """How far a fetch is: its finished shards, and what the spools say of those under way, wherever that is.

    shards: spool -> rows, of those that are to be done. total: rows of all shards. rows: that are done; where a shard
    is tried again, its rows that need no second try count at its end.
    """

    def __init__(self, shards: Mapping[Path, int], total: int) -> None:
        self._shards = {count_path(spool): rows for spool, rows in shards.items()}
        self._under_way = {path: Counter[str]() for path in self._shards}
        self._lock = threading.Lock()
        self._finished = total - sum(shards.values())
        self._reasons: Counter[str] = Counter()
        for spool in shards:
            if count_path(spool).exists() and not spool.exists():  # of a shard that was finished, and is tried again
                count_path(spool).unlink()
        self.rows = self._look()

    def finish(self, spool: Path, reasons: Counter[str]) -> None:
        """A shard is done, with these rows by outcome."""
        with self._lock:
            path = count_path(spool)
            del self._under_way[path]
            self._finished += self._shards[path]
            self._reasons += reasons

    def _look(self) -> int:
        for folder in {path.parent for path in self._under_way}:
            for path in self._under_way.keys() & set(folder.glob(".*.count")):
                self._under_way[path] = read_count(path) or self._under_way[path]
        return self._finished + sum(map(Counter.total, self._under_way.values()))

    def show(self, progress: WorkProgress) -> None:
        """Bring the line up to date."""
        with self._lock:
            rows = self._look()
            reasons = sum(self._under_way.values(), self._reasons)
        worst = [f"{reason} {number:,}" for reason, number in reasons.most_common(4) if reason != FETCHED][:3]
        progress.advance(max(0, rows - self.rows), f"{reasons[FETCHED]:,} images  {', '.join(worst)}")
        self.rows = max(rows, self.rows)

    @contextmanager
    def shown(self, progress: WorkProgress) -> Iterator[None]:
        """Show it every few seconds, from a thread, and once more when the block ends."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(LOOK_EVERY):
                self.show(progress)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.show(progress)
