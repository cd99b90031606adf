"""`headct segment predict`: scans to masks in the scanner's own geometry, DICOM objects, and a table of volumes.

out/
  volumes.csv            a row for each scan: ids, grid, files, millilitres of each class, notes
  masks/                 SCAN_ID.nii.gz, and classes.csv that names their values and what they joined
  dicom/                 SCAN_ID.seg.dcm and SCAN_ID.sr.dcm, of scans that are series of DICOM images
  rejections.csv         what was not drawn on, and why
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headct import __version__
from headct.cohort.journal import Journal, expect_writable, only_writer, write_atomically
from headct.detection.method import Progress, quiet
from headct.embedding.inputs import IDS, Reading, chosen_by, digest
from headct.embedding.machine import Machine
from headct.failure import Failure, Misuse
from headct.scan import GeometryError, Rejection, Scan
from headct.tasks.segmentation.classes import TABLE, write_table
from headct.tasks.segmentation.predicting import on_both_grids, slice_voxels_ml, volumes_ml
from headct.tasks.segmentation.segmenter import Segmenter
from headct.tasks.segmentation.subjects import Job, Subject, jobs
from headct.writing import write_nifti

VOLUMES, REJECTIONS, MASKS, DICOM = "volumes.csv", "rejections.csv", "masks", "dicom"
FILES = ("nifti", "segmentation", "report")
"""Columns of `VOLUMES` that name files."""
UNFINISHED = ".drawing"
"""Where the journal lies, and the lock."""
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
    if out.is_dir() and any(out.iterdir()) and not _is_ours(out):
        raise Misuse(f"{out} holds other things", do="name a new folder")
    expect_writable(out / VOLUMES)


def _is_ours(out: Path) -> bool:
    """Whether a folder is one that `draw_into` has written, or begun to."""
    table = out / VOLUMES
    if (out / UNFINISHED).is_dir() or not table.is_file():
        return (out / UNFINISHED).is_dir()
    with table.open(encoding="utf-8", errors="replace") as file:
        return set(FILES) <= set(file.readline().strip().split(","))


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
    patient's identifiers as the images do. What an earlier run has drawn into `out`, and this one does not draw again,
    is removed at the end: the folder holds what one segmenter has drawn on these inputs. A scan that comes up twice is
    drawn on where it comes first. Raises Misuse where a cohort has another recipe than the segmenter, an unfinished
    run here was another one, or highdicom is not there.
    """
    check(out)
    if dicom:
        from headct.writing import measurements  # noqa: F401 - says at once what to install
    segmenter = segmenter.on(machine)
    wanted = jobs(inputs, reading)
    terms = {
        "segmenter": segmenter.sha256,
        "precision": machine.precision,
        "dicom": "yes" if dicom else "no",
        **chosen_by(inputs, reading),
        "inputs": digest(inputs),
        "headct": __version__,
    }
    with only_writer(out / UNFINISHED, out):
        journal = Journal(out / UNFINISHED / "journal")
        journal.resume(terms, out)
        kept: list[Done] = []
        seen: set[str] = set()
        for number, job in enumerate(wanted):
            done = journal.get("done", number)
            if not isinstance(done, Done) or done.name != job.name:
                done = _done(job, seen, segmenter, machine, out, dicom=dicom)
                journal.put("done", number, done)
            kept.append(done)
            seen.update(row["scan_id"] for row in done.rows)
            progress(number + 1, len(wanted))
        found = _tables(out, kept, segmenter)
        journal.remove()
    return found


def _tables(out: Path, kept: Sequence[Done], segmenter: Segmenter) -> Drawn:
    rows = [row for one in kept for row in one.rows]
    rejections = [row for one in kept for row in one.rejections]
    _forget(out, {row[name] for row in rows for name in FILES})
    if rows:
        write_atomically(out / VOLUMES, pd.DataFrame(rows).to_csv(index=False).encode())
        write_atomically(out / MASKS / TABLE, write_table(segmenter.classes, segmenter.definition))
    columns = ["code", "sentence", "remedy", "files"]
    write_atomically(out / REJECTIONS, pd.DataFrame(rejections, columns=columns).to_csv(index=False).encode())
    return Drawn(rows, Counter(str(row["code"]) for row in rejections))


def _forget(out: Path, written: Set[str]) -> None:
    """Remove the table of an earlier run, and the files it names that were not written anew."""
    table = out / VOLUMES
    if not table.is_file():
        return
    before = pd.read_csv(table, usecols=list(FILES), dtype=str, keep_default_na=False)
    for name in set(before.to_numpy().ravel().tolist()) - written - {""}:
        (out / Path(name).parent.name / Path(name).name).unlink(missing_ok=True)
    (out / MASKS / TABLE).unlink(missing_ok=True)
    table.unlink()


def _done(job: Job, seen: Set[str], segmenter: Segmenter, machine: Machine, out: Path, *, dicom: bool) -> Done:
    """What becomes of a job; a scan that was `seen` in an input before keeps the files that it has."""
    rows, rejections = [], []
    for item in job.run():
        if isinstance(item, Rejection):
            told = {"code": item.code, "sentence": item.sentence, "remedy": item.remedy}
            rejections.append(told | {"files": " ".join(item.files)})
        elif item.ids["scan_id"] not in seen:
            rows.append(_row(item, segmenter, machine, out, dicom=dicom))
    return Done(job.name, tuple(rows), tuple(rejections))


def _row(subject: Subject, segmenter: Segmenter, machine: Machine, out: Path, *, dicom: bool) -> dict[str, Any]:
    """Draw on one scan, write its files, and tell what they are."""
    scan_id = subject.ids["scan_id"]
    try:
        probabilities = segmenter.probabilities(subject.array, subject.affine, machine)
        if subject.scan is None:
            numbers = of_recipe = probabilities.numbers()
        else:
            numbers, of_recipe = on_both_grids(subject.scan, probabilities, subject.affine)
    except Failure as failure:
        raise Failure(f"scan {scan_id} cannot be drawn on: {failure.what}", why=failure.why, do=failure.do) from failure
    notes: list[str] = []
    path = out / MASKS / f"{scan_id}.nii.gz"
    if subject.scan is None:
        write_nifti(numbers, path, subject.affine)
        grid, told = RECIPE, volumes_ml(numbers, _voxel_ml(subject.affine), segmenter.classes)
        notes.append(OF_COHORT)
        slices = 0
    else:
        grid = _write_native(numbers, subject.scan, path)
        if grid == RECIPE:
            write_nifti(of_recipe, path, subject.affine)
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
