"""Promises of every named encoder, and what a wrong name gets."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from headct.encoders import ARCHITECTURES, build
from headct.failure import Misuse

PARAMETERS = {"vit-tiny": 7.7e6, "vit-small": 26e6, "vit-base": 95e6, "vit-large": 315e6}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_named_encoder_keeps_the_signature(name: str) -> None:
    with torch.device("meta"):  # shapes without arithmetic: the large one has 300 million weights
        encoder = build(name)
        features = encoder(torch.empty(2, encoder.channels, *encoder.example_shape))
    nx, ny, nz = features.grid
    assert features.scan.shape == (2, encoder.scan_width)
    assert features.tokens.shape[:2] == (2, nx * ny * nz)
    assert encoder.architecture == name
    count = sum(weight.numel() for weight in encoder.parameters())
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
        ("vit-tiny", {"positions": "cos"}, "positions must be one of sincos, learned, none"),
        ("vit-tiny", {"patch": (16, 16)}, "patch must be three positive whole numbers"),
        ("vit-tiny", {"depth": 0}, "depth must be at least 1"),
        ("vit-tiny", {"registers": -1}, "registers must not be negative"),
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
