"""What lies in the inputs, how it is told whether it changed since, and how paths are hidden."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headct.reading.files import Source, find
from headct.scan import REASONS, Rejection


@dataclass(frozen=True, slots=True)
class Input:
    """A source, or the reason why a path gave none. `stamp` changes when the file does.

    `files` and `sizes_bytes` have an entry for the source itself and for each data file of a detached header.
    """

    name: str
    stamp: str
    files: tuple[str, ...]
    sizes_bytes: tuple[int, ...]
    found: Source | Rejection

    @property
    def root(self) -> str:
        """The name of the input in which it was found."""
        return self.name.partition("/")[0]


def take_stock(places: Sequence[Path], names: Sequence[str]) -> list[Input]:
    """Every file of the inputs, called by these names, in an order that does not depend on the file system."""
    inputs = [one for found in find(places, names=names) for one in _inputs(found)]
    assert len({one.name for one in inputs}) == len(inputs), "two files found under one name"
    return inputs


def holds_files(place: Path) -> bool:
    """Whether there is anything in a folder and those below it but folders; so is what cannot be looked into.

    Stops at the first file, so that a job without any can end before it writes.
    """
    folders: list[str | os.PathLike[str]] = [place]
    while folders:
        try:
            with os.scandir(folders.pop()) as listing:
                entries = list(listing)
        except OSError:  # a file, or a folder that is closed
            return True
        if not all(entry.is_dir(follow_symlinks=False) for entry in entries):
            return True
        folders += entries
    return False


def _inputs(found: Source | Rejection) -> Iterator[Input]:
    if isinstance(found, Rejection):
        for name in found.files:
            yield Input(name, stamp(found.code), (name,), (0,), found)
        return
    folder = os.path.dirname(found.path)
    parts = [_size_and_change(found.path), *(_size_and_change(os.path.join(folder, name)) for name in found.beside)]
    sizes_bytes = (found.size_bytes, *(size for size, _ in parts[1:]))
    yield Input(found.name, stamp(found.size_bytes, found.place, *parts), found.files, sizes_bytes, found)


def _size_and_change(path: str) -> tuple[int, int]:
    """Bytes and time of the last change in ns; zeros for a file that went away, of which reading will tell."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def stamp(*parts: object) -> str:
    """16 hexadecimal digits that differ where the parts do: a cohort must not say when a file was made."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


class Paths:
    """How paths are written into the tables: as they are, or as keyed hashes where a key is given."""

    def __init__(self, key: bytes | None, names: Iterable[str] = (), places: Iterable[Path] = ()) -> None:
        self._key = key
        self._words: set[str] = set()
        if key is not None:
            for path in (*names, *(str(place.absolute()) for place in places)):
                self._words |= _words(path)

    def shown(self, name: str) -> str:
        """The path for a table."""
        if self._key is None:
            return name
        return hashlib.blake2b(name.encode(), key=self._key[:64], person=b"path", digest_size=8).hexdigest()

    def told(self, rejection: Rejection) -> dict[str, str]:
        """Sentence and remedy for a table; where they share a word with any path, only what the code means."""
        if _words(f"{rejection.sentence} {rejection.remedy}") & self._words:
            reason = REASONS[rejection.code]
            return {"sentence": reason.meaning, "remedy": reason.remedy}
        return {"sentence": rejection.sentence, "remedy": rejection.remedy}


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
