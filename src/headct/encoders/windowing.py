"""Hounsfield units to input channels, on the device where the encoder runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Window = tuple[float, float]
"""Window level and window width in HU (Window Center, (0028,1050), and Window Width, (0028,1051))."""


def apply_windows(hu: Tensor, windows: Sequence[Window]) -> Tensor:
    """Channels (B, C, X, Y, Z), float32 in 0..1, from HU (B, X, Y, Z) of any dtype: one channel for each window.

    A window maps level - width / 2 to 0 and level + width / 2 to 1 and clips beyond. The numpy twin is
    `headct.preparing.windows.apply`.
    """
    level, width = torch.tensor(windows, dtype=torch.float32, device=hu.device).reshape(-1, 2, 1, 1, 1).unbind(1)
    return ((hu.to(torch.float32)[:, None] - (level - width / 2)) / width).clamp_(0, 1)


def as_input(volumes: Tensor, windows: Sequence[Window]) -> Tensor:
    """What an encoder is given, float32 (B, C, X, Y, Z), from a batch of prepared arrays.

    With windows the arrays are HU (B, X, Y, Z). Without, their recipe has already scaled them, and they are
    (B, X, Y, Z), one channel, or (B, C, X, Y, Z).
    """
    if windows:
        return apply_windows(volumes, windows)
    return (volumes if volumes.ndim == 5 else volumes[:, None]).to(torch.float32)
