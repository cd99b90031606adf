"""Headers made without files: what the tests of grouping, selection and geometry work on."""

from __future__ import annotations

from typing import Any

import numpy as np

from headct.reading.files import Source
from headct.reading.instances import Instance, PixelElement

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.91"


def pixel_element(**changes: Any) -> PixelElement:
    plain: dict[str, Any] = {
        "transfer_syntax": EXPLICIT_LITTLE,
        "offset": 1000,
        "length_bytes": 2 * 8 * 8,
        "frames": 1,
        "rows": 8,
        "cols": 8,
        "bits_allocated": 16,
        "bits_stored": 16,
        "high_bit": 15,
        "signed": True,
        "inverted": False,
        "padding": (),
        "lossy": False,
    }
    return PixelElement(**{**plain, **changes})


def instance(z_mm: float, name: str = "", **changes: Any) -> Instance:
    """An axial image at a height, with a name and UID made of it; `pixels` may be a dictionary of changes."""
    name = name or f"head/{z_mm:08.3f}.dcm"
    pixels = changes.pop("pixels", {})
    plain: dict[str, Any] = {
        "source": Source(f"/data/{name}", None, name, 2000),
        "sop_uid": f"1.2.{name}",
        "series_uid": "1.2.3",
        "study_uid": "1.2",
        "patient_id": "p",
        "position_mm": (100.0, 120.0, z_mm),
        "row_step_mm": (0.0, -0.5, 0.0),
        "col_step_mm": (-0.5, 0.0, 0.0),
        "pixels": pixel_element(**pixels) if isinstance(pixels, dict) else pixels,
    }
    return Instance(**{**plain, **changes})


def stack(count: int, step_mm: float = 5.0, first_mm: float = 0.0, **changes: Any) -> list[Instance]:
    return [instance(first_mm + index * step_mm, **changes) for index in range(count)]


def heights_mm(volume: Any) -> list[float]:
    return np.round(volume.origins_mm[:, 2], 6).tolist()
