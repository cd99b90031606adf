"""What a head lies on: couch and head rest, in scanner coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headct.virtual.head import EDGE_MM
from headct.virtual.solids import Points, ellipsoid, paint

SHELL_HU, FOAM_HU = 40.0, -930.0


def lay_table(hu: np.ndarray, points_mm: np.ndarray, shift_mm: Sequence[float], *, head_rest: bool = True) -> None:
    """Couch and head rest at points (n, 3) RAS mm, in place; the rest follows the head, which lies at `shift_mm`.

    The head rest is a padded half pipe from the neck upwards, the couch a shallow trough that begins at the neck.
    They lie over air alone: what is denser than foam stays.
    """
    (low,) = np.nonzero((points_mm[:, 1] - shift_mm[1] < -60) & (hu < FOAM_HU))
    if not len(low):
        return
    here, part = Points(*(points_mm[low, axis] - shift_mm[axis] for axis in range(3))), hu[low]
    if head_rest:
        pipe = ellipsoid(here, (0, -14, 0), (106, 116, 1e6))
        ends = np.maximum(np.abs(here.z - 10) - 120, here.y + np.float32(66))
        paint(part, np.maximum(np.abs(pipe - 5) - 6, ends), FOAM_HU, EDGE_MM)
        paint(part, np.maximum(np.abs(pipe - 12) - 1.5, ends), SHELL_HU, EDGE_MM)
    trough = np.abs(ellipsoid(here, (0, 160, 0), (420, 320, 1e6)))
    foot = np.maximum(here.z + np.float32(96), np.abs(here.x) - 210)
    paint(part, np.maximum(trough - 14, foot), FOAM_HU, EDGE_MM)
    paint(part, np.maximum(np.abs(trough - 14) - 1.2, foot), SHELL_HU, EDGE_MM)
    hu[low] = part
