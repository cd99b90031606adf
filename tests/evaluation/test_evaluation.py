"""Two tables to the whole tree: every leaf has its interval, and the numbers are those of the parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headct.evaluation import EvaluationSettings, auroc, evaluate
from headct.evaluation.subgroups import groups_of
from headct.failure import Failure, Misuse

KEYS = {
    "auroc",
    "average_precision",
    "sensitivity",
    "specificity",
    "f1",
    "balanced_accuracy",
    "ppv",
    "npv",
    "brier",
    "ece",
}
QUICK = EvaluationSettings(draws=100)


def tables(scans: int = 240, patients: int = 160) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions and labels of two findings; patients have one scan or several."""
    rng = np.random.default_rng(0)
    whose = rng.integers(0, patients, scans)
    labels = pd.DataFrame({"scan_id": [f"s{i}" for i in range(scans)], "patient_id": [f"p{i}" for i in whose]})
    labels["site"] = np.where(whose % 2, "a", "b")
    rows = []
    for finding, share in (("ich", 0.4), ("sah", 0.2)):
        truth = rng.random(scans) < share
        labels[finding] = np.where(rng.random(scans) < 0.1, "", truth.astype(int).astype(str))
        told = 1 / (1 + np.exp(-(rng.normal(size=scans) + 2 * truth - 1)))
        rows.append(pd.DataFrame({"scan_id": labels["scan_id"], "finding": finding, "probability": told}))
    return pd.concat(rows, ignore_index=True), labels


def split(predictions: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """By patient: a third each."""
    place = labels.set_index("scan_id")["patient_id"].str[1:].astype(int) % 3
    names = {0: "train", 1: "validation", 2: "test"}
    return predictions.assign(split=predictions["scan_id"].map(place).map(names))


def leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key, value
            yield from leaves(value)


def test_every_number_has_its_interval() -> None:
    predictions, labels = tables()
    done = evaluate(predictions, labels, EvaluationSettings(draws=100, groups=("site",)))
    tree = json.loads(json.dumps(done.tree(), allow_nan=False))
    assert set(tree["findings"]) == {"ich", "sah"}
    assert set(tree["findings"]["ich"]) >= KEYS
    metrics = [(key, value) for key, value in leaves(tree) if key in KEYS and value is not None]
    assert len(metrics) > 30
    for key, leaf in metrics:
        assert set(leaf) >= {"value", "low", "high", "n", "positives", "method"}, key
        assert leaf["low"] <= leaf["value"] <= leaf["high"], key
    known = labels[labels["ich"] != ""]
    told = predictions[predictions["finding"] == "ich"].set_index("scan_id")["probability"][known["scan_id"]]
    ich = tree["findings"]["ich"]
    assert ich["auroc"]["value"] == pytest.approx(auroc(known["ich"].astype(int), told))
    assert (ich["auroc"]["n"], ich["unknown"]) == (len(known), len(labels) - len(known))
    assert ich["baselines"]["prevalence"]["share"]["value"] == pytest.approx((known["ich"] == "1").mean())
    assert tree["macro"]["auroc"]["value"] == pytest.approx(
        np.mean([tree["findings"][name]["auroc"]["value"] for name in ("ich", "sah")])
    )
    assert ich["shuffled_labels"]["mean"] == pytest.approx(0.5, abs=0.03)
    assert set(ich["subgroups"]["site"]) == {"a", "b"}


def test_the_order_of_rows_does_not_matter() -> None:
    predictions, labels = tables()
    shuffled = predictions.sample(frac=1, random_state=1).sort_values("finding", kind="stable")
    once, again = evaluate(predictions, labels, QUICK).tree(), evaluate(shuffled, labels, QUICK).tree()
    for name in KEYS - {"ece", "average_precision"}:  # these draw patients, whose order is that of the labels
        assert again["findings"]["ich"][name]["low"] == pytest.approx(once["findings"]["ich"][name]["low"]), name


def test_thresholds_come_from_validation_scans_only() -> None:
    predictions, labels = tables()
    parted = split(predictions, labels)
    done = evaluate(parted, labels, QUICK)
    tested = parted["split"] == "test"
    assert set(done.findings["ich"].scan_ids) <= set(parted["scan_id"][tested])
    assert "validation scans" in done.findings["ich"].operating_point.origin
    other = parted.copy()
    other.loc[tested, "probability"] = 1 - other.loc[tested, "probability"]
    again = evaluate(other, labels, QUICK)
    assert again.findings["ich"].operating_point == done.findings["ich"].operating_point
    assert any("were trained on and are left out" in note for note in done.notes)


@pytest.mark.parametrize("unknown", [False, True])
def test_a_patient_in_two_splits_stops_it(unknown: bool) -> None:
    """Also where nothing is known of the scan in the other split."""
    predictions, labels = tables()
    parted = split(predictions, labels)
    twice = labels["patient_id"][labels["patient_id"].duplicated()].iloc[0]
    scan = labels["scan_id"][labels["patient_id"] == twice].iloc[0]
    now = parted["split"][parted["scan_id"] == scan].iloc[0]
    parted.loc[parted["scan_id"] == scan, "split"] = "train" if now != "train" else "test"
    if unknown:
        labels.loc[labels["scan_id"] == scan, labels.columns.difference(["scan_id", "patient_id"])] = np.nan
    with pytest.raises(Failure, match=f"more than one split: {twice} "):
        evaluate(parted, labels, QUICK)


def test_scans_in_no_split_are_not_tested_where_only_scans_of_unknown_label_are_in_one() -> None:
    predictions, labels = tables()
    taught = labels["scan_id"].iloc[:20]
    parted = predictions.assign(split=np.where(predictions["scan_id"].isin(taught), "train", ""))
    labels.loc[:19, labels.columns.difference(["scan_id", "patient_id"])] = np.nan
    with pytest.raises(Misuse, match="no scan of the predictions is in the split test"):
        evaluate(parted, labels, QUICK)


def test_no_test_scans_is_said() -> None:
    predictions, labels = tables()
    with pytest.raises(Misuse, match="no scan of the predictions is in the split test"):
        evaluate(predictions.assign(split="train"), labels, QUICK)


def test_a_finding_that_cannot_be_judged_is_left_out_with_its_reason() -> None:
    predictions, labels = tables()
    labels["sah"] = "0"
    done = evaluate(predictions, labels, QUICK)
    assert list(done.findings) == ["ich"]
    assert "all 240 known labels are 0" in done.left_out["sah"]
    labels["ich"] = ""
    with pytest.raises(Failure, match="no finding can be evaluated") as told:
        evaluate(predictions, labels, QUICK)
    assert "every label is unknown" in told.value.why


def test_three_patients_are_too_few() -> None:
    predictions, labels = tables()
    labels["patient_id"] = [f"p{i % 3}" for i in range(len(labels))]
    with pytest.raises(Failure, match="no finding can be evaluated") as told:
        evaluate(predictions, labels, QUICK)
    assert "3 patients with the finding, 3 without" in told.value.why


def test_few_patients_are_warned_of() -> None:
    predictions, labels = tables(scans=60)
    notes = evaluate(predictions, labels, QUICK).notes
    assert any(note.startswith("sah: ") and "below 25" in note for note in notes)


def test_two_models_on_the_same_scans() -> None:
    predictions, labels = tables()
    noise = np.random.default_rng(1).normal(scale=0.3, size=len(predictions))
    worse = predictions.assign(probability=np.clip(predictions["probability"] + noise, 0, 1))
    done = evaluate(predictions, labels, QUICK, against=worse)
    tree = done.tree()["comparison"]["ich"]["auroc"]
    assert set(tree) == {"value", "low", "high", "n", "positives", "method", "p", "p_holm"}
    assert tree["value"] > 0
    assert tree["p"] <= tree["p_holm"]
    same = evaluate(predictions, labels, QUICK, against=predictions).comparison["sah"]
    assert (same["auroc"].estimate.value, same["auroc"].p, same["average_precision"].p) == (0, 1, 1)
    part = evaluate(predictions, labels, QUICK, against=worse[worse["scan_id"] != "s0"])
    assert any(
        f"the other model predicted {tree['n'] - 1} of the {tree['n']} tested scans, without s0" in note
        for note in part.notes
    )


def test_a_model_that_has_seen_the_test_is_no_rival() -> None:
    predictions, labels = tables()
    own = labels["scan_id"][labels["patient_id"] == labels["patient_id"][0]]
    seen = predictions.assign(split=np.where(predictions["scan_id"].isin(own), "train", "test"))
    with pytest.raises(
        Misuse, match=f"{len(own)} test scans are of patients whom the other model has learned from: s0"
    ):
        evaluate(predictions, labels, QUICK, against=seen)


def test_a_model_that_has_seen_tested_patients_in_other_scans_is_no_rival() -> None:
    predictions, labels = tables()
    before = labels.assign(scan_id="r" + labels["scan_id"].str[1:])
    learned = predictions.assign(scan_id="r" + predictions["scan_id"].str[1:], split="train")
    both = pd.concat([labels, before], ignore_index=True)
    with pytest.raises(Failure, match="patients of the other model's predictions are in more than one split"):
        evaluate(predictions, both, QUICK, against=pd.concat([predictions.assign(split="test"), learned]))
    with pytest.raises(Misuse, match="239 test scans are of patients whom the other model has learned from"):
        evaluate(predictions, both, QUICK, against=pd.concat([predictions.assign(split=""), learned]))


def test_a_finding_is_a_group_by_its_labels_and_not_by_volumes() -> None:
    predictions, labels = tables()
    done = evaluate(predictions, labels.assign(ich_ml="7"), replace(QUICK, groups=("sah", "ich_ml")))
    of_sah = [each.group for each in done.findings["ich"].subgroups if each.column == "sah"]
    assert of_sah == ["0", "1"]
    assert groups_of(pd.Series(["7", "31"], name="ich_ml"), ["ich"]).tolist() == ["5 to < 30", "≥ 30"]


def test_a_column_is_of_the_finding_that_it_names_longest() -> None:
    predictions, labels = tables()
    both = pd.concat([predictions, predictions[predictions["finding"] == "sah"].assign(finding="sah_left")])
    size = pd.Series(np.where(np.arange(len(labels)) % 2, "large", "small"))
    labels = labels.assign(sah_left=labels["sah"], sah_left_size=size)
    done = evaluate(both, labels, replace(QUICK, groups=("sah_left_size",)))
    assert not done.findings["sah"].subgroups
    assert {each.column for each in done.findings["sah_left"].subgroups} == {"sah_left_size"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"threshold": 1.5}, "threshold is 1.5"), ({"prevalence": 0.0}, "prevalence is 0"), ({"draws": 9}, "9 draws")],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(Misuse, match=says):
        EvaluationSettings(**settings)


def test_a_column_that_is_not_there_or_says_nothing() -> None:
    predictions, labels = tables()
    with pytest.raises(Misuse, match="have no column kernel"):
        evaluate(predictions, labels, EvaluationSettings(draws=100, groups=("kernel",)))
    with pytest.raises(Misuse, match="the column note gives no groups"):
        evaluate(predictions, labels.assign(note=""), EvaluationSettings(draws=100, groups=("note",)))
