"""A world without a network, for whole commands.

Two walls. A `sitecustomize` installs an audit hook in the command's process and in every Python process that it starts;
it writes down and refuses each attempt to resolve a name or to reach an address that is not a Unix socket. Where the
system allows it (`unshare --net`), the command also runs in a network namespace with no interface up, which holds for
native code too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def run_walled(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a Python command line in a folder without a network; returns how it ended and what it tried so far."""
    wall, log = folder / "wall", folder / "egress.log"
    wall.mkdir(exist_ok=True)
    (wall / "sitecustomize.py").write_text(WALL)
    log.touch()
    environment = {**os.environ, "PYTHONPATH": str(wall), "EGRESS_LOG": str(log)}
    line = [*namespace(), sys.executable, *arguments]
    done = subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    return done, log.read_text().splitlines()


def headct(*arguments: str | Path) -> tuple[str, ...]:
    """The arguments of Python that run a command line of the package."""
    return ("-c", "from headct.cli import main; main()", *map(str, arguments))
