"""Metrics of one finding: labels and scores to a number, once or for many weightings of the same scans.

`labels` are 1 or 0, (n,); scans of unknown label are left out by the caller, who says so. `scores` are (n,), higher
where the finding is likelier. A threshold takes a scan as positive when its score is *at or above* it. `weights` count
each scan, (n,) or (draws, n): the bootstrap hands in how often each one was drawn, so that scores are sorted once for
all draws. A number that does not exist in a draw (no positive was drawn) is NaN there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headct.failure import Misuse

Array = NDArray[np.float64]
BLOCK = 1 << 18
"""Weights that are looked at together."""
ROUNDING = 1e-12
"""What a share may miss a target by, through rounding, and still reach it."""
BINS = 10
"""Of the expected calibration error and the reliability curve."""


@dataclass(frozen=True)
class Ranked:
    """Labels and scores, sorted once: all that depends on their order only.

    `positives` and `negatives` are indices of scans by ascending score. `below`, `upto`: for each positive, how many
    negatives score less, and at most as much. `ahead`: for each positive, how many positives score less. `passed`: for
    k = 0..negatives, how many positives score no more than the k-th negative.
    """

    positives: NDArray[np.intp]
    negatives: NDArray[np.intp]
    below: NDArray[np.intp]
    upto: NDArray[np.intp]
    ahead: NDArray[np.intp]
    passed: NDArray[np.intp]

    @classmethod
    def of(cls, labels: ArrayLike, scores: ArrayLike) -> Ranked:
        """Sort; raises Misuse where the labels are of one class, or a score is not a number."""
        is_positive, values = checked(labels, scores)
        both_classes(is_positive)
        order = np.argsort(values, kind="stable")
        positives, negatives = order[is_positive[order]], order[~is_positive[order]]
        of_positives, of_negatives = values[positives], values[negatives]
        passed = np.searchsorted(of_positives, of_negatives, side="right")
        return cls(
            positives,
            negatives,
            below=np.searchsorted(of_negatives, of_positives, side="left"),
            upto=np.searchsorted(of_negatives, of_positives, side="right"),
            ahead=np.searchsorted(of_positives, of_positives, side="left"),
            passed=np.concatenate([[0], passed]),
        )

    def auroc(self, weights: ArrayLike | None = None) -> Array:
        """The share of pairs whose positive scores higher, ties half: () or (draws,)."""
        return self._each(weights, self._auroc)

    def average_precision(self, weights: ArrayLike | None = None) -> Array:
        """The mean, over positives, of the precision at their score (nothing interpolated): () or (draws,)."""
        return self._each(weights, self._average_precision)

    def sensitivity_at(self, specificity: float, weights: ArrayLike | None = None) -> Array:
        """The highest sensitivity of a threshold with at least this specificity: () or (draws,)."""
        return self._each(weights, lambda block: self._sensitivity_at(specificity, block))

    def specificity_at(self, sensitivity: float, weights: ArrayLike | None = None) -> Array:
        """The highest specificity of a threshold with at least this sensitivity: () or (draws,)."""
        return self._each(weights, lambda block: self._specificity_at(sensitivity, block))

    def roc(self, specificities: ArrayLike, weights: ArrayLike | None = None) -> Array:
        """`sensitivity_at` of many specificities at once: (points,) or (draws, points)."""
        wanted = np.asarray(specificities, dtype=float)
        return self._each(weights, lambda block: self._roc(wanted, block))

    def precision_at(self, sensitivities: ArrayLike, weights: ArrayLike | None = None) -> Array:
        """The precision at the highest threshold that reaches each sensitivity: (points,) or (draws, points)."""
        wanted = np.asarray(sensitivities, dtype=float)
        return self._each(weights, lambda block: self._precision_at(wanted, block))

    def _each(self, weights: ArrayLike | None, metric: Callable[[NDArray[Any]], Array]) -> Array:
        number = len(self.positives) + len(self.negatives)
        given = np.ones(number) if weights is None else np.asarray(weights)
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw without positives or negatives
            values = np.concatenate([metric(block) for block in _blocks(given)])
        return values if given.ndim == 2 else values[0]

    def _auroc(self, weights: NDArray[Any]) -> Array:
        drawn, negative = weights.take(self.positives, axis=1), summed(weights.take(self.negatives, axis=1))
        wins = negative.take(self.below, axis=1) + negative.take(self.upto, axis=1)
        return (drawn * wins).sum(axis=1) / (2.0 * drawn.sum(axis=1) * negative[:, -1])

    def _average_precision(self, weights: NDArray[Any]) -> Array:
        drawn = weights.take(self.positives, axis=1)
        positive, negative = summed(drawn), summed(weights.take(self.negatives, axis=1))
        hits = positive[:, -1:] - positive.take(self.ahead, axis=1)
        alarms = negative[:, -1:] - negative.take(self.below, axis=1)
        precision = np.divide(hits, hits + alarms, out=np.zeros(hits.shape), where=hits > 0)
        return (drawn * precision).sum(axis=1) / positive[:, -1]

    def _summed(self, weights: NDArray[Any]) -> tuple[Array, Array]:
        return summed(weights.take(self.positives, axis=1)), summed(weights.take(self.negatives, axis=1))

    def _sensitivity_at(self, specificity: float, weights: NDArray[Any]) -> Array:
        positive, negative = self._summed(weights)
        passed = (negative < (specificity - ROUNDING) * negative[:, -1:]).sum(axis=1)
        missed = np.take_along_axis(positive, self.passed[passed][:, None], axis=1)[:, 0]
        return np.where(negative[:, -1] > 0, 1 - missed / positive[:, -1], np.nan)

    def _specificity_at(self, sensitivity: float, weights: NDArray[Any]) -> Array:
        positive, negative = self._summed(weights)
        missed = positive <= (1 - sensitivity + ROUNDING) * positive[:, -1:]
        cleared_of = np.append(self.below, len(self.negatives))[missed.sum(axis=1) - 1]
        cleared = np.take_along_axis(negative, cleared_of[:, None], axis=1)[:, 0]
        return np.where(positive[:, -1] > 0, cleared / negative[:, -1], np.nan)

    def _roc(self, specificities: Array, weights: NDArray[Any]) -> Array:
        positive, negative = self._summed(weights)
        drawn = []
        for hits, clear in zip(positive, negative, strict=True):
            passed = np.searchsorted(clear, (specificities - ROUNDING) * clear[-1])
            drawn.append(1 - hits[self.passed[passed]] / hits[-1] if clear[-1] else np.full(len(passed), np.nan))
        return np.stack(drawn)

    def _precision_at(self, sensitivities: Array, weights: NDArray[Any]) -> Array:
        positive, negative = self._summed(weights)
        drawn = []
        for missed, clear in zip(positive, negative, strict=True):
            allowed = np.searchsorted(missed, (1 - sensitivities + ROUNDING) * missed[-1], side="right")
            last = np.minimum(allowed, np.searchsorted(missed, missed[-1])) - 1  # at least one positive is called
            hits, alarms = missed[-1] - missed[self.ahead[last]], clear[-1] - clear[self.below[last]]
            drawn.append(np.where(hits > 0, hits / (hits + alarms), np.nan))
        return np.stack(drawn)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve, ties counted half. Raises Misuse where the labels are of one class."""
    return float(Ranked.of(labels, scores).auroc())


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision, without interpolation. Raises Misuse where the labels are of one class."""
    return float(Ranked.of(labels, scores).average_precision())


@dataclass(frozen=True)
class Confusion:
    """How many scans, or what weight of them, a threshold gets right and wrong: each () or (draws,)."""

    tp: Array
    fp: Array
    fn: Array
    tn: Array

    @classmethod
    def at(cls, threshold: float, labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Confusion:
        """Count at a threshold."""
        is_positive, values = checked(labels, scores)
        called = values >= threshold
        cells = np.stack([is_positive & called, ~is_positive & called, is_positive & ~called, ~is_positive & ~called])
        if weights is None:
            return cls(*(np.asarray(cell.sum(), dtype=float) for cell in cells))
        return cls(*np.moveaxis(_weighed(cells.T.astype(float), weights), -1, 0))

    @property
    def sensitivity(self) -> Array:
        """The share of positives that are called."""
        return ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> Array:
        """The share of negatives that are not called."""
        return ratio(self.tn, self.tn + self.fp)

    @property
    def precision(self) -> Array:
        """The share of positives among those called: the positive predictive value at this table's prevalence."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def prevalence(self) -> Array:
        """The share of positives."""
        return ratio(self.tp + self.fn, self.tp + self.fp + self.fn + self.tn)

    @property
    def accuracy(self) -> Array:
        """The share of scans that are called rightly."""
        return ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    @property
    def f1(self) -> Array:
        """The harmonic mean of precision and sensitivity; 0 where no positive is called."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def balanced_accuracy(self) -> Array:
        """The mean of sensitivity and specificity."""
        return (self.sensitivity + self.specificity) / 2

    @property
    def mcc(self) -> Array:
        """Matthews' correlation; 0 where a row or a column of the table is empty."""
        called, missed = self.tp + self.fp, self.fn + self.tn
        spread = np.sqrt((self.tp + self.fn) * (self.tn + self.fp)) * np.sqrt(called * missed)
        return np.where(spread > 0, ratio(self.tp * self.tn - self.fp * self.fn, spread), 0.0)

    def ppv(self, prevalence: float) -> Array:
        """Positive predictive value where so large a share of scans has the finding."""
        hits = self.sensitivity * prevalence
        return ratio(hits, hits + (1 - self.specificity) * (1 - prevalence))

    def npv(self, prevalence: float) -> Array:
        """Negative predictive value where so large a share of scans has the finding."""
        clear = self.specificity * (1 - prevalence)
        return ratio(clear, clear + (1 - self.sensitivity) * prevalence)


def brier(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Mean squared distance of the probability from the label: () or (draws,)."""
    is_positive, values = checked(labels, probabilities)
    return _mean((values - is_positive) ** 2, weights)


def ece(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Expected calibration error: mean gap between probability and frequency over bins of equal width, () or (draws,).

    It is biased upwards: a perfectly calibrated model has a positive one, the smaller the sample the larger
    (Kumar et al., arXiv 1909.10155).
    """
    is_positive, values = checked(labels, probabilities)
    within = in_bin(values)[:, None] == np.arange(BINS)
    gaps = np.where(within, (values - is_positive)[:, None], 0.0)
    if weights is None:
        return np.abs(gaps.sum(axis=0)).sum() / len(values)
    return ratio(np.abs(_weighed(gaps, weights)).sum(axis=-1), np.asarray(weights).sum(axis=-1))


def in_bin(probabilities: ArrayLike) -> NDArray[np.intp]:
    """Which of `BINS` intervals of equal width holds each probability, counted from 0; the last one holds 1."""
    return np.minimum((np.asarray(probabilities, dtype=float) * BINS).astype(np.intp), BINS - 1)


def checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Array]:
    """Labels as truth values and scores as floats, both (n,). Raises Misuse where they are anything else."""
    kinds, values = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
    if kinds.ndim != 1 or kinds.shape != values.shape:
        raise Misuse(f"labels of shape {kinds.shape} do not go with scores of shape {values.shape}")
    if not np.isin(kinds, (0, 1)).all():
        raise Misuse(
            "a label is neither 1 nor 0", do="leave the scans out whose label is unknown, and say how many they are"
        )
    if not np.isfinite(values).all():
        raise Misuse(f"scores that are not numbers: {int((~np.isfinite(values)).sum()):,} of {len(values):,}")
    return kinds == 1, values


def both_classes(is_positive: NDArray[np.bool_]) -> None:
    """Raise Misuse where there are no positives or no negatives."""
    if is_positive.any() and not is_positive.all():
        return
    number = len(is_positive)
    raise Misuse(
        f"all {number:,} labels are {int(is_positive[0])}" if number else "there are no labels",
        why="how well scores tell scans with a finding from those without shows only where there are both",
        do="leave this finding out, or label scans of the other kind",
    )


def ratio(part: ArrayLike, whole: ArrayLike) -> Array:
    """A share; NaN where there is nothing to have a share of."""
    whole = np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole != 0)[()]


def summed(weights: NDArray[Any]) -> Array:
    """Running sums along the last axis, with the 0 before the first: (draws, n + 1); whole for whole weights."""
    whole = np.issubdtype(weights.dtype, np.integer)  # and added faster than floats
    sums = np.zeros((*weights.shape[:-1], weights.shape[-1] + 1), dtype=np.int64 if whole else float)
    np.cumsum(weights, axis=-1, out=sums[..., 1:])
    return sums


def _mean(values: Array, weights: ArrayLike | None) -> Array:
    if weights is None:
        return np.asarray(values.mean())
    return ratio(_weighed(values[:, None], weights)[..., 0], np.asarray(weights).sum(axis=-1))


def _weighed(columns: Array, weights: ArrayLike) -> Array:
    """Weighted sums of columns (n, k): (k,) or (draws, k)."""
    given = np.asarray(weights)
    sums = np.concatenate([block @ columns for block in _blocks(given)])
    return sums if given.ndim == 2 else sums[0]


def _blocks(weights: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """A few draws at a time, as many as stay in a cache, (some, n)."""
    rows = np.atleast_2d(weights)
    step = max(1, BLOCK // rows.shape[1])
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
