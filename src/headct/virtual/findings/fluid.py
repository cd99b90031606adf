"""What shows by fluid where tissue should be: `hydrocephalus` and `dementia`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from headct.virtual.bending import Coarse, given_way_mm
from headct.virtual.findings.finding import Finding
from headct.virtual.tissue import SEEPAGE, Brain


@dataclass(frozen=True, kw_only=True)
class Hydrocephalus(Finding):
    """Ventricles wider than age explains, by blocked or badly absorbed fluid, with sulci pressed shut."""

    name: ClassVar[str] = "hydrocephalus"
    obstructive: bool  # the fourth ventricle stays small
    wider_mm: float
    closing: float
    seepage_hu: float  # fluid pressed into the white matter around the horns

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Hydrocephalus:
        """Wider by 1.5 to 10 mm; below 3 mm nobody would call it."""
        obstructive = bool(rng.uniform() < 0.5)
        return cls(
            obstructive=obstructive,
            wider_mm=float(rng.uniform(1.5, 10)),
            closing=float(rng.uniform(0.2, 0.8)),
            seepage_hu=float(rng.uniform(3, 12)) if rng.uniform() < 0.5 else 0.0,
        )

    def widens(self, coarse: Coarse) -> torch.Tensor:
        wider = given_way_mm(coarse, self.wider_mm, 22.0)
        if self.obstructive:
            wider = wider * torch.clamp((coarse.template_mm[:, 2] + 30) / 20, 0, 1)
        return wider

    def fields(self, coarse: Coarse) -> Mapping[str, torch.Tensor]:
        return {"closed": torch.full_like(coarse.cavity_mm, self.closing * min(1.0, self.wider_mm / 6))}

    def paint(self, brain: Brain) -> None:
        near = torch.exp(-torch.clamp(brain.channels["ventricles_mm"], min=0) / (5.0 * brain.scale))
        tissue = (1 - brain.fluid) * (1 - brain.grey) * near
        brain.alter("hydrocephalus", brain.ventricle, 0.0)
        if self.seepage_hu:
            brain.alter(SEEPAGE, tissue, -self.seepage_hu)


@dataclass(frozen=True, kw_only=True)
class Dementia(Finding):
    """Atrophy beyond age: hippocampi shrink first (temporal horns widen), then parietal cortex, then all."""

    name: ClassVar[str] = "dementia"
    severity: float  # 0.25 to 1.8
    asymmetry: float
    frontal: bool  # frontotemporal rather than parietal

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Dementia:
        """Severity from barely to plainly beyond age; a third are early and hardly to be told from it."""
        return cls(
            severity=float(rng.uniform(0.25, 1.8)),
            asymmetry=float(rng.uniform(-0.3, 0.3)),
            frontal=bool(rng.uniform() < 0.2),
        )

    def _region(self, template_mm: torch.Tensor) -> torch.Tensor:
        """Where cortex is lost (n,), 0 to 1."""
        x, y, z = template_mm.T
        ahead = torch.clamp((y - 0) / 20, 0, 1) if self.frontal else torch.clamp((-8 - y) / 20, 0, 1)
        high = torch.clamp((z + 16) / 24, 0, 1)
        return (0.25 + 0.75 * ahead * high) * (1 + self.asymmetry * torch.tanh(x / 10))

    def _hippocampi(self, template_mm: torch.Tensor) -> torch.Tensor:
        """Near the hippocampi (n,), 0 to 1."""
        x, y, z = template_mm.T
        return torch.exp(-(((torch.abs(x) - 28) / 12) ** 2) - ((y + 22) / 20) ** 2 - ((z + 14) / 11) ** 2)

    def fields(self, coarse: Coarse) -> Mapping[str, torch.Tensor]:
        return {"sulcal": -3.2 * self.severity * self._region(coarse.template_mm)}

    def widens(self, coarse: Coarse) -> torch.Tensor:
        horns = given_way_mm(coarse, 12.0 * self.severity * self._hippocampi(coarse.template_mm), 10.0)
        return horns + given_way_mm(coarse, 4.5 * self.severity, 20.0)

    def push(self, coarse: Coarse) -> torch.Tensor:
        shrunk = 2.4 * self.severity * self._region(coarse.template_mm) * torch.exp(-coarse.depth_mm / 18)
        return coarse.outward * (shrunk * (coarse.depth_mm > 0) * coarse.scale)[:, None]
