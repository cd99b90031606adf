"""From probabilities on the recipe's grid to classes on the scanner's own, slice by slice, and what they measure.

The scanner's grid is what its images say: tilted, unevenly spaced, in any order. Each voxel takes the class that is
most probable where its centre lies, between the voxels of the prepared array by linear interpolation. Only the chosen
class of a voxel is kept. Probabilities come in slabs along the axis that the scanner's slices cross most steeply, and
are held until the last slice that needs them was drawn: a few planes, or, of a tilted scan, as many as a slice spans.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headct.scan import Scan
from headct.tasks.segmentation.windows import Probabilities, most_probable


def on_both_grids(scan: Scan, probabilities: Probabilities, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers uint8 of a scan: (slices, rows, cols), and (X, Y, Z) on the grid of its prepared array.

    `probabilities` are of the prepared array, and `affine` (4, 4) is its. What it does not hold is background.
    """
    found = np.zeros(scan.hu.shape, dtype=np.uint8)
    numbers = np.zeros(probabilities.shape, dtype=np.uint8)
    to_voxel = np.linalg.inv(affine)
    down, across = to_voxel[:3, :3] @ scan.row_step_mm, to_voxel[:3, :3] @ scan.col_step_mm
    firsts = scan.origins_mm @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    low, high = _extent(down, across, scan.hu.shape[1:])
    along = int(((high - low) / probabilities.shape).argmin())
    first_plane = np.maximum(np.floor(firsts + low)[:, along], 0).astype(int)
    past_plane = np.minimum(np.floor(firsts + high)[:, along] + 2, probabilities.shape[along]).astype(int)
    waiting = [index for index in np.argsort(past_plane, kind="stable") if first_plane[index] < past_plane[index]]
    held: list[tuple[int, Tensor]] = []  # first plane, planes
    there = 0
    for slab in probabilities.slabs(along):
        planes = slice(there, there + slab.shape[1 + along])
        numbers[_along(planes, along)] = most_probable(slab)
        held.append((there, slab))
        there = planes.stop
        while waiting and past_plane[waiting[0]] <= there:
            index = waiting.pop(0)
            begin, end = int(first_plane[index]), int(past_plane[index])
            span = _span(numbers[_along(slice(begin, end), along)], along, begin)
            box = None if span is None else _box(firsts[index], down, across, scan.hu.shape[1:], span)
            if box is not None:
                at = _places(firsts[index], down, across, box)
                found[(index, *box)] = _drawn(held, at, probabilities.shape, along, begin, end)
        needed = min((int(first_plane[index]) for index in waiting), default=there)
        held = _trimmed(held, along, needed)
        del slab  # so that its memory is let go before the next one is made
    return found, numbers


def _drawn(
    held: Sequence[tuple[int, Tensor]], places: np.ndarray, shape: Sequence[int], along: int, begin: int, end: int
) -> np.ndarray:
    """Class numbers (rows, cols) at places that need the planes from `begin` to before `end` of what is held.

    A function of its own, so that no view of a slab outlives it and keeps the slab in memory beside the next one.
    """
    parts = _cut(held, along, begin, end)
    some = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1 + along)
    return _most_probable_at(some, places, np.array(shape), along, begin)


def _extent(down: np.ndarray, across: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """From the first voxel of a slice to the lowest and the highest voxel (3,) that its corners have on each axis."""
    corners = np.array([row * down + col * across for row in (0, shape[0] - 1) for col in (0, shape[1] - 1)])
    return corners.min(axis=0), corners.max(axis=0)


def _along(planes: slice, along: int) -> tuple[slice, ...]:
    """The index of planes along an axis of (X, Y, Z)."""
    return tuple(planes if axis == along else slice(None) for axis in range(3))


def _cut(held: Sequence[tuple[int, Tensor]], along: int, begin: int, end: int) -> list[Tensor]:
    """What is held of the planes from `begin` to before `end`."""
    parts = []
    for first, part in held:
        low, high = max(begin - first, 0), min(end - first, part.shape[1 + along])
        if low < high:
            parts.append(part.narrow(1 + along, low, high - low))
    return parts


def _trimmed(held: Sequence[tuple[int, Tensor]], along: int, needed: int) -> list[tuple[int, Tensor]]:
    """What is held without the planes before `needed`, whose memory is let go."""
    kept = []
    for first, part in held:
        past = first + part.shape[1 + along]
        if past > needed:
            whole = first >= needed
            kept.append((first, part) if whole else (needed, _cut([(first, part)], along, needed, past)[0].clone()))
    return kept


def _places(first: np.ndarray, down: np.ndarray, across: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    """Where the pixels of a part of a slice lie, (rows, cols, 3), in voxels."""
    rows, cols = (np.arange(side.start, side.stop) for side in box)
    return first + rows[:, None, None] * down + cols[:, None] * across


def _most_probable_at(some: Tensor, places: np.ndarray, shape: np.ndarray, along: int, begin: int) -> np.ndarray:
    """Class numbers (rows, cols) at places, from probabilities of planes from `begin` of an array of `shape`."""
    inside = np.all((places >= -0.5) & (places <= shape - 0.5), axis=-1)
    places = places - np.where(np.arange(3) == along, begin, 0)
    scaled = 2 * places / np.maximum(np.array(some.shape[1:]) - 1, 1) - 1
    at = torch.from_numpy(scaled[None, None, ..., ::-1].astype(np.float32).copy()).to(some.device)
    seen = F.grid_sample(some[None], at, padding_mode="border", align_corners=True)
    return np.where(inside, seen[0, :, 0].argmax(dim=0).cpu().numpy(), 0)


def _span(numbers: np.ndarray, along: int, begin: int) -> np.ndarray | None:
    """First and last voxel (2, 3) between which something can be drawn; None where nothing is.

    `numbers` are the most probable classes of planes from `begin` along an axis. Interpolation between voxels of which
    each is background most probably gives background.
    """
    drawn = numbers > 0
    seen = [np.flatnonzero(drawn.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not len(seen[0]):
        return None
    span = np.array([[some[0] - 1 for some in seen], [some[-1] + 1 for some in seen]], dtype=float)
    span[:, along] += begin
    return span


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
