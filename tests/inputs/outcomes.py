"""What really comes of an input: read with the default criteria, prepared with the default recipe."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headct.preparing import prepare
from headct.reading import read
from headct.reading.criteria import Criteria
from headct.reading.files import find
from headct.scan import Rejection, Scan
from headct.virtual.phantom import Phantom
from inputs.kinds import Kind

NEAR_MM = 6.0


@dataclass(frozen=True)
class Outcome:
    """What reading gave, and which of the scans preparing turned away; `files` are all that were found, read or not."""

    files: tuple[str, ...]
    scans: tuple[Scan, ...]
    rejections: tuple[Rejection, ...]
    turned_away: tuple[Rejection, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(sorted({flag for scan in self.scans for flag in scan.header.flags}))

    @property
    def rejected(self) -> dict[str, int]:
        """Rejected files by code."""
        codes: Counter[str] = Counter()
        for rejection in self.rejections:
            codes[rejection.code] += len(rejection.files)
        return dict(codes)


def outcome_of(kind: Kind, folder: Path) -> Outcome:
    """Build an input under a folder that does not exist yet, and read it."""
    folder.mkdir(parents=True)
    kind.make(folder)
    files = tuple(file for found in find([folder]) for file in found.files)
    results = list(read([folder], Criteria(), key=bytes(32)))
    scans = tuple(result for result in results if isinstance(result, Scan))
    rejections = tuple(result for result in results if isinstance(result, Rejection))
    away = tuple(fault for scan in scans if isinstance(fault := prepare(scan), Rejection))
    return Outcome(files, scans, rejections, away)


def differences(scan: Scan) -> str:
    """Where a scan is not the average head at its own place, in words; empty where it is.

    The phantom is sampled on the scan's grid, some slices of it. Noise and blur of the kinds stay below these limits; a
    slice out of place, a swapped side or a wrong offset does not.
    """
    some = np.unique(np.linspace(0, len(scan.hu) - 1, 8).round().astype(int))
    steps = (scan.row_step_mm, scan.col_step_mm)
    shape = scan.hu.shape[1:]
    truth = Phantom(0).sample(scan.origins_mm[some], *steps, *shape, thickness_mm=scan.thickness_mm)
    off = np.abs(scan.hu[some] - truth)
    soft = (truth > 0) & (truth < 60)
    found = []
    if soft.any() and np.median(off[soft]) > 20:
        found.append(f"soft tissue is {np.median(off[soft]):.0f} HU off")
    if np.mean(off > 200) > 0.02:
        found.append(f"{np.mean(off > 200):.0%} of voxels are more than 200 HU off")
    nodule = Phantom(0).landmarks_mm["calcification"]
    along = (scan.origins_mm - nodule) @ scan.normal
    nearest = int(np.argmin(np.abs(along)))
    if abs(along[nearest]) < NEAR_MM and _brightest(scan, nearest, nodule) < 150:
        found.append("the nodule on the right is not there")
    return "; ".join(found)


def _brightest(scan: Scan, index: int, place_mm: np.ndarray) -> float:
    """The highest value within a few millimetres of a place in one slice."""
    aside = place_mm - scan.origins_mm[index]
    row = aside @ scan.row_step_mm / (scan.row_step_mm @ scan.row_step_mm)
    col = aside @ scan.col_step_mm / (scan.col_step_mm @ scan.col_step_mm)
    r, c = (np.arange(size) for size in scan.hu.shape[1:])
    near = (np.abs(r - row)[:, None] * scan.pixel_mm[0] < NEAR_MM) & (np.abs(c - col) * scan.pixel_mm[1] < NEAR_MM)
    return float(scan.hu[index][near].max(initial=-1024))
