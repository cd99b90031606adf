"""The band that holds a head in its rest."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_fill_holes, distance_transform_edt

BAND_HU, BAND_MM, WIDTH_MM = -650.0, 3.0, 28.0
"""Webbing with air in it; how thick, and how broad along the table."""


def lay_strap(hu: np.ndarray, y_mm: np.ndarray, pixel_mm: float) -> None:
    """A band over the skin of the head's front half in one slice (rows, cols), in place; `y_mm` (rows, 1) anterior."""
    outside = ~binary_fill_holes(hu >= -500)  # not the air of the sinuses
    off_skin = distance_transform_edt(outside) * pixel_mm
    share = np.clip((BAND_MM - off_skin) / pixel_mm + 0.5, 0, 1) * (outside & (y_mm > -20))
    hu += share * (np.maximum(hu, BAND_HU) - hu)
