"""Where a token lies: position embeddings for 3D grids.

A table is made for one reference grid and resized to the grid at hand, so a crop spans the whole table, as in DINO.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.encoders.features import Grid


def sincos(grid: Grid, width: int) -> Tensor:
    """Sine and cosine embeddings (1, N, width), float32, of the cells of a grid (nx, ny, nz).

    For the cell (i, j, k), with D = width // 6 and w_m = 10000^(-m / D): [sin(j w), cos(j w), sin(i w), cos(i w),
    sin(k w), cos(k w)]. The second axis comes first, as in the published FM-HCT weights, and k runs fastest over rows.
    Features beyond 6 D are zero.
    """
    depth = width // 6
    rates = 10000.0 ** (-torch.arange(depth, dtype=torch.float64) / depth)
    i, j, k = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    waves = [wave(axis.flatten()[:, None] * rates) for axis in (j, i, k) for wave in (torch.sin, torch.cos)]
    return F.pad(torch.cat(waves, dim=1), (0, width - 6 * depth))[None].float()


def resize(table: Tensor, reference: Grid, grid: Grid) -> Tensor:
    """A table (1, N, width) of the reference grid, interpolated trilinearly to another grid."""
    if grid == reference:
        return table
    volume = table.transpose(1, 2).reshape(1, -1, *reference)
    return F.interpolate(volume, size=grid, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)


class SinCosPositions(nn.Module):
    """Fixed sine and cosine positions; computed, so that no checkpoint holds them."""

    table: Tensor

    def __init__(self, reference: Grid, width: int) -> None:
        super().__init__()
        self.reference = reference
        self.register_buffer("table", sincos(reference, width), persistent=False)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        return tokens + resize(self.table, self.reference, grid).to(tokens.dtype)


class LearnedPositions(nn.Module):
    """A table of weights, one row for each cell of the reference grid."""

    def __init__(self, reference: Grid, width: int) -> None:
        super().__init__()
        self.reference = reference
        self.table = nn.Parameter(torch.empty(1, reference[0] * reference[1] * reference[2], width))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        return tokens + resize(self.table, self.reference, grid)


class NoPositions(nn.Module):
    """Tokens as a bag."""

    def __init__(self, reference: Grid, width: int) -> None:
        super().__init__()

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        return tokens


POSITIONS: dict[str, type[SinCosPositions] | type[LearnedPositions] | type[NoPositions]] = {
    "sincos": SinCosPositions,
    "learned": LearnedPositions,
    "none": NoPositions,
}
