"""Which scans are alike."""

from __future__ import annotations

import numpy as np

ROWS_AT_ONCE = 1024
"""Queries that are compared together, so that memory stays at this many rows of cosines."""


def neighbours(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k other rows of `vectors` (n, F) with the largest cosine: indices (n, k) and cosines (n, k), best first.

    Exact. Equal cosines are ordered by index. A vector of zeros has the cosine 0 with all. Raises ValueError unless
    1 <= k <= n - 1.
    """
    count = len(vectors)
    if not 1 <= k <= count - 1:
        raise ValueError(f"k must lie in 1..{count - 1} for {count} vectors, got {k}")
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1.0)
    indices, cosines = np.empty((count, k), dtype=np.int64), np.empty((count, k))
    for start in range(0, count, ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, count))
        cosine = unit[rows] @ unit.T
        cosine[rows - start, rows] = -np.inf  # a scan is not its own neighbour
        best = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
        indices[rows], cosines[rows] = best, np.take_along_axis(cosine, best, axis=1)
    return indices, cosines
