"""The closed formula that fills weights and inputs of the published CT-FM fixtures (their manifest, "formula")."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def uniform(count: int, seed: int) -> np.ndarray:
    """u(i, t): numbers in [0, 1) from an integer hash."""
    x = (np.arange(count, dtype=np.uint64) * 2654435761 + seed * 2246822519 + 3266489917) & 0xFFFFFFFF
    x ^= x >> 16
    x = x * 2246822507 & 0xFFFFFFFF
    x ^= x >> 13
    x = x * 3266489909 & 0xFFFFFFFF
    x ^= x >> 16
    return x.astype(np.float64) / 2**32


def volume(shape: tuple[int, ...], seed: int) -> Tensor:
    """finput(shape, t)."""
    return torch.from_numpy(uniform(math.prod(shape), seed).reshape(shape).astype(np.float32))


def weights(expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state of the same names and shapes, by the formula; whole numbers stay zero."""
    filled, seed = {}, 0
    for name, tensor in expected.items():
        if not tensor.is_floating_point():
            filled[name] = torch.zeros_like(tensor)
            continue
        signed = 2 * uniform(tensor.numel(), seed).reshape(tuple(tensor.shape)) - 1
        seed += 1
        if name.endswith("running_var"):
            values = 1 + 0.3 * np.abs(signed)
        elif name.endswith("running_mean"):
            values = 0.1 * signed
        elif tensor.ndim >= 2:
            values = signed * math.sqrt(3 / math.prod(tensor.shape[1:]))
        else:
            values = 1 + 0.1 * signed if name.endswith("weight") else 0.1 * signed
        filled[name] = torch.from_numpy(np.asarray(values, np.float64).astype(np.float32))
    return filled


def fill(module: Module) -> Module:
    """The module with weights by the formula."""
    module.load_state_dict(weights(module.state_dict()))
    return module
