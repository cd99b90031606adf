"""Masked autoencoding (arXiv 2111.06377): hide patches, look at the rest, and rebuild what was hidden.

B batch, N patches, K kept patches, W width, P = C * px * py * pz numbers of a patch, as `vit.cut` gives them. The parts
go together so, with an encoder whose `register_tokens` are not handed on:

    hiding = hide(noise, share)
    tokens, grid = encoder.sequence(x, keep=hiding.keep)
    rebuilt = decoder(encoder.without_registers(tokens), hiding, grid)
    loss = rebuilding_loss(rebuilt, cut(x, patch)[0], hiding.hidden)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from headct.encoders.features import Grid
from headct.encoders.positions import POSITIONS
from headct.encoders.vit import Block
from headct.failure import Misuse


@dataclass(frozen=True)
class Hiding:
    """Which patches of each scan are hidden."""

    keep: Tensor  # (B, K), numbers of the kept patches, in the order in which they are looked at
    restore: Tensor  # (B, N), where each patch stands in the order kept, not kept
    hidden: Tensor  # (B, N), bool: not kept, and to be rebuilt


def hide(noise: Tensor, share: float) -> Hiding:
    """Hide a share of N patches of each scan: the kept ones have the smallest noise (B, N).

    Raises Misuse unless at least one patch is kept and one is hidden.
    """
    patches = noise.shape[1]
    kept = round(patches * (1 - share))
    if not 0 < kept < patches:
        raise Misuse(f"a share of {share:g} hides {patches - kept} of {patches} patches", do="keep some, hide some")
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    return Hiding(keep=order[:, :kept], restore=restore, hidden=restore >= kept)


def hide_tissue(noise: Tensor, share: float, tissue: Tensor) -> Hiding:
    """Hide the share among the patches of each scan that are tissue (B, N), however many these are.

    Of T such patches the round((1 - share) * T) of least noise are kept, at least one, and then as many of air as it
    takes to keep K everywhere, as `hide` does of N. That never is more air than there is. The rest of the air is not
    looked at and not hidden: there is nothing to rebuild. Where all is tissue, the patches are those of `hide`.
    """
    place = noise.masked_fill(~tissue, math.inf).argsort(dim=1).argsort(dim=1)  # of tissue among tissue
    kept = ((1 - share) * tissue.sum(dim=1, keepdim=True).double()).round().clamp(min=1)
    hiding = hide(noise + 1.0 * ~tissue + 2.0 * (tissue & (place >= kept)), share)  # noise lies in 0..1
    return replace(hiding, hidden=hiding.hidden & tissue)


def standardised(patches: Tensor) -> Tensor:
    """Patches (B, N, P), each without its mean and divided by its (unbiased) deviation."""
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def rebuilding_loss(rebuilt: Tensor, patches: Tensor, hidden: Tensor, *, standardise: bool = False) -> Tensor:
    """Mean squared error of hidden patches; `rebuilt` and `patches` are (B, N, P), `hidden` (B, N).

    With `standardise` each patch must be rebuilt as it is after taking its mean and dividing by its deviation. Every
    scan weighs alike, however many of its patches are hidden; one that hides none costs nothing.
    """
    targets = standardised(patches) if standardise else patches
    return mean_over((rebuilt - targets).square().mean(dim=2), hidden)


def mean_over(values: Tensor, counted: Tensor) -> Tensor:
    """The mean over scans of each scan's mean of those of its values (B, N) that are counted (B, N); 0 without any."""
    return ((values * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)).mean()


class MaskedDecoder(nn.Module):
    """Tokens of the kept patches to all patches."""

    def __init__(
        self,
        encoder_width: int,
        outputs: int,
        grid: Grid,
        *,
        width: int = 768,
        depth: int = 8,
        heads: int = 16,
        mlp_width: int = 3072,
        bias: bool = True,
        positions: str = "sincos",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if width % heads:
            raise Misuse(f"width must be a multiple of heads, got {width} and {heads}")
        if positions not in ("sincos", "learned"):  # hidden tokens are alike but for their position
            raise Misuse(f"positions must be one of sincos, learned, got {positions!r}")
        self.embed = nn.Linear(encoder_width, width, bias=bias)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.class_position = nn.Parameter(torch.empty(1, 1, width))
        self.positions = POSITIONS[positions](grid, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_width, qkv_bias=bias, norm_eps=norm_eps) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.out = nn.Linear(width, outputs, bias=bias)
        for token in (self.mask_token, self.class_position):
            nn.init.trunc_normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, hiding: Hiding, grid: Grid) -> Tensor:
        """All patches (B, N, P) of the grid, from tokens (B, 1 + K, W): the class token, then the kept patches."""
        class_token, kept = self.embed(tokens).split([1, tokens.shape[1] - 1], dim=1)
        hidden = self.mask_token.expand(len(kept), hiding.restore.shape[1] - kept.shape[1], -1)
        patches = torch.take_along_dim(torch.cat([kept, hidden], dim=1), hiding.restore[..., None], dim=1)
        tokens = torch.cat([class_token + self.class_position, self.positions(patches, grid)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.out(self.norm(tokens[:, 1:]))
