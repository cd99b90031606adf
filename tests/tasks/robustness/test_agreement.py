"""Agreement of two measurements: CT-FM's fixture (1e-9), the textbook's table, and a second formula."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from headct.evaluation.measurements import concordance, errors
from headct.failure import Misuse
from headct.tasks.robustness import cosines, icc, ranks

SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
"""The example of Shrout and Fleiss, Psychological Bulletin 86, 1979: six subjects, four judges."""


def test_the_fixture_of_tests_and_retests(shared: Path) -> None:
    arrays = np.load(shared / "fixtures" / "ct-fm" / "tasks.npz")
    manifest = json.loads((shared / "fixtures" / "ct-fm" / "manifest.json").read_text())
    expected = manifest["files"]["tasks.npz"]["info"]["test_retest"]
    first, second = arrays["testretest/a"], arrays["testretest/b"]
    similarity = cosines(first, second)
    assert_allclose(np.diag(similarity), expected["cosine_same"], atol=1e-9)
    others = similarity[~np.eye(len(similarity), dtype=bool)]
    assert others.mean() == pytest.approx(expected["mean_cosine_other"], abs=1e-9)
    assert np.mean(ranks(similarity) == 1) == expected["repeat_retrieval_top1"]
    assert_allclose(((first - second) ** 2).mean(axis=1), expected["mse_per_pair"], atol=1e-9)
    both = [icc(np.stack(pair, axis=1)) for pair in zip(first.T, second.T, strict=True)]
    assert_allclose([one.agreement for one in both], expected["icc2_1_per_dimension"], atol=1e-9)
    assert_allclose([one.consistency for one in both], expected["icc3_1_per_dimension"], atol=1e-9)
    agreed = [concordance(a, b) for a, b in zip(first.T, second.T, strict=True)]
    assert_allclose(agreed, expected["ccc_per_dimension"], atol=1e-9)
    apart = errors(first[:, 0], second[:, 0], "", tolerance=1.0)
    assert apart.bias.value == pytest.approx(expected["bland_altman_dim0"]["bias"], abs=1e-9)
    spread = (apart.agreement[1] - apart.agreement[0]) / 2 / 1.959963984540054
    assert spread == pytest.approx(expected["bland_altman_dim0"]["sd"], abs=1e-9)


def test_the_textbooks_numbers() -> None:
    """0.29 and 0.71; the interval 0.019 to 0.761 is the one that R's psych and irr print for this table."""
    one = icc(SHROUT_FLEISS)
    assert_allclose([one.agreement, one.consistency], [0.29, 0.71], atol=0.005)
    assert_allclose([one.low, one.high], [0.019, 0.761], atol=0.0006)
    assert one.n == 6


def test_a_second_formula_for_two_scans() -> None:
    """With two scans, ICC(2,1) from variances of sum and difference instead of the analysis of variance."""
    rng = np.random.default_rng(4)
    for bias in (0.0, 0.7):
        heads = rng.normal(size=40)
        pair = np.stack([heads + 0.4 * rng.normal(size=40), heads + 0.4 * rng.normal(size=40) + bias], axis=1)
        total, apart = pair.sum(axis=1).var(ddof=1), (pair[:, 0] - pair[:, 1]).var(ddof=1)
        shift = len(pair) * (pair[:, 0] - pair[:, 1]).mean() ** 2
        expected = (total - apart) / (total + apart + 2 * (shift - apart) / len(pair))
        assert icc(pair).agreement == pytest.approx(expected, rel=1e-12)
        assert icc(pair).consistency == pytest.approx((total - apart) / (total + apart), rel=1e-12)


def test_a_constant_difference_lowers_agreement_and_not_consistency() -> None:
    heads = np.random.default_rng(1).normal(size=30)
    pair = np.stack([heads, heads + 2.0], axis=1)
    assert icc(pair).consistency == pytest.approx(1)
    assert icc(pair).agreement < 0.4
    same = icc(np.stack([heads, heads], axis=1))
    assert (same.agreement, same.low, same.high) == (1, 1, 1)


def test_the_interval_covers_the_truth() -> None:
    """400 worlds of 30 heads whose ICC is 0.8: 95 % intervals hold it in 95 %, give or take chance."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        pair = rng.normal(size=(30, 1)) * np.sqrt(0.8) + rng.normal(size=(30, 2)) * np.sqrt(0.2)
        one = icc(pair)
        held += one.low <= 0.8 <= one.high
    assert 0.92 <= held / 400 <= 0.98


def test_ranks_count_ties_against_the_pair() -> None:
    similarity = np.array([[0.9, 0.2, 0.9], [0.1, 0.8, 0.3], [0.5, 0.6, 0.4]])
    assert ranks(similarity).tolist() == [2, 1, 3]
    assert cosines(np.zeros((1, 3)), np.ones((2, 3))).tolist() == [[0, 0]]


def test_what_has_no_intraclass_correlation_is_named() -> None:
    with pytest.raises(Misuse, match="at least 3 heads"):
        icc(np.ones((2, 2)))
    with pytest.raises(Misuse, match="no finite numbers"):
        icc(np.array([[1, 2], [3, np.nan], [4, 5]]))
    assert np.isnan(icc(np.ones((5, 2))).agreement)


def test_heads_that_are_all_alike_and_scans_that_differ_by_a_constant() -> None:
    """Nothing is between heads and nothing is left over: agreement is 0, and consistency is 0 of 0."""
    found = icc(np.array([[0, 1], [0, 1], [0, 1]]))
    assert found.agreement == 0
    assert np.isnan(found.consistency)
