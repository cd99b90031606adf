"""Which scans are alike."""

from __future__ import annotations

import numpy as np

BLOCK_BYTES = 64 * 2**20
"""Memory for the cosines of the queries that are compared together; as much again is needed to sort them."""


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
    rows_at_once = max(1, BLOCK_BYTES // (count * unit.itemsize))
    for start in range(0, count, rows_at_once):
        rows = np.arange(start, min(start + rows_at_once, count))
        block = unit[rows] @ unit.T
        block[rows - start, rows] = -np.inf  # a scan is not its own neighbour
        indices[rows], cosines[rows] = _largest(block, k)
    return indices, cosines


def _largest(block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each row its k largest values, equal ones by index: indices (rows, k) and values (rows, k)."""
    indices = np.empty((len(block), k), dtype=np.int64)
    least = np.partition(block, -k, axis=1)[:, -k]
    for row, (values, enough) in enumerate(zip(block, least, strict=True)):
        candidates = np.flatnonzero(values >= enough)  # k, and those that equal the last of them
        indices[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    return indices, np.take_along_axis(block, indices, axis=1)
