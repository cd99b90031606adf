"""`headct segment predict`: scans to masks in the scanner's own geometry, DICOM objects, and a table of volumes.

out/
  volumes.csv            a row for each scan: ids, grid, files, millilitres of each class, notes
  masks/                 SCAN_ID.nii.gz, and classes.csv that names their values
  dicom/                 SCAN_ID.seg.dcm and SCAN_ID.sr.dcm, of scans that are series of DICOM images
  rejections.csv         what was not drawn on, and why
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from headct.cohort.journal import Journal, expect_writable, only_writer, write_atomically
from headct.detection.method import Progress, quiet
from headct.embedding.inputs import IDS, Reading
from headct.embedding.machine import Machine
from headct.failure import Failure, Misuse
from headct.scan import GeometryError, Rejection, Scan
from headct.tasks.segmentation.classes import TABLE
from headct.tasks.segmentation.predicting import drawn_on, slice_voxels_ml, volumes_ml
from headct.tasks.segmentation.segmenter import Segmenter
from headct.tasks.segmentation.subjects import Job, Subject, jobs
from headct.writing import write_nifti

VOLUMES, REJECTIONS, MASKS, DICOM = "volumes.csv", "rejections.csv", "masks", "dicom"
SCANNER, RECIPE = "scanner", "recipe"
"""On whose grid a NIfTI mask lies."""
UNEVEN = "its slices are unevenly spaced, which NIfTI cannot say: the mask lies on the recipe's grid"
OF_COHORT = "a cohort does not keep the scanner's grid: the mask lies on the recipe's"


@dataclass(frozen=True)
class Drawn:
    """What was written: a row for each scan, and how many inputs were rejected, by code."""

    rows: list[dict[str, Any]]
    rejected: Mapping[str, int]


@dataclass(frozen=True)
class Done:
    """What became of one job; kept until all are done."""

    name: str
    rows: tuple[dict[str, Any], ...]
    rejections: tuple[dict[str, Any], ...]


def check(out: Path) -> None:
    """Raises Misuse where `out` is a place of something else, Failure where it cannot be written."""
    if out.exists() and not out.is_dir():
        raise Misuse(f"{out} is a file", do="name a folder")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in (VOLUMES, ".drawing")):
        raise Misuse(f"{out} holds other things", do="name a new folder")
    expect_writable(out)


def draw_into(
    out: Path,
    inputs: Sequence[Path],
    segmenter: Segmenter,
    reading: Reading,
    machine: Machine,
    *,
    dicom: bool = True,
    progress: Progress = quiet,
) -> Drawn:
    """Draw on every scan of the inputs and write what is in the head of this file. Goes on after a kill.

    With `dicom` a series of DICOM images also gets a DICOM segmentation and a report of volumes, which bear the
    patient's identifiers as the images do. Raises Misuse where a cohort has another recipe than the segmenter, or
    highdicom is not there.
    """
    check(out)
    if dicom:
        from headct.writing import measurements  # noqa: F401 - says at once what to install
    segmenter = segmenter.on(machine)
    wanted = jobs(inputs, reading)
    with only_writer(out / ".drawing", out):
        journal = Journal(out / ".drawing" / "journal")
        terms = (segmenter.sha256, reading.recipe.id, dicom)
        if journal.get("terms", 0) != terms:
            journal.begin()
            journal.put("terms", 0, terms)
        kept: list[Done] = []
        for number, job in enumerate(wanted):
            done = journal.get("done", number)
            if not isinstance(done, Done) or done.name != job.name:
                done = _done(job, segmenter, machine, out, dicom=dicom)
                journal.put("done", number, done)
            kept.append(done)
            progress(number + 1, len(wanted))
        found = _tables(out, kept, segmenter.classes)
        journal.remove()
    return found


def _tables(out: Path, kept: Sequence[Done], classes: Sequence[str]) -> Drawn:
    rows = [row for one in kept for row in one.rows]
    first = {row["scan_id"]: row for row in reversed(rows)}
    rows = [row for row in rows if first[row["scan_id"]] is row]
    rejections = [row for one in kept for row in one.rejections]
    if rows:
        write_atomically(out / VOLUMES, pd.DataFrame(rows).to_csv(index=False).encode())
        named = pd.DataFrame({"value": range(1, len(classes) + 1), "name": list(classes)})
        write_atomically(out / MASKS / TABLE, named.to_csv(index=False).encode())
    columns = ["code", "sentence", "remedy", "files"]
    write_atomically(out / REJECTIONS, pd.DataFrame(rejections, columns=columns).to_csv(index=False).encode())
    return Drawn(rows, Counter(str(row["code"]) for row in rejections))


def _done(job: Job, segmenter: Segmenter, machine: Machine, out: Path, *, dicom: bool) -> Done:
    rows, rejections = [], []
    for item in job.run():
        if isinstance(item, Rejection):
            told = {"code": item.code, "sentence": item.sentence, "remedy": item.remedy}
            rejections.append(told | {"files": " ".join(item.files)})
        else:
            rows.append(_row(item, segmenter, machine, out, dicom=dicom))
    return Done(job.name, tuple(rows), tuple(rejections))


def _row(subject: Subject, segmenter: Segmenter, machine: Machine, out: Path, *, dicom: bool) -> dict[str, Any]:
    """Draw on one scan, write its files, and tell what they are."""
    scan_id = subject.ids["scan_id"]
    try:
        probabilities = segmenter.probabilities(subject.array, subject.affine, machine)
    except Failure as failure:
        raise Failure(f"scan {scan_id} cannot be drawn on: {failure.what}", why=failure.why, do=failure.do) from failure
    notes: list[str] = []
    path = out / MASKS / f"{scan_id}.nii.gz"
    if subject.scan is None:
        numbers = _most_probable(probabilities)
        write_nifti(numbers, path, subject.affine)
        grid, told = RECIPE, volumes_ml(numbers, _voxel_ml(subject.affine), segmenter.classes)
        notes.append(OF_COHORT)
        slices = 0
    else:
        numbers = drawn_on(subject.scan, probabilities, subject.affine)
        grid = _write_native(numbers, subject.scan, path)
        if grid == RECIPE:
            write_nifti(_most_probable(probabilities), path, subject.affine)
            notes.append(UNEVEN)
        told = volumes_ml(numbers, slice_voxels_ml(subject.scan), segmenter.classes)
        slices = len(numbers)
    files = {"segmentation": "", "report": ""}
    if dicom and subject.images:
        files, note = _write_dicom(numbers, subject, segmenter.classes, told, out / DICOM / scan_id)
        notes += [note] * bool(note)
    return {
        **{name: subject.ids[name] for name in IDS},
        "grid": grid,
        "slices": slices or numbers.shape[2],
        "nifti": f"{MASKS}/{path.name}",
        **files,
        **{f"{name}_ml": round(volume_ml, 4) for name, volume_ml in told.items()},
        "notes": "; ".join(notes),
    }


def _most_probable(probabilities: Tensor) -> np.ndarray:
    """Class numbers uint8 on the recipe's grid."""
    return probabilities.argmax(dim=0).cpu().numpy().astype(np.uint8)


def _voxel_ml(affine: np.ndarray) -> float:
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def _write_native(numbers: np.ndarray, scan: Scan, path: Path) -> str:
    """Write a mask on the scanner's grid, if one matrix can say where that is; gives the name of the grid."""
    try:
        affine = scan.affine()
    except GeometryError:
        return RECIPE
    write_nifti(numbers.transpose(2, 1, 0), path, affine[:, [2, 1, 0, 3]])
    return SCANNER


def _write_dicom(
    numbers: np.ndarray, subject: Subject, classes: Sequence[str], told: Mapping[str, float], stem: Path
) -> tuple[dict[str, str], str]:
    """The names of both files, empty where they could not be made, and why not."""
    from headct.writing.measurements import write_measurements
    from headct.writing.segmentation import write_class_map

    sources = [image.source.read() for image in subject.images]
    files = {"segmentation": "", "report": ""}
    drawn, report = stem.with_name(f"{stem.name}.seg.dcm"), stem.with_name(f"{stem.name}.sr.dcm")
    try:
        _, segments = write_class_map(numbers, classes, sources, drawn, description="drawn by headct")
        write_measurements(told, drawn, segments, sources, report)
    except ValueError as error:
        for path in (drawn, report):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        return files, f"no DICOM segmentation: {error}"
    return {"segmentation": f"{DICOM}/{drawn.name}", "report": f"{DICOM}/{report.name}"}, ""


def each_mask(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names of scans and the masks in a folder, sorted."""
    for path in sorted(folder.iterdir()):
        if path.name.endswith((".nii", ".nii.gz")):
            yield path.name.removesuffix(".gz").removesuffix(".nii"), path
