"""Which values of a mask mean what: the classes that a segmenter draws, numbered from 1; 0 is everything else."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from headct.failure import Misuse

TABLE = "classes.csv"
"""In a folder of masks: columns value, name, and in one of drawn masks `PARTS`; `headct simulate --masks` writes it."""
PARTS = "parts"
"""Column of that table: what a class joined in the masks it was learned from, as in `--classes`."""
MOST = 254
"""Classes; their numbers are kept in a byte."""
NAME = re.compile(r"[A-Za-z][\w-]*", re.ASCII)  # as DICOM's default character set, columns and file names have it
RESERVED = "all"
"""What the mean over classes is called."""


@dataclass(frozen=True)
class Classes:
    """Classes 1, 2, 3, ... by `names`, and which values of a mask's file mean each: a class may join several.

    `definition` says the same by names, as far as the values have some, so that it can be looked up in another folder
    (`as_learned`), whose values may differ.
    `known` are all values that the folder has a name for, with 0; None where it has no table, and any value may occur.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    definition: str
    known: frozenset[int] | None = None

    @property
    def outputs(self) -> int:
        """How many there are with the background."""
        return len(self.names) + 1

    def of(self, stored: np.ndarray, path: Path) -> np.ndarray:
        """Class numbers, uint8, from the values of a mask. Raises Misuse for what is no class map or has no name."""
        values = np.unique(stored)
        if not np.isfinite(values).all() or not (values == np.rint(values)).all() or values[0] < 0:
            odd = next(value for value in values if not (np.isfinite(value) and value >= 0 and value == np.rint(value)))
            raise Misuse(
                f"{path} holds the value {odd:g}",
                why="the values of a mask are whole numbers, 0 for nothing",
                do="export the mask as a label map, without interpolation or scaling",
            )
        if self.known is not None and (strange := sorted(set(values.astype(int).tolist()) - self.known)):
            raise Misuse(
                f"{path} holds the value {strange[0]}, which {TABLE} beside it does not name",
                do=f"name it in {TABLE}, or give the classes by --classes",
            )
        found = np.zeros(stored.shape, dtype=np.uint8)
        for number, some in enumerate(self.values, start=1):
            found[np.isin(stored, some)] = number
        return found


def read_classes(folders: Sequence[Path], wanted: str = "") -> Classes:
    """The classes of folders of masks, by the table in them, or those `wanted`.

    `wanted` is `NAME,NAME=PART+PART,...`, each part a name of the table or a value of the files; what no class names
    is background. Raises Misuse where nothing tells, tables differ, or a word means nothing.
    """
    tables = [_read_table(folder / TABLE)[0] for folder in folders]
    if any(table != tables[0] for table in tables):
        raise Misuse(f"the folders of masks have different {TABLE}", do="give them the same values for the same names")
    table = tables[0]
    if not wanted.strip() and not table:
        raise Misuse(
            f"what the values of the masks in {folders[0]} mean is not known",
            why=f"there is no {TABLE} (columns value, name) in it",
            do="write one, or name the classes: --classes brain=1,ventricles=2",
        )
    definition = wanted.strip() or ",".join(table)
    names, values = [], []
    for word in (part.strip() for part in definition.split(",")):
        name, _, parts = (piece.strip() for piece in word.partition("="))
        names.append(_checked(name))
        values.append(tuple(sorted(_value(part.strip(), table, folders[0]) for part in (parts or name).split("+"))))
    _expect_once(names, [value for some in values for value in some])
    for name, some in zip(names, values, strict=True):
        if table.get(name, some[0]) not in some:
            raise Misuse(
                f"the class {name} is the value {'+'.join(map(str, some))}, and {table[name]} in {folders[0] / TABLE}",
                do="write --classes for these masks, by the names in the table",
            )
    known = frozenset({0, *table.values()}) if table and not wanted.strip() else None
    called = {value: name for name, value in table.items()}
    parts_by_name = ["+".join(called.get(value, str(value)) for value in some) for some in values]
    joined = _definition(dict(zip(names, parts_by_name, strict=True)))
    return Classes(tuple(names), tuple(values), joined, known)


def parts_of(definition: str) -> dict[str, str]:
    """What each class of a definition joins, in order: `A+B` of `name=A+B`, and the name itself of `name`."""
    words = [[piece.strip() for piece in word.partition("=")] for word in definition.split(",") if word.strip()]
    return {name: parts or name for name, _, parts in words}


def as_learned(folder: Path, definition: str) -> str:
    """A definition from elsewhere by what a folder of masks has: a class by its parts, or by name if joined there.

    A value without a name says nothing of a folder that has names: there too the class is found by its own.
    """
    table, _ = _read_table(folder / TABLE)

    def found(name: str, parts: str) -> str:
        some = parts.split("+")
        joined_there = name in table and not set(some) <= table.keys()
        return name if joined_there or (table and any(part.isdecimal() for part in some)) else parts

    return _definition({name: found(name, parts) for name, parts in parts_of(definition).items()})


def definition_in(folder: Path) -> str:
    """The classes by the table of a folder of masks, and what they joined; empty where there is no table."""
    return _definition(_read_table(folder / TABLE)[1])


def write_table(names: Sequence[str], definition: str) -> bytes:
    """The table of drawn masks, whose values are 1, 2, 3, ..., with what each class joined where it was learned."""
    parts = parts_of(definition)
    rows = [f"{value},{name},{parts[name]}\n" for value, name in enumerate(names, start=1)]
    return "".join([f"value,name,{PARTS}\n", *rows]).encode()


def _definition(parts: Mapping[str, str]) -> str:
    return ",".join(name if name == joined else f"{name}={joined}" for name, joined in parts.items())


def _read_table(path: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Value, and what was joined, by name and in order; nothing where there is no table."""
    if not path.is_file():
        return {}, {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    try:
        found = {_checked(row["name"].strip()): int(row["value"]) for row in rows}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Misuse(f"{path} is no table of classes", why=repr(error), do="give it the columns value, name") from error
    if not found or len(found) < len(rows) or len(set(found.values())) < len(rows) or min(found.values()) < 1:
        raise Misuse(f"{path} must have each name and each value once, all values above 0", do="correct it")
    parts = {name: (row.get(PARTS) or "").strip() or name for name, row in zip(found, rows, strict=True)}
    return found, parts


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise Misuse(f"a class cannot be called {name!r}", do="use letters of ASCII, digits, _ and -, a letter first")
    if name == RESERVED:
        raise Misuse(f"a class cannot be called {name!r}", why="the mean over classes is", do="give it another name")
    return name


def _value(part: str, table: Mapping[str, int], folder: Path) -> int:
    """The value that a name of the table, or a number, stands for."""
    if part in table:
        return table[part]
    if part.isdecimal() and int(part) > 0:
        return int(part)
    near = get_close_matches(part, table, n=1)
    told = f"did you mean {near[0]}? else " if near else ""
    raise Misuse(
        f"{part!r} is no class of the masks in {folder}, and no value above 0",
        do=f"{told}say by --classes what it joins, of {', '.join(table)}: NAME=PART+PART"
        if table
        else "write NAME=VALUE",
    )


def _expect_once(names: Sequence[str], values: Sequence[int]) -> None:
    if len(names) > MOST:
        raise Misuse(f"{len(names)} classes are too many", why=f"at most {MOST} can be drawn")
    for what, some in (("class", list(names)), ("value", [str(value) for value in values])):
        twice = [one for index, one in enumerate(some) if one in some[:index]]
        if twice:
            raise Misuse(f"the {what} {twice[0]} comes twice", do="name each once")
