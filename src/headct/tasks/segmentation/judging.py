"""`headct segment evaluate`: masks that were drawn, beside masks that are true, to numbers and a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from headct.cohort import Cohort
from headct.cohort.identities import ids_of, is_virtual, pseudonyms_of, strangers
from headct.cohort.journal import expect_writable, write_atomically
from headct.detection.method import Progress, quiet
from headct.embedding.machine import Machine
from headct.failure import Misuse
from headct.preparing.masks import on_grid, read_mask
from headct.reporting import page
from headct.reporting.measured import Measured
from headct.reporting.segmentation import Outlined, Row, segmentation_page
from headct.tasks.segmentation.classes import Classes, as_learned, definition_in, parts_of, read_classes
from headct.tasks.segmentation.fitting import example_of
from headct.tasks.segmentation.masks import Masks, in_folder, same_grid
from headct.tasks.segmentation.measuring import COLUMNS, Agreement, Judging, compared
from headct.tasks.segmentation.segmenter import Segmenter, hash_of

SEGMENTS, METRICS, PAGE = "segments.csv", "metrics.json", "report.html"
SHOWN = 6
"""Scans whose slices are on the page."""
UNKNOWN_DRAWER = (
    "whether masks were drawn by something that has learned from these patients is not known, so none is left out: "
    "a segmenter that is judged itself (--segmenter) leaves out its own"
)
SQUARE = 1e-3
"""How far from a right angle, as a cosine, axes may be to be measured along."""


@dataclass(frozen=True)
class Judged:
    """What was found; `pictures` are slices of the first scans, in HU."""

    agreement: Agreement
    pictures: tuple[Outlined, ...]
    notes: tuple[str, ...]
    virtual: bool


def judge_segmenter(
    masks: Sequence[Masks],
    segmenter: Segmenter,
    machine: Machine,
    judging: Judging | None = None,
    *,
    progress: Progress = quiet,
) -> Judged:
    """Draw on every scan that has a mask, on the recipe's grid, and compare.

    Patients that the segmenter has learned from, or stopped by, are left out, and it is said how many; they are told by
    `patient_id`. Raises Misuse where a cohort has another recipe, masks have other classes, or nobody is left.
    """
    judging = judging or Judging()
    for some in masks:
        if some.classes.names != segmenter.classes:
            raise Misuse(
                f"the classes are {', '.join(some.classes.names)}; {', '.join(segmenter.classes)} are drawn",
                do="name the same ones in the same order, or leave out --classes",
            )
    seen = frozenset(segmenter.record.get("seen_patients_sha256", ()))
    segmenter = segmenter.on(machine)
    wanted, left_out = [], 0
    for some in masks:
        some.cohort.expect(segmenter.recipe)
        patients = some.cohort.scans.set_index("scan_id")["patient_id"]
        for scan_id in some.scan_ids:
            patient = str(patients.loc[scan_id])
            known = hash_of(patient) in seen
            left_out += known
            if not known:
                wanted.append((some, scan_id, patient))
    if not wanted:
        raise Misuse(
            "the segmenter has learned from every patient who could judge it",
            do="keep patients out of its training (--splits), or name a cohort that it has not seen",
        )
    rows: list[dict[str, Any]] = []
    pictures: list[Outlined] = []
    for number, (some, scan_id, patient) in enumerate(wanted, start=1):
        example = example_of(some, scan_id)
        affine = some.cohort.affine(scan_id)
        drawn = segmenter.probabilities(example.array, affine, machine).numbers()
        rows += [
            {"scan_id": scan_id, "patient_id": patient, **row}
            for row in compared(drawn, example.numbers, example.spacing_mm.tolist(), segmenter.classes, judging)
        ]
        if example.in_hu and len(pictures) < SHOWN:
            pictures.append(Outlined(scan_id, example.array, drawn, example.numbers, _triple(example.spacing_mm)))
        progress(number, len(wanted))
    notes = (f"{left_out:,} scans of patients that the segmenter has learned from are left out",) * (left_out > 0)
    notes += tuple(_unknown_alike(segmenter, [some.cohort for some in masks]))
    agreement = Agreement(pd.DataFrame(rows, columns=list(COLUMNS)), segmenter.classes, judging)
    return Judged(agreement, tuple(pictures), notes, all(is_virtual(some.cohort) for some in masks))


def _unknown_alike(segmenter: Segmenter, cohorts: Sequence[Cohort]) -> Iterator[str]:
    """Sentences on cohorts whose patients cannot be known to be those learned from; none where a record is silent."""
    learned_from = segmenter.record.get("pseudonyms", ())
    for cohort in cohorts:
        made_by = [pseudonyms_of(cohort)]
        if strangers(learned_from, made_by):
            yield (
                f"the segmenter and {cohort.path.name} call patients by {ids_of(learned_from)} and "
                f"{ids_of(made_by)}: a patient of both is not known as one, and is not left out; ingest both with "
                "one key (--key)"
            )


def judge_folders(
    drawn: Path,
    truth: Path,
    classes: Classes,
    drawn_classes: Classes,
    judging: Judging | None = None,
    *,
    cohort: Cohort | None = None,
    progress: Progress = quiet,
) -> Judged:
    """Compare folders of masks of equal names, on the grid of the truth.

    A true mask beside which nothing lies counts as one on which nothing was drawn. Grids that are sheared are brought
    to an upright one, since distances are measured along axes. Patients are those of the cohort, or each mask is of a
    patient of its own. By whom masks were drawn is not known: no patient is left out. Raises Misuse where no names are
    equal, or two masks lie on different grids.
    """
    judging = judging or Judging()
    for place in (drawn, truth):
        if not place.is_dir():
            raise Misuse(f"there is no folder {place}", do="name a folder of masks, SCAN_ID.nii.gz")
    true_of, drawn_of = in_folder(truth), in_folder(drawn)
    if not true_of.keys() & drawn_of.keys():
        raise Misuse(f"no mask in {drawn} is called as one in {truth}", do="call both by their scans: SCAN_ID.nii.gz")
    notes = [UNKNOWN_DRAWER]
    if strange := len(drawn_of.keys() - true_of.keys()):
        notes.append(f"{strange:,} masks in {drawn.name} have no true mask beside them, and are left out")
    patients: Mapping[str, str] = {}
    if cohort is None:
        notes.append("without a cohort each mask counts as a patient of its own")
    else:
        patients = dict(zip(cohort.scans["scan_id"], cohort.scans["patient_id"], strict=True))
        if strange := len(true_of.keys() - patients.keys()):
            notes.append(f"{strange:,} true masks are of no scan of the cohort, and are left out")
        true_of = {name: path for name, path in true_of.items() if name in patients}
    if not true_of:
        raise Misuse(f"no mask in {truth} is of a scan of the cohort", do="name the cohort of these masks, or none")
    rows = []
    for number, (name, path) in enumerate(true_of.items(), start=1):
        stored, affine = read_mask(path)
        there = classes.of(stored, path)
        found = np.zeros_like(there)
        if name in drawn_of:
            other, other_affine = read_mask(drawn_of[name])
            if not same_grid(other.shape, other_affine, stored.shape, affine):
                raise Misuse(
                    f"{drawn_of[name]} does not lie on the grid of {path}",
                    why=f"their shapes are {other.shape} and {stored.shape}, or their matrices differ",
                    do="compare masks of one grid; on whose a mask was drawn is in volumes.csv, column grid",
                )
            found = drawn_classes.of(other, drawn_of[name])
        found, there, spacing_mm = _upright(found, there, affine, classes.outputs)
        rows += [
            {"scan_id": name, "patient_id": patients.get(name, name), **row}
            for row in compared(found, there, spacing_mm, classes.names, judging)
        ]
        progress(number, len(true_of))
    if missing := len(true_of.keys() - drawn_of.keys()):
        notes.append(f"{missing:,} true masks have nothing beside them in {drawn.name}, and count as missed")
    agreement = Agreement(pd.DataFrame(rows, columns=list(COLUMNS)), classes.names, judging)
    virtual = cohort is not None and is_virtual(cohort)
    return Judged(agreement, (), tuple(notes), virtual)


def classes_of_both(drawn: Path, truth: Path, wanted: str) -> tuple[Classes, Classes]:
    """The classes of true and of drawn masks: those `wanted`, else those that the table of drawn ones names.

    What a drawn class joined where it was learned is joined in the true masks too. Without a table the drawn masks are
    taken to hold the values of the true ones. Raises Misuse where either cannot tell them.
    """
    named = definition_in(drawn)
    of_truth = read_classes([truth], wanted or as_learned(truth, named))
    if not named:
        return of_truth, replace(of_truth, known=None)
    by_name = set(of_truth.names) <= parts_of(named).keys()
    return of_truth, read_classes([drawn], ",".join(of_truth.names) if by_name else of_truth.definition)


def _upright(
    found: np.ndarray, there: np.ndarray, affine: np.ndarray, outputs: int
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Both maps on a grid whose axes are perpendicular, and its voxels in mm."""
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / spacing_mm
    if np.abs(axes.T @ axes - np.eye(3)).max() <= SQUARE:
        return found, there, spacing_mm.tolist()
    corners = np.array(np.meshgrid(*((-0.5, size - 0.5) for size in there.shape), [1], indexing="ij")).reshape(4, -1)
    low, high = (extreme((affine @ corners)[:3], axis=1) for extreme in (np.min, np.max))
    nearest, of_axis = linear_sum_assignment(np.abs(axes), maximize=True)  # directions of the patient, and their axes
    step_mm = np.empty(3)
    step_mm[nearest] = spacing_mm[of_axis]
    target = np.diag([*step_mm, 1.0])
    target[:3, 3] = low + step_mm / 2
    x, y, z = np.ceil((high - low) / step_mm).astype(int).tolist()
    maps = [on_grid(one, affine, (x, y, z), target, outputs) for one in (found, there)]
    return maps[0], maps[1], step_mm.tolist()


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z


def check(out: Path) -> None:
    """Raises Misuse where the page would replace what is not ours, Failure where nothing can be written."""
    page.check_place(out / PAGE)
    expect_writable(out / PAGE)


def write(judged: Judged, out: Path, *, settings: Mapping[str, object], hashes: Mapping[str, str]) -> dict[str, Any]:
    """Write segments.csv, metrics.json and report.html into a folder, which is made as needed; gives the metrics."""
    check(out)
    out.mkdir(parents=True, exist_ok=True)
    metrics = judged.agreement.metrics()
    write_atomically(out / SEGMENTS, judged.agreement.rows.to_csv(index=False).encode())
    write_atomically(out / METRICS, (json.dumps(metrics, indent=1, allow_nan=False) + "\n").encode())
    table = judged.agreement.rows
    segmentation_page(
        [_page_row(name, measure, leaf) for name, some in metrics.items() for measure, leaf in some.items()],
        classes=judged.agreement.classes,
        pictures=judged.pictures,
        notes=judged.notes,
        scans=table["scan_id"].nunique(),
        patients=table["patient_id"].nunique(),
        tolerance_mm=judged.agreement.judging.tolerance_mm,
        provenance=page.Provenance(
            settings={**settings, **asdict(judged.agreement.judging)},
            hashes=dict(hashes),
            versions=page.software_versions("headct", "torch", "numpy", "scipy"),
        ),
        virtual=judged.virtual,
    ).write(out / PAGE)
    return metrics


def _page_row(name: str, measure: str, leaf: Mapping[str, Any]) -> Row:
    value, low, high = (float("nan") if leaf[key] is None else float(leaf[key]) for key in ("value", "low", "high"))
    return Row(
        name=name,
        measure=measure,
        measured=Measured(value=value, low=low, high=high, n=leaf["n"], positives=leaf["positives"]),
    )
