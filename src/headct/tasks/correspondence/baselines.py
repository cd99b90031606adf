"""Where a place would be if heads differed in position, in size or in shape alone: what a search must beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from scipy.linalg import sqrtm

from headct.failure import Misuse
from headct.pretraining.views import TISSUE_HU, head_box
from headct.tasks.correspondence.maps import Head

Move = Callable[[np.ndarray], np.ndarray]
"""Points (n, 3) of one patient to points (n, 3) of another, both in RAS mm."""


def same_offset(query: Head, target: Head) -> Move:
    """As far from the middle of the head's box, in the same direction."""
    moved_mm = _middle_mm(target) - _middle_mm(query)
    return lambda points_mm: points_mm + moved_mm


def box_affine(query: Head, target: Head) -> Move:
    """At the same share of the head's box along each axis of the array: a scale and a shift along each."""
    first, second = _box(query), _box(target)
    scale = (second[1] - second[0]) / (first[1] - first[0])
    to_voxel = np.linalg.inv(query.affine)

    def move(points_mm: np.ndarray) -> np.ndarray:
        voxels = points_mm @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        return ((voxels - first[0]) * scale + second[0]) @ target.affine[:3, :3].T + target.affine[:3, 3]

    return move


def moments_affine(query: Head, target: Head) -> Move:
    """By the affine map that gives the query's tissue the target's mean and covariance, turning as little as possible.

    It is the optimal transport between two Gaussians (Dowson and Landau, J. Multivariate Analysis 12, 1982).
    """
    (first_mm, first), (second_mm, second) = _moments(query), _moments(target)
    root = np.real(sqrtm(first))
    unroot = np.linalg.inv(root)
    matrix = unroot @ np.real(sqrtm(root @ second @ root)) @ unroot
    return lambda points_mm: (points_mm - first_mm) @ matrix.T + second_mm


BASELINES: Mapping[str, Callable[[Head, Head], Move]] = MappingProxyType(
    {"centre": same_offset, "affine-box": box_affine, "affine-moments": moments_affine}
)
"""By the name that tables give them."""


def _box(head: Head) -> np.ndarray:
    """First and last voxel (2, 3) of the head. Raises Misuse where the array is not in HU."""
    if not head.is_hu:
        raise Misuse(
            f"the array of scan {head.scan_id} is not in HU, so nothing says where the head ends",
            do="evaluate with a model whose recipe gives HU",
        )
    return head_box(head.array).astype(float)


def _middle_mm(head: Head) -> np.ndarray:
    middle = _box(head).mean(axis=0)
    return np.asarray(head.affine[:3, :3] @ middle + head.affine[:3, 3])


def _moments(head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Mean (3,) and covariance (3, 3) in mm of the tissue inside the head's box."""
    low, high = _box(head).astype(int)
    inside = head.array[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] > TISSUE_HU
    points_mm = (np.argwhere(inside) + low) @ head.affine[:3, :3].T + head.affine[:3, 3]
    return points_mm.mean(axis=0), np.cov(points_mm.T)
