"""Oracles: SciPy's Wilson interval, the definition of DeLong's and Obuchowski's variances, and what cannot matter.

Coverage is measured by `benchmarks/intervals.py`; a small part of it is a test here.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from scipy.stats import t as student

from headct.evaluation import intervals
from headct.evaluation.comparison import compare, delong, holm, paired_bootstrap
from headct.evaluation.intervals import (
    Area,
    Patients,
    Share,
    from_draws,
    macro_area,
    mean_of,
    of_difference,
    of_quotient,
    wilson,
)
from headct.evaluation.metrics import Ranked
from headct.evaluation.operating import at_threshold


def table(scans: int = 120, patients: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Patients]:
    rng = np.random.default_rng(seed)
    labels = rng.random(scans) < 0.3
    return labels, np.round(rng.normal(size=scans) + labels, 1), Patients(rng.integers(0, patients, scans), patients)


@pytest.mark.parametrize(("hits", "trials"), [(0, 7), (7, 7), (3, 10), (250, 1000)])
def test_wilson_as_scipy(hits: int, trials: int) -> None:
    theirs = binomtest(hits, trials).proportion_ci(method="wilson")
    assert wilson(hits / trials, trials) == pytest.approx((theirs.low, theirs.high))
    share = Share.of(np.arange(trials) < hits, np.ones(trials))
    assert share.limits() == pytest.approx((theirs.low, theirs.high))


def test_the_variance_of_an_area_by_its_definition() -> None:
    """The slow loop over pairs that Obuchowski's formula is written for; with one scan a patient it is DeLong's."""
    labels, scores, several = table()
    for patients in (several, Patients.each(len(labels))):
        positives, negatives = np.flatnonzero(labels), np.flatnonzero(~labels)
        wins = (scores[positives][:, None] > scores[negatives]) + (scores[positives][:, None] == scores[negatives]) / 2
        area, m, n = wins.mean(), len(positives), len(negatives)
        of_positive = {i: wins[row].mean() - area for row, i in enumerate(positives)}
        of_negative = {i: wins[:, row].mean() - area for row, i in enumerate(negatives)}
        sums = [
            [sum(part[i] for i in part if patients.codes[i] == who) for part in (of_positive, of_negative)]
            for who in range(patients.number)
        ]
        few, many = (len({patients.codes[i] for i in part}) for part in (of_positive, of_negative))
        expected = few / (few - 1) * sum(a**2 for a, _ in sums) / m**2
        expected += many / (many - 1) * sum(b**2 for _, b in sums) / n**2
        expected += 2 * np.sqrt(few / (few - 1) * many / (many - 1)) * sum(a * b for a, b in sums) / (m * n)
        ours = Area.of(labels, scores, patients)
        assert ours.value == pytest.approx(area)
        assert ours.variance == pytest.approx(expected)
        assert ours.holders == (few, many)


def test_listing_every_scan_twice_narrows_nothing() -> None:
    labels, scores, _ = table()
    patients = Patients.each(len(labels))
    told = 1 / (1 + np.exp(-scores))
    twice = Patients(np.tile(patients.codes, 2), patients.number)
    assert Area.of(np.tile(labels, 2), np.tile(scores, 2), twice).estimate().low == pytest.approx(
        Area.of(labels, scores, patients).estimate().low
    )
    once = at_threshold(0.5, labels, told, patients, 0.2)
    doubled = at_threshold(0.5, np.tile(labels, 2), np.tile(told, 2), twice, 0.2)
    for name in once:
        assert doubled[name].value == pytest.approx(once[name].value)
        assert doubled[name].high - doubled[name].low >= once[name].high - once[name].low - 1e-9, name
    means = [mean_of(np.tile(told, k), who, positives=1) for k, who in ((1, patients), (2, twice))]
    assert means[0].high == pytest.approx(means[1].high)
    draws = [
        Ranked.of(np.tile(labels, k), np.tile(scores, k)).average_precision(who.weights(50))
        for k, who in ((1, patients), (2, twice))
    ]
    assert draws[0] == pytest.approx(draws[1])


def test_neither_order_nor_names_of_patients_matter() -> None:
    labels, scores, patients = table()
    order = np.random.default_rng(1).permutation(len(labels))
    names = np.array([f"p{code * 7 % 50:02d}" for code in patients.codes])
    once, again = (
        Area.of(labels, scores, patients).estimate(),
        Area.of(labels[order], np.exp(scores[order]), Patients.of(names[order])).estimate(),
    )
    assert (once.low, once.high) == pytest.approx((again.low, again.high))


def test_draws_are_of_patients_with_all_their_scans() -> None:
    patients = Patients.of(["b", "a", "b", "c", "b"])
    weights = patients.weights(200, seed=1)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert np.array_equal(weights, patients.weights(200, seed=1))
    assert not np.array_equal(weights, patients.weights(200, seed=2))


def test_draws_are_the_same_whole_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    patients = Patients.of(["b", "a", "b", "c", "b"])
    monkeypatch.setattr(intervals, "HELD", 16)
    blocks = list(patients.blocks(200, seed=1))
    assert [len(one) for one in blocks] == [3] * 66 + [2]
    assert np.array_equal(np.concatenate(blocks), patients.weights(200, seed=1))


def test_perfect_separation_leaves_the_interval_open() -> None:
    labels = np.arange(20) < 5
    estimate = Area.of(labels, labels.astype(float)).estimate()
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert 0.2 < estimate.low < 0.7
    turned = Area.of(labels, -labels.astype(float)).estimate()
    assert (turned.low, turned.high) == pytest.approx((0.0, 1 - estimate.low))


def test_many_scans_give_delongs_interval() -> None:
    labels, scores, _ = table(20_000)
    area = Area.of(labels, scores)
    half = norm.ppf(0.975) * np.sqrt(area.variance)
    assert (area.estimate().low, area.estimate().high) == pytest.approx(
        (area.value - half, area.value + half), abs=3e-4
    )


def test_a_mean_as_students() -> None:
    values = np.random.default_rng(0).normal(size=30)
    low, high = student.interval(0.95, 29, values.mean(), values.std(ddof=1) / np.sqrt(30))
    ours = mean_of(values, positives=0)
    assert (ours.low, ours.high) == pytest.approx((low, high))


def test_a_difference_of_symmetric_intervals_is_the_usual_one() -> None:
    assert of_difference((5, 4, 6), (2, 1.5, 2.5)) == pytest.approx((3 - np.sqrt(1.25), 3 + np.sqrt(1.25)))
    assert of_difference((5, 4, 6), (2, 1, 3), correlation=1) == pytest.approx((3, 3))


def test_a_quotient_whose_second_is_certain_only_scales() -> None:
    assert of_quotient((0.5, 0.4, 0.7), (0.25, 0.25, 0.25)) == pytest.approx((1.6, 2.8))
    assert of_quotient((0.5, 0.4, 0.7), (0.0, 0.0, 0.1))[1] == np.inf


def test_the_mean_of_one_area_is_that_area_and_of_equal_ones_no_surer() -> None:
    labels, scores, patients = table()
    area = Area.of(labels, scores, patients)
    alone, same = macro_area({"ich": area}), macro_area({"ich": area, "iph": area, "ivh": area})
    assert (alone.low, alone.high) == pytest.approx((area.estimate().low, area.estimate().high))
    assert same.high - same.low == pytest.approx(alone.high - alone.low, rel=1e-3)
    apart = macro_area({"ich": area, "iph": Area.of(*table(seed=5))})
    assert apart.high - apart.low < 0.95 * (alone.high - alone.low)


def test_too_few_draws_that_exist_give_no_interval() -> None:
    estimate = from_draws(0.8, np.array([np.nan] * 60 + [0.8] * 40), rarer=3, n=9, positives=3)
    assert (estimate.value, estimate.low, estimate.high) == (0.8, None, None)


def test_a_model_does_not_differ_from_itself() -> None:
    labels, scores, patients = table()
    area = Area.of(labels, scores, patients)
    assert delong(area, Area.of(labels, 2 * scores + 1, patients)).p == 1
    ours = compare(labels, scores, scores**3, Ranked.average_precision, patients.weights(200))
    assert (ours.estimate.value, ours.estimate.low, ours.estimate.high, ours.p) == (0, 0, 0, 1)


def test_p_values_of_two_equally_good_models_are_uniform() -> None:
    """300 tables of a world without a difference: between 2 and 8 % below 0.05 (5.0 ± 1.26 % is expected)."""
    rng, p_values = np.random.default_rng(0), []
    for _ in range(300):
        labels = np.arange(100) < 40
        signal = rng.normal(size=100) + labels
        first, second = (Area.of(labels, signal + rng.normal(size=100)) for _ in range(2))
        p_values.append(delong(first, second).p)
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.08
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.06)


def test_a_bootstrap_p_value_is_never_0() -> None:
    ours = paired_bootstrap((0.9, np.full(999, 0.9)), (0.5, np.full(999, 0.5)), n=10, positives=5)
    assert ours.p == pytest.approx(2 / 1000)


def test_holm_by_hand() -> None:
    """0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06 (not below the one before), 0.5 x 1."""
    assert holm({"d": 0.5, "a": 0.01, "c": 0.03, "b": 0.02}) == pytest.approx(
        {"d": 0.5, "a": 0.04, "c": 0.06, "b": 0.06}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize(("positives", "negatives", "area"), [(25, 75, 0.7), (25, 75, 0.92), (50, 150, 0.8)])
def test_the_interval_of_an_area_covers_95_percent(positives: int, negatives: int, area: float) -> None:
    """1,000 tables: 93 to 97 %, with two standard deviations (1.4 %) of their own beyond."""
    rng, held = np.random.default_rng(7), 0
    labels = np.arange(positives + negatives) < positives
    for _ in range(1000):
        scores = rng.normal(size=len(labels)) + np.sqrt(2) * norm.ppf(area) * labels
        estimate = Area.of(labels, scores).estimate()
        held += estimate.low <= area <= estimate.high
    assert 0.93 - 0.014 <= held / 1000 <= 0.97 + 0.014
