"""`headct simulate`: patients to files or to a cohort, by all cores, going on where it was stopped."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from headct import __version__
from headct.cohort import executors
from headct.cohort.journal import write_atomically
from headct.cohort.made import Made, differences, make_cohort, making
from headct.cohort.publish import COHORT_JSON, MAKING
from headct.cohort.rounds import Progress
from headct.cohort.shards import pack
from headct.cohort.work import Accepted, Outcome, scan_row
from headct.failure import Failure, Misuse
from headct.preparing import Prepared, prepare
from headct.preparing.recipe import Frame, named
from headct.reading.criteria import Criteria
from headct.scan import GeometryError, Rejection, Scan
from headct.virtual.archive import HEAD_SERIES, PROFILES, write_study
from headct.virtual.labels import FINDINGS, VISIBLE
from headct.virtual.simulated import Simulated, Simulation
from headct.virtual.truth import CLASSES, class_map, classes_at, truth_at
from headct.writing import write_nifti

FORMATS = ("dicom", "nifti", "cohort")

EDITION = 6
"""Raised whenever the same job gives other labels, or scans that are not within 1 HU, as those of another machine or
another PyTorch may be: what was begun before is not gone on with."""

LABELS, LANDMARKS, CLASSES_CSV, TERMS = "labels.csv", "landmarks.csv", "classes.csv", "simulated.json"
"""Beside the patients: what is true of each scan, named places, which value of a map of classes means what, and for
files what a cohort's `cohort.json` says, the whole job."""

HEAD_NIFTI = "head.nii.gz"

SEVERITIES = (
    "midline_shift_mm", "ventricles_ml", "hydrocephalus_ml", "dementia_ml", "mass_effect_mm", "effaced_ml"
)  # fmt: skip
"""Of a patient, in `labels.csv` as in `Labels`."""

VOLUMES = tuple(VISIBLE)
"""Findings that fill voxels, so that there is a volume of each."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to make of a simulation.

    Attributes:
        simulation: Which patients.
        patients: How many.
        format: One of `FORMATS`.
        recipe: By which a cohort is prepared.
        profile: One of `PROFILES`, for DICOM.
        masks: Keep maps of `CLASSES` for a cohort; files have them always.
        deformation: Keep the template coordinate of every voxel.
    """

    simulation: Simulation
    patients: int
    format: str = "cohort"
    recipe: str = "head"
    profile: str = "quirks"
    masks: bool = False
    deformation: bool = False

    def __post_init__(self) -> None:
        """Raises Misuse for what cannot be made."""
        if self.patients < 1:
            raise Misuse("at least one patient is needed", do="--patients 1 or more")
        for value, known, what in ((self.format, FORMATS, "format"), (self.profile, PROFILES, "profile")):
            if value not in known:
                raise Misuse(f"there is no {what} {value!r}", do=f"name one of {', '.join(known)}")
        if self.format != "cohort" and self.masks:
            raise Misuse(f"masks: of a cohort alone, not of {self.format}", do="leave it out: files have masks always")
        if self.format != "cohort" and self.recipe != "head":
            do = f"leave it out: files are as the scanner gives them; then headct ingest with --recipe {self.recipe}"
            raise Misuse(f"recipe {self.recipe}: of a cohort alone, not of {self.format}", do=do)
        if self.format != "dicom" and self.profile != "quirks":
            raise Misuse(f"profile {self.profile}: of DICOM alone, not of {self.format}", do="leave it out")
        if self.format == "cohort":
            self.simulation.prepared_by(named(self.recipe))

    @property
    def about(self) -> dict[str, Any]:
        """All that decides on the bytes, as plain values."""
        return {"simulated": {**asdict(self), "headct": __version__, "edition": EDITION}}


@dataclass(frozen=True)
class Result:
    """What a job made: how many scans have each label of each finding, and the rejections by their codes.

    `before` says that an earlier call had made all of it.
    """

    counts: Mapping[str, Counter[int | None]]
    rejected: Mapping[str, int]
    before: bool = False


def run(job: Job, out: Path, *, workers: int | None = None, progress: Progress) -> Result:
    """Make the patients and write `labels.csv` and `landmarks.csv` beside them; go on where a kill stopped it.

    The same job gives the same bytes, whatever the number of workers; one that was finished is not made again. Raises
    Misuse where `out` holds other things.
    """
    if (before := _finished(job, out)) is not None:
        return before
    if job.format == "dicom":
        import_module("headct.writing.segmentation")  # says at once what to install, rather than after some patients
    rows: list[Mapping[str, Any]] = []

    def finish(records: Sequence[Mapping[str, Any]]) -> None:
        if not records:
            raise Failure("no scan could be prepared", why="the recipe rejected all", do="name another --recipe")
        rows.extend(records)
        _write_tables(out, records)
        if job.format != "cohort":
            write_atomically(out / TERMS, json.dumps(job.about, indent=2).encode())
            _write_classes(out)
        elif job.masks:
            _write_classes(out / "masks")

    with executors.processes(workers or executors.usable_cores(), _begin) as crew:
        if job.format == "cohort":
            make = partial(_prepared, job, out)
            content = make_cohort(
                out, job.patients, make, _cohort_about(job), crew=crew, progress=progress, finish=finish
            )
            codes = Counter(row["code"] for row in content.rejections)
        else:
            _make_files(job, out, crew, progress, finish)
            codes = Counter()
    return Result(_counted(rows), codes)


def _finished(job: Job, out: Path) -> Result | None:
    """What an earlier call of this job has finished, else None.

    Raises Misuse where another job did, Failure where what it left cannot be read.
    """
    told = next((path for name in (COHORT_JSON, TERMS) if (path := out / name).exists()), None)
    if told is None or (out / MAKING / "unfinished").exists():
        return None
    try:
        terms = json.loads(told.read_bytes()).get("simulated")
        if terms is None:
            return None
        now = json.loads(json.dumps(job.about["simulated"]))
        if terms != now:
            why, do = ", ".join(differences(terms, now)), f"choose another --out, or remove {out}"
            raise Misuse(f"{out} already holds other virtual patients", why=why, do=do)
        labels = pd.read_csv(out / LABELS)
        if missing := [path for path in _paths_of(job, out, labels) if not path.exists()]:
            raise FileNotFoundError(f"missing: {missing[0]}, {len(missing)} in all")
        rejected = pd.read_parquet(out / "rejections.parquet")["code"] if job.format == "cohort" else ()
        scans = job.patients * job.simulation.scans_each
        if len(labels) + len(rejected) != scans:
            raise ValueError(f"{out / LABELS} has {len(labels)} rows, of {scans - len(rejected)}")
    except (OSError, ValueError, KeyError) as error:
        why, do = str(error), f"remove {out} and call the same line again"
        raise Failure(f"what was made in {out} before is not whole", why=why, do=do) from error
    shutil.rmtree(out / MAKING, ignore_errors=True)  # of which a kill has left a part
    known = labels[list(FINDINGS)].astype("Int64")
    rows = [{name: None if pd.isna(row[name]) else row[name] for name in FINDINGS} for row in known.to_dict("records")]
    return Result(_counted(rows), Counter(rejected), before=True)


def _paths_of(job: Job, out: Path, labels: pd.DataFrame) -> list[Path]:
    """What lies in the folder of a finished job: the tables, the scans, and a map of classes for each where asked."""
    if job.format != "cohort":
        places = [out / path for path in labels["path"]]
        of_each = [next((path for path in _maps_of(place.parent) if path.exists()), place.parent / "classes.nii.gz")
                   for place in places]  # fmt: skip
        return [out / LANDMARKS, out / CLASSES_CSV, *places, *of_each]
    tables = [out / name for name in (LANDMARKS, "scans.parquet", "files.parquet", "rejections.parquet")]
    if missing := [path for path in tables if not path.exists()]:
        return missing
    shards = pd.read_parquet(out / "scans.parquet", columns=["shard"])["shard"].unique()
    maps = [out / "masks"] * job.masks + [out / "deformation"] * job.deformation
    beside = [folder / f"{scan_id}.nii.gz" for folder in maps for scan_id in labels["scan_id"]]
    return [*(out / "volumes" / shard for shard in shards), *beside, *[out / "masks" / CLASSES_CSV] * job.masks]


def _maps_of(folder: Path) -> tuple[Path, Path]:
    """Where the map of classes of a scan may lie: as an array where gaps differ."""
    return folder / "classes.nii.gz", folder / "classes.npy"


def _counted(rows: Sequence[Mapping[str, Any]]) -> dict[str, Counter[int | None]]:
    return {name: Counter(row[name] for row in rows) for name in FINDINGS}


def _begin() -> None:
    """The workers share the cores: one thread each."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def _cohort_about(job: Job) -> dict[str, Any]:
    recipe = named(job.recipe)
    return {
        "recipe": {"id": recipe.id, "name": recipe.name, "content": json.loads(recipe.to_json())},
        "criteria": Criteria().to_dict(),
        "pseudonyms": "none",
        "hashed_paths": "none",
        **job.about,
    }


def _prepared(job: Job, out: Path, index: int) -> Made:
    """The scans of one patient, prepared; runs in a worker."""
    recipe = named(job.recipe)
    simulation = job.simulation.prepared_by(recipe)
    accepted, rejections, voxels, records = [], [], [], []
    for simulated in simulation.scans(index):
        name = f"{simulated.patient_id}/{simulated.study}"
        prepared = prepare(simulated.scan, recipe)
        if isinstance(prepared, Rejection):
            rejections.append(replace(prepared, files=(name,)))
            continue
        packed = pack(prepared.array)
        row = scan_row(simulated.scan, prepared, simulated.visit.site) | {"crc32": packed.crc32}
        accepted.append(
            Accepted(row=row, files=(name,), shape=packed.shape, dtype=packed.dtype, compressed_bytes=len(packed.chunk))
        )
        voxels.append(packed)
        records.append(record_of(simulated))
        _write_maps(job, out, simulated, prepared)
    return Made(Outcome(tuple(accepted), tuple(rejections), tuple(voxels)), tuple(records))


def _write_maps(job: Job, out: Path, simulated: Simulated, prepared: Prepared) -> None:
    """Classes and template coordinates on the grid of the prepared array, worked out anew rather than resampled.

    Where nothing was acquired nothing is said to lie, but for the template, which is a map of space.
    """
    if not (job.masks or job.deformation):
        return
    shape = prepared.array.shape
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3)
    points = index @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]
    patient, visit, name = simulated.patient, simulated.visit, f"{simulated.scan_id}.nii.gz"
    if job.deformation:
        classes, template_mm = truth_at(patient, visit, points)
        write_nifti(template_mm.reshape(*shape, 3), out / "deformation" / name, prepared.affine)
    else:
        classes = classes_at(patient, visit, points)
    if job.masks:
        frame = named(job.recipe).step(Frame)
        assert frame is not None, "a job of a cohort has one"
        classes[prepared.array.reshape(-1) == frame.fill_hu] = 0
        write_nifti(classes.reshape(shape), out / "masks" / name, prepared.affine)


def record_of(simulated: Simulated) -> dict[str, Any]:
    """The row of a scan in `labels.csv`, with its landmarks under `landmarks_mm`."""
    labels = simulated.labels
    return {
        "scan_id": simulated.scan_id,
        "patient_id": simulated.patient_id,
        "study_id": simulated.study_id,
        "series_id": simulated.series_id,
        "site": simulated.visit.site,
        "age": int(simulated.patient.anatomy.age),
        "sex": simulated.patient.anatomy.sex,
        **{name: labels.findings[name] for name in FINDINGS},
        **{name: round(getattr(labels, name), 2) for name in SEVERITIES},
        **{f"{name}_ml": round(labels.volumes_ml.get(name, 0.0), 3) for name in VOLUMES},
        **{f"{name}_visible_ml": round(labels.visible_ml.get(name, 0.0), 3) for name in VOLUMES},
        "landmarks_mm": {
            name: [round(float(value), 2) for value in place] for name, place in simulated.landmarks_mm.items()
        },
    }


def _make_files(
    job: Job,
    out: Path,
    crew: executors.Crew,
    progress: Progress,
    finish: Callable[[Sequence[Mapping[str, Any]]], None],
) -> None:
    """One folder for each patient; a record in the journal says that it is whole."""
    with making(out, job.about) as journal:
        kept = {number: journal.get("records", number) for number in range(job.patients)}
        records = {
            number: rows for number, rows in kept.items() if rows and all((out / r["path"]).exists() for r in rows)
        }
        progress("patients", len(records), job.patients)
        todo = [(number, number) for number in range(job.patients) if number not in records]
        for number, made in crew.results(partial(_files, job, out), todo):
            journal.put("records", number, made)
            records[number] = made
            progress("patients", len(records), job.patients)
        finish([record for number in range(job.patients) for record in records[number]])


def _files(job: Job, out: Path, index: int) -> list[dict[str, Any]]:
    """The files of one patient, whole or not at all; runs in a worker."""
    simulation = job.simulation
    records = []
    for simulated in simulation.scans(index):
        simulated = replace(simulated, tissues=True)
        if job.format == "nifti":
            simulated = _even(simulated)
        folder = out / simulated.patient_id / f"study-{simulated.study}"
        partial_folder = folder.with_name(f"{folder.name}.partial")
        for leftover in (partial_folder, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            _write_scan(job, simulated, partial_folder)
        except OSError as error:  # of pydicom it has no number
            do = "free some space, or name a place that you may write to, and call the same line again"
            raise Failure(f"cannot write {folder}", why=str(error).splitlines()[0], do=do) from error
        partial_folder.rename(folder)
        name = HEAD_NIFTI if job.format == "nifti" else HEAD_SERIES
        path = f"{simulated.patient_id}/{folder.name}/{name}"
        records.append(record_of(simulated) | {"scan_id": "", "path": path})
    return records


def _even(simulated: Simulated) -> Simulated:
    """The same visit with one stack of slices: NIfTI has no way to say that gaps differ."""
    return replace(
        simulated, visit=replace(simulated.visit, protocol=replace(simulated.visit.protocol, second_stack=None))
    )


def _write_scan(job: Job, simulated: Simulated, folder: Path) -> None:
    scan = simulated.scan
    if job.format == "dicom":
        write_study(simulated, folder, job.profile)
    else:
        write_nifti(scan, folder / HEAD_NIFTI)
    taken, shape = simulated.taken, scan.hu.shape
    truth = {"classes": class_map({**taken.tissues, **taken.shares}, shape)}
    if job.deformation:
        rows = np.arange(shape[1])[:, None, None] * scan.row_step_mm
        in_plane = (rows + np.arange(shape[2])[:, None] * scan.col_step_mm).reshape(-1, 3)
        truth["deformation"] = np.empty((*shape, 3), dtype=np.float32)
        for plane, origin in zip(truth["deformation"], scan.origins_mm, strict=True):
            plane[:] = truth_at(simulated.patient, simulated.visit, in_plane + origin)[1].reshape(plane.shape)
    _write_truth(truth, scan, folder)


def _write_truth(truth: Mapping[str, np.ndarray], scan: Scan, folder: Path) -> None:
    """Arrays (slices, rows, cols, ...) as NIfTI; where gaps differ, which NIfTI cannot say, as NumPy's .npy."""
    try:
        affine = scan.affine()[:, [2, 1, 0, 3]]
    except GeometryError:
        for name, values in truth.items():
            np.save(folder / f"{name}.npy", values)
        return
    for name, values in truth.items():
        write_nifti(np.moveaxis(values, (0, 1, 2), (2, 1, 0)), folder / f"{name}.nii.gz", affine)


def _write_tables(out: Path, records: Sequence[Mapping[str, Any]]) -> None:
    rows = [{name: value for name, value in record.items() if name != "landmarks_mm"} for record in records]
    write_atomically(out / LABELS, _csv(rows))
    places = [
        {"series_id": record["series_id"], "landmark": name, "x_mm": x, "y_mm": y, "z_mm": z}
        | {column: record[column] for column in ("path",) if column in record}
        for record in records
        for name, (x, y, z) in record["landmarks_mm"].items()
    ]
    write_atomically(out / LANDMARKS, _csv(places))


def _write_classes(folder: Path) -> None:
    """Which value of a map of classes means what."""
    rows = [{"value": value, "name": name} for value, name in enumerate(CLASSES, start=1)]
    write_atomically(folder / CLASSES_CSV, _csv(rows))


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A table; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
