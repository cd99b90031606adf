"""Where brain and fluid lie, found from Hounsfield values alone, so that scans without any truth can be used.

A rule, not a segmentation: it has to be right for most of the cavity, and to leave out face and neck.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BONE_HU = 250.0
"""Denser than this is bone, also where a thin one fills half of a voxel of 4 mm."""

SOFT_HU = (-20.0, 100.0)
"""Between them lie fluid, brain and blood; fat lies below, and voxels that bone shares above."""

SIDES = 5
"""From so many of the six directions of the axes bone must lie before a place: the skull base may be cut off."""

COARSE_MM = 8.0
NARROW_MM = 16.0
"""What a cube of twice this length, and a cell of `COARSE_MM` besides, does not fit into is muscle, not brain."""

TYPICAL_HU = (20.0, 50.0)
"""The level of a scan is the mean of what lies between them in the cavity."""


def cavity(hu: Tensor, voxel_mm: float) -> Tensor:
    """Voxels (B, x, y, z) that are soft, enclosed by bone and part of something wide, from HU (B, x, y, z).

    Bone must lie in at least `SIDES` of six directions. On a grid of about `COARSE_MM` the soft and enclosed cells are
    eroded by `NARROW_MM` and what is left grows back within them, by one cell more.
    """
    within = (hu > SOFT_HU[0]) & (hu < SOFT_HU[1]) & (enclosed(hu > BONE_HU) >= SIDES)
    side = max(1, round(COARSE_MM / voxel_mm))
    shape = hu.shape[1:]
    padded = F.pad(within.float()[:, None], [length for n in reversed(shape) for length in (0, -n % side)])
    shares = F.avg_pool3d(padded, side)
    steps = round(NARROW_MM / (side * voxel_mm))
    cells = shares[:, 0] > 0.1
    wide = shares[:, 0] > 0.5
    for _ in range(steps):
        wide = shrunk(wide)
    for _ in range(steps + 1):
        wide = grown(wide) & cells
    finer = wide.repeat_interleave(side, 1).repeat_interleave(side, 2).repeat_interleave(side, 3)
    return within & finer[:, : shape[0], : shape[1], : shape[2]]


def enclosed(bone: Tensor) -> Tensor:
    """In how many of the six directions of the axes bone lies before each voxel, from bone (B, x, y, z)."""
    sides = torch.zeros(bone.shape, dtype=torch.int16, device=bone.device)
    for axis in (1, 2, 3):
        before = bone.cumsum(axis, dtype=torch.int16)
        sides += (before > 0).to(torch.int16)
        sides += (before < before.narrow(axis, bone.shape[axis] - 1, 1)).to(torch.int16)
    return sides


def level_hu(hu: Tensor, inside: Tensor) -> Tensor:
    """The mean (B,) of brain-like values in the cavity: scanners differ by several HU."""
    typical = (inside & (hu > TYPICAL_HU[0]) & (hu < TYPICAL_HU[1])).flatten(1)
    return (hu.flatten(1) * typical).sum(dim=1) / typical.sum(dim=1).clamp(min=1)


def depth(inside: Tensor, most: int) -> Tensor:
    """How many voxels deep each voxel (B, x, y, z) lies inside, int16; 0 outside, 1 at the rim, no more than `most`.

    The distance is that of a chess king, in three dimensions.
    """
    left, deep = inside, inside.to(torch.int16)
    for _ in range(most - 1):
        left = shrunk(left)
        deep += left.to(torch.int16)
    return deep


def shrunk(mask: Tensor) -> Tensor:
    """The mask (B, x, y, z) without its outermost voxels: those with a neighbour outside, also across a corner.

    Three shifts for each axis: far faster on a processor than pooling.
    """
    for axis in (1, 2, 3):
        padding = [0] * 6
        padding[6 - 2 * axis] = padding[7 - 2 * axis] = 1
        padded, n = F.pad(mask, padding), mask.shape[axis]
        mask = mask & padded.narrow(axis, 0, n) & padded.narrow(axis, 2, n)
    return mask


def grown(mask: Tensor) -> Tensor:
    """The mask (B, x, y, z) with all neighbours of its voxels, also across a corner."""
    for axis in (1, 2, 3):
        padding = [0] * 6
        padding[6 - 2 * axis] = padding[7 - 2 * axis] = 1
        padded, n = F.pad(mask, padding), mask.shape[axis]
        mask = mask | padded.narrow(axis, 0, n) | padded.narrow(axis, 2, n)
    return mask
