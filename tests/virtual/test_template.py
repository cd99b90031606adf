"""The average head: what ships is what the maps give, and its anatomy lies where anatomy lies."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from headct.virtual import template as module
from headct.virtual.template import BOXES, CHANNELS, TEMPLATE_FILE, coded, template

TOOL = Path(__file__).parents[2] / "tools" / "build_template.py"


@pytest.mark.slow
def test_the_shipped_template_is_what_the_maps_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built anew from nilearn's maps; a code may differ by one where another SciPy rounds otherwise."""
    pytest.importorskip("nilearn", reason="needs the ICBM maps")
    monkeypatch.setattr(module, "TEMPLATE_FILE", tmp_path / "template.npz")
    runpy.run_path(str(TOOL))["main"]()
    with np.load(tmp_path / "template.npz") as built, np.load(TEMPLATE_FILE) as shipped:
        assert set(built) == set(shipped) == set(CHANNELS)
        for name in CHANNELS:
            difference = np.abs(built[name].astype(int) - shipped[name].astype(int))
            assert (difference > 1).mean() < 1e-4, name


def test_codes_hold_a_value_to_half_a_step() -> None:
    for name, coding in CHANNELS.items():
        values = np.linspace(coding.low, coding.low + 255 * coding.step, 50, dtype=np.float32)
        back = coded(name, values).astype(float) * coding.step + coding.low
        np.testing.assert_allclose(back, values, atol=coding.step * 0.51)


@pytest.mark.parametrize(
    ("channel", "inside_mm", "outside_mm"),
    [
        ("ventricles_mm", (9, 10, 17), (40, 0, 30)),
        ("cerebellum_mm", (25, -62, -40), (25, 40, 20)),
        ("stem_mm", (0, -27, -34), (30, -27, 20)),
        ("sinuses_mm", (0, -60, 68), (30, -30, 30)),
        ("arteries_mm", (20, 6, -17), (20, -60, 40)),
        ("cavity_mm", (0, 0, 20), (0, 0, 105)),
        ("air_mm", (29, 54, -60), (0, 0, 20)),
        ("bone_mm", (45, -28, -38), (0, 0, 20)),
    ],
)
def test_anatomy_lies_where_it_should(
    channel: str, inside_mm: tuple[float, float, float], outside_mm: tuple[float, float, float]
) -> None:
    """Places in the ICBM brain, read from an atlas; the template is symmetric."""
    box = CHANNELS[channel].box
    for side in (1, -1):
        points = torch.tensor([inside_mm, outside_mm]) * torch.tensor([side, 1.0, 1.0])
        there, elsewhere = template().sample(box, points.float())[channel]
        assert there < 0 < elsewhere


def test_channels_lie_on_their_boxes() -> None:
    with np.load(TEMPLATE_FILE) as stored:
        for name, coding in CHANNELS.items():
            depth, height, width = BOXES[coding.box].shape
            assert stored[name].shape == (depth, height, width // 2 + 1)
