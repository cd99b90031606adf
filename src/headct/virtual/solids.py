"""Solids given by closed formulas: how far a point lies from their surface, in mm, negative inside.

Distances are exact on the surface and accurate to first order near it, which is all that painting with an edge of
about a millimetre needs. Everything is float32 on flat arrays of coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

Vector = tuple[float, float, float]


def vector(values: Iterable[float]) -> Vector:
    """Three numbers as plain floats."""
    x, y, z = (float(value) for value in values)
    return x, y, z


class Points(NamedTuple):
    """Coordinates of many points, each (n,) float32, in head millimetres (right, anterior, superior)."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    def at(self, chosen: np.ndarray) -> Points:
        """The points that an index array or a mask chooses."""
        return Points(self.x[chosen], self.y[chosen], self.z[chosen])

    def folded(self) -> Points:
        """The same points with left mirrored on right, for solids that come in pairs."""
        return Points(np.abs(self.x), self.y, self.z)


def ellipsoid(at: Points, centre: Vector, radii: Vector) -> np.ndarray:
    """Distance (n,) to an ellipsoid with its axes along the coordinates.

    First-order estimate k0 (k0 - 1) / k1 with k0 = |p / r| and k1 = |p / r^2|; zero exactly on the surface.
    """
    tiny = 1e-6  # keeps the ratio of both finite at the centre
    x, y, z = ((values - middle) * (1 / radius) for values, middle, radius in zip(at, centre, radii, strict=True))
    scaled = np.sqrt(x * x + y * y + z * z)
    x *= 1 / radii[0]
    y *= 1 / radii[1]
    z *= 1 / radii[2]
    slope = np.sqrt(x * x + y * y + z * z)
    return (scaled - 1) * (scaled + tiny) / (slope + tiny / min(radii))


def capsule(at: Points, start: Vector, end: Vector, radius_start: float, radius_end: float | None = None) -> np.ndarray:
    """Distance (n,) to a rod with round ends whose radius may change along it."""
    along = [last - first for first, last in zip(start, end, strict=True)]
    length2 = sum(step * step for step in along)
    x, y, z = (values - first for values, first in zip(at, start, strict=True))
    share = x * (along[0] / length2)
    share += y * (along[1] / length2)
    share += z * (along[2] / length2)
    np.clip(share, 0, 1, out=share)
    x -= share * along[0]
    y -= share * along[1]
    z -= share * along[2]
    taper = 0.0 if radius_end is None else radius_end - radius_start
    return np.sqrt(x * x + y * y + z * z) - (radius_start + share * taper)


def united(first: np.ndarray, second: np.ndarray, round_mm: float) -> np.ndarray:
    """Distance to both solids together, the crease between them rounded over `round_mm`."""
    blend = 0.5 + (second - first) * (0.5 / round_mm)
    np.clip(blend, 0, 1, out=blend)
    return second + (first - second) * blend - round_mm * blend * (1 - blend)


def shared(first: np.ndarray, second: np.ndarray, round_mm: float) -> np.ndarray:
    """Distance to what both solids have in common, the edge between them rounded over `round_mm`."""
    return -united(-first, -second, round_mm)


def inside(distance_mm: np.ndarray, edge_mm: float) -> np.ndarray:
    """Share (n,) of a solid at each point: 1 inside, 0 outside, a smooth ramp of width `edge_mm` between."""
    share = 0.5 - distance_mm * (1 / edge_mm)
    np.clip(share, 0, 1, out=share)
    return share * share * (3 - 2 * share)


def paint(hu: np.ndarray, distance_mm: np.ndarray, value_hu: float | np.ndarray, edge_mm: float) -> None:
    """Lay a solid of `value_hu` over `hu` (n,), in place."""
    hu += inside(distance_mm, edge_mm) * (value_hu - hu)
