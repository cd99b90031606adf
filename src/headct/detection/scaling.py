"""Vectors brought to one scale, by what the training scans show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

CLIP_SD = 6.0


@dataclass(frozen=True)
class Scaling:
    """Standardised on the training scans, clipped at `CLIP_SD` and divided by the root of the width.

    The last makes the size of a vector, and with it what a penalty on weights means, the same for every width. A number
    that never changed in training says nothing and becomes 0.
    """

    mean: np.ndarray  # (F,)
    sd: np.ndarray  # (F,), 0 where nothing changed

    @classmethod
    def of(cls, vectors: np.ndarray) -> Self:
        """From vectors (n, F) of training scans."""
        mean = vectors.mean(axis=0, dtype=np.float64)
        sd = vectors.std(axis=0, dtype=np.float64)
        return cls(mean, np.where(sd > 1e-6 * np.maximum(1.0, np.abs(mean)), sd, 0.0))

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """(n, F) float64."""
        told = np.divide(vectors - self.mean, self.sd, out=np.zeros(vectors.shape), where=self.sd > 0)
        return np.clip(told, -CLIP_SD, CLIP_SD) / np.sqrt(len(self.mean))

    def tensors(self) -> dict[str, Tensor]:
        """To be stored."""
        return {"mean": torch.from_numpy(self.mean), "sd": torch.from_numpy(self.sd)}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> Self:
        """From `tensors()`."""
        return cls(tensors["mean"].numpy(), tensors["sd"].numpy())
