"""Numbers and sides that are read from a scan, against the truth: midline shift in mm, volumes in ml, left or right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from headct.evaluation.intervals import Estimate, Patients, Share, Z, mean_of
from headct.failure import Misuse

SIDES = ("left", "right", "both", "none")


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
