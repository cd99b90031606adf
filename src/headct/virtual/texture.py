"""Smooth noise: on the coarse grid of one head, and on an endless periodic tile for what is finer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

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
def _tile(channels: int) -> torch.Tensor:
    """(1, channels, TILE + 1, ...) with the first planes repeated at the end, the same in every process."""
    noise = smooth_noise(np.random.default_rng(20250205), (channels, TILE, TILE, TILE), TILE_SIGMA)
    wrapped = np.pad(noise, ((0, 0), (0, 1), (0, 1), (0, 1)), mode="wrap")
    return torch.from_numpy(wrapped)[None].contiguous(memory_format=torch.channels_last_3d)


def tiled_noise(points_mm: torch.Tensor, blob_mm: float, shift: Sequence[float], channels: int = 2) -> torch.Tensor:
    """Noise (channels, n) of unit variance at points (n, 3), with blobs of `blob_mm`; `shift` (3,) in 0..1 moves it.

    It repeats after 12 blobs along directions that are skew to the axes of the head.
    """
    skew = points_mm.new_tensor(_SKEW.T * (4.0 / blob_mm / TILE))
    place = points_mm @ skew + points_mm.new_tensor(tuple(shift))
    place = (place - place.floor()) * 2 - 1
    tile = _tile(channels)
    return F.grid_sample(tile, place[None, None, None], align_corners=True)[0, :, 0, 0]


_SKEW = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0].astype(np.float32)
"""A rotation, so that no repetition lies along an axis of the head."""
