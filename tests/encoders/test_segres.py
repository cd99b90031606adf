"""CT-FM's networks beside the numbers that the published ones give, with weights from a closed formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders import ctfm_formula as formula
from numpy.testing import assert_allclose
from torch import nn

from headct.encoders import SegResEncoder, SegResSettings, build, segmentation_network
from headct.encoders.heads import ProjectionMLP
from headct.failure import Misuse

TINY = SegResSettings(init_filters=4)
NEAR = {"atol": 2e-4, "rtol": 1e-4}
FULL = {"atol": 1e-3, "rtol": 0}


@pytest.fixture(scope="module")
def stored(shared: Path) -> Any:
    return np.load(shared / "fixtures" / "ct-fm" / "network.npz")


@pytest.fixture(scope="module")
def about(shared: Path) -> dict[str, Any]:
    manifest = json.loads((shared / "fixtures" / "ct-fm" / "manifest.json").read_text())
    return dict(manifest["files"]["network.npz"]["info"])


@pytest.fixture
def tiny() -> SegResEncoder:
    return formula.fill(SegResEncoder(TINY)).eval()


def test_maps_and_vector_are_the_published_ones(tiny: SegResEncoder, stored: Any) -> None:
    x = torch.from_numpy(stored["tiny_encoder/input"])
    with torch.no_grad():
        levels, features = tiny.levels(x), tiny(x)
    for index, level in enumerate(levels):
        every = 4 if index < 2 else 1
        assert_allclose(level[:, :, ::every, ::every, ::every], stored[f"tiny_encoder/eval_level{index}"], **NEAR)
    assert_allclose(features.scan, stored["tiny_encoder/eval_pooled"], **NEAR)
    assert features.grid == levels[-1].shape[2:]
    assert_allclose(features.tokens.transpose(1, 2).reshape(levels[-1].shape), levels[-1])


def test_any_size_will_do(tiny: SegResEncoder, stored: Any, about: dict[str, Any]) -> None:
    with torch.no_grad():
        x = formula.volume((1, 1, 24, 33, 50), 1002)
        shapes = [list(level.shape) for level in tiny.levels(x)]
        assert_allclose(tiny(x).scan, stored["tiny_encoder_odd/pooled"], **NEAR)
    assert shapes == about["odd_input_level_shapes"]["levels"]


def test_training_takes_statistics_from_the_batch(tiny: SegResEncoder, stored: Any) -> None:
    x = torch.from_numpy(stored["tiny_encoder/input"])
    with torch.no_grad():
        features = tiny.train()(x)
    assert_allclose(features.scan, stored["tiny_encoder/train_pooled"], **NEAR)
    norm = tiny.network.layers[0]["blocks"][0].norm1
    for what in ("mean", "var"):
        expected = stored[f"tiny_encoder/after_train_running_{what}_layers.0.blocks.0.norm1"]
        assert_allclose(getattr(norm, f"running_{what}"), expected, **NEAR)


def test_the_segmentation_network_is_the_published_one(stored: Any) -> None:
    network = formula.fill(segmentation_network(TINY, outputs=3, depths=4))
    x = torch.from_numpy(stored["tiny_segresnetds/input"])
    with torch.no_grad():
        assert_allclose(network.eval()(x), stored["tiny_segresnetds/eval_logits"], **NEAR)
        levels = network.train()(x)
    for index, level in enumerate(levels):
        every = 2 if index == 0 else 1
        expected = stored[f"tiny_segresnetds/train_logits{index}"]
        assert_allclose(level[:, :, ::every, ::every, ::every], expected, **NEAR)


def test_the_projection_head_is_the_published_one(stored: Any) -> None:
    head = formula.fill(ProjectionMLP((512, 256, 128)))
    with torch.no_grad():
        assert_allclose(head(torch.from_numpy(stored["simclr_head/input"])), stored["simclr_head/output"], **NEAR)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "shape", "seed"), [("a", (1, 1, 32, 48, 48), 2001), ("b", (1, 1, 24, 128, 128), 2002)]
)
def test_the_full_size_is_the_published_one(stored: Any, case: str, shape: tuple[int, ...], seed: int) -> None:
    encoder = formula.fill(build("segresenc")).eval()
    assert sum(one.numel() for one in encoder.parameters()) == 77_760_992
    x = formula.volume(shape, seed)
    with torch.no_grad():
        levels = encoder.levels(x)
        assert_allclose(encoder(x).scan, stored[f"full_encoder/{case}/pooled"], **FULL)
    for index, level in enumerate(levels):
        key = f"full_encoder/{case}/level{index}"
        assert_allclose(level.mean((2, 3, 4)), stored[f"{key}_channel_mean"], **FULL)
        assert_allclose(level[0, :8, :2, :2, :2], stored[f"{key}_first8ch_corner"], **FULL)


def test_a_token_sees_most_of_where_it_lies() -> None:
    """Oracle: move an impulse; the token that changes most is the one whose place on the lattice is nearest."""
    torch.manual_seed(0)
    encoder = SegResEncoder(SegResSettings(init_filters=4, blocks_down=(1, 1, 1))).eval()
    shape = (33, 41, 37)
    lattice, still = encoder.lattice(shape), torch.zeros(1, 1, *shape)
    with torch.no_grad():
        before = encoder(still)
        for place in [(4, 8, 12), (16, 20, 24), (32, 40, 36)]:
            x = still.clone()
            x[(0, 0, *place)] = 10.0
            changed = (encoder(x).tokens - before.tokens).norm(dim=2)[0]
            most = np.unravel_index(int(changed.argmax()), before.grid)
            assert tuple(np.array(lattice.first) + np.array(lattice.step) * most) == place


def test_impossible_settings_are_named() -> None:
    with pytest.raises(Misuse, match="blocks_down"):
        SegResSettings(blocks_down=(1, 0))
    assert isinstance(build("segresenc", init_filters=4), nn.Module)
