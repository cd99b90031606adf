"""Vectors without learning. Oracles: closed forms of histograms and heights, and the statistics of a BatchNorm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from headct import encoders
from headct.detection.scans import Held
from headct.embedding.machine import choose
from headct.encoders import as_input
from headct.studies import baselines

WINDOWS = [(40.0, 80.0), (100.0, 500.0)]
SHAPE = (48, 56, 48)


def held(arrays: np.ndarray) -> Held:
    return Held(np.zeros((len(arrays), 1), np.float32), arrays, np.full((len(arrays), 3), 4.0, np.float32))


@pytest.fixture
def noise() -> Held:
    rng = np.random.default_rng(0)
    return held(rng.normal(30, 200, (10, *SHAPE)).astype(np.int16))


def test_a_histogram_of_one_value_is_one_bin():
    found = baselines.histograms(held(np.full((2, 6, 6, 6), 10, np.int16)))
    expected = np.zeros((2, 30))
    expected[:, 7] = 1.0  # -20 + 7 * 4 = 8 to below 12
    np.testing.assert_allclose(found, expected)


def test_regions_hold_what_lies_in_them():
    array = np.full((1, 9, 9, 9), -1000, np.int16)
    array[0, 6:, 3:6, :3] = 10  # x third of three, y second, z first
    found = baselines.histograms(held(array), 3).reshape(3, 3, 3, 30)
    assert found[2, 1, 0, 7] == pytest.approx(1.0)
    assert np.count_nonzero(found) == 1


def test_the_whole_is_the_mean_of_equal_regions(noise):
    whole, parts = (baselines.histograms(noise, n).astype(float) ** 2 for n in (1, 2))
    np.testing.assert_allclose(whole, parts.reshape(len(noise), 8, 30).mean(axis=1), atol=1e-6)


def test_the_height_is_that_of_the_slices_with_a_head():
    array = np.full((2, *SHAPE), -1000, np.int16)
    array[0, 10:30, 10:30, 5:20] = 40
    array[1, 10:30, 10:30, 5:45] = 40
    array[1, 0, 0, :] = 500  # a table is too little of a slice
    np.testing.assert_array_equal(baselines.heights(held(array)), [[60.0], [160.0]])


def test_random_weights_are_those_of_their_seed_and_leave_the_generator_alone(noise):
    machine = choose("fp32", "cpu")
    before = torch.get_rng_state()
    first, again, other = (baselines.random_weights("conv-tiny", {}, WINDOWS, noise, machine, s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert first.shape[0] == len(noise)
    assert torch.equal(before, torch.get_rng_state())


def test_settled_statistics_are_means_over_batches(noise):
    encoder = encoders.build("conv-tiny", channels=2)
    first = next(module for module in encoder.modules() if isinstance(module, nn.BatchNorm3d))
    seen: list[torch.Tensor] = []
    first.register_forward_hook(lambda module, given, out: seen.append(given[0].mean(dim=(0, 2, 3, 4))))
    baselines.settle(encoder, WINDOWS, noise, choose("fp32", "cpu"))
    assert len(seen) == 2
    torch.testing.assert_close(first.running_mean, torch.stack(seen).mean(dim=0), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        x = as_input(torch.from_numpy(noise.arrays(np.arange(3))), WINDOWS)
        expected = encoder(x, torch.full((3, 3), 4.0)).scan.numpy()
    np.testing.assert_allclose(
        baselines.seen_by(encoder, WINDOWS, noise, choose("fp32", "cpu"))[:3], expected, rtol=1e-4, atol=1e-5
    )
