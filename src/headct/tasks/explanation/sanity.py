"""Whether a map depends on what was learned: with weights at random it must be another (arXiv 1810.03292)."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

ALIKE = 0.5
"""A map that is as alike as this to one of random weights does not show what was learned."""


def likeness(first: np.ndarray, second: np.ndarray, domain: np.ndarray) -> float:
    """Rank correlation (Spearman) of what two maps (X, Y, Z) show: where they speak for a finding, within `domain`.

    Compared is the part above 0, as it is drawn, for what speaks against is not seen. 0 where one map is the same
    everywhere.
    """
    ranks = [rankdata(np.clip(one[domain], 0, None)) for one in (first, second)]
    a, b = (one - one.mean() for one in ranks)
    lengths = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / lengths) if lengths > 0 else 0.0
