"""What every set promises, whatever it is: tables that fit each other, patients in one part, the same again."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
from inputs import downloads

from headct.cohort.labels import read_labels
from headct.datasets import NAMES, SETS, named, prepare
from headct.failure import Failure, Misuse
from headct.scan import REASONS


@pytest.mark.parametrize("name", NAMES)
def test_every_label_belongs_to_a_scan_of_the_cohort(name, prepared):
    came = prepared(name)
    labels = came.table("labels")
    assert labels["scan_id"].is_unique
    assert set(labels["scan_id"]) <= set(came.cohort.scans["scan_id"])
    assert labels.columns.tolist() == ["scan_id", "patient_id", "name", *SETS[name].findings]
    assert set(labels[list(SETS[name].findings)].stack().dropna()) <= {0, 1}


@pytest.mark.parametrize("name", NAMES)
def test_no_patient_straddles_two_parts(name, prepared):
    came = prepared(name)
    parts, labels = came.table("splits"), came.table("labels")
    assert parts[["scan_id", "patient_id"]].equals(labels[["scan_id", "patient_id"]])
    assert parts.groupby("patient_id")["split"].nunique().eq(1).all()
    assert parts["split"].tolist() == [SETS[name].split(str(patient)) for patient in parts["patient_id"]]


@pytest.mark.parametrize("name", NAMES)
def test_the_cohort_and_adapting_know_the_same_patients(name, prepared):
    """`headct adapt` asks the cohort whose scan it is: two volumes of one patient must not count as two patients."""
    came = prepared(name)
    labelled = read_labels(came.out / "labels.csv", [came.cohort])
    labels = came.table("labels").set_index("scan_id")
    assert labelled.patients.to_dict() == labels.loc[labelled.patients.index, "patient_id"].to_dict()
    assert set(labelled.findings) == set(SETS[name].findings)
    assert not any("no-patient-id" in flags for flags in came.cohort.scans["flags"])


@pytest.mark.parametrize("name", NAMES)
def test_every_file_ends_in_a_scan_or_a_rejection(name, prepared):
    cohort = prepared(name).cohort
    assert set(cohort.files["outcome"]) <= {*cohort.scans["scan_id"], *REASONS}
    assert set(cohort.scans["site"]) == {name}


@pytest.mark.parametrize("name", NAMES)
def test_every_label_is_used_or_named(name, prepared):
    """Units in the table of labels: those of scans that came out, left out, or without a scan."""
    came = prepared(name)
    found = SETS[name].read(came.data)
    files = came.cohort.files
    used = set(files[files["outcome"].isin(came.cohort.scans["scan_id"])]["path"].map(SETS[name].unit_of))
    assert set(found.labels.index) - used == set(came.remarks("label without a scan"))


@pytest.mark.parametrize("name", NAMES)
def test_the_report_says_what_was_expected_and_what_was_found(name, prepared):
    came = prepared(name)
    document = json.loads((came.out / "report.json").read_text())
    assert {row["what"] for row in document["counts"]} >= set(SETS[name].expected)
    assert document["name"] == name
    assert document["differing"] == list(came.report.differing)
    assert sum(row["scans"] for row in document["parts"]) == len(came.table("labels"))
    assert document["remarks"] == came.table("remarks")["kind"].value_counts().to_dict()


def test_elsewhere_and_with_another_key_the_same_scans_have_the_same_ids_labels_and_parts(prepared, tmp_path):
    """Whoever downloads the set gets the same splits.csv."""
    came = prepared("instance-2022")
    shutil.copytree(came.data, tmp_path / "another name")
    (tmp_path / "key").write_text("12" * 32)
    report = prepare(
        named("instance-2022"), tmp_path / "another name", tmp_path / "out", workers=1, key=tmp_path / "key"
    )
    assert report.splits_sha256 == came.report.splits_sha256
    for name in ("labels.csv", "splits.csv", "masks.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (came.out / name).read_bytes()


def test_called_again_it_reads_nothing_twice_and_sees_what_came_later(tmp_path, key):
    data = downloads.instance(tmp_path / "download")
    later = data / "train_2" / "label" / "071.nii.gz"
    later.rename(tmp_path / "later")
    first = prepare(named("instance-2022"), data, tmp_path / "out", workers=1, key=key)
    assert first.remarks == {"doubtful label": 1, "scan without a label": 1}
    (tmp_path / "later").rename(later)
    again = prepare(named("instance-2022"), data, tmp_path / "out", workers=1, key=key)
    assert (again.ingest.added_scans, again.remarks) == (0, {})
    assert len(pd.read_csv(tmp_path / "out" / "labels.csv")) == 2


def test_patients_that_are_placeholders_are_not_believed(tmp_path, key, monkeypatch):
    """If the header of every series names the same patient, all would fall into one part."""
    monkeypatch.setattr("headct.datasets.job.CROWD", (1, 0.05))
    data = downloads.sinoct(tmp_path / "download")
    report = prepare(named("sinoct"), data, tmp_path / "out", workers=1, key=key)
    labels = pd.read_csv(tmp_path / "out" / "labels.csv")
    assert labels["patient_id"].is_unique
    assert report.remarks["doubtful patient"] == 1


def test_a_place_with_another_set_is_refused(prepared):
    came = prepared("instance-2022")
    with pytest.raises(Misuse, match="holds instance-2022, not bhsd"):
        prepare(named("bhsd"), prepared("bhsd").data, came.out)


def test_a_place_inside_the_download_is_refused(tmp_path):
    with pytest.raises(Misuse, match="lies in the folder of the set"):
        prepare(named("bhsd"), tmp_path, tmp_path / "out")


def test_scans_that_match_no_label_are_a_failure(tmp_path, key):
    data = downloads.sinoct(tmp_path / "download")
    (data / "labels.csv").write_text('patient_id,label\npatient_1,"0,1"\n')
    with pytest.raises(Failure, match="none of the 3 scans of sinoct has a label"):
        prepare(named("sinoct"), data, tmp_path / "out", workers=1, key=key)


def test_nothing_usable_is_a_failure_with_the_codes(tmp_path, key):
    data = tmp_path / "download"
    downloads.cq500_series(data, 0, "Plain", slices=2)
    (data / "reads.csv").write_text(downloads.reads_csv({"CQ500-CT-0": {}}))
    with pytest.raises(Failure) as told:
        prepare(named("cq500"), data, tmp_path / "out", workers=1, key=key)
    assert "no usable head CT of cq500" in told.value.what
    assert "too-few-slices (2 files)" in told.value.why


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["nowhere", "file", "empty"])
def test_a_folder_that_is_no_download_says_what_it_lacks(name, what, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Failure) as told:
        SETS[name].read(tmp_path / what)
    assert told.value.do
    assert isinstance(told.value, Misuse) == (what != "empty")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(Misuse, match=r"did you mean cq500\?"):
        named("CQ-500")
