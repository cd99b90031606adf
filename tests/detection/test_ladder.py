"""The ladder: never worse on validation than its frozen rung. Methods that are good or bad by construction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from headct.checkpoints import PretrainedEncoder
from headct.detection import ladder
from headct.detection.ladder import climb, validation_auroc
from headct.detection.method import Scans, Task
from headct.detection.scans import Held
from headct.embedding.machine import choose
from headct.failure import Failure

TRUTH = np.array([[0.0], [1], [0], [1], [0], [1], [0], [1]])
GOOD, FAIR, BAD = [0, 9, 0, 9, 1, 5, 4, 8], [0, 9, 0, 9, 1, 5, 6, 8], [9, 0, 9, 0, 5, 1, 8, 4]


@dataclass(frozen=True)
class Told:
    """Gives the scores it was told."""

    values: list[int]
    findings: tuple[str, ...] = ("ich",)

    def fit(self, task: Task, progress: Any = None) -> Told:
        return self

    def scores(self, scans: Scans, rows: np.ndarray) -> np.ndarray:
        return np.array(self.values, dtype=float)[rows, None]


@pytest.fixture
def task(encoder: PretrainedEncoder) -> Task:
    return Task(
        encoder=encoder,
        scans=Held(np.zeros((8, 1), np.float32)),
        findings=("ich",),
        labels=TRUTH,
        patients=np.array(list("abcdefgh")),
        train=np.arange(4),
        validation=np.arange(4, 8),
        seed=0,
        machine=choose("fp32", "cpu"),
    )


@pytest.mark.parametrize(
    ("linear", "lora", "full", "taken"),
    [
        (FAIR, BAD, BAD, 0),
        (FAIR, GOOD, BAD, 1),
        (FAIR, GOOD, GOOD, 1),
        (FAIR, BAD, GOOD, 2),
        (FAIR, FAIR, FAIR, 0),
        (GOOD, FAIR, FAIR, 0),
    ],
)
def test_the_best_on_validation_is_taken_and_the_lowest_of_equals(
    linear: list[int], lora: list[int], full: list[int], taken: int, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    rungs = dict(zip(ladder.RUNGS, map(Told, (linear, lora, full)), strict=True))
    monkeypatch.setattr(ladder, "method", rungs.__getitem__)
    climbed = climb(task)
    assert climbed.fitted is list(rungs.values())[taken]
    areas = {str(row["method"]): row["validation_auroc"] for row in climbed.rows}
    assert validation_auroc(task, climbed.fitted) == max(areas.values()) >= areas["linear"]
    said = {str(row["method"]): row["decision"] for row in climbed.rows}
    assert said[ladder.RUNGS[taken]].startswith("taken")
    if taken == 0:
        assert said["linear"] == "taken: nothing that was trained is better"


def test_a_graph_is_not_trained(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        runtime = type("Runtime", (), {"kind": "onnx"})()

    monkeypatch.setattr(ladder, "method", {"linear": Told(FAIR)}.__getitem__)
    climbed = climb(replace(task, encoder=Graph()))  # type: ignore[arg-type]
    assert [row["decision"] for row in climbed.rows][1:] == ["left out: a graph (onnx) cannot be trained"] * 2


def test_a_rung_that_cannot_be_learned_is_left_out_and_said(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    class Diverges:
        def fit(self, task: Task, progress: Any = None) -> Told:
            raise Failure("training diverged before step 10")

    monkeypatch.setattr(ladder, "method", {"linear": Told(FAIR), "lora": Diverges(), "full": Told(GOOD)}.__getitem__)
    climbed = climb(task)
    assert climbed.fitted == Told(GOOD)
    assert climbed.rows[1] == {
        "method": "lora",
        "validation_auroc": None,
        "decision": "left out: training diverged before step 10",
    }
    monkeypatch.setattr(ladder, "method", lambda name: Diverges())
    with pytest.raises(Failure, match="diverged"):
        climb(task)


def test_validation_auroc_is_over_what_is_known(task: Task) -> None:
    labels = TRUTH.copy()
    labels[6] = np.nan
    assert validation_auroc(task, Told(FAIR)) == 0.75
    assert validation_auroc(replace(task, labels=labels), Told(FAIR)) == 1.0
    assert np.isnan(validation_auroc(replace(task, labels=np.ones((8, 1))), Told(FAIR)))
