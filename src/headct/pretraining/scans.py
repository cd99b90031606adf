"""The scans of a run, and in which order they come: pure functions of the seed and the step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headct.failure import Misuse
from headct.pretraining.views import View, ViewSettings, draw_all, head_box

if TYPE_CHECKING:
    from headct.cohort import Cohort

ORDER, VIEWS = 1, 2  # what a generator is for, so that no two draw the same numbers


@dataclass(frozen=True)
class Batch:
    """The scans of one step, with the numbers of their views."""

    scan_ids: tuple[str, ...]
    hu: np.ndarray  # (B, X, Y, Z) int16
    draws: tuple[list[list[View]], list[list[View]]]  # global and local, [view][scan]


def order(seed: int, scans: int, step: int, batch: int) -> list[int]:
    """Which scans (batch,) step `step` sees: every scan once an epoch, shuffled anew each epoch."""
    places = range(step * batch, (step + 1) * batch)
    shuffled = {
        epoch: np.random.default_rng((seed, ORDER, epoch)).permutation(scans)
        for epoch in {place // scans for place in places}
    }
    return [int(shuffled[place // scans][place % scans]) for place in places]


class Scans:
    """All scans of several cohorts, which must share one recipe.

    Raises Misuse where recipes disagree, arrays are not HU of one shape, or fewer than two scans are there.
    """

    def __init__(self, cohorts: Sequence[Path | Cohort]) -> None:
        self.cohorts = [_opened(cohort) for cohort in cohorts]
        self.ids = [(cohort, str(scan_id)) for cohort in self.cohorts for scan_id in cohort.scans["scan_id"]]
        if len(self.ids) < 2:
            raise Misuse(
                f"pre-training needs at least 2 scans, got {len(self.ids)}",
                why="a network learns from the differences between scans",
                do="add cohorts, or look with `headct qc` why scans were rejected",
            )
        _check_recipes(self.cohorts)
        self.recipe = self.cohorts[0].recipe
        cohort, scan_id = self.ids[0]
        array = cohort.array(scan_id)
        if array.ndim != 3 or array.dtype != np.int16:
            raise Misuse(
                f"recipe {self.recipe.id} gives {array.dtype} {array.shape}, pre-training takes int16 HU (X, Y, Z)",
                why="views are drawn in Hounsfield units and windowed afterwards",
                do="prepare the cohort with the recipe head, head-axial or head-fine",
            )
        self.shape = array.shape
        self.spacing_mm = tuple(np.linalg.norm(cohort.affine(scan_id)[:3, :3], axis=0).tolist())

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """For each cohort its name, number of scans, and a hash of their ids."""
        return [
            {
                "cohort": _name(cohort),
                "scans": len(cohort),
                "scan_ids_sha256": hashlib.sha256("\n".join(map(str, cohort.scans["scan_id"])).encode()).hexdigest(),
            }
            for cohort in self.cohorts
        ]

    def batch(self, seed: int, step: int, size: int, views: ViewSettings) -> Batch:
        """Scans and drawn views of one step."""
        chosen = [self.ids[index] for index in order(seed, len(self), step, size)]
        hu = [self._array(cohort, scan_id) for cohort, scan_id in chosen]
        boxes_mm = [head_box(one) * np.array(self.spacing_mm) for one in hu]
        draws = draw_all(np.random.default_rng((seed, VIEWS, step)), views, boxes_mm)
        return Batch(tuple(scan_id for _, scan_id in chosen), np.stack(hu), draws)

    def _array(self, cohort: Cohort, scan_id: str) -> np.ndarray:
        array = cohort.array(scan_id)
        if array.shape != self.shape:
            raise Misuse(
                f"scan {scan_id} has the shape {array.shape}, the others {self.shape}",
                why="a batch holds arrays of one shape",
                do="prepare the cohort with a recipe that fixes the shape",
            )
        return array


def _opened(cohort: Path | Cohort) -> Cohort:
    if isinstance(cohort, str | Path):
        from headct.cohort import Cohort

        return Cohort(Path(cohort))
    return cohort


def _name(cohort: Cohort) -> str:
    return Path(cohort.path).name


def _check_recipes(cohorts: Sequence[Cohort]) -> None:
    first = cohorts[0]
    for cohort in cohorts[1:]:
        if cohort.recipe.id != first.recipe.id:
            raise Misuse(
                f"cohort {_name(cohort)} uses recipe {cohort.recipe.id}, cohort {_name(first)} uses {first.recipe.id}",
                why="features of differently prepared scans cannot be compared",
                do=f"prepare {_name(cohort)} again with the recipe of {_name(first)}, or leave it out",
            )
