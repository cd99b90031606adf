"""Overlapping patches of a volume: where they begin, and how what is known of each becomes a map again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST_WEIGHT = 1e-3
"""Of a patch at its corners, so that a voxel that only corners reach has a value too."""


def starts(shape: Sequence[int], patch: Sequence[int], overlap: float) -> np.ndarray:
    """First voxels (n, 3) of patches that cover a volume of `shape`, the third axis fastest.

    Each begins (1 - overlap) of its edge, in whole voxels, after the one before; the last may reach beyond the volume.
    """
    axes = [_starts_along(n, edge, overlap) for n, edge in zip(shape, patch, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def counts(shape: Sequence[int], patch: Sequence[int], overlap: float) -> tuple[int, int, int]:
    """How many of these patches there are along each axis."""
    x, y, z = (len(_starts_along(n, edge, overlap)) for n, edge in zip(shape, patch, strict=True))
    return x, y, z


def step(edge: int, overlap: float) -> int:
    """Voxels from one patch to the next."""
    return max(1, int(round(edge * (1 - overlap), 6)))


def _starts_along(size: int, edge: int, overlap: float) -> np.ndarray:
    stride = step(edge, overlap)
    return np.arange(1 + -(-max(size - edge, 0) // stride)) * stride


def cut_out(volume: np.ndarray, start: Sequence[int], patch: Sequence[int], fill: float) -> np.ndarray:
    """The patch of `volume` (..., X, Y, Z) that begins at `start`, which may lie outside; `fill` lies around."""
    found = np.full((*volume.shape[:-3], *patch), fill, dtype=volume.dtype)
    (x, y, z), (i, j, k) = _meeting(start, patch, volume.shape[-3:])
    found[..., i, j, k] = volume[..., x, y, z]
    return found


def _meeting(start: Sequence[int], patch: Sequence[int], shape: Sequence[int]) -> tuple[list[slice], list[slice]]:
    """Where a patch and a volume overlap: slices of the volume, and of the patch."""
    of_volume, of_patch = [], []
    for first, edge, size in zip(start, patch, shape, strict=True):
        low, high = max(first, 0), min(first + edge, size)
        of_volume.append(slice(low, max(high, low)))
        of_patch.append(slice(low - first, max(high, low) - first))
    return of_volume, of_patch


def gaussian_weight(patch: Sequence[int]) -> np.ndarray:
    """Weights of the voxels of a patch: 1 in the middle, a Gaussian whose sigma is half the edge along each axis."""
    weight = np.ones(())
    for edge in patch:
        offsets = np.arange(edge) - (edge - 1) / 2
        weight = np.multiply.outer(weight, np.exp(-0.5 * (offsets / (edge / 2)) ** 2))
    return np.maximum(weight, LEAST_WEIGHT)


def blended(
    values: np.ndarray, begins: np.ndarray, patch: Sequence[int], shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The map (X, Y, Z) of `values` (n,), one for each patch, and the summed weights (X, Y, Z) that it was divided by.

    A weighted mean where patches overlap: a value that all patches share is that value everywhere. NaN where no patch
    lies.
    """
    weight = gaussian_weight(patch)
    total, weights = np.zeros(tuple(shape)), np.zeros(tuple(shape))
    for value, begin in zip(values, begins, strict=True):
        inside, part = map(tuple, _meeting(begin, patch, shape))
        total[inside] += value * weight[part]
        weights[inside] += weight[part]
    with np.errstate(invalid="ignore"):
        return total / np.where(weights > 0, weights, np.nan), weights
