"""Numbers of neighbours. Oracles: scikit-learn's average precision, and chance by trying every order."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from headct.evaluation.intervals import Patients, wilson
from headct.failure import Misuse
from headct.tasks.retrieval import judging
from headct.tasks.retrieval.judging import (
    Judging,
    Labelled,
    average_precision,
    average_precision_by_chance,
    hit_rate_by_chance,
    judge,
    precision,
)


def test_the_whole_order_as_scikit_learn_has_it() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random((30, 40)) < 0.3
    expected = [average_precision_score(line, -np.arange(40)) for line in hits]
    np.testing.assert_allclose(average_precision(hits, hits.sum(axis=1)), expected, atol=1e-12)


@pytest.mark.parametrize(("size", "relevant"), [(6, 1), (6, 2), (6, 4), (5, 5), (1, 1)])
@pytest.mark.parametrize("k", [1, 2, 4, 9, None])
def test_chance_is_the_mean_over_all_orders(size: int, relevant: int, k: int | None) -> None:
    orders = []
    for places in combinations(range(size), relevant):
        line = np.zeros(size, bool)
        line[list(places)] = True
        orders.append(line)
    hits = np.array(orders)
    of_each = np.full(len(hits), relevant)
    one = np.array([size]), np.array([relevant])
    mean = average_precision(hits, of_each, k).mean()
    assert average_precision_by_chance(*one, k)[0] == pytest.approx(mean, abs=1e-12)
    if k is not None:
        assert hit_rate_by_chance(*one, k)[0] == pytest.approx(hits[:, :k].any(axis=1).mean(), abs=1e-12)


def world(patients: int = 80, scans_each: int = 2, signal: float = 0.0, seed: int = 0) -> Labelled:
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), scans_each)
    labels = np.repeat(rng.random(patients) < 0.3, scans_each).astype(float)
    vectors = np.repeat(rng.normal(size=(patients, 16)), scans_each, axis=0)  # scans of a patient are alike
    vectors += 0.05 * rng.normal(size=vectors.shape)
    vectors[:, 0] += signal * labels
    return Labelled(vectors.astype(np.float32), labels, who.astype(str))


def test_without_signal_there_is_no_gain() -> None:
    """Scans of a patient are near copies with one label: were they looked at, precision at 1 would be 1."""
    gains = [judge(world(seed=seed)).gain["precision_at_1"] for seed in range(20)]
    assert abs(np.mean([gain.value for gain in gains])) < 0.05
    covered = np.mean([gain.low <= 0 <= gain.high for gain in gains])
    assert covered >= 0.75
    signal = judge(world(signal=6.0))
    assert signal.gain["average_precision"].low > 0.3
    assert signal.chance["precision_at_5"] == pytest.approx(0.3, abs=0.1)


def test_two_scans_of_each_patient_add_no_certainty() -> None:
    once, twice = world(scans_each=1), world(scans_each=1)
    doubled = Labelled(*(np.repeat(part, 2, axis=0) for part in (twice.vectors, twice.labels, twice.patients)))
    single, pair = judge(once), judge(doubled)
    width = [one.estimates["average_precision"].high - one.estimates["average_precision"].low for one in (single, pair)]
    assert width[1] == pytest.approx(width[0], rel=0.15)


def test_by_hand() -> None:
    """Four patients on a line; the second scan of the first patient lies closest to it and is passed over."""
    angles = np.radians([0, 1, 10, 20, 40])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels, patients = np.array([1.0, 1, 0, 1, np.nan]), np.array(["a", "a", "b", "c", "d"])
    found = judge(Labelled(vectors, labels, patients), Judging(ks=(1, 2)))
    # queries a, a: b (miss), c (hit); query c: b (miss), a (hit), a (hit)
    assert found.estimates["precision_at_1"].value == 0
    assert found.estimates["precision_at_2"].value == pytest.approx(0.5)
    assert found.estimates["average_precision_at_2"].value == pytest.approx((0.5 + 0.5 + 0.25) / 3)
    assert found.estimates["average_precision"].value == pytest.approx((0.5 + 0.5 + (1 / 2 + 2 / 3) / 2) / 3)
    assert found.as_published["average_precision_of_hits_at_2"] == pytest.approx(0.5)
    assert (found.queries, found.gallery, found.unknown, found.alone) == (3, 4, 1, 0)


def test_queries_that_all_miss_keep_an_open_interval() -> None:
    """Three pairs of a scan with the finding and one without. Wilson's of 0 of 3 ends at z^2 / (3 + z^2)."""
    angles = np.radians([0, 1, 120, 121, 240, 241])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = judge(Labelled(vectors, np.array([1.0, 0, 1, 0, 1, 0]), np.arange(6).astype(str)), Judging(ks=(1,)))
    end, chance = 1.959964**2 / (3 + 1.959964**2), found.chance["precision_at_1"]
    for name in ("precision_at_1", "average_precision_at_1", "hit_rate_at_1"):
        one, gain = found.estimates[name], found.gain[name]
        assert (one.value, one.low) == (0, 0)
        assert one.high == pytest.approx(end, abs=1e-6)
        assert (gain.value, gain.high) == (pytest.approx(-chance), pytest.approx(end - chance, abs=1e-6))
    assert found.against_chance == "not above"


def test_patients_whose_means_are_the_same_keep_an_open_interval() -> None:
    """Two patients, of either one scan that hits and one that misses: Wilson's of one of two."""
    one = judging._mean(np.array([1.0, 0, 0, 1]), Patients.of(np.array(["a", "a", "b", "b"])), 4)
    assert (one.value, one.low, one.high) == (0.5, *wilson(0.5, 2))
    assert one.low < 0.1


def test_what_is_nearer_to_all_others_is_not_above_chance() -> None:
    """Scans with the finding are at right angles to each other, and those without in the middle between them all."""
    vectors = np.concatenate([np.eye(60), np.ones((60, 60))])
    given = Labelled(vectors, np.repeat([1.0, 0.0], 60), np.arange(120).astype(str))
    assert judge(given).against_chance == "not above"
    assert judge(world(signal=6.0)).against_chance == "above"


@pytest.mark.parametrize(("patients", "says"), [(4, "not above"), (5, "above")])
def test_of_fewer_than_five_patients_nothing_is_said(patients: int, says: str) -> None:
    """Neighbours are perfect, but for one query that has a single miss before its hits."""
    angles = np.concatenate([np.linspace(0, 0.1, patients), np.linspace(2, 3, 40)])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    vectors[patients] = vectors[0] * 0.999 + vectors[1] * 0.001
    labels = np.repeat([1.0, 0.0], [patients, 40])
    found = judge(Labelled(vectors, labels, np.arange(len(labels)).astype(str)))
    assert found.gain["average_precision"].low is not None
    assert found.gain["average_precision"].low > 0
    assert found.against_chance == says
    assert found.tree()["counts"]["patients_of_queries"] == patients


def test_order_of_scans_is_of_no_matter() -> None:
    given = world(signal=2.0)
    order = np.random.default_rng(1).permutation(len(given.labels))
    mixed = Labelled(given.vectors[order], given.labels[order], given.patients[order])
    first, second = judge(given), judge(mixed)
    for name, estimate in first.estimates.items():
        assert second.estimates[name].value == pytest.approx(estimate.value, abs=1e-12)


def test_labels_that_nothing_can_be_judged_by() -> None:
    given = world()
    none = Labelled(given.vectors, np.full(len(given.labels), np.nan), given.patients)
    with pytest.raises(Misuse, match="relevant scans of other patients exist for 0 of at least 2"):
        judge(none)
    alone = Labelled(given.vectors, (given.patients == "3").astype(float), given.patients)
    with pytest.raises(Misuse, match="relevant scans of other patients exist for 0 of at least 2") as caught:
        judge(alone)
    assert "2 queries" in caught.value.why
    with pytest.raises(Misuse, match="queries have vectors of 4 numbers, the index of 16"):
        judge(given, queries=Labelled(given.vectors[:, :4], given.labels, given.patients))
    with pytest.raises(Misuse, match="k must be at least 1"):
        Judging(ks=(0, 5))


def test_a_missing_kth_is_a_miss() -> None:
    assert precision(np.array([[True, True]]), 5)[0] == pytest.approx(0.4)
