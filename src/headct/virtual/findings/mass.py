"""How masses move the brain within the rigid skull: pushed outwards from a centre, inwards from the skull, sideways."""

from __future__ import annotations

import numpy as np
import torch

from headct.virtual.bending import Coarse
from headct.virtual.places import along, length
from headct.virtual.tissue import MIDDLE_MM

BRAIN_RADIUS_MM = 68.0
"""Of a sphere about as large as the cavity, to turn angles seen from its middle into lengths along the skull."""

BRAIN_RADII_MM = np.array([64.0, 82.0, 64.0])
"""Of an ellipsoid around `MIDDLE_MM` that is about the brain, template mm."""

MIDLINE_MM, TENTORIUM_MM = 6.0, -20.0
"""A mass whose middle lies nearer to the midplane, or lower, does not shift the septum; template x and z."""

DECAY_MM = 42.0, 48.0, 40.0
"""How far a shift of the midline reaches to either side, to front and back, up and down."""


def within_brain(place_mm: np.ndarray, share: float = 0.84) -> np.ndarray:
    """The same place (3,), or where it would lie beyond `share` of the way to the surface, the last one before.

    Places below the tentorium stay: the ellipsoid is that of the cerebrum.
    """
    away = (place_mm - np.array(MIDDLE_MM)) / BRAIN_RADII_MM
    reach = float(np.linalg.norm(away))
    return (
        place_mm
        if reach <= share or place_mm[2] < TENTORIUM_MM
        else np.array(MIDDLE_MM) + away * (share / reach) * BRAIN_RADII_MM
    )


def along_skull_mm(template_mm: torch.Tensor, place_mm: tuple[float, float, float]) -> torch.Tensor:
    """Millimetres (n,) along the inner table from beneath a place, by the angle seen from the brain's middle."""
    middle = template_mm.new_tensor(MIDDLE_MM)
    towards = template_mm.new_tensor(place_mm) - middle
    from_middle = template_mm - middle
    cosine = along(from_middle, towards) / (torch.linalg.vector_norm(towards) * length(from_middle).clamp(min=1e-3))
    return torch.arccos(cosine.clamp(-1, 1)) * BRAIN_RADIUS_MM


def pushed_from(
    coarse: Coarse, centre_mm: tuple[float, float, float], radius_mm: float, strength: float
) -> torch.Tensor:
    """The push (n, 3) of a ball that grew in the brain: tissue around it moves out, less near the skull.

    A shell of radius r was at (r^3 - k R^3 exp(-(r / 4.5 R)^2))^(1/3) before; k is `strength`.
    """
    away = coarse.template_mm - coarse.template_mm.new_tensor(centre_mm)
    r = length(away).clamp(min=1e-3)
    size = radius_mm * coarse.scale
    before = (r**3 - strength * size**3 * torch.exp(-((r / (4.5 * size)) ** 2))).clamp(min=0) ** (1 / 3)
    free = torch.clamp(coarse.depth_mm / 16, max=1)
    return away * ((before / r - 1) * free)[:, None]


def ball(coarse: Coarse, centre_mm: tuple[float, float, float], radius_mm: float) -> torch.Tensor:
    """Coarse points (n,), bool, within a ball around a place in template mm."""
    away = coarse.template_mm - coarse.template_mm.new_tensor(centre_mm)
    return length(away) < radius_mm * coarse.scale


def pushed_from_skull(coarse: Coarse, thickness_mm: torch.Tensor, decay_mm: float) -> torch.Tensor:
    """The push (n, 3) of a layer between skull and brain: tissue beneath it moves inwards by as much."""
    beneath = torch.clamp(coarse.depth_mm - thickness_mm, min=0)
    inwards = thickness_mm * torch.exp(-beneath / decay_mm) * (coarse.depth_mm > 0)
    return coarse.outward * (inwards * coarse.scale)[:, None]


def shifted(coarse: Coarse, side: int, shift_mm: float) -> torch.Tensor:
    """The push (n, 3) that moves the midline by `shift_mm` away from `side` (+1 right, -1 left)."""
    x, y, z = coarse.template_mm.T
    wide, long, high = (reach * coarse.scale for reach in DECAY_MM)
    near = torch.exp(-((x / wide) ** 2) - ((y + 10) / long) ** 2 - ((z - 10) / high) ** 2)
    near = near * torch.clamp(coarse.depth_mm / 16, max=1)
    push = torch.zeros_like(coarse.template_mm)
    push[:, 0] = side * shift_mm * coarse.scale * near
    return push


def shift_of_mass_mm(rng: np.random.Generator, volume_ml: float, centre_mm: np.ndarray) -> float:
    """Midline shift that a mass of this volume makes: larger masses more, with much variation between patients.

    None by a mass in the midline or below the tentorium, given its middle in template mm.
    """
    shift_mm = float(min(14.0, rng.uniform(0.05, 1.3) * max(0.0, 3 * volume_ml ** (1 / 3) - 4)))
    return 0.0 if abs(centre_mm[0]) < MIDLINE_MM or centre_mm[2] < TENTORIUM_MM else shift_mm


def swollen_scalp(coarse: Coarse, place_mm: tuple[float, float, float], swelling_mm: float) -> torch.Tensor:
    """Swelling of the scalp (n,) in mm around a place, nothing beyond 5 cm."""
    arc = along_skull_mm(coarse.template_mm, place_mm) / 50
    return swelling_mm * torch.clamp(1 - arc**2, min=0) ** 2 * (coarse.cavity_mm > -20)
