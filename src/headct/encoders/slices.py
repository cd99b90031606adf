"""A small convolutional network over axial slices, with attention over the stack; made for CPUs.

B batch, C channels, X Y voxels in plane, Z slices, W width, H heads, (nx, ny) cells in plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.encoders.features import Encoder, Features, Lattice
from headct.encoders.positions import Wavelengths, checked_spacing, checked_wavelengths, wave_rates
from headct.failure import Misuse

STEM = 4  # voxels of a side of the first convolution, which is its stride as well
POSITIONS = ("none", "mm")


@dataclass(frozen=True, kw_only=True)
class SliceSettings:
    """The shape of a `SliceEncoder`. Raises Misuse where the numbers do not fit each other."""

    widths: tuple[int, ...]  # features of each stage; each after the first halves the plane
    blocks: tuple[int, ...]  # of each stage
    heads: int = 4  # of the attention over slices
    channels: int = 3
    neighbours: int = 1  # slices that are looked at together with one, on each side of it; 0 is purely 2D
    input_mean: float = 0.3  # of windowed heads, as in the ViT
    input_std: float = 0.35
    positions: str = "none"  # "mm": the attention over slices knows how high each lies, and needs the spacing
    wavelengths_mm: Wavelengths = (8.0, 512.0)  # of "mm": two thin slices to about two heads

    def __post_init__(self) -> None:
        for name in ("widths", "blocks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.widths or min(self.widths) < 1:
            raise Misuse(f"widths must be numbers of at least 1, got {self.widths}")
        if len(self.blocks) != len(self.widths) or min(self.blocks) < 1:
            raise Misuse(f"blocks must be a number of at least 1 for each of {self.widths}, got {self.blocks}")
        if self.heads < 1 or self.widths[-1] % self.heads:
            raise Misuse(f"the last width must be a multiple of heads, got {self.widths[-1]} and {self.heads}")
        if self.channels < 1:
            raise Misuse(f"channels must be at least 1, got {self.channels}")
        if self.neighbours < 0:
            raise Misuse(f"neighbours must not be negative, got {self.neighbours}")
        if self.input_std <= 0:
            raise Misuse(f"input_std must be above zero, got {self.input_std}")
        if self.positions not in POSITIONS:
            raise Misuse(f"positions must be one of {', '.join(POSITIONS)}, got {self.positions!r}")
        object.__setattr__(self, "wavelengths_mm", checked_wavelengths(self.wavelengths_mm))


class SliceStem(nn.Module):
    """Slices together with their neighbours to the first features.

    The neighbours' weights start at zero, so that a new network looks at single slices and learns what more of them
    tell. Beyond the ends lies air.
    """

    def __init__(self, channels: int, width: int, *, neighbours: int, mean: float, std: float) -> None:
        super().__init__()
        self.neighbours, self.mean, self.std = neighbours, mean, std
        kernel = (STEM, STEM, 2 * neighbours + 1)
        self.convolution = nn.Conv3d(channels, width, kernel, stride=(STEM, STEM, 1))
        with torch.no_grad():
            single = self.convolution.weight[..., neighbours].clone() * kernel[2] ** 0.5  # as if it had been alone
            self.convolution.weight.zero_()
            self.convolution.weight[..., neighbours] = single

    def forward(self, x: Tensor) -> Tensor:
        """Features (B * Z, W, X / 4, Y / 4) of x (B, C, X, Y, Z)."""
        x = F.pad(x, (self.neighbours, self.neighbours))
        features = self.convolution((x - self.mean) / self.std).permute(0, 4, 2, 3, 1).flatten(0, 1)
        return features.permute(0, 3, 1, 2)  # in memory the features of a place lie together, as the norms want them


class PlaceNorm(nn.LayerNorm):
    """A norm over the features of each place, so that none depends on its batch, or on how much air is in its plane."""

    def forward(self, planes: Tensor) -> Tensor:
        return super().forward(planes.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvolutionBlock(nn.Module):
    """Two convolutions beside a skip, each after a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm = PlaceNorm(width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second_norm = PlaceNorm(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, planes: Tensor) -> Tensor:
        inner = self.first(F.gelu(self.first_norm(planes)))
        return planes + self.second(F.gelu(self.second_norm(inner)))


class StackAttention(nn.Module):
    """Slices to one vector by gated attention (arXiv 1802.04712, equation 9); each head weighs its own features."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.content = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.score = nn.Linear(width, heads)

    def forward(self, slices: Tensor, places: Tensor | None = None) -> Tensor:
        """A vector (B, W) of slices (B, Z, W).

        `places`, (B, Z, W), are added to what decides the weights, and not to what is weighed.
        """
        seen = slices if places is None else slices + places
        weights = self.score(self.content(seen).tanh() * self.gate(seen).sigmoid()).softmax(dim=1)  # (B, Z, H)
        by_head = slices.reshape(*weights.shape, -1)
        return torch.einsum("bzh,bzhf->bhf", weights, by_head).flatten(1)


class SliceEncoder(Encoder):
    """Convolutions within each slice, then attention over the stack.

    A token is a cell of one slice. A slice is the mean and the maximum of its cells, so that a small finding is not
    averaged away; the scan is the weighted slices. In plane the network counts in voxels.
    """

    settings: SliceSettings

    def __init__(self, settings: SliceSettings) -> None:
        super().__init__()
        self.settings = settings
        widths, width = settings.widths, settings.widths[-1]
        self.stem = SliceStem(
            settings.channels,
            widths[0],
            neighbours=settings.neighbours,
            mean=settings.input_mean,
            std=settings.input_std,
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvolutionBlock(stage_width) for _ in range(blocks)))
            for stage_width, blocks in zip(widths, settings.blocks, strict=True)
        )
        # a kernel as wide as its stride keeps each cell in the middle of what it covers
        self.halvings = nn.ModuleList(nn.Conv2d(before, after, 2, stride=2) for before, after in pairwise(widths))
        self.token_norm = nn.LayerNorm(width)
        self.summary = nn.Linear(2 * width, width)
        self.stack = StackAttention(width, settings.heads)
        self.norm = nn.LayerNorm(width)

    @property
    def channels(self) -> int:
        return self.settings.channels

    @property
    def scan_width(self) -> int:
        return self.settings.widths[-1]

    @property
    def example_shape(self) -> tuple[int, int, int]:
        return 2 * self.cell, 3 * self.cell, 4

    @property
    def cell(self) -> int:
        """Voxels of a side of a cell in plane."""
        return int(STEM * 2 ** len(self.halvings))

    def lattice(self, shape: tuple[int, int, int]) -> Lattice:
        middle = (self.cell - 1) / 2
        return Lattice(first=(middle, middle, 0), step=(self.cell, self.cell, 1))

    def forward(self, x: Tensor, spacing_mm: Tensor | None = None) -> Features:
        """Features of x, (B, C, X, Y, Z), whose last axis counts slices.

        A plane that cells do not divide is padded with zeros after its last voxels. Raises Misuse where positions are
        in mm and the spacing is not given.
        """
        batch, _, rows, columns, depth = x.shape
        places = self._places(spacing_mm, batch, depth, x.dtype)
        planes = self._planes(F.pad(x, (0, 0, 0, -columns % self.cell, 0, -rows % self.cell)))
        nx, ny = planes.shape[2:]
        by_scan = planes.reshape(batch, depth, -1, nx, ny)
        cells = self.token_norm(by_scan.permute(0, 3, 4, 1, 2))  # (B, nx, ny, Z, W)
        slices = self.summary(torch.cat([cells.mean(dim=(1, 2)), cells.amax(dim=(1, 2))], dim=2))
        scan = self.norm(self.stack(slices, places))
        return Features(scan=scan, tokens=cells.flatten(1, 3), grid=(nx, ny, depth))

    def _planes(self, x: Tensor) -> Tensor:
        """Cells (B * Z, W, nx, ny) of x (B, C, X, Y, Z)."""
        planes = self.stages[0](self.stem(x))
        for halving, stage in zip(self.halvings, self.stages[1:], strict=True):
            planes = stage(halving(planes))
        return planes

    def _places(self, spacing_mm: Tensor | None, batch: int, depth: int, dtype: torch.dtype) -> Tensor | None:
        """Sines and cosines (B, Z, W) of the heights of slices in mm, from the middle of the stack."""
        if self.settings.positions == "none":
            return None
        gaps_mm = checked_spacing(spacing_mm, batch)[:, 2:].float()
        heights_mm = gaps_mm * (torch.arange(depth, device=gaps_mm.device) - (depth - 1) / 2)
        angles = heights_mm[..., None] * wave_rates(self.scan_width // 2, self.settings.wavelengths_mm, gaps_mm.device)
        return torch.cat([angles.sin(), angles.cos()], dim=2).to(dtype)
