"""A 3D vision transformer for volumes of any shape, with patches of any proportions.

B batch, C channels, X Y Z voxels, N patches, K kept patches, R registers, T = 1 + R + N tokens, W width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.encoders.features import Encoder, Features, Grid, Lattice
from headct.encoders.positions import (
    POSITIONS,
    Turns,
    Wavelengths,
    centred_mm,
    checked_spacing,
    checked_wavelengths,
    turned,
    turns,
)
from headct.failure import Misuse

POOLINGS = ("class", "mean", "class+mean")
NORMS: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


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
    wavelengths_mm: Wavelengths = (32.0, 512.0)  # of "rotary-mm": two patches of 16 mm to about two heads
    pooling: str = "class"  # how tokens become the scan vector
    drop_air: bool = False  # patches that are zero in every channel, as air and padding are, take no part
    norm: str = "layer"
    norm_eps: float = 1e-5
    last_norm_eps: float = 1e-6
    layer_scale: float = 0.0  # first gain of each branch (arXiv 2103.17239), such as 1e-5; 0 is none
    drop_path: float = 0.0  # share of scans that skip a branch of the last block while training (arXiv 1603.09382)

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
        for name in ("registers", "layer_scale"):
            if getattr(self, name) < 0:
                raise Misuse(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.drop_path < 1:
            raise Misuse(f"drop_path must be at least 0 and below 1, got {self.drop_path}")
        if self.width % self.heads:
            raise Misuse(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        for name, known in (("positions", POSITIONS), ("pooling", POOLINGS), ("norm", NORMS)):
            if getattr(self, name) not in known:
                raise Misuse(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        object.__setattr__(self, "wavelengths_mm", checked_wavelengths(self.wavelengths_mm))
        head_width = self.width // self.heads
        if self.positions == "rotary-mm" and (head_width % 2 or head_width < 6):
            raise Misuse(f"rotary-mm positions need an even number of at least 6 features a head, got {head_width}")


def cut(x: Tensor, patch: Grid) -> tuple[Tensor, Grid]:
    """Patches (B, N, C * px * py * pz) of x (B, C, X, Y, Z), and their grid.

    A volume that patches do not divide is padded with zeros, air in every window, after its last voxels.
    """
    px, py, pz = patch
    rest_x, rest_y, rest_z = (-x.shape[2] % px, -x.shape[3] % py, -x.shape[4] % pz)
    if rest_x or rest_y or rest_z:
        x = F.pad(x, (0, rest_z, 0, rest_y, 0, rest_x))
    batch, channels, *voxels = x.shape
    grid = nx, ny, nz = voxels[0] // px, voxels[1] // py, voxels[2] // pz
    boxes = x.reshape(batch, channels, nx, px, ny, py, nz, pz)
    return boxes.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3), grid


class PatchEmbedding(nn.Module):
    """One linear map for every standardised patch, which equals a convolution whose stride is its kernel."""

    def __init__(self, channels: int, patch: Grid, width: int, *, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.linear = nn.Linear(channels * patch[0] * patch[1] * patch[2], width)

    def forward(self, patches: Tensor) -> Tensor:
        """Tokens (B, N, W) of patches (B, N, C * px * py * pz)."""
        return self.linear((patches - self.mean) / self.std)


class Attention(nn.Module):
    """Multi-head self-attention through PyTorch's own fused kernel."""

    def __init__(self, width: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, by: Turns | None = None, attended: Tensor | None = None) -> Tensor:
        """Mixed tokens (B, T, W); queries and keys turned `by`, and only tokens `attended`, (B, T), looked at."""
        batch, length, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, W / H) each
        if by is not None:
            q, k = turned(q, by), turned(k, by)
        mask = None if attended is None else attended[:, None, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    """A learned gain for each feature of a branch."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), start))

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.gain


class DropPath(nn.Module):
    """Zeros the branch of a share of the scans while training, and enlarges the others by as much."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.share
        return branch * kept / (1 - self.share)


class Block(nn.Module):
    """Attention between tokens, then an MLP within each; both after a norm and beside a skip (pre-norm)."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        qkv_bias: bool = True,
        norm: str = "layer",
        norm_eps: float = 1e-5,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = NORMS[norm](width, eps=norm_eps)
        self.attention = Attention(width, heads, qkv_bias)
        self.attention_scale = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.mlp_norm = NORMS[norm](width, eps=norm_eps)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width))
        self.mlp_scale = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, by: Turns | None = None, attended: Tensor | None = None) -> Tensor:
        mixed = self.attention(self.attention_norm(tokens), by, attended)
        tokens = tokens + self.drop_path(self.attention_scale(mixed))
        return tokens + self.drop_path(self.mlp_scale(self.mlp(self.mlp_norm(tokens))))


class Masked(NamedTuple):
    """Patches in whose place an encoder sees a token that says nothing but where it is."""

    patches: Tensor  # (B, N), True where masked
    token: Tensor  # (W,)


class ViT3D(Encoder):
    """Patches, class and register tokens, pre-norm blocks, a last norm (arXiv 2010.11929, in 3D).

    The class and register tokens have no position and start random: registers that start equal receive equal
    gradients and stay equal for ever. With `drop_air`, patches without content are neither looked at nor pooled, and
    their tokens are zeros. With positions in mm, air added evenly around a head then changes nothing; tables of
    positions are resized to the whole grid, air included.
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
        self.blocks = nn.ModuleList(self._block(index) for index in range(settings.depth))
        self.norm = NORMS[settings.norm](settings.width, eps=settings.last_norm_eps)
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

    def forward(self, x: Tensor, spacing_mm: Tensor | None = None, masked: Masked | None = None) -> Features:
        """Features of x, (B, C, X, Y, Z). Raises Misuse where positions are in mm and the spacing is not given."""
        tokens, seen, grid = self._look(x, spacing_mm, None, masked)
        patches = tokens[:, 1 + self.settings.registers :]
        return Features(scan=self._pool(tokens[:, 0], patches, seen), tokens=patches, grid=grid)

    def sequence(self, x: Tensor, spacing_mm: Tensor | None = None, keep: Tensor | None = None) -> tuple[Tensor, Grid]:
        """All normalised tokens (B, T, W), in the order class, registers, patches, and the grid of the patches.

        With `keep`, (B, K), only the patches of these numbers are looked at, in this order: then T = 1 + R + K.
        """
        tokens, _, grid = self._look(x, spacing_mm, keep)
        return tokens, grid

    def without_registers(self, tokens: Tensor) -> Tensor:
        """The class token and the patches, (B, T - R, W), of the tokens that `sequence` gave."""
        return torch.cat([tokens[:, :1], tokens[:, 1 + self.settings.registers :]], dim=1)

    def pooled(self, tokens: Tensor) -> Tensor:
        """The scan vectors (B, F) of the tokens that `sequence` gave, of kept patches alone where others were left out.

        Tokens of air are known by being zeros, which no norm gives otherwise.
        """
        patches = tokens[:, 1 + self.settings.registers :]
        return self._pool(tokens[:, 0], patches, (patches != 0).any(dim=2) if self.settings.drop_air else None)

    def _look(
        self, x: Tensor, spacing_mm: Tensor | None, keep: Tensor | None, masked: Masked | None = None
    ) -> tuple[Tensor, Tensor | None, Grid]:
        """The tokens of `sequence`, which of its patches are no air, (B, N) or None for all, and the whole grid."""
        patches, grid = cut(x, self.settings.patch)
        embedded = self.embedding(patches)
        if masked is not None:
            embedded = torch.where(masked.patches[..., None], masked.token.to(embedded.dtype), embedded)
        tokens = _taken(self.positions(embedded, grid), keep)
        seen = _taken((patches != 0).any(dim=2, keepdim=True), keep)[..., 0] if self.settings.drop_air else None
        unplaced = 1 + self.settings.registers
        attended = None if seen is None else F.pad(seen, (unplaced, 0), value=True)
        by = self._turns(x, grid, spacing_mm, keep)
        first = (token.expand(len(x), -1, -1) for token in (self.class_token, self.register_tokens))
        tokens = torch.cat([*first, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens, by, attended)
        tokens = self.norm(tokens)
        return (tokens if attended is None else tokens * attended[..., None]), seen, grid

    def _turns(self, x: Tensor, grid: Grid, spacing_mm: Tensor | None, keep: Tensor | None) -> Turns | None:
        settings = self.settings
        if settings.positions != "rotary-mm":
            return None
        shape = x.shape[2], x.shape[3], x.shape[4]
        places_mm = centred_mm(self.lattice(shape), shape, grid, checked_spacing(spacing_mm, len(x)))
        head_width = settings.width // settings.heads
        return turns(_taken(places_mm, keep), head_width, settings.wavelengths_mm, unplaced=1 + settings.registers)

    def _pool(self, class_token: Tensor, patches: Tensor, seen: Tensor | None) -> Tensor:
        if self.settings.pooling == "class":
            return class_token
        # the tokens of air are zeros, so only their number has to be left out; a scan of air alone gives zeros
        mean = patches.mean(dim=1) if seen is None else patches.sum(dim=1) / seen.sum(dim=1, keepdim=True).clamp(min=1)
        return mean if self.settings.pooling == "mean" else torch.cat([class_token, mean], dim=1)

    def _block(self, index: int) -> Block:
        settings = self.settings
        return Block(
            settings.width,
            settings.heads,
            settings.mlp_width,
            qkv_bias=settings.qkv_bias,
            norm=settings.norm,
            norm_eps=settings.norm_eps,
            layer_scale=settings.layer_scale,
            drop_path=settings.drop_path * index / max(1, settings.depth - 1),  # rises from 0 at the first block
        )


def _taken(tokens: Tensor, keep: Tensor | None) -> Tensor:
    """The tokens (B, K, W) of the numbers `keep`, (B, K), or all of them."""
    return tokens if keep is None else torch.take_along_dim(tokens, keep[..., None], dim=1)
