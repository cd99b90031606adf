"""Thresholds, abstention, subgroups, measurements, transfer: cases by hand, and definitions written a second time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from headct.evaluation.curves import precision_recall_band, roc_band
from headct.evaluation.intervals import Area, Patients
from headct.evaluation.measurements import compare_tables, concordance, errors, side_confusion
from headct.evaluation.metrics import Confusion, Ranked
from headct.evaluation.operating import RULES, abstention, at_threshold, choose
from headct.evaluation.subgroups import groups_of, subgroups, unpaired
from headct.evaluation.transfer import MeanTransfer, TransferMatrix
from headct.failure import Misuse


@pytest.mark.parametrize("rule", RULES)
def test_a_threshold_is_the_best_of_all(rule: str) -> None:
    """Against every score tried one after the other, ties included."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = np.append([True, False], rng.random(40) < 0.4)
        scores = np.round(rng.normal(size=42) + labels, 1)
        point = choose(labels, scores, rule, 0.8)
        tried = [Confusion.at(t, labels, scores) for t in np.append(np.unique(scores), np.inf)]
        at = Confusion.at(point.threshold, labels, scores)
        if rule == "youden":
            assert at.balanced_accuracy == pytest.approx(max(each.balanced_accuracy for each in tried))
        elif rule == "f1":
            assert at.f1 == max(each.f1 for each in tried)
        else:
            other = {"sensitivity": "specificity", "specificity": "sensitivity"}[rule]
            assert getattr(at, rule) >= 0.8 - 1e-12
            assert getattr(at, other) == max(
                getattr(each, other) for each in tried if getattr(each, rule) >= 0.8 - 1e-12
            )
    assert "42 validation scans" in point.origin


def test_an_unknown_rule_is_told_the_known_ones() -> None:
    with pytest.raises(Misuse, match="best") as told:
        choose([1, 0], [0.2, 0.1], "best")  # type: ignore[arg-type]
    assert "youden" in told.value.do


def test_at_a_threshold_values_are_those_of_the_confusion() -> None:
    labels, told = np.arange(200) < 60, np.random.default_rng(0).random(200)
    at, found = Confusion.at(0.4, labels, told), at_threshold(0.4, labels, told, Patients.each(200), 0.05)
    expected = {name: getattr(at, name) for name in ("sensitivity", "specificity", "f1", "balanced_accuracy")}
    expected |= {"ppv": at.ppv(0.05), "npv": at.npv(0.05)}
    assert {name: each.value for name, each in found.items()} == pytest.approx(expected)
    assert all(each.low < each.value < each.high for each in found.values())
    assert found["sensitivity"].n == found["sensitivity"].positives == 60
    assert found["specificity"].n == 140


def test_nothing_called_has_no_predictive_value() -> None:
    found = at_threshold(2.0, [1, 0, 0, 1], [0.1, 0.2, 0.3, 0.4], Patients.each(4), 0.5)
    assert found["ppv"].value is None
    assert (found["sensitivity"].value, found["f1"].value, found["balanced_accuracy"].value) == (0, 0, 0.5)


def test_a_threshold_lies_half_way_to_the_next_score() -> None:
    assert choose([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], "youden").threshold == pytest.approx(0.4)
    assert choose([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], "specificity", 0.5).threshold == pytest.approx(0.4)
    assert choose([1, 0], [0.1, 0.2], "sensitivity", 1.0).threshold == 0.1  # calls all: nothing lies below
    neighbours = [0.5, float(np.nextafter(0.5, 1))]
    assert choose([0, 1], neighbours, "youden").threshold == neighbours[1]


def test_abstention_by_hand() -> None:
    """Errors are the first and the last by distance from 0.5: 0.9 (negative) and 0.45 (positive)."""
    kept = abstention([0, 1, 0, 1], [0.9, 0.8, 0.3, 0.45], threshold=0.5, steps=4)
    assert kept.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert kept.risk == pytest.approx([1, 1 / 2, 1 / 3, 1 / 2])
    assert kept.area == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    sure = abstention([0, 1, 0, 1], [0.9, 0.8, 0.3, 0.45], threshold=0.5, doubt=[9, 0, 1, 5], steps=4)
    assert sure.risk == pytest.approx([0, 0, 1 / 3, 1 / 2])


def test_abstention_among_equals_does_not_depend_on_their_order() -> None:
    labels = np.arange(100) < 20
    one, other = (abstention(each, np.full(100, 0.2), 0.5) for each in (labels, labels[::-1]))
    assert (one.coverage.tolist(), one.area) == ([1.0], pytest.approx(0.2))
    assert other.area == one.area
    doubt = np.repeat([0.1, 0.7], 50)  # errors are among the first half
    assert abstention(labels, np.full(100, 0.2), 0.5, doubt).risk == pytest.approx([0.4, 0.2])


def test_abstention_counts_patients() -> None:
    """Five scans a patient that always agree are worth one."""
    labels, scores = np.arange(60) < 20, np.random.default_rng(1).uniform(size=60)
    once = abstention(labels, scores, 0.5)
    often = abstention(
        np.repeat(labels, 5), np.repeat(scores, 5), 0.5, patients=Patients.of(np.repeat(np.arange(60), 5))
    )
    assert often.risk[-1] == pytest.approx(once.risk[-1])
    assert often.high[-1] - often.low[-1] >= once.high[-1] - once.low[-1]


def test_bands_hold_their_curves() -> None:
    labels, scores, patients = np.arange(90) < 30, np.random.default_rng(0).normal(size=90), Patients.each(90)
    ranked = Ranked.of(labels, scores + labels)
    for band in (roc_band(ranked, patients.weights(200)), precision_recall_band(ranked, patients.weights(200))):
        assert (band.low <= band.y).all()
        assert (band.y <= band.high).all()
        assert (band.high - band.low).max() > 0.1
        assert (np.diff(band.x) > 0).all()
    roc = roc_band(ranked, patients.weights(200))
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(ranked.auroc(), abs=0.02)
    assert (roc.y[-1], roc.low[-1]) == (1, 1)


def test_columns_become_groups() -> None:
    assert groups_of(pd.Series(["17", "18", "", "81"], name="age")).tolist() == ["< 18", "18 to < 40", "", "≥ 80"]
    assert groups_of(pd.Series([0.5, np.nan, 31], name="iph_volume_ml")).tolist() == ["< 1", "", "≥ 30"]
    assert groups_of(pd.Series(["a", None, "b"], name="site")).tolist() == ["a", "", "b"]
    quartiles = groups_of(pd.Series(np.arange(100), name="kvp_mean"))
    assert quartiles.value_counts().tolist() == [25] * 4
    assert (groups_of(pd.Series([f"note {i}" for i in range(50)], name="text")) == "").all()


def test_a_group_is_set_against_all_others() -> None:
    rng = np.random.default_rng(0)
    labels, site = rng.random(600) < 0.4, pd.Series(np.repeat(["a", "b", "c"], 200), name="site")
    scores = rng.normal(size=600) + labels * site.map({"a": 2.0, "b": 2.0, "c": 0.0}).to_numpy()
    found = {each.group: each for each in subgroups(labels, scores, site, Patients.each(600))}
    inside = (site == "c").to_numpy()
    areas = [Area.of(labels[part], scores[part]).value for part in (inside, ~inside)]
    assert found["c"].area.value == pytest.approx(areas[0])
    assert found["c"].difference.estimate.value == pytest.approx(areas[0] - areas[1])
    assert found["c"].difference.estimate.high < 0
    assert found["c"].difference.corrected < 1e-6
    assert found["a"].scans == 200


def test_small_groups_are_said_to_be_small() -> None:
    labels, site = np.arange(60) % 2 == 0, pd.Series(["a"] * 56 + ["b"] * 4, name="site")
    found = {each.group: each for each in subgroups(labels, np.arange(60.0), site, Patients.each(60))}
    assert found["b"].area is None
    assert "site b: 2 patients with the finding, 2 without" in found["b"].reason
    assert found["a"].difference is None
    assert found["a"].area is not None


def test_lesions_of_each_size_are_set_against_all_negatives() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) < 80
    size = pd.Series(np.where(labels, np.where(np.arange(200) < 40, "small", "large"), ""), name="size")
    scores = rng.normal(size=200) + np.where(size == "large", 3.0, np.where(size == "small", 1.0, 0.0))
    found = {each.group: each for each in subgroups(labels, scores, size, Patients.each(200))}
    small = (size == "small").to_numpy() | ~labels
    assert found["small"].area.value == pytest.approx(Area.of(labels[small], scores[small]).value)
    assert found["small"].difference.estimate.high < 0


def test_patients_in_both_groups_make_the_difference_surer() -> None:
    """The same patients scanned by two scanners, with scores that go together."""
    rng = np.random.default_rng(0)
    labels = np.arange(150) < 60
    common = rng.normal(size=150) + labels
    first, second = (common + 0.3 * rng.normal(size=150) for _ in range(2))
    whose = Patients(np.tile(np.arange(150), 2), 150)
    areas = [Area.of(labels, scores, whose.only(np.arange(150))) for scores in (first, second)]
    together, apart = unpaired(*areas), unpaired(*areas, shared=False)
    assert together.estimate.value == apart.estimate.value
    assert together.estimate.high - together.estimate.low < 0.6 * (apart.estimate.high - apart.estimate.low)


def test_an_unpaired_difference_is_significant_where_its_interval_leaves_0_out() -> None:
    rng, found = np.random.default_rng(5), []
    for _ in range(60):
        labels = [rng.permutation(np.arange(n) < n // 3) for n in (20, 40)]
        areas = [
            Area.of(one, rng.normal(size=len(one)) + one * power) for one, power in zip(labels, (2.4, 0.2), strict=True)
        ]
        found.append(unpaired(*areas, shared=False))
    outside = [one.estimate.low > 0 or one.estimate.high < 0 for one in found]
    assert 5 < sum(outside) < 55
    assert [one.p < 0.05 for one in found] == outside


def test_groups_of_texts_may_look_like_ranges() -> None:
    rng = np.random.default_rng(0)
    groups = pd.Series(np.repeat(["up to < 5 mm", "5 to < 9", "1 to < 5"], 40), name="gap")
    labels = rng.random(120) < 0.5
    found = subgroups(labels, rng.random(120), groups, Patients.of(np.arange(120)))
    assert [one.group for one in found] == ["up to < 5 mm", "1 to < 5", "5 to < 9"]


def test_a_missed_side_is_a_wrong_answer() -> None:
    scans = [f"s{i}" for i in range(6)]
    true = pd.DataFrame(
        {"scan_id": scans, "patient_id": scans, "sdh_side": ["left", "left", "right", "none", "None", ""]}
    )
    told = pd.DataFrame({"scan_id": scans, "sdh_side": ["left", "none", "NONE", "none", "right", "left"]})
    found = compare_tables(told, true)
    assert found.sides["sdh_side"].right.value == pytest.approx(2 / 5)
    assert found.sides["sdh_side"].counts.sum() == 5
    assert not found.notes


def test_errors_of_a_measurement_by_hand() -> None:
    found = errors([1.0, 4.0, 5.0, 2.0], [0.0, 4.0, 7.0, 1.0], "mm", tolerance=1.0)
    assert found.bias.value == 0
    assert found.absolute.value == 1
    assert found.within.value == 0.75
    half = norm.ppf(0.975) * np.sqrt((1 + 0 + 4 + 1) / 3)
    assert found.agreement == pytest.approx((-half, half))
    assert found.bias.positives == 3
    with pytest.raises(Misuse, match="1 scans lack a value"):
        errors([1.0, np.nan], [0.0, 1.0], "mm", tolerance=1.0)


def test_concordance_by_its_definition() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    b = a + 0.5 * b
    r = np.corrcoef(a, b)[0, 1]
    assert concordance(a, b) == pytest.approx(
        2 * r * a.std() * b.std() / (a.var() + b.var() + (a.mean() - b.mean()) ** 2)
    )
    assert concordance(a, a) == pytest.approx(1)
    assert concordance(a, a + 3) < 0.5


def test_swapped_sides_are_counted() -> None:
    true = ["left", "left", "right", "both", "none", "right"]
    told = ["left", "right", "left", "both", "none", "none"]
    found = side_confusion(told, true)
    assert found.counts.tolist() == [[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert found.right.value == pytest.approx(3 / 6)
    assert found.swapped.value == pytest.approx(2 / 4)
    with pytest.raises(Misuse, match="'LEFT' is no side"):
        side_confusion(["LEFT"], ["left"])


def test_a_transfer_matrix_knows_what_is_lost_on_the_way() -> None:
    rng = np.random.default_rng(0)
    labels = {site: rng.random(200) < 0.4 for site in "ab"}
    areas = {
        (train, test): Area.of(labels[test], rng.normal(size=200) + labels[test] * (2.0 if train == test else 0.5))
        for train in "ab"
        for test in "ab"
    }
    del areas["b", "a"]
    matrix = TransferMatrix.of("ich", areas)
    away = matrix.cells["a", "b"]
    assert (matrix.trained, matrix.tested) == (["a", "b"], ["a", "b"])
    assert away.drop.estimate.value == pytest.approx(areas["a", "b"].value - areas["a", "a"].value)
    assert away.gain.estimate.value == pytest.approx(areas["a", "b"].value - areas["b", "b"].value)
    assert away.drop.estimate.high < 0
    assert matrix.cells["a", "a"].drop is None
    assert set(matrix.tree()["a"]["b"]) == {"auroc", "drop", "gain"}
    assert away.drop.corrected == away.drop.p  # the only one
    with pytest.raises(Misuse, match="no site"):
        TransferMatrix.of("ich", {})


def test_means_of_transfer_are_over_the_findings_of_every_cell() -> None:
    """Oracles: means by hand; DeLong's test where there is one finding; intervals narrower than of one finding."""
    rng = np.random.default_rng(2)
    matrices = []
    for finding in ("ich", "sdh", "edh"):
        labels = {site: rng.random(200) < 0.4 for site in "ab"}
        areas = {
            (train, test): Area.of(labels[test], rng.normal(size=200) + labels[test] * (1.5 if train == test else 0.7))
            for train in "ab"
            for test in "ab"
        }
        if finding == "edh":
            del areas["b", "a"]
        matrices.append(TransferMatrix.of(finding, areas))
    mean = MeanTransfer.of(matrices)
    assert mean is not None
    assert mean.findings == ("ich", "sdh")
    for pair, area in mean.areas.items():
        each = [matrix.cells[pair].area for matrix in matrices[:2]]
        assert area.value == pytest.approx(np.mean([one.value for one in each]))
        assert area.high - area.low < min(one.estimate().high - one.estimate().low for one in each)
    gain = mean.gains["a", "b"]
    assert gain.estimate.value == pytest.approx(mean.areas["a", "b"].value - mean.areas["b", "b"].value)
    assert gain.corrected == pytest.approx(min(1.0, max(2 * min(one.p for one in mean.gains.values()), gain.p)))
    assert set(mean.gains) == {("a", "b"), ("b", "a")}
    tree = mean.tree()["cells"]
    assert (set(tree["a"]["b"]), set(tree["a"]["a"])) == ({"auroc", "gain"}, {"auroc"})
    alone = MeanTransfer.of(matrices[:1])
    assert alone.gains["a", "b"].p == pytest.approx(matrices[0].cells["a", "b"].gain.p)
    row = MeanTransfer.of([matrix.of_detector("a") for matrix in matrices])
    assert row.findings == ("ich", "sdh", "edh")
    assert (set(row.areas), set(row.gains)) == ({("a", "a"), ("a", "b")}, set())
    lonely = TransferMatrix.of("edh", {("c", "c"): matrices[0].cells["a", "a"].area})
    assert MeanTransfer.of([lonely, matrices[0]]) is None


def test_losses_and_gains_of_a_transfer_matrix_are_corrected_by_holm_over_its_cells() -> None:
    """Oracle: Holm's steps by hand, each of six p values times how many are left, never below the one before."""
    rng = np.random.default_rng(1)
    labels = {site: rng.random(80) < 0.4 for site in "abc"}
    areas = {
        (train, test): Area.of(labels[test], rng.normal(size=80) + labels[test] * (1.2 if train == test else 0.8))
        for train in "abc"
        for test in "abc"
    }
    cells = TransferMatrix.of("ich", areas).cells.values()
    for kind in ("drop", "gain"):
        found = sorted(
            (getattr(cell, kind) for cell in cells if getattr(cell, kind) is not None), key=lambda one: one.p
        )
        assert len(found) == 6
        times = [min(1.0, one.p * (6 - place)) for place, one in enumerate(found)]
        assert [one.corrected for one in found] == pytest.approx(list(np.maximum.accumulate(times)))
