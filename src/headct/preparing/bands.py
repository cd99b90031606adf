"""One-dimensional linear operators whose rows look at few neighbouring samples, applied by small dense products."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import spline_filter1d

OUTPUTS_PER_BLOCK = 16
"""The fastest of 16 to 256: larger blocks hold more of what lies beside the band."""

EDGE = 12
"""Samples by which SciPy (`map_coordinates`, mode `nearest`) repeats the edge before the spline prefilter."""


@dataclass(frozen=True)
class Band:
    """A matrix (outputs, inputs) in blocks: which outputs, of which inputs, by which weights."""

    outputs: int
    blocks: tuple[tuple[slice, slice, np.ndarray], ...]

    @classmethod
    def of(cls, matrix: np.ndarray, negligible: float = 1e-8) -> Band:
        """Cut a dense matrix into blocks, leaving out what lies beyond the last weight that is not negligible."""
        blocks = []
        for start in range(0, len(matrix), OUTPUTS_PER_BLOCK):
            outputs = slice(start, min(start + OUTPUTS_PER_BLOCK, len(matrix)))
            (used,) = np.nonzero(np.any(np.abs(matrix[outputs]) > negligible, axis=0))
            inputs = slice(int(used[0]), int(used[-1]) + 1)
            blocks.append((outputs, inputs, matrix[outputs, inputs].astype(np.float32)))
        return cls(len(matrix), tuple(blocks))

    def down(self, samples: np.ndarray) -> np.ndarray:
        """Along the first axis of float32 (inputs, m): (outputs, m)."""
        result = np.empty((self.outputs, samples.shape[1]), dtype=np.float32)
        for outputs, inputs, weights in self.blocks:
            np.matmul(weights, samples[inputs], out=result[outputs])
        return result

    def across(self, samples: np.ndarray) -> np.ndarray:
        """Along the second axis of float32 (m, inputs): (m, outputs)."""
        result = np.empty((len(samples), self.outputs), dtype=np.float32)
        for outputs, inputs, weights in self.blocks:
            result[:, outputs] = samples[:, inputs] @ weights.T
        return result


def linear(positions: np.ndarray, size: int) -> np.ndarray:
    """Matrix (positions, size) of linear interpolation; beyond the edges, their value."""
    positions = np.clip(positions, 0, size - 1)
    before = np.minimum(positions.astype(np.intp), max(size - 2, 0))
    share = positions - before
    matrix = np.zeros((len(positions), size))
    matrix[np.arange(len(positions)), before] = 1 - share
    matrix[np.arange(len(positions)), np.minimum(before + 1, size - 1)] += share
    return matrix


def cubic(positions: np.ndarray, size: int) -> np.ndarray:
    """Matrix (positions, size) of cubic B-spline interpolation with its prefilter; the edge value goes on beyond it.

    The same numbers as `scipy.ndimage.map_coordinates(..., order=3, mode="nearest")` along one axis.
    """
    indices, weights = _four_weights(positions, size)
    coefficients = spline_coefficients(size)
    return sum((weights[:, [tap]] * coefficients[indices[:, tap]] for tap in range(4)), np.zeros(1))


@lru_cache(maxsize=8)
def spline_coefficients(size: int) -> np.ndarray:
    """Matrix (size + 2 EDGE, size) from samples to B-spline coefficients, beyond the edges too; read-only."""
    samples = np.pad(np.eye(size), ((EDGE, EDGE), (0, 0)), mode="edge")
    matrix = spline_filter1d(samples, order=3, axis=0, mode="nearest")
    matrix.flags.writeable = False
    return matrix


def cubic_taps(positions: np.ndarray, size: int) -> np.ndarray:
    """Matrix (positions, size + 2 EDGE) of the four B-spline weights of each position, for `spline_coefficients`."""
    indices, weights = _four_weights(positions, size)
    matrix = np.zeros((len(positions), size + 2 * EDGE))
    np.add.at(matrix, (np.arange(len(positions))[:, None], indices), weights)
    return matrix


def _four_weights(positions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of coefficients and their weights, (positions, 4) both."""
    last = size + 2 * EDGE - 1
    positions = np.clip(positions + EDGE, 0, last)
    before = np.floor(positions).astype(np.intp)
    t = positions - before
    weights = ((1 - t) ** 3 / 6, 2 / 3 - t**2 + t**3 / 2, 2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2, t**3 / 6)
    return np.clip(before[:, None] + np.arange(-1, 3), 0, last), np.stack(weights, axis=1)


def area(outputs: int, size: int) -> np.ndarray:
    """Matrix (outputs, size) of averages over the samples that each output touches.

    Output i averages samples floor(i n / outputs) to ceil((i + 1) n / outputs) - 1: adaptive average pooling.
    """
    matrix = np.zeros((outputs, size))
    for output in range(outputs):
        first, last = output * size // outputs, -(-(output + 1) * size // outputs)
        matrix[output, first:last] = 1 / (last - first)
    return matrix
