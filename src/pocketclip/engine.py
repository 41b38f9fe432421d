"""Where many like pieces of work are done: in a pool of local processes, or on Ray's machines.

A stage is a function of one piece (a part of a dump, the rows of a shard) that writes its result or returns it. Both
engines run that same function, keep a bounded number of pieces in flight, and give results back in the order of the
pieces, so that what a stage leaves does not depend on where it ran.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, Literal, Protocol, TypeVar

from pocketclip.errors import EngineError, Stopped

Piece = TypeVar("Piece")
Result = TypeVar("Result")
EngineName = Literal["local", "ray"]


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
    """A Ray cluster; a piece whose machine is lost is done again on another."""

    def __init__(self, ray: Any, workers: int) -> None:
        self._ray, self._workers = ray, workers

    def map(
        self, function: Callable[[Piece], Result], pieces: Iterable[Piece], inflight: int | None = None
    ) -> Iterator[Result]:
        """See Engine."""
        remote = self._ray.remote(num_cpus=1, max_retries=5)(function)
        waiting: deque[Any] = deque()
        for piece in pieces:
            waiting.append(remote.remote(piece))
            if len(waiting) >= (inflight or 2 * self._workers):
                yield self._get(waiting.popleft())
        while waiting:
            yield self._get(waiting.popleft())

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None


@contextmanager
def open_engine(name: EngineName = "local", workers: int | None = None, address: str | None = None) -> Iterator[Engine]:
    """An engine, closed when the block ends.

    workers: processes; one a core unless said. address: of a Ray cluster; None starts one on this machine, "auto" finds
    a running one. Raises EngineError where Ray is missing or the cluster cannot be reached, Stopped after Ctrl-C.
    """
    workers = workers or os.cpu_count() or 1
    if name == "local":
        others = set(multiprocessing.active_children())
        with ProcessPoolExecutor(workers, _start_method(), _live_and_die_with_parent) as pool:
            pool.submit(os.getpid).result()  # forks all workers now, before this process starts threads
            try:
                yield LocalEngine(pool, workers)
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in set(multiprocessing.active_children()) - others:
                    worker.terminate()  # what they have in hand can take minutes, and is made to be cut off
                if isinstance(error, KeyboardInterrupt):
                    raise Stopped("stopped; the same command goes on") from None
                raise
        return
    try:
        import ray
    except ImportError:
        raise EngineError("the engine `ray` needs the extra: pip install 'pocketclip[ray]'") from None
    try:
        ray.init(address=address, num_cpus=None if address else workers, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError) as error:
        raise EngineError(f"Ray cluster {address}: cannot be reached ({error}); does `ray start` run there?") from None
    try:
        yield RayEngine(ray, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


def _start_method() -> multiprocessing.context.BaseContext:
    """Fork where that is safe: a forked worker is there at once, a new interpreter takes a third of a second.

    A fork copies locks that other threads hold and never lets them go, so that it is safe only on Linux, and only
    before threads have been started: Python's own, or those of libraries that have some.
    """
    threaded = {"torch", "pyarrow", "duckdb", "rapidgzip", "ray"} & sys.modules.keys()
    safe = sys.platform == "linux" and threading.active_count() == 1 and not threaded
    return multiprocessing.get_context("fork" if safe else "spawn")


def _live_and_die_with_parent() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when the parent is killed: nobody else would read its result."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
