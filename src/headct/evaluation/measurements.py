"""Numbers and sides that are read from a scan, against the truth: midline shift in mm, volumes in ml, left or right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from headct.evaluation.cells import UNKNOWN
from headct.evaluation.intervals import Estimate, Patients, Share, Z, mean_of
from headct.evaluation.tables import named, stripped
from headct.failure import Misuse

SIDES = ("left", "right", "both", "none")
TOLERANCE: Mapping[str, float] = MappingProxyType({"mm": 2.0, "ml": 5.0})
"""An error that is still taken as right, by the unit that ends a column's name."""


@dataclass(frozen=True, kw_only=True)
class Errors:
    """How far measured values lie from the true ones, in the unit of both; `positives` counts true values above 0.

    `bias` is the mean of measured minus true. `agreement` holds 95 % of the differences (Bland and Altman, Lancet 327,
    1986). `concordance` is Lin's concordance (Biometrics 45, 1989), which a constant error lowers as well.
    """

    unit: str
    bias: Estimate
    absolute: Estimate
    agreement: tuple[float, float]
    within: Estimate  # share of scans whose error is at most `tolerance`
    tolerance: float
    concordance: float


def errors(
    measured: ArrayLike, true: ArrayLike, unit: str, *, tolerance: float, patients: Patients | None = None
) -> Errors:
    """Of scans that have both, (n,). A scan without a measured value must be left out, and told of, by the caller."""
    told, truth = np.asarray(measured, dtype=float), np.asarray(true, dtype=float)
    if told.shape != truth.shape or told.ndim != 1 or len(told) < 2:
        raise Misuse(f"measured values of shape {told.shape} do not go with true ones of shape {truth.shape}")
    if not (np.isfinite(told).all() and np.isfinite(truth).all()):
        raise Misuse(
            f"{int((~(np.isfinite(told) & np.isfinite(truth))).sum()):,} scans lack a value",
            do="leave them out, and say how many they are",
        )
    apart, positives = told - truth, int((truth > 0).sum())
    spread = Z * apart.std(ddof=1)
    return Errors(
        unit=unit,
        bias=mean_of(apart, patients, positives=positives),
        absolute=mean_of(np.abs(apart), patients, positives=positives, log=True),
        agreement=(float(apart.mean() - spread), float(apart.mean() + spread)),
        within=Share.of(np.abs(apart) <= tolerance, np.ones(len(apart)), patients).estimate(positives=positives),
        tolerance=tolerance,
        concordance=concordance(told, truth),
    )


def concordance(first: ArrayLike, second: ArrayLike) -> float:
    """Lin's concordance of two series (n,), with moments over n; NaN where neither varies."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    whole = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    return float(2 * np.mean((a - a.mean()) * (b - b.mean())) / whole) if whole > 0 else float("nan")


@dataclass(frozen=True)
class SideConfusion:
    """`counts[true, told]` over `sides`; `right` is the share told rightly, `swapped` left for right or the reverse.

    `swapped` is counted among scans that are truly of one side: mirrored axes show there.
    """

    sides: Sequence[str]
    counts: np.ndarray
    right: Estimate
    swapped: Estimate


def side_confusion(told: Sequence[str], true: Sequence[str], patients: Patients | None = None) -> SideConfusion:
    """Sides of scans, `left`, `right`, `both` or `none`, (n,) each."""
    given, truth = np.asarray(told, dtype=object), np.asarray(true, dtype=object)
    strange = [side for side in (*given, *truth) if side not in SIDES]
    if strange or given.shape != truth.shape:
        what = f"{strange[0]!r} is no side" if strange else f"{len(given):,} sides do not go with {len(truth):,}"
        raise Misuse(what, do=f"give one of {', '.join(SIDES)} for each scan")
    counts = np.array([[int(((truth == a) & (given == b)).sum()) for b in SIDES] for a in SIDES])
    one_sided = np.isin(truth, ("left", "right"))
    opposite = ((truth == "left") & (given == "right")) | ((truth == "right") & (given == "left"))
    positives = int((truth != "none").sum())
    return SideConfusion(
        SIDES,
        counts,
        right=Share.of(given == truth, np.ones(len(truth)), patients).estimate(positives=positives),
        swapped=Share.of(opposite, one_sided, patients).estimate(positives=positives),
    )


def side_named(left: ArrayLike, right: ArrayLike) -> list[str]:
    """Sides in words, (n,), from whether something is on the left and whether it is on the right."""
    words = {(True, True): "both", (True, False): "left", (False, True): "right", (False, False): "none"}
    return [words[bool(a), bool(b)] for a, b in zip(np.asarray(left), np.asarray(right), strict=True)]


@dataclass(frozen=True)
class Measurements:
    """Measured columns against true ones: errors by column (`_mm`, `_ml`), sides by column (`_side`), and notes."""

    errors: Mapping[str, Errors]
    sides: Mapping[str, SideConfusion]
    notes: tuple[str, ...] = ()

    def tree(self) -> Mapping[str, Any]:
        """As it stands in `metrics.json`."""
        return {
            "errors": {
                name: {
                    "unit": one.unit,
                    "bias": one.bias.leaf(),
                    "absolute": one.absolute.leaf(),
                    "agreement": list(one.agreement),
                    "within": {f"{one.tolerance:g}": one.within.leaf()},
                    "concordance": None if np.isnan(one.concordance) else one.concordance,
                }
                for name, one in self.errors.items()
            },
            "sides": {
                name: {
                    "sides": list(one.sides),
                    "counts": one.counts.tolist(),
                    "right": one.right.leaf(),
                    "swapped": one.swapped.leaf(),
                }
                for name, one in self.sides.items()
            },
        }


def compare_tables(measured: pd.DataFrame, labels: pd.DataFrame) -> Measurements:
    """Every column that both tables have and whose name ends in a unit or in `_side`, on the scans of the labels.

    Both are joined by `scan_id`; `labels` have `patient_id` too. Those whose truth is known and which were not measured
    are counted in the notes. Raises Misuse where no column or no scan is common, and where a value is no number.
    """
    columns = [
        name
        for name in measured.columns.intersection(labels.columns, sort=False)
        if str(name).endswith(("_side", *(f"_{unit}" for unit in TOLERANCE)))
    ]
    if not columns:
        raise Misuse(
            "no measurement is in both tables",
            why=f"measured are {', '.join(map(str, measured.columns.drop('scan_id', errors='ignore')))}",
            do="give columns of the same names in the labels, which end in _mm, _ml or _side",
        )
    both = labels[["scan_id", "patient_id", *columns]].merge(
        measured[["scan_id", *columns]], on="scan_id", how="left", suffixes=("", " measured")
    )
    if not labels["scan_id"].isin(measured["scan_id"]).any():
        raise Misuse("no scan is in both the measurements and the labels", do="name scans alike in both tables")
    errors_of: dict[str, Errors] = {}
    sides_of: dict[str, SideConfusion] = {}
    notes = []
    for name in map(str, columns):
        truth, told = (_words(both[column], name) for column in (name, f"{name} measured"))
        known = ((truth != "") & (told != "")).to_numpy()
        missing = both["scan_id"][(truth != "") & (told == "")]
        if len(missing):
            notes.append(f"{name} was not measured in {len(missing):,} scans: {named(list(missing))}")
        if known.sum() < 2:
            notes.append(f"{name} is known and measured in {int(known.sum())} scans only, and left out")
            continue
        patients = Patients.of(both["patient_id"].to_numpy()[known])
        if name.endswith("_side"):
            sides_of[name] = side_confusion(list(told[known]), list(truth[known]), patients)
        else:
            unit = name.rpartition("_")[2]
            values, true = _numbers(told[known], name), _numbers(truth[known], name)
            errors_of[name] = errors(values, true, unit, tolerance=TOLERANCE[unit], patients=patients)
    return Measurements(errors_of, sides_of, tuple(notes))


def _words(column: pd.Series, name: str) -> pd.Series:
    """A column as small letters, empty where nothing is known; of a side `none` is an answer."""
    words = stripped(column).str.lower()
    return words.where(~words.isin(UNKNOWN - {"none"} if name.endswith("_side") else UNKNOWN), "")


def _numbers(column: pd.Series, name: str) -> np.ndarray:
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.isna().any():
        raise Misuse(f"{name} is {column[numbers.isna()].iloc[0]!r} somewhere, which is no number")
    return numbers.to_numpy(dtype=float)
