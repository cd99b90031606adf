"""Oracles: two models at a time by `delong`, Holm's correction written out, and plain means."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from headct.evaluation import Area, EvaluationSettings, Patients, evaluate, rival
from headct.evaluation.comparison import compare, delong
from headct.evaluation.measurements import compare_tables, side_named
from headct.evaluation.metrics import Ranked
from headct.evaluation.operating import OperatingPoint
from headct.evaluation.pairs import DRAWS_A_TEST, compare_all
from headct.evaluation.tables import read_measured, read_predictions
from headct.failure import Misuse

SCANS = 120
SETTINGS = EvaluationSettings(draws=100)


def labels() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    scans = [f"s{number}" for number in range(SCANS)]
    table = pd.DataFrame({"scan_id": scans, "patient_id": [f"p{number // 2}" for number in range(SCANS)]})
    table["ich"], table["sdh"] = (rng.random((2, SCANS)) < 0.4).astype(float)
    table.loc[:9, "sdh"] = np.nan
    return table


def told(strength: float, seed: int) -> pd.DataFrame:
    rng, truth = np.random.default_rng(seed), labels()
    parts = []
    for finding in ("ich", "sdh"):
        score = strength * truth[finding].fillna(0) + rng.normal(size=SCANS)
        parts.append(
            truth[["scan_id"]].assign(finding=finding, probability=1 / (1 + np.exp(-score)), ood=rng.random(SCANS))
        )
    return pd.concat(parts, ignore_index=True)


MODELS = {"good": told(2, 2), "fair": told(1, 3), "poor": told(0.1, 4)}


def test_every_pair_is_delongs_and_corrected_over_all() -> None:
    pairs = compare_all(MODELS, labels(), SETTINGS)
    assert [(one.first, one.second, one.finding) for one in pairs] == [
        (*two, finding) for two in combinations(MODELS, 2) for finding in ("ich", "sdh")
    ]
    truth = labels()
    for one in pairs:
        known = truth[one.finding].notna()
        labelled, patients = truth[one.finding][known], Patients.of(truth["patient_id"][known])
        scores = [
            MODELS[name][MODELS[name]["finding"] == one.finding]["probability"].to_numpy()[known]
            for name in (one.first, one.second)
        ]
        wanted = delong(*(Area.of(labelled, each, patients) for each in scores))
        assert one.auroc.estimate.value == pytest.approx(wanted.estimate.value)
        assert one.auroc.p == pytest.approx(wanted.p)
        wanted_draws = max(SETTINGS.draws, DRAWS_A_TEST * len(pairs))
        assert f"{wanted_draws:,} bootstrap draws" in one.average_precision.estimate.method
        weights = patients.weights(wanted_draws, SETTINGS.seed)
        drawn = compare(labelled, *scores, Ranked.average_precision, weights)
        assert (one.average_precision.estimate, one.average_precision.p) == (drawn.estimate, drawn.p)
    order, highest = sorted(pairs, key=lambda one: one.auroc.p), 0.0
    for rank, one in enumerate(order):
        highest = max(highest, min(1, one.auroc.p * (len(pairs) - rank)))
        assert one.auroc.corrected == pytest.approx(highest)


def test_wanted_pairs_alone_and_few_patients_left_out() -> None:
    some = compare_all(MODELS, labels(), SETTINGS, [("poor", "good")])
    assert {(one.first, one.second) for one in some} == {("poor", "good")}
    assert some[0].auroc.estimate.value < 0
    few = labels()
    few.loc[few["ich"] == 1, "ich"] = np.nan
    assert {one.finding for one in compare_all(MODELS, few, SETTINGS)} == {"sdh"}
    with pytest.raises(Misuse, match="predicted scans are not in the labels"):
        compare_all(MODELS, labels().iloc[5:], SETTINGS)


def test_points_chosen_before_go_before_validation_and_after_a_given_threshold() -> None:
    points = {"ich": OperatingPoint(0.3, "elsewhere")}
    found = evaluate(MODELS["good"], labels(), SETTINGS, points=points)
    assert found.findings["ich"].operating_point == points["ich"]
    assert found.findings["sdh"].operating_point.threshold == 0.5
    given = evaluate(MODELS["good"], labels(), EvaluationSettings(draws=100, threshold=0.7), points=points)
    assert given.findings["ich"].operating_point.threshold == 0.7


def test_the_predictions_own_threshold_is_taken_where_validation_gives_none() -> None:
    own = MODELS["good"].assign(threshold=0.3)
    found = evaluate(own, labels(), SETTINGS)
    assert {one.operating_point.threshold for one in found.findings.values()} == {0.3}
    assert not any("threshold" in note for note in found.notes)
    assert evaluate(own, labels(), EvaluationSettings(draws=100, threshold=0.7)).findings["ich"].operating_point == (
        OperatingPoint(0.7, "as given")
    )
    by_f1 = evaluate(own, labels(), EvaluationSettings(draws=100, rule="f1"))
    assert any(
        note.startswith("ich, sdh: the threshold is the predictions' own and not one by f1") for note in by_f1.notes
    )


def test_a_threshold_that_nobody_chose_is_told() -> None:
    notes = evaluate(MODELS["good"], labels(), SETTINGS).notes
    assert sum(note.startswith("ich, sdh: the threshold is 0.5, as neither validation scans") for note in notes) == 1


def test_thresholds_of_several_models_are_refused(tmp_path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("scan_id,finding,probability,threshold\na,ich,0.5,0.2\nb,ich,0.5,\nb,sdh,0.5,0.4\n")
    assert read_predictions(path)["threshold"].dropna().tolist() == [0.2, 0.4]
    path.write_text("scan_id,finding,probability,threshold\na,ich,0.5,0.2\nb,ich,0.5,0.3\n")
    with pytest.raises(Misuse, match=r"ich has several thresholds: 0\.2, 0\.3"):
        read_predictions(path)


def test_scans_least_like_training_are_left_to_a_person_first() -> None:
    table, truth = MODELS["good"].copy(), labels()
    both = table.merge(truth, on="scan_id")
    erred = (both["probability"] >= 0.5) != np.where(both["finding"] == "ich", both["ich"], both["sdh"]).astype(bool)
    table["ood"] = np.where(erred, 0.9, 0.1)
    finding = evaluate(table, truth, SETTINGS).findings["ich"]
    share = 1 - finding.abstention.risk[-1]
    kept = finding.abstention_by_ood.coverage <= share
    assert kept.any()
    assert (finding.abstention_by_ood.risk[kept] == 0).all()
    assert evaluate(table.drop(columns="ood"), truth, SETTINGS).findings["ich"].abstention_by_ood is None


def test_a_lesions_size_divides_its_own_finding_and_its_positives_alone() -> None:
    truth = labels()
    truth["sdh_ml"] = np.where(truth["sdh"] == 1, np.tile([2.0, 40.0], SCANS // 2), 0)
    found = evaluate(MODELS["good"], truth, EvaluationSettings(draws=100, groups=("sdh_ml",)))
    assert found.findings["ich"].subgroups == ()
    groups = found.findings["sdh"].subgroups
    assert [one.group for one in groups] == ["1 to < 5", "≥ 30"]  # not `< 1`, where nothing is
    negatives = int((truth["sdh"] == 0).sum())
    assert sum(one.scans for one in groups) == int((truth["sdh"] == 1).sum()) + 2 * negatives


def test_ood_is_a_share_or_nothing(tmp_path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("scan_id,finding,probability,ood\na,ich,0.5,0.25\nb,ich,0.5,\n")
    assert read_predictions(path)["ood"].tolist()[0] == 0.25
    assert np.isnan(read_predictions(path)["ood"].tolist()[1])
    path.write_text("scan_id,finding,probability,ood\na,ich,0.5,38.9\n")
    with pytest.raises(Misuse, match=r"a: ood is '38\.9'"):
        read_predictions(path)


def test_measurements_are_joined_by_scan() -> None:
    truth = labels().assign(midline_shift_mm=np.arange(SCANS) % 9.0, sdh_side="left", note="x")
    measured = truth[["scan_id"]].assign(midline_shift_mm=truth["midline_shift_mm"] + 0.5, sdh_side="left").iloc[::-1]
    measured.loc[measured.index[:2], "sdh_side"] = "right"
    measured["midline_shift_mm"] = measured["midline_shift_mm"].astype(object)
    measured.loc[measured.index[0], "midline_shift_mm"] = ""
    found = compare_tables(measured, truth)
    error = found.errors["midline_shift_mm"]
    assert (error.unit, error.bias.n) == ("mm", SCANS - 1)
    assert error.bias.value == pytest.approx(0.5)
    assert error.within.value == 1
    assert found.sides["sdh_side"].swapped.value == pytest.approx(2 / SCANS)
    assert found.notes == (f"midline_shift_mm was not measured in 1 scans: s{SCANS - 1}",)
    assert found.tree()["errors"]["midline_shift_mm"]["bias"]["n"] == SCANS - 1


def test_a_scan_that_nobody_measured_is_not_forgotten() -> None:
    truth = labels().assign(sdh_ml=1.0)
    found = compare_tables(truth[["scan_id", "sdh_ml"]].head(4), truth)
    assert found.errors["sdh_ml"].bias.n == 4
    assert f"sdh_ml was not measured in {SCANS - 4} scans" in found.notes[0]


def test_measurements_that_cannot_be_meant_are_refused(tmp_path) -> None:
    truth = labels().assign(sdh_ml=1.0)
    with pytest.raises(Misuse, match="no measurement is in both tables"):
        compare_tables(truth[["scan_id"]].assign(iph_ml=1.0), truth)
    with pytest.raises(Misuse, match="no scan is in both"):
        compare_tables(pd.DataFrame({"scan_id": ["other"], "sdh_ml": [1.0]}), truth)
    with pytest.raises(Misuse, match="sdh_ml is 'much'"):
        compare_tables(truth[["scan_id"]].assign(sdh_ml="much"), truth)
    (tmp_path / "m.csv").write_text("scan_id,sdh_ml\na,1\na,2\n")
    with pytest.raises(Misuse, match="a: measured more than once"):
        read_measured(tmp_path / "m.csv")


def test_sides_have_four_names() -> None:
    assert side_named([1, 1, 0, 0], [1, 0, 1, 0]) == ["both", "left", "right", "none"]


def test_the_other_models_numbers_are_of_the_scans_that_were_compared() -> None:
    """Ours says nothing of sdh in the first half, of which the other's numbers then say nothing either."""
    ours, other = MODELS["good"], MODELS["good"].assign(probability=lambda table: 1 - table["probability"])
    half = set(labels()["scan_id"][: SCANS // 2])
    done = evaluate(ours[~(ours["scan_id"].isin(half) & (ours["finding"] == "sdh"))], labels(), SETTINGS, other)
    found = rival(done, other, labels())
    assert found is not None
    for name, one in done.findings.items():
        assert found.findings[name].scan_ids == one.scan_ids
        assert found.findings[name].estimates["auroc"].value == pytest.approx(1 - one.estimates["auroc"].value)
    assert rival(evaluate(ours, labels(), SETTINGS), other, labels()) is None


def test_the_other_models_thresholds_are_of_its_own_validation_scans() -> None:
    """At 0.5 it would call nothing, beside a model whose thresholds were chosen."""
    ids = labels()["scan_id"]
    part = dict(zip(ids, np.where(np.arange(len(ids)) % 2, "validation", "test"), strict=True))
    ours = MODELS["good"].assign(split=lambda table: table["scan_id"].map(part))
    other = ours.assign(probability=lambda table: table["probability"] / 10)
    truth = labels().assign(patient_id=ids)
    done = evaluate(ours, truth, SETTINGS, other)
    found = rival(done, other, truth)
    assert found is not None
    for name, one in done.findings.items():
        assert found.findings[name].scan_ids == one.scan_ids
        assert found.findings[name].operating_point.threshold < 0.1
        assert found.findings[name].estimates["sensitivity"] == one.estimates["sensitivity"]
