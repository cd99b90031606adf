"""Oracles: scikit-learn on tables with ties and weights, and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve

from headct.evaluation import auroc, average_precision
from headct.evaluation.calibration import decomposition, reliability_curve
from headct.evaluation.metrics import Confusion, Ranked, brier, ece
from headct.failure import Misuse


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of both kinds, scores with many ties, whole weights that leave both kinds in."""
    labels = np.array([1, 0, *draw(st.lists(st.integers(0, 1), max_size=40))])
    number = len(labels)
    scores = np.array(draw(st.lists(st.integers(0, 8), min_size=number, max_size=number))) / 8
    weights = np.array(draw(st.lists(st.integers(0, 3), min_size=number, max_size=number)), dtype=np.uint8)
    weights[:2] = np.maximum(weights[:2], 1)
    return labels, scores, weights


@settings(max_examples=40, deadline=None)
@given(tables())
def test_as_scikit_learn_ties_and_weights_included(table: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, scores, weights = table
    ranked, weight = Ranked.of(labels, scores), weights.astype(float)
    many = np.stack([weights, np.ones_like(weights)])
    assert ranked.auroc(many) == pytest.approx(
        [sklearn.roc_auc_score(labels, scores, sample_weight=weight), auroc(labels, scores)]
    )
    assert auroc(labels, scores) == pytest.approx(sklearn.roc_auc_score(labels, scores))
    assert ranked.average_precision(many) == pytest.approx(
        [sklearn.average_precision_score(labels, scores, sample_weight=weight), average_precision(labels, scores)]
    )
    assert average_precision(labels, scores) == pytest.approx(sklearn.average_precision_score(labels, scores))
    alarms, hits, _ = sklearn.roc_curve(labels, scores, sample_weight=weight, drop_intermediate=False)
    for target in (0.0, 0.5, 0.9, 1.0):
        assert ranked.sensitivity_at(target, weights) == pytest.approx(hits[1 - alarms >= target - 1e-9].max())
        assert ranked.specificity_at(target, weights) == pytest.approx((1 - alarms)[hits >= target - 1e-9].max())
        assert ranked.roc([target], weights) == pytest.approx([ranked.sensitivity_at(target, weights)])
    precision, recall, _ = sklearn.precision_recall_curve(labels, scores, sample_weight=weight)
    for target in (0.0, 0.5, 1.0):
        at = np.flatnonzero((recall >= target - 1e-9) & (recall > 0))[-1]
        assert ranked.precision_at([target], weights) == pytest.approx([precision[at]])
    assert ranked.auroc(weights) == pytest.approx(ranked.auroc(weight))  # whole and broken weights go two ways


@settings(max_examples=30, deadline=None)
@given(tables(), st.sampled_from([0.25, 0.5, 0.7]))
def test_what_a_threshold_does_as_scikit_learn(
    table: tuple[np.ndarray, np.ndarray, np.ndarray], threshold: float
) -> None:
    labels, scores, weights = table
    called, weight = scores >= threshold, weights.astype(float)
    at = Confusion.at(threshold, labels, scores, weights[None])
    cells = sklearn.confusion_matrix(labels, called, sample_weight=weight, labels=[0, 1])
    assert [at.tn[0], at.fp[0], at.fn[0], at.tp[0]] == pytest.approx(cells.ravel().tolist())
    assert at.f1[0] == pytest.approx(sklearn.f1_score(labels, called, sample_weight=weight, zero_division=0))
    assert at.balanced_accuracy[0] == pytest.approx(
        sklearn.balanced_accuracy_score(labels, called, sample_weight=weight)
    )
    assert at.mcc[0] == pytest.approx(sklearn.matthews_corrcoef(labels, called, sample_weight=weight), abs=1e-7)
    assert brier(labels, scores, weights) == pytest.approx(
        sklearn.brier_score_loss(labels, scores, sample_weight=weight)
    )
    assert brier(labels, scores) == pytest.approx(sklearn.brier_score_loss(labels, scores))


@settings(max_examples=50, deadline=None)
@given(tables())
def test_neither_the_order_of_scans_nor_the_scale_of_scores_matters(
    table: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    labels, scores, _ = table
    shuffled = np.random.default_rng(len(labels)).permutation(len(labels))
    for metric in (auroc, average_precision):
        once = metric(labels, scores)
        assert metric(labels[shuffled], scores[shuffled]) == pytest.approx(once)
        assert metric(labels, np.exp(3 * scores) - 7) == pytest.approx(once)
    assert auroc(labels, -scores) == pytest.approx(1 - auroc(labels, scores))
    assert auroc(1 - labels, scores) == pytest.approx(1 - auroc(labels, scores))


def test_a_case_by_hand() -> None:
    """Positives 0.9, 0.6, 0.4, negatives 0.6, 0.3, 0.2, 0.1: of 12 pairs 10 right, one tie; 0.6 is tied."""
    labels, scores = [1, 1, 1, 0, 0, 0, 0], [0.9, 0.6, 0.4, 0.6, 0.3, 0.2, 0.1]
    assert auroc(labels, scores) == pytest.approx((4 + 3.5 + 3) / 12)
    assert average_precision(labels, scores) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    ranked = Ranked.of(labels, scores)
    assert ranked.sensitivity_at(1.0) == pytest.approx(1 / 3)
    assert ranked.sensitivity_at(0.75) == 1
    assert ranked.specificity_at(1.0) == 0.75
    at = Confusion.at(0.6, labels, scores)  # 2 of 3 hit, 1 of 4 false
    assert at.ppv(0.5) == pytest.approx((2 / 3) / (2 / 3 + 1 / 4))
    assert at.npv(0.1) == pytest.approx(0.75 * 0.9 / (0.75 * 0.9 + 0.1 / 3))
    assert at.ppv(3 / 7) == pytest.approx(at.precision)


def test_a_draw_without_positives_is_not_a_number() -> None:
    ranked = Ranked.of([1, 0, 0], [0.9, 0.1, 0.2])
    weights = np.array([[0, 1, 2], [2, 0, 0], [1, 1, 1]], dtype=np.uint8)
    for draws in (
        ranked.auroc(weights),
        ranked.average_precision(weights)[[0, 2, 2]],
        ranked.sensitivity_at(0.9, weights),
        ranked.specificity_at(0.9, weights),
    ):
        assert np.isnan(draws[0])
        assert draws[2] == 1


def test_calibration_as_scikit_learn_and_the_parts_add_up() -> None:
    rng = np.random.default_rng(0)
    told = rng.beta(1, 2, 500)
    labels = rng.random(500) < told**1.5
    curve = reliability_curve(labels, told)
    frequency, probability = calibration_curve(labels, told, n_bins=10)
    assert [b.probability for b in curve] == pytest.approx(probability.tolist())
    assert [b.frequency.value for b in curve] == pytest.approx(frequency.tolist())
    gaps = sum(b.frequency.n * abs(b.frequency.value - b.probability) for b in curve) / 500
    assert ece(labels, told) == pytest.approx(gaps)
    assert ece(labels, told, np.ones((2, 500))) == pytest.approx([gaps, gaps])
    parts = decomposition(labels, told)
    assert parts.brier == pytest.approx(sklearn.brier_score_loss(labels, told))
    assert parts.reliability - parts.resolution + parts.uncertainty - parts.within == pytest.approx(parts.brier)


def test_perfectly_calibrated_bins_cost_nothing() -> None:
    parts = decomposition([1, 0, 0, 0, 1, 1, 1, 0], [0.25] * 4 + [0.75] * 4)
    assert (parts.reliability, parts.within) == pytest.approx((0, 0))
    assert parts.resolution == pytest.approx(0.0625)


@pytest.mark.parametrize(
    ("labels", "scores", "says"),
    [
        ([1, 1], [0.1, 0.2], "all 2 labels are 1"),
        ([0, 0], [0.1, 0.2], "all 2 labels are 0"),
        ([], [], "there are no labels"),
        ([1, np.nan], [0.1, 0.2], "neither 1 nor 0"),
        ([1, 2], [0.1, 0.2], "neither 1 nor 0"),
        ([1, 0], [0.1, np.nan], "1 of 2"),
        ([1, 0], [0.1], "do not go with"),
    ],
)
def test_what_has_no_area_says_why(labels: list[float], scores: list[float], says: str) -> None:
    with pytest.raises(Misuse, match=says):
        auroc(labels, scores)
