"""Blood between skull and brain: `sdh` spreads as a crescent, `edh` bulges and stops at the sutures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from headct.virtual.bending import Coarse
from headct.virtual.findings.bleeding import Blood
from headct.virtual.findings.finding import Finding
from headct.virtual.findings.mass import (
    along_skull_mm,
    pushed_from_skull,
    shift_of_mass_mm,
    shifted,
    swollen_scalp,
)
from headct.virtual.places import some, where
from headct.virtual.solids import Vector, vector
from headct.virtual.texture import tiled_noise
from headct.virtual.tissue import Brain, inside, sutures

STAGES: Mapping[str, tuple[float, float, float]] = {
    # share of all, HU from and to
    "acute": (0.62, 54, 80),
    "subacute": (0.12, 32, 46),
    "chronic": (0.12, 10, 26),
    "mixed": (0.14, 14, 66),
}


def _shift_of_layer_mm(rng: np.random.Generator, thickness_mm: float) -> float:
    """Midline shift beneath a layer on one side: a thin one has room, a thick one shifts by as much as it measures."""
    return float(min(18.0, rng.uniform(0.7, 1.8) * max(0.0, thickness_mm - 3.5)))


@dataclass(frozen=True, kw_only=True)
class Subdural(Finding):
    """A crescent beneath the dura over one hemisphere, or both; it never crosses the midline."""

    name: ClassVar[str] = "sdh"
    stage: str
    hu: tuple[float, float]  # settled and floating blood; equal unless mixed
    centres_mm: tuple[Vector, ...]  # one for each side that is affected, template
    thickness_mm: tuple[float, ...]
    half_width_mm: float  # along the skull
    decay_mm: float
    parafalcine_mm: float
    blood: Blood
    shift_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Subdural:
        """Thickness log-normal, 1.5 to 26 mm: thin ones of 3 mm are common and hard to see."""
        stage = list(STAGES)[rng.choice(4, p=[entry[0] for entry in STAGES.values()])]
        _share, low, high = STAGES[stage]
        value = float(rng.uniform(low, high))
        hu = (float(rng.uniform(50, 70)), float(rng.uniform(12, 26))) if stage == "mixed" else (value, value)
        side = 1 if rng.uniform() < 0.5 else -1
        sides = (side, -side) if rng.uniform() < 0.2 else (side,)
        thickness = tuple(float(np.clip(7.5 * np.exp(rng.normal(0, 0.6)), 1.5, 26)) for _ in sides)
        half_width = float(rng.uniform(0.6, 1.15) * 68)
        return cls(
            stage=stage,
            hu=hu,
            centres_mm=tuple(vector(np.array([s * 60, rng.uniform(-45, 25), rng.uniform(12, 45)])) for s in sides),
            thickness_mm=thickness,
            half_width_mm=half_width,
            decay_mm=float(rng.uniform(18, 45)),
            parafalcine_mm=float(rng.uniform(1.5, 5)) if rng.uniform() < 0.2 else 0.0,
            blood=Blood.draw(rng),
            shift_mm=_shift_of_layer_mm(rng, thickness[0]) if len(sides) == 1 else 0.0,
        )

    def _thickness(self, coarse: Coarse) -> torch.Tensor:
        """Of the layer at each coarse point (n,), patient mm."""
        x, _y, z = coarse.template_mm.T
        total = torch.zeros_like(x)
        for centre, most_mm in zip(self.centres_mm, self.thickness_mm, strict=True):
            arc = along_skull_mm(coarse.template_mm, centre) / self.half_width_mm
            bump = torch.clamp(1 - arc**2, min=0) ** 0.8
            own_side = torch.clamp((x * np.sign(centre[0]) - 6) / 12, 0, 1)
            total += most_mm * bump * own_side * torch.clamp((z + 40) / 14, 0, 1)
        return total

    def fields(self, coarse: Coarse) -> Mapping[str, torch.Tensor]:
        thickness = self._thickness(coarse)
        return {"sdh": thickness, "closed": torch.clamp(thickness / 12, max=0.7)}

    def push(self, coarse: Coarse) -> torch.Tensor:
        side = 1 if self.centres_mm[0][0] > 0 else -1
        beneath = pushed_from_skull(coarse, self._thickness(coarse), self.decay_mm)
        return beneath + shifted(coarse, side, self.shift_mm)

    def fills(self, coarse: Coarse) -> torch.Tensor:
        return coarse.depth_mm < self._thickness(coarse)

    def paint(self, brain: Brain) -> None:
        _x, y, z = brain.template_mm.T
        ragged = 0.5 * tiled_noise(brain.template_mm, 12.0, self.blood.shift)
        layer = brain.fields["sdh"] * (1 + 0.15 * ragged)
        share = inside(brain.depth_mm - layer, brain.edge_mm) * torch.clamp(layer / 0.8, max=1)
        if self.parafalcine_mm:
            side = 1 if self.centres_mm[0][0] > 0 else -1
            aside = brain.at[:, 0] * side / brain.scale
            strip = torch.maximum(torch.abs(aside - self.parafalcine_mm / 2) - self.parafalcine_mm / 2, 34 - z)
            share = torch.maximum(share, inside(strip, brain.edge_mm) * inside(torch.abs(y + 30) - 45, 20.0))
        at = where(share > 0)
        brain.change_at("sdh", at, some(share, at), self._values(some(brain.template_mm, at)))

    def _values(self, template_mm: torch.Tensor) -> torch.Tensor:
        """Hounsfield values (n,) at points (n, 3)."""
        settled, floating = self.hu
        level = torch.clamp(0.5 - (template_mm[:, 1] + 15) / 50, 0, 1)  # the patient lies on the back: cells sink
        clots = self.blood.uneven_hu * tiled_noise(template_mm, 14.0, self.blood.shift, tile=1)
        return floating + (settled - floating) * level + clots


@dataclass(frozen=True, kw_only=True)
class Epidural(Finding):
    """A lens between bone and dura, beneath one suture-bound bone, often with a fracture and a swollen scalp."""

    name: ClassVar[str] = "edh"
    centre_mm: Vector  # template, on the inner table
    depth_mm: float
    radius_mm: float  # along the skull
    swirl_hu: float
    swelling_mm: float
    blood: Blood
    shift_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Epidural:
        """Depth 3 to 32 mm; most lie beneath the temporal squama."""
        side = 1 if rng.uniform() < 0.5 else -1
        place = rng.choice(4, p=(0.55, 0.2, 0.15, 0.1))
        middle = [(66, -18, 0), (40, 55, 20), (45, -45, 48), (34, -95, -18)][place]
        depth = float(np.clip(11 * np.exp(rng.normal(0, 0.55)), 3, 32))
        radius = float(depth * rng.uniform(1.3, 2.4) + 6)
        centre = (np.array(middle) + rng.normal(0, 6, 3)) * (side, 1, 1)
        return cls(
            centre_mm=vector(centre),
            depth_mm=depth,
            radius_mm=radius,
            swirl_hu=float(rng.uniform(0, 25)),
            swelling_mm=float(rng.uniform(3, 10)) if rng.uniform() < 0.2 else 0.0,  # a fracture brings more
            blood=Blood.draw(rng, isodense=0.05),
            shift_mm=shift_of_mass_mm(rng, np.pi * radius**2 * depth / 2 / 1000, centre),
        )

    def _thickness(self, coarse: Coarse) -> torch.Tensor:
        arc = along_skull_mm(coarse.template_mm, self.centre_mm) / self.radius_mm
        lens = self.depth_mm * torch.clamp(1 - arc**2, min=0)
        here, there = sutures(coarse.template_mm), sutures(coarse.template_mm.new_tensor([self.centre_mm]))
        for name, suture in here.items():  # dura is bound to bone along them
            own_bone = torch.clamp(suture.distance_mm * torch.sign(there[name].distance_mm) / 3, 0, 1)
            lens = lens * (1 - suture.binds * (1 - own_bone))
        return lens

    def fields(self, coarse: Coarse) -> Mapping[str, torch.Tensor]:
        lens = self._thickness(coarse)
        swelling = swollen_scalp(coarse, self.centre_mm, self.swelling_mm)
        return {"edh": lens, "closed": torch.clamp(lens / 20, max=0.6), "swelling": swelling}

    def push(self, coarse: Coarse) -> torch.Tensor:
        side = 1 if self.centre_mm[0] > 0 else -1
        return pushed_from_skull(coarse, self._thickness(coarse), 22.0) + shifted(coarse, side, self.shift_mm)

    def fills(self, coarse: Coarse) -> torch.Tensor:
        return coarse.depth_mm < self._thickness(coarse)

    def paint(self, brain: Brain) -> None:
        layer = brain.fields["edh"]
        share = inside(brain.depth_mm - layer, brain.edge_mm) * torch.clamp(layer / 0.8, max=1)
        at = where(share > 0)
        brain.change_at("edh", at, some(share, at), self._values(some(brain.template_mm, at)))

    def _values(self, template_mm: torch.Tensor) -> torch.Tensor:
        """Hounsfield values (n,) at points (n, 3)."""
        swirl = inside(0.4 - tiled_noise(template_mm, 10.0, self.blood.shift), 0.6)
        return self.blood.values(template_mm) - self.swirl_hu * swirl
