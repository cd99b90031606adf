"""Where the head is: the brain within its skull, found on a coarse grid, and the box that is framed around it.

A brain is the largest body of soft tissue around which one meets bone before air or fat, in whichever direction one
leaves it. That holds for a braincase and for no other part of the body, a headrest, a table or a bottle of water;
a decompressive craniectomy, an open fontanelle or a scan that ends within the brain take directions away, never all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import label, maximum_filter, uniform_filter

from headct.preparing.recipe import Frame
from headct.preparing.resample import Grid, Lattice, bounds_mm, canonical, resample
from headct.scan import Scan

COARSE_MM = 3.0
"""Spacing of the grid on which the head is looked for."""
SOFT_HU = (-30.0, 120.0)
"""From cerebrospinal fluid to fresh blood, with room for noise and beam hardening; fat lies below, bone above."""
BONE_HU = 150.0
"""The thin skull of a newborn, blurred to the coarse grid, stays above this; blood stays below."""
HALF_BONE_HU = 450.0
"""Half-way from brain to skull, where their border lies whatever the thickness of the slices that blur it."""
OPEN_HU = -60.0
"""Fat, lung or air."""
SOLID_HU = -300.0
"""Above this, something is not air."""
BRAIN_HU = (3.0, 50.0)
"""Median of a brain: 20 to 38, in hydrocephalus down to 5. Muscle and liver have 50 to 65, masked images 0."""
NECK_VOXELS = 7
"""Passages up to 7 coarse voxels (21 mm) wide are closed: the foramen magnum, the scalp over a craniectomy."""
MOSTLY = 0.9
"""Share of soft tissue around a voxel within the brain; the rest may be noise, a calcification, air after surgery."""
MIN_AREA_CM2 = 25.0
"""Of the largest slice of the core along any axis: a newborn's measures 50, an adult's 110, a tongue's 15."""
USUAL_CM2 = (140.0, 120.0, 165.0)
"""Largest sagittal, coronal and axial slice of an adult's braincase."""
STRETCH = (1.05, 1.32, 0.82)
"""Half axis of an ellipsoid with the volume and the largest slice of a braincase, over the radius of that slice."""
CUT = 0.1
"""A brain ends beyond the scan if its outermost slice has this share of its largest; the cap beyond is 0.2 % of it."""
CAP_ML, CAP_MM = 15.0, 8.0
"""The uppermost part of a braincase by volume, and how high it is (a cap of a sphere of radius 75 mm)."""
MIN_ENCLOSED = 0.5
"""Share of directions in which bone comes before air or fat. Heads have 0.8 to 1, without half of the vault 0.6."""


@dataclass(frozen=True)
class Head:
    """A brain in its skull, in patient space."""

    center_mm: tuple[float, float]
    """x and y of the middle of the braincase, between its sides and between its front and back."""
    top_mm: float
    """z of the top of the inside of the braincase, an estimate where the scan ends below it."""
    coverage: float
    """Estimated share of the brain between the first and the last slice, 0 to 1."""


def find_head(scan: Scan) -> Head | None:
    """The head in a scan, or None where there is no skull with a brain in it."""
    view = CoarseView.of(scan)
    brain = _brain(view)
    if brain is None:
        return None
    points_mm = view.patient_mm(brain)
    whole = _Whole.of(view, brain)
    return Head((_middle(points_mm[:, 0]), _middle(points_mm[:, 1])), whole.vertex_mm(view, points_mm), whole.coverage)


def frame_head(head: Head, frame: Frame) -> Grid:
    """The grid of a recipe, placed by the head.

    From `above_vertex_mm` above the braincase downwards: the box of our recipes, 192 mm high, reaches 172 mm below
    the top of the braincase, which is 125 to 150 mm above the foramen magnum in adults.
    """
    return _grid((*head.center_mm, head.top_mm), frame)


def frame_object(scan: Scan, frame: Frame) -> Grid:
    """The grid of a recipe, placed by whatever is not air, for scans without a head (phantoms)."""
    view = CoarseView.of(scan)
    solid = (view.hu > SOLID_HU) & view.acquired
    seen = next((mask for mask in (solid, view.acquired) if mask.any()), None)
    x, y, z = (scan.origins_mm if seen is None else view.patient_mm(seen)).T  # as a sliver is
    return _grid((float(x.min() + x.max()) / 2, float(y.min() + y.max()) / 2, float(z.max())), frame)


def _grid(top_mm: tuple[float, float, float], frame: Frame) -> Grid:
    """The box under a point at the top; the same box, on whole even millimetres, whatever the spacing of the recipe."""
    size = np.array(frame.shape) * frame.spacing_mm
    upper = np.array([top_mm[0] + size[0] / 2, top_mm[1] + size[1] / 2, top_mm[2] + frame.above_vertex_mm])
    corner = 2 * np.round((upper - size) / 2)
    first = corner + np.array(frame.spacing_mm) / 2
    return Grid(frame.shape, frame.spacing_mm, (float(first[0]), float(first[1]), float(first[2])))


@dataclass(frozen=True)
class CoarseView:
    """A scan on a coarse grid that holds all of it, turned so that one axis of the grid runs across the slices."""

    grid: Grid
    turn: np.ndarray
    """Rotation (3, 3) from patient space to that of the grid."""
    hu: np.ndarray
    """float32 (X, Y, Z); air where nothing was acquired."""
    acquired: np.ndarray
    """bool (X, Y, Z)."""
    ends_mm: tuple[tuple[float, float], ...]
    """Where the scan begins and ends along each axis of the grid."""

    @classmethod
    def of(cls, scan: Scan) -> CoarseView:
        """From a part of the rows and slices, which suffices for so coarse a grid."""
        scan = canonical(scan)  # before rows and slices are left out, so that the same ones stay however it is stored
        across = int(np.argmax(np.abs(scan.normal)))
        turn = _rotation(scan.normal, np.eye(3)[across] * np.sign(scan.normal[across]))
        scan = canonical(_turned(_thinned(scan), turn))
        grid = _grid_around(scan)
        lattice = Lattice(scan, grid)
        acquired = lattice.acquired()
        ends = [_range_mm(grid.axes_mm[axis], _along(acquired, axis) > 0) for axis in range(3)]
        ends[across] = lattice.ends_mm
        return cls(grid, turn, resample(scan, grid), acquired, tuple(ends))

    def area_cm2(self, mask: np.ndarray, axis: int) -> np.ndarray:
        """Area of a mask at each position along an axis of the grid."""
        return _along(mask, axis) * COARSE_MM**2 / 100

    def patient_mm(self, mask: np.ndarray) -> np.ndarray:
        """Positions (n, 3) of a mask's voxels in patient space."""
        places = np.nonzero(mask)
        return np.stack([axis[at] for axis, at in zip(self.grid.axes_mm, places, strict=True)], axis=1) @ self.turn


def _along(mask: np.ndarray, axis: int) -> np.ndarray:
    """How many voxels of a mask lie at each place along an axis."""
    return mask.sum(axis=tuple({0, 1, 2} - {axis}))


def _range_mm(positions_mm: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """From the outer face of the first voxel inside to that of the last; of all, for a sliver that is in none."""
    (within,) = np.nonzero(inside if inside.any() else np.ones_like(inside, dtype=bool))
    return float(positions_mm[within[0]] - COARSE_MM / 2), float(positions_mm[within[-1]] + COARSE_MM / 2)


def _rotation(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The smallest rotation (3, 3) that takes one unit vector to another, less than 180 degrees away."""
    if np.allclose(start, end):
        return np.eye(3)
    both = start + end
    return np.eye(3) - np.outer(both, both) / (1 + start @ end) + 2 * np.outer(end, start)


def _turned(scan: Scan, turn: np.ndarray) -> Scan:
    """The scan in rotated space."""
    return replace(
        scan,
        origins_mm=scan.origins_mm @ turn.T,
        row_step_mm=turn @ scan.row_step_mm,
        col_step_mm=turn @ scan.col_step_mm,
    )


def _thinned(scan: Scan) -> Scan:
    """Every so many rows and slices of a scan: rows at most 2 mm apart, slices 3 mm, but for gaps it had before."""
    rows = max(1, int(2.0 / scan.pixel_mm[0]))
    keep, depths = [0], scan.origins_mm @ scan.normal
    for slice_index in range(1, len(depths)):
        following = depths[slice_index + 1] if slice_index + 1 < len(depths) else np.inf
        if following - depths[keep[-1]] > 3.0:
            keep.append(slice_index)
    return replace(
        scan,
        hu=scan.hu[:, ::rows] if len(keep) == len(depths) else scan.hu[keep, ::rows],
        origins_mm=scan.origins_mm[keep],
        row_step_mm=scan.row_step_mm * rows,
    )


def _grid_around(scan: Scan) -> Grid:
    """The coarse grid that fills the box around a scan, with the same middle, as far as whole steps go."""
    low, high = bounds_mm(scan)
    nx, ny, nz = (int(n) for n in np.floor((high - low) / COARSE_MM + 1e-6) + 1)
    x, y, z = (float(m) for m in (low + high) / 2 - (np.array([nx, ny, nz]) - 1) / 2 * COARSE_MM)
    return Grid((nx, ny, nz), (COARSE_MM,) * 3, (x, y, z))


def _brain(view: CoarseView) -> np.ndarray | None:
    """Mask (X, Y, Z) of the brain, or None."""
    soft = (view.hu > SOFT_HU[0]) & (view.hu < SOFT_HU[1]) & view.acquired
    between_bones = _between((view.hu >= BONE_HU) | ~view.acquired) & view.acquired
    core = (_share_around(soft) > MOSTLY * _share_around(view.acquired)) & between_bones
    bodies, _ = label(core)
    sizes = np.bincount(bodies.ravel())
    sizes[0] = 0
    for body in np.argsort(-sizes)[:3]:
        if sizes[body] and _is_brain(view, bodies == body):
            grown = maximum_filter(bodies == body, NECK_VOXELS + 2)
            return grown & between_bones & (view.hu > SOFT_HU[0]) & (view.hu < HALF_BONE_HU)
    return None


def _share_around(mask: np.ndarray) -> np.ndarray:
    """Of the cube of `NECK_VOXELS` around each voxel, the share that a mask fills."""
    return uniform_filter(mask.astype(np.float32), NECK_VOXELS, mode="constant")


def _between(bone: np.ndarray) -> np.ndarray:
    """Voxels that have bone on at least three of their four sides, left, right, front and back, however far."""
    sides = np.zeros(bone.shape, dtype=np.int8)
    for axis in (0, 1):
        for order in (slice(None), slice(None, None, -1)):
            planes, counts = np.moveaxis(bone, axis, 0)[order], np.moveaxis(sides, axis, 0)[order]
            met = np.zeros(planes.shape[1:], dtype=bool)
            for plane, counted in zip(planes, counts, strict=True):  # a fifth of the time of `maximum.accumulate`
                met |= plane
                counted += met
    return sides >= 3


def _is_brain(view: CoarseView, core: np.ndarray) -> bool:
    """Whether a body of soft tissue has a brain's density and size and is enclosed by bone."""
    voxels = view.hu[core]
    if not BRAIN_HU[0] <= np.median(voxels) <= BRAIN_HU[1]:
        return False
    largest_cm2 = max(view.area_cm2(core, axis).max() for axis in range(3))
    return bool(largest_cm2 >= MIN_AREA_CM2 and _enclosed(view, core) >= MIN_ENCLOSED)


def _enclosed(view: CoarseView, core: np.ndarray) -> float:
    """Share of directions from the middle of the core in which, beyond it, bone comes before air or fat.

    Directions that leave the scan before either are not counted; nor are those that point down steeply, where the
    base of the skull has its openings and airways.
    """
    middle = np.argwhere(core).mean(axis=0)
    steps = np.arange(0.0, 160.0, COARSE_MM / 2) / COARSE_MM
    places = np.rint(middle + steps[:, None, None] * _directions()).astype(int)  # (steps, directions, 3)
    within = np.all((places >= 0) & (places < core.shape), axis=2)
    i, j, k = np.moveaxis(places.clip(0, np.array(core.shape) - 1), 2, 0)
    within &= view.acquired[i, j, k]
    beyond = within & ~np.flip(np.maximum.accumulate(np.flip(within & core[i, j, k], 0), axis=0), 0)
    bone = _first(beyond & (view.hu[i, j, k] >= BONE_HU))
    open_ = _first(beyond & (view.hu[i, j, k] < OPEN_HU))
    met = np.minimum(bone, open_) < _first(~within)
    return float(np.mean(bone[met] < open_[met])) if met.any() else 0.0


def _first(found: np.ndarray) -> np.ndarray:
    """For each direction, the step of the first find; a step beyond the last where there is none."""
    return np.where(found.any(axis=0), np.argmax(found, axis=0), len(found))


def _directions() -> np.ndarray:
    """Unit vectors (n, 3), without those within 50 degrees of straight down.

    Spread evenly over the sphere, and along three great circles, so that a single slice in any plane has enough.
    """
    n = np.arange(240) + 0.5
    height = 1 - 2 * n / 240
    turn = np.pi * (1 + 5**0.5) * n
    ring = np.sqrt(1 - height**2)
    sphere = np.stack([ring * np.cos(turn), ring * np.sin(turn), height], axis=1)
    angle = 2 * np.pi * np.arange(60) / 60
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros(60)], axis=1)
    spread = np.concatenate([sphere, circle, circle[:, [0, 2, 1]], circle[:, [2, 0, 1]]])
    return spread[spread[:, 2] > -0.64]


def _middle(positions_mm: np.ndarray) -> float:
    """Half-way between the outermost coordinates of a braincase, but for 1 % of its volume on each side."""
    return float(np.mean(_quantiles(positions_mm, [0.01, 0.99])))


def _quantiles(positions_mm: np.ndarray, shares: list[float]) -> np.ndarray:
    """Quantiles of the coordinates of voxels (n,), each spread over its width: of eight points within each."""
    spread_mm = COARSE_MM * ((np.arange(8) + 0.5) / 8 - 0.5)
    ordered_mm = np.sort(positions_mm)
    ranks = np.array(shares) * (len(spread_mm) * len(ordered_mm) - 1)
    return np.array([_ranked(ordered_mm, spread_mm, rank) for rank in ranks])


def _ranked(ordered_mm: np.ndarray, spread_mm: np.ndarray, rank: float) -> float:
    """The coordinate of a rank, with fractions, among points spread around ascending coordinates (n,).

    Only those within a voxel's width of where it must lie are put in order.
    """
    below, above = (min(int(n) // len(spread_mm), len(ordered_mm) - 1) for n in (rank, rank + 1))
    ends_mm = [ordered_mm[below] - 2 * COARSE_MM, ordered_mm[above] + 2 * COARSE_MM]
    first, last = np.searchsorted(ordered_mm, ends_mm)
    near_mm = np.sort((ordered_mm[first:last, None] + spread_mm).ravel())
    return float(np.interp(rank - first * len(spread_mm), np.arange(len(near_mm)), near_mm))


@dataclass(frozen=True)
class _Ellipsoid:
    """What continues a brain beyond the scan along one axis."""

    middle_mm: float
    half_mm: float
    most_cm2: float

    @classmethod
    def fit(cls, positions_mm: np.ndarray, area_cm2: np.ndarray, axis: int) -> _Ellipsoid:
        """The one whose slices come nearest to the areas; its half axis is tied to its largest slice by `STRETCH`.

        Few slices leave the size open: it then is an adult's.
        """
        best, found = np.inf, cls(0.0, 1.0, 1.0)
        for most_cm2 in np.arange(max(50.0, 0.9 * area_cm2.max()), max(260.0, 1.1 * area_cm2.max()), 5.0):
            half_mm = STRETCH[axis] * np.sqrt(most_cm2 * 100 / np.pi)
            middles_mm = np.arange(positions_mm[0] - half_mm, positions_mm[-1] + half_mm + 1, 2.0)[:, None]
            model_cm2 = most_cm2 * np.maximum(1 - ((positions_mm - middles_mm) / half_mm) ** 2, 0.0)
            errors = np.sum((area_cm2 - model_cm2) ** 2, axis=1) + 25 * ((most_cm2 - USUAL_CM2[axis]) / 20) ** 2
            nearest = int(np.argmin(errors))
            if errors[nearest] < best:
                best, found = errors[nearest], cls(float(middles_mm[nearest, 0]), float(half_mm), float(most_cm2))
        return found

    def beyond_ml(self, end_mm: float, side: int) -> float:
        """Volume after (side 1) or before (side -1) a position: a cap of the ellipsoid."""
        height = float(np.clip(1 - side * (end_mm - self.middle_mm) / self.half_mm, 0.0, 2.0))
        return self.most_cm2 * self.half_mm / 10 * (height**2 - height**3 / 3)


@dataclass(frozen=True)
class _Whole:
    """A brain as far as the scan covers it, and what lies beyond."""

    covered_ml: float
    missing_ml: tuple[tuple[float, float], ...]
    """Before and after the scan, along each axis of the coarse grid."""
    top_mm: float | None
    """Where the brain would end along the third axis, if it is cut there."""

    @classmethod
    def of(cls, view: CoarseView, brain: np.ndarray) -> _Whole:
        """From the areas of the brain at each position that the scan covers."""
        missing_ml, top_mm = [], None
        for axis, (first, last) in enumerate(view.ends_mm):
            area_cm2 = view.area_cm2(brain, axis)
            begins, ends = area_cm2[_along(view.acquired, axis) > 0][[0, -1]] > CUT * area_cm2.max()
            missing = (0.0, 0.0)
            if begins or ends:
                ellipsoid = _Ellipsoid.fit(view.grid.axes_mm[axis], area_cm2, axis)
                missing = (begins * ellipsoid.beyond_ml(first, -1), ends * ellipsoid.beyond_ml(last, 1))
                top_mm = ellipsoid.middle_mm + ellipsoid.half_mm if axis == 2 else None
            missing_ml.append(missing)
        return cls(_volume_ml(view, brain), tuple(missing_ml), top_mm)

    @property
    def coverage(self) -> float:
        """Share of the brain that the scan covers."""
        return float(np.prod([self.covered_ml / (self.covered_ml + sum(missing)) for missing in self.missing_ml]))

    def vertex_mm(self, view: CoarseView, points_mm: np.ndarray) -> float:
        """z of the top of the braincase: a fixed volume lies above a height a little below it.

        Where more than that is missing above the scan, the top of the ellipsoid.
        """
        missing_ml = self.missing_ml[2][1]
        if missing_ml < CAP_ML or self.top_mm is None:
            share = 1 - (CAP_ML - missing_ml) / self.covered_ml
            return float(_quantiles(points_mm[:, 2], [max(share, 0.0)])[0]) + CAP_MM
        x, y, _ = view.turn @ points_mm.mean(axis=0)
        return float((np.array([x, y, self.top_mm]) @ view.turn)[2])


def _volume_ml(view: CoarseView, brain: np.ndarray) -> float:
    """Of the brain within the scan; the outermost voxels reach to its ends."""
    sides_mm = []
    for positions_mm, (first, last) in zip(view.grid.axes_mm, view.ends_mm, strict=True):
        borders = np.concatenate([[-np.inf], (positions_mm[1:] + positions_mm[:-1]) / 2, [np.inf]])
        sides_mm.append(np.diff(borders.clip(first, last)))
    return float(np.einsum("ijk,i,j,k->", brain, *sides_mm) / 1000)
