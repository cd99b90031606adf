"""Labels that name scans by what predictions tell of them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from headct.evaluation.matching import labels_for
from headct.evaluation.tables import join, read_labels
from headct.failure import Misuse


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def ids(text: str) -> pd.DataFrame:
    """Predictions of the scans in a table of identifiers."""
    lines = [line.split(",") for line in text.splitlines()]
    return pd.DataFrame(lines[1:], columns=lines[0]).assign(finding="ich", probability=0.5)


@pytest.mark.parametrize("by", ["series_id", "study_id", "patient_id"])
def test_rows_name_what_both_tables_have_the_most_exact_first(tmp_path: Path, by: str) -> None:
    """As `headct simulate --format dicom` writes labels and `headct predict` writes ids."""
    predictions = ids("scan_id,patient_id,study_id,series_id\na,p1,st1,se1\nb,p2,st2,se2\nc,p3,st3,se3")
    names = {"series_id": ["se2", "se1", "se9"], "study_id": ["st2", "st1", "st9"], "patient_id": ["p2", "p1", "p9"]}
    kept = list(names)[list(names).index(by) :]
    pd.DataFrame({name: names[name] for name in kept} | {"ich": [1, 0, 1]}).to_csv(tmp_path / "l.csv", index=False)
    labels, said = labels_for(tmp_path / "l.csv", [predictions])
    assert dict(zip(labels["scan_id"], labels["ich"], strict=True)) == {"a": "0", "b": "1"}
    assert labels["patient_id"].tolist() == ["p1", "p2"]
    absent = f"1 rows of labels name no predicted scan: {names[by][2]}"
    assert said == [f"2 of 3 rows of labels match by {by}", absent]
    assert len(join(predictions, labels)[0]["ich"].labels) == 2


def test_a_row_labels_all_scans_that_it_names_and_measures_none_of_several(tmp_path: Path) -> None:
    predictions = ids("scan_id,study_id\na,1\nb,1\nc,2\nd,")
    table = written(tmp_path, "l.csv", "study_id,patient_id,ich,ich_ml\n1,p,1,30\n2,q,0,0\n,r,1,9\n")
    labels, said = labels_for(table, [predictions])
    assert labels[["scan_id", "ich", "ich_ml"]].values.tolist() == [["a", "1", ""], ["b", "1", ""], ["c", "0", "0"]]
    assert said == [
        "2 of 3 rows of labels match by study_id",
        "1 rows of labels tell no study_id",
        "1 rows gave the label of a study to several scans of it, its measurements to none",
    ]
    with pytest.raises(Misuse, match=r"l\.csv: 1: listed more than once\n  why: rows are matched by study_id"):
        labels_for(written(tmp_path, "l.csv", "study_id,patient_id,ich\n1,p,1\n1,p,0\n"), [predictions])


def test_patients_that_labels_do_not_tell_are_those_of_the_predictions(tmp_path: Path) -> None:
    table = written(tmp_path, "l.csv", "scan_id,ich\na,1\nb,0\nx,1\n")
    labels, said = labels_for(table, [ids("scan_id,patient_id\na,p\nb,p"), ids("scan_id,patient_id\nb,p\nx,q")])
    assert labels[["scan_id", "patient_id"]].values.tolist() == [["a", "p"], ["b", "p"], ["x", "q"]]
    assert said == ["2 of 3 rows of labels match by scan_id", "patients are those of the predictions: 2 of 3 scans"]
    for unknown in ("scan_id\na\nb", "scan_id,patient_id\na,p\nb,"):
        with pytest.raises(Misuse, match="copy scan_id into a column patient_id"):
            labels_for(table, [ids(unknown)])
    by_series = written(tmp_path, "l.csv", "scan_id,series_id,ich\n,1,1\n")
    assert labels_for(by_series, [ids("scan_id,series_id,patient_id\na,1,p")])[0]["scan_id"].tolist() == ["a"]
    with pytest.raises(Misuse, match="no column patient_id"):
        labels_for(by_series, [ids("scan_id,series_id\na,1")])


def test_what_cannot_be_matched_is_shown_from_both_sides_with_the_remedy(tmp_path: Path) -> None:
    table = written(tmp_path, "l.csv", "series_id,patient_id,ich\n1.2.3,p,1\n")
    hidden = ids("scan_id,series_id\n0123456789abcdef,fedcba9876543210")
    with pytest.raises(Misuse, match=r"have 'fedcba9876543210'; labels have '1\.2\.3'\n.*--keep-ids; or .* --key"):
        labels_for(table, [hidden])
    files = read_labels(written(tmp_path, "f.csv", "scan_id,patient_id,ich\nhead.nii,p,1\n"))
    with pytest.raises(Misuse, match="name them by their series_id, study_id or patient_id; or"):
        join(hidden, files)
    with pytest.raises(Misuse, match=r"no series_id of the predictions .*\n.*\n.*call them alike in both tables"):
        labels_for(table, [ids("scan_id,series_id\na,1.2.4")])
    with pytest.raises(Misuse, match=r"names no scan of the predictions\n  why: .* predictions have scan_id\n"):
        labels_for(table, [ids("scan_id\na")])


def test_files_without_a_patient_are_not_quietly_patients_of_their_own(tmp_path: Path) -> None:
    """As NIfTI files are to `headct predict`; taken so, several scans of one patient make intervals too narrow."""
    table = written(tmp_path, "l.csv", "scan_id,patient_id,ich\na,,1\nb,,0\n")  # an empty column tells nothing
    _, said = labels_for(table, [ids("scan_id,patient_id\na,one\nb,two")])
    assert said[-1] == (
        "patients are those of the predictions: 2 of 2 scans; if some are of one patient, intervals are too narrow: "
        "give the labels a column patient_id"
    )


@pytest.mark.parametrize("series", [["se1", "", ""], ["x1", "x2", "x3"]])
def test_what_few_rows_tell_or_nobody_knows_does_not_stand_in_the_way(tmp_path: Path, series: list[str]) -> None:
    predictions = ids("scan_id,series_id,study_id,patient_id\na,se1,1,p\nb,se2,2,q\nc,se3,3,r")
    table = pd.DataFrame({"series_id": series, "study_id": ["1", "2", "3"], "ich": [1, 0, 1]})
    table.to_csv(tmp_path / "l.csv", index=False)
    labels, said = labels_for(tmp_path / "l.csv", [predictions])
    assert labels["scan_id"].tolist() == ["a", "b", "c"]
    assert said[0] == "3 of 3 rows of labels match by study_id"


def test_patients_are_not_matched_where_rows_tell_something_finer(tmp_path: Path) -> None:
    """Patient 1 of another hospital is another patient."""
    table = written(tmp_path, "l.csv", "study_id,patient_id,ich\n7,1,1\n8,2,0\n")
    with pytest.raises(Misuse, match="no study_id of the predictions is in the labels"):
        labels_for(table, [ids("scan_id,study_id,patient_id\na,5,1\nb,6,2")])


def test_another_models_scans_take_no_measurement_from_ours(tmp_path: Path) -> None:
    table = written(tmp_path, "l.csv", "study_id,patient_id,ich,ich_ml\n1,p,1,30\n")
    labels, said = labels_for(table, [ids("scan_id,study_id\na,1"), ids("scan_id,study_id\na,1\nb,1")])
    assert labels.set_index("scan_id").loc["a", "ich_ml"] == "30"
    assert said == ["1 of 1 rows of labels match by study_id"]


def test_labels_that_name_files_are_sent_to_where_these_are_known(tmp_path: Path) -> None:
    table = written(tmp_path, "l.csv", "path,ich\nscans/a.nii.gz,1\n")
    with pytest.raises(Misuse, match="or judge the detector by --detector and --cohort, where rows may name files"):
        labels_for(table, [ids("scan_id,patient_id\na,p")])
