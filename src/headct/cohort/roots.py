"""How inputs are called in a cohort: two folders `dicom` are two inputs, and one that was moved is still itself.

A place is remembered as a keyed hash, so that no path can be read from a cohort.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path

from headct.cohort.inputs import Input
from headct.cohort.tables import Row
from headct.reading.files import base_name


@dataclass(frozen=True)
class Roots:
    """The inputs that a cohort has seen. `shown` gives the path of a table for a name."""

    seen: Sequence[Row]
    shown: Callable[[str], str]
    key: bytes

    def place(self, path: Path) -> str:
        """16 hexadecimal digits for where an input lies."""
        text = os.path.abspath(path).encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, key=self.key[:64], person=b"place", digest_size=8).hexdigest()

    def names(self, paths: Sequence[Path]) -> list[str]:
        """The name that each place had before, else NAME, NAME~2, ..., the first that no other place has or had."""
        root_of = {row["place"]: row["root"] for row in self.seen if row.get("place")}
        roots = {row["root"] for row in self.seen}
        name_of: dict[str, str] = {}
        for path in paths:
            place = self.place(path)
            if place in root_of:
                name_of[place] = next(name for name in _names(path) if self.shown(name) == root_of[place])
            elif place not in name_of:
                free = (name for name in _names(path) if name not in name_of.values())
                name_of[place] = next(name for name in free if self.shown(name) not in roots)
        return [name_of[self.place(path)] for path in paths]

    def settled(self, paths: Sequence[Path], names: Sequence[str], stock: Iterable[Input]) -> list[str]:
        """The names again, but for a new place with files just as they were read from another place, the name of that.

        `stock` is what was found under the names as they are.
        """
        stamps = {row["path"]: row["stamp"] for row in self.seen}
        places, roots = {row.get("place") for row in self.seen}, {row["root"] for row in self.seen}
        settled = list(names)
        for index, (path, name) in enumerate(zip(paths, names, strict=True)):
            if self.place(path) in places:
                continue
            here = [(one.name.removeprefix(name), one.stamp) for one in stock if one.root == name]
            for other in takewhile(lambda other: self.shown(other) in roots, _names(path)):
                if other not in settled and any(stamps.get(self.shown(other + rest)) == stamp for rest, stamp in here):
                    settled[index] = other
        return settled


def _names(path: Path) -> Iterator[str]:
    base = base_name(path)
    yield base
    yield from (f"{base}~{number}" for number in count(2))
