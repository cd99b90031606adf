"""Files in, cohort out: what a cohort holds, and that nothing but the files decides on its bytes.

Oracle of the content: `headct.reading.read` and `headct.preparing.prepare`, called by hand; in a cell, because a
product of matrices by two threads rounds otherwise than by one (two voxels of a head by 1 HU).
"""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from cohort.folders import assert_adds_up, assert_same, contents, files_below, outcomes

from headct.cohort import Cohort
from headct.cohort.ingest import ingest
from headct.failure import Misuse
from headct.preparing import Prepared, prepare
from headct.reading import read
from headct.reading.criteria import Criteria
from headct.reading.isolation import cell
from headct.scan import Scan
from headct.writing import write_nifti


@pytest.fixture(scope="session")
def cohort(demo: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """The demo, ingested without interruption by one worker. Not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "cohort"
    ingest([demo], out, workers=1, key=key)
    return Cohort(out)


def test_every_file_found_is_read_or_rejected(cohort: Cohort, demo: Path) -> None:
    assert_adds_up(cohort, files_below(demo))
    sizes = dict(zip(cohort.files["path"], cohort.files["bytes"], strict=True))
    assert sizes["archive/captures/dose.dcm"] == (demo / "captures" / "dose.dcm").stat().st_size


def test_it_takes_the_heads_and_says_why_not_the_rest(cohort: Cohort) -> None:
    assert len(cohort) == 4
    by_path = outcomes(cohort)
    assert by_path["archive/captures/dose.dcm"] == "screen-capture"
    assert by_path["archive/patient-01/head/0003-copy.dcm"] == "damaged"
    assert {o for p, o in by_path.items() if p.startswith("archive/patient-01/head-2/")} == {"contrast"}
    assert {o for p, o in by_path.items() if p.startswith("archive/patient-01/localizer/")} == {"localizer"}
    assert {o for p, o in by_path.items() if p.startswith("archive/quality/")} == {"no-head"}
    assert cohort.scans["preferred"].tolist() == [True] * 4


def test_arrays_are_those_of_reading_and_preparing(cohort: Cohort, demo: Path, key: Path) -> None:
    compared = 0
    for scan in read([demo / f"patient-0{n}" / "head" for n in (1, 2, 3, 4)], key=bytes.fromhex(key.read_text())):
        if not isinstance(scan, Scan):
            continue
        prepared = cell().run(prepare, scan, "head")
        assert isinstance(prepared, Prepared)
        np.testing.assert_array_equal(cohort.array(scan.header.scan_id), prepared.array)
        np.testing.assert_array_equal(cohort.affine(scan.header.scan_id), prepared.affine)
        row = cohort.scans.set_index("scan_id").loc[scan.header.scan_id]
        assert (row["slices"], row["rows"], row["cols"]) == scan.hu.shape
        assert row["tilt_deg"] == pytest.approx(scan.tilt_deg)
        assert row["gap_max_mm"] == pytest.approx(scan.gaps_mm.max())
        assert row["coverage"] == pytest.approx(prepared.coverage)
        assert set(row["flags"]) == {*scan.header.flags, *prepared.flags}
        compared += 1
    assert compared == 4


def test_the_number_of_workers_and_the_place_leave_no_trace(
    cohort: Cohort, demo: Path, key: Path, tmp_path: Path
) -> None:
    summary = ingest([demo], tmp_path / "elsewhere" / "three", workers=3, key=key)
    assert summary.scans == 4
    assert_same(cohort.path, tmp_path / "elsewhere" / "three")


def test_neither_does_when_and_where_the_files_were_copied(
    cohort: Cohort, demo: Path, key: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "moved" / "archive"
    shutil.copytree(demo, copy, copy_function=shutil.copyfile)
    ingest([copy], tmp_path / "cohort", workers=2, key=key)
    here, there = contents(cohort.path), contents(tmp_path / "cohort")
    assert here.pop(".ingest/seen.parquet") != there.pop(".ingest/seen.parquet")  # by which changed files are told
    assert here == there


def test_the_same_call_again_does_nothing(cohort: Cohort, demo: Path, key: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    shutil.copytree(cohort.path, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    summary = ingest([demo], out, workers=2, key=key)
    assert (summary.scans, summary.added_scans, summary.replaced_scans, summary.added_files) == (4, 0, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "lock"} == {
        path: time for path, time in before.items() if path.name != "lock"
    }


# Adding


def test_new_files_are_added_and_the_old_ones_left_alone(demo: Path, key: Path, tmp_path: Path) -> None:
    out, first, second = tmp_path / "cohort", tmp_path / "a", tmp_path / "b"
    shutil.copytree(demo / "patient-02", first / "patient-02")
    ingest([first], out, workers=1, key=key, site="north")
    volumes = contents(out / "volumes")
    shutil.copytree(demo / "patient-03", second / "patient-03")
    summary = ingest([second], out, workers=1, key=key, site="south")
    assert (summary.scans, summary.added_scans, summary.gone) == (2, 1, 0)
    assert contents(out / "volumes").items() >= volumes.items()
    cohort = Cohort(out)
    assert_adds_up(cohort, files_below(first) | files_below(second))
    assert cohort.scans["site"].tolist() == ["north", "south"]
    assert [cohort.array(scan_id).shape for scan_id in cohort] == [(96, 112, 96)] * 2


def test_the_rest_of_a_series_replaces_its_scan(demo: Path, key: Path, tmp_path: Path, cohort: Cohort) -> None:
    """Half the slices come tonight, the others tomorrow: in the end there is one scan, as if all had come at once."""
    out, source = tmp_path / "cohort", tmp_path / "archive"
    shutil.copytree(demo / "patient-02", source / "patient-02")
    shutil.copytree(demo / "patient-03", source / "patient-03")
    late = sorted((source / "patient-02" / "head").iterdir())[-2:]
    for path in late:
        path.rename(tmp_path / path.name)
    ingest([source], out, workers=1, key=key)
    slices = Cohort(out).scans["slices"].tolist()
    for path in late:
        (tmp_path / path.name).rename(path)
    summary = ingest([source], out, workers=1, key=key)
    assert (summary.scans, summary.added_scans + summary.replaced_scans) == (2, 1)
    grown = Cohort(out)
    assert_adds_up(grown, files_below(source))
    assert sorted(grown.scans["slices"]) == sorted([slices[0] + 2, slices[1]])
    for scan_id in grown:
        np.testing.assert_array_equal(grown.array(scan_id), cohort.array(scan_id))


def test_the_rest_of_a_series_without_its_beginning_is_turned_away(demo: Path, key: Path, tmp_path: Path) -> None:
    out, first, second = tmp_path / "cohort", tmp_path / "first", tmp_path / "second"
    shutil.copytree(demo / "patient-02", first)
    second.mkdir()
    late = sorted((first / "head").iterdir())[-1]
    late.rename(second / late.name)
    ingest([first], out, workers=1, key=key)
    before = Cohort(out)
    slices, first_outcomes = before.scans["slices"][0], outcomes(before)
    ingest([second], out, workers=1, key=key)
    after = Cohort(out)
    assert outcomes(after) == first_outcomes | {f"second/{late.name}": "split-series"}
    ingest([first, second], out, workers=1, key=key)
    together = Cohort(out)
    assert_adds_up(together, files_below(first) | files_below(second))
    assert together.scans["slices"].tolist() == [slices + 1]


def test_a_copy_of_a_file_under_another_name_is_a_duplicate(demo: Path, key: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "cohort", tmp_path / "in"
    shutil.copytree(demo / "patient-02", source / "a")
    ingest([source], out, workers=1, key=key)
    shutil.copytree(demo / "patient-02", source / "b")
    ingest([source], out, workers=1, key=key)
    cohort = Cohort(out)
    assert_adds_up(cohort, files_below(source))
    assert len(cohort) == 1
    assert {o for p, o in outcomes(cohort).items() if p.startswith("in/b")} == {"duplicate-file"}


def test_a_copy_of_a_scan_alone_is_a_duplicate(demo: Path, key: Path, tmp_path: Path) -> None:
    """The first copy is not in the second call; a NIfTI file is one image, a slice one of a series."""
    out, first, second = tmp_path / "cohort", tmp_path / "first", tmp_path / "second"
    shutil.copytree(demo / "patient-02" / "head", first / "head")
    scan = next(found for found in read(demo / "patient-03" / "head", key=bytes(32)) if isinstance(found, Scan))
    write_nifti(scan, first / "scan.nii.gz")
    ingest([first], out, workers=1, key=key)
    scan_ids = list(Cohort(out))
    shutil.copytree(first, second)
    with gzip.open(first / "scan.nii.gz") as file:
        (second / "scan.nii").write_bytes(file.read())
    (second / "scan.nii.gz").unlink()
    ingest([second], out, workers=1, key=key)
    cohort = Cohort(out)
    assert_adds_up(cohort, files_below(first) | files_below(second))
    assert list(cohort) == scan_ids
    assert {o for p, o in outcomes(cohort).items() if p.startswith("second/")} == {"duplicate-file"}


@pytest.mark.parametrize("hash_paths", [False, True])
def test_another_input_of_the_same_name_is_another_input(
    hash_paths: bool, demo: Path, key: Path, tmp_path: Path
) -> None:
    """Two sites whose exports have the same names of folders and files; and one of them moves."""
    out, sites = tmp_path / "cohort", {"north": tmp_path / "1" / "dicom", "south": tmp_path / "2" / "dicom"}
    for (site, folder), patient in zip(sites.items(), ("patient-02", "patient-03"), strict=True):
        folder.mkdir(parents=True)
        for number, path in enumerate(sorted((demo / patient / "head").iterdir())):
            shutil.copyfile(path, folder / f"{number}.dcm")
        ingest([folder], out, workers=1, key=key, site=site, hash_paths=hash_paths)
    cohort = Cohort(out)
    assert cohort.scans["site"].tolist() == ["north", "south"]
    assert len(cohort.files) == len(files_below(sites["north"])) + len(files_below(sites["south"]))
    if not hash_paths:
        assert {name.partition("/")[0] for name in outcomes(cohort)} == {"dicom", "dicom~2"}
    before = contents(out)
    sites["south"].rename(moved := tmp_path / "dicom")
    for places in ([sites["north"]], [moved, sites["north"]], [moved]):
        summary = ingest(places, out, workers=1, key=key, hash_paths=hash_paths)
        assert (summary.added_files, summary.changed, summary.gone) == (0, (), 0)
        assert contents(out) == before


def test_a_rejected_file_that_was_mended_is_read(demo: Path, key: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "cohort", tmp_path / "in"
    shutil.copytree(demo / "patient-02", source)
    path = sorted((source / "head").iterdir())[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    ingest([source], out, workers=1, key=key)
    assert outcomes(Cohort(out))[f"in/head/{path.name}"] == "damaged"
    path.write_bytes(whole)
    summary = ingest([source], out, workers=1, key=key)
    assert summary.changed == ()
    cohort = Cohort(out)
    assert_adds_up(cohort, files_below(source))
    assert set(outcomes(cohort).values()) == set(cohort)


def test_changed_and_missing_files_of_a_scan_are_reported(demo: Path, key: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "cohort", tmp_path / "in"
    shutil.copytree(demo / "patient-02", source)
    ingest([source], out, workers=1, key=key)
    before = contents(out)
    first, second, *_ = sorted((source / "head").iterdir())
    os.utime(first, ns=(1, 1))
    second.unlink()
    summary = ingest([source], out, workers=1, key=key)
    assert summary.changed == (f"in/head/{first.name}",)
    assert summary.gone == 1
    assert contents(out) == before


# What cannot work


def test_another_recipe_is_refused_and_both_are_named(cohort: Cohort, demo: Path, key: Path) -> None:
    with pytest.raises(Misuse) as misuse:
        ingest([demo], cohort.path, "head-fine", key=key)
    for name in ("head", "head-fine"):
        from headct.preparing.recipe import recipes

        assert f"{name} ({recipes[name].id})" in str(misuse.value)


def test_other_criteria_and_another_key_are_refused(cohort: Cohort, demo: Path, key: Path, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="criteria"):
        ingest([demo], cohort.path, criteria=Criteria(check_head=False), key=key)
    other = tmp_path / "key"
    other.write_text("cd" * 32)
    with pytest.raises(Misuse, match="pseudonyms"):
        ingest([demo], cohort.path, key=other)


def test_a_cohort_and_its_input_lie_apart(demo: Path, key: Path, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="would lie inside its input"):
        ingest([demo], demo / "cohort", key=key)
    with pytest.raises(Misuse, match="would lie inside its input"):
        ingest([demo], demo, key=key)
    with pytest.raises(Misuse, match="lies inside the cohort"):
        ingest([demo], demo.parent, key=key)
    with pytest.raises(Misuse, match="there is no"):
        ingest([tmp_path / "nothing"], tmp_path / "cohort", key=key)
    assert not (demo / "cohort").exists()


def test_other_things_are_not_overwritten(demo: Path, key: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(Misuse, match="holds other things"):
        ingest([demo], tmp_path, key=key)
    with pytest.raises(Misuse, match="is a file"):
        ingest([demo], tmp_path / "thesis.docx", key=key)
    assert contents(tmp_path) == {"thesis.docx": b"years of work"}


def test_nothing_usable_still_gives_a_cohort_with_reasons(key: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "letter.txt").write_text("hello")
    (source / "empty").touch()
    summary = ingest([source], tmp_path / "cohort", workers=1, key=key)
    assert (summary.scans, dict(summary.rejected)) == (0, {"empty-file": 1, "unknown-format": 1})
    cohort = Cohort(tmp_path / "cohort")
    assert_adds_up(cohort, files_below(source))
    assert cohort.scans["kvp"].dtype == np.float64
    assert not list((cohort.path / "volumes").glob("*")) if (cohort.path / "volumes").exists() else True


# Other recipes


@pytest.mark.parametrize("recipe", ["fm-hct", "ct-fm-hub"])
def test_published_recipes_keep_their_own_type_and_shape(recipe: str, demo: Path, key: Path, tmp_path: Path) -> None:
    ingest([demo / "patient-03", demo / "patient-04"], tmp_path / "cohort", recipe, workers=2, key=key)
    cohort = Cohort(tmp_path / "cohort")
    assert len(cohort) == 2
    for scan in read([demo / "patient-03", demo / "patient-04"], key=bytes.fromhex(key.read_text())):
        assert isinstance(scan, Scan)
        prepared = cell().run(prepare, scan, recipe)
        assert isinstance(prepared, Prepared)
        got = cohort.array(scan.header.scan_id)
        assert got.dtype == prepared.array.dtype
        np.testing.assert_array_equal(got, prepared.array)
