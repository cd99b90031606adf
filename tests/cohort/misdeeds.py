"""What a hostile file can do to the process that reads it: real crashes, real hangs, real hunger for memory.

Stand-ins for the functions that run in a cell. They read the real bytes of each file and do what these say, or what
the real function does. They are imported by the cell, in another process, so nothing of them is a pretence.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headct.cohort import work
from headct.reading import guard
from headct.reading.files import Source
from headct.reading.isolation import announce
from headct.reading.series import Volume

MARKER = b"misdeed:"


def plant(path: Path, when: str, deed: str) -> None:
    """Make a file misbehave when its header or its pixels are read; it stays readable otherwise."""
    with path.open("ab") as file:
        file.write(MARKER + f"{when}:{deed}".encode())


def commit(source: Source, when: str) -> None:
    """Do what the file says."""
    tail = source.read()[-64:]
    if MARKER + when.encode() not in tail:
        return
    match tail.rpartition(b":")[2]:
        case b"crash":
            ctypes.string_at(0)
        case b"hang":
            time.sleep(600)
        case b"hunger":
            hoard = []
            while True:
                hoard.append(np.empty(64 << 20, np.uint8))


def headers(sources: Sequence[Source]) -> dict[str, Any]:
    """In place of `headct.reading.guard.headers_in_cell`."""
    for source in sources:
        announce(source.name)
        commit(source, "header")
    return guard.headers_in_cell(sources)


def series(volume: Volume, terms: work.Terms) -> work.Outcome:
    """In place of `headct.cohort.work.series_in_cell`."""
    for source in sorted({image.source for image in volume.images}, key=lambda source: source.name):
        announce(source.name)
        commit(source, "pixels")
    return work.series_in_cell(volume, terms)
