"""Whether a map depends on what was learned: with weights at random it must be another (arXiv 1810.03292)."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

ALIKE = 0.5
"""A map that is as alike as this to one of random weights does not show what was learned."""
SILENT = 1e-6
"""Maps of random weights that vary less than this share of ours are rounding alone."""


def likeness(ours: np.ndarray, others: np.ndarray) -> float:
    """Rank correlation (Spearman) of what a map shows with what one of random weights does, at n places each, (n,).

    Shown is the part above 0. Random weights have either sign by chance, so that what speaks against a finding with
    them would as often have spoken for it: the larger of both correlations counts. NaN where theirs is the same
    everywhere, for a network that says the same of everything is no witness; else 0 where ours is.
    """
    if np.ptp(others) <= SILENT * np.ptp(ours):
        return float("nan")
    shown = np.clip(ours, 0, None)
    return max(_correlation(shown, np.clip(sign * others, 0, None)) for sign in (1, -1))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    a, b = (ranks - ranks.mean() for ranks in (rankdata(first), rankdata(second)))
    lengths = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / lengths) if lengths > 0 else 0.0
