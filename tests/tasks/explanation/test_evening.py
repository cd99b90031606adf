"""Oracle: painted heads, of which it is known what must vanish and what must stay."""

from __future__ import annotations

import numpy as np
from tasks.explanation import painted

from headct.tasks.explanation.evening import evened_head

FINE_MM = np.array([1.0, 1.0, 1.0])


def test_soft_tissue_becomes_one_density_and_air_stays() -> None:
    hu = painted.head(0, bleeding=True)
    kept = hu.copy()
    even = evened_head(hu, painted.SPACING_MM)
    np.testing.assert_array_equal(hu, kept)
    assert even.dtype == np.int16
    inside = (slice(4, -4), slice(4, -4), slice(0, 28))
    assert len(np.unique(even[inside])) == 1
    assert 28 <= even[20, 12, 12] <= 32
    np.testing.assert_array_equal(even[:, :, 28:], hu[:, :, 28:])


def test_bone_keeps_its_place_and_loses_its_fracture() -> None:
    hu = np.full((40, 40, 40), 30, np.int16)
    hu[:6] = 1000
    hu[2:4, 20:22] = 40  # a line two millimetres wide
    even = evened_head(hu, FINE_MM)
    assert (even[:6] > 900).all()
    assert (even[8:] == 30).all()


def test_a_head_of_air_is_left_alone() -> None:
    air = np.full((8, 8, 8), -1000, np.int16)
    np.testing.assert_array_equal(evened_head(air, FINE_MM), air)
