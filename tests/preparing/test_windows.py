"""Windows. Oracle: the definition, evaluated by hand; exact but for a rounding of float32 (1e-7)."""

from __future__ import annotations

import numpy as np
import pytest

from headct.preparing import windows


def test_the_ends_and_the_middle_of_each_window():
    hu = np.array([-2000, 0, 40, 80, 3000, -20, 180, -800, 600, 2000], dtype=np.int16).reshape(10, 1, 1)
    brain, subdural, bone = windows.apply(hu, list(windows.WINDOWS.values()))[..., 0, 0]
    np.testing.assert_allclose(brain, [0, 0, 0.5, 1, 1, 0, 1, 0, 1, 1], atol=1e-7)
    np.testing.assert_allclose(subdural, [0, 0.1, 0.3, 0.5, 1, 0, 1, 0, 1, 1], atol=1e-7)
    np.testing.assert_allclose(bone[[0, 4, 7, 8, 9]], [0, 1, 0, 0.5, 1], atol=1e-7)


@pytest.mark.parametrize("dtype", [np.int16, np.float16, np.float32, np.float64])
def test_any_dtype_gives_float32_channels_and_stays_as_it_was(dtype):
    hu = np.arange(-8, 8, dtype=dtype).reshape(2, 2, 4)
    before = hu.copy()
    channels = windows.apply(hu, [(0, 8), (0, 16)])
    assert channels.shape == (2, 2, 2, 4)
    assert channels.dtype == np.float32
    np.testing.assert_array_equal(hu, before)
