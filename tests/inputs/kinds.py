"""The table of inputs and what is expected of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What reading with the default criteria, and preparing with the default recipe, must make of an input.

    `flags` are those of all scans together. `rejected` counts the codes of the rejected files. `prepared` is the
    code with which preparing turns away the scans that reading accepts, empty where it takes them. `known` says that
    the scans show the average head at its place, so that every voxel can be checked.
    """

    scans: int = 1
    flags: tuple[str, ...] = ()
    rejected: dict[str, int] = field(default_factory=dict)
    prepared: str = ""
    known: bool = True


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of input. `make` builds it under a folder, which exists and is empty.

    `lacking` says why it cannot be made on this machine: empty where it can, None where it can on every machine.
    """

    what: str
    topic: str
    make: Callable[[Path], None]
    expected: Expected
    lacking: str | None = None


KINDS: dict[str, Kind] = {}


def kind(
    what: str,
    *,
    scans: int = 1,
    flags: tuple[str, ...] = (),
    rejected: dict[str, int] | None = None,
    prepared: str = "",
    known: bool = True,
    lacking: str | None = None,
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Put the decorated function into the table under its own name, with hyphens; its module is the topic."""

    def register(make: Callable[[Path], None]) -> Callable[[Path], None]:
        name, topic = make.__name__.replace("_", "-"), make.__module__.rpartition(".")[2]
        assert name not in KINDS, f"two kinds are called {name}"
        expected = Expected(
            scans=scans, flags=tuple(sorted(flags)), rejected=rejected or {}, prepared=prepared, known=known
        )
        KINDS[name] = Kind(what=what, topic=topic, make=make, expected=expected, lacking=lacking)
        return make

    return register


def refused(what: str, code: str, files: int = 1) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """As `kind`, for an input of which nothing but rejections with one code must come."""
    return kind(what, scans=0, rejected={code: files})
