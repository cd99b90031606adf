"""Ctrl-C, or the end that a scheduler asks for, taken between two steps, when everything is whole and can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """While the block runs, SIGINT, SIGTERM and SIGUSR1 only set `asked`.

    A second Ctrl-C is not waited for: it raises KeyboardInterrupt at once. A second SIGTERM is: schedulers and
    launchers send several of them. Signals reach the main thread alone, so elsewhere nothing changes.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._before[kind] = signal.signal(kind, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
