"""Logits to probabilities. Oracles: scikit-learn's logistic regression on Platt's targets and its measures of order,
and simulation.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from headct.detection.calibration import POINTS, RIDGE, SMOOTH, TARGET, Calibration, Kind, calibrate, operating_points
from headct.evaluation.operating import choose


def sample(seed: int, count: int, slope: float = 0.5, shift: float = -1.0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits whose true probability is sigmoid(slope * logit + shift)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, count)
    labels = (rng.uniform(size=count) < expit(slope * logits + shift)).astype(float)
    return logits, labels, [f"p{row}" for row in range(count)]


def stepped(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits whose true probability is a step, which no slope can follow."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, count)
    share = np.where(logits > 3, 0.9, np.where(logits < -1, 0.05, 0.4))
    return logits, (rng.uniform(size=count) < share).astype(float), [f"p{row}" for row in range(count)]


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


def test_slope_and_shift_are_platts() -> None:
    logits, labels, patients = sample(1, 300)
    found = calibrate(logits, labels, patients, seed=0, kind="platt")
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
    found = calibrate(logits, labels, patients, seed=0, kind="platt")
    np.testing.assert_allclose(found(logits)[0], platts(logits, labels), atol=1e-5)


def test_intervals_hold_the_true_probability_as_often_as_they_say() -> None:
    """95 %, in 100 validation sets of 150 patients."""
    at = np.array([-3.0, -1, 0, 1, 3])
    held = []
    for seed in range(100):
        _, low, high = calibrate(*sample(seed, 150), seed=seed, kind="platt")(at)
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
    logits, labels, patients = stepped(5, 3000)
    found = calibrate(logits, labels, patients, seed=0)
    assert found.kind == "isotonic"
    at = np.array([-4.0, 1, 5])
    middle, low, high = found(at)
    np.testing.assert_allclose(middle, [0.05, 0.4, 0.9], atol=0.06)
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert calibrate(logits[:300], labels[:300], patients[:300], seed=0).kind == "platt"
    assert calibrate(*sample(6, 3000), seed=0).kind == "platt"


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_what_was_fitted_is_the_same_after_restoring(kind: Kind) -> None:
    logits, labels, patients = sample(7, 500)
    found = calibrate(logits, labels, patients, seed=0, kind=kind)
    again = Calibration.restore(found.settings(), found.tensors())
    np.testing.assert_array_equal(again(logits), found(logits))
    with pytest.raises(ValueError, match="no calibration is of the kind"):
        Calibration.restore({**found.settings(), "kind": "magic"}, found.tensors())


@pytest.mark.parametrize("kind", ["platt", "isotonic", None])
def test_the_order_of_scans_is_that_of_their_logits(kind: Kind | None) -> None:
    """Of other scans too, beyond those it was fitted on: an isotonic curve alone has plateaus, on which they tie."""
    found = calibrate(*stepped(9, 2000), seed=0, kind=kind)
    logits, labels, _ = sample(10, 2000)
    p = found(np.append(logits, [-25.0, 25.0]))[0]
    np.testing.assert_array_equal(np.argsort(p), np.argsort(np.append(logits, [-25.0, 25.0])))
    assert len(np.unique(p)) == len(p)
    assert roc_auc_score(labels, p[:-2]) == roc_auc_score(labels, logits)
    assert average_precision_score(labels, p[:-2]) == average_precision_score(labels, logits)


def test_an_isotonic_curve_stays_by_a_thousandth_what_it_was() -> None:
    logits, labels, patients = stepped(11, 3000)
    found = calibrate(logits, labels, patients, seed=0, kind="isotonic")
    assert found.knots is not None
    least = 1 / 3002
    plain = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip").fit(logits, labels)
    at = found.knots[0]
    np.testing.assert_allclose(found(at)[0], plain.predict(at), atol=SMOOTH)
    middle, low, high = found(np.linspace(-9, 9, 200))
    assert (low <= middle).all()
    assert (middle <= high).all()


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


def test_a_detectors_points_are_those_that_tables_choose_on_the_same_scans() -> None:
    for seed in range(20):
        logits, labels, _ = sample(seed, 60)
        p = expit(logits)
        chosen = {name: choose(labels, p, rule, TARGET).threshold for name, rule in POINTS.items()}
        assert operating_points(p, labels) == chosen
    assert dict(POINTS) == {"balanced": "youden", "sensitive": "sensitivity", "specific": "specificity"}


def test_a_validation_set_with_few_positives_gives_no_interval_from_samples_without_any() -> None:
    """Two patients of fifteen have it: one sample in eight holds neither, and from it all scans are alike."""
    logits = np.concatenate([np.linspace(-4, 0, 13), [3.0, 4.0]])
    labels = np.array([0.0] * 13 + [1.0] * 2)
    _, low, _ = calibrate(logits, labels, [f"p{row}" for row in range(15)], seed=0)(logits)
    assert low[-1] > 0.2
    assert low.max() - low.min() > 0.2
