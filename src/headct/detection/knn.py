"""Labels of the nearest training scans: nothing is trained, so nothing can be overfitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from headct.checkpoints import PretrainedEncoder
from headct.detection.method import Progress, Scans, Task, expect_both, quiet
from headct.embedding.machine import Machine

ROWS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Knn:
    """A vote of the nearest scans by cosine, from the mean training vector."""

    neighbours: int = 10  # of those whose label is known
    temperature: float = 0.07  # a neighbour's vote is exp(cosine / temperature), as in DINO's evaluation

    def fit(self, task: Task, progress: Progress = quiet) -> FittedKnn:
        """Keep the training vectors. Raises Misuse where a finding lacks a class."""
        rows = task.known(task.train)
        labels = task.labels[rows]
        expect_both(labels, task.findings)
        vectors = task.scans.vectors(rows).astype(np.float64)
        mean = vectors.mean(axis=0)
        return FittedKnn(task.findings, mean, _unit(vectors - mean).astype(np.float32), labels.astype(np.float32), self)


@dataclass(frozen=True)
class FittedKnn:
    """Training vectors and their labels."""

    method: ClassVar[str] = "knn"
    findings: tuple[str, ...]
    mean: np.ndarray  # (F,)
    unit: np.ndarray  # (n, F) float32, of length 1
    labels: np.ndarray  # (n, f): 1, 0, NaN
    chosen: Knn

    @property
    def facts(self) -> Mapping[str, Any]:
        """How many scans vote."""
        return {"scans": len(self.unit), **asdict(self.chosen)}

    def scores(self, scans: Scans, rows: np.ndarray) -> np.ndarray:
        """Logits (B, f) of a vote in which either class weighs as much as it is common, unknown labels none at all."""
        found, unit = np.empty((len(rows), len(self.findings))), self.unit.T.astype(np.float64)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            cosine = _unit(scans.vectors(rows[some]) - self.mean) @ unit
            for column in range(len(self.findings)):
                found[some, column] = self._vote(cosine, self.labels[:, column])
        return found

    def _vote(self, cosine: np.ndarray, labels: np.ndarray) -> np.ndarray:
        known = np.flatnonzero(np.isfinite(labels))
        count = min(self.chosen.neighbours, len(known))
        cosine, labels = cosine[:, known], labels[known].astype(np.float64)
        nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        votes = np.exp((np.take_along_axis(cosine, nearest, axis=1) - 1) / self.chosen.temperature)
        votes /= votes.sum(axis=1, keepdims=True)
        prevalence = labels.mean()
        positive = (votes * labels[nearest]).sum(axis=1)
        # As many votes as neighbours, and two more that say what is common: a unanimous vote is no certainty.
        share = (count * positive + 2 * prevalence) / (count + 2)
        return np.log(share) - np.log1p(-share)

    def settings(self) -> dict[str, Any]:
        """As chosen."""
        return asdict(self.chosen)

    def tensors(self) -> dict[str, Tensor]:
        """Vectors and labels."""
        arrays = {"mean": self.mean, "unit": self.unit, "labels": self.labels}
        return {name: torch.from_numpy(array).contiguous() for name, array in arrays.items()}

    @classmethod
    def restore(
        cls,
        encoder: PretrainedEncoder,
        findings: tuple[str, ...],
        settings: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        machine: Machine,
    ) -> Self:
        """Raises ValueError where shapes do not fit."""
        mean, unit, labels = (tensors[name].numpy() for name in ("mean", "unit", "labels"))
        if mean.shape != (encoder.scan_width,) or labels.shape != (len(unit), len(findings)):
            raise ValueError(f"vectors {unit.shape} and labels {labels.shape} do not fit the encoder or the findings")
        return cls(findings, mean, unit, labels, Knn(**settings))


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
