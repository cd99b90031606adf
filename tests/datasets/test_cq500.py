"""CQ500: which series are taken, and the label of three readers on each of them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from inputs import downloads

from headct.datasets import named
from headct.datasets.cq500 import left_out, unit_of
from headct.failure import Failure

SET = named("cq500")


def test_plain_series_are_kept_and_contrast_is_left_out(prepared):
    """By the header where it says so (POST CONTRAST, C-), else by the name of the folder (4cc sec, C)."""
    came = prepared("cq500")
    files = came.cohort.files
    labelled = set(came.table("labels")["scan_id"])
    series = {path.split("/")[-2] for path in files[files["outcome"].isin(labelled)]["path"] if ".zip/" not in path}
    assert series == {"CT Thin Plain", "CT PRE CONTRAST 5MM STD", "CT C"}
    assert sorted(reason.split("/")[-2] for reason in came.remarks("left out").values()) == [
        "CT 4cc sec 150cc D3D on",
        "CT C-2",
    ]
    rejected = came.cohort.rejections.set_index("code")["files"]
    assert "CT POST CONTRAST" in rejected["contrast"][0]


def test_every_series_of_a_patient_carries_the_patients_label(prepared):
    """Patient 0 has two plain series and two votes for bleeding; a zip file is read as it is."""
    labels = prepared("cq500").table("labels")
    assert labels["name"].value_counts().to_dict() == {"CQ500-CT-0": 2, "CQ500-CT-1": 1, "CQ500-CT-2": 1}
    first = labels[labels["name"] == "CQ500-CT-0"]
    assert first["ich"].tolist() == [1, 1]
    assert first["sdh"].tolist() == [0, 0]
    assert first["ich_left"].tolist() == [1, 1]
    assert first["abnormal"].tolist() == [1, 1]


def test_the_rule_any_reader_has_a_table_of_its_own(prepared):
    by_name = prepared("cq500").table("labels-any").drop_duplicates("name").set_index("name")
    assert by_name.loc["CQ500-CT-0", ["ich", "sdh", "midline_shift", "iph"]].tolist() == [1, 1, 1, 0]


def test_a_vote_that_is_missing_makes_a_label_unknown_not_negative(prepared):
    came = prepared("cq500")
    labels, labels_any = (came.table(name).set_index("name") for name in ("labels", "labels-any"))
    assert pd.isna(labels.loc["CQ500-CT-2", "ich"])  # one, none, no vote
    assert labels_any.loc["CQ500-CT-2", "ich"] == 1
    assert labels.loc["CQ500-CT-1", "fracture"] == 0  # two of three say no
    assert pd.isna(labels_any.loc["CQ500-CT-1", "fracture"])
    doubtful = prepared("cq500").remarks("doubtful label")
    assert set(doubtful) == {"CQ500-CT-1", "CQ500-CT-2"}


def test_the_votes_are_kept(prepared):
    readers = prepared("cq500").table("readers").set_index(["unit", "finding"])
    assert readers.loc[("CQ500-CT-0", "ich"), ["R1", "R2", "R3"]].tolist() == [1, 1, 0]
    assert len(readers) == 5 * len(downloads.COLUMNS)


def test_what_does_not_match_is_named(prepared):
    came = prepared("cq500")
    missing = came.remarks("label without a scan")
    assert missing == {"CQ500-CT-3": "no file of it", "CQ500-CT-4": "rejected: too-few-slices"}
    (unlabelled,) = came.remarks("scan without a label").values()
    assert "CQ500CT9" in unlabelled


def test_counts_stand_beside_those_of_the_whole_set(prepared):
    came = prepared("cq500")
    assert came.found("patients in reads.csv") == 5
    assert came.found("patients with images") == 5
    assert came.found("patients with ich by majority") == 2
    assert came.found("patients with ich by any reader") == 3
    assert "patients in reads.csv" in came.report.differing


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("CQ500/CQ500CT12 CQ500CT12/Unknown Study/CT Plain/CT000000.dcm", "CQ500-CT-12"),
        ("CQ500/qct03/CQ500CT7_CQ500CT7/Unknown Study/CT Plain/CT000000.dcm", "CQ500-CT-7"),
        ("CQ500/CQ500-CT-490.zip/CQ500CT490 CQ500CT490/Unknown Study/CT Plain/CT000000.dcm", "CQ500-CT-490"),
        ("CQ500/reads.csv", ""),
    ],
)
def test_the_patient_of_a_path(path, unit):
    assert unit_of(path) == unit


@pytest.mark.parametrize(
    "series",
    [
        *("CT PLAIN THIN", "CT Plain 3mm", "CT Plain-2", "CT 55mm Plain", "CT I To S", "CT PRE CONTRAST THIN"),
        *("CT Thin Stnd", "CT 0.625mm", "CT 5mm-3", "CT 2.55mm", "CT HELICAL", "CT BRAIN PLAIN", "CT BONE", "CT 1.25"),
        *("CT Thin Details", "CT SOFT THIN", "CT 1.25MM", "CT 5 MM PRE CONTRAST-2", "CT 3D CT HEADORBIT"),
    ],
)
def test_names_of_series_without_contrast(series):
    """The names that occur in the download, as listed by those who counted them."""
    assert left_out(f"CQ500/CQ500CT1 CQ500CT1/Unknown Study/{series}/CT000000.dcm") == ""


@pytest.mark.parametrize(
    "series",
    [
        *("CT POST CONTRAST", "CT POST CONTRAST-3", "CT 4cc sec 150cc D3D on", "CT 4cc sec 150cc D3D on-2"),
        *("CT 5mm POST CONTRAST", "CT ORAL IV", "CT 55mm Contrast", "CT Thin Contrast", "CT C", "CT C THIN-2"),
        *("CT CONTRAST-2", "CT CECT THIN", "CT_POST_CONTRAST"),
    ],
)
def test_names_of_series_with_contrast(series):
    assert "contrast" in left_out(f"CQ500/CQ500CT1 CQ500CT1/Unknown Study/{series}/CT000000.dcm")


def faulty(folder: Path, text: str) -> Path:
    (folder / "CQ500CT0 CQ500CT0").mkdir(parents=True)
    (folder / "reads.csv").write_text(text)
    return folder


def test_a_renamed_column_is_named_with_its_neighbour(tmp_path):
    text = downloads.reads_csv({"CQ500-CT-0": {}}).replace("R2:MidlineShift", "R2:Midline Shift")
    with pytest.raises(Failure, match=r"lacks the column R2:MidlineShift \(is it R2:Midline Shift\?\)"):
        SET.read(faulty(tmp_path, text))


@pytest.mark.parametrize("name", ["CQ500-CT-0", "someone"])
def test_a_row_that_names_no_patient_or_one_twice_is_named(name, tmp_path):
    text = downloads.reads_csv({"CQ500-CT-0": {}}) + downloads.reads_csv({name: {}}).partition("\n")[2]
    with pytest.raises(Failure, match=r"row [23] is"):
        SET.read(faulty(tmp_path, text))


def test_a_folder_without_patients_says_what_to_download(tmp_path):
    (tmp_path / "reads.csv").write_text(downloads.reads_csv({}))
    with pytest.raises(Failure, match="they need not be unpacked"):
        SET.read(tmp_path)
