"""Nothing opens a network connection: whole commands run in a world without a network.

Two walls. A `sitecustomize` installs an audit hook in the command's process and in every Python process that it starts;
it writes down and refuses each attempt to resolve a name or to reach an address that is not a Unix socket. Where the
system allows it (`unshare --net`), the command also runs in a network namespace with no interface up, which holds for
native code too.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

WALL = """
import os, sys

TO_AN_ADDRESS = {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"}  # arguments: socket, address
OF_A_NAME = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request"}


def refuse(event, arguments):
    if event not in TO_AN_ADDRESS | OF_A_NAME:
        return
    address = arguments[1] if event in TO_AN_ADDRESS else arguments[0]
    if event in TO_AN_ADDRESS and isinstance(address, (str, bytes, type(None))):
        return  # a Unix socket, between processes of this machine, or a connection that exists already
    if event == "socket.bind" and address[0] in ("127.0.0.1", "::1"):
        return  # nobody is reached by it; urllib3, which blosc2 brings, so looks whether the system has IPv6
    with open(os.environ["EGRESS_LOG"], "a") as log:
        log.write(f"{event} {address!r}\\n")
    raise PermissionError(f"no network here: {event} {address!r}")


sys.addaudithook(refuse)
"""


def namespace() -> list[str]:
    """The command that takes the network away, or nothing where the system does not allow it."""
    for wall in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        try:
            if subprocess.run([*wall, "true"], capture_output=True, check=False).returncode == 0:
                return wall
        except FileNotFoundError:
            break
    return []


@pytest.fixture
def walled(tmp_path):
    """Runs a Python command line without a network; returns how it ended and what it tried."""
    (tmp_path / "wall").mkdir()
    (tmp_path / "wall" / "sitecustomize.py").write_text(WALL)
    log = tmp_path / "egress.log"
    log.touch()

    def run(*arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "wall"), "EGRESS_LOG": str(log)}
        line = [*namespace(), sys.executable, *arguments]
        done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done, log.read_text().splitlines()

    return run


def headct(*arguments: str | Path) -> tuple[str, ...]:
    return ("-c", "from headct.cli import main; main()", *map(str, arguments))


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


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("headct.studies") is None, reason="the demo is not built")
def test_the_whole_demo_reaches_for_nothing(walled, tmp_path):
    done, tried = walled(*headct("demo", "--quick", "--out", tmp_path / "demo"))
    assert done.returncode == 0, done.stderr
    assert tried == []
    assert (tmp_path / "demo" / "report.html").exists()
