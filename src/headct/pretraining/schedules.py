"""Pure functions of the step: what the optimiser and the teacher use at step s of S (the first is 0)."""

from __future__ import annotations

import math


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at step `steps`; `end` beyond."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / max(steps, 1)))


def warm_cosine(step: int, steps: int, warmup: int, peak: float, end: float) -> float:
    """A linear rise over `warmup` steps to `peak`, then half a cosine to `end`.

    The first step already uses peak / warmup: a rate of zero would spend a step on nothing.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine(step - warmup, steps - warmup, peak, end)


def ramp(step: int, steps: int, start: float, end: float) -> float:
    """A straight line from `start` at step 0 to `end` at step `steps` - 1; `end` beyond."""
    return end if step >= steps - 1 else start + (end - start) * step / (steps - 1)
