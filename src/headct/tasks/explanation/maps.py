"""Maps: how much each voxel speaks for a finding, by which method, and how the values of tokens become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy.ndimage import map_coordinates

from headct.encoders import Lattice

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "occlusion": "what the score loses where the head is evened out, box by box",
        "rollout": "from which patches the encoder's attention has gathered what it pools; the same for all findings",
        "gradients": "integrated gradients from the evened-out head to the scan",
    }
)
"""By name, what a map says."""


@dataclass(frozen=True)
class Map:
    """How much each voxel speaks for a finding, (X, Y, Z) float32, in the unit of its method; below 0 against it.

    `finding` is empty where the map is the same for all.
    """

    method: str
    finding: str
    values: np.ndarray

    def peak(self, domain: np.ndarray) -> tuple[int, int, int]:
        """The voxel with the highest value among those of `domain` (X, Y, Z) bool; of a plateau one in its middle."""
        highest = np.argwhere(domain & (self.values >= self.values[domain].max()))
        middle = highest[np.argmin(np.linalg.norm(highest - highest.mean(axis=0), axis=1))]
        x, y, z = middle.tolist()
        return x, y, z


def over_voxels(tokens: np.ndarray, lattice: Lattice, shape: Sequence[int]) -> np.ndarray:
    """Values of tokens (nx, ny, nz) at every voxel (X, Y, Z) float32: linear between middles, constant beyond."""
    axes = [(np.arange(n) - first) / step for n, first, step in zip(shape, lattice.first, lattice.step, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"))
    return np.asarray(map_coordinates(tokens.astype(np.float32), places, order=1, mode="nearest"), dtype=np.float32)
