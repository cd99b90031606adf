"""The closed formulas that fill the weights and inputs of the published fixtures (their manifest, "conventions")."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The fixture's u(name, n): numbers in [0, 1) from a closed formula."""
    index = np.arange(1, math.prod(shape) + 1, dtype=np.float64)
    wave = np.sin(12.9898 * index + 0.001 * (zlib.crc32(name.encode()) % 65536)) * 43758.5453
    return (wave - np.floor(wave)).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The fixture's rule(name, shape) for weights."""
    z = 2 * uniform(name, shape) - 1
    if name.endswith("weight") and len(shape) == 1:
        z = 1 + 0.1 * z
    elif name.endswith(("weight", "weight_v")):
        z = z * math.sqrt(3 / math.prod(shape[1:]))
    else:
        z = 0.1 * z
    return torch.from_numpy(z.astype(np.float32))
