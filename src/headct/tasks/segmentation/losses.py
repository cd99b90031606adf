"""What a drawing costs: overlap and cross-entropy, at every resolution that is taught.

B scans, K classes with the background, X Y Z voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 less the overlap, from logits (B, K, X, Y, Z) and labels (B, X, Y, Z), the mean over scans and classes.

    With p the softmax and g 1 where a class is, for each scan and class, the background included,

        1 - 2 sum(p g) / (sum(p^2) + sum(g^2) + 1e-5)

    A class that a scan lacks costs nearly 1 whatever is drawn, and has hardly a gradient.
    """
    p = logits.softmax(dim=1)
    g = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(p.dtype)
    voxels = tuple(range(2, logits.ndim))
    overlap = 2 * (p * g).sum(voxels) / (p.square().sum(voxels) + g.square().sum(voxels) + EPSILON)
    return (1 - overlap).mean()


def dice_and_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Both, added, in float32."""
    return dice_loss(logits.float(), labels) + F.cross_entropy(logits.float(), labels)


def deeply_supervised(levels: Sequence[Tensor], labels: Tensor) -> Tensor:
    """CT-FM's: `dice_and_cross_entropy` at each resolution, the finest first, weighted 1, 1/2, 1/4, ... and summed.

    Labels (B, X, Y, Z) are brought to each resolution by nearest neighbour.
    """
    total = torch.zeros((), device=labels.device)
    for index, logits in enumerate(levels):
        there = F.interpolate(labels[:, None].float(), logits.shape[2:], mode="nearest-exact")[:, 0].long()
        total = total + dice_and_cross_entropy(logits, there) / 2**index
    return total
