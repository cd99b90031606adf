"""How well two measurements of the same heads agree: intraclass correlation, cosines, and who is whose pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import f as fisher

from headct.evaluation.intervals import LEVEL
from headct.failure import Misuse

LEAST_HEADS = 3


@dataclass(frozen=True)
class Icc:
    """Intraclass correlations of single measurements of n heads, by two-way analysis of variance.

    `agreement` is ICC(2,1) of Shrout and Fleiss (Psychological Bulletin 86, 1979), the same as ICC(A,1) of McGraw and
    Wong (Psychological Methods 1, 1996): a constant difference between the scans lowers it. `low` and `high` are its
    95 % interval by the latter. `consistency` is ICC(3,1): a constant difference is forgiven. All are NaN where no
    head differs from any other and no scan from the other, and `consistency` where scans differ by a constant alone.
    """

    agreement: float
    low: float
    high: float
    consistency: float
    n: int


def icc(values: np.ndarray) -> Icc:
    """Of values (n, k): k measurements of each of n heads. Raises Misuse for fewer than three heads, or no numbers."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or values.shape[0] < LEAST_HEADS or values.shape[1] < 2:
        raise Misuse(
            f"an intraclass correlation needs two measurements of at least {LEAST_HEADS} heads, got {values.shape}",
            do="give more patients",
        )
    if not np.isfinite(values).all():
        raise Misuse("an intraclass correlation of values that are no finite numbers does not exist")
    n, k = values.shape
    heads, scans, rest = _mean_squares(values)
    whole = heads + (k - 1) * rest + k * (scans - rest) / n
    if whole <= 0:
        return Icc(np.nan, np.nan, np.nan, np.nan, n)
    agreement = (heads - rest) / whole
    within = heads + (k - 1) * rest
    consistency = (heads - rest) / within if within > 0 else np.nan
    low, high = _interval(agreement, heads, scans, rest, n, k)
    return Icc(float(agreement), low, high, float(consistency), n)


def _mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Between heads, between scans, and of what is left."""
    n, k = values.shape
    middle = values.mean()
    of_heads, of_scans = values.mean(axis=1), values.mean(axis=0)
    rest = values - of_heads[:, None] - of_scans[None] + middle
    return (
        float(k * ((of_heads - middle) ** 2).sum() / (n - 1)),
        float(n * ((of_scans - middle) ** 2).sum() / (k - 1)),
        float((rest**2).sum() / ((n - 1) * (k - 1))),
    )


def _interval(icc: float, heads: float, scans: float, rest: float, n: int, k: int) -> tuple[float, float]:
    """McGraw and Wong's, table 7, with Satterthwaite's degrees of freedom."""
    if icc >= 1:  # both measurements are the same
        return 1.0, 1.0
    a = k * icc / (n * (1 - icc))
    b = 1 + k * icc * (n - 1) / (n * (1 - icc))
    spread = (a * scans) ** 2 / (k - 1) + (b * rest) ** 2 / ((n - 1) * (k - 1))
    if spread <= 0:
        return np.nan, np.nan
    freedom = (a * scans + b * rest) ** 2 / spread
    upper = float(fisher.ppf((1 + LEVEL) / 2, n - 1, freedom))
    lower = float(fisher.ppf((1 + LEVEL) / 2, freedom, n - 1))
    others = k * scans + (k * n - k - n) * rest
    low = n * (heads - upper * rest) / (upper * others + n * heads)
    high = n * (lower * heads - rest) / (others + n * lower * heads)
    return float(low), float(high)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of every row of `first` (n, F) with every row of `second` (m, F): (n, m). A vector of zeros has 0 with all."""
    return _unit(first) @ _unit(second).T


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))


def ranks(similarity: np.ndarray) -> np.ndarray:
    """At which place, from 1, each row of (n, n) has its own column; ties count against it."""
    own = np.diag(similarity)[:, None]
    return np.asarray((similarity >= own).sum(axis=1))
