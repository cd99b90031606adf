"""Heads whose features are known functions of a place, so that the right answer to every search is known."""

from __future__ import annotations

import numpy as np

from headct.tasks.correspondence import FeatureMap, Head

WAVES = np.random.default_rng(7).normal(size=(24, 3)) / 150
"""Of features that differ everywhere in a head and change slowly from cell to cell."""


def features_at(points_mm: np.ndarray) -> np.ndarray:
    """Features (..., 48) of places (..., 3) in a head's own frame."""
    phases = points_mm @ WAVES.T * 2 * np.pi
    return np.concatenate([np.sin(phases), np.cos(phases)], axis=-1).astype(np.float32)


def affine_of(spacing_mm: float, origin_mm: tuple[float, float, float]) -> np.ndarray:
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = origin_mm
    return affine


def map_of(to_frame, affine: np.ndarray, grid: tuple[int, int, int] = (9, 10, 8)) -> FeatureMap:
    """A map whose patient space becomes the frame of `features_at` by `to_frame`."""
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1)
    points_mm = places @ affine[:3, :3].T + affine[:3, 3]
    return FeatureMap(features_at(to_frame(points_mm)), affine, np.ones(grid, bool))


def ball(middle_mm: np.ndarray, radii_mm: np.ndarray, spacing_mm: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid of tissue in HU (X, Y, Z), and its affine."""
    shape = (56, 60, 52)
    affine = affine_of(spacing_mm, tuple(middle_mm - (np.array(shape) - 1) / 2 * spacing_mm))
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    offsets_mm = places @ affine[:3, :3].T + affine[:3, 3] - middle_mm
    inside = ((offsets_mm / radii_mm) ** 2).sum(axis=-1) <= 1
    return np.where(inside, 40, -1000).astype(np.int16), affine


def head_of(name: str, patient: str, shift_mm: np.ndarray, scale: float = 1.0) -> Head:
    """A head of another position and size, whose features go with its places."""
    hu, affine = ball(shift_mm, scale * np.array([80.0, 95.0, 75.0]))
    coarse = affine_of(16.0, (-64.0 + shift_mm[0], -72.0 + shift_mm[1], -56.0 + shift_mm[2]))
    mapped = map_of(lambda points: (points - shift_mm) / scale, coarse)
    ids = {"scan_id": name, "patient_id": patient, "study_id": "", "series_id": f"1.{name}"}
    return Head(ids, hu, affine, True, mapped)
