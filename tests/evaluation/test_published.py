"""Oracle: `head_ct_metrics.json`, recomputed by others from two published tables of predictions.

All of its metrics, DeLong's tests, bootstrap intervals and McNemar's tests. Left out are what its own list calls
invalid: intervals of an area as if it were a proportion of n, and rank tests of raw probabilities. The scans that its
bootstrap drew are drawn again as it says, so that everything is exact to rounding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headct.evaluation.comparison import delong, mcnemar, paired_bootstrap
from headct.evaluation.intervals import Area, Z
from headct.evaluation.metrics import Confusion, Ranked, brier
from headct.evaluation.operating import choose

SEED = 20250115
SETS = {"SinoCT": "triage_sinoct.csv", "CQ500": "triage_cq500.csv"}


@pytest.fixture(scope="module", params=list(SETS))
def published(request: pytest.FixtureRequest, shared: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    folder = shared / "fixtures" / "ct-fm"
    numbers = json.loads((folder / "head_ct_metrics.json").read_text())["datasets"][request.param]
    return pd.read_csv(folder / SETS[request.param]), numbers


@pytest.fixture(scope="module")
def weights(published: tuple[pd.DataFrame, dict[str, Any]]) -> np.ndarray:
    """2,000 draws of scans, positives and negatives apart, as the oracle draws them."""
    labels = published[0]["label"].to_numpy()
    rng, drawn = np.random.default_rng(SEED), np.zeros((2000, len(labels)), dtype=np.uint8)
    kinds = [np.flatnonzero(labels == kind) for kind in (1, 0)]
    for row in drawn:
        for of_kind in kinds:
            row[of_kind] = np.bincount(rng.integers(0, len(of_kind), len(of_kind)), minlength=len(of_kind))
    return drawn


def test_counts(published: tuple[pd.DataFrame, dict[str, Any]]) -> None:
    table, numbers = published
    assert len(numbers["systems"]) == 12
    always = Confusion.at(-np.inf, table["label"], table["ct_fm_100pct"])
    assert (always.tp, always.fp) == (numbers["positives"], numbers["negatives"])
    assert always.prevalence == pytest.approx(numbers["prevalence"], abs=1e-12)
    assert always.f1 == pytest.approx(numbers["all_positive_f1"], abs=1e-12)


def test_metrics(published: tuple[pd.DataFrame, dict[str, Any]]) -> None:
    table, numbers = published
    labels = table["label"]
    for system, theirs in numbers["systems"].items():
        scores = table[system]
        area, ranked, at = Area.of(labels, scores), Ranked.of(labels, scores), Confusion.at(0.5, labels, scores)
        assert area.value == pytest.approx(theirs["auroc"], abs=1e-12)
        assert np.sqrt(area.variance) == pytest.approx(theirs["auroc_delong_se"], abs=1e-12)
        half = Z * np.sqrt(area.variance)
        assert [area.value - half, area.value + half] == pytest.approx(theirs["auroc_delong_ci"], abs=1e-9)
        assert ranked.average_precision() == pytest.approx(theirs["average_precision"], abs=1e-12)
        assert [at.tp, at.fp, at.fn, at.tn] == [theirs[cell] for cell in ("tp", "fp", "fn", "tn")]
        for name in ("sensitivity", "specificity", "f1", "balanced_accuracy", "accuracy", "mcc"):
            assert getattr(at, name) == pytest.approx(theirs[name], abs=1e-12), (system, name)
        called = at.tp + at.fp > 0
        assert (at.precision if called else 0.0) == pytest.approx(theirs["precision"], abs=1e-12)  # theirs: 0 of 0 is 0
        assert brier(labels, scores) == pytest.approx(theirs["brier"], abs=1e-12)


def test_the_best_f1_of_a_threshold(published: tuple[pd.DataFrame, dict[str, Any]]) -> None:
    """Theirs is positive *above* one of some scores of the table: it is had there, and the best of all is no lower."""
    table, numbers = published
    for system, theirs in numbers["systems"].items():
        above = np.nextafter(theirs["oracle_threshold"], 1)
        there = Confusion.at(above, table["label"], table[system])
        assert there.f1 == pytest.approx(theirs["oracle_best_f1_on_this_table"], abs=1e-12)
        point = choose(table["label"], table[system], "f1")
        assert Confusion.at(point.threshold, table["label"], table[system]).f1 >= there.f1


def test_bootstrap_intervals(published: tuple[pd.DataFrame, dict[str, Any]], weights: np.ndarray) -> None:
    table, numbers = published
    labels = table["label"].to_numpy()
    for system, theirs in numbers["systems"].items():
        ranked, at = Ranked.of(labels, table[system]), Confusion.at(0.5, labels, table[system], weights)
        drawn = {
            "auroc_bootstrap_ci": ranked.auroc(weights),
            "average_precision_bootstrap_ci_first1000": ranked.average_precision(weights[:1000]),
            **{f"{name}_bootstrap_ci": getattr(at, name) for name in ("f1", "sensitivity", "specificity")},
            "balanced_accuracy_bootstrap_ci": at.balanced_accuracy,
        }
        for name, draws in drawn.items():
            assert np.quantile(draws, [0.025, 0.975]) == pytest.approx(theirs[name], abs=1e-9), (system, name)


def test_delong_between_models(published: tuple[pd.DataFrame, dict[str, Any]]) -> None:
    table, numbers = published
    assert len(numbers["pairwise_delong"]) == 12
    for pair, theirs in numbers["pairwise_delong"].items():
        first, second = (Area.of(table["label"], table[name]) for name in pair.split(" vs "))
        ours = delong(first, second)
        assert (first.value, second.value) == pytest.approx((theirs["auc_a"], theirs["auc_b"]), abs=1e-12)
        assert ours.estimate.value == pytest.approx(theirs["diff"], abs=1e-12)
        assert (ours.estimate.high - ours.estimate.value) / Z == pytest.approx(theirs["se"], abs=1e-12)
        assert ours.p == pytest.approx(theirs["p_two_sided"], rel=1e-9)
        assert ours.estimate.low == pytest.approx(theirs["ci_low"], abs=1e-9)
        assert ours.estimate.high == pytest.approx(theirs["ci_high"], abs=1e-9)


def test_bootstrap_between_models(published: tuple[pd.DataFrame, dict[str, Any]], weights: np.ndarray) -> None:
    table, numbers = published
    labels = table["label"].to_numpy()
    for pair, theirs in numbers["pairwise_bootstrap_diff"].items():
        scores = [table[name] for name in pair.split(" vs ")]
        ranked = [Ranked.of(labels, each) for each in scores]
        at = [(Confusion.at(0.5, labels, each), Confusion.at(0.5, labels, each, weights)) for each in scores]
        drawn = {
            "auroc": [(float(each.auroc()), each.auroc(weights)) for each in ranked],
            "f1": [(float(once.f1), many.f1) for once, many in at],
            "balanced_accuracy": [(float(once.balanced_accuracy), many.balanced_accuracy) for once, many in at],
        }
        for name, (first, second) in drawn.items():
            ours = paired_bootstrap(first, second, n=len(labels), positives=int(labels.sum()))
            assert ours.estimate.value == pytest.approx(theirs[name]["diff"], abs=1e-12)
            assert [ours.estimate.low, ours.estimate.high] == pytest.approx(theirs[name]["ci"], abs=1e-9)
            assert ours.p == pytest.approx(theirs[name]["p_bootstrap"], abs=1.1 / 1000)  # ours is never 0


def test_mcnemar(published: tuple[pd.DataFrame, dict[str, Any]]) -> None:
    table, numbers = published
    for pair, theirs in numbers["mcnemar_at_0.5"].items():
        first, second = (table[name] > 0.5 for name in pair.split(" vs "))
        assert mcnemar(table["label"], first, second) == pytest.approx(theirs["p_exact"], rel=1e-9)
