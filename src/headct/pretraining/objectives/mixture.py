"""Several objectives in one run: the weighted sum of their losses on the same scans, around one encoder."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headct.encoders import Encoder
from headct.pretraining.objectives.objective import Batch, Objective, Watched


class Mixture(Objective):
    """Objectives by name. The encoder that the run is for is that of the first."""

    def __init__(self, parts: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.weights = dict(weights)
        self.partners = tuple(sorted({kind for part in parts.values() for kind in part.partners}))
        self.truth = tuple(sorted({kind for part in parts.values() for kind in part.truth}))
        self.uses_findings = any(part.uses_findings for part in parts.values())

    @property
    def encoder(self) -> Encoder:
        first: Objective = next(iter(self.parts.values()))  # type: ignore[assignment]
        return first.encoder

    def _each(self) -> list[tuple[str, Objective]]:
        return list(self.parts.items())  # type: ignore[arg-type]

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What each of them draws, from a generator of its own name, so that none depends on which others there are."""
        seed = int(rng.integers(2**62))
        own = {name: np.random.default_rng((seed, zlib.crc32(name.encode()))) for name in self.parts}
        return {name: part.draw(own[name], boxes_mm) for name, part in self._each()}

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        """The sum, and what each watches; under `NAME/…` where there are several."""
        total = torch.zeros((), device=batch.hu.device)
        watched: Watched = {}
        for name, part in self._each():
            loss, of_part = part(replace(batch, draws=[draws[name] for draws in batch.draws]), step, steps)
            total = total + self.weights[name] * loss
            if len(self.parts) > 1:
                of_part = {"loss": loss.detach(), **of_part}
                of_part = {f"{name}/{key}": value for key, value in of_part.items()}
            watched |= of_part
        return total, watched

    def restrain(self, step: int, steps: int) -> None:
        for _, part in self._each():
            part.restrain(step, steps)

    def follow(self, step: int, steps: int) -> None:
        for _, part in self._each():
            part.follow(step, steps)
