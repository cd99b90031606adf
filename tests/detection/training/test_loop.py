"""The loop of trained methods. Oracles: the loops and formulas of docstrings, scikit-learn, and invariants."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from detection.training.heads import task_of
from numpy.testing import assert_allclose
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from headct.detection.training.loop import (
    Course,
    Quality,
    Schedule,
    Weights,
    class_weights,
    masked_loss,
    prior_logits,
    quality,
    taught,
    train,
)
from headct.failure import Failure, Misuse

NAN = math.nan
LABELS = np.array([[1, 0, NAN], [0, 0, 1], [0, NAN, 0], [0, 1, NAN], [NAN, NAN, 1]])


def test_either_class_of_each_finding_weighs_the_same() -> None:
    weights = class_weights(LABELS)
    for finding in range(3):
        for value in (0, 1):
            assert weights[value, finding] * (LABELS[:, finding] == value).sum() == pytest.approx(len(LABELS) / 2)
    assert not class_weights(np.array([[1, NAN], [1, NAN]])).any()


def test_the_loss_equals_its_loop() -> None:
    logits = np.random.default_rng(0).normal(size=LABELS.shape) * 3
    weights = class_weights(LABELS)
    total = 0.0
    for b in range(5):
        for i in range(3):
            if not math.isnan(y := LABELS[b, i]):
                total += weights[int(y), i] * (math.log1p(math.exp(logits[b, i])) - y * logits[b, i])
    assert float(masked_loss(torch.from_numpy(logits), LABELS, weights)) == pytest.approx(total / 15, rel=1e-6)
    known = np.isfinite(LABELS)
    chances = 1 / (1 + np.exp(-logits))
    balanced = [
        log_loss(y := LABELS[known[:, i], i], chances[known[:, i], i], sample_weight=weights[y.astype(int), i])
        for i in range(3)
    ]
    assert float(masked_loss(torch.from_numpy(logits), LABELS, weights)) == pytest.approx(np.mean(balanced), rel=1e-6)


def test_unknown_labels_have_no_gradient_and_no_weight_in_the_mean() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = masked_loss(logits, LABELS, class_weights(LABELS))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[torch.from_numpy(np.isnan(LABELS))] == 0).all()
    assert (gradient[torch.from_numpy(np.isfinite(LABELS))] != 0).all()
    others = np.hstack([LABELS, np.full((5, 1), NAN)])
    wider = torch.cat([logits.detach(), torch.full((5, 1), 1e4)], dim=1)
    assert float(masked_loss(wider, others, class_weights(others))) == pytest.approx(float(loss.detach()))


def test_the_prior_is_what_a_constant_would_learn() -> None:
    assert_allclose(1 / (1 + np.exp(-prior_logits(LABELS))), [1 / 4, 1 / 3, 2 / 3])


def test_quality_leaves_out_findings_without_both_labels() -> None:
    labels = np.array([[1, 1, NAN], [0, 1, NAN], [1, 1, 0], [0, NAN, NAN]])
    scores = np.random.default_rng(1).normal(size=labels.shape)
    found = quality(labels, scores)
    assert found.auroc == roc_auc_score(labels[:, 0], scores[:, 0])
    assert math.isfinite(found.loss)
    assert math.isnan(quality(labels[:, 1:], scores[:, 1:]).loss)


def test_the_area_decides_and_then_the_loss() -> None:
    assert Quality(0.8, 0.9).beats(Quality(0.7, 0.1))
    assert not Quality(0.7, 0.1).beats(Quality(0.8, 0.9))
    assert Quality(0.8, 0.1).beats(Quality(0.8, 0.2))
    assert not Quality(0.8, 0.2).beats(Quality(0.8, 0.2))


class Linear(nn.Module):
    """Logits of the mean intensities of octants, from no more than a few weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, octants: torch.Tensor) -> torch.Tensor:
        return self.linear(octants)


def run(task_seed: int = 0, *, validation: int = 8, **schedule: float) -> tuple[Linear, Course]:
    task = replace(task_of(24, validation=validation), seed=task_seed)
    octants = torch.from_numpy(task.scans.hu).float().clamp(0, 80).reshape(24, 2, 8, 2, 8, 2, 8).mean(dim=(2, 4, 6))
    octants = octants.flatten(1) / 40
    network, outside = Linear(), torch.get_rng_state()
    course = train(
        network,
        [Weights(list(network.parameters()))],
        lambda rows, rng: ((octants[rows],), task.labels[rows]),
        lambda rows: (octants[rows],),
        task,
        Schedule(**{"steps": 60, "lr": 0.3, "looks": 6, **schedule}),
        lambda done, total: None,
    )
    assert torch.equal(torch.get_rng_state(), outside)
    return network, course


def test_it_learns_and_keeps_what_validation_liked_best() -> None:
    network, course = run(patience=100)
    looks = {row["step"]: row for row in course.history}
    assert list(looks) == [0, 10, 20, 30, 40, 50, 60]
    best = max(looks.values(), key=lambda row: (row["validation_auroc"], -row["validation_loss"]))
    assert course.best_step == best["step"]
    assert best["validation_auroc"] > 0.9 > looks[0]["validation_auroc"]
    assert not network.training
    assert course.chosen_by == "auroc, then loss"


def test_it_ends_when_waiting_is_in_vain() -> None:
    _, course = run(patience=1, lr=1e-9)
    assert course.steps < 60


def test_a_large_set_gets_the_steps_to_be_seen() -> None:
    schedule = Schedule(steps=200, epochs=5.0, batch=8)
    assert [schedule.length(scans) for scans in (4, 320, 321, 100_000)] == [200, 200, 201, 62_500]


def test_without_validation_the_last_weights_stay() -> None:
    network, course = run(validation=0)
    assert course.best_step == course.steps == 60
    assert course.chosen_by == "the last step"
    assert network.linear.weight.abs().sum() > 0


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    first, again, other = (run(seed, validation=0)[0].linear.weight for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_divergence_says_what_to_do() -> None:
    task = task_of(12)
    network = nn.Linear(1, 2)

    def examples(rows: np.ndarray, rng: np.random.Generator) -> tuple[tuple[torch.Tensor], np.ndarray]:
        return (torch.full((len(rows), 1), torch.inf),), task.labels[rows]

    with pytest.raises(Failure, match="diverged before step 10") as caught:
        train(
            network,
            [Weights(list(network.parameters()))],
            examples,
            lambda rows: (torch.zeros(len(rows), 1),),
            task,
            Schedule(),
            lambda done, total: None,
        )
    assert "lower lr" in caught.value.do


def test_labels_that_teach_nothing_and_settings_without_sense_are_refused() -> None:
    labels = np.array([[1, 0], [1, 1], [NAN, NAN]] * 4)
    with pytest.raises(Misuse, match="ich cannot be learned"):
        taught(task_of(12, labels=labels))
    with pytest.raises(Misuse, match="steps must be above zero"):
        Schedule(steps=0)
    with pytest.raises(Misuse, match="must not be negative"):
        Schedule(epochs=-1)
    with pytest.raises(Misuse, match="warmup must lie in"):
        Schedule(warmup=2.0)
