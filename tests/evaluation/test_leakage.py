"""Each way in which a good number is a wrong one, built on purpose, and the clean table beside it that passes."""

from __future__ import annotations

import numpy as np
import pytest

from headct.evaluation.intervals import Patients
from headct.evaluation.leakage import (
    near_duplicates,
    no_duplicates,
    patients_in_one_split,
    shuffled_labels,
    too_few,
)
from headct.failure import Failure, Misuse

NAMES = [f"s{index}" for index in range(40)]


def test_a_patient_in_two_splits_is_named() -> None:
    patients_in_one_split(["a", "a", "b", "c"], ["train", "train", "test", ""])
    patients_in_one_split(["a", "a"], ["train", np.nan])  # a scan that the table of splits lacks
    with pytest.raises(Failure, match=r"1 patients are in more than one split: a \(test, train\)"):
        patients_in_one_split(["a", "a", "b"], ["train", "test", "test"])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([np.nan] * 12, "every label is unknown"),
        ([1.0] * 12, "all 12 known labels are 1"),
        ([0.0] * 10 + [np.nan] * 2, "all 10 known labels are 0"),
        ([1.0] * 4 + [0.0] * 8, "4 patients with the finding, 8 without"),
    ],
)
def test_labels_that_say_nothing(labels: list[float], says: str) -> None:
    assert too_few(labels, Patients.each(12)) == says


def test_many_scans_of_few_patients_are_few() -> None:
    labels = np.tile([1.0, 0.0], 30)
    assert not too_few(labels, Patients.each(60))
    assert too_few(labels, Patients(np.arange(60) // 2 % 3, 3)) == "3 patients with the finding, 3 without"


def test_identical_and_nearly_identical_vectors() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 32)) + 5  # all heads share most of what they say
    assert near_duplicates(vectors, NAMES) == []
    vectors[7] = vectors[3]
    vectors[30] = vectors[12] + rng.normal(size=32) * 1e-3
    pairs = near_duplicates(vectors, NAMES)
    assert [(pair.first, pair.second) for pair in pairs] == [("s3", "s7"), ("s12", "s30")]
    assert pairs[0].cosine == pytest.approx(1)
    of_one = ["same" if name in ("s3", "s7", "s12", "s30") else name for name in NAMES]
    no_duplicates(vectors, NAMES, of_one)
    with pytest.raises(Failure, match=r"2 pairs .* s3 and s7 \(cosine 1.00000\); s12 and s30"):
        no_duplicates(vectors, NAMES, NAMES)


def test_duplicates_are_found_across_blocks() -> None:
    vectors = np.random.default_rng(0).normal(size=(2100, 8))
    vectors[2099] = vectors[5]
    names = [str(index) for index in range(2100)]
    assert [(pair.first, pair.second) for pair in near_duplicates(vectors, names)] == [("5", "2099")]


@pytest.mark.parametrize(("alike", "width"), [(0.9999, 3), (0.99, 3), (0.9, 12)])
def test_neighbours_on_a_line_are_all_that_a_slow_search_finds(alike: float, width: int) -> None:
    """Oracle: every cosine, one by one."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(1500, width)) * np.linspace(3, 1, width) + 2
    unit = vectors - vectors.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    names = [f"{index:04d}" for index in range(1500)]
    rows, columns = np.nonzero(np.triu(unit @ unit.T >= alike, k=1))
    wanted = {(names[row], names[column]) for row, column in zip(rows, columns, strict=True)}
    found = near_duplicates(vectors, names, alike)
    assert len(wanted) > 5
    assert {(pair.first, pair.second) for pair in found} == wanted
    assert [pair.cosine for pair in found] == sorted((pair.cosine for pair in found), reverse=True)


def test_vectors_without_a_name_are_refused() -> None:
    with pytest.raises(Misuse, match="for 2 scans"):
        near_duplicates(np.zeros((3, 4)), ["a", "b"])


@pytest.mark.parametrize("positives", [5, 300])
def test_shuffled_labels_give_one_half_whatever_the_scores(positives: int) -> None:
    labels = np.arange(600) < positives
    shuffled = shuffled_labels(labels, labels + 0.1 * (np.arange(600) % 3))
    assert shuffled.mean == pytest.approx(0.5, abs=0.02)
    assert shuffled.shufflings >= 100


def test_the_check_of_shuffled_labels_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation that ranks wrongly is found out."""
    from headct.evaluation import leakage

    monkeypatch.setattr(leakage, "auroc", lambda labels, scores: 0.6)
    with pytest.raises(Failure, match="shuffled labels give an area of"):
        shuffled_labels(np.arange(60) < 20, np.arange(60))
