"""A 3D vision transformer for volumes of any shape, with patches of any proportions.

B batch, C channels, X Y Z voxels, N patches, R registers, T = 1 + R + N tokens, W width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.encoders.features import Encoder, Features, Grid, Lattice
from headct.encoders.positions import POSITIONS
from headct.failure import Misuse

POOLINGS = ("class", "mean", "class+mean")


@dataclass(frozen=True, kw_only=True)
class ViTSettings:
    """The shape of a `ViT3D`. Raises Misuse where the numbers do not fit each other."""

    width: int  # features of a token
    depth: int  # blocks
    heads: int
    mlp_width: int
    channels: int = 3
    input_mean: float = 0.3  # of windowed heads; subtracted first, for an input that is all positive learns slowly
    input_std: float = 0.35
    patch: tuple[int, int, int] = (16, 16, 16)  # voxels; fits 96 x 112 x 96 without a rest
    grid: Grid = (6, 7, 6)  # patches for which the position table is made; other grids resize it
    registers: int = 4  # arXiv 2309.16588
    qkv_bias: bool = True
    positions: str = "sincos"
    pooling: str = "class"  # how tokens become the scan vector
    norm_eps: float = 1e-5
    last_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("patch", "grid"):
            value = tuple(getattr(self, name))
            if len(value) != 3 or min(value) < 1:
                raise Misuse(f"{name} must be three positive whole numbers, got {value}")
            object.__setattr__(self, name, value)
        for name in ("width", "depth", "heads", "mlp_width", "channels"):
            if getattr(self, name) < 1:
                raise Misuse(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.input_std <= 0:
            raise Misuse(f"input_std must be above zero, got {self.input_std}")
        if self.registers < 0:
            raise Misuse(f"registers must not be negative, got {self.registers}")
        if self.width % self.heads:
            raise Misuse(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        if self.positions not in POSITIONS:
            raise Misuse(f"positions must be one of {', '.join(POSITIONS)}, got {self.positions!r}")
        if self.pooling not in POOLINGS:
            raise Misuse(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")


class PatchEmbedding(nn.Module):
    """One linear map for every patch, which equals a convolution whose stride is its kernel.

    A volume that patches do not divide is padded with zeros, air in every window, after its last voxels. Then it is
    standardised.
    """

    def __init__(
        self, channels: int, patch: tuple[int, int, int], width: int, *, mean: float = 0.0, std: float = 1.0
    ) -> None:
        super().__init__()
        self.patch, self.mean, self.std = patch, mean, std
        self.linear = nn.Linear(channels * patch[0] * patch[1] * patch[2], width)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Tokens (B, N, W) and their grid, from x (B, C, X, Y, Z)."""
        px, py, pz = self.patch
        rest_x, rest_y, rest_z = (-x.shape[2] % px, -x.shape[3] % py, -x.shape[4] % pz)
        if rest_x or rest_y or rest_z:
            x = F.pad(x, (0, rest_z, 0, rest_y, 0, rest_x))
        batch, channels, *voxels = x.shape
        grid = nx, ny, nz = voxels[0] // px, voxels[1] // py, voxels[2] // pz
        cells = x.reshape(batch, channels, nx, px, ny, py, nz, pz)
        patches = cells.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)  # (B, N, C * px * py * pz)
        return self.linear((patches - self.mean) / self.std), grid


class Attention(nn.Module):
    """Multi-head self-attention through PyTorch's own fused kernel."""

    def __init__(self, width: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, W / H) each
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention between tokens, then an MLP within each; both after a norm and beside a skip (pre-norm)."""

    def __init__(self, settings: ViTSettings) -> None:
        super().__init__()
        width = settings.width
        self.attention_norm = nn.LayerNorm(width, eps=settings.norm_eps)
        self.attention = Attention(width, settings.heads, settings.qkv_bias)
        self.mlp_norm = nn.LayerNorm(width, eps=settings.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(width, settings.mlp_width), nn.GELU(), nn.Linear(settings.mlp_width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))


class ViT3D(Encoder):
    """Patches, class and register tokens, pre-norm blocks, a last norm (arXiv 2010.11929, in 3D).

    The class and register tokens have no position and start random: registers that start equal receive equal
    gradients and stay equal for ever.
    """

    settings: ViTSettings

    def __init__(self, settings: ViTSettings) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = PatchEmbedding(
            settings.channels, settings.patch, settings.width, mean=settings.input_mean, std=settings.input_std
        )
        self.positions = POSITIONS[settings.positions](settings.grid, settings.width)
        self.class_token = nn.Parameter(torch.empty(1, 1, settings.width))
        self.register_tokens = nn.Parameter(torch.empty(1, settings.registers, settings.width))
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width, eps=settings.last_norm_eps)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.register_tokens, std=0.02)

    @property
    def channels(self) -> int:
        return self.settings.channels

    @property
    def scan_width(self) -> int:
        return self.settings.width * (2 if self.settings.pooling == "class+mean" else 1)

    @property
    def example_shape(self) -> tuple[int, int, int]:
        px, py, pz = self.settings.patch
        return 2 * px, 3 * py, 2 * pz

    def lattice(self, shape: tuple[int, int, int]) -> Lattice:
        px, py, pz = self.settings.patch
        return Lattice(first=((px - 1) / 2, (py - 1) / 2, (pz - 1) / 2), step=(px, py, pz))

    def forward(self, x: Tensor, spacing_mm: Tensor | None = None) -> Features:
        """Features of x, (B, C, X, Y, Z); this encoder counts in patches and does not use the spacing."""
        tokens, grid = self.sequence(x)
        patches = tokens[:, 1 + self.settings.registers :]
        return Features(scan=self._pool(tokens[:, 0], patches), tokens=patches, grid=grid)

    def sequence(self, x: Tensor) -> tuple[Tensor, Grid]:
        """All normalised tokens (B, T, W), in the order class, registers, patches, and the grid of the patches."""
        patches, grid = self.embedding(x)
        patches = self.positions(patches, grid)
        batch = len(patches)
        first = (self.class_token.expand(batch, -1, -1), self.register_tokens.expand(batch, -1, -1))
        tokens = torch.cat([*(token.to(patches.dtype) for token in first), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens), grid

    def _pool(self, class_token: Tensor, patches: Tensor) -> Tensor:
        if self.settings.pooling == "class":
            return class_token
        mean = patches.mean(dim=1)
        return mean if self.settings.pooling == "mean" else torch.cat([class_token, mean], dim=1)
