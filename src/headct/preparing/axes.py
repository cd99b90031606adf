"""Which stored axis runs along which direction of the patient."""

from __future__ import annotations

from itertools import permutations

import numpy as np

LETTERS = "RAS"
"""Towards which the three axes of patient space grow."""
_OPPOSITE = dict(zip("RASLPI", "LPIRAS", strict=True))


def nearest_axes(steps_mm: np.ndarray) -> tuple[int, int, int]:
    """The stored axes that run most nearly along x, y and z, from their steps in mm, the columns of (3, 3)."""
    along = np.abs(steps_mm / np.linalg.norm(steps_mm, axis=0))
    first, second, third = max(permutations(range(3)), key=lambda order: sum(along[range(3), order]))
    return first, second, third


def turn(volume: np.ndarray, affine: np.ndarray, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """A view of the volume (I, J, K) whose axes grow towards the letters `axes`, and its affine (4, 4) to RAS mm.

    Where the volume is oblique, its axes are those nearest to the letters. No voxel changes.
    """
    stored = nearest_axes(affine[:3, :3])
    order, backwards = [], []
    for letter in axes:
        positive = letter if letter in LETTERS else _OPPOSITE[letter]
        direction = LETTERS.index(positive)
        order.append(stored[direction])
        backwards.append((affine[direction, stored[direction]] > 0) != (letter == positive))
    turned = np.eye(4)
    turned[:3, :3] = affine[:3, order]
    turned[:3, 3] = affine[:3, 3]
    for axis, back in enumerate(backwards):
        if back:
            turned[:3, 3] += turned[:3, axis] * (volume.shape[order[axis]] - 1)
            turned[:3, axis] *= -1
    return volume.transpose(order)[tuple(slice(None, None, -1 if back else 1) for back in backwards)], turned
