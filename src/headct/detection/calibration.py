"""Logits to probabilities with intervals, and the points at which one says yes: all fitted on validation scans.

A probability's interval says what calibration on another sample of as many validation patients would have given (95 %,
bootstrap over patients). It does not say what other training scans would have: nothing here sees those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from headct.evaluation.operating import Rule, choose

DRAWS = 200
"""Bootstrap refits of a slope and a shift; of an isotonic curve, which is slower, a quarter."""
INTERVAL = (0.025, 0.975)
ENOUGH_FOR_ISOTONIC = 200
"""Validation scans of either class, below which an isotonic curve follows chance."""
LEAST_SLOPE = 1e-3
"""A validation set in which the scores run backwards must not turn them round; it leaves nothing of them instead.

Of logits that are divided by their spread, so that their unit decides nothing.
"""
RIDGE = 0.01
"""Keeps the slope finite where the classes do not overlap."""
STEPS, HALVINGS = 50, 30
"""Of Newton's method, and of a step of it that goes too far."""
KNOTS = 64
SMOOTH = 1e-3
"""Share of the smooth curve in an isotonic one: enough to keep the order of scans, too little to be seen."""
TARGET = 0.95
"""Sensitivity, or specificity, that the points of these names have at least."""
POINTS: Mapping[str, Rule] = MappingProxyType(
    {"balanced": "youden", "sensitive": "sensitivity", "specific": "specificity"}
)
"""What a detector calls its thresholds, and the rule that chooses each on validation scans."""
POINT = "balanced"
"""The one of these from which on a finding is called."""

Kind = Literal["platt", "isotonic", "none"]


@dataclass(frozen=True)
class Calibration:
    """One finding's way from logits to probabilities.

    Of the kind `platt` the probability is sigmoid(slope * logit + shift), of Platt (1999); `draws` (b, 2) are other
    slopes and shifts. Of `isotonic` it is read off a curve through `knots` (4, KNOTS): logit, probability, low, high;
    such a curve has plateaus, on which scans would tie and lose their order, so `SMOOTH` of the probability is Platt's.
    Of `none` (validation lacks a class) the logit is taken as it is, and the interval is 0 to 1. All kinds rise
    strictly with the logit, as far as 64 bits can tell (up to about 36): whatever is read from the order of scans is
    the same before and after.
    """

    kind: Kind
    slope: float = 1.0
    shift: float = 0.0
    draws: np.ndarray | None = None
    knots: np.ndarray | None = None

    def __call__(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probability, low and high, each (n,), of logits (n,); low <= probability <= high."""
        middle = expit(self.slope * logits + self.shift)
        if self.kind == "isotonic" and self.knots is not None:
            at, *curves = self.knots
            middle, low, high = [_blended(np.interp(logits, at, curve), middle) for curve in curves]
        else:
            low, high = np.zeros_like(middle), np.ones_like(middle)
            if self.draws is not None:
                drawn = expit(self.draws[:, :1] * logits + self.draws[:, 1:])
                low, high = np.quantile(drawn, INTERVAL, axis=0)
        return middle, np.minimum(low, middle), np.maximum(high, middle)

    def settings(self) -> dict[str, Any]:
        """Plain values; the rest is in `tensors`."""
        return {"kind": self.kind, "slope": self.slope, "shift": self.shift}

    def tensors(self) -> dict[str, Tensor]:
        """What was refitted."""
        arrays = {"draws": self.draws, "knots": self.knots}
        return {name: torch.from_numpy(array).contiguous() for name, array in arrays.items() if array is not None}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """From `settings()` and `tensors()`. Raises KeyError or TypeError where they are others."""
        arrays: dict[str, Any] = {name: tensors[name].numpy() for name in tensors}
        if settings["kind"] not in get_args(Kind):
            raise ValueError(f"no calibration is of the kind {settings['kind']!r}")
        return cls(**settings, **arrays)


def calibrate(
    logits: np.ndarray, labels: np.ndarray, patients: Sequence[str], seed: int, kind: Kind | None = None
) -> Calibration:
    """Fit on validation scans (n,), of whom the labels are 1 or 0; the kind is chosen where it is None.

    An isotonic curve is taken where both classes have `ENOUGH_FOR_ISOTONIC` scans and it has the smaller log loss on
    patients that it was not fitted on.
    """
    positive = int(labels.sum())
    if not 0 < positive < len(labels):
        return Calibration("none")
    _, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    if kind is None:
        enough = min(positive, len(labels) - positive) >= ENOUGH_FOR_ISOTONIC
        kind = "isotonic" if enough and _isotonic_is_better(logits, labels, patient, rng) else "platt"
    (slope,), (shift,) = _fit_lines(logits, labels, np.ones((1, len(labels))))
    if kind == "isotonic":
        return Calibration("isotonic", float(slope), float(shift), knots=_knots(logits, labels, patient, rng))
    draws = _fit_lines(logits, labels, _resampled(patient, labels, DRAWS, rng), (slope, shift))
    return Calibration("platt", float(slope), float(shift), np.stack(draws, axis=1))


def _resampled(patient: np.ndarray, labels: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Weights (draws, n): how often the patient of each scan was drawn. Samples of one class calibrate nothing."""
    count, found = int(patient.max()) + 1, np.zeros((0, len(patient)))
    while len(found) < draws:
        weights = rng.multinomial(count, np.full(count, 1 / count), size=draws)[:, patient].astype(float)
        both = (weights @ labels > 0) & (weights @ (1 - labels) > 0)
        found = np.concatenate([found, weights[both]])
    return found[:draws]


def _fit_lines(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, start: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and shifts, each (b,), of logistic regressions on one number, for weights (b, n), by Newton's method.

    Targets are Platt's (1999), a little inside 0 and 1, so that a few validation scans give no certainty. `start` is a
    slope and shift from which it is not far.
    """
    middle, spread = logits.mean(), logits.std() or 1.0
    z = (logits - middle) / spread
    positive = weights @ labels
    negative = weights.sum(axis=1) - positive
    high, low = (positive + 1) / (positive + 2), 1 / (negative + 2)
    target = np.where(labels == 1, high[:, None], low[:, None])
    share = (high * positive + low * negative) / (positive + negative)
    slope, shift = np.zeros(len(weights)), _logit(share)
    if start is not None:
        slope, shift = slope + start[0] * spread, np.full(len(weights), start[1] + start[0] * middle)

    def losses(slope: np.ndarray, shift: np.ndarray) -> np.ndarray:
        line = slope[:, None] * z + shift[:, None]
        return (weights * (np.logaddexp(0, line) - target * line)).sum(axis=1) + RIDGE / 2 * slope**2

    before = losses(slope, shift)
    for _ in range(STEPS):
        p = expit(slope[:, None] * z + shift[:, None])
        error, curve = weights * (p - target), weights * p * (1 - p) + 1e-12
        g = np.stack([error @ z + RIDGE * slope, error.sum(axis=1)])
        a, b, c = curve @ z**2 + RIDGE, curve @ z, curve.sum(axis=1)
        step = np.stack([c * g[0] - b * g[1], a * g[1] - b * g[0]]) / (a * c - b * b)
        if np.abs(step).max() < 1e-10:
            break
        # Where one scan lies far from all others a full step overshoots, and may do so for ever.
        for _ in range(HALVINGS):
            after = losses(slope - step[0], shift - step[1])
            if not (over := after > before + 1e-12 * np.abs(before)).any():
                break
            step[:, over] /= 2
        slope, shift, before = slope - step[0], shift - step[1], after
    backwards = slope < LEAST_SLOPE
    slope, shift = np.where(backwards, LEAST_SLOPE, slope), np.where(backwards, _logit(share), shift)
    return slope / spread, shift - slope * middle / spread


def _logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)


def _curve(at: np.ndarray, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """An isotonic curve at these logits, never closer to 0 or 1 than one scan of a class allows."""
    drawn = weights > 0
    least = 1 / (weights.sum() + 2)
    model = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    model.fit(logits[drawn], labels[drawn], sample_weight=weights[drawn])
    curve: np.ndarray = model.predict(at)
    return curve


def _knots(logits: np.ndarray, labels: np.ndarray, patient: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    at = np.unique(np.quantile(logits, np.linspace(0, 1, KNOTS)))
    drawn = [_curve(at, logits, labels, one) for one in _resampled(patient, labels, DRAWS // 4, rng)]
    low, high = np.quantile(drawn, INTERVAL, axis=0)
    return np.stack([at, _curve(at, logits, labels, np.ones(len(labels))), low, high])


def _blended(isotonic: np.ndarray, smooth: np.ndarray) -> np.ndarray:
    return (1 - SMOOTH) * isotonic + SMOOTH * smooth


def _isotonic_is_better(logits: np.ndarray, labels: np.ndarray, patient: np.ndarray, rng: np.random.Generator) -> bool:
    """By log loss on each half of the patients, fitted on the other."""
    half = rng.permutation(int(patient.max()) + 1)[patient] % 2 == 0
    losses = np.zeros(2)
    for fitted, held in ((half, ~half), (~half, half)):
        if len(np.unique(labels[fitted])) < 2:
            return False
        slope, shift = _fit_lines(logits[fitted], labels[fitted], np.ones((1, int(fitted.sum()))))
        smooth = expit(slope[0] * logits[held] + shift[0])
        isotonic = _curve(logits[held], logits[fitted], labels[fitted], np.ones(int(fitted.sum())))
        for index, p in enumerate((smooth, _blended(isotonic, smooth))):
            losses[index] -= np.log(np.where(labels[held] == 1, p, 1 - p)).sum()
    return bool(losses[1] < losses[0])


def operating_points(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Probabilities from which on a scan is called positive, by validation scans (n,).

    `balanced` has the largest sum of sensitivity and specificity, `sensitive` the best specificity among those with a
    sensitivity of `TARGET`, `specific` the other way round: the points that `headct.evaluation.operating.choose` finds.
    None where a class is missing.
    """
    if len(np.unique(labels)) < 2:
        return {}
    return {name: choose(labels, probabilities, rule, TARGET).threshold for name, rule in POINTS.items()}
