"""Oracles: scikit-learn's AUROC, confusion matrix and precision on the same table, and the tree of metrics.json."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, precision_score, roc_auc_score

from headct.evaluation.evaluation import Evaluation, EvaluationSettings, evaluate
from headct.evaluation.intervals import Area, Estimate, Patients
from headct.evaluation.measurements import compare_tables
from headct.evaluation.operating import OperatingPoint
from headct.evaluation.pairs import compare_all
from headct.evaluation.transfer import MeanTransfer, TransferMatrix
from headct.reporting.flow import Stage
from headct.reporting.measured import measured
from headct.reporting.results import Flow
from headct.reporting.results_of_evaluation import (
    answer,
    evaluated,
    forest_of,
    measurement_rows,
    pair_rows,
    ranking,
    report_of,
)

SCANS = 240
POINT = OperatingPoint(0.4, "chosen elsewhere")


@cache
def tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Predictions of a good and of a poor model for two findings, and labels with three unknown ones."""
    rng = np.random.default_rng(3)
    scan_ids = [f"s{number:03d}" for number in range(SCANS)]
    labels = pd.DataFrame({"scan_id": scan_ids, "patient_id": [f"p{number // 2:03d}" for number in range(SCANS)]})
    parts, poor = [], []
    for finding, share, strength in (("sdh", 0.3, 2.0), ("fracture", 0.2, 0.8)):
        truth = (rng.random(SCANS) < share).astype(int)
        for rows, power in ((parts, strength), (poor, 0.2)):
            told = 1 / (1 + np.exp(-(power * (2 * truth - 1) + rng.normal(size=SCANS))))
            rows.append(pd.DataFrame({"scan_id": scan_ids, "finding": finding, "probability": told}))
        labels[finding] = truth.astype(str)
    labels.loc[:2, "fracture"] = ""
    labels["site"] = np.where(np.arange(SCANS) < 150, "site-a", "site-b")
    return pd.concat(parts, ignore_index=True), pd.concat(poor, ignore_index=True), labels


@cache
def evaluation() -> Evaluation:
    told, poor, labels = tables()
    return evaluate(told, labels, EvaluationSettings(draws=100, groups=("site",)), against=poor)


def known(finding: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities where the label is known."""
    told, _, labels = tables()
    joined = told[told["finding"] == finding].merge(labels, on="scan_id")
    joined = joined[joined[finding] != ""]
    return joined[finding].to_numpy(dtype=float), joined["probability"].to_numpy()


@pytest.mark.parametrize("finding", ["sdh", "fracture"])
def test_numbers_of_the_page_are_those_of_scikit_learn(finding: str) -> None:
    truth, told = known(finding)
    report = report_of(evaluation(), title="Two findings", model="ours", compared_with="poor")
    row = next(row for row in report.metrics if row.finding == finding and row.model == "ours")
    assert row.metrics["AUROC"].value == pytest.approx(roc_auc_score(truth, told), abs=1e-9)
    assert (row.n, row.positives) == (len(truth), int(truth.sum()))
    last = evaluated(evaluation().findings[finding])
    (tn, fp), (fn, tp) = confusion_matrix(truth, told >= 0.5)
    said = last.said
    assert (said.true_negative, said.false_positive, said.false_negative, said.true_positive) == (tn, fp, fn, tp)
    assert last.positive + last.negative + last.unknown == SCANS


def test_the_mark_on_the_precision_recall_curve_is_the_precision() -> None:
    truth, told = known("sdh")
    shown = ranking(evaluation().findings["sdh"])
    assert shown.operating.ppv.value == pytest.approx(precision_score(truth, told >= 0.5), abs=1e-9)
    settings = EvaluationSettings(draws=100, prevalence=0.01)
    elsewhere = evaluate(tables()[0], tables()[2], settings).findings["sdh"]
    assert ranking(elsewhere).operating.ppv is None


def test_the_answer_names_the_mean_the_best_and_the_worst() -> None:
    first, second = answer(evaluation())
    assert first.startswith(
        f"Mean AUROC {measured(evaluation().macro['auroc']).written()} over 2 findings, in 240 scans"
    )
    assert second.startswith("Highest for subdural hematoma")
    assert "lowest for fracture" in second
    alone = replace(evaluation(), findings={"sdh": evaluation().findings["sdh"]})
    assert answer(alone)[0].startswith("AUROC ")


def test_every_estimate_of_the_tree_is_on_the_page() -> None:
    page = report_of(
        evaluation(),
        title="Two findings",
        model="ours",
        others={"poor": evaluate(tables()[1], tables()[2], EvaluationSettings(draws=100))},
        compared_with="poor",
    ).page()
    html = page.html()
    for finding in evaluation().findings.values():
        for key in ("auroc", "average_precision", "sensitivity", "specificity", "f1", "ppv", "npv", "brier", "ece"):
            assert measured(finding.estimates[key]).written() in html, key
    assert "always positive" in html
    assert measured(evaluation().comparison["sdh"]["auroc"].estimate).written(signed=True) in html
    assert all(note[1:] in html for note in evaluation().notes)
    assert "Shuffled test labels, fracture (of the arithmetic alone, not of the training)" in html


def test_the_flow_accounts_for_the_findings_of_an_evaluation() -> None:
    findings = [evaluated(finding) for finding in evaluation().findings.values()]
    flow = Flow(stages=[Stage("labelled", SCANS)], splits={"test": SCANS}, tested="test", findings=findings)
    page = report_of(evaluation(), title="Two findings", model="ours", flow=flow).page()
    assert "Flow of scans" in [section.title for section in page.sections]


def test_subgroups_that_are_too_small_are_named() -> None:
    finding = evaluation().findings["sdh"]
    silent = replace(finding.subgroups[0], group="site-c", area=None, difference=None, reason="2 positives")
    shown = forest_of(replace(finding, subgroups=(*finding.subgroups, silent)))
    assert [one.label for one in shown.groups["site"]] == ["site-a", "site-b"]
    assert shown.note == "not drawn, too few patients: site site-c"
    nothing = replace(finding, subgroups=(silent,))
    report = report_of(replace(evaluation(), findings={"sdh": nothing}), title="T", model="ours")
    assert report.subgroups == {}
    assert "subdural hematoma has no subgroup of enough patients with it and without" in report.notes


def test_a_perfect_number_from_few_patients_says_what_it_is_worth() -> None:
    labels = pd.DataFrame({"scan_id": [f"s{number}" for number in range(16)]})
    labels["patient_id"], labels["edh"] = labels["scan_id"], (np.arange(16) < 6).astype(int)
    told = labels[["scan_id"]].assign(finding="edh", probability=np.linspace(0.99, 0.01, 16))
    first, few, perfect = answer(evaluate(told, labels, EvaluationSettings(draws=100)))
    assert first.startswith("AUROC 1.000 (")
    assert few.startswith("Few patients: 1 of 1 finding has fewer than 25 of the rarer kind (epidural hematoma: 6)")
    assert "ranked without a mistake; in other patients it may be as low as 0." in perfect


def test_what_the_evaluation_adds_is_on_the_page() -> None:
    told, _, labels = tables()
    unlike = told.assign(ood=np.linspace(0, 1, len(told)))
    labels = labels.assign(sdh_ml=np.where(labels["sdh"] == "1", np.tile([2.0, 50.0], SCANS // 2), 0))
    done = evaluate(unlike, labels, EvaluationSettings(draws=100, groups=("sdh_ml",)), points={"sdh": POINT})
    measurements = compare_tables(labels[["scan_id", "sdh_ml"]].assign(sdh_ml=labels["sdh_ml"] + 1), labels)
    rows, sides = measurement_rows(measurements)
    report = replace(report_of(done, title="T", model="ours"), measurements=rows, sides=sides)
    html = report.page().html()
    for words in ("Abstention by distance", "chosen elsewhere", "volume (ml)", "Measurements against the truth",
                  "+1.000 (+1.000 to +1.000)", "Operating points: a finding is called"):  # fmt: skip
        assert words in html
    (row,) = pair_rows(compare_all({"a": told, "b": tables()[1]}, labels.drop(columns="fracture")))
    assert (row.ours, row.theirs, row.finding) == ("a", "b", "sdh")


def test_a_transfer_matrix_keeps_its_areas() -> None:
    truth, told = known("sdh")
    area = Area.of(truth, told, Patients.of(np.arange(len(truth))))
    matrix = TransferMatrix.of("sdh", {("a", "a"): area})
    shown = report_of(evaluation(), title="T", model="ours", transfer=[matrix]).transfer["sdh"]
    assert shown["a", "a"].value == pytest.approx(roc_auc_score(truth, told))


def test_what_is_lost_away_from_home_and_what_own_labels_gain_stand_under_the_matrix() -> None:
    rng = np.random.default_rng(0)
    truth = {site: rng.random(200) < 0.4 for site in "ab"}
    strength = {"aa": 2.0, "ab": 0.5, "bb": 1.5}
    scores = {pair: rng.normal(size=200) + truth[pair[1]] * power for pair, power in strength.items()}
    areas = {(pair[0], pair[1]): Area.of(truth[pair[1]], told) for pair, told in scores.items()}
    report = report_of(evaluation(), title="T", model="ours", transfer=[TransferMatrix.of("sdh", areas)])
    (away,) = report.moved["sdh"]
    auroc = {pair: roc_auc_score(truth[pair[1]], told) for pair, told in scores.items()}
    assert (away.trained, away.tested) == ("a", "b")
    assert away.lost.value == pytest.approx(auroc["aa"] - auroc["ab"])
    assert away.gained.value == pytest.approx(auroc["bb"] - auroc["ab"])
    assert all(0 < one.low < one.value < one.high for one in (away.lost, away.gained))
    html = report.page().html()
    assert html.index("Transfer, subdural hematoma") < html.index("Lost and gained, subdural hematoma")
    assert all(one.written(signed=True) in html for one in (away.lost, away.gained))
    assert (
        "Lost and gained"
        not in report_of(
            evaluation(), title="T", model="ours", transfer=[TransferMatrix.of("sdh", {("a", "a"): areas["a", "a"]})]
        )
        .page()
        .html()
    )


def test_the_mean_over_findings_stands_above_the_matrices() -> None:
    rng = np.random.default_rng(0)
    truth = {site: rng.random(200) < 0.4 for site in "ab"}
    strength = {"aa": 2.0, "ab": 0.5, "ba": 0.5, "bb": 1.5}
    matrices = [
        TransferMatrix.of(
            finding,
            {
                (pair[0], pair[1]): Area.of(truth[pair[1]], rng.normal(size=200) + truth[pair[1]] * power)
                for pair, power in strength.items()
            },
        )
        for finding in ("sdh", "iph")
    ]
    mean = MeanTransfer.of(matrices)
    report = report_of(evaluation(), title="T", model="ours", transfer=matrices, mean_transfer=mean)
    words, *others = report.transfer
    assert words == "mean over subdural hematoma and intraparenchymal hemorrhage"
    assert others == ["sdh", "iph"]
    (gained, _) = report.moved[words]
    assert gained.gained.value == pytest.approx(mean.areas["b", "b"].value - mean.areas["a", "b"].value)
    html = report.page().html()
    below = html[html.index(f"Lost and gained, {words}") : html.index("Transfer, subdural hematoma")]
    assert "Gained by own labels" in below
    assert ">Lost<" not in below
    single = report_of(evaluation(), title="T", model="ours", mean_transfer=MeanTransfer.of(matrices[:1]))
    assert not single.transfer


def test_what_does_not_exist_stays_unsaid() -> None:
    lone = measured(Estimate(value=0.7, low=None, high=None, n=5, positives=2, method="none"))
    assert lone.written() == "0.700 (no interval)"
