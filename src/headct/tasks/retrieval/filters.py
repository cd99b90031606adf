"""Which scans may be found: conditions on the columns of a cohort's table, in a line that one would type.

`thickness_mm<=2.5`, `sex=F`, `kernel~H3*|B3*`, `scanner=SIEMENS`, `age>=60`. A bar stands between alternatives, texts
are compared without regard to case, `~` takes patterns. What a file does not state meets no condition, `!=` neither.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import MappingProxyType

import numpy as np
import pandas as pd

from headct.failure import Misuse

COLUMNS = (
    *("manufacturer", "model", "kernel", "kvp", "contrast", "age", "sex", "slices", "pixel_mm", "gap_median_mm"),
    *("thickness_mm", "tilt_deg", "coverage", "site", "source", "preferred"),
)
"""Of a cohort's table, by which scans may be chosen."""
ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "scanner": ("manufacturer", "model"),
        "thickness": ("thickness_mm",),
        "tilt": ("tilt_deg",),
        "gap": ("gap_median_mm",),
    }
)
"""Words for columns; a condition on several is met by any of them, and `!=` by all."""
ORDERS: Mapping[str, Callable[[np.ndarray, float], np.ndarray]] = MappingProxyType(
    {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
)
TRUTHS = {"yes": "true", "1": "true", "no": "false", "0": "false"}
SHOWN = 6

_CONDITION = re.compile(r"\s*(?P<column>\w+)\s*(?P<sign><=|>=|!=|==|<|>|=|~)\s*(?P<value>.*?)\s*")


@dataclass(frozen=True)
class Condition:
    """One condition: the columns that it asks, how, and the alternatives that it takes."""

    columns: tuple[str, ...]
    sign: str
    wanted: tuple[str, ...]
    text: str  # as it was typed

    @classmethod
    def of(cls, text: str) -> Condition:
        """From a line. Raises Misuse where it is none, or names no column by which scans may be chosen."""
        found = _CONDITION.fullmatch(text)
        if found is None or not found["value"]:
            raise Misuse(
                f"{text!r} is no condition",
                do="write a column, a sign and a value, such as 'thickness_mm<=2.5', 'sex=F' or 'kernel~H3*'",
            )
        name, sign = found["column"], found["sign"].replace("==", "=")
        known = (*COLUMNS, *ALIASES)
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"columns are {', '.join(known)}"
            raise Misuse(f"no column {name!r} to choose scans by", do=hint)
        wanted = tuple(part.strip() for part in found["value"].split("|"))
        if sign in ORDERS and len(wanted) > 1:
            raise Misuse(f"{text!r} has several values after {sign}", do="give one number")
        return cls(ALIASES.get(name, (name,)), sign, wanted, text.strip())

    def met(self, scans: pd.DataFrame) -> np.ndarray:
        """Which rows meet it, (n,). Raises Misuse where a value is no number and the column holds numbers."""
        answers = np.stack([self._met(scans[column]) for column in self.columns])
        return np.asarray(answers.all(axis=0) if self.sign == "!=" else answers.any(axis=0))

    def _met(self, values: pd.Series) -> np.ndarray:
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            return self._met_by_numbers(values.to_numpy(dtype=float, na_value=np.nan))
        if self.sign in ORDERS:
            raise Misuse(f"{self.text!r} asks for an order, and {values.name} holds words", do="use =, != or ~")
        words = _texts(values).str.strip().str.casefold()
        stated = (words != "").to_numpy()
        wanted = [one.casefold() for one in self.wanted]
        if pd.api.types.is_bool_dtype(values) or set(words[stated]) <= {"true", "false"}:
            wanted = [TRUTHS.get(one, one) for one in wanted]
        if self.sign == "~":
            same = words.map(lambda word: any(fnmatchcase(word, one) for one in wanted)).to_numpy(dtype=bool)
        else:
            same = words.isin(wanted).to_numpy()
        return stated & (~same if self.sign == "!=" else same)

    def _met_by_numbers(self, values: np.ndarray) -> np.ndarray:
        try:
            wanted = [float(one) for one in self.wanted]
        except ValueError:
            wanted = []
        if not wanted or self.sign == "~":
            raise Misuse(
                f"{self.text!r} does not fit {self.columns[0]}, which holds numbers",
                do=f"write a number after <, <=, >, >=, = or !=, such as {self.columns[0]}<=2.5",
            )
        if self.sign in ORDERS:
            return ORDERS[self.sign](values, wanted[0])  # NaN is in no order
        same = np.isin(values, wanted)
        return np.isfinite(values) & ~same if self.sign == "!=" else same


def kept(scans: pd.DataFrame, conditions: Sequence[Condition]) -> np.ndarray:
    """Rows that meet all conditions, ascending. Raises Misuse, with what the columns hold, where none does."""
    met = np.ones(len(scans), dtype=bool)
    for condition in conditions:
        mine = condition.met(scans)
        if not (met & mine).any():
            others = f" among the {int(met.sum()):,} that meet the others" if met.any() and mine.any() else ""
            raise Misuse(
                f"no scan meets {condition.text!r}{others}",
                why="; ".join(_holds(scans[column]) for column in condition.columns),
                do="widen the condition, or leave it out",
            )
        met &= mine
    return np.flatnonzero(met)


def _texts(values: pd.Series) -> pd.Series:
    """Cells as text, empty where nothing is stated."""
    return values.astype(object).where(values.notna(), "").map(str)


def _holds(values: pd.Series) -> str:
    """What a column holds, in words."""
    stated = values[_texts(values) != ""]
    silent = len(values) - len(stated)
    unsaid = f", not stated for {silent:,}" if silent else ""
    if stated.empty:
        return f"{values.name} is stated for none of {len(values):,} scans"
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return f"{values.name} lies in {stated.min():g} to {stated.max():g}{unsaid}"
    counts = stated.astype(str).value_counts()
    more = f" and {len(counts) - SHOWN} others" if len(counts) > SHOWN else ""
    return f"{values.name} is {', '.join(map(str, counts.index[:SHOWN]))}{more}{unsaid}"
