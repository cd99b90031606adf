"""What must find nothing finds nothing, what cheats is found, and thresholds are those that were asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from headct.detection.linear import FittedLinear, Linear
from headct.detection.method import Progress, Task, quiet
from headct.detection.scans import Held
from headct.embedding.machine import choose
from headct.evaluation import EvaluationSettings
from headct.failure import Misuse
from headct.studies.evaluation import points_of
from headct.studies.evaluation_checks import Unlearned, shuffled_by_patient, unlearned
from headct.studies.evaluation_predictions import Taught
from headct.studies.evaluation_scans import Entry

LEARNED, TESTED = 160, 120


def taught(seed: int, *, skewed: bool = False) -> Taught:
    """Two findings that the vectors tell well, two scans of each patient; `skewed`: rare ones that stand far out."""
    rng = np.random.default_rng(seed)
    rows = LEARNED + TESTED
    labels = (rng.random((rows // 2, 2)) < (0.15 if skewed else 0.5)).repeat(2, axis=0).astype(float)
    vectors = rng.normal(size=(rows, 8))
    vectors[:, :2] += (6 if skewed else 3) * labels
    task = Task(
        encoder=cast(Any, None),
        scans=Held(vectors.astype(np.float32)),
        findings=("ich", "sdh"),
        labels=labels,
        patients=np.array([f"p{row // 2}" for row in range(rows)], dtype=object),
        train=np.arange(LEARNED),
        validation=np.zeros(0, dtype=int),
        seed=seed,
        machine=choose("fp32", "cpu"),
    )
    return Taught(task, np.arange(LEARNED, rows), pd.DataFrame({"scan_id": [f"s{row}" for row in range(rows)]}))


class Cheat:
    """Learns from whatever labels there are, those of the tested scans too."""

    def fit(self, task: Task, progress: Progress = quiet) -> FittedLinear:
        return Linear().fit(replace(task, train=np.arange(len(task.labels))), progress)


class Deaf:
    """Learns what it had learned before, whatever labels it is given."""

    def __init__(self, known: Taught) -> None:
        self.fitted = Linear().fit(known.task)

    def fit(self, task: Task, progress: Progress = quiet) -> FittedLinear:
        return self.fitted


@pytest.mark.parametrize(("skewed", "off"), [(False, 0.03), (True, 0.06)])
def test_shuffled_training_labels_teach_nothing(skewed: bool, off: float) -> None:
    """Of twelve worlds at most one may be called a leak by chance.

    Where few patients stand far out, a random choice of others points away from them more often than towards them: the
    mean lies a little below one half, and its error is the larger.
    """
    found = [unlearned(taught(seed, skewed=skewed)) for seed in range(12)]
    assert sum(not one.passed for one in found if one is not None) <= 1
    assert np.mean([one.mean for one in found if one is not None]) == pytest.approx(0.5, abs=off)


def test_labels_that_reach_the_training_another_way_are_found() -> None:
    known = taught(0)
    for method in (Cheat(), Deaf(known)):
        found = unlearned(known, method=method)
        assert found is not None
        assert found.mean > 0.8
        assert not found.passed
        assert found.tree()["passed"] is False


def test_the_error_is_the_half_width_of_students_interval() -> None:
    areas = np.array([0.4, 0.5, 0.6, 0.5])
    found = Unlearned(("ich",), areas)
    assert found.mean == pytest.approx(0.5)
    assert found.error == pytest.approx(3.182446 * np.sqrt(0.02 / 3) / 2)  # quantile of a printed table, 3 degrees
    assert Unlearned(("ich",), areas + 0.02 + found.error).passed
    assert not Unlearned(("ich",), areas + 0.04 + found.error).passed


def test_labels_are_shuffled_by_patient() -> None:
    patients = np.array(["b", "a", "b", "c", "a", "d"])
    labels = np.array([[1, 0], [0, np.nan], [1, 0], [0, 0], [0, np.nan], [1, 1]])
    of = {name: tuple(labels[patients == name][0]) for name in "abcd"}
    given = []
    for seed in range(200):
        found = shuffled_by_patient(labels, patients, np.random.default_rng(seed))
        rows = {name: {str(row) for row in found[patients == name]} for name in "abcd"}
        assert all(len(one) == 1 for one in rows.values())
        assert Counter(str(found[patients == name][0]) for name in "abcd") == Counter(
            str(np.array(one)) for one in of.values()
        )
        given.append(str(found[patients == "a"][0]))
    assert all(30 < number < 70 for number in Counter(given).values())  # a quarter of 200 each


def test_too_few_test_patients_and_a_class_that_is_missing_give_no_check() -> None:
    known = taught(1)
    labels = known.task.labels.copy()
    labels[known.tested, 0] = 0
    only_one = unlearned(replace(known, task=replace(known.task, labels=labels)))
    assert only_one is not None
    assert only_one.findings == ("sdh",)
    labels[:LEARNED, 1] = 1
    assert unlearned(replace(known, task=replace(known.task, labels=labels))) is None


def test_a_target_that_a_detector_did_not_choose_by_is_refused() -> None:
    detector = SimpleNamespace(findings=("ich",), points=({"balanced": 0.4, "sensitive": 0.2, "specific": 0.7},))
    entry = cast(Entry, SimpleNamespace(name="mine", detector=detector))
    with pytest.raises(Misuse, match=r"mine keeps no threshold of sensitivity 0\.8") as caught:
        points_of(entry, EvaluationSettings(rule="sensitivity", target=0.8))
    assert "0.95" in caught.value.why
    point = points_of(entry, EvaluationSettings(rule="sensitivity", target=0.95))["ich"]
    assert (point.threshold, point.origin) == (
        0.2,
        "sensitive (sensitivity 0.95), chosen by mine on its own validation scans",
    )
    points_of(entry, EvaluationSettings(rule="sensitivity", target=0.8, threshold=0.5))  # which goes before the rule
    assert points_of(entry, EvaluationSettings(target=0.8))["ich"].threshold == 0.4
