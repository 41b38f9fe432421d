"""Where many like pieces of work are done: in a pool of local processes, or on Ray's machines.

A stage is a function of one piece (a part of a dump, the rows of a shard) that writes its result or returns it. Both
engines run that same function, keep a bounded number of pieces in flight, and give results back in the order of the
pieces, so that what a stage leaves does not depend on where it ran.
"""

import importlib.util
import multiprocessing
import os
import pickle
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing import connection
from typing import Any, Literal, Protocol, TypeVar

from pocketclip.errors import EngineError, Stopped

Piece = TypeVar("Piece")
Result = TypeVar("Result")
EngineName = Literal["local", "ray"]

RETRIES = 5  # of a piece whose machine or process was lost
CONNECT_SECONDS = 120.0  # for a Ray cluster to start or to answer
LOOK_SECONDS = 2.0  # between looks at the cluster while a result is waited for
PATIENCE = 30.0  # seconds that a cluster may be unable to work; Ray ends the process that asks for it after 60
CLOSE_SECONDS = 30.0
STORE_BYTES = 128 << 20, 32 << 20  # of Ray's store of pieces and results: in all at least, and for each worker


class Engine(Protocol):
    """Something that runs a function on pieces of work."""

    def map(
        self, function: Callable[[Piece], Result], pieces: Iterable[Piece], inflight: int | None = None
    ) -> Iterator[Result]:
        """The results in the order of the pieces; at most `inflight` of them wait or run at a time."""
        ...


class LocalEngine:
    """Processes of this machine."""

    def __init__(self, pool: ProcessPoolExecutor, workers: int) -> None:
        self._pool, self._workers = pool, workers

    def map(
        self, function: Callable[[Piece], Result], pieces: Iterable[Piece], inflight: int | None = None
    ) -> Iterator[Result]:
        """See Engine. Raises EngineError where a worker dies."""
        waiting: deque[Future[Result]] = deque()
        try:
            for piece in pieces:
                waiting.append(self._pool.submit(function, piece))
                if len(waiting) >= (inflight or 2 * self._workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise EngineError(
                "a worker process died (killed, or out of memory); the same command goes on, with fewer --workers if "
                "memory is short"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


class RayEngine:
    """A Ray cluster; a piece whose machine is lost is done again on another.

    Ray is in a process of its own, `driver`, as it prints what it likes, and as it waits for ever or ends its process
    where a cluster is lost. Pieces and results go through it packed.
    """

    def __init__(self, driver: ProcessPoolExecutor) -> None:
        self._driver, self._numbers = driver, count()

    def map(
        self, function: Callable[[Piece], Result], pieces: Iterable[Piece], inflight: int | None = None
    ) -> Iterator[Result]:
        """See Engine. Raises EngineError where the cluster is lost, or a piece's process dies each time it is tried."""
        waiting: deque[int] = deque()
        try:
            for piece in pieces:
                number = next(self._numbers)
                room = self.ask("submit", number, pickle.dumps((function, piece)))
                waiting.append(number)
                if len(waiting) >= (inflight or room):
                    yield self._result(waiting.popleft())
            while waiting:
                yield self._result(waiting.popleft())
        finally:
            if waiting:
                with suppress(RuntimeError):  # the driver is gone already
                    self._driver.submit(_in_driver, "forget", list(waiting))

    def _result(self, number: int) -> Any:
        done, packed = self.ask("result", number)
        result = pickle.loads(packed)  # noqa: S301  # by our own worker
        if not done:
            raise result
        return result

    def ask(self, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        """What a method of the driver returns. Raises EngineError where its process ends."""
        try:
            return self._driver.submit(_in_driver, method, *arguments).result(seconds)
        except BrokenProcessPool:
            raise EngineError("the Ray cluster was lost; when it is there again, the same command goes on") from None


class _RayDriver:
    """Ray, as its process sees it.

    workers: pieces at a time at most; None leaves it to the cluster. address: see `open_engine`.
    """

    def __init__(self, workers: int | None, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell Ray's makers of each cluster
        here: dict[str, Any] = {}
        if address is None:
            # Ray listens on all of a machine's addresses, and runs what it is sent: without a password, anybody's.
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
            workers = workers or os.cpu_count() or 1
            store = max(STORE_BYTES[0], workers * STORE_BYTES[1])
            here = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": store}
        else:
            _knock(address)
        import ray

        try:
            ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **here)
        except Exception as error:
            cannot = f"cluster {address}: cannot be used; `ray start` makes this machine part of one"
            raise EngineError(
                f"Ray {cannot if address else 'could not be started here'} ({_plain(error.__cause__ or error)})"
            ) from None
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray's own handler would make an exception of it
        context = ray.get_runtime_context()
        self._ray, self._workers, self._node, self._head = ray, workers, context.get_node_id(), context.gcs_address
        # A TimeoutError is a lock that is still held by a process on a machine that the cluster has lost sight of.
        self._work = ray.remote(
            num_cpus=1, max_retries=RETRIES, retry_exceptions=[TimeoutError], scheduling_strategy="SPREAD"
        )(_work)
        self._references: dict[int, Any] = {}
        self._ill_since: float | None = None

    def submit(self, number: int, packed: bytes) -> int:
        """Start a piece when there is room; returns how many of them are best in flight."""
        while self._workers and len(running := self._running()) >= self._workers:
            self._wait(running)
        self._references[number] = self._work.remote(packed)
        processors = int(self._ray.cluster_resources().get("CPU", 1))
        return 2 * max(1, min(processors, self._workers or processors))

    def result(self, number: int) -> tuple[bool, bytes]:
        """See `_work`. Raises EngineError where that could not run, or will not."""
        reference = self._references.pop(number)
        self._wait([reference])
        try:
            done, packed = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TimeoutError):
                return False, _pack_error(error.cause)
            raise EngineError(
                f"a machine of the Ray cluster cannot do this work ({_plain(error.cause)}); install the same "
                "PocketCLIP with the same extras on all of them"
            ) from None
        except self._ray.exceptions.RayError as error:
            raise EngineError(
                f"a piece of work was lost {RETRIES + 1} times ({_plain(error)}); its process was killed, or ran "
                "out of memory; the same command goes on"
            ) from None
        return bool(done), bytes(packed)

    def forget(self, numbers: list[int]) -> None:
        """Leave pieces undone whose results nobody wants any more."""
        for number in numbers:
            if reference := self._references.pop(number, None):
                self._ray.cancel(reference)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        threading.Timer(CLOSE_SECONDS, os._exit, (1,)).start()
        self._ray.shutdown()
        os._exit(0)

    def _running(self) -> list[Any]:
        references = list(self._references.values())
        return list(self._ray.wait(references, num_returns=len(references), timeout=0)[1]) if references else []

    def _wait(self, references: list[Any]) -> None:
        """Until one of them is done. Raises EngineError where none will be."""
        while not self._ray.wait(references, timeout=LOOK_SECONDS)[0]:
            if not (illness := self._illness()):
                self._ill_since = None
                continue
            self._ill_since = self._ill_since or time.monotonic()
            if time.monotonic() - self._ill_since > PATIENCE:
                raise EngineError(
                    f"Ray cluster {self._head}: {illness}; when it is there again, the same command goes on"
                )

    def _illness(self) -> str:
        """Why no piece can be finished now; "" where some can."""
        try:
            _knock(self._head)
        except EngineError:
            return "its head does not answer"
        alive = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]}
        if self._node not in alive:
            return "this machine is no longer part of it"
        return "" if any(alive.values()) else "no machine is left that could work"


_driver: _RayDriver | None = None  # in a process that `_become_driver` made one


def _in_driver(method: str, *arguments: Any) -> Any:
    """Call a method of the driver; runs in its process. `connect` makes it."""
    global _driver
    if method == "connect":
        _driver = _RayDriver(*arguments)
        return None
    return getattr(_driver, method)(*arguments)


def _work(packed: bytes) -> tuple[bool, bytes]:
    """Do a piece: (True, its result) or (False, the error that it raised), packed. Runs on any machine of a cluster."""
    function, piece = pickle.loads(packed)  # noqa: S301  # by our own engine
    try:
        return True, pickle.dumps(function(piece))
    except TimeoutError:
        raise
    except Exception as error:
        error.add_note(traceback.format_exc())  # which does not travel by itself
        return False, _pack_error(error)


def _pack_error(error: BaseException) -> bytes:
    """An error as bytes; one that cannot travel goes by its name."""
    with suppress(Exception):
        packed = pickle.dumps(error)
        pickle.loads(packed)  # noqa: S301  # what can be written cannot always be read
        return packed
    return pickle.dumps(EngineError(f"{type(error).__name__}: {error}"))


def _plain(error: object) -> str:
    """What an error says, on one line; where Ray put a traceback into it, how that ends."""
    text = str(error).strip() or type(error).__name__
    return " ".join((text.splitlines()[-1] if "Traceback (" in text else text).split())


def _knock(address: str) -> None:
    """Raise EngineError unless somebody listens at HOST:PORT; Ray itself takes minutes to say so."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        if "/" in host:  # of a Ray Client, ray://HOST:10001, which runs on no machine of the cluster
            raise ValueError
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except ValueError:
        raise EngineError(
            f"Ray cluster {address}: not an address; it is HOST:PORT of the cluster's head, or auto"
        ) from None
    except OSError as error:
        raise EngineError(
            f"Ray cluster {address}: cannot be reached ({error.strerror or error}); does `ray start` run there?"
        ) from None


@contextmanager
def open_engine(name: EngineName = "local", workers: int | None = None, address: str | None = None) -> Iterator[Engine]:
    """An engine, closed when the block ends.

    workers: pieces at a time; one a core unless said. address: of a Ray cluster, HOST:PORT of its head, or "auto" for
    the one that this machine is part of; None starts one here, for this run and closed to others.

    Of a cluster this machine has to be a part (`ray start --address=HOST:PORT`, with `--num-cpus=0` if it is to do no
    work). Its other machines need the same versions of Python, Ray and PocketCLIP with its extras, and a shared file
    system: they read and write the same files by the same absolute paths.
    Raises EngineError where Ray is missing, the cluster cannot be reached or is lost, Stopped after Ctrl-C.
    """
    opened = _local(workers or os.cpu_count() or 1) if name == "local" else _ray(workers, address)
    try:
        with opened as engine:
            yield engine
    except KeyboardInterrupt:
        raise Stopped("stopped; the same command goes on") from None


@contextmanager
def _local(workers: int) -> Iterator[LocalEngine]:
    with _pool(workers, _start_method(), _become_worker) as pool:
        pool.submit(os.getpid).result()  # forks all workers now, before this process starts threads
        yield LocalEngine(pool, workers)


@contextmanager
def _ray(workers: int | None, address: str | None) -> Iterator[RayEngine]:
    if importlib.util.find_spec("ray") is None:
        raise EngineError("the engine `ray` needs the extra: pip install 'pocketclip[ray]'")
    with _pool(1, multiprocessing.get_context("spawn"), _become_driver) as driver:
        engine = RayEngine(driver)
        try:
            engine.ask("connect", workers, address, seconds=CONNECT_SECONDS)
        except TimeoutError:
            where = f"cluster {address}: gave no answer" if address else "could not be started here"
            raise EngineError(f"Ray {where} for {CONNECT_SECONDS:.0f} s; `ray status` says how it is") from None
        yield engine
        with suppress(EngineError):  # that its process has ended
            engine.ask("close")


@contextmanager
def _pool(
    workers: int, method: multiprocessing.context.BaseContext, initializer: Callable[[], None]
) -> Iterator[ProcessPoolExecutor]:
    """Processes that end when the block does, at once where it fails."""
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, method, initializer) as pool:
        try:
            yield pool
        except BaseException:
            manager: Any = pool._executor_manager_thread
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()  # what they have in hand can take minutes, and is made to be cut off
            if manager:  # else Python, as it ends, meets what that thread is just closing, and prints a traceback
                manager.join(timeout=5)
            raise


def _start_method() -> multiprocessing.context.BaseContext:
    """Fork where that is safe: a forked worker is there at once, a new interpreter takes a third of a second.

    A fork copies locks that other threads hold and never lets them go, so that it is safe only on Linux, and only
    before threads have been started: Python's own, or those of libraries that have some.
    """
    threaded = {"torch", "pyarrow", "duckdb", "ray"} & sys.modules.keys()
    safe = sys.platform == "linux" and threading.active_count() == 1 and not threaded
    return multiprocessing.get_context("fork" if safe else "spawn")


def _become_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when the parent is killed: nobody else would read its result."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()


def _become_driver() -> None:
    """The driver's processes are out of Ctrl-C's reach, what they print is not seen, and they end with the parent."""
    if sys.platform != "win32":
        os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    _end_with_parent()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
