"""Blood within the brain, its ventricles and its sulci: `iph`, `ivh`, `sah`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch

from headct.virtual.bending import Coarse
from headct.virtual.findings.finding import Finding
from headct.virtual.findings.mass import ball, pushed_from, shift_of_mass_mm, shifted, within_brain
from headct.virtual.places import length, some, where
from headct.virtual.solids import Vector, vector
from headct.virtual.texture import tiled_noise
from headct.virtual.tissue import Brain, inside

IPH_PLACES: Mapping[str, tuple[float, Vector, Vector, float]] = {
    # share of all, centre on the right, spread (template mm), greatest volume in ml
    "basal-ganglia": (0.36, (25, 0, 2), (3, 8, 5), 110),
    "lobar": (0.32, (38, -20, 26), (9, 38, 18), 110),
    "thalamus": (0.18, (13, -18, 7), (2, 4, 4), 30),
    "cerebellum": (0.09, (22, -62, -38), (8, 8, 6), 35),
    "pons": (0.05, (2, -25, -33), (3, 3, 4), 8),
}
"""Where blood breaks out: shares as in hypertensive and lobar haemorrhage series."""


@dataclass(frozen=True, kw_only=True)
class Blood:
    """How blood looks: fresh it is dense, in anaemia or after days like brain; clots are uneven."""

    hu: float
    uneven_hu: float
    shift: Vector  # on the noise tile

    @classmethod
    def draw(cls, rng: np.random.Generator, *, isodense: float = 0.12) -> Blood:
        """Acute blood of 52 to 80 HU, or with chance `isodense` of 42 to 54."""
        faint = rng.uniform() < isodense
        hu = rng.uniform(42, 54) if faint else rng.uniform(54, 80)
        return cls(hu=float(hu), uneven_hu=float(rng.uniform(1, 5)), shift=vector(rng.uniform(0, 1, 3)))

    def values(self, template_mm: torch.Tensor) -> torch.Tensor:
        """Hounsfield values (n,) at points (n, 3)."""
        coarse = tiled_noise(template_mm, 14.0, self.shift)
        fine = tiled_noise(template_mm, 5.0, self.shift, tile=1)
        return self.hu + self.uneven_hu * coarse + 1.5 * fine


@dataclass(frozen=True, kw_only=True)
class Intraparenchymal(Finding):
    """A haematoma in the brain with a rim of oedema, as Gaussian-bordered, lobulated ball."""

    name: ClassVar[str] = "iph"
    place: str
    centre_mm: Vector  # template
    radius_mm: float
    stretch: Vector
    lobes_mm: float
    edge_mm: float
    blood: Blood
    oedema_mm: float
    oedema_hu: float
    strength: float  # of the mass effect
    shift_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, median_ml: float = 9.0) -> Intraparenchymal:
        """Volume log-normal, from 0.25 to 8 to 110 ml by place; the smallest are hard to see."""
        names, shares = list(IPH_PLACES), [entry[0] for entry in IPH_PLACES.values()]
        place = names[rng.choice(len(names), p=shares)]
        _share, centre, spread, most_ml = IPH_PLACES[place]
        side = 1 if rng.uniform() < 0.5 else -1
        where = within_brain((np.array(centre) + rng.normal(0, 1, 3) * np.array(spread)) * (side, 1, 1))
        volume_ml = float(np.clip(median_ml * np.exp(rng.normal(0, 1.25)), 0.25, most_ml))
        radius = (volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
        has_oedema = rng.uniform() < 0.85
        return cls(
            place=place,
            centre_mm=vector(where),
            radius_mm=float(radius),
            stretch=vector(np.exp(rng.normal(0, 0.18, 3))),
            lobes_mm=float(0.33 * radius * rng.uniform(0.3, 1.2)),
            edge_mm=float(rng.uniform(0.8, 2.5)),
            blood=Blood.draw(rng),
            oedema_mm=float(rng.uniform(1, 12)) if has_oedema else 0.0,
            oedema_hu=float(rng.uniform(6, 14)),
            strength=float(rng.uniform(0.25, 0.75)),
            shift_mm=shift_of_mass_mm(rng, volume_ml, where),
        )

    def without_oedema(self) -> Self:
        return replace(self, oedema_mm=0.0)

    def push(self, coarse: Coarse) -> torch.Tensor:
        side = 1 if self.centre_mm[0] > 0 else -1
        return pushed_from(coarse, self.centre_mm, self.radius_mm, self.strength) + shifted(coarse, side, self.shift_mm)

    def fills(self, coarse: Coarse) -> torch.Tensor:
        return ball(coarse, self.centre_mm, self.radius_mm)

    def paint(self, brain: Brain) -> None:
        away = (brain.template_mm - brain.template_mm.new_tensor(self.centre_mm)) / brain.scale
        r = length(away / away.new_tensor(self.stretch))
        shift = self.blood.shift
        lobes = self.lobes_mm * tiled_noise(brain.template_mm, max(6.0, 1.8 * self.radius_mm), shift, tile=1)
        ragged = 0.8 * tiled_noise(brain.template_mm, 5.0, shift)
        distance = r - self.radius_mm + lobes + ragged
        tissue = 1 - brain.fluid
        if self.oedema_mm:
            halo = inside(distance - self.oedema_mm, max(2.0, self.oedema_mm)) * tissue * (1 - 0.6 * brain.grey)
            brain.alter("edema", halo * (1 - inside(distance, self.edge_mm)), -self.oedema_hu)
        share = inside(distance, max(self.edge_mm, brain.edge_mm)) * tissue
        at = where(share > 0)
        brain.change_at("iph", at, some(share, at), self.blood.values(some(brain.template_mm, at)))


@dataclass(frozen=True, kw_only=True)
class Intraventricular(Finding):
    """Blood in the ventricles: settled in layers, a cast of one or both sides, or patches."""

    name: ClassVar[str] = "ivh"
    form: str  # layered, cast or patches
    level_mm: float  # template y below which blood has settled
    sides: tuple[int, ...]
    strength: float
    blood: Blood

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Intraventricular:
        """Half of it lies in layers; thin layers in the occipital horns are hard to see."""
        form = ("layered", "cast", "patches")[rng.choice(3, p=(0.55, 0.25, 0.2))]
        sides = ((1, -1), (1,), (-1,))[rng.choice(3, p=(0.6, 0.2, 0.2))]
        level = float(-74 + 42 * rng.beta(1.3, 1.6))
        return cls(form=form, level_mm=level, sides=sides, strength=float(rng.uniform(0.55, 1)), blood=Blood.draw(rng))

    def paint(self, brain: Brain) -> None:
        x, y, _z = brain.at.T
        noise = tiled_noise(brain.at, 16.0, self.blood.shift)
        if self.form == "layered":
            share = inside(y - self.level_mm + 0.6 * noise, 2.0)
        elif self.form == "cast":
            share = inside(-0.9 - noise, 0.6)
        else:
            share = inside(0.9 - noise, 0.6)
        if len(self.sides) == 1:
            share = share * inside(-self.sides[0] * x - 1, 2.0)
        share = share * brain.ventricle * self.strength
        at = where(share > 0)
        brain.change_at("ivh", at, some(share, at), self.blood.values(some(brain.at, at)))


CISTERNS_MM: Vector = (0.0, -4.0, -14.0)
"""The middle of the basal cisterns, template."""

SAH_GRADES: Mapping[str, tuple[float, tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    # share of all; how much of the fluid is blood; by how much it distends the space; clot along the arteries, mm
    "thick": (0.40, (0.85, 1.0), (1.7, 2.6), (2.0, 5.0)),
    "thin": (0.35, (0.75, 1.0), (1.2, 2.0), (0.8, 2.2)),
    "faint": (0.25, (0.35, 0.75), (1.0, 1.3), (0.0, 0.0)),
}
"""From cisterns full of clot to a veil that only turns fluid as grey as brain."""


@dataclass(frozen=True, kw_only=True)
class Subarachnoid(Finding):
    """Blood in cisterns and sulci: around the basal cisterns, diffuse, or a patch of convexity.

    Clots lie along the basal arteries and distend the spaces that they fill; thin blood mixes with fluid.
    """

    name: ClassVar[str] = "sah"
    grade: str  # of SAH_GRADES
    region: str
    centre_mm: Vector  # template
    reach_mm: float
    strength: float  # blood's part of the fluid
    distension: float  # 1: none
    clot_mm: float  # around arteries
    tentorial_mm: float  # a layer on the tentorium
    blood: Blood

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Subarachnoid:
        """Aneurysmal blood lies around the basal cisterns, that of trauma over the convexity; a quarter is faint."""
        grade = list(SAH_GRADES)[rng.choice(3, p=[entry[0] for entry in SAH_GRADES.values()])]
        _share, strength, distension, clot = SAH_GRADES[grade]
        region = ("cisterns", "diffuse", "convexity")[rng.choice(3, p=(0.45, 0.25, 0.3))]
        side = 1 if rng.uniform() < 0.5 else -1
        angle = rng.uniform(-1.2, 1.4)
        places = {
            "cisterns": (side * rng.uniform(0, 10), rng.uniform(-14, 12), -14.0),
            "diffuse": (side * 8.0, 0.0, 0.0),
            "convexity": (side * 58.0, 58 * np.sin(angle) - 14, 14 + 26 * rng.uniform(-1, 1)),
        }
        reach = {"cisterns": rng.uniform(24, 46), "diffuse": rng.uniform(46, 66), "convexity": rng.uniform(18, 42)}
        layered = region != "convexity" and rng.uniform() < 0.4
        return cls(
            grade=grade,
            region=region,
            centre_mm=vector(np.array(places[region])),
            reach_mm=float(reach[region]),
            strength=float(rng.uniform(*strength)),
            distension=float(rng.uniform(*distension)),
            clot_mm=float(rng.uniform(*clot)) if region != "convexity" else 0.0,
            tentorial_mm=float(rng.uniform(0.6, 2.2)) if layered and grade != "faint" else 0.0,
            blood=Blood.draw(rng, isodense=0.06),
        )

    def fields(self, coarse: Coarse) -> Mapping[str, torch.Tensor]:
        """Clots hold the spaces open that they fill."""
        away = coarse.template_mm - coarse.template_mm.new_tensor(self.centre_mm)
        near = inside(length(away) / coarse.scale - self.reach_mm + 6, 16.0)
        return {"sulcal": -0.8 * (self.distension - 1) * near}

    def paint(self, brain: Brain) -> None:
        patchy = 0.25 * self.reach_mm * tiled_noise(brain.template_mm, 22.0, self.blood.shift)
        near = inside(brain.distance_mm(self.centre_mm) + patchy - self.reach_mm, 12.0)
        filled = torch.clamp(torch.maximum(brain.sulcus * self.distension, 0.6 * brain.surface), max=1) * self.strength
        if self.region == "diffuse":  # far from the cisterns some sulci hold blood and others none
            patches = inside(0.5 - tiled_noise(brain.template_mm, 26.0, self.blood.shift, tile=1), 0.8)
            filled = filled * torch.maximum(patches, inside(brain.distance_mm(CISTERNS_MM) - 30, 12.0))
        if self.clot_mm:
            lumps = 0.3 * self.clot_mm * tiled_noise(brain.at, 8.0, self.blood.shift, tile=1)
            clot = inside(brain.channels["arteries_mm"] / brain.scale - self.clot_mm + lumps, max(2.0, brain.edge_mm))
            filled = torch.maximum(filled, clot * self.strength)
        if self.tentorial_mm:
            layer = torch.abs(brain.channels["tent_mm"]) / 2 - self.tentorial_mm
            filled = torch.maximum(filled, inside(layer, brain.edge_mm) * self.strength)
        share = filled * near * (1 - brain.ventricle)
        at = where(share > 0)
        brain.change_at("sah", at, some(share, at), self.blood.values(some(brain.template_mm, at)))
