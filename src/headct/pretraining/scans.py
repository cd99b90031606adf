"""The scans of a run, and in which order they come: pure functions of the seed and the step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headct.cohort.identities import is_virtual
from headct.failure import Misuse
from headct.pretraining.objectives.objective import TEMPLATE_BLOCK, UNKNOWN_CLASS
from headct.pretraining.views import head_box

if TYPE_CHECKING:
    from headct.cohort import Cohort

ORDER, VIEWS, MIX = 1, 2, 3  # what a generator is for, so that no two draw the same numbers

TRUTH_FOLDERS: Mapping[str, str] = {"classes": "masks", "template_mm": "deformation"}
"""Where a cohort of virtual patients keeps its truth (`headct simulate --masks --deformation`)."""


NAMES: Mapping[str, str] = {"rescan": "SITE", "twin": "FINDING"}
"""What the option of `headct simulate` that makes such partners wants to know."""


@dataclass(frozen=True)
class Case:
    """A scan, and other scans of the same virtual patient by what they are to it: `rescan`, `twin`."""

    cohort: int
    scan_id: str
    partners: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """One scan in memory."""

    scan_id: str
    hu: np.ndarray  # (X, Y, Z) int16
    box_mm: np.ndarray  # (2, 3) of the head
    truth: Mapping[str, np.ndarray]
    normal: np.ndarray  # (3,) across the slices as acquired, in the axes of the array; zeros where it is not known
    patient: str


def order(seed: int, sizes: Sequence[int], shares: Sequence[float], places: Sequence[int]) -> list[int]:
    """Which scan comes at each place, counted through cohorts of `sizes`; shuffled anew each epoch.

    An epoch takes as many places as there are scans, from each cohort its share. Within a cohort no scan comes a
    second time before all have come once.
    """
    total, counts = sum(sizes), places_of(sizes, shares)
    return [int(_epoch(seed, place // total, tuple(sizes), counts)[place % total]) for place in places]


def places_of(sizes: Sequence[int], shares: Sequence[float]) -> tuple[int, ...]:
    """How many places of an epoch each cohort gets."""
    edges = np.rint(np.cumsum(np.asarray(shares) / np.sum(shares)) * sum(sizes)).astype(int)
    return tuple(np.diff(edges, prepend=0).tolist())


@lru_cache(maxsize=8)
def _epoch(seed: int, epoch: int, sizes: tuple[int, ...], counts: tuple[int, ...]) -> np.ndarray:
    """The scans of one epoch: of every cohort the next `counts` of its own endless shuffled order, mixed."""
    parts = []
    for cohort, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        turns, within = np.divmod(np.arange(epoch * count, (epoch + 1) * count), size)
        chosen = np.empty(count, dtype=np.int64)
        for turn in np.unique(turns).tolist():
            chosen[turns == turn] = _shuffled(seed, cohort, turn, size)[within[turns == turn]]
        parts.append(sum(sizes[:cohort]) + chosen)
    return np.random.default_rng((seed, MIX, epoch)).permutation(np.concatenate(parts))


@lru_cache(maxsize=16)
def _shuffled(seed: int, cohort: int, turn: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, ORDER, cohort, turn)).permutation(size)


class Scans:
    """All scans of several cohorts, which must share one recipe.

    Raises Misuse where recipes disagree, arrays are not HU of one shape, or fewer than two scans are there.
    """

    def __init__(self, cohorts: Sequence[Path | Cohort]) -> None:
        self.cohorts = [_opened(cohort) for cohort in cohorts]
        self.cases = [case for number, cohort in enumerate(self.cohorts) for case in _cases(number, cohort)]
        if len(self.cases) < 2:
            raise Misuse(
                f"pre-training needs at least 2 scans, got {len(self.cases)}",
                why="a network learns from the differences between scans",
                do="add cohorts, or look with `headct qc` why scans were rejected",
            )
        _check_recipes(self.cohorts)
        self.recipe = self.cohorts[0].recipe
        cohort, scan_id = self.cohorts[self.cases[0].cohort], self.cases[0].scan_id
        array = cohort.array(scan_id)
        if array.ndim != 3 or array.dtype != np.int16:
            raise Misuse(
                f"recipe {self.recipe.id} gives {array.dtype} {array.shape}, pre-training takes int16 HU (X, Y, Z)",
                why="views are drawn in Hounsfield units and windowed afterwards",
                do="prepare the cohort with the recipe head, head-axial or head-fine",
            )
        self.shape = array.shape
        x_mm, y_mm, z_mm = np.linalg.norm(cohort.affine(scan_id)[:3, :3], axis=0).tolist()
        self.spacing_mm = (x_mm, y_mm, z_mm)
        self._normals = [_normals(cohort) for cohort in self.cohorts]
        self._patients = [_patients(cohort) for cohort in self.cohorts]
        self._boxes: dict[tuple[int, str], np.ndarray] = {}  # found once, for that takes as long as reading
        self._template = lru_cache(maxsize=4000)(self._read_template)  # 194 kB a scan of 96 x 112 x 96

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def sizes(self) -> list[int]:
        """Scans of each cohort."""
        return [len(cohort) for cohort in self.cohorts]

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """For each cohort its name, number of scans, and a hash of their ids."""
        return [
            {
                "cohort": _name(cohort),
                "scans": len(cohort),
                "virtual": is_virtual(cohort),
                "scan_ids_sha256": hashlib.sha256("\n".join(map(str, cohort.scans["scan_id"])).encode()).hexdigest(),
            }
            for cohort in self.cohorts
        ]

    def check(self, partners: Collection[str], truth: Collection[str]) -> None:
        """Raises Misuse where no scan has what an objective learns from."""
        for kind in partners:
            if not any(kind in case.partners for case in self.cases):
                raise Misuse(
                    f"no scan has a {kind}",
                    why=f"the objective compares virtual patients with their {kind}",
                    do=f"make a cohort with `headct simulate --{kind} {NAMES[kind]}`, and name it among the others",
                )
        for kind in truth:
            if not any((cohort.path / TRUTH_FOLDERS[kind]).is_dir() for cohort in self.cohorts):
                option = {"classes": "--masks", "template_mm": "--deformation"}[kind]
                raise Misuse(
                    f"no cohort has the truth that this objective learns from ({kind})",
                    why="it is known of virtual patients alone",
                    do=f"make a cohort with `headct simulate {option}`, and name it among the others",
                )

    def load(self, cohort: int, scan_id: str, truth: Collection[str] = ()) -> Loaded:
        """One scan with its truth, or with what says that it is not known."""
        array = self.cohorts[cohort].array(scan_id)
        if array.shape != self.shape:
            raise Misuse(
                f"scan {scan_id} has the shape {array.shape}, the others {self.shape}",
                why="a batch holds arrays of one shape",
                do="prepare the cohort with a recipe that fixes the shape",
            )
        box = self._boxes.get((cohort, scan_id))
        if box is None:
            box = self._boxes[cohort, scan_id] = head_box(array) * np.array(self.spacing_mm)
        known: Mapping[str, Callable[[int, str], np.ndarray]] = {
            "classes": self._classes,
            "template_mm": self._template,
        }
        return Loaded(
            scan_id,
            array,
            box,
            {kind: known[kind](cohort, scan_id) for kind in truth},
            self._normal(cohort, scan_id),
            self._patients[cohort][scan_id],
        )

    def _normal(self, cohort: int, scan_id: str) -> np.ndarray:
        normal = self._normals[cohort].get(scan_id)
        if normal is None:
            return np.zeros(3)
        axes = self.cohorts[cohort].affine(scan_id)[:3, :3]
        return np.asarray((axes / np.linalg.norm(axes, axis=0)).T @ np.asarray(normal, dtype=float))

    def _classes(self, cohort: int, scan_id: str) -> np.ndarray:
        path = self.cohorts[cohort].path / TRUTH_FOLDERS["classes"] / f"{scan_id}.nii.gz"
        if not path.exists():
            return np.full(self.shape, UNKNOWN_CLASS, dtype=np.uint8)
        return self._checked(_volume(path), path).astype(np.uint8)

    def _checked(self, truth: np.ndarray, path: Path) -> np.ndarray:
        if truth.shape[:3] != self.shape:
            raise Misuse(
                f"{path} has the shape {truth.shape[:3]}, its scan {self.shape}",
                do="make the cohort again: truth and scans were made apart",
            )
        return truth

    def _read_template(self, cohort: int, scan_id: str) -> np.ndarray:
        blocks = tuple(n // TEMPLATE_BLOCK for n in self.shape)
        path = self.cohorts[cohort].path / TRUTH_FOLDERS["template_mm"] / f"{scan_id}.nii.gz"
        if not path.exists():
            return _unknown(blocks)
        whole = self._checked(_volume(path), path)[tuple(slice(n * TEMPLATE_BLOCK) for n in blocks)]
        parts = [size for n in blocks for size in (n, TEMPLATE_BLOCK)]
        return whole.reshape(*parts, 3).mean(axis=(1, 3, 5), dtype=np.float32)


@lru_cache(maxsize=1)
def _unknown(blocks: tuple[int, ...]) -> np.ndarray:
    """Template coordinates of a scan whose truth is not known; one array for all of them."""
    return np.full((*blocks, 3), np.nan, dtype=np.float32)


def _volume(path: Path) -> np.ndarray:
    import nibabel

    return np.asarray(nibabel.nifti1.Nifti1Image.from_filename(path).dataobj)


def _cases(number: int, cohort: Cohort) -> list[Case]:
    """The scans of a cohort; of virtual patients with their partners, which follow each other in the table."""
    ids = [str(scan_id) for scan_id in cohort.scans["scan_id"]]
    made = cohort.about.get("simulated", {}).get("simulation", {})
    kinds = [kind for kind in ("twin", "rescan") if made.get(kind)]
    if not kinds:
        return [Case(number, scan_id) for scan_id in ids]
    of_patient: dict[str, list[str]] = {}
    for scan_id, patient_id in zip(ids, cohort.scans["patient_id"], strict=True):
        of_patient.setdefault(str(patient_id), []).append(scan_id)
    cases = []
    for scans in of_patient.values():
        whole = len(scans) == 1 + len(kinds)  # a scan may have been rejected
        for place, scan_id in enumerate(scans):
            cases.append(Case(number, scan_id, _partners(scans, place, kinds) if whole else {}))
    return cases


def _partners(scans: Sequence[str], place: int, kinds: Sequence[str]) -> dict[str, str]:
    """Of the scan at `place`: the first is compared with all others, each of them with the first."""
    if place == 0:
        return dict(zip(kinds, scans[1:], strict=True))
    return {kinds[place - 1]: scans[0]}


def _normals(cohort: Cohort) -> dict[str, Any]:
    """Of each scan the unit vector across its slices in RAS, which tables of older versions lack."""
    table = cohort.scans
    return dict(zip(table["scan_id"], table["slice_normal"], strict=True)) if "slice_normal" in table else {}


def _patients(cohort: Cohort) -> dict[str, str]:
    """Whose each scan is; a scan of nobody known is of a patient of its own."""
    table = cohort.scans
    pairs = zip(map(str, table["scan_id"]), table["patient_id"].fillna(""), strict=True)
    return {scan_id: str(patient_id) or scan_id for scan_id, patient_id in pairs}


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
                f"cohort {_name(cohort)} uses recipe {cohort.recipe.name} ({cohort.recipe.id}), "
                f"cohort {_name(first)} uses {first.recipe.name} ({first.recipe.id})",
                why="features of differently prepared scans cannot be compared",
                do=f"make {_name(cohort)} again with --recipe {first.recipe.name}, or leave it out",
            )
