"""Where to put the threshold, and which scans to leave to a person.

A threshold is chosen on validation scans and then used on others. Read off the very scans it is judged by, it would
promise what it cannot keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from headct.evaluation.cells import nearest
from headct.evaluation.intervals import (
    Estimate,
    Patients,
    Share,
    correlation,
    of_difference,
    of_quotient,
)
from headct.evaluation.metrics import ROUNDING, Array, Confusion, both_classes, checked, summed
from headct.failure import Misuse

Rule = Literal["sensitivity", "specificity", "youden", "f1"]
RULES: tuple[Rule, ...] = ("sensitivity", "specificity", "youden", "f1")
FALLBACK = 0.5
"""The threshold where validation scans give none."""


def rule_named(name: str) -> Rule:
    """The rule of this name. Raises Misuse where there is none."""
    for rule in RULES:
        if rule == name:
            return rule
    near = nearest(name, RULES)
    do = f"did you mean {near}?" if near else f"choose one of {', '.join(RULES)}"
    raise Misuse(f"no rule for thresholds is called {name}", do=do)


def is_close(low: float, high: float, threshold: float) -> bool:
    """Whether an interval of a probability holds the threshold, so that the answer might as well be the other."""
    return low < threshold <= high  # at the threshold the answer is yes


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold (positive at or above it) and where it comes from."""

    threshold: float
    origin: str


def choose(labels: ArrayLike, scores: ArrayLike, rule: Rule, target: float = 0.9) -> OperatingPoint:
    """The threshold that a rule picks on validation scans: labels and scores (n,).

    `sensitivity`, `specificity`: the most of the other one while this reaches `target`. `youden`: the highest sum of
    both. `f1`: the highest F1. Among equals the highest threshold. It lies half-way to the next score below, where that
    calls neither all nor none: new scans fall on either side of the last score. Raises Misuse where the labels are of
    one class.
    """
    is_positive, values = checked(labels, scores)
    both_classes(is_positive)
    thresholds, hits, alarms = _roc(is_positive, values)
    sensitivity, specificity = hits / is_positive.sum(), 1 - alarms / (~is_positive).sum()
    goodness: Array = {
        "sensitivity": np.where(sensitivity >= target - ROUNDING, specificity, -1.0),
        "specificity": np.where(specificity >= target - ROUNDING, sensitivity, -1.0),
        "youden": sensitivity + specificity,
        "f1": 2 * hits / (hits + alarms + is_positive.sum()),
    }[rule_named(rule)]
    best = int(np.flatnonzero(goodness >= goodness.max() - ROUNDING)[0])
    wanted = f"{rule} {target:g}" if rule in ("sensitivity", "specificity") else rule
    return OperatingPoint(_half_way(thresholds, best), f"{wanted} on {len(values):,} validation scans")


def _half_way(thresholds: Array, best: int) -> float:
    """Between a threshold and the next one below, if there are two and a number lies between them."""
    if not 0 < best < len(thresholds) - 1:
        return float(thresholds[best])
    between = float(thresholds[best : best + 2].mean())
    return between if between > thresholds[best + 1] else float(thresholds[best])


def _roc(is_positive: np.ndarray, values: Array) -> tuple[Array, Array, Array]:
    """Thresholds from the highest (above all scores) on, with the positives and the negatives at or above each."""
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))  # of each group of equal scores
    hits = summed(is_positive[order].astype(int)[None])[0]
    counted = np.append(0, last + 1)
    above = np.nextafter(ordered[0], np.inf)
    return np.append(above, ordered[last]), hits[counted].astype(float), (counted - hits[counted]).astype(float)


def at_threshold(
    threshold: float, labels: ArrayLike, scores: ArrayLike, patients: Patients, prevalence: float
) -> Mapping[str, Estimate]:
    """What a threshold chosen elsewhere does here: `sensitivity, specificity, f1, balanced_accuracy, ppv, npv`.

    The predictive values are those where so large a share (`prevalence`) of scans has the finding.
    """
    is_positive, values = checked(labels, scores)
    called, positives = values >= threshold, int(is_positive.sum())
    sensitivity = Share.of(called, is_positive, patients)
    specificity = Share.of(~called, ~is_positive, patients)
    counts = Confusion.at(threshold, labels, scores)
    return {
        "sensitivity": sensitivity.estimate(positives=positives),
        "specificity": specificity.estimate(positives=positives),
        "f1": _f1(called, is_positive, patients, float(counts.f1)),
        "balanced_accuracy": _balanced(sensitivity, specificity, len(values), positives),
        "ppv": _predictive(sensitivity, specificity, prevalence, float(counts.ppv(prevalence)), positives),
        "npv": _predictive(specificity, sensitivity, 1 - prevalence, float(counts.npv(prevalence)), positives),
    }


def _f1(called: np.ndarray, is_positive: np.ndarray, patients: Patients, value: float) -> Estimate:
    """F1 rises with the share of hits among all scans called or positive, which is a proportion."""
    low, high = Share.of(called & is_positive, called | is_positive, patients).limits()
    return Estimate.of(
        value,
        2 * low / (1 + low),
        2 * high / (1 + high),
        n=len(called),
        positives=int(is_positive.sum()),
        method="Wilson interval of hits among scans called or positive, by design effect",
    )


def _balanced(sensitivity: Share, specificity: Share, n: int, positives: int) -> Estimate:
    """Sensitivity minus the false alarms, from the intervals of both."""
    low, high = specificity.limits()
    apart = of_difference(
        (sensitivity.value, *sensitivity.limits()),
        (1 - specificity.value, 1 - high, 1 - low),
        correlation(sensitivity.influence, -specificity.influence),
    )
    return Estimate.of(
        (sensitivity.value + specificity.value) / 2,
        (apart[0] + 1) / 2,
        (apart[1] + 1) / 2,
        n=n,
        positives=positives,
        method="from the Wilson intervals of sensitivity and specificity (MOVER)",
    )


def _predictive(right: Share, other: Share, share: float, value: float, positives: int) -> Estimate:
    """A predictive value rises with the likelihood ratio, whose interval comes from those of its two shares.

    `share` of scans are of the kind that is told: the prevalence for the positive one, the rest for the negative one.
    """
    low, high = other.limits()
    ratios = of_quotient((right.value, *right.limits()), (1 - other.value, 1 - high, 1 - low))
    odds = share / (1 - share)
    bounds = [1.0 if np.isinf(ratio) else ratio * odds / (1 + ratio * odds) for ratio in ratios]
    return Estimate.of(
        value,
        *bounds,
        n=right.n + other.n,
        positives=positives,
        method=f"where {share:.4g} of scans are so, from the Wilson intervals of sensitivity and specificity (MOVER)",
    )


@dataclass(frozen=True)
class Abstention:
    """The error among the scans that are kept, as ever more of the doubtful ones are left to a person."""

    coverage: Array  # share of scans that are kept, ascending, (steps,)
    risk: Array  # share of errors among them
    low: Array
    high: Array

    @property
    def area(self) -> float:
        """The mean risk over all coverages: the lower, the better doubt knows where errors are."""
        return float((self.risk * np.diff(self.coverage, prepend=0.0)).sum())


def abstention(
    labels: ArrayLike,
    scores: ArrayLike,
    threshold: float,
    doubt: ArrayLike | None = None,
    patients: Patients | None = None,
    steps: int = 50,
) -> Abstention:
    """Keep the least doubtful scans first. `doubt` (n,): how close the score is to the threshold, if not given.

    Scans of equal doubt are kept together, so that their order tells nothing: there are fewer than `steps` then. The
    intervals are Wilson's, scans of a patient counted by their design effect.
    """
    is_positive, values = checked(labels, scores)
    worth = -np.abs(values - threshold) if doubt is None else checked(labels, np.asarray(doubt, dtype=float))[1]
    order = np.argsort(worth, kind="stable")
    wrong = (values >= threshold) != is_positive
    wanted = np.ceil(np.linspace(1 / steps, 1, steps) * len(values)).astype(int)
    kept = np.unique(np.searchsorted(worth[order], worth[order][wanted - 1], side="right"))
    among = np.zeros((len(kept), len(values)), dtype=bool)
    for step, number in enumerate(kept):
        among[step, order[:number]] = True
    shares = [Share.of(wrong, one, patients) for one in among]
    limits = np.array([share.limits() for share in shares])
    return Abstention(kept / len(values), np.array([share.value for share in shares]), limits[:, 0], limits[:, 1])
