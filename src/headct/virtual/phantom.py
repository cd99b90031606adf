"""A head that is known everywhere: a digital phantom to be sampled on any grid.

It is the oracle for geometry: the same head scanned upright, tilted, unevenly or in another plane must come out of
reading and preparing as the same head. It is not a virtual patient: one anatomy, varied in size, pose and thickness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from headct.scan import AIR_HU, Header, Scan
from headct.virtual import head
from headct.virtual.head import Bleed, Shape
from headct.virtual.solids import Points
from headct.virtual.table import lay_table

POINTS_AT_ONCE = 1 << 16
"""How many points are worked on together: few enough for their arrays to stay in the processor's cache."""

AXES: Mapping[str, np.ndarray] = {
    "axial": np.array([(0, -1, 0), (-1, 0, 0), (0, 0, 1)], dtype=float),
    "coronal": np.array([(0, 0, -1), (-1, 0, 0), (0, 1, 0)], dtype=float),
    "sagittal": np.array([(0, 0, -1), (0, -1, 0), (1, 0, 0)], dtype=float),
}
"""Directions in which rows, columns and slices follow each other, RAS; axial and coronal with right on the left."""


@dataclass(frozen=True)
class Phantom:
    """One head, decided by its seed. Seed 0 is the average one, upright and centred.

    `bleed` is None, "iph" (blood in the brain) or "sdh" (blood below the skull); the same seed has the same head
    with and without it. Raises ValueError for another bleed.
    """

    seed: int = 0
    bleed: str | None = None

    def __post_init__(self) -> None:
        _ = self.drawn_bleed  # an unknown kind is refused at once

    @cached_property
    def shape(self) -> Shape:
        """Size, pose and tissue of this head."""
        return Shape.draw(self.seed)

    @cached_property
    def drawn_bleed(self) -> Bleed | None:
        """Place and size of the blood, if any."""
        return None if self.bleed is None else Bleed.draw(self.bleed, self.seed)

    @cached_property
    def _rotation(self) -> np.ndarray:
        return Rotation.from_euler("xyz", self.shape.turn_deg, degrees=True).as_matrix()

    def to_patient_mm(self, head_mm: Sequence[float] | np.ndarray) -> np.ndarray:
        """Patient coordinates (..., 3) RAS mm of a place given in head coordinates, see `headct.virtual.head`."""
        scaled = np.asarray(head_mm, dtype=float) * self.shape.size
        return scaled @ self._rotation.T + self.shape.shift_mm

    @cached_property
    def landmarks_mm(self) -> Mapping[str, np.ndarray]:
        """Places (3,) RAS mm that tell right from left, front from back and top from bottom."""
        places = {
            "calcification": head.CALCIFICATION_MM,  # right frontal, none on the left
            "nose": head.NOSE_TIP_MM,
            "vertex": head.VERTEX_MM,
            "right-ear": head.RIGHT_EAR_MM,
            "foramen-magnum": head.FORAMEN_MAGNUM_MM,
        }
        return {name: self.to_patient_mm(place) for name, place in places.items()}

    def _to_head(self, points_mm: np.ndarray) -> Points:
        """Head coordinates of points (n, 3) RAS mm."""
        shift_mm, size = np.array([self.shape.shift_mm, self.shape.size], dtype=np.float32)
        turned = (points_mm - shift_mm) @ self._rotation.astype(np.float32) / size
        return Points(*(np.ascontiguousarray(axis) for axis in turned.T))

    def hu_at(self, points_mm: np.ndarray, *, table: bool = True) -> np.ndarray:
        """Hounsfield values (...) float32 at points (..., 3) RAS mm, without noise and unrounded."""
        flat = np.asarray(points_mm, dtype=np.float32).reshape(-1, 3)
        hu = np.full(len(flat), AIR_HU, dtype=np.float32)
        for start in range(0, len(flat), POINTS_AT_ONCE):
            some = slice(start, start + POINTS_AT_ONCE)
            self._lay(hu[some], flat[some], table)
        return hu.reshape(np.shape(points_mm)[:-1])

    def _lay(self, hu: np.ndarray, points_mm: np.ndarray, table: bool) -> None:
        if table:
            lay_table(torch.from_numpy(hu), torch.from_numpy(points_mm), self.shape.shift_mm)
        at = self._to_head(points_mm)
        near = (at.x / 102) ** 2 + ((at.y + 6) / 124) ** 2 < 1
        near &= at.z < 100
        if near.any():
            part = hu[near]
            head.lay_head(part, at.at(near), self.shape, self.drawn_bleed)
            hu[near] = part

    def holds_brain(self, points_mm: np.ndarray) -> np.ndarray:
        """Which points (..., 3) RAS mm lie inside the skull, above the foramen magnum: bool (...)."""
        at = self._to_head(np.asarray(points_mm, dtype=np.float32).reshape(-1, 3))
        inside = (head.cavity(at) < 0) & (at.z > head.FORAMEN_MAGNUM_MM[2])
        return inside.reshape(np.shape(points_mm)[:-1])

    def sample(
        self,
        origins_mm: np.ndarray,
        row_step_mm: np.ndarray,
        col_step_mm: np.ndarray,
        rows: int,
        cols: int,
        *,
        thickness_mm: float,
        table: bool = True,
    ) -> np.ndarray:
        """Values (slices, rows, cols) float32 on a grid given as in `Scan`, each the mean over the slice's thickness.

        Every slice is sampled at evenly spaced depths, one every 1.7 mm at most.
        """
        normal = np.cross(row_step_mm, col_step_mm)
        normal /= np.linalg.norm(normal)
        count = max(1, int(np.ceil(thickness_mm / 1.7)))
        depths = ((np.arange(count) + 0.5) / count - 0.5) * thickness_mm
        down, across = np.arange(rows)[:, None, None] * row_step_mm, np.arange(cols)[:, None] * col_step_mm
        in_plane = (down + across).reshape(-1, 3).astype(np.float32)
        hu = np.zeros((len(origins_mm), rows * cols), dtype=np.float32)
        for values, origin in zip(hu, origins_mm, strict=True):
            for depth in depths:
                values += self.hu_at(in_plane + (origin + depth * normal).astype(np.float32), table=table)
        return hu.reshape(-1, rows, cols) / count

    def scan(
        self,
        *,
        slices: int = 30,
        rows: int = 256,
        cols: int = 256,
        pixel_mm: float = 0.9,
        gap_mm: float = 5.0,
        positions_mm: Sequence[float] | np.ndarray | None = None,
        tilt_deg: float = 0.0,
        thickness_mm: float | None = None,
        centre_mm: Sequence[float] = (0.0, -6.0, 12.0),
        plane: str = "axial",
        blur_mm: float = 0.0,
        noise_hu: float = 0.0,
        noise_seed: int = 0,
        table: bool = True,
        header: Header | None = None,
    ) -> Scan:
        """The head as a scanner would image it.

        The table moves by `gap_mm` between slices, or to `positions_mm` (slices,) along z relative to `centre_mm`,
        while the gantry leans by `tilt_deg` about the left-right axis (positive: slices rise towards the face): the
        distance along the normal is the table's times the cosine. Thickness is the median gap unless
        given. `blur_mm` is the sigma of an in-plane Gaussian for a softer kernel, `noise_hu` the standard deviation
        of the noise. Values are rounded and clipped to -1024..3071 as scanners do. The same arguments give the same
        bytes.
        """
        if positions_mm is None:
            positions_mm = (np.arange(slices) - (slices - 1) / 2) * gap_mm
        positions_mm = np.asarray(positions_mm, dtype=float)
        if thickness_mm is None:
            thickness_mm = float(np.median(np.abs(np.diff(positions_mm)))) if len(positions_mm) > 1 else gap_mm
        to_rows, to_cols, travel = AXES[plane]
        lean = Rotation.from_rotvec(np.radians(tilt_deg) * to_cols * -1)
        row_step, col_step = lean.apply(to_rows) * pixel_mm, to_cols * pixel_mm
        corner = np.asarray(centre_mm) - row_step * (rows - 1) / 2 - col_step * (cols - 1) / 2
        origins = corner + positions_mm[:, None] * travel
        hu = self.sample(origins, row_step, col_step, rows, cols, thickness_mm=thickness_mm, table=table)
        if blur_mm > 0:
            hu = gaussian_filter(hu, (0, blur_mm / pixel_mm, blur_mm / pixel_mm), mode="nearest")
        if noise_hu > 0:
            hu += _noise(hu.shape, noise_hu, noise_seed)
        return Scan(
            hu=np.clip(np.rint(hu), -1024, 3071).astype(np.int16),
            origins_mm=origins,
            row_step_mm=row_step,
            col_step_mm=col_step,
            thickness_mm=thickness_mm,
            header=header or Header(manufacturer="headct", model="phantom", patient_id=f"phantom-{self.seed}"),
        )


def _noise(shape: tuple[int, ...], sigma_hu: float, seed: int) -> np.ndarray:
    """Noise of the given standard deviation, correlated between neighbours in a slice as reconstruction makes it."""
    white = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    smooth = gaussian_filter(white, (0, 0.6, 0.6), mode="wrap")
    return smooth * float(sigma_hu / smooth.std())
