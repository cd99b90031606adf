"""An `Evaluation` as a `Report`: its numbers in the places of the page. Whatever it does not hold comes beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from headct.evaluation.comparison import Difference
from headct.evaluation.curves import Band
from headct.evaluation.evaluation import Evaluation, Finding
from headct.evaluation.leakage import COVERED_FROM, SHUFFLED
from headct.evaluation.measurements import Measurements
from headct.evaluation.metrics import Confusion as Counts
from headct.evaluation.operating import Abstention
from headct.evaluation.pairs import Pair
from headct.evaluation.transfer import MeanTransfer, TransferMatrix
from headct.reporting.findings import called
from headct.reporting.measured import Measured, measured
from headct.reporting.result_comparisons import Compared, Subgroup
from headct.reporting.result_curves import Bin, Curve, OperatingPoint
from headct.reporting.result_flow import Confusion, Evaluated
from headct.reporting.result_tables import ComparedRow, MeasurementRow, MetricRow, MovedRow, PointRow, SideRow
from headct.reporting.results import Calibration, Check, Forest, Ranking, Report
from headct.reporting.words import count, joined

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
DIVIDED_BY: Mapping[str, str] = {
    "site": "site",
    "manufacturer": "manufacturer",
    "kernel": "kernel",
    "thickness_mm": "slice thickness (mm)",
    "tilt_deg": "gantry tilt (degrees)",
    "age": "age (years)",
    "sex": "sex",
    "ml": "volume (ml)",
    "midline_shift_mm": "midline shift (mm)",
    "mm": "size (mm)",
}
"""Columns that divide scans into subgroups, as the page calls them."""
BASELINES = {"always_positive": "always positive", "majority": "majority"}


def report_of(
    evaluation: Evaluation,
    *,
    title: str,
    model: str,
    others: Mapping[str, Evaluation] | None = None,
    compared_with: str = "",
    transfer: Sequence[TransferMatrix] = (),
    mean_transfer: MeanTransfer | None = None,
    **parts: Any,
) -> Report:
    """The report of an evaluation; `model` names what was evaluated, `others` baselines evaluated on the same scans.

    `compared_with` names the other model of `evaluation.comparison`. `parts` are the fields of `Report` that no
    evaluation holds: `flow`, `intake`, `examples`, `few_shots`, `published`, `measurements`, `record`, `provenance`,
    `to_do`, `virtual`.
    """
    findings = evaluation.findings
    means = [mean_transfer] if mean_transfer is not None and len(mean_transfer.findings) > 1 else []
    forests = {name: forest_of(finding) for name, finding in findings.items() if finding.subgroups}
    return Report(
        title=title,
        answer=answer(evaluation),
        metrics=[row for finding in findings.values() for row in _rows(finding, model)],
        models={name: list(_models(name, evaluation, model, others or {})) for name in findings},
        comparisons=[
            _compared(name, of_finding["auroc"], model, compared_with)
            for name, of_finding in evaluation.comparison.items()
        ],
        rankings={name: ranking(finding) for name, finding in findings.items()},
        points=[_point(finding) for finding in findings.values()],
        calibrations={name: calibration(finding) for name, finding in findings.items()},
        subgroups={name: forest for name, forest in forests.items() if forest.groups},
        transfer={
            **{_mean_over(mean): _mean_areas(mean) for mean in means},
            **{matrix.finding: _transfer(matrix) for matrix in transfer},
        },
        moved={
            **{_mean_over(mean): _mean_gains(mean) for mean in means},
            **{matrix.finding: list(_moved(matrix)) for matrix in transfer},
        },
        checks=[_shuffled(finding) for finding in findings.values()],
        notes=[
            *evaluation.notes,
            *(f"{called(name)} is left out: {why}" for name, why in evaluation.left_out.items()),
            *(
                f"{called(name)} has no subgroup of enough patients with it and without"
                for name, forest in forests.items()
                if not forest.groups
            ),
        ],
        **parts,
    )


def answer(evaluation: Evaluation) -> list[str]:
    """The first sentences: the mean over findings, the best and the worst, and on how many scans."""
    areas = {name: measured(finding.estimates["auroc"]) for name, finding in evaluation.findings.items()}
    ranked = sorted(areas, key=lambda name: -areas[name].value)
    tested = f"{count(evaluation.scans, 'scan')} of {count(evaluation.patients, 'patient')}"
    few = _few(evaluation, areas)
    if len(ranked) == 1:
        return [f"AUROC {areas[ranked[0]].written()} for {called(ranked[0])}, in {tested}.", *few]
    mean = measured(evaluation.macro["auroc"]).written()
    return [
        f"Mean AUROC {mean} over {len(ranked)} findings, in {tested}.",
        f"Highest for {called(ranked[0])}, {_of(areas[ranked[0]])}; "
        f"lowest for {called(ranked[-1])}, {_of(areas[ranked[-1]])}.",
        *few,
    ]


def _few(evaluation: Evaluation, areas: Mapping[str, Measured]) -> list[str]:
    """What a number from few patients is worth: the least of the rarer class, and what a perfect one says."""
    rarer = {name: min(finding.area.holders) for name, finding in evaluation.findings.items()}
    scarce = [name for name, number in rarer.items() if number < COVERED_FROM]
    if not scarce:
        return []
    least = min(scarce, key=lambda name: rarer[name])
    have = "has" if len(scarce) == 1 else "have"
    words = [
        f"Few patients: {len(scarce)} of {count(len(rarer), 'finding')} {have} fewer than {COVERED_FROM} of the rarer "
        f"kind ({called(least)}: {rarer[least]}), so read the intervals, not the values."
    ]
    perfect = [name for name in scarce if areas[name].value == 1]
    if perfect:
        lowest = min(perfect, key=lambda name: areas[name].low)
        words.append(
            f"An AUROC of 1.000 ({', '.join(called(name) for name in perfect)}) says that these few scans were ranked "
            f"without a mistake; in other patients it may be as low as {areas[lowest].low:.2f}."
        )
    return words


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


def ranking(finding: Finding) -> Ranking:
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
        roc=_curve(finding.roc),
        precision_recall=_curve(finding.precision_recall),
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
        coverage=_coverage(abstention),
        coverage_by_ood=None if finding.abstention_by_ood is None else _coverage(finding.abstention_by_ood),
        overall_risk=Measured(
            value=float(abstention.risk[-1]),
            low=float(abstention.low[-1]),
            high=float(abstention.high[-1]),
            n=area.n,
            positives=area.positives,
        ),
    )


def _coverage(abstention: Abstention) -> Curve:
    return Curve(x=abstention.coverage, y=abstention.risk, low=abstention.low, high=abstention.high)


def _curve(band: Band) -> Curve:
    return Curve(x=band.x, y=band.y, low=band.low, high=band.high)


def _point(finding: Finding) -> PointRow:
    point = finding.operating_point
    return PointRow(finding=finding.name, threshold=point.threshold, origin=point.origin)


def measurement_rows(found: Measurements) -> tuple[list[MeasurementRow], list[SideRow]]:
    """Measurements as the page shows them: `Report.measurements` and `Report.sides`."""
    rows = [
        MeasurementRow(
            measurement=name,
            unit=one.unit,
            bias=measured(one.bias),
            absolute=measured(one.absolute),
            within=measured(one.within),
            tolerance=one.tolerance,
            agreement=one.agreement,
        )
        for name, one in found.errors.items()
    ]
    sides = [
        SideRow(
            measurement=name,
            sides=one.sides,
            counts=one.counts.tolist(),
            right=measured(one.right),
            swapped=measured(one.swapped),
        )
        for name, one in found.sides.items()
    ]
    return rows, sides


def pair_rows(pairs: Sequence[Pair]) -> list[ComparedRow]:
    """Several models, each with each."""
    return [_compared(pair.finding, pair.auroc, pair.first, pair.second) for pair in pairs]


def _bin(probability: float, share: Measured) -> Bin:
    low, high = (share.low, share.high) if share.has_interval else (share.value, share.value)
    return Bin(predicted=probability, observed=share.value, low=low, high=high, n=share.n)


def divided_by(column: str, finding: str) -> str:
    """What divides scans, in words: a column of scans or of labels, which may be the lesion's own volume."""
    own = column.removeprefix(f"{finding}_")
    return DIVIDED_BY.get(own, DIVIDED_BY.get(column, column))


def forest_of(finding: Finding) -> Forest:
    """The subgroups of a finding by column; those of too few patients for a number are named in the note."""
    groups: dict[str, list[Subgroup]] = {}
    silent: dict[str, list[str]] = {}
    for one in finding.subgroups:
        if one.area is None or one.area.value is None:
            silent.setdefault(divided_by(one.column, finding.name), []).append(one.group)
            continue
        difference = None if one.difference is None else measured(one.difference.estimate)
        groups.setdefault(divided_by(one.column, finding.name), []).append(
            Subgroup(label=one.group, value=measured(one.area), difference=difference)
        )
    named = "; ".join(f"{column} {', '.join(few)}" for column, few in silent.items())
    note = f"not drawn, too few patients: {named}" if silent else ""
    return Forest(overall=measured(finding.estimates["auroc"]), groups=groups, note=note)


def _transfer(matrix: TransferMatrix) -> Mapping[tuple[str, str], Measured]:
    return {sites: measured(cell.area.estimate()) for sites, cell in matrix.cells.items()}


def _mean_areas(mean: MeanTransfer) -> Mapping[tuple[str, str], Measured]:
    """Without counts of positives: a scan is positive for one finding and negative for another."""
    return {pair: replace(measured(area), positives=None) for pair, area in mean.areas.items()}


def _mean_gains(mean: MeanTransfer) -> list[MovedRow]:
    return [
        MovedRow(trained=trained, tested=tested, lost=None, lost_p=None, gained=_turned(gain), gained_p=gain.corrected)
        for (trained, tested), gain in mean.gains.items()
    ]


def _mean_over(mean: MeanTransfer) -> str:
    return f"mean over {joined([called(name) for name in mean.findings])}"


def _moved(matrix: TransferMatrix) -> Iterable[MovedRow]:
    """What was lost and what would be gained, turned so that both are above 0 where there is something to gain."""
    for cell in matrix.cells.values():
        if cell.drop is not None or cell.gain is not None:
            yield MovedRow(
                trained=cell.trained,
                tested=cell.tested,
                lost=_turned(cell.drop),
                lost_p=None if cell.drop is None else cell.drop.corrected,
                gained=_turned(cell.gain),
                gained_p=None if cell.gain is None else cell.gain.corrected,
            )


def _turned(difference: Difference | None) -> Measured | None:
    """The second less the first."""
    if difference is None:
        return None
    found = measured(difference.estimate)
    return replace(found, value=0 - found.value, low=0 - found.high, high=0 - found.low)


def _shuffled(finding: Finding) -> Check:
    mean = finding.shuffled.mean
    return Check(
        name=f"Shuffled test labels, {called(finding.name)} (of the arithmetic alone, not of the training)",
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
