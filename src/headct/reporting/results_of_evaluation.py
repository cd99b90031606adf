"""An `Evaluation` as a `Report`: its numbers in the places of the page. Whatever it does not hold comes beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headct.evaluation.comparison import Difference
from headct.evaluation.evaluation import Evaluation, Finding
from headct.evaluation.intervals import Estimate
from headct.evaluation.leakage import SHUFFLED
from headct.evaluation.metrics import Confusion as Counts
from headct.evaluation.transfer import TransferMatrix
from headct.reporting.findings import called
from headct.reporting.measured import Measured
from headct.reporting.result_comparisons import Compared, Subgroup
from headct.reporting.result_curves import Bin, Curve, OperatingPoint
from headct.reporting.result_flow import Confusion, Evaluated
from headct.reporting.result_tables import ComparedRow, MetricRow
from headct.reporting.results import Calibration, Check, Forest, Ranking, Report
from headct.reporting.words import count

METRICS: Mapping[str, str] = {
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "f1": "F1",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "ppv": "PPV",
    "npv": "NPV",
    "brier": "Brier",
    "ece": "ECE",
}
"""Keys of `metrics.json` that the table shows, in its order, with their headers."""
BASELINES = {"always_positive": "always positive", "majority": "majority"}


def report_of(
    evaluation: Evaluation,
    *,
    title: str,
    model: str,
    others: Mapping[str, Evaluation] | None = None,
    compared_with: str = "",
    curves: Mapping[str, tuple[Curve, Curve]] | None = None,
    transfer: Sequence[TransferMatrix] = (),
    **parts: Any,
) -> Report:
    """The report of an evaluation; `model` names what was evaluated, `others` baselines evaluated on the same scans.

    `compared_with` names the other model of `evaluation.comparison`. `curves` are the ROC and the precision-recall
    curve by finding, with their bands. `parts` are the fields of `Report` that no evaluation holds: `flow`, `examples`,
    `few_shots`, `published`, `record`, `provenance`, `to_do`, `virtual`.
    """
    findings = evaluation.findings
    return Report(
        title=title,
        answer=answer(evaluation),
        metrics=[row for finding in findings.values() for row in _rows(finding, model)],
        models={name: list(_models(name, evaluation, model, others or {})) for name in findings},
        comparisons=[
            _compared(name, of_finding["auroc"], model, compared_with)
            for name, of_finding in evaluation.comparison.items()
        ],
        rankings={name: ranking(findings[name], *both) for name, both in (curves or {}).items()},
        calibrations={name: calibration(finding) for name, finding in findings.items()},
        subgroups={name: forest_of(finding) for name, finding in findings.items() if finding.subgroups},
        transfer={matrix.finding: _transfer(matrix) for matrix in transfer},
        checks=[_shuffled(finding) for finding in findings.values()],
        notes=[*evaluation.notes, *(f"{called(name)} is left out: {why}" for name, why in evaluation.left_out.items())],
        **parts,
    )


def measured(estimate: Estimate) -> Measured:
    """An estimate as the page writes it: what does not exist is NaN."""
    value, low, high = (math.nan if one is None else one for one in (estimate.value, estimate.low, estimate.high))
    return Measured(value=value, low=low, high=high, n=estimate.n, positives=estimate.positives)


def answer(evaluation: Evaluation) -> list[str]:
    """The first sentences: the mean over findings, the best and the worst, and on how many scans."""
    areas = {name: measured(finding.estimates["auroc"]) for name, finding in evaluation.findings.items()}
    ranked = sorted(areas, key=lambda name: -areas[name].value)
    tested = f"{count(evaluation.scans, 'scan')} of {count(evaluation.patients, 'patient')}"
    if len(ranked) == 1:
        return [f"AUROC {areas[ranked[0]].written()} for {called(ranked[0])}, in {tested}."]
    mean = measured(evaluation.macro["auroc"]).written()
    return [
        f"Mean AUROC {mean} over {len(ranked)} findings, in {tested}.",
        f"Highest for {called(ranked[0])}, {_of(areas[ranked[0]])}; "
        f"lowest for {called(ranked[-1])}, {_of(areas[ranked[-1]])}.",
    ]


def _of(area: Measured) -> str:
    return f"{area.written()} with {area.positives:,} positive of {area.n:,}"


def _rows(finding: Finding, model: str) -> Iterable[MetricRow]:
    """The row of the model, then those of what can be had without looking at a scan."""
    area = finding.estimates["auroc"]
    rows = {model: finding.estimates} | {
        words: finding.baselines[name] for name, words in BASELINES.items() if name in finding.baselines
    }
    for name, estimates in rows.items():
        yield MetricRow(
            finding=finding.name,
            model=name,
            n=area.n,
            positives=area.positives,
            prevalence=area.positives / area.n,
            metrics={METRICS[key]: measured(estimates[key]) for key in METRICS if key in estimates},
        )


def _models(name: str, evaluation: Evaluation, model: str, others: Mapping[str, Evaluation]) -> Iterable[Compared]:
    yield Compared(model=model, value=measured(evaluation.findings[name].estimates["auroc"]), ours=True)
    for other, result in others.items():
        if name in result.findings:
            yield Compared(model=other, value=measured(result.findings[name].estimates["auroc"]))


def _compared(name: str, difference: Difference, model: str, other: str) -> ComparedRow:
    return ComparedRow(
        finding=name,
        ours=model,
        theirs=other,
        difference=measured(difference.estimate),
        p=difference.p,
        p_corrected=difference.corrected,
    )


def ranking(finding: Finding, roc: Curve, precision_recall: Curve) -> Ranking:
    """The curves of a finding with their areas and the operating point.

    The predictive value is marked where it was asked for at the prevalence of these scans, which is the curve's.
    """
    area, counts = finding.estimates["auroc"], _counts(finding)
    ppv = measured(finding.estimates["ppv"])
    called_positive = counts.true_positive + counts.false_positive
    is_own = called_positive > 0 and math.isclose(ppv.value, counts.true_positive / called_positive, abs_tol=1e-6)
    return Ranking(
        auroc=measured(area),
        average_precision=measured(finding.estimates["average_precision"]),
        prevalence=area.positives / area.n,
        roc=roc,
        precision_recall=precision_recall,
        operating=OperatingPoint(
            threshold=finding.operating_point.threshold,
            sensitivity=measured(finding.estimates["sensitivity"]),
            specificity=measured(finding.estimates["specificity"]),
            ppv=ppv if is_own else None,
        ),
    )


def calibration(finding: Finding) -> Calibration:
    """The reliability curve of a finding, and what abstention gains."""
    abstention = finding.abstention
    area = finding.estimates["auroc"]
    return Calibration(
        ece=measured(finding.estimates["ece"]),
        bins=[_bin(one.probability, measured(one.frequency)) for one in finding.curve],
        coverage=Curve(x=abstention.coverage, y=abstention.risk, low=abstention.low, high=abstention.high),
        overall_risk=Measured(
            value=float(abstention.risk[-1]),
            low=float(abstention.low[-1]),
            high=float(abstention.high[-1]),
            n=area.n,
            positives=area.positives,
        ),
    )


def _bin(probability: float, share: Measured) -> Bin:
    low, high = (share.low, share.high) if share.has_interval else (share.value, share.value)
    return Bin(predicted=probability, observed=share.value, low=low, high=high, n=share.n)


def forest_of(finding: Finding) -> Forest:
    """The subgroups of a finding by column; those without a number are named in the note."""
    groups: dict[str, list[Subgroup]] = {}
    silent = []
    for one in finding.subgroups:
        if one.area is None or one.area.value is None:
            silent.append(f"{one.column} {one.group} ({one.reason})")
            continue
        difference = None if one.difference is None else measured(one.difference.estimate)
        groups.setdefault(one.column, []).append(
            Subgroup(label=one.group, value=measured(one.area), difference=difference)
        )
    note = f"not drawn: {'; '.join(silent)}" if silent else ""
    return Forest(overall=measured(finding.estimates["auroc"]), groups=groups, note=note)


def _transfer(matrix: TransferMatrix) -> Mapping[tuple[str, str], Measured]:
    return {sites: measured(cell.area.estimate()) for sites, cell in matrix.cells.items()}


def _shuffled(finding: Finding) -> Check:
    mean = finding.shuffled.mean
    return Check(
        name=f"Shuffled labels, {called(finding.name)}",
        expected=f"AUROC 0.50 ± {SHUFFLED:.2f}",
        seen=f"{mean:.3f} over {finding.shuffled.shufflings:,} shufflings",
        passed=abs(mean - 0.5) <= SHUFFLED,
    )


def _counts(finding: Finding) -> Confusion:
    counts = Counts.at(finding.operating_point.threshold, finding.labels, finding.probabilities)
    return Confusion(
        true_positive=int(counts.tp),
        false_positive=int(counts.fp),
        false_negative=int(counts.fn),
        true_negative=int(counts.tn),
    )


def evaluated(finding: Finding) -> Evaluated:
    """The last step of the flow for a finding: its scans by label and by what the detector said."""
    area = finding.estimates["auroc"]
    return Evaluated(
        finding=finding.name,
        positive=area.positives,
        negative=area.n - area.positives,
        unknown=finding.unknown,
        said=_counts(finding),
    )
