"""Splits: patients whole, findings shared out, fixed by the seed whatever the order. Oracle: counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headct.detection.splits import read_splits, split, splits_table
from headct.failure import Misuse

SHARES = {"train": 0.5, "validation": 0.25, "test": 0.25}


def scans(seed: int, count: int = 400) -> tuple[np.ndarray, list[str]]:
    """Labels of findings that one in two, ten and fifty scans have, and patients of up to five scans."""
    rng = np.random.default_rng(seed)
    labels = (rng.uniform(size=(count, 3)) < (0.5, 0.1, 0.02)).astype(float)
    labels[rng.uniform(size=labels.shape) < 0.1] = np.nan
    return labels, [f"p{number}" for number in np.sort(rng.integers(0, count // 2, count))]


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_in_two_parts_and_rare_findings_are_shared_out(seed: int) -> None:
    labels, patients = scans(seed)
    parts = split(labels, patients, SHARES, seed)
    where = {
        patient: {part for one, part in zip(patients, parts, strict=True) if one == patient} for patient in patients
    }
    assert all(len(one) == 1 for one in where.values())
    for column in range(3):
        having = {patient for patient, label in zip(patients, labels[:, column], strict=True) if label == 1}
        for part, share in SHARES.items():
            got = sum(where[patient] == {part} for patient in having)
            assert abs(got - share * len(having)) <= 2, f"finding {column}: {got} of {len(having)} in {part}"


def test_the_order_of_scans_does_not_matter_and_the_seed_does() -> None:
    labels, patients = scans(0)
    parts = split(labels, patients, SHARES, 1)
    order = np.random.default_rng(9).permutation(len(patients))
    again = split(labels[order], [patients[row] for row in order], SHARES, 1)
    np.testing.assert_array_equal(again, parts[order])
    assert (split(labels, patients, SHARES, 2) != parts).any()


def test_written_splits_are_read_again(tmp_path: Path) -> None:
    labels, patients = scans(3, 40)
    ids = [f"s{row}" for row in range(40)]
    parts = split(labels, patients, SHARES, 1)
    splits_table(ids, patients, parts).to_csv(tmp_path / "splits.csv", index=False)
    np.testing.assert_array_equal(read_splits(tmp_path / "splits.csv", ids, patients), parts)
    np.testing.assert_array_equal(read_splits(tmp_path / "splits.csv", [*ids, "new"], [*patients, "q"])[-1:], [""])


def test_a_scan_in_no_split_is_written_and_read_again(tmp_path: Path) -> None:
    ids, patients, parts = ["a", "b", "c"], ["p", "q", "r"], np.array(["train", "", "validation"], dtype=object)
    splits_table(ids, patients, parts).to_csv(tmp_path / "splits.csv", index=False)
    np.testing.assert_array_equal(read_splits(tmp_path / "splits.csv", ids, patients), parts)


def test_public_sets_may_call_validation_val(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text("scan_id,split\na,train\nb,val\nc,test\n")
    found = read_splits(tmp_path / "splits.csv", ["a", "b", "c"], ["p", "q", "r"])
    assert found.tolist() == ["train", "validation", "test"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("scan_id,split\na,train\nb,validation\n", "has patients in several splits: p \\(train, validation\\)"),
        ("patient_id,split\np,train\np,test\n", "has p in train and in test"),
        ("patient_id,split\np,dev\n", "a split called 'dev'"),
        ("patient_id,split\nq,train\n", "names none of the labelled scans"),
        ("patient,part\np,train\n", "no table of splits: its columns are patient, part"),
    ],
)
def test_a_table_of_splits_that_cannot_be_used_is_said(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text(content)
    with pytest.raises(Misuse, match=says):
        read_splits(tmp_path / "splits.csv", ["a", "b"], ["p", "p"])
