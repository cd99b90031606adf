"""Exact search. Oracles: scikit-learn's brute-force neighbours, and FAISS's flat indices where they are installed."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from headct.failure import Misuse
from headct.tasks.retrieval import approximate, ranking
from headct.tasks.retrieval.ranking import nearest, stored_form


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(2, 1, (500, 24)).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("at_once", [7, 100, 32_768])
def test_as_scikit_learn_finds(vectors: np.ndarray, metric: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "ROWS_AT_ONCE", at_once)
    stored, queries = stored_form(vectors, metric), stored_form(vectors[:20] + 0.1, metric)
    rows, scores = nearest(stored, queries, 9, metric)
    oracle = NearestNeighbors(n_neighbors=9, metric=metric, algorithm="brute").fit(stored.astype(np.float64))
    distances, expected = oracle.kneighbors(queries.astype(np.float64))
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(1 - scores if metric == "cosine" else -scores, distances, atol=1e-6)


@pytest.mark.skipif(not approximate.is_installed(), reason="needs faiss-cpu")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_as_faiss_finds(vectors: np.ndarray, metric: str) -> None:
    faiss = approximate.library()
    stored, queries = stored_form(vectors, metric), stored_form(vectors[:20] + 0.1, metric)
    flat = faiss.IndexFlatIP(24) if metric == "cosine" else faiss.IndexFlatL2(24)
    flat.add(stored)
    np.testing.assert_array_equal(nearest(stored, queries, 9, metric)[0], flat.search(queries, 9)[1])


def test_only_some_rows_may_be_found(vectors: np.ndarray) -> None:
    stored, some = stored_form(vectors, "cosine"), np.arange(3, 500, 7)
    rows, scores = nearest(stored, stored[:5], 6, "cosine", some)
    inner, same = nearest(stored[some], stored[:5], 6, "cosine")
    np.testing.assert_array_equal(rows, some[inner])
    np.testing.assert_array_equal(scores, same)


def test_close_vectors_keep_their_order() -> None:
    """Their squares agree in seven digits, so single precision would mix them up."""
    steps = np.array([0, 3, 1, 2, 4]) * 1e-3
    stored = np.full((5, 8), 100.0, np.float32)
    stored[:, 0] += steps.astype(np.float32)
    rows, scores = nearest(stored, stored[:1], 5, "euclidean")
    assert rows[0].tolist() == [0, 2, 3, 1, 4]
    np.testing.assert_allclose(-scores[0], np.sort(stored[:, 0] - stored[0, 0]), atol=1e-6)


def test_heads_that_an_encoder_draws_all_alike_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosines of 1 less half a millionth: single precision has room for some ten different ones below 1.

    Oracle: the angles, in double precision, between the vectors as they were before their length was taken from them.
    """
    rng = np.random.default_rng(0)
    given = (rng.normal(size=512) + 7e-4 * rng.normal(size=(300, 512))).astype(np.float32)
    exact = given.astype(np.float64)
    unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    monkeypatch.setattr(ranking, "BLOCK_BYTES", 8 * 512 * 40)  # vectors are looked at by forties
    rows, scores = nearest(stored_form(given, "cosine"), stored_form(given[:1], "cosine"), 300, "cosine")
    apart = np.linalg.norm(unit - unit[0], axis=1) ** 2 / 2
    assert 1e-7 < np.median(apart) < 1e-6
    np.testing.assert_allclose(1 - scores[0], apart[rows[0]], atol=2e-10)
    rank = np.empty(300, int)
    rank[rows[0]] = np.arange(300)
    expected = np.argsort(np.argsort(apart, kind="stable"))
    assert np.abs(rank - expected).max() <= 2


def test_equal_ones_by_row_and_zeros_alike_to_all() -> None:
    stored = stored_form(np.array([[0, 0], [2, 0], [1, 0], [0, 1]], np.float32), "cosine")
    rows, scores = nearest(stored, stored[1:2], 4, "cosine")
    assert rows[0].tolist() == [1, 2, 0, 3]
    assert scores[0].tolist() == [1, 1, 0, 0]


def test_another_metric_is_refused() -> None:
    with pytest.raises(Misuse, match="no metric is called 'manhattan'"):
        ranking.metric_named("manhattan")
