"""A small 3D residual network that learns within minutes on a processor. B batch, C channels, X Y Z voxels, W width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.encoders.features import Encoder, Features, Grid, Lattice
from headct.failure import Misuse


def checked_triple(name: str, value: Sequence[int]) -> Grid:
    """The same numbers, as a tuple. Raises Misuse unless they are three whole ones above zero."""
    if len(value) != 3 or min(value) < 1:
        raise Misuse(f"{name} must be three positive whole numbers, got {tuple(value)}")
    x, y, z = value
    return x, y, z


@dataclass(frozen=True, kw_only=True)
class ConvSettings:
    """The shape of a `ConvEncoder`; the defaults are for voxels of 4 mm. Raises Misuse for impossible numbers."""

    channels: int = 3
    input_mean: float = 0.3  # of windowed heads; subtracted first
    input_std: float = 0.35
    stem: int = 2  # voxels of a side that the first convolution makes one place of
    widths: tuple[int, ...] = (16, 48, 112)  # features of each level, each at half the resolution of the one before
    blocks: tuple[int, ...] = (1, 2, 1)  # residual blocks of each level
    whole: Grid = (48, 56, 48)  # voxels; an input of k times as many along every axis is averaged to it first

    def __post_init__(self) -> None:
        for name in ("widths", "blocks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.widths) < 2 or len(self.widths) != len(self.blocks) or min(*self.widths, *self.blocks) < 1:
            raise Misuse(
                "widths and blocks must be positive whole numbers, as many of one as of the other and at least two, "
                f"got {self.widths} and {self.blocks}"
            )
        object.__setattr__(self, "whole", checked_triple("whole", self.whole))
        for name in ("channels", "stem"):
            if getattr(self, name) < 1:
                raise Misuse(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.input_std <= 0:
            raise Misuse(f"input_std must be above zero, got {self.input_std}")


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution and its BatchNorm; a kernel as wide as its stride keeps each place in the middle of its voxels."""
    padding = kernel // 2 if stride == 1 else 0
    return nn.Sequential(
        nn.Conv3d(before, after, kernel, stride=stride, padding=padding, bias=False), nn.BatchNorm3d(after)
    )


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width, 3)
        self.second = _convolution(width, width, 3)

    def forward(self, places: Tensor) -> Tensor:
        return F.relu(places + self.second(F.relu(self.first(places))))


class ConvEncoder(Encoder):
    """Levels of residual blocks; a token is a place of the last level but one beside the place of the last above it.

    So tokens are as fine as the last level but one and know what surrounds them. The scan vector is their mean and
    their maximum. In training mode BatchNorm takes its statistics from the batch.
    """

    settings: ConvSettings

    def __init__(self, settings: ConvSettings) -> None:
        super().__init__()
        self.settings = settings
        widths = settings.widths
        self.stem = _convolution(settings.channels, widths[0], settings.stem, settings.stem)
        self.levels = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
            for width, blocks in zip(widths, settings.blocks, strict=True)
        )
        self.halvings = nn.ModuleList(_convolution(before, after, 2, 2) for before, after in pairwise(widths))

    @property
    def channels(self) -> int:
        return self.settings.channels

    @property
    def token_width(self) -> int:
        """Features of a token."""
        return sum(self.settings.widths[-2:])

    @property
    def scan_width(self) -> int:
        return 2 * self.token_width

    @property
    def example_shape(self) -> Grid:
        side = self._side
        return 2 * side, 3 * side, 2 * side

    @property
    def _side(self) -> int:
        """Voxels of a side of a place of the last level."""
        return int(self.settings.stem * 2 ** len(self.halvings))

    def lattice(self, shape: Grid) -> Lattice:
        step = self._averaged(shape) * self._side // 2
        first = (step - 1) / 2
        return Lattice(first=(first, first, first), step=(step, step, step))

    def _averaged(self, shape: Grid) -> int:
        """Voxels of a side of the input that are averaged first."""
        times = {n // whole if n % whole == 0 else 1 for n, whole in zip(shape, self.settings.whole, strict=True)}
        return times.pop() if len(times) == 1 else 1

    def forward(self, x: Tensor, spacing_mm: Tensor | None = None) -> Features:
        """Features of x, (B, C, X, Y, Z); this encoder counts in voxels and does not use the spacing.

        A volume that places do not divide is padded with zeros, air in every window, after its last voxels.
        """
        times = self._averaged((x.shape[2], x.shape[3], x.shape[4]))
        x = F.avg_pool3d(x, times) if times > 1 else x
        rest_x, rest_y, rest_z = (-n % self._side for n in x.shape[2:])
        x = (F.pad(x, (0, rest_z, 0, rest_y, 0, rest_x)) - self.settings.input_mean) / self.settings.input_std
        # in memory the features of a place lie together: twice as fast on processors
        places = self.levels[0](F.relu(self.stem(x.contiguous(memory_format=torch.channels_last_3d))))
        before = places
        for halving, level in zip(self.halvings, self.levels[1:], strict=True):
            before, places = places, level(F.relu(halving(places)))
        around = F.interpolate(places, scale_factor=2, mode="nearest")
        tokens = torch.cat([before, around], dim=1)
        nx, ny, nz = tokens.shape[2:]
        tokens = tokens.flatten(2).transpose(1, 2)
        return Features(torch.cat([tokens.mean(dim=1), tokens.amax(dim=1)], dim=1), tokens, (nx, ny, nz))
