"""Heads that objectives put on an encoder."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class DinoHead(nn.Module):
    """Scan vectors to scores of prototypes: an MLP, the unit sphere, then cosines with K prototypes.

    The last layer is weight-normalised with its gain fixed at 1 (arXiv 2104.14294, section 3.2 and appendix C), so
    its output is the cosine between the bottleneck feature and each prototype, and lies in -1..1.
    `batch_norm` puts a BatchNorm between each hidden linear and its GELU; then small differences between the scans of
    a batch are enlarged before they are scored.
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
    ) -> None:
        super().__init__()
        widths = [width, *[hidden] * (layers - 1), bottleneck]
        self.mlp = nn.Sequential()
        for index, (before, after) in enumerate(pairwise(widths)):
            self.mlp.append(nn.Linear(before, after))
            if index < layers - 1:
                if batch_norm:
                    self.mlp.append(nn.BatchNorm1d(after))
                self.mlp.append(nn.GELU())
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, scans: Tensor) -> Tensor:
        """Scores (B, K) of scan vectors (B, F)."""
        points = F.normalize(self.mlp(scans), dim=1)
        return F.linear(points, F.normalize(self.prototypes.weight, dim=1))
