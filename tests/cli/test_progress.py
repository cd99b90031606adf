"""Rates in logs and on bars, against a clock that the test sets."""

from __future__ import annotations

import io
import re
import sys

import pytest

from headct.cli import progress as lines
from headct.cli.progress import progress_of
from headct.cli.talk import Talk


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the test sets."""
    now = [100.0]
    for clock in ("time.monotonic", "rich.console.monotonic"):
        monkeypatch.setattr(clock, lambda: now[0])
    return now


def test_a_log_tells_the_rate_of_this_run_alone(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_of(Talk()) as progress:
        progress("patients", 5_000, 6_000)  # done before the job was killed
        clock[0] += 2 * lines.LINE_EVERY_S
        progress("patients", 5_120, 6_000)
    assert capsys.readouterr().err == "patients: 5,120 of 6,000, 2 per second, 7 min left\n"


def test_nothing_is_divided_by_no_time(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_of(Talk()) as progress:
        clock[0] += 2 * lines.LINE_EVERY_S
        progress("patients", 7, 10)
    assert capsys.readouterr().err == "patients: 7\n"


def test_a_bar_tells_the_rate_of_this_run_alone(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with Talk().progress("patients") as progress:
        progress(5_000, 6_000)
        for done in (5_010, 5_020):
            clock[0] += 5.0
            progress(done, 6_000)
    assert re.search(r"5020/6000\S* 2 per second \S+0:08:10", shown.getvalue())
