"""Attention over frozen tokens. Oracles: the docstring's loops, a copy with findings in another order, invariants."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from detection.training.heads import task_of
from detection.training.test_finetune import all_rows
from numpy.testing import assert_allclose

from headct.detection.training.attentive import Attentive, FindingQueries, FittedAttentive
from headct.detection.training.loop import Schedule, class_weights, masked_loss, prior_logits, quality
from headct.failure import Misuse

FAST = Schedule(steps=100, batch=8, lr=5e-3, looks=2)


def filled_head(findings: int = 3) -> FindingQueries:
    torch.manual_seed(0)
    head = FindingQueries(6, findings, heads=2, features=4)
    with torch.no_grad():
        head.weight.normal_()
        head.bias.normal_()
        head.mean.normal_()
        head.scale.uniform_(0.5, 2)
    return head


def test_the_head_equals_its_loops() -> None:
    head = filled_head().requires_grad_(False)
    tokens = torch.randn(2, 5, 6)
    ours = head(tokens)
    t = (tokens - head.mean) * head.scale
    for b in range(2):
        for i in range(3):
            logit = float(head.bias[i])
            for h in range(2):
                part = slice(4 * h, 4 * h + 4)
                keys, values = (t[b] @ one.weight[part].T for one in (head.keys, head.values))
                scores = [float(head.queries[i, part] @ keys[n]) / math.sqrt(4) for n in range(5)]
                most = np.exp(np.array(scores) - max(scores))
                found = sum(share * values[n] for n, share in enumerate(most / most.sum()))
                logit += float(head.weight[i, part] @ found)
            assert float(ours[b, i]) == pytest.approx(logit, abs=1e-5)


def test_findings_do_not_depend_on_their_order_or_tokens_on_theirs() -> None:
    head, tokens = filled_head(), torch.randn(2, 5, 6)
    turned = filled_head()
    with torch.no_grad():
        for name in ("queries", "weight", "bias"):
            getattr(turned, name).copy_(getattr(head, name).flip(0))
        torch.testing.assert_close(turned(tokens), head(tokens).flip(1))
        torch.testing.assert_close(head(tokens.flip(1)), head(tokens))


def test_unknown_labels_move_nothing_of_their_finding() -> None:
    head, tokens = filled_head(), torch.randn(4, 5, 6)
    labels = np.array([[1, np.nan, 0], [0, np.nan, 1], [1, np.nan, np.nan], [0, np.nan, 1]], dtype=float)
    masked_loss(head(tokens), labels, np.maximum(class_weights(labels), 1)).backward()
    for name in ("queries", "weight", "bias"):
        gradient = getattr(head, name).grad
        assert not gradient[1].any(), name
        assert gradient[0].any(), name
        assert gradient[2].any(), name


@pytest.mark.parametrize("architecture", ["vit-tiny", "conv-tiny", "slices-tiny"])
def test_it_learns_eight_scans_by_heart_from_tokens_looked_at_once(architecture: str) -> None:
    task = task_of(8, architecture=architecture, validation=0)
    fitted = Attentive(schedule=FAST, hidden=0.0).fit(task)
    assert sorted(task.scans.asked) == list(range(8)), "each array is read once, whatever the number of steps"
    rows = all_rows(task)
    scores = fitted.scores(task.scans, rows)
    found = quality(task.labels, scores - prior_logits(task.labels))
    assert found.auroc == 1.0
    assert found.loss < 0.2
    again = FittedAttentive.restore(
        task.encoder, task.findings, fitted.settings(), fitted.tensors(), fitted.facts, task.machine
    )
    np.testing.assert_array_equal(again.scores(task.scans, rows), scores)
    assert_allclose(fitted.scores(task.scans, rows[::-1])[::-1], scores, atol=1e-4)


def test_the_same_seed_gives_the_same_bits_and_validation_chooses() -> None:
    task = task_of(16)
    method = Attentive(schedule=replace(FAST, steps=40, looks=4))
    first, again = method.fit(task), method.fit(task)
    assert all(torch.equal(one, again.tensors()[name]) for name, one in first.tensors().items())
    looks = first.facts["history"]
    assert first.facts["best_step"] in [row["step"] for row in looks]
    assert max(row["validation_auroc"] for row in looks) >= looks[0]["validation_auroc"] == 0.5
    other = method.fit(replace(task, seed=1))
    assert not torch.equal(other.head.queries, first.head.queries)


def test_tokens_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Misuse, match="more than the 1e-06 allowed"):
        Attentive(cache_gb=1e-6).fit(task_of(8))
    with pytest.raises(Misuse, match="hidden"):
        Attentive(hidden=1.0)
    with pytest.raises(Misuse, match="heads"):
        Attentive(heads=0)
