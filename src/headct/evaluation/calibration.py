"""Are probabilities frequencies: of scans told 0.3, does a third have the finding?

The functions here measure. Platt's curves and isotonic ones are fitted on validation scans by `headct.detection`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from headct.evaluation.intervals import Estimate, Patients, Share, Z
from headct.evaluation.metrics import BINS, Array, checked, ece, in_bin
from headct.failure import Misuse


@dataclass(frozen=True)
class Bin:
    """Scans of like probability: `probability` is their mean, `frequency` the share with the finding."""

    lower: float
    upper: float
    probability: float
    frequency: Estimate


@dataclass(frozen=True)
class Decomposition:
    """The Brier score in parts: `brier = reliability - resolution + uncertainty - within`.

    Reliability is what better calibration would save, resolution what the bins know beyond the prevalence,
    uncertainty the score of the prevalence. `within` collects what is lost because probabilities in a bin differ
    (Stephenson et al., Weather and Forecasting 23, 2008), without which the parts do not add up.
    """

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within: float


def reliability_curve(labels: ArrayLike, probabilities: ArrayLike, patients: Patients | None = None) -> list[Bin]:
    """The bins of equal width that hold any scan, from the lowest."""
    is_positive, values = checked_probabilities(labels, probabilities)
    held = in_bin(values)
    curve = []
    for index in np.unique(held):
        among = held == index
        frequency = Share.of(is_positive, among, patients).estimate(positives=int(is_positive[among].sum()))
        curve.append(Bin(float(index / BINS), float((index + 1) / BINS), float(values[among].mean()), frequency))
    return curve


def decomposition(labels: ArrayLike, probabilities: ArrayLike) -> Decomposition:
    """Murphy's parts of the Brier score (Journal of Applied Meteorology 12, 1973) over bins of equal width."""
    is_positive, values = checked_probabilities(labels, probabilities)
    held, prevalence = in_bin(values), float(is_positive.mean())
    reliability = resolution = within = 0.0
    for index in np.unique(held):
        told, seen = values[held == index], is_positive[held == index].astype(float)
        weight = len(told) / len(values)
        reliability += weight * (told.mean() - seen.mean()) ** 2
        resolution += weight * (seen.mean() - prevalence) ** 2
        within += weight * (2 * np.mean((told - told.mean()) * (seen - seen.mean())) - told.var())
    brier = float(((values - is_positive) ** 2).mean())
    return Decomposition(brier, float(reliability), float(resolution), prevalence * (1 - prevalence), float(within))


def ece_estimate(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike) -> Estimate:
    """Expected calibration error as it is commonly computed, with an interval that takes its bias out.

    `weights` (draws, n) are bootstrap draws of patients. The error of a calibrated model is above 0 by chance, and that
    of its draws still more so: the interval is centred on the error less what the draws add. At 25 to 50
    positives it holds the error of the whole population in 79 to 98 % of tables, least often where that is small: do
    not compare models by it.
    """
    is_positive, values = checked_probabilities(labels, probabilities)
    value, draws = float(ece(labels, values)), ece(labels, values, weights)
    draws = draws[np.isfinite(draws)]
    centre, half = value - (draws.mean() - value), Z * draws.std(ddof=1)
    return Estimate.of(
        value,
        max(0.0, centre - half),
        min(1.0, centre + half),
        n=len(values),
        positives=int(is_positive.sum()),
        method=f"{BINS} bins of equal width; normal interval less the bias of {len(draws):,} draws of patients",
    )


def checked_probabilities(labels: ArrayLike, probabilities: ArrayLike) -> tuple[np.ndarray, Array]:
    """As `metrics.checked`, and inside 0..1."""
    is_positive, values = checked(labels, probabilities)
    if len(values) and not (values.min() >= 0 and values.max() <= 1):
        raise Misuse(
            f"probabilities reach from {values.min():.4g} to {values.max():.4g}",
            why="a probability lies in 0..1",
            do="turn scores into probabilities first; measures of order (AUROC) take any score",
        )
    return is_positive, values
