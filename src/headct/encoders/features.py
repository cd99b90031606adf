"""What every encoder is given and what it gives back, so that every later room serves all encoders alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Features:
    """What an encoder sees in B scans: one vector each, and one for each place.

    `tokens[b, n]` belongs to grid cell (i, j, k) with n = (i * ny + j) * nz + k: the third axis runs fastest.
    """

    scan: Tensor  # (B, F), pooled as the encoder's settings say
    tokens: Tensor  # (B, N, W), N = nx * ny * nz
    grid: Grid  # (nx, ny, nz)


@dataclass(frozen=True)
class Lattice:
    """Where the tokens of a grid lie in the input: token (i, j, k) is centred at voxel `first + step * (i, j, k)`."""

    first: tuple[float, float, float]  # voxels; voxel 0 is the centre of the first one
    step: tuple[float, float, float]  # voxels


class Encoder(nn.Module, ABC):
    """A network from windowed volumes to `Features`.

    `architecture` is the name under which `encoders.build` makes it again and `settings` the frozen dataclass that it
    was made from; a checkpoint stores both.
    """

    architecture: str = ""
    settings: Any
    __call__: Callable[..., Features]

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels C of the input."""

    @property
    @abstractmethod
    def scan_width(self) -> int:
        """Length F of the scan vector."""

    @property
    @abstractmethod
    def example_shape(self) -> tuple[int, int, int]:
        """A small input (X, Y, Z) that exercises every weight; what a checkpoint tests itself with."""

    @abstractmethod
    def lattice(self, shape: tuple[int, int, int]) -> Lattice:
        """Where the tokens lie in an input of (X, Y, Z) voxels."""

    @abstractmethod
    def forward(self, x: Tensor, spacing_mm: Tensor | None = None) -> Features:
        """Features of x, (B, C, X, Y, Z) with RAS axes; `spacing_mm` is (B, 3), for encoders that measure in mm."""
