"""Nearest neighbours. Oracle: every cosine by hand, in a loop."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from headct.embedding import neighbours


def by_hand(vectors: np.ndarray, k: int) -> tuple[list[list[int]], list[list[float]]]:
    indices, cosines = [], []
    for query, a in enumerate(vectors.astype(float)):
        scored = []
        for other, b in enumerate(vectors.astype(float)):
            if other != query:
                scored.append((-(a @ b) / np.sqrt((a @ a) * (b @ b)), other))
        best = sorted(scored)[:k]
        indices.append([other for _, other in best])
        cosines.append([-negative for negative, _ in best])
    return indices, cosines


@pytest.mark.parametrize("k", [1, 3, 19])
def test_neighbours_are_those_of_the_loop(k: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    indices, cosines = neighbours(vectors, k)
    expected, expected_cosines = by_hand(vectors, k)
    assert indices.tolist() == expected
    np.testing.assert_allclose(cosines, expected_cosines, atol=1e-12)


def test_blocks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(1).normal(size=(23, 4))
    whole = neighbours(vectors, 5)
    monkeypatch.setattr("headct.embedding.nearest.BLOCK_BYTES", 7 * 23 * 8)
    parts = neighbours(vectors, 5)
    assert np.array_equal(whole[0], parts[0])


def test_equal_vectors_come_in_order_and_length_does_not_count() -> None:
    vectors = np.array([[1.0, 0.0], [2.0, 0.0], [0.5, 0.0], [0.0, 0.0]])
    indices, cosines = neighbours(vectors, 3)
    assert indices[0].tolist() == [1, 2, 3]
    assert cosines[0].tolist() == pytest.approx([1.0, 1.0, 0.0])


@pytest.mark.parametrize("k", [1, 4, 7, 18])
def test_of_many_equal_ones_the_first_are_taken(k: int) -> None:
    """Axes and their opposites, whose cosines are exact: most are equal, and k falls among them."""
    generator = np.random.default_rng(2)
    vectors = np.eye(3)[generator.integers(0, 3, 19)] * generator.choice([-1.0, 1.0], (19, 1))
    assert neighbours(vectors, k)[0].tolist() == by_hand(vectors, k)[0]


def test_memory_stays_within_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many vectors there are: all the cosines of these would be 72 MB."""
    monkeypatch.setattr("headct.embedding.nearest.BLOCK_BYTES", 2**20)
    vectors = np.random.default_rng(3).normal(size=(3000, 4))
    tracemalloc.start()
    neighbours(vectors, 2)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 3 * 2**20


@pytest.mark.parametrize("k", [0, 4])
def test_more_neighbours_than_others_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.3"):
        neighbours(np.ones((4, 2)), k)
