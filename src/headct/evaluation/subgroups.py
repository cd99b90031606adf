"""Does it work for everyone: the area under the ROC curve by site, scanner, age, size of the lesion, ...

Each group stands beside all other scans, with the interval of the difference: what a forest plot draws. A patient whose
scans are in several groups is one patient in all of them, and the interval knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import ndtr

from headct.evaluation.cells import UNKNOWN
from headct.evaluation.comparison import Difference, corrected
from headct.evaluation.intervals import Area, Estimate, Patients, Z, correlation, of_difference
from headct.evaluation.leakage import too_few
from headct.evaluation.metrics import checked
from headct.evaluation.tables import stripped

EDGES: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "age": (18, 40, 65, 80),  # years
        "thickness_mm": (1.5, 3.0, 4.5),
        "tilt_deg": (1.0, 10.0),
        "volume_ml": (1.0, 5.0, 30.0),  # 30 ml: the usual line for large haemorrhages
        "midline_shift_mm": (1.0, 5.0),  # 5 mm: the usual line for surgery
    }
)
"""Where columns of numbers are cut; other columns are cut at their quartiles."""
MOST_GROUPS = 12
"""A column of more different texts is no grouping."""


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """One group: its area, and how much it lies above the area of all other scans; None and `reason` if too small."""

    column: str
    group: str
    scans: int
    area: Estimate | None
    difference: Difference | None
    reason: str = ""


def groups_of(values: pd.Series, findings: Collection[str] = ()) -> pd.Series:
    """A column as names of groups, empty where nothing is known: numbers are cut into ranges, texts stay.

    The column's name finds its cuts in `EDGES`; `left_volume_ml` has those of `volume_ml`, and so has `iph_ml`, if
    `iph` is one of the `findings`. An empty result means that the column has too many different texts.
    """
    text = stripped(values)
    text = text.where(~text.str.lower().isin(UNKNOWN), "")
    numbers = pd.to_numeric(text.where(text != ""), errors="coerce")
    name = str(values.name)
    name = "volume_ml" if name in {f"{finding}_ml" for finding in findings} else name
    edges = next((cuts for known, cuts in EDGES.items() if name == known or name.endswith(f"_{known}")), None)
    distinct = text[text != ""].nunique()
    if numbers.notna().sum() == (text != "").sum() and (edges is not None or distinct > MOST_GROUPS):
        if edges is None:
            edges = tuple(np.unique(np.quantile(numbers.dropna(), [0.25, 0.5, 0.75])))
        return _cut(numbers, edges)
    return text if distinct <= MOST_GROUPS else pd.Series("", index=values.index)


def _cut(numbers: pd.Series, edges: Sequence[float]) -> pd.Series:
    names = [f"< {edges[0]:g}"]
    names += [f"{low:g} to < {high:g}" for low, high in pairwise(edges)]
    names += [f"≥ {edges[-1]:g}"]
    place = np.searchsorted(np.asarray(edges, dtype=float), numbers.to_numpy(dtype=float), side="right")
    return pd.Series(np.where(numbers.notna(), np.array(names)[place], ""), index=numbers.index)


def subgroups(labels: ArrayLike, scores: ArrayLike, groups: pd.Series, patients: Patients) -> list[Subgroup]:
    """Each group beside all others, in the order of their names; p values corrected by Holm over three groups or more.

    `groups` (n,) are names, empty where unknown: such scans are in no group and in no rest. Where only positives have a
    group (the size of a lesion), each is set against all negatives.
    """
    is_positive, values = checked(labels, scores)
    names = groups.to_numpy(dtype=object)
    lesions = bool((names[is_positive] != "").any()) and not (names[~is_positive] != "").any()
    found = []
    for group in sorted(set(names) - {""}, key=_from_low):
        inside = (names == group) | (lesions & ~is_positive)
        others = ((names != group) & (names != "")) | (lesions & ~is_positive)
        found.append(_subgroup(str(groups.name), group, is_positive, values, inside, others, patients))
    differences = {each.group: each.difference for each in found if each.difference is not None}
    one_test = len(found) == 2 and not lesions  # either group is then all others of the other one
    fair = differences if one_test else corrected(differences)
    return [replace(each, difference=fair.get(each.group)) for each in found]


def _from_low(group: str) -> tuple[float, str]:
    """Ranges from the lowest on, and names by the alphabet."""
    if group.startswith("< "):
        return -np.inf, group
    if group.startswith("≥ "):
        return np.inf, group
    low, found, _ = group.partition(" to < ")
    start = pd.to_numeric(low, errors="coerce") if found else 0.0  # a text may hold the same words
    return (0.0 if np.isnan(start) else float(start)), group


def _subgroup(
    column: str,
    group: str,
    is_positive: np.ndarray,
    values: np.ndarray,
    inside: np.ndarray,
    others: np.ndarray,
    patients: Patients,
) -> Subgroup:
    alone = Subgroup(column=column, group=group, scans=int(inside.sum()), area=None, difference=None)
    if reason := too_few(is_positive[inside], patients.only(inside)):
        return replace(alone, reason=f"{column} {group}: {reason}")
    area = Area.of(is_positive[inside], values[inside], patients.only(inside))
    alone = replace(alone, area=area.estimate())
    if reason := too_few(is_positive[others], patients.only(others)):
        return replace(alone, reason=f"{column} other than {group}: {reason}")
    rest = Area.of(is_positive[others], values[others], patients.only(others))
    return replace(alone, difference=unpaired(area, rest))


def unpaired(first: Area, second: Area, *, shared: bool = True) -> Difference:
    """The difference of areas read from different scans.

    `shared`: both count patients by the same codes, and may have some in common; else all patients differ. The p value
    takes the interval's own half on the side of 0 for its deviation, so that it is below 0.05 where 0 is outside.
    """
    together = correlation(first.influence, second.influence) if shared else 0.0
    limits = []
    for area in (first, second):
        estimate = area.estimate()
        assert estimate.low is not None  # an area always has an interval
        assert estimate.high is not None
        limits.append((area.value, estimate.low, estimate.high))
    low, high = of_difference(limits[0], limits[1], together)
    value = first.value - second.value
    deviation = (value - low if value > 0 else high - value) / Z
    estimate = Estimate.of(
        value,
        low,
        high,
        n=first.n,
        positives=first.positives,
        method="from the intervals of both areas and the patients that they share (MOVER)",
    )
    return Difference(estimate=estimate, p=2 * float(ndtr(-abs(value) / deviation)) if deviation > 0 else 1.0)
