"""Maps. Oracle: numpy's singular values, and clusters that lie far apart."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from headct.failure import Misuse
from headct.tasks.clusters import project, projection


def test_components_as_numpy_finds_them() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(60, 8)) * [5, 3, 1, 1, 1, 1, 1, 1] + 7).astype(np.float32)
    found = project(vectors)
    exact = vectors.astype(float) - vectors.astype(float).mean(axis=0)
    left, sizes, _ = np.linalg.svd(exact, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.points), np.abs(left[:, :2] * sizes[:2]), atol=1e-9)
    np.testing.assert_allclose(found.shares, (sizes**2 / (sizes**2).sum())[:2], atol=1e-12)
    assert found.axes[0] == f"component 1 ({found.shares[0]:.0%})"
    np.testing.assert_array_equal(project(vectors).points, found.points)


@pytest.mark.slow
@pytest.mark.timeout(900)  # numba compiles for half a minute of a core first
@pytest.mark.skipif(find_spec("umap") is None, reason="needs umap-learn")
def test_umap_keeps_clusters_apart_and_repeats() -> None:
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], 30)
    vectors = (rng.normal(size=(90, 10)) + 12 * rng.normal(size=(3, 10))[classes]).astype(np.float32)
    found = project(vectors, "umap")
    assert KNeighborsClassifier(3).fit(found.points, classes).score(found.points, classes) == 1
    np.testing.assert_array_equal(project(vectors, "umap").points, found.points)


def test_what_makes_no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(9, 4))
    with pytest.raises(Misuse, match="no map can be made of 2 vectors"):
        project(vectors[:2])
    with pytest.raises(Misuse, match="all vectors are the same"):
        project(np.ones((5, 4)))
    vectors[3, 2] = np.nan
    with pytest.raises(Misuse, match="1 of 9 vectors are not finite"):
        project(vectors)
    with pytest.raises(Misuse, match="no map is called 'tsne'"):
        projection.method_named("tsne")
    monkeypatch.setattr(projection, "find_spec", lambda name: None)
    with pytest.raises(Misuse, match="needs the package umap-learn"):
        project(np.eye(5), "umap")
