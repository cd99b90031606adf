"""How training scans vary. Oracles: the arrays themselves, flipped by numpy, and what labels mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from detection.training.heads import InMemory, encoder_of, heads
from numpy.testing import assert_allclose

from headct.checkpoints import Card, PretrainedEncoder
from headct.detection.method import mirrored
from headct.detection.training.augment import Augmentation, labels_seen, seen
from headct.detection.training.network import inputs
from headct.preparing import recipes
from headct.pretraining.views import ViewSettings

CPU = torch.device("cpu")
STILL = ViewSettings(rotation_deg=0, scale_hu=0, shift_hu=0, noise_hu=0)
ROWS = np.arange(4)


def scans_of(voxel_mm: tuple[float, float, float] = (8.0, 8.0, 8.0)) -> InMemory:
    return InMemory(encoder_of("vit-tiny"), heads(4)[0], voxel_mm)


def varied(scans: InMemory, seed: int = 0, **settings: float) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    zoom = settings.pop("zoom", 0.0)
    augmentation = Augmentation(views=replace(STILL, **settings), zoom=zoom)
    return seen(scans.encoder, scans, ROWS, np.random.default_rng(seed), augmentation, CPU)


@pytest.mark.parametrize("voxel_mm", [(8.0, 8.0, 8.0), (4.0, 4.0, 16.0), (2.0, 3.0, 4.0)])
def test_what_varies_by_nothing_is_the_scan(voxel_mm: tuple[float, float, float]) -> None:
    scans = scans_of(voxel_mm)
    x, spacing_mm, flipped = varied(scans)
    plain, plain_mm = inputs(scans.encoder, scans, ROWS, CPU)
    assert_allclose(x.numpy(), plain.numpy(), atol=1e-4)
    assert torch.equal(spacing_mm, plain_mm)
    assert not flipped.any()


def test_a_mirrored_scan_is_the_array_from_right_to_left() -> None:
    scans = scans_of()
    x, _, flipped = varied(scans, mirror=1.0)
    assert flipped.all()
    assert_allclose(x.numpy(), inputs(scans.encoder, scans, ROWS, CPU)[0].numpy()[:, :, ::-1], atol=1e-4)
    _, _, some = varied(scans, mirror=0.5)
    assert 0 < some.sum() < 4


def test_a_zoom_changes_the_voxels_alike_and_keeps_the_grid() -> None:
    scans = scans_of((4.0, 4.0, 16.0))
    x, spacing_mm, _ = varied(scans, zoom=0.1)
    factors = spacing_mm / torch.tensor([4.0, 4.0, 16.0])
    assert_allclose(factors.numpy(), factors[:, :1].expand(-1, 3).numpy(), rtol=1e-6)
    assert len(set(factors[:, 0].tolist())) == 4
    assert ((factors > 1 / 1.101) & (factors < 1.101)).all()
    assert x.shape == (4, 3, 16, 16, 16)
    plain, _ = inputs(scans.encoder, scans, ROWS, CPU)
    half = (-485 + 800) / 2800  # of brain and of air
    for image, factor in zip(x, factors[:, 0], strict=True):  # a smaller voxel, a larger head, the more of its voxels
        assert (image[2] > half).sum() * factor**3 == pytest.approx(float((plain[0, 2] > half).sum()), rel=0.12)


def test_slices_far_apart_do_not_turn_into_each_other() -> None:
    scans = scans_of((4.0, 4.0, 16.0))
    hu = np.full((4, 16, 16, 16), -1000, dtype=np.int16)
    hu[:, :, :, 8] = 40  # one slice
    scans.hu = hu
    x, _, _ = varied(scans, rotation_deg=20.0)
    outside = torch.cat([x[..., :8], x[..., 9:]], dim=-1)
    assert outside.abs().max() < 1e-3, "only about the third axis"
    turned, _, _ = varied(scans_of(), rotation_deg=20.0)
    assert (turned - inputs(scans.encoder, scans_of(), ROWS, CPU)[0]).abs().max() > 0.1


def test_the_same_generator_draws_the_same() -> None:
    augmentation = Augmentation()
    scans = scans_of()
    first, again, other = (
        seen(scans.encoder, scans, ROWS, np.random.default_rng(seed), augmentation, CPU)[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_arrays_that_a_recipe_has_scaled_are_mirrored_along_their_own_axis() -> None:
    recipe = recipes["ct-fm"] if "ct-fm" in recipes else next(r for r in recipes.values() if r.axes != "RAS")
    side = next(axis for axis, letter in enumerate(recipe.axes) if letter in "RL")
    encoder = PretrainedEncoder(encoder_of("vit-tiny").encoder, Card(recipe=recipe, windows={}), "0" * 64)
    rng = np.random.default_rng(0)
    scans = InMemory(encoder, rng.uniform(size=(4, 3, 8, 8, 8)).astype(np.float32))
    augmentation = Augmentation(views=ViewSettings(mirror=1.0))
    x, _, flipped = seen(encoder, scans, ROWS, rng, augmentation, CPU)
    assert flipped.all()
    np.testing.assert_array_equal(x.numpy(), np.flip(scans.hu, axis=2 + side))


def test_labels_with_a_side_are_never_told_of_the_other_side() -> None:
    findings = ("ich", "bleed_left", "bleed_right", "infarct_left")
    labels = np.array([[1, 1, 0, 1], [0, 0, np.nan, 0]])
    here = labels_seen(labels, np.array([False, False]), mirrored(findings))
    np.testing.assert_array_equal(here, labels)
    there = labels_seen(labels, np.array([True, True]), mirrored(findings))
    np.testing.assert_array_equal(there, [[1, 0, 1, np.nan], [0, np.nan, 0, np.nan]])
    mixed = labels_seen(labels, np.array([False, True]), mirrored(findings))
    np.testing.assert_array_equal(mixed, [here[0], there[1]])
