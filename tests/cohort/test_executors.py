"""Work is handed out a little at a time, comes back as it finishes, and never outlives an interruption."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from headct.cohort.executors import ITEMS_A_WORKER, WaitingThreads, local, usable_cores


def test_every_item_comes_back_once_under_its_number() -> None:
    with local(3) as crew:
        results = dict(crew.results(lambda x: x * x, ((n, n) for n in range(50))))
    assert results == {n: n * n for n in range(50)}


def test_items_are_taken_only_as_workers_get_free() -> None:
    taken: list[int] = []

    def items() -> Iterator[tuple[int, int]]:
        for n in range(100):
            taken.append(n)
            yield n, n

    with local(2) as crew:
        results = crew.results(lambda x: x, items())
        for done, _ in enumerate(results, start=1):
            assert len(taken) <= done + 2 * ITEMS_A_WORKER


def test_a_failure_of_one_item_stops_the_rest() -> None:
    started: list[int] = []

    def work(n: int) -> int:
        started.append(n)
        if n == 3:
            raise ValueError("three")
        return n

    with local(1) as crew, pytest.raises(ValueError, match="three"):
        list(crew.results(work, ((n, n) for n in range(100))))
    assert len(started) < 10


def test_leaving_does_not_wait_for_a_worker_that_hangs() -> None:
    release = threading.Event()
    with local(1) as crew:
        future = crew.executor.submit(release.wait, 60)
        while not future.running():
            time.sleep(0.001)
        started = time.monotonic()
    assert time.monotonic() - started < 30
    assert not future.done()
    release.set()


def test_shutdown_runs_what_was_submitted_unless_told_to_cancel() -> None:
    release = threading.Event()
    threads = WaitingThreads(1)
    first, second = threads.submit(release.wait), threads.submit(lambda: 2)
    release.set()
    threads.shutdown()
    assert (first.result(), second.result()) == (True, 2)
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.submit(print)
    blocked = threading.Event()
    threads = WaitingThreads(1)
    running, waiting = threads.submit(blocked.wait), threads.submit(lambda: 2)
    while not running.running():
        time.sleep(0.001)
    threads.shutdown(wait=False, cancel_futures=True)
    blocked.set()
    assert waiting.cancelled()
    assert running.result()


def test_cores_are_counted_where_no_system_call_tells_which_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {1, 3}, raising=False)
    assert usable_cores() == 2
    monkeypatch.delattr("os.sched_getaffinity")  # macOS
    assert usable_cores() == os.cpu_count()
