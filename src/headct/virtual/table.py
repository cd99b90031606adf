"""What a head lies on: couch and head rest, in scanner coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headct.virtual.head import EDGE_MM
from headct.virtual.places import some, where
from headct.virtual.tissue import inside, lay

SHELL_HU, FOAM_HU = 40.0, -930.0


def lay_table(hu: torch.Tensor, points_mm: torch.Tensor, shift_mm: Sequence[float], *, head_rest: bool = True) -> None:
    """Couch and head rest at points (n, 3) RAS mm, in place; the rest follows the head, which lies at `shift_mm`.

    The head rest is a padded half pipe from the neck upwards, the couch a shallow trough that begins at the neck.
    They lie over air alone: what is denser than foam stays.
    """
    low = where((points_mm[:, 1] - shift_mm[1] < -60) & (hu < FOAM_HU))
    x, y, z = (some(points_mm, low) - points_mm.new_tensor(tuple(shift_mm))).T
    part = some(hu, low)
    if head_rest:
        pipe = _pipe(x, y + 14, 106, 116)
        ends = torch.maximum(torch.abs(z - 10) - 120, y + 66)
        lay(part, inside(torch.maximum(torch.abs(pipe - 5) - 6, ends), EDGE_MM), FOAM_HU)
        lay(part, inside(torch.maximum(torch.abs(pipe - 12) - 1.5, ends), EDGE_MM), SHELL_HU)
    trough = torch.abs(_pipe(x, y - 160, 420, 320))
    foot = torch.maximum(z + 96, torch.abs(x) - 210)
    lay(part, inside(torch.maximum(trough - 14, foot), EDGE_MM), FOAM_HU)
    lay(part, inside(torch.maximum(torch.abs(trough - 14) - 1.2, foot), EDGE_MM), SHELL_HU)
    hu.index_copy_(0, low, part)


def _pipe(x: torch.Tensor, y: torch.Tensor, across_mm: float, down_mm: float) -> torch.Tensor:
    """Distance (n,) to an endless pipe along z with these half axes, as `solids.ellipsoid` estimates it."""
    x, y = x / across_mm, y / down_mm
    scaled = torch.sqrt(x * x + y * y)
    x, y = x / across_mm, y / down_mm
    return (scaled - 1) * scaled / torch.clamp(torch.sqrt(x * x + y * y), min=1e-6)
