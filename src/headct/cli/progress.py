"""The progress of a job of several parts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from headct.cli.talk import Talk

LINE_EVERY_S = 30.0
"""How often progress is said in a log, where no bar can be drawn."""

Progress = Callable[[str, int, int | None], None]
"""Called with a part of the work, how many items of it are done and, once known, how many there are."""


@contextmanager
def progress_of(talk: Talk) -> Iterator[Progress]:
    """A bar for each part of the work on a terminal; a line now and then in a log."""
    begun: dict[str, tuple[float, int]] = {}  # when, and what was done by then: a job that goes on begins with that
    said_s = time.monotonic()
    with ExitStack() as bars:
        update: dict[str, Callable[[int, int | None], None]] = {}

        def progress(what: str, done: int, total: int | None) -> None:
            nonlocal said_s
            now_s = time.monotonic()
            if what not in update:
                bars.close()
                update[what] = bars.enter_context(talk.progress(what))
                begun[what] = now_s, done
            update[what](done, total)
            if not sys.stderr.isatty() and now_s - said_s > LINE_EVERY_S:
                said_s = now_s
                then_s, before = begun[what]
                talk.say(_line(what, done, total, (done - before) / (now_s - then_s) if now_s > then_s else 0.0))

        yield progress


def _line(what: str, done: int, total: int | None, rate: float) -> str:
    if not total or not rate:
        return f"{what}: {done:,}"
    return f"{what}: {done:,} of {total:,}, {rate:.3g} per second, {(total - done) / rate / 60:.0f} min left"
