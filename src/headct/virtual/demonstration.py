"""The folder of a hospital that does not exist, for demonstrations: heads, and what an archive sends along."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from headct.scan import Scan
from headct.virtual import clutter
from headct.virtual.archive import side_view, write_series
from headct.virtual.simulated import Simulated, Simulation

PIXEL_MM = 1.2
"""Coarse enough to be quick."""

TAKE_TURNS = ("site-a", "site-b", "site-d")


def write_demonstration(folder: Path, *, patients: int = 12, seed: int = 0) -> None:
    """Write virtual patients as DICOM, one folder each, with the clutter that an archive sends along.

    Three hospitals take turns; every fifth head lacks a slice. Beside them lies what a reader must refuse: localizers,
    contrast series, a quality phantom, a dose page, a file that broke off. The same arguments give the same bytes; 12
    patients take 32 MB.
    """
    for index in range(patients):
        site = TAKE_TURNS[index % len(TAKE_TURNS)]
        simulated = next(Simulation(seed=seed, site=site, spacing_mm=PIXEL_MM).scans(index))
        place = folder / f"patient-{index + 1:02d}"
        scan = _without_slice(simulated.scan, 12) if index % 5 == 4 else simulated.scan
        files = write_series(simulated, scan, place / "head", description="HEAD ROUTINE")
        if index % 4 == 0:
            _write_others(simulated, files, place)
    clutter.write_water_cylinder(folder / "quality")
    clutter.write_capture(folder / "captures" / "dose.dcm")


def _write_others(simulated: Simulated, files: list[Path], place: Path) -> None:
    """The localizer, a series with contrast, and a copy that broke off."""
    clutter.truncate(files[2], files[2].with_name("0003-copy.dcm"))
    header = replace(simulated.header("contrast"), contrast=True)
    enhanced = replace(simulated.scan, hu=simulated.scan.hu + np.int16(4), header=header)
    write_series(simulated, enhanced, place / "head-2", description="HEAD WITH CONTRAST", number=3)
    clutter.write_localizer(side_view(simulated), place / "localizer")


def _without_slice(scan: Scan, index: int) -> Scan:
    """The scan as it arrives when one file is lost."""
    return replace(scan, hu=np.delete(scan.hu, index, axis=0), origins_mm=np.delete(scan.origins_mm, index, axis=0))
