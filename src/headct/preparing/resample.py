"""From the scanner's own grid, tilted and unevenly spaced as it may be, onto an upright RAS grid, in one step.

The value at a point p is linear interpolation between the two slices that enclose it, each sampled where p projects
onto it along the slice normal; within a slice, linear interpolation between pixels. Where samples lie closer together
than the voxels of the new grid, they are first averaged with a tent so wide that, together with the interpolation,
the resolution is that of the new grid. All of it is linear in the samples. Where the columns of the scan run along
x, as they nearly always do, each slice is brought onto the x of the new grid by a small dense matrix, and a sparse one
then serves all sagittal planes at once; any other orientation takes the same weights point by point.

    S slices, R rows, C cols; X, Y, Z axes of the new grid; T points: y and z of a sagittal plane, or all voxels
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations

import numpy as np
from scipy.ndimage import correlate1d, map_coordinates
from scipy.sparse import csr_matrix

from headct.scan import AIR_HU, GeometryError, Scan

PARALLEL_MM = 0.02
"""Columns that leave the x direction by less than this within a grid count as parallel to it."""


@dataclass(frozen=True)
class Grid:
    """An upright RAS grid: the centre of voxel (i, j, k) lies at `first_mm + (i, j, k) * spacing_mm`."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    first_mm: tuple[float, float, float]

    @cached_property
    def axes_mm(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates of the voxel centres along x, y and z."""
        x, y, z = (f + s * np.arange(n) for n, s, f in zip(self.shape, self.spacing_mm, self.first_mm, strict=True))
        return x, y, z

    @property
    def affine(self) -> np.ndarray:
        """The (4, 4) matrix from voxel (i, j, k) to RAS mm."""
        matrix = np.diag([*self.spacing_mm, 1.0])
        matrix[:3, 3] = self.first_mm
        return matrix


def resample(scan: Scan, grid: Grid, fill_hu: float = AIR_HU) -> np.ndarray:
    """The scan on the grid, float32 (X, Y, Z), `fill_hu` where nothing was acquired.

    What was acquired reaches half a pixel beyond the outer rows and columns, and beyond the first and last slice half
    their distance to the next, however thick they are: between them the distance is bridged as well, and only so is
    the array the same from a file that cannot tell the thickness of its slices (NIfTI). A single slice reaches half its
    thickness.
    """
    lattice = Lattice(canonical(scan), grid)
    return _sagittal_planes(lattice, fill_hu) if lattice.has_columns_along_x else _single_points(lattice, fill_hu)


def canonical(scan: Scan) -> Scan:
    """The same scan with axes permuted and flipped, as far as its geometry allows, to S along z, R along y, C along x.

    Volumes that differ only in the order in which they are stored become equal, bit for bit: positions are
    rounded to 2^-14 mm and steps to 2^-20 mm, which takes away the noise of computing them from another corner.
    No voxel is copied; repairs, which refer to the stored order, are left behind.
    """
    scan = replace(scan, repairs=())
    if len(scan.hu) > 1 and _is_box(scan):
        scan = _permuted(scan, _nearest_axes(scan))
    elif abs(scan.row_step_mm[0]) / scan.pixel_mm[0] > abs(scan.col_step_mm[0]) / scan.pixel_mm[1]:
        scan = _permuted(scan, (0, 2, 1))
    scan = _flipped(scan)
    return replace(
        scan,
        origins_mm=np.round(scan.origins_mm * 2**14) / 2**14,
        row_step_mm=np.round(scan.row_step_mm * 2**20) / 2**20,
        col_step_mm=np.round(scan.col_step_mm * 2**20) / 2**20,
    )


def bounds_mm(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest coordinates (3,) of any voxel's centre."""
    rows, cols = (n - 1 for n in scan.hu.shape[1:])
    edges = np.stack([np.zeros(3), rows * scan.row_step_mm]), np.stack([np.zeros(3), cols * scan.col_step_mm])
    low, high = (sum(extreme(edge, axis=0) for edge in edges) for extreme in (np.min, np.max))
    return scan.origins_mm.min(axis=0) + low, scan.origins_mm.max(axis=0) + high


def _is_box(scan: Scan) -> bool:
    """Whether the slices are evenly spaced and all three directions perpendicular, so that any can be the slices'."""
    try:
        steps = scan.affine(tolerance_mm=0.001)[:3, :3]
    except GeometryError:
        return False
    gram = steps.T @ steps
    lengths = np.sqrt(np.diag(gram))
    return bool(np.all(np.abs(gram / np.outer(lengths, lengths) - np.eye(3)) < 1e-6))


def _nearest_axes(scan: Scan) -> tuple[int, ...]:
    """The order of the stored axes that brings them nearest to z, y, x."""
    steps = scan.affine(tolerance_mm=0.001)[:3, :3]
    towards = np.abs(steps / np.linalg.norm(steps, axis=0))
    return max(
        permutations(range(3)), key=lambda order: sum(towards[2 - place, axis] for place, axis in enumerate(order))
    )


def _permuted(scan: Scan, order: tuple[int, ...]) -> Scan:
    """The scan with its axes (slices, rows, cols) in another order; the slices may change only in a `_is_box` scan."""
    if order[0] == 0:
        steps = (scan.row_step_mm, scan.col_step_mm)
        return replace(
            scan, hu=scan.hu.transpose(order), row_step_mm=steps[order[1] - 1], col_step_mm=steps[order[2] - 1]
        )
    affine = scan.affine(tolerance_mm=0.001)
    slice_step, row_step, col_step = affine[:3, :3].T[list(order)]
    hu = scan.hu.transpose(order)
    return replace(
        scan,
        hu=hu,
        origins_mm=affine[:3, 3] + np.arange(len(hu))[:, None] * slice_step,
        row_step_mm=row_step,
        col_step_mm=col_step,
        thickness_mm=float(np.linalg.norm(slice_step)),
    )


def _flipped(scan: Scan) -> Scan:
    """The scan with each axis turned so that the largest component of its direction is positive."""
    if _points_back(scan.row_step_mm):
        last = scan.origins_mm + (scan.hu.shape[1] - 1) * scan.row_step_mm
        scan = replace(scan, hu=scan.hu[:, ::-1], origins_mm=last, row_step_mm=-scan.row_step_mm)
    if _points_back(scan.col_step_mm):
        last = scan.origins_mm + (scan.hu.shape[2] - 1) * scan.col_step_mm
        scan = replace(scan, hu=scan.hu[:, :, ::-1], origins_mm=last, col_step_mm=-scan.col_step_mm)
    if _points_back(scan.normal):
        scan = replace(scan, hu=scan.hu[::-1], origins_mm=scan.origins_mm[::-1])
    return scan


def _points_back(direction: np.ndarray) -> bool:
    return bool(direction[np.argmax(np.abs(direction))] < 0)


@dataclass(frozen=True)
class Lattice:
    """Where the samples of a canonical scan lie, and how the points of a grid project onto them."""

    scan: Scan
    grid: Grid

    @cached_property
    def normal(self) -> np.ndarray:
        """Unit vector (3,) across the slices, its largest component positive, as slices of a canonical scan ascend."""
        return -self.scan.normal if _points_back(self.scan.normal) else self.scan.normal

    @cached_property
    def depths_mm(self) -> np.ndarray:
        """Positions (S,) of the slices along their normal, ascending."""
        return self.scan.origins_mm @ self.normal

    @cached_property
    def ends_mm(self) -> tuple[float, float]:
        """The range of depths that was acquired."""
        gaps = np.diff(self.depths_mm)
        if not len(gaps):  # without a thickness, a single slice fills one voxel
            known = np.isfinite(self.scan.thickness_mm) and self.scan.thickness_mm > 0
            gaps = np.array([self.scan.thickness_mm if known else self.resolution_mm(self.normal)])
        return self.depths_mm[0] - gaps[0] / 2, self.depths_mm[-1] + gaps[-1] / 2

    def acquired(self) -> np.ndarray:
        """Mask (X, Y, Z) of the points of the grid that lie within the scan."""
        depth_mm = _along(self.normal, self.grid)
        inside = np.zeros(self.grid.shape, dtype=bool)
        inside |= (depth_mm >= self.ends_mm[0]) & (depth_mm <= self.ends_mm[1])
        for dual, size in zip(self.duals, self.scan.hu.shape[1:], strict=True):
            start = np.interp(depth_mm, self.depths_mm, self.scan.origins_mm @ dual)  # of a slice at that depth
            inside &= ~_outside(_along(dual, self.grid) - start, size)
        return inside

    @cached_property
    def duals(self) -> np.ndarray:
        """(2, 3): what turns a displacement in mm into numbers of rows and of columns."""
        return np.linalg.pinv(np.stack([self.scan.row_step_mm, self.scan.col_step_mm], axis=1))

    def row_at(self, points_mm: np.ndarray, slice_index: int) -> np.ndarray:
        """Rows (T,), with fractions, onto which points (T, 3) project in a slice."""
        return (points_mm - self.scan.origins_mm[slice_index]) @ self.duals[0]

    def col_at(self, points_mm: np.ndarray, slice_index: int) -> np.ndarray:
        """Columns (T,), with fractions, onto which points (T, 3) project in a slice."""
        return (points_mm - self.scan.origins_mm[slice_index]) @ self.duals[1]

    @cached_property
    def row_taps(self) -> np.ndarray:
        """Weights by which rows are averaged."""
        return self._taps(self.scan.row_step_mm)

    @cached_property
    def col_taps(self) -> np.ndarray:
        """Weights by which columns are averaged."""
        return self._taps(self.scan.col_step_mm)

    def _taps(self, step_mm: np.ndarray) -> np.ndarray:
        """Weights (2m + 1,), adding up to 1."""
        pitch = float(np.linalg.norm(step_mm))
        half_width = tent_half_width(self.resolution_mm(step_mm / pitch), np.array([pitch]))
        reach = int(np.ceil(half_width[0] / pitch))
        return tent_weights(np.zeros(1), pitch * np.arange(-reach - 1, reach + 2), half_width)[0, 1:-1]

    @cached_property
    def slice_averaging(self) -> np.ndarray:
        """Matrix (S, S) by which slices are averaged, each row adding up to 1; the unit matrix for thick slices."""
        gaps = np.diff(self.depths_mm)
        if not len(gaps):
            return np.ones((1, 1))
        around = (np.concatenate([gaps[:1], gaps]) + np.concatenate([gaps, gaps[-1:]])) / 2
        weights = tent_weights(self.depths_mm, self.depths_mm, tent_half_width(self.resolution_mm(self.normal), around))
        return np.where(np.abs(weights) < 1e-12, 0.0, weights)  # rounding noise would widen the reach

    def resolution_mm(self, direction: np.ndarray) -> float:
        """Spacing of the grid along a unit vector."""
        return float(np.linalg.norm(np.array(self.grid.spacing_mm) * direction))

    @cached_property
    def has_columns_along_x(self) -> bool:
        """Whether slices can be resampled along x before anything else: C along x, R and the normal across it."""
        across = np.linalg.norm(self.scan.col_step_mm[1:]) / self.scan.pixel_mm[1]
        along = abs(self.scan.row_step_mm[0]) / self.scan.pixel_mm[0]
        reach = max(n * s for n, s in zip(self.grid.shape, self.grid.spacing_mm, strict=True)) / 2
        return bool(max(across, along) * reach < PARALLEL_MM)


def _along(direction: np.ndarray, grid: Grid) -> np.ndarray:
    """Positions of a grid's points along a direction (3,), (X, Y, Z), or with 1 for an axis along which they stay.

    So a scan whose slices lie straight in the grid has as many depths as the grid has planes, not points.
    """
    axes = np.meshgrid(*grid.axes_mm, indexing="ij", sparse=True)
    return sum((share * axis for share, axis in zip(direction, axes, strict=True) if share), np.zeros((1, 1, 1)))


def tent_half_width(resolution_mm: float, pitch_mm: np.ndarray) -> np.ndarray:
    """Half width of the tent that brings linear interpolation between samples to the resolution; 0 if it is coarser.

    Linear interpolation between samples is itself a tent, of half width `pitch_mm`, and variances add.
    """
    return np.sqrt(np.maximum(resolution_mm**2 - np.square(pitch_mm), 0.0))


def tent_weights(targets_mm: np.ndarray, samples_mm: np.ndarray, half_width_mm: np.ndarray) -> np.ndarray:
    """Weights (T, n) that give, at each target, the tent average of the straight lines through the samples.

    `samples_mm` (n,) ascend, evenly or not; beyond the ends the line goes on level. With a half width of 0 this is
    linear interpolation. A straight line through the samples is reproduced exactly, away from the ends.
    """
    offsets = np.abs(targets_mm[:, None] - samples_mm)
    width = half_width_mm[:, None]
    # |offset| / 2 convolved with the tent: the tent is its second derivative, so that its differences integrate it
    with np.errstate(invalid="ignore", divide="ignore"):
        rounded = width / 6 + offsets**2 / (2 * width) - offsets**3 / (6 * width**2)
    smooth = np.where(offsets < width, rounded, offsets / 2)
    share = -np.diff(smooth, axis=1) / np.diff(samples_mm)
    ends = np.full((len(targets_mm), 1), 0.5)
    return -np.diff(np.concatenate([ends, share, -ends], axis=1), axis=1)


def _even_weights(positions: np.ndarray, taps: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample indices and weights, (T, 2m + 2) both, of interpolation at positions (T,) between averaged samples.

    Positions are in numbers of samples; beyond the first and the last sample, these are repeated.
    """
    before = np.floor(positions)
    share = (positions - before)[:, None]
    weights = (1 - share) * np.append(taps, 0.0) + share * np.insert(taps, 0, 0.0)
    reach = len(taps) // 2
    indices = before.astype(np.int32)[:, None] + np.arange(-reach, reach + 2, dtype=np.int32)
    return np.clip(indices, 0, size - 1), weights.astype(np.float32)


def _outside(positions: np.ndarray, size: int) -> np.ndarray:
    """Which positions lie more than half a sample beyond the first or the last."""
    return (positions < -0.5) | (positions > size - 0.5)


Sampler = Callable[[int, np.ndarray], np.ndarray]
"""Values (n, W) of a slice, given its index and those of n points."""


def _gather(lattice: Lattice, depth_T: np.ndarray, width: int, sample: Sampler, fill_hu: float) -> np.ndarray:
    """Values (T, W), float32: each point takes from each slice near it, by their distance along the normal."""
    depths, averaging = lattice.depths_mm, lattice.slice_averaging
    order_T = np.argsort(depth_T, kind="stable")
    sorted_T = depth_T[order_T]
    first, last = np.searchsorted(sorted_T, lattice.ends_mm[0]), np.searchsorted(sorted_T, lattice.ends_mm[1], "right")
    order_T, sorted_T = order_T[first:last], sorted_T[first:last]
    values_TW = np.full((len(depth_T), width), fill_hu, dtype=np.float32)
    values_TW[order_T] = 0.0
    below, above = np.concatenate([[-np.inf], depths[:-1]]), np.concatenate([depths[1:], [np.inf]])
    for slice_index, column in enumerate(averaging.T):
        (used,) = np.nonzero(column)
        first, last = np.searchsorted(sorted_T, [below[used[0]], above[used[-1]]])
        near = order_T[first:last]
        if len(near):
            weight = np.interp(sorted_T[first:last], depths, column).astype(np.float32)
            values_TW[near] += weight[:, None] * sample(slice_index, near)
    return values_TW


def _sagittal_planes(lattice: Lattice, fill_hu: float) -> np.ndarray:
    """The grid's values (X, Y, Z) where columns run along x: points (y, z) take whole lines of x."""
    hu, (x, y, z) = lattice.scan.hu, lattice.grid.axes_mm
    rows, cols = hu.shape[1:]
    points_mm = np.stack([np.zeros((len(y), len(z))), *np.meshgrid(y, z, indexing="ij")], axis=-1).reshape(-1, 3)
    line_mm = np.stack([x, np.full_like(x, y.mean()), np.full_like(x, z.mean())], axis=-1)
    along_x: dict[float, tuple[slice, np.ndarray, np.ndarray]] = {}

    def matrix_along_x(slice_index: int) -> tuple[slice, np.ndarray, np.ndarray]:
        """The columns needed, their weights (C, X), and which x lie beside the slice."""
        position = lattice.col_at(line_mm, slice_index)
        if position[0] not in along_x:
            indices, weights = _even_weights(position, lattice.col_taps, cols)
            needed = slice(int(indices.min()), int(indices.max()) + 1)
            dense = np.zeros((needed.stop - needed.start, len(x)), dtype=np.float32)
            np.add.at(dense, (indices - needed.start, np.arange(len(x))[:, None]), weights)
            along_x[position[0]] = needed, dense, _outside(position, cols)
        return along_x[position[0]]

    def sample(slice_index: int, near: np.ndarray) -> np.ndarray:
        needed, dense, beside = matrix_along_x(slice_index)
        position = lattice.row_at(points_mm[near], slice_index)
        indices, weights = _even_weights(position, lattice.row_taps, rows)
        first, last = int(indices.min()), int(indices.max()) + 1
        lines_RX = hu[slice_index, first:last, needed].astype(np.float32) @ dense
        starts = np.arange(0, indices.size + 1, indices.shape[1], dtype=np.int32)
        across = csr_matrix((weights.ravel(), (indices - first).ravel(), starts), shape=(len(near), last - first))
        values = across @ lines_RX
        values[:, beside] = fill_hu
        values[_outside(position, rows)] = fill_hu
        return values

    values_TX = _gather(lattice, points_mm @ lattice.normal, len(x), sample, fill_hu)
    return np.moveaxis(values_TX.reshape(len(y), len(z), len(x)), 2, 0)


def _single_points(lattice: Lattice, fill_hu: float) -> np.ndarray:
    """The grid's values (X, Y, Z) for any orientation: each slice is averaged, then sampled at single points."""
    hu, shape, axes = lattice.scan.hu, lattice.grid.shape, lattice.grid.axes_mm
    rows, cols = hu.shape[1:]

    def sample(slice_index: int, near: np.ndarray) -> np.ndarray:
        places = np.unravel_index(near, shape)
        points_mm = np.stack([axis[place] for axis, place in zip(axes, places, strict=True)], axis=-1)
        row, col = lattice.row_at(points_mm, slice_index), lattice.col_at(points_mm, slice_index)
        averaged = correlate1d(hu[slice_index].astype(np.float32), lattice.row_taps, axis=0, mode="nearest")
        averaged = correlate1d(averaged, lattice.col_taps, axis=1, mode="nearest")
        values = map_coordinates(averaged, [row, col], order=1, mode="nearest")
        values[_outside(row, rows) | _outside(col, cols)] = fill_hu
        return values[:, None]

    depth = [axis * component for axis, component in zip(axes, lattice.normal, strict=True)]
    depth_T = (depth[0][:, None, None] + depth[1][:, None] + depth[2]).ravel()
    return _gather(lattice, depth_T, 1, sample, fill_hu).reshape(shape)
