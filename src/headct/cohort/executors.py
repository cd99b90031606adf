"""Where the work is done: threads of this process that each own a cell, or the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, TypeVar

from headct.failure import Failure, Misuse
from headct.reading.isolation import deaf_children

T = TypeVar("T")
R = TypeVar("R")

ITEMS_A_WORKER = 2
"""Items handed out to each worker at a time: one under way and one waiting."""


CONNECT_S = 10.0
"""How long a scheduler may take to answer."""


@dataclass(frozen=True)
class Crew:
    """An executor, and how many items it works on at the same time (a cluster may grow)."""

    executor: Executor
    width: Callable[[], int]

    def results(self, function: Callable[[T], R], items: Iterable[tuple[int, T]]) -> Iterator[tuple[int, R]]:
        """(number, function(item)) of each (number, item), in the order in which they finish.

        Only a few items a worker are handed out at a time, so that neither the items nor the results pile up.
        """
        items = iter(items)
        number_of: dict[Future[R], int] = {}
        more = True
        try:
            while more or number_of:
                while more and len(number_of) < ITEMS_A_WORKER * max(1, self.width()):
                    item = next(items, None)
                    more = item is not None
                    if item is not None:
                        number_of[self.executor.submit(function, item[1])] = item[0]
                for future in wait(number_of, return_when=FIRST_COMPLETED).done:
                    yield number_of.pop(future), future.result()
        finally:
            for future in number_of:
                future.cancel()


def usable_cores() -> int:
    """Cores that this process may run on, which a container or a batch system can restrict."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def local(workers: int) -> Iterator[Crew]:
    """This machine: `workers` threads, each waiting for a process of its own."""
    threads = WaitingThreads(workers)
    try:
        yield Crew(threads, lambda: workers)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def processes(workers: int, begin: Callable[[], None] | None = None) -> Iterator[Crew]:
    """This machine: `workers` processes that keep what they have loaded, each begun with `begin`.

    For work that nothing foreign goes into; a file from elsewhere is worked on in a cell, see `local`. On Linux they
    are copies of one process that has imported the module of `begin`, so that PyTorch is loaded once and not by each.
    Raises Failure where one of them is killed, or none can be begun.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a worker, which imports its script just now
        raise _none_begun()
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if begin is not None:
        context.set_forkserver_preload([begin.__module__])
    resource_tracker.ensure_running()  # at its start it lets Ctrl-C through again
    lifeline, held = context.Pipe(duplex=False)
    begun = context.Event()
    pool = _DeafProcesses(workers, mp_context=context, initializer=_begin_worker, initargs=(begin, lifeline, begun))
    try:
        yield Crew(pool, lambda: workers)
        pool.shutdown(cancel_futures=True)  # idle by now; one that still ends at the program's exit finds its pipe shut
    except BrokenProcessPool as error:
        if not begun.is_set():
            raise _none_begun() from error
        do = "call the same line again, perhaps with fewer --workers; what was done is kept"
        raise Failure("a worker was killed", why="often because memory ran out", do=do) from error
    finally:
        held.close()  # so that after an error nothing under way goes on, which a later call might make too
        lifeline.close()
        pool.shutdown(wait=False, cancel_futures=True)


def _none_begun() -> Failure:
    why = "each worker imports the script that asks for it, and must not ask again; or it was killed as it began"
    do = 'put what a script of yours does below `if __name__ == "__main__":`; else try fewer --workers'
    return Failure("no worker could be begun", why=why, do=do)


class _DeafProcesses(ProcessPoolExecutor):
    """As `ProcessPoolExecutor`, which starts its processes as work comes in; they do not hear Ctrl-C."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """As in `concurrent.futures.Executor`."""
        with deaf_children():
            return super().submit(fn, *args, **kwargs)


def _begin_worker(begin: Callable[[], None] | None, lifeline: Connection, begun: Event) -> None:
    """A worker of `processes` ends when its lifeline is let go, also because whoever held it was killed."""
    begun.set()
    threading.Thread(target=_outlive_nobody, args=(lifeline,), daemon=True).start()
    if begin is not None:
        begin()


def _outlive_nobody(lifeline: Connection) -> None:
    lifeline.poll(None)  # nothing is ever sent
    os._exit(1)


@contextlib.contextmanager
def cluster(address: str, witness: Path | None) -> Iterator[Crew]:
    """The workers of the Dask scheduler at `address`, each of which must see the file `witness` at its own path.

    Raises Misuse where nobody answers at the address, Failure where a worker lacks the input or runs another version.
    """
    try:
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ModuleNotFoundError as error:
        raise Failure("--cluster needs Dask", do="pip install 'dask[distributed]'") from error
    try:
        client: Any = Client(address, set_as_default=False, timeout=CONNECT_S)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise Misuse(f"no Dask scheduler answers at {address}", why=str(error), do="check the address") from error
    with client:
        _check_workers(client.run(_introduce, str(witness) if witness else None))
        try:
            yield Crew(client.get_executor(), lambda: sum(client.nthreads().values()))
        except KilledWorker as error:
            do = "look at its log, then call the same line again; what was done is kept"
            raise Failure("a worker of the cluster died several times", why=str(error), do=do) from error


def _introduce(witness: str | None) -> tuple[str, bool]:
    import headct

    return headct.__version__, witness is None or Path(witness).exists()


def _check_workers(introductions: dict[str, tuple[str, bool]]) -> None:
    import headct

    if not introductions:
        raise Failure("the cluster has no workers", do="start some with `dask worker ADDRESS`")
    for worker, (version, sees_input) in sorted(introductions.items()):
        if version != headct.__version__:
            why = f"it runs headct {version}, this is {headct.__version__}"
            raise Failure(f"worker {worker} would give other results", why=why, do="install one version everywhere")
        if not sees_input:
            do = "put the input on a file system that all workers mount at the same path"
            raise Failure(f"worker {worker} does not see the input", do=do)


class WaitingThreads(Executor):
    """As `ThreadPoolExecutor`, but of threads that the end of the program does not wait for.

    A thread may wait a minute for a process that hangs in a codec; Ctrl-C must not.
    """

    def __init__(self, workers: int) -> None:
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], Any, Any] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]
        self._closed = False
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """As in `concurrent.futures.Executor`."""
        if self._closed:
            raise RuntimeError("cannot submit after shutdown")
        future: Future[R] = Future()
        self._queue.put((future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As in `concurrent.futures.Executor`; a task under way is never cut short."""
        self._closed = True
        while cancel_futures:
            try:
                task = self._queue.get_nowait()
            except queue.Empty:
                break
            if task is not None:
                task[0].cancel()
        for _ in self._threads:
            self._queue.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _serve(self) -> None:
        while (task := self._queue.get()) is not None:
            future, function, args, kwargs = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  # it is the caller's, who asks for the result
                future.set_exception(error)
