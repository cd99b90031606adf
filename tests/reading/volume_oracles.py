"""What the tests of all volume formats share: volumes whose voxels know where they are, and how to check them."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import strategies as st

from headct.reading.files import Source


def source_of(path, beside=()):
    return Source(str(path), None, os.path.basename(path), os.path.getsize(path), beside=tuple(beside))


def positions_mm(volume):
    """The RAS position (slices, rows, cols, 3) of every voxel of a `RawVolume`."""
    rows, cols = (np.arange(count) for count in volume.values.shape[1:])
    return (
        volume.origins_mm[:, None, None]
        + rows[None, :, None, None] * volume.row_step_mm
        + cols[None, None, :, None] * volume.col_step_mm
    )


def assert_same_places(volume, values_ijk, affine_ras, atol_mm=1e-3, rtol=0.0):
    """Each voxel of the volume has the value that (values, affine) have at its position.

    The affine is inverted, so this is independent of how axes were chosen and turned. 1e-3 mm is the rounding of
    float32 matrices at 300 mm, and far below a voxel.
    """
    places = positions_mm(volume).reshape(-1, 3)
    voxels = (places - affine_ras[:3, 3]) @ np.linalg.inv(affine_ras[:3, :3]).T
    nearest = np.rint(voxels).astype(int)
    np.testing.assert_allclose(nearest @ affine_ras[:3, :3].T + affine_ras[:3, 3], places, atol=atol_mm)
    np.testing.assert_allclose(volume.values.reshape(-1), values_ijk[tuple(nearest.T)], rtol=rtol, atol=0)
    assert volume.values.size == values_ijk.size


def assert_identical(one, other, atol_mm=1e-4):
    """Two readings of one volume, stored in different ways, are the same array on the same grid."""
    np.testing.assert_array_equal(one.values, other.values)
    for name in ("origins_mm", "row_step_mm", "col_step_mm", "thickness_mm"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=atol_mm, err_msg=name)
    assert one.flags == other.flags


def numbered(shape, dtype=np.int16, start=-1000):
    """All values differ, so no mix-up of voxels can pass."""
    first = start if np.dtype(dtype).kind != "u" else 0
    return (np.arange(np.prod(shape)) + first).astype(dtype).reshape(shape)


def restored(values_ijk, affine, axes, flips):
    """The same volume stored with its axes in another order and direction: (values, affine)."""
    values, affine = values_ijk.transpose(axes), affine.copy()
    affine[:, :3] = affine[:, list(axes)]
    for axis in range(3):
        if flips[axis]:
            affine[:, 3] += (values.shape[axis] - 1) * affine[:, axis]
            affine[:, axis] *= -1
            values = np.flip(values, axis)
    return np.ascontiguousarray(values), affine


def rotation(angles):
    """A rotation matrix from three angles in radians about x, y and z."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@st.composite
def affines(draw, shear=True, largest_angle=np.pi):
    """Matrices as converters write them: any rotation, voxels of 0.2 to 8 mm, gantry tilt up to 29 degrees."""
    angle = st.floats(-largest_angle, largest_angle)
    steps = np.diag([draw(st.floats(0.2, 8)) for _ in range(3)])
    if shear:
        steps[1, 2] = steps[2, 2] * np.tan(draw(st.floats(-0.5, 0.5)))
    affine = np.eye(4)
    affine[:3, :3] = rotation([draw(angle) for _ in range(3)]) @ steps * (1, 1, draw(st.sampled_from((1, -1))))
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    return affine


shapes = st.tuples(*[st.integers(1, 6)] * 3)
orders = st.permutations([0, 1, 2]).map(tuple)
flips = st.tuples(*[st.booleans()] * 3)
