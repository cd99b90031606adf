"""How scanners differ: spacing, tilt, kernel, noise and the way their files are stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headct.scan import Header, Scan
from headct.writing import write_dicom


@dataclass(frozen=True, kw_only=True)
class Habit:
    """What one scanner does with every head."""

    manufacturer: str
    kernel: str
    gaps_mm: tuple[float, ...]  # table steps from slice to slice
    tilt_deg: float = 0.0
    blur_mm: float = 0.6
    noise_hu: float = 3.0
    bleed: str | None = None  # of the patients who are sent here
    transfer_syntax: str = "jpeg-ls"
    intercept_hu: int = -1024

    def settings(self, number: int) -> dict[str, Any]:
        """The arguments of `Phantom.scan` for patient `number`."""
        positions_mm = np.concatenate([[0.0], np.cumsum(self.gaps_mm)])
        header = Header(
            manufacturer=self.manufacturer,
            kernel=self.kernel,
            kvp=120.0,
            patient_id=f"virtual-{number:04d}",
            age=float(20 + 37 * number % 70),
            sex="FM"[number % 2],
        )
        return {
            "positions_mm": positions_mm - positions_mm[-1] / 2,
            "tilt_deg": self.tilt_deg,
            "blur_mm": self.blur_mm,
            "noise_hu": self.noise_hu,
            "noise_seed": number,
            "header": header,
        }

    def write(self, scan: Scan, folder: Path, *, description: str, series_number: int = 1) -> list[Path]:
        """Store a scan as this scanner's archive does."""
        return write_dicom(
            scan,
            folder,
            transfer_syntax=self.transfer_syntax,
            intercept_hu=self.intercept_hu,
            description=description,
            series_number=series_number,
        )


HABITS = (
    Habit(manufacturer="Virtual A", kernel="BRAIN", gaps_mm=(5.0,) * 29),
    Habit(manufacturer="Virtual B", kernel="H31s", gaps_mm=(4.0,) * 14 + (7.0,) * 13, tilt_deg=18.0, intercept_hu=0),
    Habit(manufacturer="Virtual C", kernel="UB", gaps_mm=(5.0,) * 29, tilt_deg=-14.0, noise_hu=4.0, bleed="iph"),
    Habit(manufacturer="Virtual D", kernel="FC26", gaps_mm=(3.0,) * 49, blur_mm=0.8, transfer_syntax="jpeg-2000"),
    Habit(manufacturer="Virtual A", kernel="STANDARD", gaps_mm=(5.0,) * 14 + (10.0,) + (5.0,) * 13, bleed="sdh"),
    Habit(manufacturer="Virtual B", kernel="J40s", gaps_mm=(4.8,) * 30, noise_hu=5.0, transfer_syntax="deflated"),
)
"""Even, stacked 4 and 7 mm with tilt, tilted the other way, thin, with one slice missing, and odd spacing."""
