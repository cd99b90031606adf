"""Operators along one axis. Oracles: `scipy.ndimage.map_coordinates` in float64 (agreement to rounding, 1e-9), and
PyTorch's adaptive average pooling (float64, 1e-12). Blocks of a `Band` are float32: relative 1e-6."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from headct.preparing import bands


@given(size=st.integers(1, 70), scale=st.floats(0.2, 4), shift=st.floats(-0.9, 0.9), seed=st.integers(0, 99))
def test_splines_are_those_of_scipy(size, scale, shift, seed):
    samples = np.random.default_rng(seed).uniform(-1000, 1000, size)
    positions = np.arange(0, size, scale) + shift
    for order, matrix in ((1, bands.linear), (3, bands.cubic)):
        theirs = map_coordinates(samples, [positions], order=order, mode="nearest")
        np.testing.assert_allclose(matrix(positions, size) @ samples, theirs, atol=1e-9)


@pytest.mark.parametrize(("size", "outputs"), [(7, 7), (250, 96), (97, 96), (40, 96), (1, 3)])
def test_areas_are_those_of_adaptive_average_pooling(size, outputs):
    samples = np.random.default_rng(0).normal(size=size)
    theirs = torch.nn.functional.adaptive_avg_pool1d(torch.from_numpy(samples)[None], outputs)[0].numpy()
    np.testing.assert_allclose(bands.area(outputs, size) @ samples, theirs, atol=1e-12)


@pytest.mark.parametrize("outputs", [1, 47, 48, 49, 250])
def test_a_band_is_its_matrix_in_blocks(outputs):
    rng = np.random.default_rng(0)
    matrix = bands.cubic(np.linspace(0, 120, outputs), 122)
    samples = rng.uniform(-1000, 1000, (122, 5)).astype(np.float32)
    band = bands.Band.of(matrix)
    np.testing.assert_allclose(band.down(samples), matrix @ samples, atol=2e-3)  # HU; the band leaves out 1e-8 each
    np.testing.assert_allclose(band.across(samples.T), (matrix @ samples).T, atol=2e-3)
    if outputs == 250:
        assert sum(weights.size for _, _, weights in band.blocks) < 0.5 * matrix.size
