"""A prepared head as another scan of it might look: noise, kernel, slices, position."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from headct.failure import Misuse
from headct.pretraining.views import View, rescanned
from headct.scan import AIR_HU


@dataclass(frozen=True)
class Kind:
    """What is changed, in words and unit, and by how much."""

    words: str
    unit: str
    sizes: tuple[float, ...]


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "noise": Kind("white noise is added, standard deviation", "HU", (5, 10, 20)),
        "soft": Kind("a softer kernel, sigma in the plane", "mm", (0.5, 1, 2)),
        "sharp": Kind("a sharper kernel, how much of what a blur takes away is added", "", (0.5, 1, 2)),
        "energy": Kind("all that is denser than water is stretched, as by another tube voltage, by", "%", (2, 5, 10)),
        "thick": Kind("slices are averaged over", "mm", (3, 5, 10)),
        "shift": Kind("the head lies elsewhere in the array, by", "mm", (2, 5, 10)),
        "turn": Kind("the head is turned about a random axis, by", "°", (2, 5, 10)),
    }
)
"""By name. Sizes are those from barely seen to more than a protocol would change."""


@dataclass(frozen=True)
class Change:
    """One of `KINDS` by a size in its unit. Raises Misuse for another kind, or a size that is not above 0."""

    kind: str
    size: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise Misuse(f"there is no change {self.kind!r}", do=f"name one of {', '.join(KINDS)}")
        if not (np.isfinite(self.size) and self.size > 0):
            raise Misuse(f"the size of {self.kind} must be above 0, got {self.size:g}")

    @property
    def words(self) -> str:
        """Such as `noise 5 HU`."""
        return f"{self.kind} {self.size:g} {KINDS[self.kind].unit}".strip()


def all_changes() -> tuple[Change, ...]:
    """Every kind by each of its sizes."""
    return tuple(Change(name, size) for name, kind in KINDS.items() for size in kind.sizes)


def changed(hu: np.ndarray, spacing_mm: np.ndarray, change: Change, scan_id: str, seed: int = 0) -> np.ndarray:
    """The head `hu` (X, Y, Z) int16, RAS, voxels of `spacing_mm` (3,), after a change; a new int16 array.

    What is random (noise, direction) is decided by the scan and the seed, the same for every size of a kind.
    """
    rng = np.random.default_rng((seed, zlib.crc32(f"{scan_id}/{change.kind}".encode())))
    if change.kind in ("shift", "turn"):
        return _moved(hu, spacing_mm, change, rng)
    if change.kind == "energy":
        densest = np.iinfo(np.int16).max
        before = np.array([AIR_HU, 0.0, densest])
        return _whole(along_curve(hu, before, before * [1, 1, 1 + change.size / 100]))
    along, across = float(spacing_mm[:2].mean()), float(spacing_mm[2])
    sizes = {"noise_hu": 0.0, "soft_mm": 0.0, "sharp": 0.0, "slice_mm": 0.0}
    size = change.size * along / across if change.kind == "thick" else change.size  # slabs count in cubes
    sizes[{"noise": "noise_hu", "soft": "soft_mm", "sharp": "sharp", "thick": "slice_mm"}[change.kind]] = size
    view = View(
        centre_mm=(0.0, 0.0, 0.0),
        voxel_mm=along,
        angles_deg=(0.0, 0.0, 0.0),
        mirrored=False,
        scale_hu=1.0,
        shift_hu=0.0,
        noise_seed=int(rng.integers(2**62)),
        level=0.0,
        width=1.0,
        **sizes,
    )
    other = rescanned(torch.from_numpy(hu.astype(np.float32))[None], [view])[0].numpy()
    return _whole(other)


def along_curve(values: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Values on a curve through points: `before` (n,), rising, become `after` (n,), linearly between; flat beyond."""
    return np.interp(values, before, after).astype(np.float32)


def _moved(hu: np.ndarray, spacing_mm: np.ndarray, change: Change, rng: np.random.Generator) -> np.ndarray:
    """Shifted, or turned about the middle of the array, by cubic splines; air comes in from outside.

    Between voxels trilinear interpolation would blur as well, and a shift would be taken for a softer kernel.
    """
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    if change.kind == "shift":
        matrix, moved = np.eye(3), change.size * axis / spacing_mm
    else:
        turn = Rotation.from_rotvec(np.deg2rad(change.size) * axis).as_matrix()
        matrix = turn * spacing_mm / spacing_mm[:, None]
        middle = (np.array(hu.shape) - 1) / 2
        moved = middle - matrix @ middle
    other = affine_transform(hu.astype(np.float32), matrix, offset=moved, order=3, cval=AIR_HU)
    return _whole(other)


def _whole(hu: np.ndarray) -> np.ndarray:
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(hu), limits.min, limits.max).astype(np.int16)
