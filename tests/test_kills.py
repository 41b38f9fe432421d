"""`kill -9`, ten times at random moments of a search, a fetch and a pack: they end with what an undisturbed run leaves.

Each stage is a real process, and the kill is what the out-of-memory killer does: it hits the one process that was
started, and that one's workers have to end by themselves. The moments are drawn over the work that the undisturbed run
did, from a seed that is printed; KILLS_SEED=NUMBER repeats a run.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from collect.server import PROVIDERS, ImageServer
from data.test_download import Host, picture
from pocketclip.data.outcomes import read_outcomes
from pocketclip.data.spool import Spool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="POSIX signals"),
]
KILLS = 10
EARLY = 0.2  # share of the kills that come before the process has begun to work
LAG = 0.01  # seconds of a server before each answer, so that kills come while answers are waited for


def start(folder: Path, *arguments: object, code: str = "") -> subprocess.Popen[bytes]:
    """A command in a session of its own; what it says is in said.txt. code: goes before the program."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "UNSPLASH_ACCESS_KEY": "key"}
    program = ["-c", f"{code}\nfrom pocketclip.cli.main import main\nmain()"] if code else ["-m", "pocketclip"]
    with (folder.parent / f"{folder.name}-said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for a command's good end."""
    said = folder.parent / f"{folder.name}-said.txt"
    assert process.wait(300) == 0, said.read_text()


def kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill the process alone and see its workers end; False where it had ended already."""
    try:
        workers = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        workers = []
    process.kill()
    killed = process.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(workers, timeout=30)
    alive = [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not alive, "workers outlived their parent"
    return killed


def files(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder, hidden files too; empty files that were locks say nothing."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@dataclass
class Trial:
    """A command under fire.

    run: starts it in a folder. prepare: makes such a folder's input. sign: changes when a process begins to work there.
    finished: what a folder holds that must not be asked for again. asked: what the server was asked for, in order.
    in_flight: requests at a time, at most. complete: whether a folder, killed at the very end, holds all that the
    command makes, which then refuses to make it again.
    """

    run: Callable[[Path], subprocess.Popen[bytes]]
    prepare: Callable[[Path], None]
    chance: random.Random
    sign: Callable[[Path], object]
    finished: Callable[[Path], set[object]] = lambda _: set()
    asked: Callable[[], list[object]] = list
    in_flight: int = 0
    complete: Callable[[Path], bool] = lambda _: False
    landed: int = field(default=0, init=False)
    busy: int = field(default=0, init=False)
    requests: int = field(default=0, init=False)
    repeated: int = field(default=0, init=False)

    def undisturbed(self, folder: Path) -> None:
        """Run once and measure how long it takes until work has begun, and how long the work takes."""
        self.prepare(folder)
        began = time.monotonic()
        process = self._begun(folder)
        self.startup = time.monotonic() - began
        finish(process, folder)
        self.work = time.monotonic() - began - self.startup
        self.alone = len(self.asked())

    def _begun(self, folder: Path) -> subprocess.Popen[bytes]:
        """A process that has begun to work, or has ended."""
        before, process = self.sign(folder), self.run(folder)
        while self.sign(folder) == before and process.poll() is None:
            time.sleep(0.005)
        return process

    def fire(self, folder: Path) -> None:
        """Kill it until KILLS have hit a running process, then let it come to its end.

        What ends before all of them came has to be right as well; the others hit one that begins anew.
        """
        whole, rounds = files(folder), 0
        while self.landed < KILLS:
            rounds += 1
            killed = folder.with_name(f"{folder.name}-killed-{rounds}")
            self.prepare(killed)
            before = len(self.asked())
            self._fire_once(killed, KILLS - self.landed)
            asked = self.asked()[before:]
            self.requests += len(asked)
            self.repeated += len(asked) - self.alone
            assert set(asked) == set(self.asked()[: self.alone])
            assert files(killed).keys() == whole.keys()
            assert [name for name, content in files(killed).items() if content != whole[name]] == []
        print(
            f"{self.work:.1f} s of work; {self.landed} kills in {rounds} rounds, {self.busy} with work in hand; "
            f"{self.alone} requests undisturbed, {self.requests} with kills, {self.repeated} of them repeated"
        )
        assert self.busy, "all kills hit processes that had not begun"

    def _fire_once(self, folder: Path, kills: int) -> None:
        first, worked = len(self.asked()), 0.0
        done: set[object] = set()
        halves: set[Path] = set()
        for delay in self._delays(kills):
            before = len(self.asked())
            early = self.chance.random() < EARLY
            process = self.run(folder) if early else self._begun(folder)
            began = time.monotonic()
            try:
                process.wait(self.chance.random() * self.startup if early else delay)
            except subprocess.TimeoutExpired:
                self.landed += kill(process)
            assert process.returncode in (0, -signal.SIGKILL), self._said(folder)
            assert not done & set(self.asked()[before:]), "finished, and asked for again"
            worked += 0.0 if early else time.monotonic() - began
            if process.returncode and self.complete(folder):
                assert self.run(folder).wait(300) == 2, self._said(folder)  # and clears up what the killed one left
            if process.returncode == 0 or self.complete(folder):
                self.work = min(self.work, worked)  # the machine has less to do now than when this was measured
                return
            done = self.finished(folder)
            unfinished = set(self.asked()[first:]) - done
            assert len(unfinished) <= self.in_flight, "answered, and not kept"
            left = {path for path in folder.rglob(".*.part") if path.is_file()}
            self.busy += bool(unfinished or left - halves)
            halves |= left
        before = len(self.asked())
        finish(self.run(folder), folder)
        assert not done & set(self.asked()[before:]), "finished, and asked for again"

    def _delays(self, kills: int) -> list[float]:
        """From the beginning of work to each kill: moments all over it; what was done before the last one counts."""
        moments = sorted(self.chance.random() * self.work for _ in range(kills))
        return [later - earlier for earlier, later in pairwise([0.0, *moments])]

    def _said(self, folder: Path) -> str:
        return (folder.parent / f"{folder.name}-said.txt").read_text()


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("KILLS_SEED") or int.from_bytes(os.urandom(2)))
    print(f"KILLS_SEED={seed}")
    return random.Random(seed)


SEARCH = """
data.folder = "data"
search = { providers = ["unsplash", "openverse", "wikimedia"], images_per_word = 60, unsplash = "URL/unsplash", \
openverse = "URL/openverse", wikimedia = "URL/wikimedia" }
"""
# Their pauses are for the sake of the real services; with them, nearly all kills would hit a search that sleeps.
NO_PAUSE = """
from pocketclip.collect.providers import Openverse, Unsplash, Wikimedia
for provider in (Openverse, Unsplash, Wikimedia):
    provider.__init__.__defaults__ = (*provider.__init__.__defaults__[:-1], 0.0)
"""


def finished_requests(folder: Path) -> set[object]:
    """(provider, query, page) of the whole lines in the requests' files, the pages named as the server has them."""
    found: set[object] = set()
    for name in PROVIDERS:
        path = folder / "data" / "found" / f"{name}.requests.jsonl"
        for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():
            request = json.loads(line)
            page = request["page"].removeprefix("gsroffset=").partition("&")[0]
            found.add((name, request["query"], page or {"wikimedia": "0"}.get(name, "1")))
    return found


def test_a_search(tmp_path: Path, chance: random.Random) -> None:
    words = [f"word{n}" for n in range(60)]
    with ImageServer({word: 7 * (number % 9) for number, word in enumerate(words)}) as server:
        server.delay = LAG

        def prepare(folder: Path) -> None:
            (folder / "data").mkdir(parents=True)
            (folder / "data" / "words.tsv").write_text("\n".join(["word\tcount", *(f"{word}\t9" for word in words)]))
            (folder / "recipe.toml").write_text(SEARCH.replace("URL", server.url))

        trial = Trial(
            lambda folder: start(folder, "search", "recipe.toml", code=NO_PAUSE),
            prepare,
            chance,
            lambda _: len(server.log),
            finished_requests,
            lambda: [(asked.provider, asked.query, asked.page) for asked in server.log],
            in_flight=len(PROVIDERS),
        )
        calm = tmp_path / "calm"
        trial.undisturbed(calm)
        trial.fire(calm)
    tables = set()
    for folder in (calm, *tmp_path.glob("calm-killed-?")):
        finish(start(folder, "join", "recipe.toml"), folder)
        tables.add((folder / "data" / "rows.parquet").read_bytes())
    assert len(tables) == 1


FETCH = """
data.folder = "data"
image.size = 64

[fetch]
allow_private = true
rows_per_shard = 100
connections = 8
connections_per_host = 4
retries = 1
backoff = 0
"""


def lagging(content: bytes, status: int = 200):
    async def answer(_: web.Request) -> web.Response:
        await asyncio.sleep(LAG)
        return web.Response(body=content, status=status)

    return answer


ANSWERS = {
    "small": lagging(picture()),
    "large": lagging(picture(300, 200, "JPEG")),
    "gone": lagging(b"", 404),
    "broken": lagging(b"", 500),
    "page": lagging(b"<html></html>"),
}


def write_rows(path: Path, server: Host, number: int) -> None:
    """A table as `join` writes it, of two hosts, most of whose rows can be fetched."""
    kinds = random.Random(5).choices(list(ANSWERS), (6, 10, 1, 1, 1), k=number)
    hosts = [f"http://{name}:{server.port}" for name in ("127.0.0.1", "localhost")]
    texts = pa.list_(pa.string())
    columns = {
        "key": pa.array([f"{n:016x}" for n in range(number)]),
        "url": pa.array([f"{hosts[n % 2]}/{kind}/{n}" for n, kind in enumerate(kinds)]),
        "captions": pa.array([[f"caption {n}"] for n in range(number)], texts),
        "queries": pa.array([["dog"]] * number, texts),
    }
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), path)


def finished_rows(folder: Path) -> set[object]:
    """The paths of the rows that a folder of `fetch` has an outcome of, in a spool or in a finished shard."""
    found = []
    for spool in folder.rglob(".*.spool"):
        # Opening one cuts off what it does not hold whole. Of one that has ended meanwhile the shard is read below.
        with tempfile.TemporaryDirectory() as other, suppress(FileNotFoundError):
            copy = Path(shutil.copy(spool, other))
            with Spool(copy) as opened:
                found += opened.outcomes.values()
    for part in folder.rglob("train-*.parquet"):
        found += read_outcomes(part)
    return {"/" + one.url.split("/", 3)[3] for one in found}


def test_a_fetch(tmp_path: Path, chance: random.Random) -> None:
    with Host(ANSWERS) as server:

        def prepare(folder: Path) -> None:
            write_rows(folder / "data" / "rows.parquet", server, 1500)
            (folder / "recipe.toml").write_text(FETCH)

        trial = Trial(
            lambda folder: start(folder, "fetch", "recipe.toml", "--workers", 2),
            prepare,
            chance,
            lambda _: len(server.order),
            finished_rows,
            lambda: server.order,
            in_flight=2 * 2 * 4,  # workers, hosts, connections to each; a row between two tries holds its place there
        )
        trial.undisturbed(tmp_path / "calm")
        trial.fire(tmp_path / "calm")
    outcomes = read_outcomes(next(tmp_path.glob("calm/**/outcomes.parquet")))
    assert {one.attempts for one in outcomes} == {1, 2}
    assert len({one.outcome for one in outcomes}) == 4


def write_images(folder: Path, number: int) -> None:
    """Images of different sizes with captions beside them, a few of no use."""
    chance = random.Random(7)
    drawn = [picture(chance.randint(150, 400), chance.randint(150, 400), "JPEG", f"#{n:02x}80ff") for n in range(40)]
    for n in range(number):
        path = folder / f"{n % 7}" / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn[n % 40][: None if n % 97 else 100])
        if n % 101:
            path.with_suffix(".txt").write_text(f"caption {n}\nanother of {n}")


def test_a_pack(tmp_path: Path, chance: random.Random) -> None:
    write_images(tmp_path / "images", 6000)
    command = ("pack", tmp_path / "images", "packed", "--short-side", 64, "--test", 0.1, "--workers", 2)
    complete = lambda folder: (folder / "packed" / "manifest.json").exists()  # noqa: E731
    half_written = lambda folder: {path for path in folder.rglob(".*.part") if path.is_file()}  # noqa: E731
    trial = Trial(lambda folder: start(folder, *command), Path.mkdir, chance, half_written, complete=complete)
    calm = tmp_path / "calm"
    trial.undisturbed(calm)
    trial.fire(calm)
    assert len(list(calm.glob("packed/*.tar"))) > 2
