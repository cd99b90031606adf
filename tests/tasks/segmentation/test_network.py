"""Both decoders: shapes, what is frozen, where tokens lie, and CT-FM's published logits through ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders import ctfm_formula as formula
from numpy.testing import assert_allclose
from tasks.segmentation import drawn

from headct.encoders import Lattice, SegResEncoder, SegResSettings, build
from headct.failure import Misuse
from headct.tasks.segmentation.network import (
    LightSegmenter,
    Plan,
    ResidualSegmenter,
    SegmentationNetwork,
    decoder_for,
    network_of,
    spread_out,
)

SPACING_MM = torch.tensor([[2.0, 2.0, 2.0]])


def light() -> SegmentationNetwork:
    torch.manual_seed(0)
    return network_of(build("vit-tiny", **drawn.VIT), "light", 4)


def segres() -> SegmentationNetwork:
    torch.manual_seed(0)
    return network_of(build("segresenc", **drawn.SEGRES), "segresnet", 4)


def test_published_logits_come_through(shared: Path) -> None:
    stored: Any = np.load(shared / "fixtures" / "ct-fm" / "network.npz")
    network = ResidualSegmenter(SegResEncoder(SegResSettings(init_filters=4)), 3)
    formula.fill(network.network)
    x = torch.from_numpy(stored["tiny_segresnetds/input"])
    with torch.no_grad():
        assert_allclose(network.eval()(x, SPACING_MM), stored["tiny_segresnetds/eval_logits"], atol=2e-4, rtol=1e-4)
        levels = network.train()(x, SPACING_MM)
    assert len(levels) == 4
    assert_allclose(levels[3], stored["tiny_segresnetds/train_logits3"], atol=2e-4, rtol=1e-4)
    assert network.divisor == 16


@pytest.mark.parametrize("make", [light, segres])
def test_shapes_in_training_and_evaluation(make: Any) -> None:
    network = make()
    x = torch.rand(2, 3 if make is light else 1, 16, 8, 12)
    with torch.no_grad():
        assert network.eval()(x, SPACING_MM.expand(2, -1)).shape == (2, 4, 16, 8, 12)
        levels = network.train()(x, SPACING_MM.expand(2, -1))
    for index, level in enumerate(levels):
        assert level.shape == (2, 4, 16 // 2**index, 8 // 2**index, 12 // 2**index)


@pytest.mark.parametrize("make", [light, segres])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_held_encoder_keeps_its_statistics_and_a_frozen_one_its_weights(make: Any, frozen: bool) -> None:
    network = make()
    network.hold_encoder(frozen=frozen)
    before = {name: one.clone() for name, one in network.encoder_part.state_dict().items()}
    x = torch.rand(2, 3 if make is light else 1, 16, 8, 8)
    network.train()
    assert not network.encoder_part.training
    levels = network(x, SPACING_MM.expand(2, -1))
    sum(level.square().mean() for level in levels).backward()
    for name, weight in network.encoder_part.named_parameters():
        assert (weight.grad is None) == frozen, name
    of_encoder = set(network.encoder_part.parameters())
    assert all(weight.grad is not None for weight in network.parameters() if weight not in of_encoder)
    for name, one in network.encoder_part.state_dict().items():
        torch.testing.assert_close(one, before[name], rtol=0, atol=0)


def test_tokens_lie_where_the_lattice_says() -> None:
    """Oracle: tokens that hold their own place, a linear function, which linear interpolation keeps."""
    first, step, grid = (3.5, 3.5, 1.0), (8.0, 8.0, 2.0), (4, 3, 9)
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij")) * np.array(step).reshape(3, 1, 1, 1)
    tokens = torch.from_numpy(places + np.array(first).reshape(3, 1, 1, 1)).float()[None]
    spread = spread_out(tokens, Lattice(first, step), (8, 6, 5), 4)
    for axis, (start, size, count) in enumerate(zip(first, (8, 6, 5), grid, strict=True)):
        along = np.clip(np.arange(size) * 4 + 1.5, start, start + step[axis] * (count - 1))
        found = spread[0, axis].movedim(axis, 0).reshape(size, -1)
        assert_allclose(found, np.repeat(along[:, None], found.shape[1], axis=1), atol=1e-4)


def test_a_plan_builds_it_again() -> None:
    network = light()
    plan = Plan.of(network.encoder_part, "light", 4)  # type: ignore[arg-type]
    again = Plan(**{**plan.__dict__, "encoder_settings": dict(plan.encoder_settings)}).built()
    again.load_state_dict(network.state_dict())
    x = torch.rand(1, 3, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x, SPACING_MM), network.eval()(x, SPACING_MM))
    assert isinstance(again, LightSegmenter)


def test_decoders_that_do_not_fit() -> None:
    vit = build("vit-tiny", **drawn.VIT)
    assert decoder_for(vit) == "light"
    assert decoder_for(build("segresenc", **drawn.SEGRES)) == "segresnet"
    with pytest.raises(Misuse, match="does not fit vit-tiny"):
        decoder_for(vit, "segresnet")
    with pytest.raises(Misuse, match="no decoder is called 'unet'"):
        decoder_for(vit, "unet")
