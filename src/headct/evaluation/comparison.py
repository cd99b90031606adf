"""Two models on the same scans: is one better, by how much, and would another set of patients say so too.

Raw scores of two models are never compared with each other (a rank test of probabilities asks which model speaks
louder, and ignores the labels). An interval of one model that misses the other's number is no test either: the two are
seen on the same patients, and their errors go together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr
from scipy.stats import binomtest

from headct.evaluation.intervals import LEVEL, Area, Estimate, Z
from headct.evaluation.metrics import Array, Ranked, checked

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second, with its interval and a two-sided p value; `corrected` by Holm with all it was made with."""

    estimate: Estimate
    p: float
    corrected: float | None = None

    def leaf(self) -> Mapping[str, Any]:
        """As a leaf of `metrics.json`, with `p` and `p_holm` beside it."""
        return {**self.estimate.leaf(), "p": self.p, "p_holm": self.corrected}


def delong(first: Area, second: Area) -> Difference:
    """The difference of two areas read from scans of the same patients, by DeLong's test.

    Midranks as in Sun and Xu (IEEE Signal Processing Letters 21, 2014); with several scans of a patient, Obuchowski's
    covariance. Two models with the very same order of scans differ by 0, with p = 1. Where neither area varies at all
    (one model perfect, the other constant) the variances that their intervals have stand in.
    """
    value = first.value - second.value
    deviation = float(np.sqrt(((first.influence - second.influence) ** 2).sum()))
    if deviation == 0 and value != 0:
        deviation = float(np.sqrt(first.steadied + second.steadied))
    half = Z * deviation
    p = 2 * float(ndtr(-abs(value) / deviation)) if deviation > 0 else float(value == 0)
    estimate = Estimate.of(
        value,
        value - half,
        value + half,
        n=min(first.n, second.n),
        positives=min(first.positives, second.positives),
        method="paired DeLong test, variance by patient",
    )
    return Difference(estimate=estimate, p=p)


def paired_bootstrap(first: tuple[float, Array], second: tuple[float, Array], *, n: int, positives: int) -> Difference:
    """The difference of any two numbers, each (value, draws) over the same draws of patients.

    A percentile interval. The p value is twice the share of draws on the less likely side of 0, and never below what so
    many draws can tell.
    """
    value, draws = first[0] - second[0], first[1] - second[1]
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(draws) else (np.nan, np.nan)
    side = min((draws <= 0).sum(), (draws >= 0).sum())
    p = min(1.0, 2 * (float(side) + 1) / (len(draws) + 1))
    method = f"percentile interval of {len(draws):,} bootstrap draws of patients, paired"
    return Difference(estimate=Estimate.of(value, low, high, n=n, positives=positives, method=method), p=p)


def compare(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    metric: Callable[[Ranked, NDArray[np.uint8] | None], Array],
    weights: NDArray[np.uint8],
) -> Difference:
    """Paired bootstrap of a metric of order, such as `Ranked.average_precision`; `weights` (draws, n) of patients."""
    ranked = [Ranked.of(labels, scores) for scores in (first, second)]
    values = [(float(metric(each, None)), metric(each, weights)) for each in ranked]
    is_positive, _ = checked(labels, first)
    return paired_bootstrap(values[0], values[1], n=len(is_positive), positives=int(is_positive.sum()))


def mcnemar(labels: ArrayLike, first_called: ArrayLike, second_called: ArrayLike) -> float:
    """Exact two-sided p value of McNemar's test: do two models err on as many scans? For one scan a patient."""
    is_positive, first = checked(labels, first_called)
    _, second = checked(labels, second_called)
    first_right, second_right = first == is_positive, second == is_positive
    only_first, only_second = int((first_right & ~second_right).sum()), int((~first_right & second_right).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979), under the same names."""
    corrected, highest = {}, 0.0
    for done, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - done)))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def corrected(differences: Mapping[Name, Difference]) -> dict[Name, Difference]:
    """Differences, by whatever they are called, corrected by Holm for being many."""
    p_values = holm({name: difference.p for name, difference in differences.items()})
    return {
        name: Difference(estimate=difference.estimate, p=difference.p, corrected=p_values[name])
        for name, difference in differences.items()
    }
