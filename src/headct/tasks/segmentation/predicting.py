"""From probabilities on the recipe's grid to classes on the scanner's own, slice by slice, and what they measure.

The scanner's grid is what its images say: tilted, unevenly spaced, in any order. Each voxel takes the class that is
most probable where its centre lies, between the voxels of the prepared array by linear interpolation. Only the chosen
class of a voxel is kept, so beside the scan a class map of one byte a voxel and one slice of probabilities are held.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headct.scan import Scan


def drawn_on(scan: Scan, probabilities: Tensor, affine: np.ndarray) -> np.ndarray:
    """Class numbers uint8 (slices, rows, cols) of a scan, from probabilities (K, X, Y, Z) of its prepared array.

    `affine` (4, 4) is that of the array. What the array does not hold is background.
    """
    found = np.zeros(scan.hu.shape, dtype=np.uint8)
    span = _span(probabilities)
    if span is None:
        return found
    to_voxel = np.linalg.inv(affine)
    down, across = to_voxel[:3, :3] @ scan.row_step_mm, to_voxel[:3, :3] @ scan.col_step_mm
    shape = np.array(probabilities.shape[1:])
    for index, origin in enumerate(scan.origins_mm):
        first = to_voxel[:3, :3] @ origin + to_voxel[:3, 3]
        box = _box(first, down, across, scan.hu.shape[1:], span)
        if box is None:
            continue
        rows, cols = (np.arange(side.start, side.stop) for side in box)
        places = first + rows[:, None, None] * down + cols[:, None] * across
        inside = np.all((places >= -0.5) & (places <= shape - 0.5), axis=-1)
        scaled = 2 * places / np.maximum(shape - 1, 1) - 1
        at = torch.from_numpy(scaled[None, None, ..., ::-1].astype(np.float32).copy()).to(probabilities.device)
        seen = F.grid_sample(probabilities[None], at, padding_mode="border", align_corners=True)
        found[(index, *box)] = np.where(inside, seen[0, :, 0].argmax(dim=0).cpu().numpy(), 0)
    return found


def _span(probabilities: Tensor) -> np.ndarray | None:
    """First and last voxel (2, 3) of the array between which something can be drawn; None where nothing is.

    Interpolation between voxels of which each is background most probably gives background.
    """
    drawn = (probabilities.argmax(dim=0) > 0).cpu().numpy()
    along = [np.flatnonzero(drawn.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not len(along[0]):
        return None
    return np.array([[some[0] - 1 for some in along], [some[-1] + 1 for some in along]], dtype=float)


def _box(
    first: np.ndarray, down: np.ndarray, across: np.ndarray, shape: Sequence[int], span: np.ndarray
) -> tuple[slice, slice] | None:
    """Rows and columns of a slice between which something can be drawn, if any."""
    rows, cols = shape
    low, high = np.array([0.0, 0.0]), np.array([rows - 1.0, cols - 1.0])
    for axis in range(3):  # each axis cuts the rectangle; it is made smaller by interval arithmetic
        for which, (step, other) in enumerate(((down, across), (across, down))):
            ends = other[axis] * np.array([low[1 - which], high[1 - which]])
            if abs(step[axis]) < 1e-9:
                if first[axis] + ends.max() < span[0, axis] or first[axis] + ends.min() > span[1, axis]:
                    return None
                continue
            reach = np.sort(
                [(span[0, axis] - first[axis] - end) / step[axis] for end in ends]
                + [(span[1, axis] - first[axis] - end) / step[axis] for end in ends]
            )
            low[which], high[which] = max(low[which], reach[0]), min(high[which], reach[-1])
            if low[which] > high[which]:
                return None
    start, stop = np.maximum(np.floor(low), 0).astype(int), np.minimum(np.ceil(high) + 1, [rows, cols]).astype(int)
    return slice(int(start[0]), int(stop[0])), slice(int(start[1]), int(stop[1]))


def volumes_ml(numbers: np.ndarray, voxel_ml: np.ndarray | float, classes: Sequence[str]) -> dict[str, float]:
    """Millilitres of each class of a map (slices, ...); `voxel_ml` is that of all voxels, or (slices,) of each slice's.

    Of voxels that a class fills by most; what it fills of others is not counted, nor what others fill of its own.
    """
    of_slice = np.broadcast_to(np.asarray(voxel_ml, dtype=float), (len(numbers),))
    counts = np.stack([np.bincount(one.ravel(), minlength=len(classes) + 1) for one in numbers])
    return dict(zip(classes, (of_slice @ counts)[1:].tolist(), strict=True))


def slice_voxels_ml(scan: Scan) -> np.ndarray:
    """(slices,) millilitres of a voxel: each slice stands for the space half-way to its neighbours.

    The outermost slices stand for as much beyond as towards their neighbour; a single one for its thickness.
    """
    gaps = scan.gaps_mm
    if not len(gaps):
        along = np.array([scan.thickness_mm])
    else:
        along = (np.concatenate([gaps[:1], gaps]) + np.concatenate([gaps, gaps[-1:]])) / 2
    area_mm2 = float(np.linalg.norm(np.cross(scan.row_step_mm, scan.col_step_mm)))
    return along * area_mm2 / 1000
