"""Bone and scalp: `fracture`, and the traps of earlier surgery and bruises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from headct.virtual.bending import Coarse
from headct.virtual.findings.finding import Finding
from headct.virtual.findings.mass import along_skull_mm, swollen_scalp
from headct.virtual.places import along, length, some, where
from headct.virtual.solids import Vector, vector
from headct.virtual.texture import tiled_noise
from headct.virtual.tissue import Brain, Skull, inside, share_of_line

SKULL_PLACES_MM: tuple[Vector, ...] = ((66, -10, 10), (45, 58, 18), (50, -50, 46), (40, -92, -4), (20, 20, 82))
"""On the right: temporal, frontal, parietal, occipital, near the vertex; template."""

REACH_MM: Mapping[str, tuple[float, float]] = {"linear": (25, 65), "depressed": (9, 17), "base": (16, 28)}
"""How far a fracture of each kind goes from its centre."""


@dataclass(frozen=True, kw_only=True)
class Fracture(Finding):
    """A cut through bone, as a line, a dent, or through the petrous base, with a bruise above it."""

    name: ClassVar[str] = "fracture"
    kind: str  # linear, depressed or base
    centre_mm: Vector
    across: Vector  # normal of the cut
    width_mm: float
    reach_mm: float
    dent_mm: float
    swelling_mm: float
    bubbles_mm: tuple[Vector, ...]  # of air that came in through a broken base, template
    tile: Vector

    @classmethod
    def draw(cls, rng: np.random.Generator, over_mm: Vector | None = None) -> Fracture:
        """Lines of 0.5 to 3.5 mm: in thick slices the finest vanish, as do those that run along a slice.

        One that tore an artery lies `over_mm`, where the blood is, and is none of the base.
        """
        kind = ("linear", "depressed", "base")[rng.choice(3, p=(0.55, 0.25, 0.2))]
        side = 1 if rng.uniform() < 0.5 else -1
        swells = kind != "base"  # over blood no more often than elsewhere: a scalp must not tell of it
        if over_mm is not None:
            kind = "linear" if kind == "base" else kind
            place = np.array(over_mm) * (side, 1, 1)  # mirrored below, back to where it is
        else:
            place = np.array((48, -30, -36) if kind == "base" else SKULL_PLACES_MM[int(rng.integers(5))], dtype=float)
        across = rng.normal(0, 1, 3) * ((1, 1, 0.2) if kind == "base" else (0.4, 1, 0.7))
        centre = (place + rng.normal(0, 5, 3)) * (side, 1, 1)
        aired = kind == "base" and rng.uniform() < 0.5
        spots = centre + rng.normal(0, 7, (int(rng.integers(2, 7)), 3)) + (-6 * side, 0, 12)
        return cls(
            kind=kind,
            centre_mm=vector(centre),
            across=vector(across / np.linalg.norm(across)),
            width_mm=float(np.clip(1.4 * np.exp(rng.normal(0, 0.55)), 0.5, 3.5)),
            reach_mm=float(rng.uniform(*REACH_MM[kind])),
            dent_mm=float(rng.uniform(3, 9)) if kind == "depressed" else 0.0,
            swelling_mm=float(rng.uniform(2, 9)) if swells and rng.uniform() < 0.65 else 0.0,
            bubbles_mm=tuple(vector(spot) for spot in spots) if aired else (),
            tile=vector(rng.uniform(0, 1, 3)),
        )

    def fields(self, coarse: Coarse) -> Mapping[str, torch.Tensor]:
        return {"swelling": swollen_scalp(coarse, self.centre_mm, self.swelling_mm)}

    def paint_bone(self, skull: Skull) -> None:
        away = (skull.template_mm - skull.template_mm.new_tensor(self.centre_mm)) / skull.scale
        beyond_mm = length(away) - self.reach_mm
        if self.kind == "depressed":  # the piece is gone from here; it lies within the cavity, see `paint`
            skull.change("fracture", inside(beyond_mm, 2.0) * _bone(skull.hu) * (skull.cavity_mm > 0), 45.0)
            beyond_mm = beyond_mm - 8
        around = inside(beyond_mm, 3.0)
        at = where(around > 0)
        jagged = 1.2 * tiled_noise(some(skull.template_mm, at), 12.0, self.tile)
        aside = along(some(away, at), away.new_tensor(self.across)) + jagged
        line = share_of_line(aside, self.width_mm, skull.edge_mm)
        skull.change_at("fracture", at, line * some(around, at) * _bone(some(skull.hu, at)), 30.0)

    def paint(self, brain: Brain) -> None:
        if self.kind == "depressed":  # a piece of the inner table lies within the cavity
            near = brain.distance_mm(self.centre_mm) - self.reach_mm
            piece = torch.abs(brain.depth_mm - self.dent_mm) - 2.4
            brain.change("fracture", inside(piece, 1.2) * inside(near + 1, 2.0), 0.8 * brain.anatomy.table_hu)
        for number, spot in enumerate(self.bubbles_mm):
            bubble = brain.distance_mm(spot) - 1.2 - 0.3 * number
            brain.change("fracture", inside(bubble, brain.edge_mm), -850.0)


def _bone(hu: torch.Tensor) -> torch.Tensor:
    """Share of bone (n,) in what has these values."""
    return torch.clamp((hu - 120) / 120, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Surgery(Finding):
    """Traces of earlier operations: a burr hole or a flap, a catheter. A trap, not a finding."""

    name: ClassVar[str] = "surgery"
    flap: bool
    catheter: bool
    centre_mm: Vector
    radius_mm: float
    tip_mm: Vector

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Surgery:
        """Flaps heal with a rim; every second patient has a catheter."""
        side = 1 if rng.uniform() < 0.5 else -1
        flap = bool(rng.uniform() < 0.5)
        place = np.array(SKULL_PLACES_MM[int(rng.integers(4))], dtype=float)
        return cls(
            flap=flap,
            catheter=bool(rng.uniform() < 0.5),
            centre_mm=vector(place * (side, 1, 1)),
            radius_mm=float(rng.uniform(22, 38) if flap else rng.uniform(4, 7)),
            tip_mm=vector(np.array([side * 7.0, 18.0, 8.0])),
        )

    def paint_bone(self, skull: Skull) -> None:
        arc = along_skull_mm(skull.template_mm, self.centre_mm)
        bone = _bone(skull.hu) * (skull.cavity_mm > -6)
        gap = torch.abs(arc - self.radius_mm) - 1.0 if self.flap else arc - self.radius_mm
        skull.change("surgery", inside(gap, 1.2) * bone * (skull.template_mm[:, 2] > -40), 35.0)

    def paint(self, brain: Brain) -> None:
        if not self.catheter:
            return
        start, end = (brain.template_mm.new_tensor(place) for place in (self.centre_mm, self.tip_mm))
        course = (end - start) / torch.linalg.vector_norm(end - start)
        away = brain.template_mm - start
        share = along(away, course).clamp(0, float(torch.linalg.vector_norm(end - start)))
        distance = length(away - share[:, None] * course) / brain.scale
        brain.change("surgery", inside(distance - 1.2, brain.edge_mm), 160.0)
        brain.change("surgery", inside(distance - 0.5, brain.edge_mm), 5.0)


@dataclass(frozen=True, kw_only=True)
class Bruise(Finding):
    """A swollen scalp over sound bone. A trap, not a finding."""

    name: ClassVar[str] = "bruise"
    centre_mm: Vector
    swelling_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Bruise:
        """On the vault, where heads are hit that bleed beneath the bone too, and as thick."""
        side = 1 if rng.uniform() < 0.5 else -1
        place = np.array(SKULL_PLACES_MM[rng.choice(5, p=(0.4, 0.2, 0.2, 0.1, 0.1))], dtype=float)
        centre = (place + rng.normal(0, 6, 3)) * (side, 1, 1)
        return cls(centre_mm=vector(centre), swelling_mm=float(rng.uniform(3, 10)))

    def fields(self, coarse: Coarse) -> Mapping[str, torch.Tensor]:
        return {"swelling": swollen_scalp(coarse, self.centre_mm, self.swelling_mm)}
