"""Promises of every named encoder, and what a wrong name gets."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from headct.encoders import ARCHITECTURES, build
from headct.failure import Misuse

PARAMETERS = {
    "vit-tiny": 7.7e6,
    "vit-small": 26e6,
    "vit-base": 95e6,
    "vit-large": 315e6,
    "slices-tiny": 0.8e6,
    "slices-small": 4.3e6,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_named_encoder_keeps_the_signature(name: str) -> None:
    with torch.device("meta"):  # shapes without arithmetic: the large one has 300 million weights
        encoder = build(name)
        features = encoder(torch.empty(2, encoder.channels, *encoder.example_shape))
    nx, ny, nz = features.grid
    assert features.scan.shape == (2, encoder.scan_width)
    assert features.tokens.shape[:2] == (2, nx * ny * nz)
    assert encoder.architecture == name
    lattice = encoder.lattice(encoder.example_shape)
    for first, step, cells, size in zip(lattice.first, lattice.step, features.grid, encoder.example_shape, strict=True):
        assert 0 <= first < step
        assert first + step * (cells - 1) <= size - 1 < first + step * cells


@pytest.mark.parametrize("name", PARAMETERS)
def test_named_encoders_are_as_large_as_they_should_be(name: str) -> None:
    with torch.device("meta"):
        count = sum(weight.numel() for weight in build(name).parameters())
    assert count == pytest.approx(PARAMETERS[name], rel=0.02)


def test_settings_override_those_of_the_name() -> None:
    assert build("vit-tiny", depth=2, patch=[8, 8, 8]).settings.patch == (8, 8, 8)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vit-tinny", {}, "no encoder is called 'vit-tinny'\n  do:  did you mean vit-tiny"),
        ("resnet", {}, "take one of vit-tiny, vit-small"),
        ("vit-tiny", {"register": 1}, "no setting 'register'\n  do:  did you mean registers"),
        ("vit-tiny", {"heads": 5}, "width must be a multiple of heads, got 192 and 5"),
        ("vit-tiny", {"pooling": "max"}, "pooling must be one of class, mean, class.mean, got 'max'"),
        ("vit-tiny", {"positions": "cos"}, "positions must be one of sincos, learned, rotary-mm, none"),
        ("vit-tiny", {"patch": (16, 16)}, "patch must be three positive whole numbers"),
        ("vit-tiny", {"depth": 0}, "depth must be at least 1"),
        ("vit-tiny", {"registers": -1}, "registers must not be negative"),
        ("vit-tiny", {"layer_scale": -1e-5}, "layer_scale must not be negative"),
        ("vit-tiny", {"drop_path": 1.0}, "drop_path must be at least 0 and below 1"),
        ("vit-tiny", {"norm": "batch"}, "norm must be one of layer, rms, got 'batch'"),
        ("vit-tiny", {"wavelengths_mm": (32.0,)}, "wavelengths_mm must be two positive lengths"),
        (
            "vit-tiny",
            {"positions": "rotary-mm", "heads": 64},
            "need an even number of at least 6 features a head, got 3",
        ),
    ],
)
def test_a_wrong_name_or_number_is_named(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(Misuse, match=message):
        build(name, **settings)


def test_encoders_load_without_the_rooms_that_touch_disk() -> None:
    code = (
        "import sys, headct.encoders\n"
        "rooms = {'reading', 'cohort', 'checkpoints', 'embedding', 'pretraining', 'virtual'}\n"
        "print([r for r in rooms if f'headct.{r}' in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
