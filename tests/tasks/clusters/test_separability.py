"""What a straight cut tells apart. Oracles: worlds whose truth is known, and scikit-learn's own area."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

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
