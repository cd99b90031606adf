"""Nearest vectors, exactly: by cosine or by Euclidean distance, in bounded memory, from a file on disk if need be."""

from __future__ import annotations

from typing import Literal, cast, get_args

import numpy as np

from headct.failure import Misuse

Metric = Literal["cosine", "euclidean"]

ROWS_AT_ONCE = 32_768
"""Vectors that are compared together with the queries."""
BLOCK_BYTES = 128 * 2**20
"""Memory for the similarities of one block, and for the vectors that they are computed from."""


def metric_named(name: str) -> Metric:
    """The metric of this name. Raises Misuse where there is none."""
    if name not in get_args(Metric):
        raise Misuse(f"no metric is called {name!r}", do=f"take {' or '.join(get_args(Metric))}")
    return cast(Metric, name)


def stored_form(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """Vectors (n, F) as they are compared, float32: of length 1 for the cosine, where zeros stay zeros."""
    if metric == "euclidean":
        return np.ascontiguousarray(vectors, dtype=np.float32)
    unit = np.empty(vectors.shape, dtype=np.float32)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        unit[start : start + ROWS_AT_ONCE] = _exact(vectors[start : start + ROWS_AT_ONCE], metric)
    return unit


def similarities(queries: np.ndarray, stored: np.ndarray, metric: Metric) -> np.ndarray:
    """Of each query (q, F) to each vector (n, F), both in stored form: cosine, or minus the distance; (q, n) float64.

    Where an encoder draws all heads alike, cosines differ from 1 by less than single precision holds, and so does the
    length of a stored vector: both are taken in double precision, and the length is divided out.
    """
    found = np.empty((len(queries), len(stored)))
    here = _exact(queries, metric)
    rows = rows_at_once(stored.shape[1])
    for start in range(0, len(stored), rows):
        there = _exact(stored[start : start + rows], metric)
        products = here @ there.T
        if metric == "euclidean":  # the squares nearly cancel between close vectors
            squares = (here**2).sum(axis=1)[:, None] + (there**2).sum(axis=1) - 2 * products
            products = -np.sqrt(np.maximum(squares, 0.0))
        found[:, start : start + rows] = products
    return found


def _exact(stored: np.ndarray, metric: Metric) -> np.ndarray:
    """Vectors in stored form in double precision; for the cosine of length 1 in it too, where zeros stay zeros."""
    exact = stored.astype(np.float64)
    if metric == "euclidean":
        return exact
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return np.asarray(exact / np.where(lengths > 0, lengths, 1.0))


def rows_at_once(numbers: int) -> int:
    """How many rows of so many numbers in double precision fit into a block."""
    return max(1, min(ROWS_AT_ONCE, BLOCK_BYTES // (8 * max(1, numbers))))


def nearest(
    stored: np.ndarray, queries: np.ndarray, k: int, metric: Metric, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar vectors of each query, best first, equal ones by row: rows and similarities, (q, k) each.

    `stored` (n, F) may be a memory map. With `rows`, ascending, only these may be found, and k is at most their number.
    """
    number = len(stored) if rows is None else len(rows)
    k = min(k, number)
    best_rows = np.empty((len(queries), 0), dtype=np.int64)
    best = np.empty((len(queries), 0))
    at_once = max(k, rows_at_once(len(queries)))
    for start in range(0, number, at_once):
        block = np.arange(start, min(start + at_once, number)) if rows is None else rows[start : start + at_once]
        vectors = stored[start : start + at_once] if rows is None else stored[block]
        columns, scores = _best(queries, np.asarray(vectors), metric, min(k, len(block)))
        joined_rows = np.hstack([best_rows, block[columns]])
        joined = np.hstack([best, scores])
        order = np.argsort(-joined, axis=1, kind="stable")[:, :k]
        best_rows, best = np.take_along_axis(joined_rows, order, axis=1), np.take_along_axis(joined, order, axis=1)
    return best_rows, best


def _best(queries: np.ndarray, vectors: np.ndarray, metric: Metric, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and similarities (q, k) of the most similar of the vectors, best first, equal ones by column.

    Cosines are taken in single precision first, which is many times quicker; in double precision only those that its
    rounding (of a sum of F products of unit vectors) may have put on the wrong side of the last.
    """
    if metric == "euclidean":
        scores = similarities(queries, vectors, metric)
        columns = largest(scores, k)
        return columns, np.take_along_axis(scores, columns, axis=1)
    rough = queries @ vectors.T
    least = np.partition(rough, -k, axis=1)[:, -k] - 2 * np.finfo(np.float32).eps * (queries.shape[1] + 8)
    columns, best = np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k))
    for row, enough in enumerate(least):
        near = np.flatnonzero(rough[row] >= enough)
        exact = similarities(queries[row : row + 1], vectors[near], metric)
        order = largest(exact, k)[0]
        columns[row], best[row] = near[order], exact[0, order]
    return columns, best


def largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Of each row the columns of its k largest values, largest first, equal ones by column: (rows, k)."""
    if k == scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")
    found = np.empty((len(scores), k), dtype=np.int64)
    least = np.partition(scores, -k, axis=1)[:, -k]
    for row, (values, enough) in enumerate(zip(scores, least, strict=True)):
        candidates = np.flatnonzero(values >= enough)  # k, and those that equal the last of them
        found[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    return found
