"""What a head looks like where nothing is to be seen: the ground against which an answer is explained.

Air instead of tissue would tell an encoder something that no head has, and dense tissue would seem to matter most
because it changes most. So soft tissue becomes as dense as most of it, and bone keeps its place and loses its detail.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_closing, gaussian_filter

SOFT_HU = (-20, 120)
BONE_HU = 250
HEAD_HU = -300
"""Denser than this is no air."""
BONE_MM = 6.0
"""Sigma over which bone is averaged: a fracture is a few millimetres wide, and the vault changes over centimetres."""
GAP_MM = 4.0
"""Gaps in bone up to twice as wide count as bone, so that fractures are evened out with it."""


def evened_head(hu: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """The head `hu` (X, Y, Z) int16 without anything to be found: soft tissue its median, bone its local mean.

    Blood, infarcts, tumours, ventricles and sulci vanish, and so do fractures. Air, fat and what lies between soft
    tissue and bone stay. `spacing_mm` is that of the voxels.
    """
    even = hu.astype(np.float32)
    bone = _closed(hu > BONE_HU, spacing_mm)
    soft = (hu >= SOFT_HU[0]) & (hu <= SOFT_HU[1]) & ~bone
    if soft.any():
        even[soft] = np.median(hu[soft])
    sigma = [BONE_MM / float(mm) for mm in spacing_mm]
    dense = hu > BONE_HU
    share = gaussian_filter(dense.astype(np.float32), sigma, mode="constant")
    around = gaussian_filter(np.where(dense, hu, 0).astype(np.float32), sigma, mode="constant")
    known = bone & (share > 1e-3)
    even[known] = around[known] / share[known]
    return np.rint(even).astype(hu.dtype)


def _closed(bone: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Bone, (X, Y, Z) bool, with its narrow gaps."""
    reach = [int(GAP_MM // float(mm)) for mm in spacing_mm]
    ball = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1) * np.array(spacing_mm)
    around = tuple((r, r) for r in reach)
    padded = np.pad(bone, around, mode="edge")  # bone that touches the border goes on beyond it
    closed = binary_closing(padded, structure=np.linalg.norm(ball, axis=-1) <= GAP_MM)
    return np.asarray(closed[tuple(slice(r, closed.shape[axis] - r) for axis, r in enumerate(reach))] | bone)


def evened_slab(array: np.ndarray, slab: slice) -> np.ndarray:
    """A copy whose slab shows no soft tissue but its median, and the bone that the slices around it have."""
    changed = array.copy()
    inside = changed[:, :, slab]
    soft = (inside >= SOFT_HU[0]) & (inside <= SOFT_HU[1])
    if soft.any():
        inside[soft] = np.round(np.median(inside[soft])).astype(array.dtype)
    neighbours = [index for index in (slab.start - 1, slab.stop) if 0 <= index < array.shape[2]]
    if neighbours:
        around = array[:, :, neighbours].astype(np.float32).mean(axis=2, keepdims=True).round().astype(array.dtype)
        bone = (inside > BONE_HU) | np.broadcast_to(around > BONE_HU, inside.shape)
        inside[bone] = np.broadcast_to(around, inside.shape)[bone]
    return changed
