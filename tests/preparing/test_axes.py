"""Which axis runs where. Oracle: nibabel's orientations, exact."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy.spatial.transform import Rotation

from headct.preparing.axes import turn

CODES = ["".join(code) for code in product("RLAPSI", repeat=3) if len({"RLAPSI".index(c) // 2 for c in code}) == 3]
"""The 48 ways to store an upright volume."""


@given(
    stored=st.sampled_from(CODES),
    wanted=st.sampled_from(CODES),
    lean_deg=st.tuples(*[st.floats(-20, 20)] * 3),
    spacing_mm=st.tuples(*[st.floats(0.3, 6)] * 3),
)
def test_the_same_view_and_affine_as_nibabel(stored, wanted, lean_deg, spacing_mm):
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    upright = inv_ornt_aff(axcodes2ornt(stored), volume.shape)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", lean_deg, degrees=True).as_matrix() @ upright.T @ np.diag(spacing_mm)
    affine[:3, 3] = (10, -20, 30)

    turned, turned_affine = turn(volume, affine, wanted)

    change = ornt_transform(io_orientation(affine), axcodes2ornt(wanted))
    np.testing.assert_array_equal(turned, apply_orientation(volume, change))
    np.testing.assert_allclose(turned_affine, affine @ inv_ornt_aff(change, volume.shape), atol=1e-9)
    assert np.shares_memory(turned, volume)
