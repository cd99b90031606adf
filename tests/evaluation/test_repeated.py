"""Means over draws. Oracles: DeLong's test and `macro_area` where there is one draw, and coverage in simulation."""

from __future__ import annotations

import numpy as np
import pytest

from headct.evaluation.comparison import delong
from headct.evaluation.intervals import Area, Patients, macro_area
from headct.evaluation.repeated import difference_over_draws, macro_over_draws, over_draws
from headct.failure import Misuse


def made(rng, shift=1.0, scans=120, positives=40):
    labels = np.repeat([1, 0], [positives, scans - positives])
    return labels, rng.normal(size=scans) + shift * labels


def test_one_draw_and_one_finding_is_delongs_test():
    rng = np.random.default_rng(0)
    labels, scores = made(rng)
    first, second = Area.of(labels, scores), Area.of(labels, scores + rng.normal(size=len(labels)))
    ours, theirs = difference_over_draws([{"ich": first}], [{"ich": second}]), delong(first, second)
    for name in ("value", "low", "high", "n", "positives"):
        assert getattr(ours.estimate, name) == pytest.approx(getattr(theirs.estimate, name), abs=1e-12)
    assert ours.p == pytest.approx(theirs.p, rel=1e-9)
    again = difference_over_draws([{"ich": first}] * 5, [{"ich": second}] * 5)  # the same draw five times adds nothing
    assert again.estimate.low == pytest.approx(theirs.estimate.low, abs=1e-12)


def test_one_draw_is_the_macro_area():
    rng = np.random.default_rng(1)
    labels, scores = made(rng)
    areas = {"ich": Area.of(labels, scores), "tumor": Area.of(rng.permutation(labels), scores)}
    ours, theirs = macro_over_draws([areas]), macro_area(areas)
    assert (ours.value, ours.low, ours.high, ours.n) == pytest.approx((theirs.value, theirs.low, theirs.high, theirs.n))


def test_an_interval_of_many_draws_is_narrower_than_of_few_and_wider_than_of_the_patients_alone():
    rng = np.random.default_rng(2)
    labels, base = made(rng, scans=400, positives=200)
    draws = [{"ich": Area.of(labels, base + rng.normal(scale=2.0, size=400))} for _ in range(20)]
    few, many = macro_over_draws(draws[:4]), macro_over_draws(draws)
    patients = macro_area({"ich": over_draws([draw["ich"] for draw in draws])})
    assert many.high - many.low < few.high - few.low
    assert many.high - many.low > patients.high - patients.low


def test_a_patient_listed_twice_adds_no_certainty():
    rng = np.random.default_rng(3)
    labels, scores = made(rng)
    noise = [rng.normal(size=len(labels)) for _ in range(3)]
    once = [{"ich": Area.of(labels, scores + more)} for more in noise]
    patients = Patients.of(np.tile(np.arange(len(labels)), 2))
    twice = [{"ich": Area.of(np.tile(labels, 2), np.tile(scores + more, 2), patients)} for more in noise]
    assert macro_over_draws(twice).low == pytest.approx(macro_over_draws(once).low, abs=2e-3)


@pytest.mark.parametrize("paired", [False, True])
def test_coverage_over_draws_and_patients(paired):
    """Of 400 worlds in which draws shift how well a model tells, the interval holds the expected value 95 %.

    Binormal: a draw's distance is normal around 1, so its expected area is a mean of Phi(distance / sqrt(2)).
    """
    from scipy.stats import norm

    rng = np.random.default_rng(4)
    distances = rng.normal(1.0, 0.35, 200_000)
    truth = norm.cdf(distances / np.sqrt(2)).mean() - (norm.cdf(0.5 / np.sqrt(2)) if paired else 0.0)
    held = 0
    for _ in range(400):
        labels = np.repeat([1, 0], [40, 60])
        common = rng.normal(size=100)
        draws = [{"ich": Area.of(labels, common + rng.normal(1.0, 0.35) * labels)} for _ in range(5)]
        if paired:
            other = [{"ich": Area.of(labels, rng.permutation(common) + 0.5 * labels)}] * 5
            found = difference_over_draws(draws, other).estimate
        else:
            found = macro_over_draws(draws)
        held += found.low <= truth <= found.high
    assert 0.92 <= held / 400 <= 0.985  # 95 % and three standard errors of 400


def test_what_cannot_be_paired_is_refused():
    rng = np.random.default_rng(5)
    one, other = Area.of(*made(rng)), Area.of(*made(rng, scans=100))
    with pytest.raises(Misuse, match="different scans"):
        over_draws([one, other])
    with pytest.raises(Misuse, match="same findings"):
        macro_over_draws([{"ich": one}, {"tumor": one}])
    with pytest.raises(Misuse, match="paired"):
        difference_over_draws([{"ich": one}] * 2, [{"ich": one}])


def test_perfect_against_constant_is_not_certain():
    """Neither area varies in the table: the interval of the difference must stay open, as each area's own does."""
    labels = np.arange(60) < 5
    perfect, constant = Area.of(labels, labels.astype(float)), Area.of(labels, np.zeros(60))
    for found in (delong(perfect, constant), difference_over_draws([{"ich": perfect}], [{"ich": constant}])):
        assert found.estimate.value == 0.5
        assert found.p > 0
        assert found.estimate.low is not None
        assert found.estimate.low < 0.4
