"""Windows: which part of the Hounsfield scale a channel shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

Window = tuple[int, int]
"""Window level and width in HU (Window Center, (0028,1050), and Window Width, (0028,1051))."""

WINDOWS: Mapping[str, Window] = MappingProxyType({"brain": (40, 80), "subdural": (80, 200), "bone": (600, 2800)})
"""The three channels of a head CT encoder: 0..80, -20..180 and -800..2000 HU."""


def apply(hu: np.ndarray, windows: Sequence[Window]) -> np.ndarray:
    """Channels (C, X, Y, Z), float32 in 0..1, from HU (X, Y, Z) of any dtype: one channel for each window.

    A window maps level - width / 2 to 0 and level + width / 2 to 1 and clips beyond. The twin for tensors is
    `headct.encoders.windowing.apply_windows`.
    """
    channels = np.empty((len(windows), *hu.shape), dtype=np.float32)
    for channel, window in zip(channels, windows, strict=True):
        window_into(channel, hu, window)
    return channels


def window_into(out: np.ndarray, hu: np.ndarray, window: Window) -> None:
    """One window of HU, written into the float32 array `out` of the same shape."""
    level, width = window
    np.subtract(hu, np.float32(level - width / 2), out=out)
    np.divide(out, np.float32(width), out=out)
    np.clip(out, 0.0, 1.0, out=out)
