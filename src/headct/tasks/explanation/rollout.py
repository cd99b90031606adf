"""Attention rollout: from which patches what an encoder pools has flowed together (Abnar, arXiv 2005.00928).

Attention is averaged over heads, half of each token is what it was (the skip), and the layers are multiplied. Rollout
does not know of findings: its map is the same for all of them, unless the detector looks at tokens by a query of each
finding, which then says where the way begins. N patches, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headct.detection import Detector
from headct.detection.training.attentive import FindingQueries, FittedAttentive
from headct.embedding.machine import Machine
from headct.encoders import Encoder, Lattice, ViT3D, as_input
from headct.encoders.positions import turned
from headct.encoders.vit import Attention
from headct.tasks.explanation.judging import Unfit, looking
from headct.tasks.explanation.maps import over_voxels


def rollout(detector: Detector, hu: np.ndarray, spacing_mm: np.ndarray, machine: Machine) -> np.ndarray:
    """Shares of what is pooled of the head `hu` (X, Y, Z), (1, X, Y, Z), or (f, X, Y, Z) where findings have queries.

    Shares of patches sum up to at most 1 (class and registers have the rest) and are interpolated between their
    middles. Raises Unfit for an encoder without attention between patches, or whose vector is pooled otherwise.
    """
    encoder = looking(detector).eval().to(machine.device)
    x = as_input(torch.from_numpy(hu[None]).to(machine.device), list(detector.encoder.card.windows.values()))
    spacing = torch.from_numpy(np.asarray(spacing_mm, dtype=np.float32)[None]).to(machine.device)
    queries = detector.fitted.head if isinstance(detector.fitted, FittedAttentive) else None
    with torch.no_grad(), _recorded(encoder) as seen:
        features = encoder(x, spacing)
        begin = _queried(queries, features.tokens) if queries is not None else _pooled(encoder)
        shares = _patches(encoder, begin, flowed(seen), queries is not None)
    lattice: Lattice = encoder.lattice((hu.shape[0], hu.shape[1], hu.shape[2]))
    maps = shares.float().cpu().numpy().reshape(-1, *features.grid)
    return np.stack([over_voxels(one, lattice, hu.shape) for one in maps])


def flowed(attentions: list[Tensor]) -> Tensor | None:
    """The product (T, T) of attentions (T, T), first layer first, each mixed half and half with what a token was."""
    if not attentions:
        return None
    mixed = [0.5 * (one + torch.eye(len(one), device=one.device, dtype=one.dtype)) for one in attentions]
    product = mixed[0]
    for one in mixed[1:]:
        product = one @ product
    return product


def attention(layer: Attention, tokens: Tensor, by: Any = None, attended: Tensor | None = None) -> Tensor:
    """How much each token looks at each, (B, H, T, T): what the fused kernel of `layer` computes and does not tell."""
    batch, length, _ = tokens.shape
    q, k, _ = layer.qkv(tokens).reshape(batch, length, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
    if by is not None:
        q, k = turned(q, by), turned(k, by)
    logits = (q @ k.transpose(2, 3)).float() / q.shape[-1] ** 0.5
    if attended is not None:
        logits = logits.masked_fill(~attended[:, None, None], -torch.inf)
    return logits.softmax(dim=3)


@contextmanager
def _recorded(encoder: Encoder) -> Iterator[list[Tensor]]:
    """The attention (T, T) of each layer, averaged over heads, of the one scan that is looked at meanwhile."""
    seen: list[Tensor] = []

    def record(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], out: Tensor) -> None:
        assert isinstance(layer, Attention)
        seen.append(attention(layer, *given, **named)[0].mean(dim=0))

    layers = encoder.modules() if isinstance(encoder, ViT3D) else ()
    hooks = [part.register_forward_hook(record, with_kwargs=True) for part in layers if isinstance(part, Attention)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _pooled(encoder: Encoder) -> Tensor:
    """How much of the vector (1, 2) is the class token, and how much the mean of the patches."""
    if not isinstance(encoder, ViT3D):
        raise Unfit(f"{encoder.architecture or type(encoder).__name__} has no attention between patches of a volume")
    shares = {"class": (1.0, 0.0), "mean": (0.0, 1.0), "class+mean": (0.5, 0.5)}
    return torch.tensor([shares[encoder.settings.pooling]])


def _queried(head: FindingQueries, tokens: Tensor) -> Tensor:
    """How much each finding's query looks at each patch, averaged over heads, (f, N)."""
    keys = head.keys((tokens[0].float() - head.mean) * head.scale)
    k, q = (one.reshape(len(one), head.heads, -1).transpose(0, 1) for one in (keys, head.queries))  # (H, N or f, D)
    return (q @ k.transpose(1, 2) / k.shape[2] ** 0.5).softmax(dim=2).mean(dim=0)


def _patches(encoder: Encoder, begin: Tensor, flow: Tensor | None, queried: bool) -> Tensor:
    """Shares (f or 1, N) of the patches that went in, from those of what is looked at in the end."""
    if flow is None:
        return begin  # tokens of an encoder without attention: where the queries look is all that is known
    assert isinstance(encoder, ViT3D)
    first = 1 + encoder.settings.registers
    if queried:
        return begin @ flow[first:, first:]
    of_class, of_mean = begin[0].tolist()
    row = of_class * flow[0] + of_mean * flow[first:].mean(dim=0)
    return row[None, first:]
