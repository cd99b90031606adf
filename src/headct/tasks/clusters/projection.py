"""Vectors on a plane: by principal components, or by UMAP where it is installed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, cast, get_args

import numpy as np
from sklearn.decomposition import PCA

from headct.failure import Misuse
from headct.reporting.words import count

Method = Literal["pca", "umap"]
UMAP_NEIGHBOURS = 15
LEAST = 3
"""Fewer points make no map."""


@dataclass(frozen=True)
class Projection:
    """Points (n, 2) and what their axes are. `shares` are the parts of the variance that the two components hold."""

    points: np.ndarray
    axes: tuple[str, str]
    method: Method
    shares: tuple[float, float] | None = None


def method_named(name: str) -> Method:
    """The method of this name. Raises Misuse where there is none."""
    if name not in get_args(Method):
        raise Misuse(f"no map is called {name!r}", do=f"take {' or '.join(get_args(Method))}")
    return cast(Method, name)


def project(vectors: np.ndarray, method: Method = "pca", *, seed: int = 0) -> Projection:
    """Vectors (n, F) on a plane. Components are of the vectors as they are, from their mean.

    Raises Misuse where there are fewer than three, a vector is not finite, all are the same, or UMAP is missing.
    """
    if len(vectors) < LEAST:
        raise Misuse(f"no map can be made of {count(len(vectors), 'vector')}", do=f"give at least {LEAST} scans")
    if not np.isfinite(vectors).all():
        wrong = int((~np.isfinite(vectors).all(axis=1)).sum())
        raise Misuse(f"{wrong:,} of {len(vectors):,} vectors are not finite", do="embed these scans again in fp32")
    exact = vectors.astype(np.float64)
    if not exact.std(axis=0).any():
        raise Misuse("all vectors are the same", why="a map shows how they differ", do="give other scans")
    if method == "umap":
        return Projection(_umap(exact, seed), ("UMAP 1", "UMAP 2"), method)
    components = PCA(min(2, exact.shape[1]), random_state=seed).fit(exact)
    points, shares = components.transform(exact), components.explained_variance_ratio_
    if points.shape[1] == 1:
        points, shares = np.hstack([points, np.zeros_like(points)]), np.append(shares, 0.0)
    first, second = (f"component {number} ({share:.0%})" for number, share in enumerate(shares, start=1))
    return Projection(points, (first, second), method, (float(shares[0]), float(shares[1])))


def _umap(vectors: np.ndarray, seed: int) -> np.ndarray:
    if find_spec("umap") is None:
        raise Misuse(
            "a UMAP needs the package umap-learn", do="run `pip install umap-learn`, or take principal components"
        )
    with warnings.catch_warnings():  # it tells everyone that a part of it, which needs TensorFlow, is not there
        warnings.simplefilter("ignore", ImportWarning)
        from umap import UMAP

    near = min(UMAP_NEIGHBOURS, len(vectors) - 1)
    # Below a dozen points its spectral start has too few vectors.
    start = "spectral" if len(vectors) > 12 else "random"
    made = UMAP(n_neighbors=near, init=start, random_state=seed, n_jobs=1).fit_transform(vectors.astype(np.float32))
    return np.asarray(made, dtype=np.float64)
