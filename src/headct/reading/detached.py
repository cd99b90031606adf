"""Headers in one file, voxels in another (.mhd and .nhdr): which file belongs to which, and how to get at it safely.

A header may only name plain files beside it. Whatever it says of other folders is refused, so that a header from
elsewhere cannot have any file of the machine read.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection

from headct.reading.faults import Fault

HEADER_BYTES = 1 << 20
"""More is no header."""

_SUFFIXES = (".mhd", ".nhdr")
_DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file\s*:)[ \t]*([^\r\n]*?)[ \t]*\r?$", re.MULTILINE)


def data_files(folder: str, plain: Collection[str]) -> dict[str, tuple[str, ...]]:
    """For each detached header among the plain files of a folder, the names of its data files there.

    A header is looked for only under its customary suffix: opening every file twice would cost more than it finds.
    """
    found = {}
    for name in plain:
        if name.lower().endswith(_SUFFIXES):
            names = _named_in(os.path.join(folder, name))
            if names and all(data != name and data in plain for data in names):
                found[name] = names
    return found


def data_of(header_path: str) -> tuple[str, ...]:
    """The names of the data files of one detached header, if they are plain files beside it; none for other files."""
    folder, name = os.path.split(header_path)
    if not name.lower().endswith(_SUFFIXES):
        return ()
    names = _named_in(header_path)
    return names if all(data != name and _is_plain(os.path.join(folder, data)) for data in names) else ()


def _is_plain(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def read(header_path: str, beside: tuple[str, ...], named: str, limit_bytes: int) -> bytes:
    """The bytes of the data file `named` in a header, which must be one of those found beside it.

    Raises Fault: damaged where the header names anything else, too-large beyond the limit, unreadable.
    """
    named = _without_dot(named)
    if named not in beside:
        raise Fault("damaged", f"its voxels should be in {named!r}, which is no plain file in the folder of the header")
    path = os.path.join(os.path.dirname(header_path), named)
    try:
        # without following links: what lay there may have been replaced since the folder was read
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Fault("special-file", f"its voxels should be in {named!r}, which is no plain file")
            if status.st_size > limit_bytes:
                raise Fault("too-large", f"{named!r} holds {status.st_size / 1e6:,.0f} MB")
            return file.read(limit_bytes)
    except OSError as error:
        raise Fault("unreadable", f"the operating system says of {named!r}: {error.strerror or error}") from None


def _named_in(path: str) -> tuple[str, ...]:
    """The data files that a header names, in its order; empty where it holds its own or cannot be read."""
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER_BYTES)
    except OSError:
        return ()  # the walk meets the file again and says why
    named = _DATA_FILE.search(header)
    name = _without_dot(named[1].decode("utf-8", "surrogateescape")) if named else ""
    return () if name in ("", "LOCAL", "LIST") or "/" in name else (name,)


def _without_dot(name: str) -> str:
    """Some writers name the file beside the header as ./a.raw."""
    return name.removeprefix("./")
