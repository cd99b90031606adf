"""What tables may look like, and what each unusable one is told: the file, the rows, what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headct.evaluation import read_labels, read_predictions
from headct.evaluation.tables import join, labels_of
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
        ("scan_id,finding,probability\na,ich,0.1\n,ich,0.2\n", "row 3: the scan_id is empty"),
        ("scan_id,finding,probability,split\na,ich,0.1,tset\n", "'tset' is no split"),
        ('scan_id,finding,probability\n"a,ich\n', "is not a table"),
    ],
)
def test_predictions_that_cannot_be_meant(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Misuse, match=says):
        read_predictions(written(tmp_path, "p.csv", text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scan_id,ich\na,1\n", "has no column patient_id"),
        ("scan_id,patient_id,ich\na,1,1\na,2,0\n", "a: listed more than once"),
        ("scan_id,patient_id,ich\na,,1\nb,2,0\n", "a: the patient_id is empty"),
    ],
)
def test_labels_that_cannot_be_meant(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Misuse, match=says):
        read_labels(written(tmp_path, "l.csv", text))


def test_a_label_that_is_none_is_named(tmp_path: Path) -> None:
    labels = read_labels(written(tmp_path, "l.csv", "scan_id,patient_id,ich\na,1,yes\nb,2,0\n"))
    with pytest.raises(Misuse, match="labels of ich: a: 'yes' is no label"):
        labels_of(labels, "ich")


def test_a_file_that_is_not_there_or_no_table(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="there is no file"):
        read_labels(tmp_path / "nothing.csv")
    with pytest.raises(Misuse, match="is not a table"):
        read_labels(written(tmp_path, "l.parquet", "text"))


def test_tables_of_other_scans_or_findings_show_both_sides(tmp_path: Path) -> None:
    labels = read_labels(written(tmp_path, "l.csv", LABELS))
    others = read_predictions(written(tmp_path, "p.csv", "scan_id,finding,probability\n7,ich,0.9\n"))
    with pytest.raises(Misuse, match=r"predictions have '7'; labels have '007', '8', '9'"):
        join(others, labels)
    strange = read_predictions(written(tmp_path, "q.csv", "scan_id,finding,probability\n007,sah,0.9\n"))
    with pytest.raises(Misuse, match=r"no predicted finding \(sah\)"):
        join(strange, labels)
