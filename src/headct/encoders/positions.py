"""Where a token lies: position embeddings for 3D grids.

A table is made for one reference grid and resized to the grid at hand, so a crop spans the whole table, as in DINO.
Rotary positions are in mm instead: they know how far two tokens lie apart, whatever the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.encoders.features import Grid, Lattice
from headct.failure import Misuse

Wavelengths = tuple[float, float]
"""The shortest and the longest wave, in mm."""


def cells(grid: Grid, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Indices (N, 3) of the cells of a grid (nx, ny, nz), the third axis fastest."""
    axes = [torch.arange(n, device=device, dtype=dtype) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def sincos(grid: Grid, width: int) -> Tensor:
    """Sine and cosine embeddings (1, N, width), float32, of the cells of a grid (nx, ny, nz)."""
    return sincos_at(cells(grid, dtype=torch.float64), width)[None].float()


def sincos_at(places: Tensor, width: int) -> Tensor:
    """Sine and cosine embeddings (..., width) of places (..., 3) that are counted in cells.

    For the place (i, j, k), with D = width // 6 and w_m = 10000^(-m / D): [sin(j w), cos(j w), sin(i w), cos(i w),
    sin(k w), cos(k w)]. The second axis comes first, as in the published FM-HCT weights. Features beyond 6 D are zero.
    """
    depth = width // 6
    rates = 10000.0 ** (-torch.arange(depth, dtype=places.dtype, device=places.device) / depth)
    i, j, k = places[..., None].unbind(-2)
    waves = [wave(axis * rates) for axis in (j, i, k) for wave in (torch.sin, torch.cos)]
    return F.pad(torch.cat(waves, dim=-1), (0, width - 6 * depth))


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
        return tokens + resize(self.table, self.reference, grid)


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
    """Tokens as they are: a bag, or placed by rotation in every block."""

    def __init__(self, reference: Grid, width: int) -> None:
        super().__init__()

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        return tokens


POSITIONS: dict[str, type[SinCosPositions] | type[LearnedPositions] | type[NoPositions]] = {
    "sincos": SinCosPositions,
    "learned": LearnedPositions,
    "rotary-mm": NoPositions,
    "none": NoPositions,
}


def centred_mm(lattice: Lattice, shape: Grid, grid: Grid, spacing_mm: Tensor) -> Tensor:
    """Token centres (B, N, 3) in mm from the centre of an input of (X, Y, Z) voxels; `spacing_mm` is (B, 3)."""
    first, step, size = (
        torch.tensor(value, device=spacing_mm.device) for value in (lattice.first, lattice.step, shape)
    )
    voxels = cells(grid, device=spacing_mm.device) * step + (first - (size - 1) / 2)
    return voxels * spacing_mm.float()[:, None]


def checked_spacing(spacing_mm: Tensor | None, scans: int) -> Tensor:
    """The spacing of each scan, (B, 3). Raises Misuse where it is missing or of another shape."""
    if spacing_mm is None:
        raise Misuse(
            "this encoder needs the spacing of its input",
            why="its positions are in millimetres",
            do="pass spacing_mm, one row of three for each scan",
        )
    if spacing_mm.shape != (scans, 3):
        raise Misuse(f"spacing_mm must be {(scans, 3)}, got {tuple(spacing_mm.shape)}")
    return spacing_mm


def checked_wavelengths(wavelengths_mm: Sequence[float]) -> Wavelengths:
    """The same two lengths, as a tuple. Raises Misuse unless they are two positive lengths, the shorter first."""
    ordered = len(wavelengths_mm) == 2 and 0 < wavelengths_mm[0] < wavelengths_mm[1]
    if not ordered:
        raise Misuse(f"wavelengths_mm must be two positive lengths, the shorter first, got {tuple(wavelengths_mm)}")
    return wavelengths_mm[0], wavelengths_mm[1]


def wave_rates(count: int, wavelengths_mm: Wavelengths, device: torch.device) -> Tensor:
    """Radians per mm, (count,), float32, of waves from the shortest to the longest length at equal ratios."""
    shortest, longest = wavelengths_mm
    share = torch.linspace(0, 1, count, device=device)
    return 2 * math.pi / shortest * (shortest / longest) ** share


class Turns(NamedTuple):
    """By which angle each pair of a head's features is turned: cosines and sines, (B, 1, T, W / H / 2), float32."""

    cos: Tensor
    sin: Tensor


def turns(places_mm: Tensor, head_width: int, wavelengths_mm: Wavelengths, *, unplaced: int) -> Turns:
    """Turns of T tokens: `unplaced` ones that are not turned (class, registers), then N at places (B, N, 3).

    Rotary positions (arXiv 2104.09864) in 3D: a third of a head's pairs turns with each axis, each pair at its own
    rate; pairs that three does not divide are not turned. The product of a turned query and a turned key then depends
    on their features and on the vector in mm between them, on nothing else.
    """
    rates = wave_rates(head_width // 6, wavelengths_mm, places_mm.device)
    angles = (places_mm[..., None] * rates).flatten(2)  # (B, N, 3 * rates)
    angles = F.pad(angles, (0, head_width // 2 - angles.shape[2], unplaced, 0))[:, None]
    return Turns(angles.cos(), angles.sin())


def turned(features: Tensor, by: Turns) -> Tensor:
    """Queries or keys (B, H, T, W / H) turned in their planes; feature m is paired with m + W / H / 2."""
    a, b = features.chunk(2, dim=-1)
    return torch.cat([a * by.cos - b * by.sin, a * by.sin + b * by.cos], dim=-1).to(features.dtype)
