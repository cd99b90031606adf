"""The page of a protocol: the report of an evaluation, with the whole table, and who was learned from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from headct.cohort import Cohort
from headct.detection.curves import MACRO
from headct.evaluation.evaluation import Evaluation, Finding
from headct.reporting.findings import called
from headct.reporting.flow import Loss, Stage
from headct.reporting.measured import Measured, measured
from headct.reporting.page import Page, Provenance, Section
from headct.reporting.result_curves import Learner as Drawn
from headct.reporting.result_curves import Shot
from headct.reporting.result_flow import Evaluated
from headct.reporting.result_tables import ComparedRow, Published
from headct.reporting.results import Beside, FewShot, Flow
from headct.reporting.results_of_evaluation import evaluated, report_of
from headct.reporting.tables import Column, table
from headct.reporting.words import NOT_STATED, count
from headct.studies.protocol_job import Walked
from headct.studies.protocol_results import BASELINES, MODEL, Learner, Line

TO_DO = (
    "Compare models by the columns of differences, not by whether intervals overlap.",
    "Publish protocol.json, shots.csv or fractions.csv, and table.csv with the numbers.",
)


def write_page(walked: Walked, path: Path) -> None:
    """Write the page, whole or not at all."""
    page_of(walked).write(path)


def page_of(walked: Walked) -> Page:
    """What the first method of the model reaches, then everything else beside it."""
    protocol, results = walked.protocol, walked.results
    first, *rest = results.evaluations
    evaluation = results.evaluations[first]
    report = report_of(
        evaluation,
        title=protocol.title,
        model=first.name,
        others={one.name: results.evaluations[one] for one in rest},
        few_shots=list(_few_shots(walked)),
        flow=_flow(walked, evaluation),
        published=_beside(walked),
        record=_record(walked),
        provenance=_provenance(walked),
        to_do=TO_DO,
    )
    report = replace(report, comparisons=list(_compared(results.lines)), notes=[*walked.notes, *report.notes])
    page = report.page()
    figure, *others = page.sections
    return replace(page, kind="protocol", sections=[figure, _table(results.lines), *others])


def _table(lines: Sequence[Line]) -> Section:
    rows = [
        {
            "finding": called(line.finding) if line.finding != MACRO else "mean over findings",
            "labels": line.labels,
            "learner": line.learner.name,
            "n": line.auroc.n,
            "positives": None if line.finding == MACRO else line.auroc.positives,
            "auroc": measured(line.auroc),
            **{name: measured(line.less[name].estimate) if name in line.less else None for name in BASELINES},
        }
        for line in lines
    ]
    columns = [
        Column(key="finding", header="Finding"),
        Column(key="labels", header="Labels"),
        Column(key="learner", header="Learner"),
        Column(key="n", header="n", unit="scans", decimals=0),
        Column(key="positives", header="Positives", unit="scans", decimals=0),
        Column(key="auroc", header="AUROC", unit="value (low to high)", decimals=3, write=_written),
        *(
            Column(key=name, header=f"less {name}", unit="difference (low to high)", decimals=3, write=_signed)
            for name in BASELINES
        ),
    ]
    keys = [column.key for column in columns]
    lead = (
        "All that was learned, from all labels and from few; differences are those of the same scans and the same "
        "draws. Intervals are over test patients; where labels are few, over draws too."
    )
    body = table(pd.DataFrame(rows, columns=keys).astype(object), columns, "AUROC by finding, labels and learner")
    return Section(title="The table", lead=lead, body=Markup(body))


def _written(value: object) -> str:
    return value.written() if isinstance(value, Measured) else NOT_STATED


def _signed(value: object) -> str:
    return value.written(signed=True) if isinstance(value, Measured) else NOT_STATED


def _compared(lines: Sequence[Line]) -> Iterator[ComparedRow]:
    """Differences where all labels were learned from."""
    for line in lines:
        if line.draws is None and line.finding != MACRO:
            for baseline, found in line.less.items():
                yield ComparedRow(
                    finding=line.finding,
                    ours=line.learner.name,
                    theirs=line.learner.beside(baseline).name,
                    difference=measured(found.estimate),
                    p=found.p,
                    p_corrected=found.corrected,
                )


def _few_shots(walked: Walked) -> Iterator[FewShot]:
    """A figure for each finding; of shares of the patients, which are no numbers of shots, the table alone tells."""
    words = {f"K = {k}": k for k in walked.protocol.shots}
    shown: dict[str, dict[Learner, list[Line]]] = {}
    for line in walked.results.lines:
        if line.labels in words and line.auroc.low is not None:
            shown.setdefault(line.finding, {}).setdefault(line.learner, []).append(line)
    for finding, of_learners in shown.items():
        some = next(iter(of_learners.values()))[0].auroc
        yield FewShot(
            title="Mean over findings" if finding == MACRO else called(finding),
            learners=[
                Drawn(name=one.name, shots=[_shot(line, words) for line in lines], ours=one.features == MODEL)
                for one, lines in of_learners.items()
            ],
            n=some.n,
            positives=None if finding == MACRO else some.positives,
        )


def _shot(line: Line, words: dict[str, int]) -> Shot:
    area = measured(line.auroc)
    return Shot(k=words[line.labels], value=area.value, low=area.low, high=area.high, draws=line.draws or 1)


def _flow(walked: Walked, evaluation: Evaluation) -> Flow:
    cohort, labelled = walked.cohort, sum(walked.splits.values())
    lost = len(cohort) - labelled
    stages = [
        Stage("series, and single files that are none", len(cohort) + len(cohort.rejections)),
        Stage("accepted", len(cohort), tuple(_rejected(cohort))),
        Stage("labelled", labelled, (Loss("no label, or left out by the set's own rules", lost),)),
    ]
    findings = [_evaluated(one, walked.splits["test"]) for one in evaluation.findings.values()]
    return Flow(stages=stages, splits=walked.splits, tested="test", findings=findings)


def _rejected(cohort: Cohort) -> Iterator[Loss]:
    for code, number in cohort.rejections["code"].value_counts().items():
        yield Loss(str(code), int(number))


def _evaluated(finding: Finding, tested: int) -> Evaluated:
    """The unknown ones are those of the test scans alone, not of the validation scans as well."""
    found = evaluated(finding)
    return replace(found, unknown=tested - found.positive - found.negative)


def _beside(walked: Walked) -> list[Beside]:
    evaluations = walked.results.evaluations
    rows = []
    for known in walked.protocol.published:
        evaluation = evaluations.get(Learner(MODEL, known.method))
        found = None if evaluation is None else evaluation.findings.get(known.finding)
        rows.append(
            Published(
                finding=known.finding,
                measure=f"AUROC, {known.method}",
                theirs=known.theirs,
                source=known.source,
                ours=None if found is None else measured(found.estimates["auroc"]),
                their_cases=known.cases,
            )
        )
    return [Beside(rows=rows, why_not_comparable=walked.protocol.not_comparable)] if rows else []


def _record(walked: Walked) -> dict[str, str]:
    """Answers to the checklists."""
    record, protocol = walked.record, walked.protocol
    model, recipe = record["model"], record["recipe"]
    parts = ", ".join(f"{part} {number:,}" for part, number in walked.splits.items())
    return {
        "data_sources": f"The public set {protocol.dataset}, as downloaded.",
        "deidentification": "Identifiers are those of the public set, which are pseudonyms already.",
        "missing": "A scan whose label of a finding is unknown is left out for that finding; unreadable series are "
        "rejected with their reason and counted.",
        "preprocessing": f"Recipe {recipe['name']} ({recipe['id']}).",
        "partitions": f"A hash of the patient's name decides ({record['splits']['rule']}); scans: {parts}.",
        "disjoint": "Splits are disjoint by patient, which was checked.",
        "model": f"{model['architecture']}, SHA-256 of weights and settings {model['decisive_sha256']}; heads: "
        f"{', '.join(record['methods'])}.",
        "software": ", ".join(f"{name} {version}" for name, version in record["versions"].items()) + ".",
        "initialization": f"Weights of SHA-256 {model['sha256']}; baselines start at random weights.",
        "selection": "Regularisation by cross-validation within training patients; the step of trained networks by "
        "validation patients, all of whose labels are known where few are learned from too; nothing by test patients.",
        "calibration": "A slope and a shift of the logit (Platt), or an isotonic curve where there are enough scans "
        "and it is better, fitted on validation scans.",
        "operating_point": "The threshold with the largest sum of sensitivity and specificity on validation scans.",
        "blinding": "Labels of test scans served to count them and to evaluate; nothing was learned or chosen by them.",
        "imbalance": "Either class of each finding weighs the same in training.",
        "metrics": "AUROC, average precision, sensitivity, specificity, F1, predictive values, Brier score, ECE.",
        "uncertainty": "95 % intervals that count patients; few labels: over draws too, each with a seed of its own. "
        "Differences are paired (DeLong by patient), corrected by Holm over findings.",
        "technical_detail": "protocol.json holds all settings and hashes.",
        "counts": f"{count(sum(walked.splits.values()), 'labelled scan')}; each number stands with its cases.",
    }


def _provenance(walked: Walked) -> Provenance:
    record = walked.record
    settings = {name: value for name, value in asdict(walked.protocol).items() if name not in ("published", "title")}
    return Provenance(
        settings={
            **settings,
            "methods": ", ".join(record["methods"]),
            "arithmetic": record["arithmetic"],
            "recipe": f"{record['recipe']['name']} ({record['recipe']['id']})",
        },
        hashes={"model": record["model"]["decisive_sha256"], **record["hashes"]},
        versions=record["versions"],
    )
