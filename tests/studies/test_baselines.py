"""Vectors without learning. Oracles: closed forms of histograms and heights, and the statistics of a BatchNorm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder
from headct.detection.scans import Held
from headct.embedding.machine import choose
from headct.encoders import as_input
from headct.preparing import recipes
from headct.studies import baselines

MACHINE = choose("fp32", "cpu")
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


@pytest.fixture(scope="module")
def like() -> PretrainedEncoder:
    card = Card(recipe=recipes["head-coarse"], windows={"brain": (40.0, 80.0), "soft": (100.0, 500.0)})
    return PretrainedEncoder(encoders.build("conv-tiny", channels=2), card, "0" * 64)


def test_random_weights_are_those_of_their_seed_and_leave_the_generator_alone(like, noise):
    before = torch.get_rng_state()
    rows = np.arange(len(noise))
    first, again, other = (baselines.random_encoder(like, noise, rows, MACHINE, seed) for seed in (0, 0, 1))
    assert first.sha256 == again.sha256 != other.sha256
    assert first.sha256 != like.sha256
    assert not first.training
    assert torch.equal(before, torch.get_rng_state())
    vectors = [baselines.seen_by(one, WINDOWS, noise, MACHINE) for one in (first, again, other)]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3
    assert vectors[0].shape[0] == len(noise)


def test_random_weights_of_another_architecture_have_the_windows_and_the_recipe_of_the_first(like, noise):
    other = baselines.random_encoder(like, noise, np.arange(4), MACHINE, 0, "slices-tiny")
    assert other.architecture == "slices-tiny"
    assert (other.channels, other.recipe, other.card.windows) == (2, like.recipe, like.card.windows)


def test_random_weights_know_nothing_of_scans_that_are_tested(like, noise):
    changed = noise.held_arrays.copy()
    changed[6:] = 500
    train = np.arange(6)
    ours, theirs = (baselines.random_encoder(like, scans, train, MACHINE, 0) for scans in (noise, held(changed)))
    assert ours.sha256 == theirs.sha256
    assert baselines.random_encoder(like, noise, np.arange(10), MACHINE, 0).sha256 != ours.sha256


def test_settled_statistics_are_means_over_batches(noise):
    encoder = encoders.build("conv-tiny", channels=2)
    first = next(module for module in encoder.modules() if isinstance(module, nn.BatchNorm3d))
    usual = first.momentum
    seen: list[torch.Tensor] = []
    first.register_forward_hook(lambda module, given, out: seen.append(given[0].mean(dim=(0, 2, 3, 4))))
    baselines.settle(encoder, WINDOWS, noise, np.arange(len(noise)), MACHINE)
    assert len(seen) == 2
    assert first.momentum == usual
    torch.testing.assert_close(first.running_mean, torch.stack(seen).mean(dim=0), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        x = as_input(torch.from_numpy(noise.arrays(np.arange(3))), WINDOWS)
        expected = encoder(x, torch.full((3, 3), 4.0)).scan.numpy()
    found = baselines.seen_by(encoder, WINDOWS, noise, MACHINE)[:3]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
