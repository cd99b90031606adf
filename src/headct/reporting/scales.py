"""From values to places on a chart: ticks that people would choose, linear and logarithmic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NICE_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


def nice_step(span: float, parts: int) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that divides the span into at most `parts`; 1 for no span."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / parts))
    return next((step * power for step in NICE_STEPS if span / (step * power) <= parts * (1 + 1e-9)), 10 * power)


def edges(values: np.ndarray, parts: int = 16, highest: float | None = None) -> np.ndarray:
    """Bin edges at round numbers that enclose the values; each bin holds its lower edge, as a reader expects.

    No value can exceed `highest`, if given: the last bin then ends there and holds it.
    """
    low, high = float(values.min()), float(values.max())
    width = nice_step(high - low, parts)
    first = math.floor(low / width + 1e-9)
    last = math.floor(high / width + 1e-9) + 1
    if highest is not None and last * width > highest:
        last = round(highest / width)
        first = min(first, last - 1)
    return np.round(np.arange(first, last + 1) * width, 10)


@dataclass(frozen=True)
class Axis:
    """One axis of a chart: the values at its ends, the places of those ends, where its ticks stand."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value; values below the low end of a logarithmic axis lie on that end."""
        measure: Callable[[float], float] = math.log10 if self.log else float
        value = max(value, self.low) if self.log else value
        share = (measure(value) - measure(self.low)) / (measure(self.high) - measure(self.low))
        return self.start + share * (self.end - self.start)


def linear(low: float, high: float, start: float, end: float, parts: int = 5) -> Axis:
    """An axis from `low` to `high` widened to round numbers, with about `parts` intervals."""
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    step = nice_step(high - low, parts)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(index * step, 10) for index in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def logarithmic(low: float, high: float, start: float, end: float) -> Axis:
    """An axis of decades, with 1, 2 and 5 as ticks where it spans less than three.

    Raises ValueError for an axis that begins at or below zero.
    """
    if low <= 0:
        raise ValueError(f"a logarithmic axis starts above zero, got {low}")
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first < 3 else (1,)
    every = max(1, math.ceil((last - first) / 6))
    candidates = [step * 10.0**decade for decade in range(first, last + every, every) for step in steps]
    below = max((tick for tick in candidates if tick <= low * (1 + 1e-9)), default=candidates[0])
    above = min((tick for tick in candidates if tick >= high * (1 - 1e-9)), default=candidates[-1])
    if below == above:
        below, above = below / 2, above * 2
    ticks = tuple(tick for tick in candidates if below <= tick <= above)
    return Axis(below, above, start, end, ticks, log=True)
