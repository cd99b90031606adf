"""Tables as users write them: a file of any usual kind to text, cells to labels, several readers to one.

A table is a CSV, Parquet or Excel file. A label is 1, 0 or unknown, in the spellings below; where several readers give
theirs, in columns such as `ich_r1`, a rule makes one of them.
"""

from __future__ import annotations

import re
import warnings
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast, get_args
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import pyarrow as pa

from headct.failure import Misuse

POSITIVE = frozenset({"1", "yes", "y", "true", "t", "positive", "pos", "present", "+"})
NEGATIVE = frozenset({"0", "no", "n", "false", "f", "negative", "neg", "absent"})
UNKNOWN = frozenset({"", "nan", "na", "n/a", "<na>", "null", "none", "unknown", "uncertain", "?"})
"""Spellings of a label, in any case."""

IDENTIFIERS = ("scan_id", "series_id", "study_id", "patient_id")
"""Columns by which a row may name scans, the most exact first."""
MEASURES = ("_mm", "_ml", "_deg", "_hu")
"""Ends of names of columns that hold a measurement, even where it happens to be 0 or 1."""
SIDE = "_side"

Readers = Literal["majority", "any"]

_READER_LAST = re.compile(r"(?P<finding>.+?)[_\-. :](?:r|rater|reader)[_\-. ]?(?P<reader>\d+)", re.IGNORECASE)
_READER_FIRST = re.compile(r"(?:r|rater|reader)[_\-. ]?(?P<reader>\d+)[_\-. :]+(?P<finding>.+)", re.IGNORECASE)


def read_table(path: Path) -> pd.DataFrame:
    """A table of text, nothing where a cell is empty. Raises Misuse where it cannot be read as one."""
    return _texts(opened(path)).apply(lambda column: column.str.strip())


def opened(path: Path) -> pd.DataFrame:
    """The same with the cells of a Parquet file in their own types, which are quicker where there are millions."""
    kind = path.suffix.lower()
    if kind == ".xls":
        raise Misuse(f"{path} is of an Excel before 2007", do="save it as .xlsx or as CSV")
    if path.is_dir() and kind != ".parquet":  # of many files, as clusters write it
        raise Misuse(f"{path} is a folder, and no table", do="name a CSV, Parquet or Excel file")
    if path.is_file() and not path.stat().st_size:
        raise Misuse(f"{path} is empty", why="the file has 0 bytes", do="write it again, or copy it once more")
    try:
        if kind in {".xlsx", ".xlsm"}:
            table = _with_names(_sheet(path))
        elif kind == ".parquet":
            table = pd.read_parquet(path)
        else:
            encoding = _encoding(path)
            separator = _separator(path, encoding)
            lines = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, sep=separator, encoding=encoding)
            table = _with_names(lines)
    except FileNotFoundError:
        raise Misuse(f"there is no table {path}", do="check the path") from None
    except UnicodeError as error:
        raise Misuse(
            f"{path} is not written in UTF-8",
            why="its letters are in another encoding, or it is no text",
            do="save it as `CSV UTF-8`, as Excel calls it, or as .xlsx",
        ) from error
    except (OSError, ValueError, KeyError, BadZipFile, pa.ArrowException, pd.errors.ParserError) as error:
        why = str(error).partition("\n")[0]
        raise Misuse(f"{path} is no table", why=why, do="give a CSV, Parquet or Excel file") from error
    table.columns = [str(name).strip() for name in table.columns]
    repeated = [name for name, times in Counter(table.columns).items() if times > 1]
    if repeated:
        raise Misuse(f"{path} has two columns called {repeated[0]!r}", do="rename or remove one of them")
    if table.empty:
        raise Misuse(f"{path} has no rows", do="give a table with a row for each scan")
    return table


def expect_labels(table: pd.DataFrame, path: Path) -> None:
    """Raises Misuse for tables of ours that are named instead of labels, though they may hold 1 and 0."""
    others = {
        "the table of a cohort's scans": {"scan_id", "shard", "crc32"},
        "a table of predictions": {"scan_id", "finding", "probability"},
    }
    for what, columns in others.items():
        if columns <= set(table.columns):
            raise Misuse(
                f"{path} is {what}, and holds no labels",
                do="name a table with a row for each scan and a column of 1, 0 or nothing for each finding",
            )


def _sheet(path: Path) -> pd.DataFrame:
    """The only sheet of a workbook that is shown and has anything in it.

    Raises Misuse where there are several, for one is not guessed, or where a cell shows an error (#N/A, #REF!).
    """
    with warnings.catch_warnings(), pd.ExcelFile(path, engine="openpyxl") as book:
        warnings.filterwarnings("ignore", category=UserWarning, module="openpyxl")  # of what is not a cell
        shown = [sheet.title for sheet in book.book.worksheets if sheet.sheet_state == "visible"]
        sheets = pd.read_excel(book, sheet_name=shown, header=None, dtype=str, keep_default_na=False)
    filled = {name: lines for name, lines in sheets.items() if len(lines)}
    if len(filled) > 1:
        names = ", ".join(map(str, filled))
        raise Misuse(f"{path} has {len(filled)} sheets: {names}", do="save the one that is meant as CSV, or by itself")
    lines = next(iter(filled.values()), pd.DataFrame([[]]))
    if len(wrong := np.flatnonzero(lines.isna().any(axis=1))):
        raise Misuse(
            f"{path}, row {wrong[0] + 1}: a cell shows an error, such as #N/A",
            do="mend its formula, or leave the cell empty where it is unknown",
        )
    return lines


def _with_names(lines: pd.DataFrame) -> pd.DataFrame:
    """A table whose first line names its columns; read so, for pandas would rename the second of two equal names."""
    table = lines.iloc[1:].reset_index(drop=True)
    table.columns = lines.iloc[0]
    return table


def _encoding(path: Path) -> str:
    """UTF-8, or UTF-16 where its mark begins the file, as Excel's `Unicode text` does."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"


def _separator(path: Path, encoding: str) -> str:
    """What most often stands between the names of the columns; a comma where nothing does.

    Raises UnicodeError where a name holds what stands in no text, as in UTF-16 without its mark.
    """
    with path.open(encoding=encoding) as file:
        head = file.readline()
    if "\0" in head:
        raise UnicodeError("a zero byte")
    return max(",;\t", key=head.count)


def _texts(table: pd.DataFrame) -> pd.DataFrame:
    """Cells as text; whole numbers without their point, whichever type a file gave them."""

    def text(value: Any) -> str:
        if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
            return ""
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    return table.apply(lambda column: column.map(text)).astype(str)


def parsed(values: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    """1, 0 or NaN (rows,), and the rows that hold something else."""
    meaning = dict.fromkeys(POSITIVE, 1.0) | dict.fromkeys(NEGATIVE, 0.0) | dict.fromkeys(UNKNOWN, np.nan)
    meaning |= {"1.0": 1.0, "0.0": 0.0}
    words = [value.lower() for value in values]
    labels = np.array([meaning.get(word, np.nan) for word in words])
    return labels, [row for row, word in enumerate(words) if word not in meaning]


def readers_rule(name: str) -> Readers:
    """The rule of this name over several readers. Raises Misuse where there is none."""
    if name not in get_args(Readers):
        raise Misuse(f"no rule over readers is called {name!r}", do=f"take {' or '.join(get_args(Readers))}")
    return cast(Readers, name)


def reader_of(column: str) -> tuple[str, str]:
    """The finding and the reader that a column's name tells; no reader where it tells none."""
    found = _READER_LAST.fullmatch(column) or _READER_FIRST.fullmatch(column)
    return (found["finding"].strip(), found["reader"]) if found else (column, "")


def nearest(name: str, names: Iterable[str]) -> str:
    """The name that was meant most likely, in whichever case it was written; empty where none is like it."""
    spelt = {one.lower(): one for one in reversed(list(names))}
    return next((spelt[one] for one in get_close_matches(name.lower(), spelt, n=1)), "")


def by_reader(columns: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The columns of each finding, and those that are left out and why: readers' beside what was made of them.

    One that a single reader has keeps its name, for it may not mean a reader.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for column in columns:
        groups[reader_of(column)[0]].append(column)
    left_out = {
        column: f"a reader's, and there is {name} itself"
        for name, ones in groups.items()
        if name in ones
        for column in ones
        if column != name
    }
    kept = {name: [name] if name in ones else ones for name, ones in groups.items()}
    return {name if len(ones) > 1 else ones[0]: ones for name, ones in kept.items()}, left_out


def combined(readers: Sequence[np.ndarray], rule: Readers, *, all_read: bool = False) -> np.ndarray:
    """One label (rows,) of several readers' 1, 0 and NaN.

    By majority it is what more than half of the votes say; by any reader it is 1 where one says so, and 0 where all say
    0. What is neither is unknown. Those who said neither have no vote; where `all_read`, everybody should have one, and
    what a missing one leaves open is unknown.
    """
    votes = np.stack(readers)
    positive, negative = (votes == 1).sum(axis=0), (votes == 0).sum(axis=0)
    voters = np.full_like(positive, len(votes)) if all_read else positive + negative
    if rule == "majority":
        yes, no = 2 * positive > voters, 2 * negative > voters
    else:
        yes, no = positive > 0, (negative == voters) & (voters > 0)
    return np.select([yes, no], [1.0, 0.0], np.nan)
