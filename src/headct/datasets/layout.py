"""Finding the parts of a set below the folder that a user names: perhaps the one above, perhaps not unpacked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from headct.failure import Failure, Misuse

DEPTH = 3
"""How many folders below the one that is named its parts may lie: `--data` may name the folder of the download."""

MANY = 2000
"""A folder with more entries holds images, and is not searched for parts."""

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".rar", ".7z")


def folders(data: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folder and those below it, nearest first, each level in the order of names; hidden ones are left out.

    Raises Misuse where it is none.
    """
    if not data.is_dir():
        what = f"{data} is a file, not the folder of the set" if data.is_file() else f"there is no folder {data}"
        raise Misuse(what, do="name the folder into which the set was downloaded and unpacked")
    level = [data]
    for _ in range(depth + 1):
        yield from level
        level = [below for folder in level for below in _below(folder)]


def _below(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        found: list[Path] = []
        for number, entry in enumerate(entries):
            if number >= MANY and not found:
                break
            if entry.is_dir() and not entry.name.startswith("."):
                found.append(Path(entry.path))
    return sorted(found)


def find_file(data: Path, *names: str, what: str, do: str) -> Path:
    """The first file with one of these names. Raises Failure that says what was looked for, and where."""
    for folder in folders(data):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise missing(data, names, what, do)


def find_folder(data: Path, *names: str, what: str, do: str) -> Path:
    """The same for a folder, which may be the one that was named."""
    for folder in folders(data):
        if folder.name in names:
            return folder
    raise missing(data, names, what, do)


def missing(data: Path, names: Sequence[str], what: str, do: str) -> Failure:
    """The failure for a part that is not there; archives that lie in its stead are named."""
    packed = sorted(
        entry.name
        for folder in folders(data, depth=1)
        for entry in folder.iterdir()
        if entry.is_file() and entry.name.lower().endswith(ARCHIVES) and not entry.name.endswith(".nii.gz")
    )
    why = f"there is no {' or '.join(names)} in it or in the folders below"
    if packed:
        more = f" and {len(packed) - 3} more" if len(packed) > 3 else ""
        return Failure(
            f"{data} lacks {what}", why=f"{why}, but {', '.join(packed[:3])}{more} that may hold it", do=f"unpack; {do}"
        )
    return Failure(f"{data} lacks {what}", why=why, do=do)


def read_table(path: Path, columns: Sequence[str], **options: object) -> pd.DataFrame:
    """A CSV with at least these columns, all values as text unless `dtype` says otherwise.

    Column names are stripped of what spreadsheets leave around them. Raises Failure, naming the columns that are
    missing and what stands nearest to them.
    """
    try:
        table = pd.read_csv(path, encoding="utf-8-sig", **{"dtype": str, **options})  # type: ignore[call-overload]
    except (ValueError, OSError) as error:  # pandas' errors of parsing are ValueErrors, as is broken UTF-8
        do = "download it again; do not open and save it with a spreadsheet program"
        raise Failure(f"{path} cannot be read as a table", why=f"{type(error).__name__}: {error}", do=do) from None
    table.columns = [str(name).strip() for name in table.columns]
    absent = [name for name in columns if name not in table.columns]
    if absent:
        near = {name: get_close_matches(name, list(table.columns), n=1) for name in absent}
        hints = [f"{name} (is it {match[0]}?)" if match else name for name, match in near.items()]
        shown = ", ".join(hints[:4]) + (f" and {len(hints) - 4} more" if len(hints) > 4 else "")
        raise Failure(
            f"{path} lacks the column{'s' if len(absent) > 1 else ''} {shown}",
            why=f"its columns are {', '.join(map(str, table.columns[:8]))}{', …' if len(table.columns) > 8 else ''}",
            do="use the file as its makers publish it",
        )
    return table


def as_labels(values: pd.Series) -> pd.Series:
    """1.0, 0.0, or NaN for whatever else a cell says."""
    numbers = pd.to_numeric(values, errors="coerce")
    return numbers.where(numbers.isin([0, 1])).astype(float)


def stem(name: str) -> str:
    """The name of a NIfTI or DICOM file without folders and endings."""
    base = name.rpartition("/")[2]
    for ending in (".nii.gz", ".nii", ".dcm"):
        if base.endswith(ending):
            return base[: -len(ending)]
    return base
