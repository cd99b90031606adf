"""What a straight cut tells apart. Oracles: worlds whose truth is known, and scikit-learn's own area."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headct.evaluation.intervals import hanley_mcneil
from headct.failure import Misuse
from headct.tasks.clusters import separability


def world(patients: int, signal: float, *, classes: int = 2, scans_each: int = 1, seed: int = 0):
    """Vectors of which one direction a class holds the signal; scans of a patient share everything but a trace."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat(rng.integers(0, classes, patients), scans_each)
    vectors = np.repeat(rng.normal(size=(patients, 12)), scans_each, axis=0)
    vectors += 0.01 * rng.normal(size=vectors.shape)
    for kind in range(classes):
        vectors[kinds == kind, kind] += signal
    names = np.array(["GE", "Philips", "Siemens", "Canon"])[kinds]
    return vectors, names, np.repeat(np.arange(patients), scans_each).astype(str)


def test_two_normal_clouds_as_theory_has_them() -> None:
    """Clouds whose middles lie d apart have the area Phi(d / sqrt 2); here d = sqrt 2."""
    found = separability("site", *world(1500, 1.0))
    expected = norm.cdf(1.0)
    assert found.auroc.value == pytest.approx(expected, abs=0.025)
    assert found.auroc.low < expected < found.auroc.high
    assert found.accuracy.value == pytest.approx(norm.cdf(np.sqrt(2) / 2), abs=0.03)


def test_intervals_hold_one_half_where_there_is_nothing_to_tell() -> None:
    """Labels by a coin, in 200 worlds: 95 % of the intervals should hold 0.5; of five folds pooled 87 % did."""
    rng = np.random.default_rng(0)
    kinds, patients = np.arange(60) % 2, np.arange(60).astype(str)
    names, held, right = np.array(["site-a", "site-b"])[kinds], 0, 0
    for seed in range(200):
        found = separability("site", rng.normal(size=(60, 32)), names, patients, seed=seed)
        held += found.auroc.low <= 0.5 <= found.auroc.high
        right += found.accuracy.low <= 0.5 <= found.accuracy.high
    assert 186 <= held <= 198
    assert right >= 186


def test_the_area_is_the_mean_of_both_halves_and_as_sure_as_one() -> None:
    """Oracle: scikit-learn's area of each half; the interval is as wide as that of one half's share of patients."""
    vectors, names, patients = world(400, 0.7)
    found = separability("site", vectors, names, patients)
    kind = names == np.unique(names)[1]
    areas = []
    for train, test in StratifiedGroupKFold(2, shuffle=True, random_state=0).split(vectors, names, patients):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(vectors[train], kind[train])
        areas.append(roc_auc_score(kind[test], model.decision_function(vectors[test])))
    assert found.auroc.value == pytest.approx(np.mean(areas), abs=1e-6)
    half = np.sqrt(np.mean([hanley_mcneil(area, 100, 100) for area in areas]))
    assert found.auroc.high - found.auroc.low == pytest.approx(2 * 1.96 * half, rel=0.15)
    assert found.auroc.method.startswith("mean of two halves of patients")


def test_a_class_of_five_patients_is_in_both_halves() -> None:
    vectors, _, _ = world(60, 0.0)
    patients = np.arange(60).astype(str)
    names = np.where(np.arange(60) < 5, "rare", "common")
    found = separability("site", vectors, names, patients)
    assert found.classes == {"common": 55, "rare": 5}
    assert found.auroc.low < 0.5 < found.auroc.high


def test_several_scans_of_a_patient_are_held_out_together() -> None:
    """Every patient has five near copies: with one of them in training, labels at random would be told apart."""
    vectors, names, patients = world(80, 0.0, scans_each=5)
    found = separability("site", vectors, names, patients)
    assert found.auroc.value == pytest.approx(0.5, abs=0.15)
    leaky = separability("site", vectors, names, np.arange(len(names)).astype(str))
    assert leaky.auroc.low > 0.6
    once = separability("site", *world(80, 0.0))
    assert found.auroc.high - found.auroc.low > 0.7 * (once.auroc.high - once.auroc.low)


def test_several_classes_and_who_is_left_out() -> None:
    vectors, names, patients = world(240, 4.0, classes=4)
    names = names.astype(object)
    names[:10] = ""
    names[10:13] = "Hitachi"
    found = separability("manufacturer", vectors, names.astype(str), patients)
    assert set(found.classes) == {"GE", "Philips", "Siemens", "Canon"}
    assert found.left_out == 13
    assert found.auroc.value > 0.95
    assert found.accuracy.value > 0.9
    assert found.commonest == pytest.approx(max(found.classes.values()) / 227)
    assert found.accuracy.low > found.commonest


def test_what_cannot_be_told_apart() -> None:
    vectors, names, patients = world(30, 1.0)
    with pytest.raises(Misuse, match="site cannot be told apart: it is the same for all"):
        separability("site", vectors, np.full(30, "site-a"), patients)
    with pytest.raises(Misuse, match="too few patients") as caught:
        separability("site", vectors, np.where(np.arange(30) < 4, "site-b", "site-a"), patients)
    assert caught.value.why == "patients: 26 of site-a, 4 of site-b; two classes need 5 each"
    of_few, words = np.where(np.arange(30) < 4, "1", "0"), {"1": "with it", "0": "without it"}
    with pytest.raises(Misuse, match="too few patients") as caught:
        separability("epidural hematoma", vectors, of_few, patients, words=words)
    assert caught.value.why == "patients: 26 without it, 4 with it; two classes need 5 each"
    with pytest.raises(Misuse, match="site cannot be told apart: it is unknown for all"):
        separability("site", vectors, np.full(30, ""), patients)
    assert len(names) == 30
