"""Smooth noise: on the coarse grid of one head, and on an endless periodic tile for what is finer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from headct.virtual.interpolation import Grid
from headct.virtual.places import turned

TILE = 48
"""Voxels along each edge of the tile; its noise repeats after as many."""

TILE_SIGMA = 1.5
"""Smoothness of the tile, in its voxels: one blob is about four voxels wide."""


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Gaussian noise float32 of unit variance, smooth over `sigma` grid steps along the last three axes."""
    white = rng.standard_normal(shape, dtype=np.float32)
    blur = (0.0,) * (len(shape) - 3) + (sigma,) * 3
    smooth = gaussian_filter(white, blur, mode="wrap")
    return smooth / smooth.std(axis=(-3, -2, -1), keepdims=True)


@cache
def _tiles() -> tuple[Grid, Grid]:
    """Two of them, (TILE + 1, ...) with the first planes repeated at the end, the same in every process."""
    noise = smooth_noise(np.random.default_rng(20250205), (2, TILE, TILE, TILE), TILE_SIGMA)
    first, second = np.pad(noise, ((0, 0), (0, 1), (0, 1), (0, 1)), mode="wrap")[..., None]
    return Grid(first, (0, 0, 0), (1, 1, 1)), Grid(second, (0, 0, 0), (1, 1, 1))


def tiled_noise(points_mm: torch.Tensor, blob_mm: float, shift: Sequence[float], *, tile: int = 0) -> torch.Tensor:
    """Noise (n,) of unit variance at points (n, 3), with blobs of `blob_mm`; `shift` (3,) in 0..1 moves it.

    It repeats after 12 blobs along directions that are skew to the axes of the head. There are two, `tile` 0 and 1,
    which have nothing to do with each other.
    """
    skew = points_mm.new_tensor(_SKEW.T * (4.0 / blob_mm / TILE))
    place = turned(points_mm, skew) + points_mm.new_tensor(tuple(shift))
    return _tiles()[tile].sample(place - place.floor())[0]


_SKEW = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0].astype(np.float32)
"""A rotation, so that no repetition lies along an axis of the head."""
