"""A mask from a file, and its classes on another grid, where none vanishes altogether."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from headct.failure import Misuse

MOST_POINTS = 4
"""Along each axis of a voxel, at which its class is looked up."""
AT_A_TIME = 1 << 22
"""Voxels whose classes are counted together, so that memory does not grow with the grid."""


def read_mask(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values (I, J, K) as stored and scaled, and the matrix (4, 4) to RAS mm.

    Raises Misuse where there is no such volume.
    """
    image: Any
    try:
        image = nibabel.load(path)
        stored = np.asanyarray(image.dataobj)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError) as error:
        raise Misuse(f"{path} cannot be read as NIfTI", why=str(error), do="export the mask again") from error
    if stored.ndim == 4 and stored.shape[3] == 1:
        stored = stored[..., 0]
    if stored.ndim != 3 or not stored.size:
        raise Misuse(f"{path} has the shape {' x '.join(map(str, stored.shape))}", do="give one 3D label map a scan")
    return stored, np.asarray(image.affine, dtype=float)


def on_grid(
    numbers: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int], target: np.ndarray, outputs: int
) -> np.ndarray:
    """Class numbers on another grid: of each voxel the one that fills most of it, by points within.

    `numbers` (I, J, K) lie by `affine`, the result, of `shape`, by `target`; both matrices may be sheared. Where
    classes fill as much, the later one is taken; what lies outside is background. A class that would vanish, as it
    fills most of no voxel, keeps one.
    """
    to_there = np.linalg.inv(affine) @ target
    points = np.clip(np.ceil(2 * np.abs(to_there[:3, :3]).max(axis=0) - 1e-3), 1, MOST_POINTS).astype(int)
    shifts = list(itertools.product(*((np.arange(n) + 0.5) / n - 0.5 for n in points)))
    planes = max(1, AT_A_TIME // max(1, shape[1] * shape[2]))
    found = np.empty(shape, dtype=np.uint8)
    for begin in range(0, shape[0], planes):
        some = slice(begin, min(begin + planes, shape[0]))
        found[some] = _most_seen(numbers, to_there, some, shape, shifts, outputs)
    _keep_small(numbers, found, np.linalg.inv(to_there))
    return found


def _most_seen(
    numbers: np.ndarray,
    to_there: np.ndarray,
    planes: slice,
    shape: tuple[int, int, int],
    shifts: Sequence[tuple[float, ...]],
    outputs: int,
) -> np.ndarray:
    """The classes of some planes of a grid: of each voxel the one seen at most of the points, by their `shifts`."""
    i, j, k = np.arange(planes.start, planes.stop), np.arange(shape[1]), np.arange(shape[2])
    slab = (len(i), len(j), len(k))
    votes = np.zeros((outputs, len(i) * len(j) * len(k)), dtype=np.uint8)
    everywhere = np.arange(votes.shape[1])
    for shift in shifts:
        at, inside = np.zeros(slab, dtype=np.int64), np.ones(slab, dtype=bool)
        for (x, y, z, start), size in zip(to_there[:3], numbers.shape, strict=True):
            along_i, along_j, along_k = x * (i + shift[0]) + start, y * (j + shift[1]), z * (k + shift[2])
            nearest = np.rint(along_i[:, None, None] + along_j[:, None] + along_k).astype(np.int64)
            inside &= (nearest >= 0) & (nearest < size)
            at = at * size + nearest
        seen = np.where(inside, numbers.ravel()[np.clip(at, 0, numbers.size - 1)], 0).ravel()
        votes[seen, everywhere] += 1
    return (outputs - 1 - votes[::-1].argmax(axis=0)).astype(np.uint8).reshape(slab)


def _keep_small(numbers: np.ndarray, found: np.ndarray, to_found: np.ndarray) -> None:
    """Give, in place, a class that fills most of no voxel the one that holds most of it: what is there stays there."""
    for number in np.setdiff1d(numbers, found):
        places = np.rint(to_found[:3, :3] @ np.array(np.nonzero(numbers == number)) + to_found[:3, 3:]).astype(int)
        places = places[:, ((places >= 0) & (places < np.array(found.shape)[:, None])).all(axis=0)]
        if number and places.size:
            voxels, counts = np.unique(places, axis=1, return_counts=True)
            found[tuple(voxels[:, counts.argmax()])] = number
