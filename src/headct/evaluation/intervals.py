"""Numbers with 95 % intervals that count patients, not scans.

Scans of one patient resemble each other, so every interval here looks at patients as the independent units: the
bootstrap draws patients with all their scans, variances sum what a patient contributes before they square it, and a
proportion is told how many independent scans its scans are worth. Listing every scan twice adds no certainty.

Which interval for which number was chosen by simulation (`benchmarks/intervals.py` prints the coverage of each):

- a proportion: Wilson's, with the number of scans divided by the design effect;
- area under the ROC curve: DeLong's variance, mixed at small numbers with that of Hanley and McNeil, on the logit
  scale. The plain percentile bootstrap covers 50 to 97 % at 10 to 25 positives, least where the area is high;
- average precision, sensitivity at a fixed specificity and the reverse: the bootstrap's bias and spread, on the logit
  scale;
- a mean of squares (Brier): its variance between patients, on the log scale.

From 25 patients of the rarer class on the area's covers 91.5 to 97.7 % in 72 worlds of 600 tables each (0.9 points are
chance), and 93.7 to 97.4 % in nine of the more doubtful ones, drawn again with 4,000 tables; with 10 or 15 it covers 94
to 99 %. Its constants (`TRUST`, `PULL`) were chosen in like worlds. The others cover 92 to 98.5 % in 200 to 300 tables
each, of which 1.5 points are chance. Two do not keep to it: specificity at a fixed sensitivity, which a handful of
positives decide (88 to 98.5 % at 25), and the calibration error (`headct.evaluation.calibration`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtri
from scipy.stats import t as student

from headct.evaluation.metrics import Array, Ranked, both_classes, checked
from headct.failure import Misuse

LEVEL = 0.95
Z = float(ndtri((1 + LEVEL) / 2))
DRAWS = 1000
"""Of the bootstrap."""
HELD = 1 << 24
"""Bytes of draws that are held together, where they come in blocks."""
TRUST, TRUST_IN_SHARES = 1.0, 2.0
"""How much a model's variance weighs beside the seen one, over the root of the rarer class's patients: of an area, and
of what the bootstrap draws. By simulation, as the next one."""
PULL = 0.3
"""The middle of the interval of an area is where it would be with so many more patients at one half."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval; `low` and `high` are None where no interval can be given, `value` where no number.

    `n` scans were looked at, `positives` of them have the finding. `method` says in words what the interval is.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    positives: int
    method: str

    @classmethod
    def of(cls, value: float, low: float, high: float, *, n: int, positives: int, method: str) -> Estimate:
        """With NaN as None, and an interval that holds its number."""
        low, high = min(low, value), max(high, value)  # NaN stays
        low_high = (None, None) if not np.isfinite(low + high + value) else (float(low), float(high))
        return cls(
            value=None if not np.isfinite(value) else float(value),
            low=low_high[0],
            high=low_high[1],
            n=int(n),
            positives=int(positives),
            method=method,
        )

    def written(self, *, signed: bool = False) -> str:
        """The value, and its interval if it has one, as a command tells them; a difference is `signed`."""
        if self.value is None:
            return "none"
        sign = "+" if signed else ""
        interval = "" if self.low is None else f" ({self.low:{sign}.3f} to {self.high:{sign}.3f})"
        return f"{self.value:{sign}.3f}{interval}"

    def leaf(self) -> Mapping[str, Any]:
        """As a leaf of `metrics.json`."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "positives": self.positives,
            "method": self.method,
        }


@dataclass(frozen=True)
class Patients:
    """Whose scans they are: `codes` (n,) count patients from 0, `number` of them in the whole table."""

    codes: NDArray[np.intp]
    number: int

    @classmethod
    def of(cls, identifiers: ArrayLike) -> Patients:
        """From identifiers, one for each scan."""
        known, codes = np.unique(np.asarray(identifiers), return_inverse=True)
        return cls(codes.reshape(-1), len(known))

    @classmethod
    def each(cls, scans: int) -> Patients:
        """Where every scan is of a patient of its own."""
        return cls(np.arange(scans), scans)

    def only(self, chosen: NDArray[Any]) -> Patients:
        """The patients of some scans, under their codes in the whole table."""
        return Patients(self.codes[chosen], self.number)

    def sums(self, values: Array) -> Array:
        """What each patient contributes: the sum of `values` (n,) over their scans, (patients,)."""
        return np.asarray(np.bincount(self.codes, weights=values, minlength=self.number), dtype=float)

    def having(self, chosen: NDArray[np.bool_]) -> int:
        """How many patients have at least one of these scans."""
        return len(np.unique(self.codes[chosen]))

    def weights(self, draws: int = DRAWS, seed: int = 0) -> NDArray[np.uint8]:
        """How often each scan is drawn when as many patients are drawn as there are, with replacement: (draws, n).

        The same seed gives the same draws, so what is computed from them is paired.
        """
        return self._drawn(draws, np.random.default_rng(seed))

    def blocks(self, draws: int, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
        """The same draws, (some, n) at a time: as many as `HELD` allows."""
        rng, step = np.random.default_rng(seed), max(1, HELD // len(self.codes))
        for start in range(0, draws, step):
            yield self._drawn(min(step, draws - start), rng)

    def _drawn(self, draws: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        weights = np.empty((draws, len(self.codes)), dtype=np.uint8)
        for row in weights:
            counts = np.bincount(rng.integers(0, self.number, self.number), minlength=self.number)
            row[:] = counts[self.codes]
        return weights


@dataclass(frozen=True)
class Area:
    """An area under the ROC curve with what each patient contributes to its error.

    `influence` (patients,): its squares sum up to DeLong's variance (Biometrics 44, 1988) where every patient has one
    scan, and to Obuchowski's (Biometrics 53, 1997) where some have several. `holders`: how many patients have a
    positive scan, and how many a negative one.
    """

    value: float
    influence: Array
    holders: tuple[int, int]
    n: int
    positives: int

    @classmethod
    def of(cls, labels: ArrayLike, scores: ArrayLike, patients: Patients | None = None) -> Area:
        """From labels and scores (n,) of scans. Raises Misuse where the labels are of one class."""
        ranked = Ranked.of(labels, scores)
        is_positive, _ = checked(labels, scores)
        patients = patients or Patients.each(len(is_positive))
        placed = placements(ranked)
        value = float(placed[is_positive].mean())
        holders = (patients.having(is_positive), patients.having(~is_positive))
        parts = np.zeros(len(is_positive))
        for chosen, few in ((is_positive, holders[0]), (~is_positive, holders[1])):
            spread = np.sqrt(few / (few - 1)) if few > 1 else 0.0
            parts[chosen] = spread * (placed[chosen] - value) / chosen.sum()
        return cls(value, patients.sums(parts), holders, len(is_positive), int(is_positive.sum()))

    @property
    def variance(self) -> float:
        """As DeLong and Obuchowski estimate it."""
        return float((self.influence**2).sum())

    @property
    def steadied(self) -> float:
        """The variance, mixed with the one that Hanley and McNeil's model (Radiology 143, 1982) expects.

        DeLong's is nearly 0 where few positives happen to stand well apart, and 0 where all do: the model, told of one
        more patient on the right side and one on the wrong one, then keeps the interval open.
        """
        rarer = min(self.holders)
        value = pulled(self.value, rarer, 2)
        expected = hanley_mcneil(max(value, 1 - value), *self.holders)  # scores turned round are no surer
        return expected if rarer < 2 else mixed(self.variance, expected, rarer, TRUST)

    def estimate(self) -> Estimate:
        """With the interval on the logit scale."""
        low, high = on_logit(pulled(self.value, min(self.holders), PULL), np.sqrt(self.steadied))
        return Estimate.of(
            self.value,
            low,
            high,
            n=self.n,
            positives=self.positives,
            method="logit interval, DeLong variance by patient, steadied by Hanley-McNeil",
        )


def placements(ranked: Ranked) -> Array:
    """For each scan the share of scans of the other class that it is on the right side of, ties half: (n,)."""
    positives, negatives = len(ranked.positives), len(ranked.negatives)
    placed = np.empty(positives + negatives)
    placed[ranked.positives] = (ranked.below + ranked.upto) / (2 * negatives)
    at = np.arange(negatives)
    lower = np.searchsorted(ranked.upto, at, side="right")  # positives that score less than the negative
    upper = np.searchsorted(ranked.below, at, side="right")  # or at most as much
    placed[ranked.negatives] = 1 - (lower + upper) / (2 * positives)
    return placed


def hanley_mcneil(area: float, positives: int, negatives: int) -> float:
    """Variance of an area under the ROC curve, were the scores exponential (Hanley and McNeil, Radiology 143, 1982)."""
    two_positives, two_negatives = area / (2 - area), 2 * area**2 / (1 + area)
    return (
        area * (1 - area) + (positives - 1) * (two_positives - area**2) + (negatives - 1) * (two_negatives - area**2)
    ) / (positives * negatives)


def macro_area(areas: Mapping[str, Area]) -> Estimate:
    """The mean area over findings that are read from scans of the same patients, whose errors go together."""
    value = float(np.mean([area.value for area in areas.values()]))
    among = sum(min(area.holders) for area in areas.values())
    low, high = on_logit(pulled(value, among, PULL), macro_deviation(areas))
    n, positives = max(area.n for area in areas.values()), sum(area.positives for area in areas.values())
    method = f"mean over {len(areas)} findings; logit interval, DeLong variance by patient over all of them"
    return Estimate.of(value, low, high, n=n, positives=positives, method=method)


def macro_deviation(areas: Mapping[str, Area]) -> float:
    """The standard deviation of the mean area over findings of scans of the same patients."""
    together, apart = np.zeros(len(next(iter(areas.values())).influence)), 0.0
    for area in areas.values():
        if area.variance > 0:
            together = together + np.sqrt(area.steadied / area.variance) * area.influence
        else:
            apart += area.steadied
    return float(np.sqrt((together**2).sum() + apart) / len(areas))


def mixed(seen: float, expected: float, rarer: int, trust: float) -> float:
    """The variance that few patients show, and the one that a model expects, which weighs less the more there are."""
    weight = trust / np.sqrt(rarer)
    return float((seen + weight * expected) / (1 + weight))


def pulled(share: float, among: int, more: float) -> float:
    """A share among some patients as it would be with a few `more` of them, half on either side: never 0 nor 1."""
    return (share * among + more / 2) / (among + more)


def on_logit(value: float, deviation: float) -> tuple[float, float]:
    """The interval of a share whose standard deviation is known, inside 0..1."""
    half = Z * deviation / (value * (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def from_draws(value: float, draws: Array, *, rarer: int, n: int, positives: int, biased: bool = True) -> Estimate:
    """A share with the spread that its bootstrap draws show, and less their bias if it is `biased`, on the logit scale.

    A spread smaller than binomial is mixed with a binomial one over the patients of the `rarer` class, as few of them
    may happen to agree. Draws in which the number does not exist are left out; with too many there is no interval.
    """
    shown = "bias and spread" if biased else "spread"
    method = f"logit interval from the {shown} of {len(draws):,} bootstrap draws of patients"
    kept = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(kept) < len(draws) / 2 or rarer < 2:
        return Estimate.of(value, np.nan, np.nan, n=n, positives=positives, method=f"{method}: too few patients")
    least, expected = 0.5 / (rarer + 1), pulled(value, rarer, 1)
    bias, seen = kept.mean() - value if biased else 0.0, float(kept.var(ddof=1))
    centre = float(np.clip(expected - bias, least, 1 - least))
    variance = max(seen, mixed(seen, expected * (1 - expected) / rarer, rarer, TRUST_IN_SHARES))
    low, high = on_logit(centre, float(np.sqrt(variance)))
    return Estimate.of(value, low, high, n=n, positives=positives, method=method)


@dataclass(frozen=True)
class Share:
    """A proportion among some scans, and how many independent scans they are worth."""

    value: float
    trials: float  # scans over the design effect
    influence: Array  # (patients,), squares sum up to the variance
    n: int

    @classmethod
    def of(cls, hits: ArrayLike, among: ArrayLike, patients: Patients | None = None) -> Share:
        """Of the scans `among` (n,), how many are `hits`; NaN where there are none.

        The design effect compares the variance between patients (a ratio of sums) with the binomial one. Where all or
        none are hits it is that of patients whose scans always agree. It is never taken to be below 1, and is itself
        uncertain: Student's quantile makes room for it (Korn and Graubard, Survey Methodology 24, 1998).
        """
        is_hit, counts = np.asarray(hits, dtype=bool), np.asarray(among, dtype=bool)
        patients = patients or Patients.each(len(counts))
        number = int(counts.sum())
        if not number:
            return cls(np.nan, 0.0, np.zeros(patients.number), 0)
        of_patient = patients.sums(counts.astype(float))
        value = float((is_hit & counts).sum() / number)
        holders = int((of_patient > 0).sum())
        residual = patients.sums((is_hit & counts).astype(float)) - value * of_patient
        influence = residual / number * np.sqrt(holders / (holders - 1) if holders > 1 else 1.0)
        effect = 1.0
        if number > holders:
            agreeing = float((of_patient**2).sum() / number)
            binomial = value * (1 - value) / number
            measured = ((residual / number) ** 2).sum() / binomial if binomial > 0 and holders > 1 else agreeing
            unsure = (student.ppf((1 + LEVEL) / 2, holders - 1) / Z) ** 2 if holders > 1 else 1.0
            effect = max(1.0, float(measured)) * float(unsure)
        return cls(value, number / effect, influence, number)

    def limits(self) -> tuple[float, float]:
        """Wilson's interval (JASA 22, 1927)."""
        return wilson(self.value, self.trials)

    def estimate(self, *, positives: int) -> Estimate:
        """With its interval."""
        low, high = self.limits()
        method = "Wilson interval, scans of a patient counted by their design effect"
        return Estimate.of(self.value, low, high, n=self.n, positives=positives, method=method)


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Wilson's interval of a proportion over so many trials, which need not be whole."""
    if not trials > 0:
        return np.nan, np.nan
    middle = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * np.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def of_difference(
    first: tuple[float, float, float], second: tuple[float, float, float], correlation: float = 0.0
) -> tuple[float, float]:
    """The interval of a difference of two numbers, each (value, low, high), from their own intervals.

    "MOVER" (Zou and Donner, Statistics in Medicine 27, 2008): close to 0 and 1 it keeps the asymmetry of the two.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    down = (a - a_low) ** 2 + (b_high - b) ** 2 - 2 * correlation * (a - a_low) * (b_high - b)
    up = (a_high - a) ** 2 + (b - b_low) ** 2 - 2 * correlation * (a_high - a) * (b - b_low)
    return float(a - b - np.sqrt(max(down, 0.0))), float(a - b + np.sqrt(max(up, 0.0)))


def of_quotient(first: tuple[float, float, float], second: tuple[float, float, float]) -> tuple[float, float]:
    """The interval of a quotient of two independent shares, each (value, low, high), the same way.

    (Donner and Zou, Statistical Methods in Medical Research 21, 2012.) Infinite where the second may be 0.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    with np.errstate(divide="ignore", invalid="ignore"):
        down = (a * b) ** 2 - a_low * b_high * (2 * a - a_low) * (2 * b - b_high)
        up = (a * b) ** 2 - a_high * b_low * (2 * a - a_high) * (2 * b - b_low)
        low = (a * b - np.sqrt(max(down, 0.0))) / np.float64(b_high * (2 * b - b_high))
        high = (a * b + np.sqrt(max(up, 0.0))) / np.float64(b_low * (2 * b - b_low))
    return float(low), float(high) if b_low > 0 else np.inf


def correlation(first: Array, second: Array) -> float:
    """Of two numbers by what each patient contributes to them, (patients,) each; 0 where one has no spread."""
    spread = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / spread) if spread > 0 else 0.0


def mean_of(values: ArrayLike, patients: Patients | None = None, *, positives: int, log: bool = False) -> Estimate:
    """A mean over scans with Student's interval between patients; on the log scale for what is never negative."""
    of_scan = np.asarray(values, dtype=float)
    if not len(of_scan):
        raise Misuse("there is nothing to take a mean of")
    patients = patients or Patients.each(len(of_scan))
    value = float(of_scan.mean())
    holders = len(np.unique(patients.codes))
    method = f"Student interval{' on the log scale' if log else ''}, variance between patients"
    if holders < 2 or (log and value <= 0):
        return Estimate.of(value, np.nan, np.nan, n=len(of_scan), positives=positives, method=f"{method}: too few")
    residual = patients.sums(of_scan - value) / len(of_scan)
    half = student.ppf((1 + LEVEL) / 2, holders - 1) * np.sqrt((residual**2).sum() * holders / (holders - 1))
    low, high = (value * np.exp(-half / value), value * np.exp(half / value)) if log else (value - half, value + half)
    return Estimate.of(value, low, high, n=len(of_scan), positives=positives, method=method)


def rarer_class(labels: ArrayLike, patients: Patients) -> int:
    """Patients with a positive scan, or with a negative one, whichever are fewer."""
    is_positive, _ = checked(labels, np.zeros(np.shape(labels)))
    both_classes(is_positive)
    return min(patients.having(is_positive), patients.having(~is_positive))
