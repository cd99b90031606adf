"""Which scans are alike: exact search by cosine."""

from __future__ import annotations

import numpy as np


def neighbours(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of n vectors (n, F) the k others nearest to it: indices (n, k) and cosines (n, k), nearest first.

    Exact; below a million scans an index gains nothing. Of equal cosines the earlier scan comes first. Raises
    ValueError where there are not k others, or a vector has no direction.
    """
    if not 0 <= k < len(vectors):
        raise ValueError(f"{len(vectors)} vectors have no {k} neighbours each")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.all(np.isfinite(lengths) & (lengths > 0)):
        raise ValueError("a vector of zeros, or one that is not finite, is near to nothing")
    unit = vectors / lengths
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return nearest, np.take_along_axis(cosine, nearest, axis=1)
