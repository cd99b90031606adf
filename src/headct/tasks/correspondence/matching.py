"""A place in one map, found again in another: best cell, then between the cells, then back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headct.failure import Misuse
from headct.tasks.correspondence.maps import FeatureMap

STEPS = (1 / 2, 1 / 6, 1 / 18, 1 / 54)
"""Of a cell, by which the best cell is refined, each around what the one before has found."""
SCALES = (0.5, 2.0)
"""By how much a box may shrink or grow from one head to another."""


@dataclass(frozen=True)
class Matches:
    """Where n points lie in another head.

    `similarity` is the cosine of the features there and at the query. `forward_backward_mm` is how far from the query
    one arrives when what was found is looked for in the first head: small where each is what the other means.
    """

    points_mm: np.ndarray  # (n, 3), RAS mm of the other patient
    similarity: np.ndarray  # (n,)
    forward_backward_mm: np.ndarray  # (n,)


@dataclass(frozen=True)
class Box:
    """A box along the axes of a patient's own space."""

    low_mm: np.ndarray  # (3,) right, anterior, superior
    high_mm: np.ndarray  # (3,)

    def __post_init__(self) -> None:
        if not np.all(self.high_mm > self.low_mm):  # also where one is no number
            raise Misuse(
                f"a box from {_said(self.low_mm)} to {_said(self.high_mm)} mm holds nothing",
                do="give the lower corner first: R,A,S,R,A,S",
            )

    @property
    def middle_mm(self) -> np.ndarray:
        """(3,)."""
        return (self.low_mm + self.high_mm) / 2

    def points_mm(self) -> np.ndarray:
        """27 points (27, 3): three along each axis, the outer ones a sixth of the edge inside."""
        shares = np.array([1 / 6, 1 / 2, 5 / 6])
        steps = np.stack(np.meshgrid(shares, shares, shares, indexing="ij"), axis=-1).reshape(-1, 3)
        return self.low_mm + steps * (self.high_mm - self.low_mm)


def _said(point_mm: np.ndarray) -> str:
    return ",".join(f"{value:g}" for value in point_mm)


def places_in(query: FeatureMap, target: FeatureMap, points_mm: np.ndarray) -> Matches:
    """Where points (n, 3) of the query's patient lie in the target's patient.

    Raises Misuse where the maps were made by encoders of different width.
    """
    if query.features.shape[-1] != target.features.shape[-1]:
        raise Misuse(
            f"maps of {query.features.shape[-1]} and {target.features.shape[-1]} features cannot be compared",
            do="make both with one model",
        )
    there, similarity = _found(target, query.at(query.places_of(points_mm)))
    back, _ = _found(query, target.at(there))
    apart_mm = np.linalg.norm(query.mm_of(back) - points_mm, axis=1)
    return Matches(target.mm_of(there), similarity, apart_mm)


def box_in(query: FeatureMap, target: FeatureMap, box: Box) -> tuple[Box, float, float]:
    """A box of the query's patient in the target's; its similarity and how far back one arrives, medians of 27 points.

    Along each axis the 27 points found give a middle (median of what they lie off) and a scale (median of the slopes
    between pairs, Theil and Sen), within `SCALES`: a few wrong points move neither.
    """
    points_mm = box.points_mm()
    matches = places_in(query, target, points_mm)
    offsets, half = points_mm - box.middle_mm, (box.high_mm - box.low_mm) / 2
    middle_mm, half_mm = np.empty(3), np.empty(3)
    for axis in range(3):
        before, after = offsets[:, axis], matches.points_mm[:, axis]
        first, second = np.triu_indices(len(before), 1)
        apart = np.abs(before[second] - before[first]) > 1e-9
        slopes = (after[second] - after[first])[apart] / (before[second] - before[first])[apart]
        scale = float(np.clip(np.median(slopes), *SCALES))
        middle_mm[axis] = np.median(after - scale * before)
        half_mm[axis] = half[axis] * scale
    found = Box(middle_mm - half_mm, middle_mm + half_mm)
    return found, float(np.median(matches.similarity)), float(np.median(matches.forward_backward_mm))


def similarities(target: FeatureMap, vectors: np.ndarray) -> np.ndarray:
    """Cosines (n, nx, ny, nz) of vectors (n, F) with every cell; -1 where nothing is looked for."""
    cosines = _unit(vectors) @ _unit(target.features.reshape(-1, target.features.shape[-1]).astype(float)).T
    return np.where(target.wanted.reshape(1, -1), cosines, -1.0).reshape(len(vectors), *target.grid)


def _found(target: FeatureMap, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lattice coordinates (n, 3) where the target is most like vectors (n, F), and the cosines (n,) there."""
    if not len(vectors):
        return np.empty((0, 3)), np.empty(0)
    cosines = similarities(target, vectors).reshape(len(vectors), -1)
    best = np.stack(np.unravel_index(cosines.argmax(axis=1), target.grid), axis=1)
    refined = [_refined(target, vector, cell) for vector, cell in zip(_unit(vectors), best, strict=True)]
    places, similarity = zip(*refined, strict=True)
    return np.stack(places), np.array(similarity)


def _refined(target: FeatureMap, unit: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, float]:
    """Where, within one cell of `cell` (3,) and nearest to a wanted one, features are most like a unit vector (F,).

    Interpolated features are a weighted sum of those of the 27 cells around, so their cosine needs only these cells'
    products with the vector and with each other.
    """
    last = np.array(target.grid) - 1
    around = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    cells = np.clip(cell + around, 0, last)
    features = target.features[cells[:, 0], cells[:, 1], cells[:, 2]].astype(float)
    with_vector, with_each_other = features @ unit, features @ features.T
    place, similarity, reach = np.zeros(3), -1.0, 1.0
    for step in STEPS:
        offsets = np.clip(place + _offsets(reach, step), -1, 1)
        offsets = np.clip(cell + offsets, 0, last) - cell
        weights = np.prod(np.stack([_hats(offsets[:, axis])[:, 1 + around[:, axis]] for axis in range(3)]), axis=0)
        length = np.sqrt(np.maximum(np.einsum("nc,nc->n", weights @ with_each_other, weights), 1e-24))
        i, j, k = np.rint(cell + offsets).astype(int).T
        # equal cosines differ in their last bits
        cosines = np.where(target.wanted[i, j, k], np.round(weights @ with_vector / length, 12), -1.0)
        most = int(cosines.argmax())
        place, similarity, reach = offsets[most], float(cosines[most]), step
    return cell + place, similarity


def _offsets(reach: float, step: float) -> np.ndarray:
    """Offsets (n, 3) up to `reach` along each axis, the nearest first, so that among equals the nearest is taken."""
    along = np.arange(-round(reach / step), round(reach / step) + 1) * step
    offsets = np.stack(np.meshgrid(along, along, along, indexing="ij"), axis=-1).reshape(-1, 3)
    return offsets[np.argsort((offsets**2).sum(axis=1), kind="stable")]


def _hats(offsets: np.ndarray) -> np.ndarray:
    """Weights (n, 3) of the cells before, at and after one for linear interpolation at offsets (n,) from -1 to 1."""
    return np.stack([np.maximum(-offsets, 0), 1 - np.abs(offsets), np.maximum(offsets, 0)], axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
