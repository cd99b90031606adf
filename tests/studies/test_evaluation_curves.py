"""Curves over fewer labels of a detector. Oracles: scikit-learn's area of the same probe, and the draws themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder
from headct.detection.curves import MACRO, seed_of
from headct.detection.linear import Linear
from headct.detection.method import Task, quiet
from headct.detection.scans import Held
from headct.embedding.machine import choose
from headct.failure import Misuse
from headct.preparing import recipes
from headct.studies.evaluation_curves import OURS, LearningCurve, curve_of, forget_curves, kinds
from headct.studies.evaluation_predictions import Taught

LEARNED, TESTED = 120, 80
NOISE = "noise"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Taught:
    """Two findings that the vectors tell, learned from 120 patients and tested at two hospitals; beside them noise."""
    card = Card(recipe=recipes["head-coarse"], windows={"brain": (40.0, 80.0)})
    encoder = PretrainedEncoder(encoders.build("conv-tiny", channels=1), card, "0" * 64)
    rng = np.random.default_rng(0)
    rows = LEARNED + TESTED
    vectors = rng.normal(size=(rows, 12)).astype(np.float32)
    labels = (vectors[:, :2] + rng.normal(size=(rows, 2)) > 0).astype(float)
    task = Task(
        encoder=encoder,
        scans=Held(vectors),
        findings=("ich", "sdh"),
        labels=labels,
        patients=np.array([f"p{row}" for row in range(rows)], dtype=object),
        train=np.arange(LEARNED),
        validation=np.zeros(0, dtype=int),
        seed=0,
        machine=choose("fp32", "cpu"),
    )
    cohorts = ["a"] * (LEARNED + TESTED // 2) + ["b"] * (TESTED // 2)
    table = pd.DataFrame({"scan_id": [f"s{row}" for row in range(rows)], "cohort": cohorts, "site": "h"})
    noise = {NOISE: Held(rng.normal(size=(rows, 8)).astype(np.float32))}
    monkeypatch.setattr(Taught, "beside", property(lambda self: noise))
    return Taught(task, np.arange(LEARNED, rows), table)


def made(known: Taught, kind: str, out: Path) -> tuple[LearningCurve, list[str]]:
    curve, notes = curve_of(kinds([kind])[0], known, out, lambda what: quiet, beside=kind == "shots")
    assert curve is not None
    return curve, notes


def with_labels(known: Taught, labels: np.ndarray) -> Taught:
    return replace(known, task=replace(known.task, labels=labels))


def test_all_labels_are_the_probe_itself(known: Taught, tmp_path: Path) -> None:
    """At a share of 1 every draw is the whole, so the area is that of a probe learned from all training scans."""
    curve, _ = made(known, "shares", tmp_path)
    task, here = known.task, known.tested[known.table["cohort"][known.tested] == "b"]
    scores = Linear().fit(replace(task, seed=seed_of(task.seed, 0))).scores(task.scans, here)
    told = json.loads(json.dumps(curve.tree()))["learners"][OURS]["b"]["1"]
    for column, finding in enumerate(task.findings):
        wanted = roc_auc_score(task.labels[here, column], scores[:, column])
        assert told[finding]["auroc"]["value"] == pytest.approx(wanted, abs=0.01)
        assert told[finding]["draws"] == 10
    assert curve.labelled(1.0) == LEARNED
    assert curve.labelled(0.25) == LEARNED // 4


def test_shares_are_of_patients_who_have_labels(known: Taught, tmp_path: Path) -> None:
    """As those of a detector that learned from a few drawn scans."""
    labels = known.task.labels.copy()
    labels[40:LEARNED] = np.nan
    curve, _ = made(with_labels(known, labels), "shares", tmp_path)
    assert curve.labelled(1.0) == 40
    draws = pd.read_csv(tmp_path / "curves" / "shares.csv")
    assert set(draws["patient_id"]) == {f"p{row}" for row in range(40)}


def test_a_size_is_shown_only_where_every_draw_knew_the_finding(known: Taught, tmp_path: Path) -> None:
    """Else it would be an average over lucky draws, whatever other findings each of them knew."""
    labels = known.task.labels.copy()
    labels[:LEARNED, 0] = np.arange(LEARNED) < 8  # of 12 patients, some draws have none of these
    labels[LEARNED:, 1] = 1  # and the other one cannot be tested
    curve, _ = made(with_labels(known, labels), "shares", tmp_path)
    assert 0.05 in curve.results.study.drawn.shares
    assert curve.sizes("a", "ich")
    for size in curve.sizes("a", "ich"):
        assert curve.draws("a", size) == 10
    assert min(curve.sizes("a", "ich")) > 0.05


def test_what_can_be_drawn_but_not_tested_makes_no_curve(known: Taught, tmp_path: Path) -> None:
    labels = known.task.labels.copy()
    labels[LEARNED:, 0] = 0
    labels[:LEARNED, 1] = np.arange(LEARNED) < 3
    curve, notes = curve_of("shots", with_labels(known, labels), tmp_path, lambda what: quiet)
    assert curve is None
    assert notes[-1] == "no curve over shots: what can be tested was not drawn in every draw of any size"
    assert not (tmp_path / "curves").exists()


def test_a_first_finding_that_is_too_rare_costs_no_other_one_its_curve(known: Taught, tmp_path: Path) -> None:
    labels = known.task.labels.copy()
    labels[:LEARNED, 0] = np.arange(LEARNED) < 3
    curve, _ = made(with_labels(known, labels), "shots", tmp_path)
    assert curve.shown("a") == ["sdh"]


def test_findings_are_shown_alone_where_one_cohort_is_tested(known: Taught, tmp_path: Path) -> None:
    cohorts = ["a"] * LEARNED + ["b"] * TESTED
    curve, _ = made(replace(known, table=known.table.assign(cohort=cohorts)), "shots", tmp_path)
    assert curve.shown("b") == [MACRO, "ich", "sdh"]
    assert curve.shown("a") == []


def test_scans_of_a_patient_are_drawn_together_and_baselines_may_be_left_out(known: Taught, tmp_path: Path) -> None:
    patients = np.array([f"p{row // 2}" for row in range(LEARNED + TESTED)], dtype=object)
    two_each = replace(known, task=replace(known.task, patients=patients))
    curve, _ = curve_of("shots", two_each, tmp_path, lambda what: quiet, beside=False)
    assert curve is not None
    assert curve.learners == (OURS,)
    drawn = pd.read_csv(tmp_path / "curves" / "shots.csv")
    assert not drawn.duplicated(["finding", "draw", "patient_id"]).any()
    assert not set(drawn["patient_id"]) & set(patients[known.tested])


def test_more_labels_are_better_where_there_is_something_to_see(known: Taught, tmp_path: Path) -> None:
    curve, notes = made(known, "shots", tmp_path)
    sizes = curve.sizes("a", MACRO)
    ours = [curve.area(OURS, "a", size, MACRO) for size in sizes]
    assert ours[-1].value > ours[0].value + 0.03
    for size in sizes:
        assert curve.area(NOISE, "a", size, MACRO).value == pytest.approx(0.5, abs=0.1)
        assert curve.draws("a", size) > 1
    less = curve.less(NOISE, "a", sizes[-1])
    assert less is not None
    assert less.estimate.low > 0
    assert less.estimate.value == pytest.approx(ours[-1].value - curve.area(NOISE, "a", sizes[-1], MACRO).value)
    assert all(note.startswith("curve over shots: ") for note in notes)
    assert any("K = 64, 128, 256 not drawn" in note for note in notes)


def test_shuffled_labels_find_nothing(known: Taught, tmp_path: Path) -> None:
    labels = known.task.labels.copy()
    labels[:LEARNED] = np.random.default_rng(3).permutation(labels[:LEARNED])
    curve, _ = made(with_labels(known, labels), "shots", tmp_path)
    assert curve.area(OURS, "a", 16, MACRO).value == pytest.approx(0.5, abs=0.12)


def test_draws_are_of_training_scans_alone_and_areas_are_those_of_the_table(known: Taught, tmp_path: Path) -> None:
    curve, _ = made(known, "shots", tmp_path)
    draws = pd.read_csv(tmp_path / "curves" / "shots.csv")
    assert set(draws["scan_id"]) <= {f"s{row}" for row in range(LEARNED)}
    areas = pd.read_csv(tmp_path / "curves" / "shots-aurocs.csv").set_index(["learner", "cohort", "size", "finding"])
    tree = json.loads(json.dumps(curve.tree(), allow_nan=False))
    assert set(areas.index.get_level_values("learner")) == {OURS, NOISE} == set(tree["learners"])
    for (learner, place, size, finding), row in areas.iterrows():
        leaf = tree["learners"][learner][place][f"{size:g}"][finding]["auroc"]
        assert (leaf["value"], leaf["low"], leaf["n"]) == (pytest.approx(row["auroc"]), pytest.approx(row["low"]), 40)
        assert leaf["low"] < leaf["value"] < leaf["high"]
    assert tree["differences"].keys() == {f"{OURS} less {NOISE}"}


def test_negatives_of_shots_are_of_the_sites_of_the_positives(known: Taught, tmp_path: Path) -> None:
    """Of two hospitals, of which one sees what the other hardly does: a matched draw has as many negatives of it."""
    labels = known.task.labels.copy()
    busy = np.arange(LEARNED + TESTED) % 2 == 0
    seldom = np.random.default_rng(2).random(LEARNED + TESTED) < 0.1
    labels[:LEARNED, 0] = np.where(busy, np.arange(LEARNED + TESTED) % 4 == 0, seldom)[:LEARNED]
    table = known.table.assign(site=np.where(busy, "busy", None))
    made(replace(with_labels(known, labels), table=table), "shots", tmp_path)
    draws = pd.read_csv(tmp_path / "curves" / "shots.csv")
    draws = draws[draws["finding"] == "ich"].assign(busy=draws["scan_id"].str[1:].astype(int) % 2 == 0)
    few = draws[draws["order"] <= 16].pivot(index=["draw", "order"], columns="label", values="busy")
    assert few[1].mean() > 0.7
    assert (few[0] == few[1]).all()


def test_differences_are_corrected_by_holm_over_learners_cohorts_and_sizes(known: Taught, tmp_path: Path) -> None:
    curve, _ = made(known, "shots", tmp_path)
    told = json.loads(json.dumps(curve.tree()))["differences"]
    found = [leaf["auroc"] for places in told.values() for sizes in places.values() for leaf in sizes.values()]
    found.sort(key=lambda leaf: leaf["p"])
    assert len(found) > 4
    times = [min(1.0, leaf["p"] * (len(found) - place)) for place, leaf in enumerate(found)]
    assert [leaf["p_holm"] for leaf in found] == pytest.approx(list(np.maximum.accumulate(times)))


def test_a_rare_finding_ends_the_mean_before_the_others_end(known: Taught, tmp_path: Path) -> None:
    """What cannot be drawn at a size is not left out of a mean silently: there the mean has no value."""
    labels = known.task.labels.copy()
    labels[10:LEARNED, 1] = np.where(np.arange(10, LEARNED) < 20, 1, 0)
    curve, _ = made(with_labels(known, labels), "shots", tmp_path)
    assert set(curve.sizes("a", "ich")) > set(curve.sizes("a", "sdh")) == set(curve.sizes("a", MACRO))
    assert curve.shown("a") == [MACRO]


def test_too_few_labels_end_a_curve_with_a_reason(known: Taught, tmp_path: Path) -> None:
    few = replace(known.task, labels=np.where(np.arange(200)[:, None] < 110, np.nan, known.task.labels))
    curve, notes = curve_of("shots", replace(known, task=few), tmp_path, lambda what: quiet)
    assert curve is None
    assert notes[-1] == "no curve over shots: there are too few labels for any draw"
    untested = np.where(np.arange(200)[:, None] >= LEARNED, np.nan, known.task.labels)
    blind = replace(known, task=replace(known.task, labels=untested))
    curve, notes = curve_of("shares", blind, tmp_path, lambda what: quiet)
    assert curve is None
    assert notes[-1].startswith("no curve over shares: no cohort has 5 test patients with a finding")
    assert not (tmp_path / "curves").exists()


def test_other_names_are_refused() -> None:
    assert kinds(["shares", "shots", "shares"]) == ["shots", "shares"]
    with pytest.raises(Misuse, match="no curve over 'labels'"):
        kinds(["labels"])


def test_one_finding_alone_is_compared_too(known: Taught, tmp_path: Path) -> None:
    """`sdh` cannot be tested, so there is no mean over findings."""
    labels = known.task.labels.copy()
    labels[LEARNED:, 1] = 1
    curve, _ = made(with_labels(known, labels), "shots", tmp_path)
    less = curve.less(NOISE, "a", 16)
    assert less is not None
    gain = curve.area(OURS, "a", 16, "ich").value - curve.area(NOISE, "a", 16, "ich").value
    assert less.estimate.value == pytest.approx(gain)
    assert curve.tree()["differences"][f"{OURS} less {NOISE}"]["a"]["16"]["auroc"]["value"] == less.estimate.value


def test_curves_of_an_earlier_evaluation_are_not_left_beside_a_later_one(known: Taught, tmp_path: Path) -> None:
    made(known, "shots", tmp_path)
    made(known, "shares", tmp_path)
    (tmp_path / "curves" / "notes.txt").write_text("mine")
    forget_curves(tmp_path)
    assert [path.name for path in (tmp_path / "curves").iterdir()] == ["notes.txt"]
