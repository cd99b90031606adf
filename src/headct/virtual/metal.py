"""Dental fillings and aneurysm clips, and the streaks they throw across a slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headct.virtual.solids import Vector, vector
from headct.virtual.streams import stream

METAL_HU = 6000.0
"""Far beyond what files hold, so that partial volume of metal is still white."""

FILLED, CLIPPED = 0.15, 0.015
"""How many adults have fillings in the upper jaw, and how many a clip or coil on an artery."""

TOOTH_ROW_MM: tuple[Vector, Vector] = ((0.0, 48.0, -85.0), (23.0, 27.0, 3.5))
"""Middle and half axes of where fillings lie, in template mm; the row opens to the back."""

FADE_MM = 12.0
"""At this distance from the metal streaks have half their strength."""


@dataclass(frozen=True)
class Metal:
    """One piece."""

    place_mm: Vector  # in template mm, by the head map
    radius_mm: float
    streaks_hu: float  # standard deviation beside it


def metal_of(seed: int) -> tuple[Metal, ...]:
    """What a patient has, from a stream of its own: no finding and no visit changes it."""
    rng = stream(seed, "metal")
    filled, clipped = rng.uniform(size=2)
    pieces = []
    if filled < FILLED:
        (x, y, z), radii = TOOTH_ROW_MM
        for angle in np.radians(rng.uniform(-15, 195, int(rng.integers(1, 6)))):
            place = x + radii[0] * np.cos(angle), y + radii[1] * np.sin(angle), z + radii[2] * rng.uniform(-1, 1)
            pieces.append(Metal(vector(place), float(rng.uniform(1.2, 3.0)), float(rng.uniform(80, 350))))
    if clipped < CLIPPED:
        side = 1 if rng.uniform() < 0.5 else -1
        place = side * rng.uniform(2, 26), rng.uniform(-2, 12), rng.uniform(-16, -8)
        pieces.append(Metal(vector(place), float(rng.uniform(1.5, 3.5)), float(rng.uniform(40, 150))))
    return tuple(pieces)


@dataclass(frozen=True)
class Spot:
    """Where a slice cuts a piece of metal."""

    row: float
    col: float
    radius_mm: float
    streaks_hu: float
    share: float  # of the slice's thickness


def spots_in(
    pieces: Sequence[Metal],
    places_mm: np.ndarray,
    origin_mm: np.ndarray,
    steps_mm: tuple[np.ndarray, np.ndarray],
    thickness_mm: float,
) -> list[Spot]:
    """Where a slice from `origin_mm`, with steps along a column and along a row, cuts pieces at `places_mm` (n, 3)."""
    down, across = steps_mm
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal)
    found = []
    for piece, place in zip(pieces, places_mm - origin_mm, strict=True):
        reach = piece.radius_mm + thickness_mm / 2
        share = min(1.0, 2 * piece.radius_mm / thickness_mm) * max(0.0, 1 - (place @ normal / reach) ** 2)
        if share > 0:
            row, col = place @ down / (down @ down), place @ across / (across @ across)
            found.append(Spot(float(row), float(col), piece.radius_mm, piece.streaks_hu, float(share)))
    return found


def lay_metal(hu: np.ndarray, spots: Sequence[Spot], pixel_mm: float, rng: np.random.Generator) -> None:
    """Metal and its streaks in one slice (rows, cols), in place.

    Streaks are straight lines through the metal, bright or dark by their angle, that fade with the distance.
    """
    rows, cols = np.ogrid[: hu.shape[0], : hu.shape[1]]
    for spot in spots:
        down, across = (rows - spot.row) * pixel_mm, (cols - spot.col) * pixel_mm
        away = np.hypot(down, across)
        rays = _rays(rng)
        angle = np.arctan2(down, across) * (len(rays) / np.pi)  # the same on both sides of the metal
        strength = spot.streaks_hu * spot.share / (1 + (away / FADE_MM) ** 1.5)
        hu += strength * rays[np.rint(angle).astype(int) % len(rays)]
        body = spot.share * np.clip(0.5 + (spot.radius_mm - away) / pixel_mm, 0, 1)
        hu += body * (METAL_HU - hu)


def _rays(rng: np.random.Generator) -> np.ndarray:
    """Brightness of streaks by angle, over half a turn: unit variance, from broad to as fine as a view."""
    harmonics = np.arange(721)
    weights = rng.normal(size=(2, 721)) * np.exp(-harmonics / 28) * (harmonics > 0)
    rays = np.fft.irfft(weights[0] + 1j * weights[1])
    return (rays / rays.std()).astype(np.float32)
