"""What tables may look like, and what each unusable one is told: the file, the rows, what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headct.evaluation import read_labels, read_predictions
from headct.evaluation.cells import POSITIVE
from headct.evaluation.matching import labels_for
from headct.evaluation.tables import agreed, join, label_counts, labels_of
from headct.failure import Misuse

PREDICTIONS = "scan_id,finding,probability\n007,ich,0.9\n8,ich,0.2\n9,ich,0.4\n"
LABELS = "scan_id,patient_id,ich,site\n007,1,1,a\n8,2,0.0,a\n9,3,,b\n10,3,1,b\n"


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_identifiers_stay_text_and_an_empty_label_is_unknown(tmp_path: Path) -> None:
    predictions = read_predictions(written(tmp_path, "p.csv", "\ufeff" + PREDICTIONS))
    labels = read_labels(written(tmp_path, "l.csv", LABELS))
    cases, notes = join(predictions, labels)
    case = cases["ich"]
    assert list(case.scan_ids) == ["007", "8"]
    assert case.labels.tolist() == [1, 0]
    assert case.probabilities.tolist() == [0.9, 0.2]
    assert case.unknown == 1
    assert notes == ["1 scans have a label of ich but no prediction: 10"]


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    pd.DataFrame({"scan_id": ["a", "b"], "finding": "ich", "probability": np.float32([0.5, 0.25])}).to_parquet(
        tmp_path / "p.parquet"
    )
    pd.DataFrame({"scan_id": ["a", "b"], "patient_id": [7, 8], "ich": pd.array([1, None], dtype="Int64")}).to_parquet(
        tmp_path / "l.parquet"
    )
    labels = read_labels(tmp_path / "l.parquet")
    assert read_predictions(tmp_path / "p.parquet")["probability"].tolist() == [0.5, 0.25]
    assert labels["patient_id"].tolist() == ["7", "8"]
    assert labels_of(labels, "ich")[0] == 1
    assert np.isnan(labels_of(labels, "ich")[1])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scan_id,probability\na,1\n", "has no column finding"),
        ("scan_id,finding,probability\n", "has no rows"),
        ("scan_id,finding,probability\na,ich,1.5\nb,ich,0.1\n", "a: the probability is 1.5"),
        ("scan_id,finding,probability\na,ich,\n", "a: the probability is empty"),
        ("scan_id,finding,probability\na,ich,high\n", "a: the probability is high"),
        ("scan_id,finding,probability\na,ich,0.1\na,ich,0.2\n", "a: predicted more than once for ich"),
        ("scan_id,finding,probability,split\na,ich,0.1,test\na,sdh,0.2,\n", "a is in several splits"),
        ("scan_id,finding,probability\na,ich,0.1\n,ich,0.2\n", "row 3: the scan_id is empty"),
        ("scan_id,finding,probability,split\na,ich,0.1,tset\n", "'tset' is no split"),
        ('scan_id,finding,probability\n"a,ich\n', "is no table"),
        ("scan_id,ich,sdh\na,0.1,0.2\n", "a column for each finding: ich, sdh\n.*\n.*'scan_id', .'ich', 'sdh'"),
        ("series_id,ich\na,1\nb,0\n", "holds labels, and no predictions"),
        ("who,ich\na,0.5\n", "has no column scan_id"),
        ("scan_id,patient_id,ich,site\na,1,1,x\nb,2,,y\n", "holds labels, and no predictions\n.*\n.*by --labels"),
        ("scan_id,finding,probability,finding\na,ich,0.1,sah\n", "two columns called 'finding'"),
    ],
)
def test_predictions_that_cannot_be_meant(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Misuse, match=says):
        read_predictions(written(tmp_path, "p.csv", text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scan_id,ich\na,1\n", "has no column patient_id\n.*\n.*copy scan_id into a column patient_id"),
        ("scan_id,Patient,ich\na,1,1\n", "call the column Patient patient_id, if it tells patients"),
        ("scan_id,finding,probability\na,ich,1\n", "is a table of predictions, and holds no labels"),
        ("scan_id,patient_id,preferred,shard,crc32\na,1,1,s,1\n", "is the table of a cohort's scans, and holds no"),
        ("scan_id,patient_id,ich\na,1,1\na,2,0\n", "a: listed more than once"),
        ("scan_id,patient_id,ich\na,,1\nb,2,0\n", "a: the patient_id is empty"),
    ],
)
def test_labels_that_cannot_be_meant(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Misuse, match=says):
        read_labels(written(tmp_path, "l.csv", text))


def test_a_label_that_is_none_is_named(tmp_path: Path) -> None:
    labels = read_labels(written(tmp_path, "l.csv", "scan_id,patient_id,ich\na,1,perhaps\nb,2,0\n"))
    with pytest.raises(Misuse, match="labels of ich: a: 'perhaps' is no label"):
        labels_of(labels, "ich")


@pytest.mark.parametrize("yes", sorted(POSITIVE))
def test_the_spellings_are_those_of_adapting(tmp_path: Path, yes: str) -> None:
    text = f"scan_id;patient_id;ich\na;1;{yes.upper()}\nb;2;no\nc;3;n/a\n"
    labels = read_labels(written(tmp_path, "l.csv", text))
    np.testing.assert_array_equal(labels_of(labels, "ich"), [1, 0, np.nan])


def test_a_sheet_is_read_as_adapting_reads_it(tmp_path: Path) -> None:
    table = pd.DataFrame({"scan_id": ["007", "8"], "patient_id": [1, 2], "ich": ["yes", None]})
    table.to_excel(tmp_path / "l.xlsx", index=False)
    labels = read_labels(tmp_path / "l.xlsx")
    assert labels["scan_id"].tolist() == ["007", "8"]
    np.testing.assert_array_equal(labels_of(labels, "ich"), [1, np.nan])


def test_readers_become_one_label_unless_there_is_one_and_the_match_is_told(tmp_path: Path) -> None:
    text = (
        "scan_id,patient_id,ich_r1,ich_r2,ich_r3,sah,sah_r1,sah_r2\n007,1,yes,1,0,0,1,1\n8,2,0,,1,1,1,1\n9,3,0,0,0,,,\n"
    )
    read = read_labels(written(tmp_path, "l.csv", text))
    labels, lines = agreed(read, ["ich", "sah"])
    np.testing.assert_array_equal(labels_of(labels, "ich"), [1, np.nan, 0])
    np.testing.assert_array_equal(labels_of(agreed(read, ["ich"], "any")[0], "ich"), [1, 1, 0])
    np.testing.assert_array_equal(labels_of(labels, "sah"), [0, 1, np.nan])
    assert lines == [
        "ich is the majority rule over ich_r1, ich_r2, ich_r3",
        "no finding (a reader's, and there is sah itself): sah_r1, sah_r2",
    ]
    predictions = read_predictions(written(tmp_path, "p.csv", PREDICTIONS.replace("9,ich", "10,ich")))
    assert label_counts(predictions, labels) == ["ich by their labels: 1 with it, 0 without, 1 unknown"]
    assert labels_for(tmp_path / "l.csv", [predictions])[1] == ["2 of 3 rows of labels match by scan_id"]
    with pytest.raises(Misuse, match="labels of ich_r1: 007, 8, 9: 'maybe' is no label"):
        agreed(read.assign(ich_r1="maybe"), ["ich"])


def test_a_file_that_is_not_there_or_no_table(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="there is no table"):
        read_labels(tmp_path / "nothing.csv")
    with pytest.raises(Misuse, match="is no table"):
        read_labels(written(tmp_path, "l.parquet", "text"))


def test_tables_of_other_scans_or_findings_show_both_sides(tmp_path: Path) -> None:
    labels = read_labels(written(tmp_path, "l.csv", LABELS))
    others = read_predictions(written(tmp_path, "p.csv", "scan_id,finding,probability\n7,ich,0.9\n"))
    with pytest.raises(Misuse, match=r"predictions have '7'; labels have '007', '8', '9'"):
        join(others, labels)
    strange = read_predictions(written(tmp_path, "q.csv", "scan_id,finding,probability\n007,sah,0.9\n"))
    with pytest.raises(Misuse, match=r"no predicted finding \(sah\)"):
        join(strange, labels)
