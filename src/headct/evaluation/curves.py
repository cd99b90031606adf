"""ROC and precision-recall curves with bands, for pictures: numbers come from `metrics` and `intervals`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from headct.evaluation.intervals import LEVEL
from headct.evaluation.metrics import Array, Ranked

POINTS = 51


@dataclass(frozen=True)
class Band:
    """A curve y over ascending x with the interval of y at each x, all (points,).

    The interval is that of one point, by percentiles of bootstrap draws of patients. The whole curve leaves such a band
    more often than one point does.
    """

    x: Array
    y: Array
    low: Array
    high: Array


def roc_band(ranked: Ranked, weights: ArrayLike) -> Band:
    """Sensitivity over 1 - specificity; `weights` (draws, n) are draws of patients."""
    alarms = np.linspace(0, 1, POINTS)
    return _band(alarms, ranked.roc(1 - alarms), ranked.roc(1 - alarms, weights))


def precision_recall_band(ranked: Ranked, weights: ArrayLike) -> Band:
    """Precision over sensitivity, from the highest score on; `weights` (draws, n) are draws of patients."""
    sensitivities = np.linspace(0, 1, POINTS)
    return _band(sensitivities, ranked.precision_at(sensitivities), ranked.precision_at(sensitivities, weights))


def _band(x: Array, y: Array, draws: Array) -> Band:
    kept = draws[np.isfinite(draws).all(axis=1)]
    if not len(kept):
        kept = y[None]
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return Band(x, y, np.minimum(low, y), np.maximum(high, y))
