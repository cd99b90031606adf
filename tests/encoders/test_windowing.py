"""Windows on the device. Oracle: the numpy twin in `headct.preparing.windows`; equal but for a rounding of float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from headct.encoders import apply_windows, as_input
from headct.preparing import windows as twin

HU = np.arange(-3024, 3072, dtype=np.int16).reshape(2, 12, 127, 2)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_channels_equal_the_numpy_twin(dtype: torch.dtype) -> None:
    channels = apply_windows(torch.from_numpy(HU).to(dtype), list(twin.WINDOWS.values()))
    assert channels.dtype == torch.float32
    assert channels.shape == (2, 3, 12, 127, 2)
    for scan, one in zip(HU, channels, strict=True):
        assert_allclose(one.numpy(), twin.apply(scan, list(twin.WINDOWS.values())), atol=2e-7)


def test_the_ends_of_a_window_are_its_level_and_half_its_width() -> None:
    ends = apply_windows(torch.tensor([-21, -20, 80, 180, 181]).reshape(1, 1, 1, 5), [(80, 200)])
    assert ends.flatten().tolist() == pytest.approx([0, 0, 0.5, 1, 1])


def test_arrays_that_a_recipe_has_scaled_pass_unchanged() -> None:
    scaled = torch.rand(2, 3, 4, 5, 6)
    assert torch.equal(as_input(scaled, []), scaled)
    assert torch.equal(as_input(scaled[:, 0], []), scaled[:, :1])
