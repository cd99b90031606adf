"""Tissue that is diseased rather than bleeding: `tumor`, `edema`, `infarct`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch

from headct.virtual.bending import Coarse, given_way_mm
from headct.virtual.findings.finding import Finding
from headct.virtual.findings.mass import ball, pushed_from, shift_of_mass_mm, shifted, within_brain
from headct.virtual.places import length, some, where
from headct.virtual.solids import Vector, vector
from headct.virtual.texture import tiled_noise
from headct.virtual.tissue import TUMOR_OEDEMA, Brain, inside

CORES: Mapping[str, tuple[float, float, float]] = {
    # share of all in the brain, HU from and to
    "dark": (0.50, 11, 22),
    "dense": (0.30, 42, 53),
    "like-brain": (0.20, 27, 38),
}
"""Of masses within the brain: gliomas are mostly darker than brain, lymphomas and many metastases denser."""

TERRITORIES: Mapping[str, tuple[float, Vector, Vector]] = {
    # share of all, centre on the right and radii, template mm
    "mca": (0.30, (44, -12, 18), (26, 46, 34)),
    "mca-branch": (0.28, (50, -16, 22), (15, 20, 18)),
    "pca": (0.13, (22, -76, 6), (20, 26, 22)),
    "aca": (0.08, (9, 30, 34), (9, 42, 30)),
    "lacune": (0.11, (20, -2, 8), (5, 6, 5)),
    "cerebellum": (0.10, (24, -64, -42), (20, 18, 14)),
}


@dataclass(frozen=True, kw_only=True)
class Tumor(Finding):
    """A mass in the brain with necrosis and vasogenic oedema, or a dense one that grows from the dura."""

    name: ClassVar[str] = "tumor"
    extraaxial: bool
    centre_mm: Vector  # template
    radius_mm: float
    core_hu: float
    necrosis: float  # radius of the dead core, as a share
    calcified: float  # share of the core
    oedema_mm: float
    oedema_hu: float
    strength: float
    shift_mm: float
    tile: Vector

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Tumor:
        """Radius 4 to 30 mm; a third without the oedema that gives it away."""
        extraaxial = bool(rng.uniform() < 0.35)
        side = 1 if rng.uniform() < 0.5 else -1
        if extraaxial:
            direction = rng.normal(0, 1, 3) * (1, 1, 0.7) + (0, 0, 0.5)
            centre = np.array([0.0, -18, 14]) + direction / np.linalg.norm(direction) * (58, 74, 56)
        else:
            centre = np.array([rng.uniform(14, 46), rng.uniform(-66, 44), rng.uniform(-6, 46)])
            if rng.uniform() < 0.18:
                centre = np.array([rng.uniform(4, 30), rng.uniform(-76, -54), rng.uniform(-46, -30)])
            centre = within_brain(centre)
        radius = float(np.clip(13.5 * np.exp(rng.normal(0, 0.45)), 4, 30))
        has_oedema = rng.uniform() < (0.5 if extraaxial else 0.75)
        volume_ml = 4 / 3 * np.pi * radius**3 / 1000
        _share, low, high = CORES[list(CORES)[rng.choice(3, p=[entry[0] for entry in CORES.values()])]]
        return cls(
            extraaxial=extraaxial,
            centre_mm=vector(centre * (side, 1, 1)),
            radius_mm=radius,
            core_hu=float(rng.uniform(44, 62) if extraaxial else rng.uniform(low, high)),
            necrosis=float(rng.uniform(0.4, 0.75)) if not extraaxial and rng.uniform() < 0.5 else 0.0,
            calcified=float(rng.uniform(0.05, 0.4)) if rng.uniform() < (0.25 if extraaxial else 0.1) else 0.0,
            oedema_mm=float(rng.uniform(6, 26)) if has_oedema else 0.0,
            oedema_hu=float(rng.uniform(7, 14)),
            strength=float(rng.uniform(0.3, 0.8)),
            shift_mm=shift_of_mass_mm(rng, volume_ml * (2 if has_oedema else 1), centre),
            tile=vector(rng.uniform(0, 1, 3)),
        )

    def without_oedema(self) -> Self:
        return replace(self, oedema_mm=0.0)

    def push(self, coarse: Coarse) -> torch.Tensor:
        side = 1 if self.centre_mm[0] > 0 else -1
        return pushed_from(coarse, self.centre_mm, self.radius_mm, self.strength) + shifted(coarse, side, self.shift_mm)

    def fills(self, coarse: Coarse) -> torch.Tensor:
        return ball(coarse, self.centre_mm, self.radius_mm)

    def paint(self, brain: Brain) -> None:
        form, inner = (
            tiled_noise(brain.template_mm, max(6.0, 1.4 * self.radius_mm), self.tile, tile=tile) for tile in (0, 1)
        )
        lobes = (0.08 if self.extraaxial else 0.2) * self.radius_mm * form
        distance = brain.distance_mm(self.centre_mm) - self.radius_mm + lobes
        if self.oedema_mm:
            fingers = inside(distance - self.oedema_mm + 0.25 * self.oedema_mm * inner, 6.0)
            white = torch.clamp(1 - 1.3 * brain.grey, 0, 1) * (1 - brain.fluid)
            halo = fingers * white * (1 - inside(distance, 2.0))
            brain.alter("edema", halo, -self.oedema_hu, also=TUMOR_OEDEMA)
        core = self.core_hu + 2.0 * inner
        if self.necrosis:
            dead = inside(distance + (1 - self.necrosis) * self.radius_mm, 2.5)
            core = core + dead * (18 - core)
        if self.calcified:
            grain = tiled_noise(brain.template_mm, 4.0, self.tile)
            core = core + inside(1.6 - 2.2 * self.calcified - grain, 0.5) * (190 - core)
        place = 1.0 if self.extraaxial else 1 - brain.fluid
        share = inside(distance, max(1.5, brain.edge_mm)) * place
        at = where(share > 0)
        brain.change_at("tumor", at, some(share, at), some(core, at))


@dataclass(frozen=True, kw_only=True)
class Edema(Finding):
    """Swelling with no mass in sight: patches in white matter, or the whole brain pressed against the skull."""

    name: ClassVar[str] = "edema"
    diffuse: bool
    centres_mm: tuple[Vector, ...]
    reach_mm: tuple[float, ...]
    depth_hu: float
    tightness: float  # share by which sulci and ventricles close, if diffuse
    tile: Vector

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Edema:
        """A third is diffuse; patches sit mostly behind, as in posterior reversible encephalopathy."""
        diffuse = bool(rng.uniform() < 0.35)
        count = 0 if diffuse else int(rng.integers(1, 4))
        sides = rng.choice((-1, 1), count)
        centres = [(s * rng.uniform(16, 42), rng.uniform(-78, 30), rng.uniform(-2, 46)) for s in sides]
        return cls(
            diffuse=diffuse,
            centres_mm=tuple(vector(within_brain(np.array(centre))) for centre in centres),
            reach_mm=tuple(float(rng.uniform(8, 30)) for _ in range(count)),
            depth_hu=float(rng.uniform(4, 13)),
            tightness=float(rng.uniform(0.35, 1)) if diffuse else 0.0,
            tile=vector(rng.uniform(0, 1, 3)),
        )

    def fields(self, coarse: Coarse) -> Mapping[str, torch.Tensor]:
        if not self.diffuse:
            return {}
        return {"closed": torch.full_like(coarse.cavity_mm, self.tightness)}

    def widens(self, coarse: Coarse) -> torch.Tensor:
        return given_way_mm(coarse, -3.5 * self.tightness, 20.0)  # none unless diffuse

    def paint(self, brain: Brain) -> None:
        tissue = 1 - brain.fluid
        if self.diffuse:  # grey and white become one, and all a little darker; its volume tells how much
            gap = brain.anatomy.grey_hu - brain.anatomy.white_hu
            darker = -0.8 * self.tightness * gap * brain.grey - 0.35 * self.depth_hu
            brain.alter("edema", self.tightness * tissue * (brain.channels["cerebellum_mm"] > 0), darker)
            return
        white = torch.clamp(1 - 1.2 * brain.grey, 0, 1) * tissue
        noise = tiled_noise(brain.template_mm, 14.0, self.tile)
        for centre, reach in zip(self.centres_mm, self.reach_mm, strict=True):
            share = inside(brain.distance_mm(centre) - reach + 0.3 * reach * noise, 8.0) * white
            brain.alter("edema", share, -self.depth_hu)


@dataclass(frozen=True, kw_only=True)
class Infarct(Finding):
    """A territory without blood: at first grey fades into white, then all darkens; old ones turn to fluid."""

    name: ClassVar[str] = "infarct"
    territory: str
    age: str  # hyperacute, acute, old
    centre_mm: Vector
    radii_mm: Vector  # template
    fading: float  # share of the grey-white difference that is lost
    drop_hu: float
    closing: float
    tile: Vector

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Infarct:
        """Hyperacute ones fade by few HU and are missed by eye; the others range from acute to old."""
        names = list(TERRITORIES)
        territory = names[rng.choice(len(names), p=[entry[0] for entry in TERRITORIES.values()])]
        _share, centre, radii = TERRITORIES[territory]
        side = 1 if rng.uniform() < 0.5 else -1
        age = ("hyperacute", "acute", "old")[rng.choice(3, p=(0.14, 0.48, 0.38))]
        drop = {"hyperacute": (1, 4), "acute": (6, 14), "old": (18, 28)}[age]
        jitter = rng.normal(0, 4, 3) if territory != "lacune" else rng.normal(0, (5, 9, 6))
        return cls(
            territory=territory,
            age=age,
            centre_mm=vector(within_brain((np.array(centre) + jitter) * (side, 1, 1), 0.9)),
            radii_mm=vector(np.array(radii) * rng.uniform(0.7, 1.1) * np.exp(rng.normal(0, 0.1, 3))),
            fading=float(rng.uniform(0.3, 0.8)) if age != "old" else 0.5,
            drop_hu=float(rng.uniform(*drop)),
            closing=float(rng.uniform(0.4, 0.95)) if age == "acute" and territory != "lacune" else 0.0,
            tile=vector(rng.uniform(0, 1, 3)),
        )

    def _away(self, template_mm: torch.Tensor) -> torch.Tensor:
        """1 on the border of the territory, 0 in its middle."""
        away = (template_mm - template_mm.new_tensor(self.centre_mm)) / template_mm.new_tensor(self.radii_mm)
        return length(away)

    def fields(self, coarse: Coarse) -> Mapping[str, torch.Tensor]:
        return {"closed": self.closing * torch.clamp(1.5 - self._away(coarse.template_mm), 0, 1)}

    def paint(self, brain: Brain) -> None:
        noise = tiled_noise(brain.at, max(6.0, 0.7 * min(self.radii_mm)), self.tile)
        share = inside(self._away(brain.at) - 1 + 0.18 * noise, 0.25)
        own_side = brain.at[:, 0] * np.sign(self.centre_mm[0]) > 0
        supratentorial = brain.channels["tent_mm"] > 0
        place = supratentorial if self.territory != "cerebellum" else brain.channels["cerebellum_mm"] < 2
        share = share * own_side * place * (1 - brain.fluid)
        gap = brain.anatomy.grey_hu - brain.anatomy.white_hu
        lower = brain.hu - self.fading * gap * brain.grey - self.drop_hu
        brain.alter("infarct", share, torch.clamp(lower, min=brain.anatomy.csf_hu) - brain.hu)
