"""The steps of published recipes, each as its authors' code does it.

FM-HCT (arXiv 2502.02779) and CT-FM (arXiv 2501.09001) both build on MONAI, whose orientation, spacing, cropping,
padding and resizing are restated here: the same numbers to within rounding. The spline is separable, so that it is a
product with a banded matrix along each axis instead of a sum over 64 neighbours for each voxel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter

from headct.preparing import axes, bands
from headct.preparing.bands import Band
from headct.preparing.recipe import (
    LINE_MINIMUM,
    CenterCrop,
    Crop,
    Orient,
    Pad,
    Recipe,
    Resample,
    Resize,
    Shape,
    Windows,
)
from headct.preparing.windows import Window, window_into

SKEW_VOXELS = 1e-3
"""Directions that leave the perpendicular by less than this, at the far end of the scan, count as perpendicular."""

PLANES_AT_A_TIME = 16
"""Of a sheared volume, between two of its resamples; all at once would be the largest array of all."""


@dataclass(frozen=True)
class Image:
    """Values (..., X, Y, Z) on their way through the steps, and the affine (4, 4) of their last three axes."""

    values: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> Shape:
        """Of the three spatial axes."""
        x, y, z = self.values.shape[-3:]
        return x, y, z


class Unfit(ValueError):
    """The recipe cannot be applied to this scan; the message says why."""


def apply(recipe: Recipe, volume: np.ndarray, affine: np.ndarray) -> Image:
    """The array (C, X, Y, Z) of a published recipe, from a volume (I, J, K) and its affine to RAS mm.

    The affine is rounded to float32, as it is in the NIfTI files that the published code reads. Raises Unfit.
    """
    image = Image(volume, affine.astype(np.float32).astype(np.float64))
    steps = recipe.steps
    while steps:
        (step, *_), steps = steps, steps[1:]
        following = steps[0] if steps else None
        if isinstance(step, Windows) and isinstance(following, Resize):
            image = _resize_windowed(image, following, step.windows)  # the windowed volume is never built
            steps = steps[1:]
        else:
            image = _DO[type(step)](image, step)
    values = image.values if image.values.ndim == 4 else image.values[None]
    return Image(np.ascontiguousarray(values, dtype=recipe.dtype), image.affine)


def orient(image: Image, step: Orient) -> Image:
    """See `Orient`."""
    return Image(*axes.turn(image.values, image.affine, step.axes))


def crop(image: Image, step: Crop) -> Image:
    """See `Crop`."""
    box = _bounding_box(image.values, step.above)
    if box is None:
        raise Unfit(f"no voxel is above {step.above:g}, so there is nothing to crop to")
    start = np.array([side.start for side in box]) - step.margin_voxels
    stop = np.array([side.stop for side in box]) + step.margin_voxels
    first, last = np.maximum(start, 0), np.minimum(stop, image.shape)
    values = image.values[_box(first, last)]
    if step.beyond is None:
        return Image(values, _shifted(image.affine, first))
    sides = [(0, 0)] * (values.ndim - 3) + [(int(a), int(b)) for a, b in zip(first - start, stop - last, strict=True)]
    return Image(np.pad(values, sides, constant_values=step.beyond), _shifted(image.affine, start))


def _bounding_box(values: np.ndarray, above: float) -> tuple[slice, slice, slice] | None:
    """Around all values above the threshold, over the last three axes; None where there are none."""
    found = [np.zeros(size, dtype=bool) for size in values.shape[-3:]]
    for volume in values.reshape(-1, *values.shape[-3:]) if values.ndim > 3 else values[None]:
        far, middle, near = _memory_order(volume)
        for index, plane in enumerate(volume.transpose(far, middle, near)):
            inside = plane > above
            along = inside.any(axis=0)
            found[far][index] |= along.any()
            found[middle] |= inside.any(axis=1)
            found[near] |= along
    if not found[0].any():
        return None
    x, y, z = (slice(int(np.argmax(side)), len(side) - int(np.argmax(side[::-1]))) for side in found)
    return x, y, z


def pad(image: Image, step: Pad) -> Image:
    """See `Pad`."""
    missing = np.maximum(np.array(step.at_least) - image.shape, 0)
    before = missing // 2
    sides = [(0, 0)] * (image.values.ndim - 3) + [
        (int(a), int(b)) for a, b in zip(before, missing - before, strict=True)
    ]
    if step.fill == LINE_MINIMUM:
        values = np.pad(image.values, sides, mode="minimum")
    else:
        values = np.pad(image.values, sides, constant_values=float(step.fill))
    return Image(values, _shifted(image.affine, -before))


def center_crop(image: Image, step: CenterCrop) -> Image:
    """See `CenterCrop`."""
    size = np.minimum(step.at_most, image.shape)
    start = np.array(image.shape) // 2 - size // 2
    return Image(image.values[_box(start, start + size)], _shifted(image.affine, start))


def windows(image: Image, step: Windows) -> Image:
    """See `Windows`."""
    stacked = step.stacked_along == "first-axis"
    values = np.empty((len(step.windows), *image.values.shape), dtype=np.float32)
    for channel, window in zip(values, step.windows, strict=True):
        window_into(channel, image.values, window)
    return replace(image, values=values.reshape(1, -1, *values.shape[2:]) if stacked else values)


def resize(image: Image, step: Resize) -> Image:
    """See `Resize`."""
    resized = _resize_windowed(image, step, None)
    return replace(resized, values=resized.values[0])


def _resize_windowed(image: Image, step: Resize, windows: Sequence[Window] | None) -> Image:
    """Averages (C, *shape) of the windowed values (X, Y, Z); without windows, of the values themselves, (1, *shape).

    Plane by plane, so that neither the windowed volume nor a float copy of it ever exists. Scaling to 0..1 is linear
    and follows the average; clipping is not, and comes before.
    """
    limits = [(-np.inf, np.inf)] if windows is None else [(level - w / 2, level + w / 2) for level, w in windows]
    order = _memory_order(image.values)
    far, middle, near = (bands.area(step.shape[axis], image.shape[axis]) for axis in order)
    down, across = Band.of(middle), Band.of(near)
    planes = image.values.transpose(order)
    result = np.empty((len(limits), *(step.shape[axis] for axis in order)), dtype=np.float32)
    clipped = np.empty(planes.shape[1:], dtype=np.float32)
    for k, weights in enumerate(far):
        (touched,) = np.nonzero(weights)
        for channel, (low, high) in enumerate(limits):
            total = np.zeros_like(clipped)
            for plane in planes[touched[0] : touched[-1] + 1]:
                np.clip(plane, low, high, out=clipped)
                total += clipped
            result[channel, k] = down.down(across.across(total)) / np.float32(len(touched))
    if windows is not None:
        for values, (low, high) in zip(result, limits, strict=True):
            values -= np.float32(low)
            values /= np.float32(high - low)
    return Image(result.transpose(0, *(1 + np.argsort(order))), _scaled(image, step.shape))


def resample(image: Image, step: Resample) -> Image:
    """See `Resample`. float32; the grid begins as MONAI's `Spacing` has it begin."""
    shape, affine = new_grid(image.shape, image.affine, step.spacing_mm)
    if np.allclose(affine, image.affine, atol=1e-3) and shape == image.shape:
        return replace(image, values=image.values.astype(np.float32))
    to_input = np.linalg.solve(image.affine, affine)  # upper triangular: an axis may depend on those after it
    skew = np.abs(np.triu(to_input[:3, :3], 1)) * (np.array(shape) - 1)
    skewed = [(int(axis), int(by)) for axis, by in np.argwhere(skew > SKEW_VOXELS)]
    if not skewed:
        values = _separable(image.values, shape, to_input, step.spline)
    elif len(skewed) == 1:
        values = _sheared(image.values, shape, to_input, step.spline, *skewed[0])
    else:
        values = _oblique(image.values, shape, to_input, step.spline)
    return Image(values, affine)


def new_grid(shape: Shape, affine: np.ndarray, spacing_mm: Sequence[float]) -> tuple[Shape, np.ndarray]:
    """Shape and affine of the resampled image: the same directions with any shear taken out, the new spacing.

    It begins at the corner voxel that has the smallest coordinate along all axes at once. Where rounding noise
    leaves no such corner, as in most oblique scans, the middles of the two images coincide instead.
    """
    old = affine[:3, :3]
    upper = np.linalg.cholesky(old.T @ old).T
    directions = old @ np.linalg.inv(upper) @ np.diag(np.sign(np.diag(upper)))
    new = directions @ np.diag(spacing_mm)
    corners = np.stack(np.meshgrid(*[(0.0, n - 1.0) for n in shape], indexing="ij"), axis=0).reshape(3, -1)
    corners_mm = old @ corners + affine[:3, 3:]
    in_new = np.linalg.solve(new, old @ corners)
    new_shape = np.round(np.ptp(in_new, axis=1) + 1.0)
    first = np.nonzero(np.all(in_new - in_new.min(axis=1, keepdims=True) <= 1e-8, axis=0))[0]
    if len(first):
        origin = corners_mm[:, first[0]]
    else:
        origin = old @ (np.array(shape) / 2) + affine[:3, 3] - new @ (new_shape / 2)
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = new, origin
    x, y, z = (int(n) for n in new_shape)
    return (x, y, z), result


def _positions(to_input: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Where outputs 0..size-1 along an axis lie in the input, their position along the other axes being 0."""
    return to_input[axis, axis] * np.arange(size) + to_input[axis, 3]


def _band(to_input: np.ndarray, axis: int, outputs: int, inputs: int, spline: str) -> Band:
    """The operator along one axis."""
    matrix = bands.cubic if spline == "cubic" else bands.linear
    return Band.of(matrix(_positions(to_input, axis, outputs), inputs))


def _separable(values: np.ndarray, shape: Shape, to_input: np.ndarray, spline: str) -> np.ndarray:
    """One axis after the other: the two that are nearest in memory within each plane, the third across the planes."""
    far, middle, near = _memory_order(values)
    operators = [_band(to_input, axis, shape[axis], values.shape[axis], spline) for axis in range(3)]
    reduced = np.empty((values.shape[far], shape[middle] * shape[near]), dtype=np.float32)
    for target, plane in zip(reduced, values.transpose(far, middle, near), strict=True):
        target[:] = operators[middle].down(operators[near].across(plane.astype(np.float32))).ravel()
    result = operators[far].down(reduced).reshape(shape[far], shape[middle], shape[near])
    return result.transpose(np.argsort((far, middle, near)))


def _sheared(values: np.ndarray, shape: Shape, to_input: np.ndarray, spline: str, axis: int, by: int) -> np.ndarray:
    """As `_separable`, where the position along `axis` shifts with the output's position along `by` (gantry tilt).

    `by` and the third axis are resampled before; `axis` then gets its own four weights in every plane.
    """
    third = 3 - axis - by
    operator = _band(to_input, third, shape[third], values.shape[third], spline)
    size = values.shape[axis]
    prefilter = Band.of(bands.spline_coefficients(size)) if spline == "cubic" else Band.of(np.eye(size))
    weights = bands.cubic_taps if spline == "cubic" else bands.linear
    planes = values.transpose(by, axis, third)
    reduced = np.stack([prefilter.down(operator.across(plane.astype(np.float32))) for plane in planes])
    matrix = (bands.cubic if spline == "cubic" else bands.linear)(_positions(to_input, by, shape[by]), len(planes))
    result = np.empty((shape[by], shape[axis], shape[third]), dtype=np.float32)
    for first in range(0, shape[by], PLANES_AT_A_TIME):
        block = Band.of(matrix[first : first + PLANES_AT_A_TIME]).down(reduced.reshape(len(planes), -1))
        for k, plane in enumerate(block.reshape(-1, *reduced.shape[1:]), start=first):
            shifted = _positions(to_input, axis, shape[axis]) + to_input[axis, by] * k
            result[k] = Band.of(weights(shifted, size)).down(plane)
    return result.transpose(np.argsort((by, axis, third)))


def _oblique(values: np.ndarray, shape: Shape, to_input: np.ndarray, spline: str) -> np.ndarray:
    """Any shear at all: voxel by voxel, with the same splines."""
    order, edge = (3, bands.EDGE) if spline == "cubic" else (1, 0)
    coefficients = np.pad(values, edge, mode="edge").astype(np.float32)
    if spline == "cubic":
        spline_filter(coefficients, order, output=coefficients, mode="nearest")  # in place, for the sake of memory
    result = np.empty(shape, dtype=np.float32)
    for i in range(shape[0]):
        voxels = np.stack(np.meshgrid(i, np.arange(shape[1]), np.arange(shape[2]), indexing="ij")).reshape(3, -1)
        at = to_input[:3, :3] @ voxels + to_input[:3, 3:] + edge
        plane = map_coordinates(coefficients, at, order=order, mode="nearest", prefilter=False)
        result[i] = plane.reshape(shape[1:])
    return result


def _memory_order(values: np.ndarray) -> tuple[int, int, int]:
    """The axes of (X, Y, Z) from the one whose neighbours lie farthest apart in memory to the nearest."""
    far, middle, near = (int(axis) for axis in np.argsort(-np.abs(values.strides), kind="stable"))
    return far, middle, near


def _box(start: np.ndarray, stop: np.ndarray) -> tuple[EllipsisType | slice, ...]:
    """Index of a box of the last three axes."""
    return (..., *(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True)))


def _shifted(affine: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """The affine of an image that begins at this voxel of the other."""
    result = affine.copy()
    result[:3, 3] += affine[:3, :3] @ voxels
    return result


def _scaled(image: Image, shape: Shape) -> np.ndarray:
    """The affine of the image divided into another number of voxels."""
    factor = np.array(image.shape) / shape
    result = image.affine.copy()
    result[:3, :3] = image.affine[:3, :3] * factor
    result[:3, 3] += image.affine[:3, :3] @ ((factor - 1) / 2)
    return result


_DO: Mapping[type, Callable[[Image, Any], Image]] = {
    Orient: orient,
    Resample: resample,
    Crop: crop,
    Pad: pad,
    CenterCrop: center_crop,
    Windows: windows,
    Resize: resize,
}
