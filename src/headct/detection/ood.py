"""How unlike the training scans a scan is: a distance of its vector, read as a rank among validation scans."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from headct.detection.scaling import Scaling

FITTED_ON = 20_000
"""Training scans at most: the shrunk covariance of more is the same."""
DOUBT = 0.99
"""A scan further away than this share of validation scans is to be doubted."""


@dataclass(frozen=True)
class Familiar:
    """Mahalanobis distance from the training vectors, their covariance shrunk by Ledoit and Wolf (2004).

    Its size means nothing by itself and is larger for scans that were not trained on, so it is compared with the
    distances of validation scans. Of few training scans little is familiar, which these distances know too.
    """

    scaling: Scaling
    root: np.ndarray  # (F, F): the distance is the length of a scaled vector times it
    validation: np.ndarray  # (m,) distances, sorted

    @classmethod
    def of(cls, train: np.ndarray, validation: np.ndarray, seed: int) -> Self:
        """From vectors (n, F) and (m, F)."""
        chosen = np.random.default_rng(seed).permutation(len(train))[:FITTED_ON]
        train = train[np.sort(chosen)]
        scaling = Scaling.of(train)
        scaled = scaling(train)
        covariance, _ = ledoit_wolf(scaled, assume_centered=True)
        values, axes = np.linalg.eigh(covariance)
        least = max(float(values.max()), 1.0 / len(values)) * 1e-9  # of numbers that never change nothing is known
        root = axes / np.sqrt(np.maximum(values, least))
        distances = np.sort(np.linalg.norm(scaling(validation) @ root, axis=1))
        return cls(scaling, root, distances)

    def distances(self, vectors: np.ndarray) -> np.ndarray:
        """(n,) of vectors (n, F)."""
        found: np.ndarray = np.linalg.norm(self.scaling(vectors) @ self.root, axis=1)
        return found

    @property
    def usual(self) -> float:
        """The distance within which `DOUBT` of the validation scans lie: whatever lies farther out is to be doubted."""
        return float(self.validation[math.ceil(DOUBT * len(self.validation)) - 1])

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Share (n,) of validation scans that are nearer: 0.5 for a scan like most, 1 for one further than all."""
        return np.searchsorted(self.validation, self.distances(vectors), side="left") / len(self.validation)

    def tensors(self) -> dict[str, Tensor]:
        """To be stored."""
        arrays = {"root": self.root, "validation": self.validation}
        return {name: torch.from_numpy(array).contiguous() for name, array in arrays.items()} | self.scaling.tensors()

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], width: int) -> Self:
        """From `tensors()`. Raises KeyError or ValueError where they are not those of vectors of this width."""
        root, validation = tensors["root"].numpy(), tensors["validation"].numpy()
        if root.shape != (width, width) or validation.ndim != 1 or not len(validation):
            raise ValueError(f"a distance by {root.shape} does not fit vectors of {width} numbers")
        return cls(Scaling.restore(tensors), root, validation)
