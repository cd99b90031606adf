"""Heads that objectives and detectors put on an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.encoders.positions import sincos_at
from headct.encoders.vit import Block
from headct.failure import Misuse


def mlp(widths: Sequence[int], activation: type[nn.Module], *, batch_norm: bool) -> nn.Sequential:
    """Linears from width to width with an activation between, before which a BatchNorm may stand."""
    layers = nn.Sequential()
    for index, (before, after) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(before, after))
        if index < len(widths) - 2:
            if batch_norm:
                layers.append(nn.BatchNorm1d(after))
            layers.append(activation())
    return layers


class LinearHead(nn.Module):
    """Logits from scan vectors: each feature standardised, then one linear map.

    The statistics are those of the training scans; in evaluation no scan depends on its batch.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)

    def forward(self, scans: Tensor) -> Tensor:
        """Logits (B, outputs) of scan vectors (B, F)."""
        return self.linear(self.norm(scans))


class AttentiveHead(nn.Module):
    """Logits from tokens: learned queries look at all of them, and what they find is averaged and mapped.

    `published_scaling` is only for published FM-HCT heads: their attention divides by the square root of a head's
    width twice, and with several queries it takes the features of one head and query for those of another.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        heads: int,
        queries: int = 1,
        kv_bias: bool = False,
        published_scaling: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise Misuse(f"width must be a multiple of heads, got {width} and {heads}")
        self.heads, self.published_scaling = heads, published_scaling
        self.token_norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.queries = nn.Parameter(torch.empty(1, queries, width))
        self.kv = nn.Linear(width, 2 * width, bias=kv_bias)
        self.found_norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.queries, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, outputs) of tokens (B, T, F)."""
        batch, length, width = tokens.shape
        tokens = self.token_norm(tokens.transpose(1, 2)).transpose(1, 2)
        k, v = self.kv(tokens).reshape(batch, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, F / H)
        q = self.queries.expand(batch, -1, -1).reshape(batch, -1, self.heads, width // self.heads).transpose(1, 2)
        if self.published_scaling:
            found = F.scaled_dot_product_attention(q * q.shape[-1] ** -0.5, k, v).reshape(batch, -1, width)
        else:
            found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, Q, F)
        return self.linear(self.found_norm(found.transpose(1, 2)).mean(dim=2))


class ProjectionMLP(nn.Module):
    """Scan vectors to the space of a contrastive loss: linears with a ReLU between (SimCLR, arXiv 2002.05709).

    CT-FM's has widths 512, 256 and 128 and no BatchNorm.
    """

    def __init__(self, widths: Sequence[int], *, batch_norm: bool = False) -> None:
        super().__init__()
        self.layers = mlp(widths, nn.ReLU, batch_norm=batch_norm)

    def forward(self, scans: Tensor) -> Tensor:
        """Projections (B, widths[-1]) of scan vectors (B, widths[0])."""
        return self.layers(scans)


class DinoHead(nn.Module):
    """Scan vectors or tokens to scores of prototypes: an MLP, the unit sphere, then cosines with K prototypes.

    The last layer is weight-normalised with its gain fixed at 1 (arXiv 2104.14294, section 3.2 and appendix C), so
    its output is the cosine between the bottleneck feature and each prototype, and lies in -1..1; with `free_gain`
    each prototype learns its own gain. `batch_norm` puts a BatchNorm between each hidden linear and its GELU; then
    small differences between the scans of a batch are enlarged before they are scored. iBOT's head (arXiv 2111.07832)
    is this one applied to tokens.
    """

    def __init__(
        self,
        width: int,
        *,
        prototypes: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        batch_norm: bool = False,
        free_gain: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = mlp([width, *[hidden] * (layers - 1), bottleneck], nn.GELU, batch_norm=batch_norm)
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)
        self.gain = nn.Parameter(torch.ones(prototypes)) if free_gain else None
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B, K) of scan vectors (B, F), or (B, N, K) of tokens (B, N, F)."""
        points = F.normalize(self.mlp(features.flatten(0, -2)), dim=1)
        scores = F.linear(points, F.normalize(self.prototypes.weight, dim=1))
        if self.gain is not None:
            scores = scores * self.gain
        return scores.reshape(*features.shape[:-1], -1)


class Predictor(nn.Module):
    """What lies at hidden places, from the tokens that were seen: a narrow transformer (I-JEPA, arXiv 2301.08243).

    Every token gets the sine and cosine of its place; a hidden one is otherwise one learned mask token.
    """

    def __init__(
        self, width: int, *, inner: int = 384, depth: int = 6, heads: int = 6, outputs: int | None = None
    ) -> None:
        super().__init__()
        if inner % heads:
            raise Misuse(f"inner must be a multiple of heads, got {inner} and {heads}")
        self.embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(torch.empty(1, 1, inner))
        self.blocks = nn.ModuleList(Block(inner, heads, 4 * inner) for _ in range(depth))
        self.norm = nn.LayerNorm(inner)
        self.out = nn.Linear(inner, width if outputs is None else outputs)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, seen: Tensor, seen_places: Tensor, hidden_places: Tensor) -> Tensor:
        """Predictions (B, M, outputs) for M hidden places, from K tokens seen (B, K, F).

        Places are (B, K, 3) and (B, M, 3), counted in cells of the grid. Further tokens that were seen and have no
        place, such as a class token, stand before the K.
        """
        inner = self.mask_token.shape[2]
        tokens = self.embed(seen)
        placed = sincos_at(seen_places.float(), inner).to(self.mask_token.dtype)
        tokens = tokens + F.pad(placed, (0, 0, seen.shape[1] - placed.shape[1], 0))
        asked = self.mask_token + sincos_at(hidden_places.float(), inner).to(self.mask_token.dtype)
        tokens = torch.cat([tokens, asked], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.out(self.norm(tokens[:, seen.shape[1] :]))
