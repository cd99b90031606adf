"""Nothing opens a network connection: whole commands run in a world without a network (`inputs.walls`).

The demo runs so in `studies/test_demo.py`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from inputs.walls import headct, run_walled


@pytest.fixture
def walled(tmp_path):
    """Runs a Python command line without a network; returns how it ended and what it tried."""
    return partial(run_walled, tmp_path)


def test_the_walls_hold(walled):
    """An attempt is refused and written down, also in a child process; a Unix socket is allowed."""
    attempt = "import socket; socket.create_connection(('127.0.0.1', 9))"
    done, tried = walled("-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {attempt!r}])")
    assert "no network here" in done.stderr
    assert tried
    before = len(tried)
    done, tried = walled("-c", "import socket; a, b = socket.socketpair(); a.sendall(b'x'); print(b.recv(1))")
    assert done.stdout == "b'x'\n"
    assert len(tried) == before


@pytest.mark.parametrize("line", [("doctor",), ("models",), ("--version",), ("ingest", "--help")], ids=" ".join)
def test_short_commands_reach_for_nothing(line, walled):
    done, tried = walled(*headct(*line))
    assert done.returncode == 0, done.stderr
    assert tried == []


@pytest.fixture
def scans(tmp_path) -> Path:
    from headct.virtual.phantom import Phantom
    from headct.writing import write_dicom

    folder = tmp_path / "scans"
    write_dicom(Phantom(seed=1).scan(slices=24, rows=96, cols=96, pixel_mm=2.4, gap_mm=6), folder / "one")
    return folder


def test_ingest_and_its_page_reach_for_nothing(walled, scans, tmp_path):
    done, tried = walled(*headct("ingest", scans, "--out", tmp_path / "cohort", "--workers", "2"))
    assert done.returncode == 0, done.stderr
    done, tried = walled(*headct("qc", tmp_path / "cohort", "--out", tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    assert tried == []
    page = (tmp_path / "page.html").read_text()
    assert not [word for word in ('src="http', "src='http", "@import", "url(http", "<link") if word in page]
