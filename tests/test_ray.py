"""The engine `ray` on a cluster of two machines, which here are two `ray start`s of this one.

    pip install "pocketclip[ray]"
    pytest -m peer tests/test_ray.py

What the local processes make is what has to come out, also where a machine is lost half-way.
"""

import bz2
import contextlib
import importlib.util
import itertools
import os
import random
import secrets
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data.test_download import Host
from pocketclip.collect.bzip2 import find_blocks
from pocketclip.engine import Engine, open_engine
from pocketclip.errors import CollectError, EngineError
from test_kills import ANSWERS, FETCH, files, finish, finished_rows, start, write_images, write_rows

pytestmark = [pytest.mark.peer, pytest.mark.skipif(os.name == "nt", reason="POSIX signals")]
if importlib.util.find_spec("ray") is None:  # imported only by the processes that need it, as it warns a lot
    pytest.skip("needs Ray", allow_module_level=True)

ROWS = 2000


class Cluster:
    """Machines that are `ray start`s; `with` ends them all."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # pytest's are too long for the names of sockets
        self.machines: list[subprocess.Popen[bytes]] = []

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            self.kill(machine)
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, processors: int) -> subprocess.Popen[bytes]:
        """Another machine; the first one is the head. On a busy one Ray gives up starting after 30 seconds."""
        for _ in range(3):
            machine, said = self._start(processors)
            while machine.poll() is None:
                if "Ray runtime started" in said.read_text():
                    self.machines.append(machine)
                    return machine
                time.sleep(0.1)
        raise AssertionError(said.read_text())

    def _start(self, processors: int) -> tuple[subprocess.Popen[bytes], Path]:
        port = self.address.rpartition(":")[2]
        role = ["--address", self.address] if self.machines else ["--head", "--port", port, "--include-dashboard=false"]
        said = self.folder / f"{len(self.machines)}.txt"
        with said.open("wb") as file:
            machine = subprocess.Popen(
                [
                    sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block", *role,
                    f"--num-cpus={processors}", "--object-store-memory=100000000", f"--temp-dir={self.folder}",
                ],
                cwd="/", stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        return machine, said

    def restore(self) -> None:
        """Two machines with two processors each."""
        self.machines = [machine for machine in self.machines if machine.poll() is None]
        while len(self.machines) < 2:
            self.add(2)

    def processes(self, machine: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Ray's own and the workers."""
        if machine.poll() is not None:
            return []
        main = psutil.Process(machine.pid)
        return [*main.children(recursive=True), main]

    def kill(self, machine: subprocess.Popen[bytes], first: list[psutil.Process] | None = None) -> None:
        """All of a machine's processes at once, as when its power fails."""
        for process in first or self.processes(machine):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        machine.wait()


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Of the machines and of us: a password, which newer versions of Ray want, and where the functions below are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(scope="module")
def running(environment: None) -> Iterator[Cluster]:  # noqa: ARG001
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    running.restore()
    return running


def workers() -> set[int]:
    """The processes that do our work on any machine of a cluster."""
    names = psutil.process_iter(["name", "status"])
    return {one.pid for one in names if "_work" in (one.info["name"] or "") and one.info["status"] != "zombie"}


def on(cluster: Cluster) -> tuple[str, ...]:
    return ("--engine", "ray", "--address", cluster.address)


def write_dump(path: Path) -> None:
    """A multistream dump of some megabytes, of made-up words."""
    chance = random.Random(3)
    known = ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 9))) for _ in range(20_000)]
    with path.open("wb") as file:
        file.write(bz2.compress(b"<mediawiki>\n"))
        for _ in range(8):
            pages = [" ".join(chance.choices(known, k=900)) for _ in range(200)]
            xml = "".join(f"<page><ns>0</ns><revision><text>{text}</text></revision></page>\n" for text in pages)
            file.write(bz2.compress(xml.encode()))
        file.write(bz2.compress(b"</mediawiki>\n"))


def test_words(cluster: Cluster, tmp_path: Path) -> None:
    for name, arguments in (("here", ("--workers", 2)), ("there", on(cluster))):
        folder = tmp_path / name
        folder.mkdir()
        write_dump(folder / "dump.xml.bz2")
        (folder / "recipe.toml").write_text('data.folder = "data"\nwords = { dump = "dump.xml.bz2", minimum = 1 }\n')
        finish(start(folder, "words", "recipe.toml", *arguments), folder)
    assert len(list(find_blocks(tmp_path / "here" / "dump.xml.bz2"))) > 3
    found = files(tmp_path / "there" / "data")
    assert found == files(tmp_path / "here" / "data")
    assert len(found["words.tsv"].splitlines()) > 15_000


def prepare_fetch(folder: Path, server: Host) -> Path:
    write_rows(folder / "data" / "rows.parquet", server, ROWS)
    (folder / "recipe.toml").write_text(FETCH)
    return folder


def test_fetch(cluster: Cluster, tmp_path: Path) -> None:
    with Host(ANSWERS) as server:
        here, there = prepare_fetch(tmp_path / "here", server), prepare_fetch(tmp_path / "there", server)
        finish(start(here, "fetch", "recipe.toml", "--workers", 2), here)
        asked = server.asked.copy()
        finish(start(there, "fetch", "recipe.toml", *on(cluster)), there)
    assert server.asked - asked == asked
    assert len(list(there.rglob("*.tar"))) == 20
    assert files(here) == files(there)


def suspend(processes: list[psutil.Process]) -> set[int]:
    """Hold processes where they are; returns the numbers of the shards that they have under way."""
    for process in processes:
        process.suspend()
    spools = (Path(file.path) for process in processes for file in process.open_files() if file.path.endswith(".spool"))
    return {int(spool.stem.rpartition("-")[2]) for spool in spools}


def in_flight(server: Host, folder: Path, shards: set[int]) -> set[object]:
    """The rows of some suspended shards that were asked for and have no outcome, once the server has seen them all."""
    before, asked = None, set[object]()
    while asked != before:
        time.sleep(0.5)
        before, asked = asked, {path for path in server.asked if int(path.rpartition("/")[2]) // 100 in shards}
    return asked - finished_rows(folder)


def test_fetch_with_a_machine_lost_half_way(cluster: Cluster, tmp_path: Path) -> None:
    with Host(ANSWERS) as server:
        here, there = prepare_fetch(tmp_path / "here", server), prepare_fetch(tmp_path / "there", server)
        finish(start(here, "fetch", "recipe.toml", "--workers", 2), here)
        alone = server.asked.copy()
        server.asked.clear()
        process = start(there, "fetch", "recipe.toml", *on(cluster))
        hit: set[object] = set()
        while not hit:  # between two shards there is nothing to lose
            time.sleep(0.05)
            assert process.poll() is None
            if server.asked.total() > alone.total() / 2:
                lost = cluster.processes(cluster.machines[-1])
                shards = suspend(lost)
                hit = in_flight(server, there, shards) if len(shards) == 2 else hit
                for one in lost if not hit else ():
                    one.resume()
        finished = finished_rows(there)
        cluster.kill(cluster.machines[-1], lost)
        finish(process, there)
        again = {path for path, number in server.asked.items() if number > alone[path]}
    print(f"lost when {len(finished)} of {ROWS} rows were finished; {len(again)} that were in flight asked for again")
    assert not again & finished, "finished, and asked for again"
    assert again == hit
    assert len(hit) <= 2 * 8
    assert server.asked.keys() == alone.keys()
    assert files(here) == files(there)


def test_clean(cluster: Cluster, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 1500)
    finish(start(tmp_path, "pack", "images", "packed", "--workers", 2), tmp_path)
    for name, arguments in (("here", ("--workers", 2)), ("there", on(cluster))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.toml").write_text(
            'data.folder = "data"\nclean = { short_side = 16, test = 0.1, duplicates = "keep" }\n'
        )
        finish(start(folder, "clean", "recipe.toml", "--source", "../packed", *arguments), folder)
    found = files(tmp_path / "there")
    assert found == files(tmp_path / "here")
    assert len([name for name in found if name.endswith(".tar")]) > 2


def test_pack(cluster: Cluster, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 1500)
    for name, arguments in (("here", ("--workers", 2)), ("there", on(cluster))):
        folder = tmp_path / name
        folder.mkdir()
        finish(start(folder, "pack", "../images", "packed", "--short-side", 64, "--test", 0.1, *arguments), folder)
    found = files(tmp_path / "there")
    assert found == files(tmp_path / "here")
    assert len([name for name in found if name.endswith(".tar")]) > 2


def slow_first(number: int) -> int:
    time.sleep(0.5 if number == 0 else 0)
    return number


def fail(number: int) -> int:
    raise CollectError(f"piece {number}: is bad")


def fail_unseen(number: int) -> float:
    return number / 0


class TwoPart(Exception):
    """Can be pickled, but not be read back."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_strangely(number: int) -> int:
    raise TwoPart(number, number)


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def wait_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        raise TimeoutError("locked")
    return "done"


def touch_and_sleep(path: str) -> None:
    Path(path).touch()
    time.sleep(1000)


@pytest.fixture
def engine(cluster: Cluster) -> Iterator[Engine]:
    with open_engine("ray", None, cluster.address) as opened:
        yield opened


def test_results_come_in_order_and_pieces_are_made_as_they_are_needed(engine: Engine) -> None:
    assert list(engine.map(slow_first, range(50))) == list(range(50))
    made: list[int] = []

    def pieces():
        for number in range(100):
            made.append(number)
            yield number

    results = engine.map(slow_first, pieces(), inflight=3)
    assert next(results) == 0
    assert len(made) == 3
    results.close()
    made.clear()
    assert next(engine.map(slow_first, pieces())) == 0
    assert len(made) == 8, "two for each processor of the cluster"


def test_no_more_workers_than_asked_for(cluster: Cluster) -> None:
    with open_engine("ray", 1, cluster.address) as engine:
        spans = sorted(engine.map(span, [0.1] * 8))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    with open_engine("ray", None, cluster.address) as engine:
        spans = sorted(engine.map(span, [0.5] * 8))
    assert any(end > start for (_, end), (start, _) in itertools.pairwise(spans))


def span(seconds: float) -> tuple[float, float]:
    began = time.monotonic()
    time.sleep(seconds)
    return began, time.monotonic()


def test_errors_arrive_as_themselves(engine: Engine) -> None:
    with pytest.raises(CollectError) as caught:
        list(engine.map(fail, range(3)))
    assert (type(caught.value), str(caught.value)) == (CollectError, "piece 0: is bad")
    with pytest.raises(ZeroDivisionError) as unseen:
        list(engine.map(fail_unseen, range(3)))
    assert "in fail_unseen" in unseen.value.__notes__[0]
    with pytest.raises(EngineError, match="TwoPart: 0 and 0"):
        list(engine.map(fail_strangely, range(3)))
    assert list(engine.map(slow_first, range(3))) == [0, 1, 2]


def test_a_piece_whose_process_dies_is_tried_again_but_not_for_ever(engine: Engine, tmp_path: Path) -> None:
    pieces = [str(tmp_path / str(number)) for number in range(3)]
    assert list(engine.map(die_once, pieces)) == ["done"] * 3
    with pytest.raises(EngineError, match=r"lost 6 times .*killed, or ran out of memory; the same command goes on"):
        list(engine.map(die, range(1)))


def test_a_piece_that_another_process_still_holds_is_tried_again(engine: Engine, tmp_path: Path) -> None:
    assert list(engine.map(wait_once, [str(tmp_path / "held")])) == ["done"]


def test_a_machine_without_our_package_is_told_from_bad_work(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_here")
    exec("def work(piece): return piece", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(EngineError, match=r"No module named 'only_here'\); install the same PocketCLIP"):
        list(engine.map(module.work, range(3)))


def test_an_error_on_the_command_line_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    write_dump(tmp_path / "dump.xml.bz2")
    with (tmp_path / "dump.xml.bz2").open("r+b") as file:
        file.seek(2_000_000)
        file.write(bytes(1000))
    command = [sys.executable, "-m", "pocketclip", "words", "quickstart", "words.dump=dump.xml.bz2", "data.folder=data"]
    done = subprocess.run([*command, *on(cluster)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert "dump.xml.bz2: damaged or truncated between bytes" in done.stderr


SLEEP = """
import sys
from pocketclip.engine import open_engine
from test_ray import touch_and_sleep
if __name__ == "__main__":
    with open_engine("ray", 2, sys.argv[1] or None) as engine:
        list(engine.map(touch_and_sleep, sys.argv[2:]))
"""


@pytest.fixture(params=["there", "here"])
def asleep(request, cluster: Cluster, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    """A process whose two pieces are under way, on the cluster or on one that it started; and its workers."""
    (tmp_path / "sleep.py").write_text(SLEEP)
    before, begun = workers(), [tmp_path / "0", tmp_path / "1"]
    address = cluster.address if request.param == "there" else ""
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "sleep.py"), address, *map(str, begun)],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            while not all(path.exists() for path in begun):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
            yield process, workers() - before
        finally:
            process.kill()


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_what_is_stopped_or_killed_leaves_no_worker_behind(asleep, blow: signal.Signals) -> None:
    process, at_work = asleep
    assert len(at_work) == 2
    if blow is signal.SIGINT:
        os.killpg(process.pid, blow)  # as Ctrl-C does
    else:
        process.kill()
    _, complained = process.communicate(timeout=60)
    if blow is signal.SIGINT:
        assert complained.splitlines()[-1] == "pocketclip.errors.Stopped: stopped; the same command goes on"
    deadline = time.monotonic() + 60
    while workers() & at_work and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not workers() & at_work


def test_a_cluster_with_another_password(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(EngineError, match=r"cannot be used.*token"), open_engine("ray", None, cluster.address):
        pass


@pytest.mark.parametrize(
    ("lost", "message"),
    [("gcs_server", "its head does not answer"), ("raylet", "this machine is no longer part of it")],
)
def test_a_cluster_that_is_lost_is_said_plainly(tmp_path: Path, lost: str, message: str) -> None:
    with pytest.raises(EngineError, match=message), open_engine("ray", 1) as engine:
        results = engine.map(touch_and_sleep, [str(tmp_path / "begun")], inflight=1)
        threading.Thread(target=kill_when, args=(tmp_path / "begun", lost), daemon=True).start()
        next(results)


def kill_when(begun: Path, name: str) -> None:
    while not begun.exists():
        time.sleep(0.1)
    for process in psutil.Process().children(recursive=True):
        if process.name() == name:
            process.kill()


def test_a_cluster_without_a_machine_that_works() -> None:
    with Cluster() as small:
        small.add(0)
        machine = small.add(1)
        message = "no machine is left that could work"
        with pytest.raises(EngineError, match=message), open_engine("ray", None, small.address) as engine:
            assert list(engine.map(slow_first, range(3))) == [0, 1, 2]
            small.kill(machine)
            list(engine.map(slow_first, range(3)))
