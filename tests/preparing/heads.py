"""A head drawn in millimetres by closed formulas, and scanners that sample it on any grid.

Patient space is RAS with the middle of the braincase at the origin. What the tests need and real scans have: a
skull with a base and a foramen magnum, scalp, ventricles, a face with airways and teeth, neck, shoulders, arms, table,
headrest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from headct.scan import Scan

INNER_MM = np.array([68.0, 84.0, 66.0])
"""Half axes of the inside of the skull."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    size: float = 1.0
    skull_mm: float = 6.5
    scalp_mm: float = 5.0
    brain_hu: float = 32.0
    craniectomy: bool = False
    bleed_ml: float = 0.0
    body: bool = True
    """Neck, shoulders and arms."""
    arms_up: bool = False
    table: bool = True
    headrest: bool = True
    metal: bool = False
    empty: bool = False
    """A plastic phantom: air inside the skull."""

    def hu_at(self, points_mm: np.ndarray) -> np.ndarray:
        """Radiodensity (n,) at points (n, 3)."""
        x, y, z = (points_mm / self.size).T.astype(np.float32)
        hu = np.full(len(x), -1000.0, dtype=np.float32)
        if self.table:
            self._table(hu, *points_mm.T)
        if self.headrest:
            self._headrest(hu, x, y, z)
        if self.body:
            self._body(hu, x, y, z)
        self._face(hu, x, y, z)
        self._braincase(hu, x, y, z)
        return hu

    def _table(self, hu, x, y, z):
        depth = -130 * self.size - 20 - y + (x / 60) ** 2 * 6
        on = np.abs(x) < 210
        hu[on & (depth > 0) & (depth < 45)] = -950
        hu[on & (((depth > 0) & (depth < 3)) | ((depth > 42) & (depth < 45)))] = 90

    def _headrest(self, hu, x, y, z):
        r = np.sqrt((x / 96) ** 2 + ((y + 5) / 112) ** 2)
        on = (y < 10) & (z < 45) & (z > -160)
        hu[on & (r > 0.93) & (r < 1.06)] = -900
        hu[on & (r > 1.06) & (r < 1.09)] = 250

    def _body(self, hu, x, y, z):
        neck = (x / 60) ** 2 + ((y + 12) / 66) ** 2 < 1
        neck &= (z < -25) & (y < 60)
        hu[neck & (z > -190)] = -90
        hu[((x / 54) ** 2 + ((y + 12) / 60) ** 2 < 1) & (z < -35) & (z > -230)] = 55
        shoulders = (x / 215) ** 2 + ((y + 20) / 100) ** 2 + ((z + 260) / 75) ** 2
        hu[shoulders < 1] = -95
        hu[shoulders < 0.9] = 55
        hu[(x**2 + (y + 18) ** 2 < 24**2) & (z < -72) & (np.mod(z, 22) > 5)] = 500
        hu[(x**2 + (y + 38) ** 2 < 11**2) & (z < -40)] = 20
        hu[((x / 9) ** 2 + ((y - 16) / 8) ** 2 < 1) & (z < -60)] = -980
        for side in (-1, 1):
            humerus = (x - side * 170) ** 2 + (y + 20) ** 2
            hu[(humerus < 24**2) & (z < -230)] = 700
            if self.arms_up:
                arm = (x - side * 150) ** 2 + (y + 20) ** 2
                hu[(arm < 38**2) & (z < 120)] = 50
                hu[(arm < 13**2) & (z < 120)] = 900

    def _face(self, hu, x, y, z):
        face = (x / 66) ** 2 + ((y - 40) / 62) ** 2 + ((z + 62) / 62) ** 2
        hu[face < 1] = -80
        hu[face < 0.8] = 56
        jaw = np.sqrt((x / 52) ** 2 + ((y - 34) / 55) ** 2)
        hu[(jaw > 0.85) & (jaw < 1.05) & (y > 10) & (z < -85) & (z > -118)] = 1100
        hu[(jaw > 0.7) & (jaw < 0.88) & (y > 55) & (z < -78) & (z > -100)] = 2200
        for side in (-1, 1):
            sinus = ((x - side * 26) / 15) ** 2 + ((y - 62) / 18) ** 2 + ((z + 62) / 18) ** 2
            hu[sinus < 1.3] = 600
            hu[sinus < 1] = -990
        hu[((x / 11) ** 2 + ((y - 60) / 30) ** 2 < 1) & (z < -38) & (z > -80)] = -980

    def _braincase(self, hu, x, y, z):
        a, b, c = INNER_MM
        skull, scalp = self.skull_mm / self.size, self.scalp_mm / self.size
        base = self._base(x, y)

        def ellipsoid(grow):
            return (x / (a + grow)) ** 2 + (y / (b + grow)) ** 2 + (z / (c + grow)) ** 2

        above = z > base - 14
        hu[(ellipsoid(skull + scalp) < 1) & above] = 15
        hu[(ellipsoid(skull + scalp - 2) < 1) & above] = -40
        bone = (ellipsoid(skull) < 1) & (z > base - 10)
        missing = (x > 25) & (z > -8) & (np.abs(y) < 62) & self.craniectomy
        hu[bone] = 1000
        hu[bone & (ellipsoid(skull * 0.66) < 1) & (ellipsoid(skull * 0.33) > 1)] = 550
        hu[bone & missing] = 40
        inside = (ellipsoid(0) < 1) & (z > base)
        if self.empty:
            hu[inside] = -1000
            hu[inside & (np.abs(x) < 12) & (np.abs(y) < 12) & (np.abs(z) < 12)] = 90
            return
        hu[inside] = self.brain_hu - 3
        hu[inside & (ellipsoid(-6) < 1)] = self.brain_hu + 4
        hu[inside & (ellipsoid(-12) < 1)] = self.brain_hu - 4
        hu[(x**2 + (y + 36) ** 2 < 17**2) & (z > base - 12) & (z < base + 1)] = 20
        for side in (-1, 1):
            horn = ((x - side * 12) / 8) ** 2 + ((y - 4) / 34) ** 2 + ((z - 12) / 10) ** 2
            hu[inside & (horn < 1)] = 6
            eye = (x - side * 32) ** 2 + (y - 72) ** 2 + (z + 46) ** 2
            hu[eye < 21**2] = -90
            hu[eye < 12.5**2] = 8
        radius = (self.bleed_ml * 1000 * 3 / 4 / np.pi) ** (1 / 3) / self.size
        if radius:
            hu[inside & ((x - 28) ** 2 + (y - 5) ** 2 + (z - 10) ** 2 < radius**2)] = 68
        if self.metal:
            hu[(x + 20) ** 2 + (y - 20) ** 2 + (z + 10) ** 2 < 5**2] = 3071

    @staticmethod
    def _base(x, y):
        """Height of the floor of the braincase: three steps down from the front to the back."""
        step = 9 * (1 + np.tanh((y - 32) / 6)) + 9 * (1 + np.tanh((y + 14) / 6))
        petrous = 10 * np.exp(-(((y + 14) / 7) ** 2)) * (np.abs(x) > 16)
        return -64 + step + petrous


@dataclass(frozen=True)
class Chest:
    """A trunk with lungs, heart, liver, ribs and spine, and no head."""

    def hu_at(self, points_mm: np.ndarray) -> np.ndarray:
        x, y, z = points_mm.T.astype(np.float32)
        hu = np.full(len(x), -1000.0, dtype=np.float32)
        ring = np.sqrt((x / 165) ** 2 + (y / 115) ** 2)
        hu[ring < 1] = -95
        hu[ring < 0.9] = 55
        hu[(ring > 0.8) & (ring < 0.87) & (np.mod(z + 0.3 * y, 24) < 11)] = 700
        for side in (-1, 1):
            hu[((x - side * 70) / 55) ** 2 + ((y + 5) / 75) ** 2 + ((z - 30) / 110) ** 2 < 1] = -850
        hu[((x + 12) / 55) ** 2 + ((y - 25) / 45) ** 2 + ((z - 10) / 50) ** 2 < 1] = 42
        hu[((x - 50) / 85) ** 2 + (y / 80) ** 2 + ((z + 110) / 60) ** 2 < 1] = 58
        hu[x**2 + (y + 75) ** 2 < 20**2] = 450
        return hu


@dataclass(frozen=True, kw_only=True)
class Bottle:
    """A cylinder of one density, with a wall of another."""

    inside_hu: float = 0.0
    wall_hu: float = 120.0

    def hu_at(self, points_mm: np.ndarray) -> np.ndarray:
        x, y, z = points_mm.T
        radius = np.where(np.abs(z) < 90, np.hypot(x, y), np.inf)
        return np.select([radius < 95, radius < 100], [self.inside_hu, self.wall_hu], -1000.0)


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """Where slices lie and how thick they are; the field of view is centred on `center_mm`."""

    pixels: int = 160
    pixel_mm: float = 1.6
    gaps_mm: tuple[float, ...] | float = 5.0
    first_mm: float = -120.0
    last_mm: float = 100.0
    """Range along z, at the centre, that slices cover (of evenly spaced ones)."""
    thickness_mm: float | None = None
    tilt_deg: float = 0.0
    center_mm: tuple[float, float] = (0.0, -10.0)
    noise_hu: float = 0.0
    samples: int = 3
    """Across the thickness of a slice, averaged."""
    offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of the patient's origin."""

    @lru_cache(maxsize=16)  # noqa: B019 - both are values, and tests ask for the same ones again
    def scan(self, thing: Anatomy | Chest | Bottle) -> Scan:
        if isinstance(self.gaps_mm, tuple):
            heights = self.first_mm + np.concatenate([[0.0], np.cumsum(self.gaps_mm)])
            usual = float(np.median(self.gaps_mm))
        else:
            heights = np.arange(self.first_mm, self.last_mm + 1e-6, self.gaps_mm)
            usual = self.gaps_mm
        thickness = self.thickness_mm or usual
        angle = np.radians(self.tilt_deg)
        row_step = -self.pixel_mm * np.array([0.0, np.cos(angle), np.sin(angle)])  # rows go towards the back
        col_step = -self.pixel_mm * np.array([1.0, 0.0, 0.0])
        normal = np.array([0.0, -np.sin(angle), np.cos(angle)])
        corner = np.array([*self.center_mm, 0.0]) - (self.pixels - 1) / 2 * (row_step + col_step)
        origins = corner + heights[:, None] * np.array([0.0, 0.0, 1.0])
        r, c = np.meshgrid(np.arange(self.pixels), np.arange(self.pixels), indexing="ij")
        plane = r[..., None] * row_step + c[..., None] * col_step
        across = thickness * ((np.arange(self.samples) + 0.5) / self.samples - 0.5)
        hu = np.empty((len(origins), self.pixels, self.pixels), dtype=np.int16)
        rng = np.random.default_rng(0)
        for s, origin in enumerate(origins):
            points = [(plane + origin + depth * normal).reshape(-1, 3) for depth in across]
            values = np.mean([thing.hu_at(p) for p in points], axis=0).reshape(plane.shape[:2])
            values += rng.normal(0, self.noise_hu, values.shape) if self.noise_hu else 0
            hu[s] = np.rint(values)
        return Scan(
            hu=hu,
            origins_mm=origins + self.offset_mm,
            row_step_mm=row_step,
            col_step_mm=col_step,
            thickness_mm=thickness,
        )
