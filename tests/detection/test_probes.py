"""Frozen probes. Oracles: scikit-learn for the regression, a plain loop for the neighbours."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headct.checkpoints import PretrainedEncoder
from headct.detection.knn import FittedKnn, Knn
from headct.detection.linear import FittedLinear, Linear, _folds
from headct.detection.method import Task, mirrored
from headct.detection.methods import METHODS, fitted, method
from headct.detection.scaling import Scaling
from headct.detection.scans import Held
from headct.embedding.machine import choose
from headct.failure import Misuse

WIDTH = 48


def task_of(encoder: PretrainedEncoder, vectors: np.ndarray, labels: np.ndarray, train: int, **options: Any) -> Task:
    rows = np.arange(len(vectors))
    return Task(
        encoder=encoder,
        scans=Held(vectors.astype(np.float32)),
        findings=tuple(f"finding {column}" for column in range(labels.shape[1])),
        labels=labels,
        patients=options.get("patients", np.array([f"p{row}" for row in rows])),
        train=rows[:train],
        validation=rows[train:],
        seed=0,
        machine=choose("fp32", "cpu"),
    )


@pytest.fixture
def task(encoder: PretrainedEncoder) -> Task:
    """Two findings that vectors tell in part, one rare; some labels unknown."""
    rng = np.random.default_rng(1)
    assert encoder.scan_width == WIDTH
    vectors = rng.normal(3, 2, (500, WIDTH))
    logits = (vectors - 3) @ rng.normal(0, 0.12, (WIDTH, 2)) * 2 - (0, 2)
    labels = (rng.logistic(size=logits.shape) < logits).astype(float)
    labels[rng.uniform(size=labels.shape) < 0.2] = np.nan
    return task_of(encoder, vectors, labels, 300)


def test_linear_is_scikit_learns_regression_on_known_labels(task: Task) -> None:
    found = Linear(candidates=(10.0,)).fit(task)
    scores = found.scores(task.scans, task.validation)
    for column in range(2):
        known = task.train[np.isfinite(task.labels[task.train, column])]
        scale = StandardScaler().fit(task.scans.vectors(task.known(task.train)))
        divided = make_pipeline(scale, LogisticRegression(C=10.0 / WIDTH, class_weight="balanced", max_iter=5000))
        y = task.labels[known, column]
        divided[-1].fit(scale.transform(task.scans.vectors(known)), y)
        wanted = divided.decision_function(task.scans.vectors(task.validation)) + np.log(y.mean() / (1 - y.mean()))
        np.testing.assert_allclose(scores[:, column], wanted, atol=2e-2)  # where each stops
        assert np.corrcoef(scores[:, column], wanted)[0, 1] > 0.99999


def test_linear_goes_on_to_the_optimum(encoder: PretrainedEncoder) -> None:
    """Oracle: scikit-learn's Newton steps with exact second derivatives, to where the gradient is nothing."""
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(8000, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH))
    labels = (rng.logistic(size=8000) < vectors[:, 0] / 3 - 2).astype(float)
    task = task_of(encoder, vectors, labels[:, None], 8000)
    found = Linear(candidates=(100.0,)).fit(task)
    model = LogisticRegression(C=100.0, class_weight="balanced", solver="newton-cholesky", tol=1e-10)
    wanted = model.fit(found.scaling(task.scans.vectors(task.train)), labels).coef_[0]
    x = found.scaling(task.scans.vectors(task.train))
    np.testing.assert_allclose(x @ found.weights[0], x @ wanted, atol=0.05)


@pytest.mark.parametrize("scans_each", [1, 3])
def test_folds_share_out_patients_and_positive_ones_evenly(scans_each: int) -> None:
    rng = np.random.default_rng(4)
    patients = rng.permutation(np.repeat([f"p{number}" for number in range(83)], scans_each))
    y = np.isin(patients, [f"p{number}" for number in range(17)]) & (rng.uniform(size=len(patients)) < 0.7)
    folds = pd.DataFrame({"patient": patients, "fold": _folds(y.astype(int), patients, 5, rng), "positive": y})
    assert (folds.groupby("patient")["fold"].nunique() == 1).all()
    each = folds.groupby("patient").agg({"fold": "first", "positive": "max"}).groupby("fold")["positive"]
    assert np.ptp(each.size()) <= 1
    assert np.ptp(each.sum()) <= 1
    assert len(each) == 5


def test_choosing_a_penalty_does_nothing_patient_by_patient(encoder: PretrainedEncoder) -> None:
    """Four times the patients cost no more calls but for what the solver needs: hundreds, not one for each."""

    def calls(n: int) -> int:
        rng, count = np.random.default_rng(0), 0

        def seen(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event == "call"

        y = rng.integers(0, 2, n)
        patients = np.array([f"p{row}" for row in range(n)])
        sys.setprofile(seen)
        try:
            Linear(candidates=(1.0,))._choose(rng.normal(size=(n, 4)), y, patients, 0)
        finally:
            sys.setprofile(None)
        return count

    calls(100)  # what is called once only
    assert calls(1600) - calls(400) < 1200


def test_scaling_clips_and_leaves_out_what_never_changes() -> None:
    vectors = np.random.default_rng(0).normal(5, 3, (200, 4))
    vectors[:, 2] = 7.25
    scaling = Scaling.of(vectors)
    scaled = scaling(np.vstack([vectors, [1e9, 5, 8, -1e9]]))
    np.testing.assert_allclose(scaled[:200, [0, 1, 3]], StandardScaler().fit_transform(vectors)[:, [0, 1, 3]] / 2)
    np.testing.assert_allclose(scaled[-1, [0, 2, 3]], [3, 0, -3])


def test_the_penalty_is_chosen_and_by_patient(task: Task, encoder: PretrainedEncoder) -> None:
    """Noise asks for a strong penalty; copies of a patient in other folds would make a weak one look right."""
    chosen = Linear().fit(task).facts["C"]
    assert set(chosen.values()) <= set(Linear().candidates)
    rng = np.random.default_rng(2)
    vectors, labels = rng.normal(size=(40, WIDTH)), rng.integers(0, 2, (40, 1)).astype(float)
    four = {"vectors": np.repeat(vectors, 4, axis=0), "labels": np.repeat(labels, 4, axis=0), "train": 160}
    grouped = task_of(encoder, **four, patients=np.repeat([f"p{row}" for row in range(40)], 4))
    loose = task_of(encoder, **four)
    assert Linear().fit(grouped).facts["C"]["finding 0"] <= 1.0
    assert Linear().fit(loose).facts["C"]["finding 0"] == 100.0


def test_one_patient_of_a_class_is_enough_to_learn_and_too_few_to_choose(encoder: PretrainedEncoder) -> None:
    vectors = np.random.default_rng(0).normal(size=(6, WIDTH))
    found = Linear().fit(task_of(encoder, vectors, np.array([[1.0], [0], [0], [0], [0], [0]]), 6))
    assert found.facts["C"] == {"finding 0": Linear().fallback}


def test_knn_is_the_vote_of_the_nearest_known_scans(task: Task) -> None:
    """The same by a loop over scans."""
    settings = Knn(neighbours=7)
    scores = settings.fit(task).scores(task.scans, task.validation)
    seen = task.scans.vectors(task.known(task.train)).astype(np.float64)
    mean = seen.mean(axis=0)
    for row, column in ((0, 0), (3, 1), (199, 0), (150, 1)):
        query = task.scans.vectors(task.validation[row : row + 1])[0] - mean
        votes = []
        for other in task.train:
            label = task.labels[other, column]
            if np.isfinite(label):
                vector = task.scans.vectors(np.array([other]))[0] - mean
                votes.append((vector @ query / np.linalg.norm(vector) / np.linalg.norm(query), label))
        prevalence = np.mean([label for _, label in votes])
        nearest = sorted(votes, reverse=True)[:7]
        weights = np.array([np.exp(cosine / settings.temperature) for cosine, _ in nearest])
        positive = 7 * (weights * [label for _, label in nearest]).sum() / weights.sum()
        share = (positive + 2 * prevalence) / 9
        assert scores[row, column] == pytest.approx(np.log(share / (1 - share)), abs=1e-4)


@pytest.mark.parametrize("settings", [Linear(), Knn()])
def test_what_was_learned_is_useful_and_the_same_after_restoring(settings: Linear | Knn, task: Task) -> None:
    found = settings.fit(task)
    scores = found.scores(task.scans, task.validation)
    for column in range(2):
        known = np.isfinite(task.labels[task.validation, column])
        assert roc_auc_score(task.labels[task.validation, column][known], scores[known, column]) > 0.65
    again = type(found).restore(
        task.encoder, task.findings, found.settings(), found.tensors(), found.facts, task.machine
    )
    np.testing.assert_array_equal(again.scores(task.scans, task.validation), scores)
    one_by_one = [again.scores(task.scans, task.validation[row : row + 1])[0] for row in range(5)]
    np.testing.assert_allclose(one_by_one, scores[:5], atol=1e-9)
    tensors = {**found.tensors(), "mean": found.tensors()["mean"][:-1]}
    if isinstance(found, FittedKnn):
        with pytest.raises(ValueError, match="do not fit"):
            FittedKnn.restore(task.encoder, task.findings, found.settings(), tensors, found.facts, task.machine)
    else:
        with pytest.raises(ValueError, match="do not fit"):
            FittedLinear.restore(task.encoder, ("one",), {}, found.tensors(), {}, task.machine)


@pytest.mark.parametrize("settings", [Linear(), Knn()])
def test_a_single_class_is_refused(settings: Linear | Knn, task: Task) -> None:
    labels = task.labels.copy()
    labels[task.train, 1] = np.where(labels[task.train, 1] == 1, np.nan, labels[task.train, 1])
    with pytest.raises(Misuse, match="finding 1 cannot be learned: of the training scans 0 have it"):
        settings.fit(replace(task, labels=labels))


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_is_found_by_its_name(name: str) -> None:
    assert fitted(name).method == name
    assert hasattr(method(name), "fit")


def test_an_unknown_method_suggests_its_nearest() -> None:
    with pytest.raises(Misuse, match=r"no method is called 'liner'\n  do:  did you mean linear\?"):
        method("liner")


def test_findings_of_a_side_change_places_in_a_mirror() -> None:
    assert mirrored(("ich", "left", "right", "bleed_left", "BleedLocation-Right", "bleed_RIGHT")) == (0, 2, 1, 5, -1, 3)
    assert mirrored(("leftover", "bright")) == (0, 1)
