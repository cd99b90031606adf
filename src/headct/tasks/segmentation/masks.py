"""Masks from files, brought onto the grid on which a segmenter sees its scans; one that does not lie there is refused.

A mask may lie on the prepared array of its scan, as `headct simulate --masks` writes it, or on the scanner's own grid,
shear of a tilted gantry included. Which of the two is told by shape and matrix alone. From the scanner's grid a voxel
of the prepared array becomes the class that fills most of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headct.cohort import Cohort
from headct.failure import Misuse
from headct.preparing.masks import on_grid, read_mask
from headct.scan import AIR_HU
from headct.tasks.segmentation.classes import TABLE, Classes, as_learned, read_classes

SUFFIXES = (".nii.gz", ".nii")
TOLERANCE_VOXELS = 0.1
"""How far apart two matrices may put a corner of their grid, along its axes, and still be the same grid."""
SPACING_TOLERANCE = 0.02
"""Share by which the voxels of a mask may differ from those of its scan."""
TILT_DEG = 1.0
"""By which the shear of a mask may differ from that of its scan."""
LEAST_INSIDE = 0.5
"""Share of what is drawn that must lie in the prepared array, and in it on something denser than `AIR_BELOW_HU`."""
AIR_BELOW_HU = -700


@dataclass(frozen=True)
class Masks:
    """The masks of a cohort's scans, in one folder, `SCAN_ID.nii.gz`."""

    cohort: Cohort
    folder: Path
    classes: Classes

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise Misuse(f"there is no folder of masks {self.folder}", do="name one: --masks DIR, files SCAN_ID.nii.gz")
        if not self.scan_ids:
            raise Misuse(
                f"no scan of {self.cohort.path} has a mask in {self.folder}",
                why="a mask is called after its scan: SCAN_ID.nii.gz",
                do="name the folder of masks, or call them by the column scan_id of the cohort",
            )

    @property
    def scan_ids(self) -> tuple[str, ...]:
        """Scans of the cohort that have a mask, in its order."""
        return tuple(scan_id for scan_id in self.cohort if self.path(scan_id) is not None)

    def path(self, scan_id: str) -> Path | None:
        """The mask of a scan, if there is one."""
        places = (self.folder / f"{scan_id}{suffix}" for suffix in SUFFIXES)
        return next((place for place in places if place.is_file()), None)

    def of(self, scan_id: str, array: np.ndarray) -> np.ndarray:
        """Class numbers uint8 (X, Y, Z) on the spatial grid of the scan's prepared array.

        Raises Misuse where the mask does not lie on its scan, or its values are no classes.
        """
        path = self.path(scan_id)
        assert path is not None, f"scan {scan_id} has no mask"
        stored, affine = read_mask(path)
        affine_there, shape = self.cohort.affine(scan_id), array.shape[-3:]
        numbers = self.classes.of(stored, path)
        if same_grid(stored.shape, affine, shape, affine_there):
            return numbers
        self._expect_of_scanner(scan_id, stored.shape, affine, path, shape)
        found = on_grid(numbers, affine, (shape[0], shape[1], shape[2]), affine_there, self.classes.outputs)
        _expect_on_head(numbers, affine, found, affine_there, array if array.ndim == 3 else None, path)
        return found

    def _expect_of_scanner(
        self, scan_id: str, shape: Sequence[int], affine: np.ndarray, path: Path, prepared: Sequence[int]
    ) -> None:
        """Raises Misuse unless shape, voxels and shear are those of the scan as it was acquired."""
        rows = self.cohort.scans.set_index("scan_id", drop=False).to_dict("index")
        row = rows[scan_id]
        acquired = (int(row["cols"]), int(row["rows"]), int(row["slices"]))
        if sorted(shape) != sorted(acquired):
            moved = tuple(shape) == tuple(prepared)
            raise Misuse(
                f"{path} has the shape {_sizes(shape)}; scan {scan_id} was acquired as {_sizes(acquired)} and prepared "
                f"as {_sizes(prepared)}",
                why="its matrix is not that of the prepared array" if moved else "a mask lies on one of the two grids",
                do="export it on the grid of its image",
            )
        told_mm = sorted((float(row["pixel_mm"]), float(row["pixel_mm"]), _slice_step_mm(row)))
        steps_mm = sorted(np.linalg.norm(affine[:3, :3], axis=0).tolist())
        if not np.allclose(steps_mm, told_mm, rtol=SPACING_TOLERANCE):
            raise Misuse(
                f"the voxels of {path} measure {_sizes(steps_mm)} mm, those of scan {scan_id} {_sizes(told_mm)} mm",
                why="its matrix is not that of its scan",
                do="export it on the grid of its image",
            )
        if abs(_shear_deg(affine) - float(row["tilt_deg"])) > TILT_DEG:
            raise Misuse(
                f"{path} is sheared by {_shear_deg(affine):.1f} degrees, "
                f"scan {scan_id} by {float(row['tilt_deg']):.1f}",
                why="without the shear of a tilted gantry a mask lies beside its slices",
                do="write it with the matrix of its image, as `headct segment predict` does",
            )


def same_grid(shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other: np.ndarray) -> bool:
    """Whether two grids put each of their corners at the same place, to a small share of a voxel."""
    if tuple(shape) != tuple(other_shape):
        return False
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, size - 1) for size in shape))]).T
    return bool(np.abs(np.linalg.solve(affine, other @ corners) - corners).max() <= TOLERANCE_VOXELS)


def _expect_on_head(
    numbers: np.ndarray,
    affine: np.ndarray,
    found: np.ndarray,
    target: np.ndarray,
    hu: np.ndarray | None,
    path: Path,
) -> None:
    """Raises Misuse where what is drawn lies elsewhere than the head."""
    drawn_mm3 = np.count_nonzero(numbers) * abs(np.linalg.det(affine[:3, :3]))
    kept_mm3 = np.count_nonzero(found) * abs(np.linalg.det(target[:3, :3]))
    if drawn_mm3 and kept_mm3 < LEAST_INSIDE * drawn_mm3:
        raise Misuse(
            f"{kept_mm3 / drawn_mm3:.0%} of what {path} draws lies in the prepared array",
            why="by its matrix the mask lies beside its scan",
            do="export it on the grid of its image",
        )
    if hu is None or hu.dtype != np.int16 or not (found > 0).any():
        return
    dense = float((hu[found > 0] > AIR_BELOW_HU).mean())
    if dense < LEAST_INSIDE:
        raise Misuse(
            f"{1 - dense:.0%} of what {path} draws lies in air ({AIR_HU} HU and little more)",
            why="by its matrix the mask lies beside its scan",
            do="export it on the grid of its image",
        )


def _slice_step_mm(row: Any) -> float:
    """From one slice to the next: along the table, where the gantry is tilted, and not along the normal."""
    return float(row["gap_median_mm"]) / float(np.cos(np.radians(float(row["tilt_deg"]))))


def _shear_deg(affine: np.ndarray) -> float:
    """By how much the axis that leaves the perpendicular most does so, as `Scan.tilt_deg` measures it."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    across = np.abs((axes.T @ axes) - np.eye(3)).max()
    return float(np.degrees(np.arcsin(min(1.0, across))))


def _sizes(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def gathered(cohorts: Sequence[Cohort], folders: Sequence[Path], wanted: str, *, learned: str = "") -> list[Masks]:
    """The masks of each cohort, in a folder each or in its own `masks`, with the same classes.

    These are those `wanted`, else those of the definition by which a segmenter has `learned`, else those of the table.
    Raises Misuse where there are as many folders neither as cohorts nor none, or two cohorts hold the same scan.
    """
    if folders and len(folders) != len(cohorts):
        raise Misuse(
            f"{len(cohorts)} cohorts and {len(folders)} folders of masks",
            do="give --masks once for each cohort, in their order, or leave it out: masks/ in each",
        )
    places = list(folders) or [cohort.path / "masks" for cohort in cohorts]
    for cohort, place in zip(cohorts, places, strict=True):
        if not len(cohort):
            raise Misuse(f"cohort {cohort.path} holds no scans", do="see its rejections, or name another cohort")
        if not place.is_dir():
            raise Misuse(
                f"there is no folder of masks {place}", do=f"name one: --masks DIR, files SCAN_ID.nii.gz and {TABLE}"
            )
    classes = read_classes(places, wanted or as_learned(places[0], learned))
    found = [Masks(cohort, place, classes) for cohort, place in zip(cohorts, places, strict=True)]
    seen: set[str] = set()
    for some in found:
        if twice := seen.intersection(some.scan_ids):
            raise Misuse(
                f"{len(twice):,} scans of {some.cohort.path} are in another cohort too, such as {min(twice)}",
                why="they would count twice",
                do="leave their masks out of one of the two folders",
            )
        seen.update(some.scan_ids)
    return found


def in_folder(folder: Path) -> dict[str, Path]:
    """The masks in a folder by the names of their scans, sorted."""
    return {
        path.name.removesuffix(".gz").removesuffix(".nii"): path
        for path in sorted(folder.iterdir())
        if path.name.endswith(SUFFIXES)
    }


def each(masks: Sequence[Masks]) -> Iterator[tuple[Masks, str]]:
    """Every scan with a mask."""
    for some in masks:
        for scan_id in some.scan_ids:
            yield some, scan_id
