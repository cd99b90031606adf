"""Distances between the surfaces of two masks in mm, on a grid whose axes are perpendicular.

The surface of a mask are its voxels that have a neighbour outside along an axis; beyond the grid is outside. The same
definition as MONAI's, which is the oracle of the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt


@dataclass(frozen=True)
class Apart:
    """Distances of every surface voxel of one mask to the nearest one of the other, both ways; neither is empty."""

    found_mm: np.ndarray  # (n,) from what was found to the truth
    true_mm: np.ndarray  # (m,) from the truth to what was found

    def hausdorff_95_mm(self) -> float:
        """The larger of both 95th percentiles."""
        return float(max(np.percentile(self.found_mm, 95), np.percentile(self.true_mm, 95)))

    def average_mm(self) -> float:
        """The mean over both surfaces."""
        return float(np.concatenate([self.found_mm, self.true_mm]).mean())

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces that lies within a tolerance of the other (normalised surface Dice)."""
        within = (self.found_mm <= tolerance_mm).sum() + (self.true_mm <= tolerance_mm).sum()
        return float(within) / (len(self.found_mm) + len(self.true_mm))


def apart(found: np.ndarray, true: np.ndarray, spacing_mm: Sequence[float]) -> Apart:
    """From two masks (X, Y, Z) bool, neither of them empty."""
    either = np.nonzero(found | true)
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in either)
    edges = [np.pad(mask[box], 1) for mask in (found, true)]
    edges = [mask & ~binary_erosion(mask) for mask in edges]
    to_found, to_true = (distance_transform_edt(~edge, sampling=spacing_mm) for edge in edges)
    return Apart(np.asarray(to_true[edges[0]]), np.asarray(to_found[edges[1]]))
