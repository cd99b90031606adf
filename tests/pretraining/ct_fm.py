"""CT-FM's contrast within a scan as its fixtures describe it: for the tests and for `benchmarks/parity.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headct.pretraining.objectives.simclr import intra_sample, variance_loss

PUBLISHED: Mapping[str, tuple[str, float, dict[str, Any]]] = {
    "T0.1": ("emb_5crops_3scans_8d", 0.1, {}),
    "T0.5": ("emb_5crops_3scans_8d", 0.5, {}),
    "first_crop_only": ("emb_5crops_3scans_8d", 0.1, {"first_crop_only": True}),
    "variance_weight_0.3": ("emb_5crops_3scans_8d", 0.1, {"variance_weight": 0.3}),
    "single_crop": ("emb_1crop_3scans_8d", 0.1, {}),
    "identical_crops": ("emb_identical_crops", 0.1, {}),
    "published_shape_15x2x4x128": ("emb_15crops_4scans_128d_float16", 0.1, {}),
    "symmetrised": ("emb_5crops_3scans_8d", 0.1, {"symmetric": True}),
}
"""Of each case the vectors, the temperature, and what is set otherwise."""


def apart(views: Tensor) -> Tensor:
    """The overlaps of crops of which none overlaps with another."""
    return torch.eye(len(views), dtype=views.dtype).expand(views.shape[2], -1, -1)


def published_loss(case: str, arrays: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """The vectors of a case, which then have a gradient, and their loss."""
    name, temperature, options = PUBLISHED[case]
    views = torch.from_numpy(arrays[name].astype(np.float32)).requires_grad_()
    share = options.get("variance_weight", 0.0)
    which = {"symmetric": False, **{key: value for key, value in options.items() if key != "variance_weight"}}
    loss = (1 - share) * intra_sample(views, apart(views), **which).losses(temperature).mean()
    loss = loss + share * variance_loss(views)
    loss.backward()
    return views, loss
