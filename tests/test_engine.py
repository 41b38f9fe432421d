import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pocketclip.engine import open_engine
from pocketclip.errors import CollectError, EngineError


def square(number: int) -> int:
    return number * number


def slow_first(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0)
    return number


def fail(number: int) -> int:
    raise CollectError(f"piece {number}: is bad")


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_results_come_in_the_order_of_the_pieces() -> None:
    with open_engine("local", 2) as engine:
        assert list(engine.map(slow_first, range(20))) == list(range(20))
        assert sum(engine.map(square, range(100))) == sum(n * n for n in range(100))


def test_pieces_are_made_only_as_they_are_needed() -> None:
    made: list[int] = []

    def pieces():
        for number in range(100):
            made.append(number)
            yield number

    with open_engine("local", 2) as engine:
        results = engine.map(square, pieces(), inflight=3)
        assert next(results) == 0
        assert len(made) == 3
        results.close()


def test_a_worker_s_error_is_the_parent_s() -> None:
    with open_engine("local", 1) as engine, pytest.raises(CollectError, match="piece 0: is bad"):
        list(engine.map(fail, range(3)))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_worker_that_was_killed_is_said_plainly() -> None:
    died = pytest.raises(EngineError, match=r"a worker process died .*the same command goes on")
    with died, open_engine("local", 1) as engine:
        list(engine.map(die, range(3)))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(
        "import os, sys, time\nfrom pathlib import Path\nfrom pocketclip.engine import open_engine\n"
        "def work(n):\n    Path(sys.argv[1], str(os.getpid())).touch()\n    time.sleep(300)\n"
        "if __name__ == '__main__':\n"
        "    with open_engine('local', 2) as engine:\n        list(engine.map(work, range(2)))\n"
    )
    pids = tmp_path / "pids"
    pids.mkdir()
    process = subprocess.Popen([sys.executable, str(tmp_path / "run.py"), str(pids)])
    deadline = time.monotonic() + 60
    while len(list(pids.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    alive = [int(path.name) for path in pids.iterdir()]
    while alive and time.monotonic() < deadline:
        alive = [pid for pid in alive if Path(f"/proc/{pid}").exists()]
        time.sleep(0.02)
    assert len(list(pids.iterdir())) == 2
    assert not alive


@pytest.mark.skipif(os.name == "nt", reason="POSIX process groups")
def test_ctrl_c_does_not_wait_for_the_pieces_in_hand(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(
        "import sys, time\nfrom pathlib import Path\nfrom pocketclip.engine import open_engine\n"
        "def work(n):\n    Path(sys.argv[1], str(n)).touch()\n    time.sleep(300)\n"
        "if __name__ == '__main__':\n"
        "    with open_engine('local', 2) as engine:\n        list(engine.map(work, range(4)))\n"
    )
    begun = tmp_path / "begun"
    begun.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(begun)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(list(begun.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, complained = process.communicate(timeout=60)
    assert complained.splitlines()[-1] == "pocketclip.errors.Stopped: stopped; the same command goes on"


def test_ray_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'pocketclip\[ray\]'"), open_engine("ray"):
        pass


# As much of Ray as the engine uses, in one process. test_ray.py has the engine on real clusters.
FAKE_RAY = """
import os, socket
from types import SimpleNamespace
class exceptions:
    class RayError(Exception): ...
    class RayTaskError(RayError): ...
listening = socket.create_server(("127.0.0.1", 0))
def init(address, **_):
    if address != "local":
        raise ConnectionError("Failed to connect\\nto it")
def get_runtime_context():
    return SimpleNamespace(get_node_id=lambda: "here", gcs_address="127.0.0.1:%d" % listening.getsockname()[1])
def remote(**_):
    return lambda function: SimpleNamespace(remote=lambda packed: [function, packed])
def wait(references, num_returns=1, timeout=None):
    return references, []
def get(reference):
    print("noise")
    return reference[0](reference[1])
def cancel(reference): ...
def cluster_resources():
    return {"CPU": 2.0}
def shutdown(): ...
"""


@pytest.fixture
def fake_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray.py").write_text(FAKE_RAY)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("fake_ray")
def test_ray_s_results_come_in_order_and_its_noise_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    made: list[int] = []

    def pieces():
        for number in range(100):
            made.append(number)
            yield number

    with open_engine("ray", 3) as engine:
        results = engine.map(square, pieces())
        assert next(results) == 0
        assert len(made) == 4, "two for each of its processors"
        assert list(results) == [n * n for n in range(1, 100)]
        with pytest.raises(CollectError) as caught:
            list(engine.map(fail, range(3)))
        assert str(caught.value) == "piece 0: is bad"
        assert list(engine.map(square, range(3))) == [0, 1, 4]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("fake_ray")
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ray_that_ends_its_process_is_an_error_of_ours() -> None:
    with pytest.raises(EngineError, match="Ray cluster was lost"), open_engine("ray") as engine:
        list(engine.map(die, range(3)))


@pytest.mark.usefixtures("fake_ray")
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", r"127\.0\.0\.1:1: cannot be reached"),
        ("nowhere", "nowhere: not an address"),
        ("ray://127.0.0.1:10001", "not an address"),
        ("127.0.0.1:port", "not an address"),
        ("auto", r"auto: cannot be used; .*\(Failed to connect to it\)"),
    ],
)
def test_an_address_without_a_ray_cluster_is_named(address: str, message: str) -> None:
    with pytest.raises(EngineError, match=message), open_engine("ray", None, address):
        pass
