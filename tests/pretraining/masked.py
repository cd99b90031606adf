"""What the tests of objectives that hide patches share: a tiny transformer, rows of voxels, differences, a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pretraining.memory_cohort import MemoryCohort, heads
from torch._subclasses.fake_tensor import FakeTensorMode

from headct import encoders
from headct.encoders import ViT3D
from headct.pretraining import PretrainSettings, Run, pretrain, read_settings
from headct.pretraining.objectives import Sight
from headct.pretraining.views import Crops, Seen, ViewSettings

SIGHT = Sight(ViewSettings(), [(40, 80), (600, 2800)])
CUBE = Crops(views=1, shape=(12, 12, 12), edge_mm=(52.0, 56.0), overhang=0.1)
"""Three patches a side of the tiny transformer, over the heads of `memory_cohort`."""


def tiny(**settings: Any) -> ViT3D:
    """Patches of 4 voxels, two channels."""
    torch.manual_seed(0)
    small = {"depth": 1, "width": 12, "heads": 2, "mlp_width": 16, "patch": (4, 4, 4), "grid": (3, 3, 3), "channels": 2}
    encoder = encoders.build("vit-tiny", **{**small, **settings})
    assert isinstance(encoder, ViT3D)
    return encoder


def some_rows(count: int = 3, air: int = 9) -> Seen:
    """Views (count, 2, 12, 12, 12) of which `air` patches are air, the first ones of row 0, the next of row 1, ..."""
    generator = torch.Generator().manual_seed(1)
    image = 0.05 + 0.9 * torch.rand(count, 2, 12, 12, 12, generator=generator)
    for row in range(count):
        for number in range(row, row + air):
            fill(image[row], number % 27, 0.0)
    return Seen(image, torch.full((count, 3), 4.5), torch.zeros(()))


def fill(image: torch.Tensor, number: int, value: float) -> None:
    """One value for all voxels of a patch of an image (2, 12, 12, 12)."""
    i, j, k = 4 * (number // 9), 4 * (number // 3 % 3), 4 * (number % 3)
    image[:, i : i + 4, j : j + 4, k : k + 4] = value


def row(seen: Seen, *numbers: int) -> Seen:
    """Some of the rows."""
    return replace(seen, image=seen.image[list(numbers)], spacing_mm=seen.spacing_mm[list(numbers)])


def check_gradients(module: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> None:
    """Every trained tensor's gradient along a random direction against central differences, in float64."""
    module.zero_grad()
    loss().backward()
    generator = torch.Generator().manual_seed(2)
    for name, weight in module.named_parameters():
        if not weight.requires_grad or not weight.numel():
            continue
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        values = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                weight.add_(direction, alpha=step)
                values.append(loss().item())
            weight.add_(direction, alpha=1e-6)
        by_difference = (values[0] - values[1]) / 2e-6
        assert weight.grad is not None, name
        by_gradient = float((weight.grad * direction).sum())
        assert abs(by_difference - by_gradient) <= 1e-7 + 1e-5 * abs(by_gradient), name


def never_waits(loss: Callable[[], tuple[torch.Tensor, Any]]) -> None:
    """Work out a loss on tensors without numbers, on which all that would wait for the device for one fails."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        loss()[0].backward()


def run(path: Path, objective: str, settings: Any, *, steps: int = 30, **more: Any) -> Run:
    """A short run on six small heads."""
    small = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": [4, 4, 4], "grid": [3, 3, 3]}
    plan = PretrainSettings(
        steps=steps, batch=4, encoder_settings=small, objectives={objective: settings}, device="cpu", lr=3e-3, **more
    )
    run = pretrain([MemoryCohort(heads(6))], path / "run", plan)
    assert read_settings(path / "run" / "settings.toml") == run.settings
    return run
