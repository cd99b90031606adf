"""A number with its interval, and how it is written: `0.912 (0.871 to 0.943)`, with the cases under it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headct.evaluation.intervals import Estimate
from headct.reporting.words import NOT_STATED, number

NBSP = "\u00a0"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A value with the ends of its interval, and the cases under it; a leaf of `metrics.json`.

    NaN stands for a value, or an end of its interval, that does not exist. `positives` is None where nothing is
    present or absent, as in a correlation.
    """

    value: float
    low: float
    high: float
    n: int
    positives: int | None = None

    @property
    def has_interval(self) -> bool:
        """Whether both ends of the interval exist."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def cases(self) -> str:
        """The cases under it: `n = 420, 31 positive`."""
        return cases(self.n, self.positives)

    def written(self, decimals: int = 3, *, signed: bool = False) -> str:
        """The value and its interval in words; a difference is `signed`, so that a gain shows its plus."""
        if not math.isfinite(self.value):
            return NOT_STATED
        value, low, high = (_signed(part, decimals, signed) for part in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})" if self.has_interval else f"{value} (no interval)"


def measured(estimate: Estimate, *, counted: bool = True) -> Measured:
    """An estimate as a page writes it: what does not exist is NaN; its positives are told where they are `counted`."""
    value, low, high = (math.nan if one is None else one for one in (estimate.value, estimate.low, estimate.high))
    return Measured(value=value, low=low, high=high, n=estimate.n, positives=estimate.positives if counted else None)


def cases(n: int, positives: int | None = None) -> str:
    """How many cases, and how many of them have the finding, if that is a question."""
    stated = f"n{NBSP}={NBSP}{n:,}"
    return stated if positives is None else f"{stated}, {positives:,}{NBSP}positive"


def _signed(value: float, decimals: int, signed: bool) -> str:
    written = number(value, decimals)
    return f"+{written}" if signed and value > 0 and float(written) != 0 else written


def cell(value: Measured | None) -> str:
    """What stands in a table for a measured number, or for none."""
    return NOT_STATED if value is None else value.written()


def cell_of_difference(value: Measured | None) -> str:
    """What stands in a table for a measured difference, or for none."""
    return NOT_STATED if value is None else value.written(signed=True)
