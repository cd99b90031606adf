"""Logits to probabilities. Oracles: the temperature's closed form, scikit-learn's logistic regression on Platt's
targets, and simulation.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve

from headct.detection.calibration import RIDGE, Calibration, calibrate, operating_points, temperature


def sample(seed: int, count: int, slope: float = 0.5, shift: float = -1.0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits whose true probability is sigmoid(slope * logit + shift)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, count)
    labels = (rng.uniform(size=count) < expit(slope * logits + shift)).astype(float)
    return logits, labels, [f"p{row}" for row in range(count)]


def platts(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities by scikit-learn: a scan of target t is one with the finding of weight t, one without of 1 - t."""
    positive, negative = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    z = ((logits - logits.mean()) / logits.std())[:, None]
    model = LogisticRegression(C=1 / RIDGE, tol=1e-10, max_iter=1000)
    both, truth = np.concatenate([z, z]), np.repeat([1, 0], len(z))
    model.fit(both, truth, sample_weight=np.concatenate([target, 1 - target]))
    found: np.ndarray = model.predict_proba(z)[:, 1]
    return found


def test_the_temperature_is_where_the_gradient_is_zero() -> None:
    logits, labels, _ = sample(0, 500, shift=0)
    found = temperature(logits, labels)
    assert ((expit(logits / found) - labels) * logits).sum() == pytest.approx(0, abs=1e-6)
    assert found == pytest.approx(2, abs=0.4)
    # Two values of a logit, x and -x, right in a share q of cases: sigmoid(x / T) = q, so T = x / log(q / (1 - q)).
    logits, labels = np.array([3.0, 3, 3, 3, -3, -3, -3, -3]), np.array([1.0, 1, 1, 0, 0, 0, 0, 1])
    assert temperature(logits, labels) == pytest.approx(3 / np.log(3))


def test_the_temperature_of_useless_and_of_perfect_logits() -> None:
    assert temperature(np.array([1.0, -1]), np.array([0.0, 1])) == np.inf
    assert temperature(np.array([1.0, -1]), np.array([1.0, 0])) < 0.01


def test_slope_and_shift_are_platts() -> None:
    logits, labels, patients = sample(1, 300)
    found = calibrate(logits, labels, patients, seed=0, kind="temperature")
    np.testing.assert_allclose(found(logits)[0], platts(logits, labels), atol=1e-5)
    assert found.slope == pytest.approx(0.5, abs=0.12)
    assert found.shift == pytest.approx(-1, abs=0.35)


def test_the_scale_of_scores_does_not_matter() -> None:
    logits, labels, patients = sample(2, 200)
    one = calibrate(logits, labels, patients, seed=0)(logits)
    for scale in (1e-4, 1e5):
        other = calibrate(scale * logits, labels, patients, seed=0)(scale * logits)
        np.testing.assert_allclose(one, other, atol=1e-8)


@pytest.mark.parametrize("seed", [3, 13])
def test_a_scan_far_from_all_others_does_not_keep_the_slope_from_being_found(seed: int) -> None:
    """Full steps of Newton's method go to and fro there for ever, 0.8 from Platt's probabilities."""
    logits, labels, patients = sample(seed, 300, slope=0.05, shift=-2.5)
    logits[0], labels[0] = 120.0, 1.0
    found = calibrate(logits, labels, patients, seed=0, kind="temperature")
    np.testing.assert_allclose(found(logits)[0], platts(logits, labels), atol=1e-5)


def test_intervals_hold_the_true_probability_as_often_as_they_say() -> None:
    """95 %, in 100 validation sets of 150 patients."""
    at = np.array([-3.0, -1, 0, 1, 3])
    held = []
    for seed in range(100):
        _, low, high = calibrate(*sample(seed, 150), seed=seed, kind="temperature")(at)
        held.append((low <= expit(0.5 * at - 1)) & (expit(0.5 * at - 1) <= high))
    assert 0.9 < np.mean(held) < 0.99


def test_scans_of_one_patient_are_not_several_witnesses() -> None:
    logits, labels, patients = sample(3, 60)
    five = calibrate(np.repeat(logits, 5), np.repeat(labels, 5), list(np.repeat(patients, 5)), seed=0)
    lone = calibrate(np.repeat(logits, 5), np.repeat(labels, 5), [f"p{row}" for row in range(300)], seed=0)
    width = {name: float(np.diff(one(np.zeros(1))[1:], axis=0)[0, 0]) for name, one in (("5", five), ("1", lone))}
    assert width["5"] > 1.8 * width["1"]


def test_a_few_scans_that_are_all_right_give_no_certainty() -> None:
    found = calibrate(np.array([-9.0, -8, 8, 9]), np.array([0.0, 0, 1, 1]), list("abcd"), seed=0)
    middle, low, high = found(np.array([-50.0, 9, 50]))
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert 0.7 < middle[1] < 0.95


def test_scores_that_run_backwards_are_not_turned_round() -> None:
    logits, labels, patients = sample(4, 200)
    found = calibrate(-logits, labels, patients, seed=0)
    middle, *_ = found(np.array([-5.0, 5]))
    assert middle[1] >= middle[0]
    np.testing.assert_allclose(middle, labels.mean(), atol=0.02)


def test_one_class_gives_no_calibration_and_an_interval_that_says_so() -> None:
    found = calibrate(np.array([1.0, 2]), np.zeros(2), list("ab"), seed=0)
    assert found.kind == "none"
    np.testing.assert_array_equal(np.array(found(np.zeros(1)))[:, 0], [0.5, 0, 1])


def test_an_isotonic_curve_is_taken_where_it_is_better_and_there_is_enough() -> None:
    """A step in the true probability, which no slope can follow."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, 3000)
    share = np.where(logits > 3, 0.9, np.where(logits < -1, 0.05, 0.4))
    labels = (rng.uniform(size=3000) < share).astype(float)
    patients = [f"p{row}" for row in range(3000)]
    found = calibrate(logits, labels, patients, seed=0)
    assert found.kind == "isotonic"
    at = np.array([-4.0, 1, 5])
    middle, low, high = found(at)
    np.testing.assert_allclose(middle, [0.05, 0.4, 0.9], atol=0.06)
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert calibrate(logits[:300], labels[:300], patients[:300], seed=0).kind == "temperature"
    assert calibrate(*sample(6, 3000), seed=0).kind == "temperature"


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_what_was_fitted_is_the_same_after_restoring(kind: str) -> None:
    logits, labels, patients = sample(7, 500)
    found = calibrate(logits, labels, patients, seed=0, kind=kind)  # type: ignore[arg-type]
    again = Calibration.restore(found.settings(), found.tensors())
    np.testing.assert_array_equal(again(logits), found(logits))
    with pytest.raises(ValueError, match="no calibration is of the kind"):
        Calibration.restore({**found.settings(), "kind": "magic"}, found.tensors())


def test_operating_points_reach_what_their_names_say() -> None:
    logits, labels, _ = sample(8, 1000)
    p = expit(logits)
    points = operating_points(p, labels)
    sensitivity = {name: float((p[labels == 1] >= cut).mean()) for name, cut in points.items()}
    specificity = {name: float((p[labels == 0] < cut).mean()) for name, cut in points.items()}
    false, true, _ = roc_curve(labels, p)
    assert sensitivity["balanced"] + specificity["balanced"] - 1 == pytest.approx((true - false).max())
    assert sensitivity["sensitive"] >= 0.95
    assert specificity["specific"] >= 0.95
    assert specificity["sensitive"] == pytest.approx(1 - false[true >= 0.95].min())
    assert sensitivity["specific"] == pytest.approx(true[1 - false >= 0.95].max())
    assert operating_points(p, np.ones(1000)) == {}
