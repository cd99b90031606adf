"""The page of an evaluation, of detectors on cohorts or of tables alone: what is known besides the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from headct.checkpoints.strict import sha256_of
from headct.cohort.identities import hold_pseudonyms, is_virtual, pseudonyms_of
from headct.detection import Detector
from headct.detection.curves import MACRO
from headct.evaluation import Evaluation
from headct.evaluation.evaluation import Finding, Outcome
from headct.evaluation.leakage import ALIKE, SHUFFLED
from headct.evaluation.measurements import Measurements
from headct.evaluation.transfer import MeanTransfer
from headct.reporting.findings import called
from headct.reporting.flow import Loss, Stage
from headct.reporting.intake import STEP_OF, STEPS, Intake
from headct.reporting.measured import measured
from headct.reporting.page import Provenance, software_versions
from headct.reporting.result_curves import SHOTS, Learner, Shot
from headct.reporting.result_flow import Evaluated
from headct.reporting.result_pictures import Example, Shown
from headct.reporting.results import Check, FewShot, Flow, Report
from headct.reporting.results_of_evaluation import evaluated, measurement_rows, pair_rows, report_of
from headct.reporting.words import count, joined
from headct.studies.cohort_sections import spacing_mm
from headct.studies.evaluation import Study
from headct.studies.evaluation_checks import Unlearned
from headct.studies.evaluation_curves import OURS, Kind, LearningCurve
from headct.studies.evaluation_scans import USED, counted, names_of
from headct.tasks.explanation.judging import can_look
from headct.tasks.explanation.slabs import driving_slices

VERSIONS = ("headct", "numpy", "scipy", "scikit-learn", "pandas")
MOST_EXAMPLES = 8
EXAMPLES: Mapping[Kind, str] = {"shots": SHOTS, "shares": "labelled patients"}
PARTS = {"test": "test", "train": "learned from", "validation": "validated on"}
"""What the flow calls the parts of the labelled scans."""
INTERVALS = (
    "95 % intervals that count patients: DeLong's variance by patient on the logit scale for AUROC, Wilson's with a "
    "design effect for shares, the bootstrap over patients for the rest; differences by DeLong's test and the paired "
    "bootstrap. Their p values are corrected by Holm: between models over all pairs and findings, AUROC and average "
    "precision apart; of subgroups over those of a column, where there are three or more; of transfer over the cells "
    "of a finding's matrix, losses and gains apart; of curves over few labels over learners, cohorts and sizes."
)
METRICS = (
    "AUROC, average precision, sensitivity, specificity, F1, balanced accuracy and predictive values at an operating "
    "point, Brier score, calibration error; ROC, precision-recall, reliability and coverage-risk curves."
)


# ---- tables alone ----


def report_of_tables(
    evaluation: Evaluation,
    predictions: pd.DataFrame,
    labels: pd.DataFrame,
    *,
    files: Mapping[str, Path],
    rival: Evaluation | None = None,
    measurements: Measurements | None = None,
) -> Report:
    """The page of two tables. `files` are those that were read, by what they are: predictions, labels, against.

    `rival` are the numbers of the other model on the same scans.
    """
    model, other = names_of_tables(files)
    report = report_of(
        evaluation,
        title=f"{model} against {files['labels'].stem}",
        model=model,
        others={} if rival is None else {other: rival},
        compared_with=other,
        flow=_flow_of_tables(evaluation, predictions, labels),
        record=_record(evaluation),
        provenance=Provenance(
            settings=_settings(evaluation),
            hashes={f"{role}: {path.name}": sha256_of(path) for role, path in files.items()},
            versions=software_versions(*VERSIONS),
        ),
    )
    return _with_measurements(report, measurements)


def names_of_tables(files: Mapping[str, Path]) -> tuple[str, str]:
    """What the two models are called; the second is nothing where there is one."""
    model, other = files["predictions"].stem, files["against"].stem if "against" in files else ""
    return model, f"{other} (--against)" if other == model else other


def _flow_of_tables(evaluation: Evaluation, predictions: pd.DataFrame, labels: pd.DataFrame) -> Flow:
    scans = predictions.drop_duplicates("scan_id")
    matched = scans[scans["scan_id"].isin(labels["scan_id"])]
    lost = Loss("not in the table of labels", len(scans) - len(matched))
    stages = [Stage("scans predicted", len(scans)), Stage("in the labels", len(matched), (lost,))]
    parts = matched["split"].replace("", "in no split") if "split" in matched else pd.Series("test", matched.index)
    if "test" not in set(parts):
        parts = pd.Series("test", matched.index)
    splits = {PARTS.get(str(name), str(name)): int(number) for name, number in parts.value_counts().items()}
    return _flow(stages, splits, evaluation)


def _flow(stages: Sequence[Stage], splits: Mapping[str, int], evaluation: Evaluation) -> Flow:
    tested = PARTS["test"]
    findings = [_accounted(finding, splits[tested]) for finding in evaluation.findings.values()]
    ordered = {tested: splits[tested], **{name: number for name, number in splits.items() if number}}
    return Flow(stages=stages, splits=ordered, tested=tested, findings=findings)


def _accounted(finding: Finding, tested: int) -> Evaluated:
    """Whatever is neither with nor without a finding is unknown, or was not predicted."""
    shown = evaluated(finding)
    return replace(shown, unknown=tested - shown.positive - shown.negative)


# ---- detectors on cohorts ----


def report_of_study(study: Study, *, files: Mapping[str, Path], examples: bool = True) -> Report:
    """The page of detectors on cohorts. `files` are the tables that were read, by the names the page has for them."""
    main, entry = study.first, study.entries[0]
    virtual = [is_virtual(cohort) for cohort in study.cohorts]
    intake = Intake(
        *(
            pd.concat([getattr(cohort, table) for cohort in study.cohorts], ignore_index=True)
            for table in ("scans", "rejections", "files")
        )
    )
    others = dict(list(study.evaluations.items())[1:])
    report = report_of(
        main,
        title=f"{entry.name} on {joined(list(dict.fromkeys(study.labelled.tested['cohort'])))}",
        model=entry.name,
        others={**others, **study.baselines},
        transfer=study.transfer,
        mean_transfer=study.mean_transfer,
        few_shots=[figure for curve in study.curves for figure in _few_shots(curve)],
        flow=_flow_of_study(study),
        intake=intake,
        examples=_examples(study) if examples else (),
        record={**_record(main), **_record_of_study(study)},
        provenance=_provenance(study, files),
        virtual=all(virtual),
    )
    notes = [*report.notes]
    if any(virtual) and not all(virtual):
        notes.append("some of the cohorts are virtual, and numbers over all of them mix both kinds of patients")
    report = replace(
        report,
        answer=_answer(report, study),
        comparisons=pair_rows(study.pairs),
        checks=[*_checks(study), *report.checks],
        notes=notes,
    )
    return _with_measurements(report, study.measurements)


def _with_measurements(report: Report, found: Measurements | None) -> Report:
    if found is None:
        return report
    rows, sides = measurement_rows(found)
    return replace(report, measurements=rows, sides=sides, notes=[*report.notes, *found.notes])


def _flow_of_study(study: Study) -> Flow:
    codes = pd.concat([cohort.rejections["code"] for cohort in study.cohorts]).value_counts()
    scans = sum(len(cohort) for cohort in study.cohorts)
    stages = [Stage("series and single files found", scans + int(codes.sum()))]
    for step in STEPS:
        losses = tuple(
            Loss(str(code), int(n), f"rejected-{code}") for code, n in codes.items() if STEP_OF[code] == step
        )
        if losses:
            stages.append(Stage(step, stages[-1].count - sum(loss.count for loss in losses), losses))
    labelled = len(study.labelled.table)
    stages.append(Stage("accepted scans", scans))
    stages.append(
        Stage("labelled", labelled, (Loss("without a label of a finding that is detected", scans - labelled),))
    )
    splits = {PARTS[part]: number for part, number in counted(study.labelled).items()}
    return _flow(stages, splits, study.first)


def _answer(report: Report, study: Study) -> list[str | Markup]:
    """Several cohorts are told apart in the second sentence: one number over all hides where it fails."""
    mean = mean_of_first(study)
    if mean is None or len(mean.areas) < 2:
        return list(report.answer)
    told = joined([f"{measured(area).written()} on {name}" for (_, name), area in mean.areas.items()])
    fewer = len(mean.findings) < len(study.first.findings)
    over = f"over {joined([called(name) for name in mean.findings])}, which all of them can test, " if fewer else ""
    words = Markup("Cohort by cohort, its mean AUROC {}is {}.").format(over, told)
    return [*report.answer[:1], words, *report.answer[1:]]


def mean_of_first(study: Study) -> MeanTransfer | None:
    """The mean areas of the first detector, over the findings that could be evaluated on all cohorts."""
    row = study.rows[study.entries[0].name]
    return MeanTransfer.of([matrix.of_detector(row) for matrix in study.transfer])


def _checks(study: Study) -> list[Check]:
    """Checks of who was learned from, and of the learning. The same scan of two patients has ended the evaluation."""
    parts, unknown = counted(study.labelled), [entry.name for entry in study.entries if entry.splits is None]
    kept_out = joined([f"{count(parts[part], 'scan')} {PARTS[part]}" for part in USED])
    checks = [
        Check(
            name="Patients of the detectors themselves",
            expected="none is tested",
            seen=f"not known of {joined(unknown)}, which has no splits.csv" if unknown else f"kept out: {kept_out}",
            passed=not unknown,
        ),
        Check(
            name="Scans of different patients that are the same",
            expected=f"no two vectors with a cosine of {ALIKE} or more",
            seen=f"none among {count(len(study.labelled.table), 'scan')}",
            passed=True,
        ),
    ]
    return checks if study.unlearned is None else [*checks, _unlearned(study.unlearned)]


def _unlearned(found: Unlearned) -> Check:
    return Check(
        name="Probe that learned from shuffled training labels",
        expected=f"AUROC of 0.50, {SHUFFLED:.2f} more at most, and {found.error:.2f} by chance",
        seen=f"{found.mean:.3f} over {len(found.areas)} shufflings by patient, {count(len(found.findings), 'finding')}",
        passed=found.passed,
    )


def _provenance(study: Study, files: Mapping[str, Path]) -> Provenance:
    settings = {
        **_settings(study.first),
        **{f"machine of {name}": str(machine) for name, machine in study.machines.items()},
        "recipe": f"{study.cohorts[0].recipe.name} ({study.cohorts[0].recipe.id})",
        **{f"method of {entry.name}": entry.detector.learned_by for entry in study.entries},
        **{f"encoder of {entry.name}": entry.detector.encoder.architecture for entry in study.entries},
    }
    hashes = {
        **{f"detector {entry.name}": entry.detector.sha256 for entry in study.entries},
        **{f"encoder of {entry.name}": entry.detector.encoder.sha256 for entry in study.entries},
        **{
            f"scans of {name}": cohort.about["tables"]["scans"]["sha256"]
            for name, cohort in zip(names_of(study.cohorts), study.cohorts, strict=True)
        },
        **{name: sha256_of(path) for name, path in files.items()},
    }
    return Provenance(settings=settings, hashes=hashes, versions=software_versions(*VERSIONS, "torch"))


def _settings(evaluation: Evaluation) -> dict[str, object]:
    return {
        name: ", ".join(value) if isinstance(value, tuple) else value
        for name, value in asdict(evaluation.settings).items()
        if value is not None and value != ()
    }


# ---- few labels ----


def _few_shots(curve: LearningCurve) -> Iterator[FewShot]:
    """A figure for each cohort: of the mean over findings, and of each finding where there is one cohort."""
    for place in curve.results.study.places():
        for finding in curve.shown(place):
            sizes = curve.sizes(place, finding)
            area = curve.area(OURS, place, sizes[0], finding)
            yield FewShot(
                title=f"{'mean over findings' if finding == MACRO else called(finding)}, on {place}: linear probes",
                learners=[
                    Learner(
                        name=learner,
                        shots=[_shot(curve, learner, place, size, finding) for size in sizes],
                        ours=learner == OURS,
                    )
                    for learner in curve.learners
                ],
                n=area.n,
                positives=None if finding == MACRO else area.positives,
                across=EXAMPLES[curve.kind],
            )


def _shot(curve: LearningCurve, learner: str, place: str, size: float, finding: str) -> Shot:
    area = measured(curve.area(learner, place, size, finding))
    return Shot(k=curve.labelled(size), value=area.value, low=area.low, high=area.high, draws=curve.draws(place, size))


# ---- hits and misses ----


def _examples(study: Study) -> list[Example]:
    """Of each finding the surest miss, false alarm and hit, errors before hits, until there are enough."""
    if not can_look(study.entries[0].detector):
        return []
    findings = study.first.findings.values()
    errors = [(finding, row) for finding in findings for row in _surest(finding, "miss", "false alarm")]
    hits = [(finding, row) for finding in findings for row in _surest(finding, "hit")]
    few = max(MOST_EXAMPLES // 2, MOST_EXAMPLES - len(hits))
    return [_example(study, finding, row) for finding, row in [*errors[:few], *hits][:MOST_EXAMPLES]]


def _surest(finding: Finding, *outcomes: Outcome) -> Iterator[int]:
    """The row of the surest scan of each of these outcomes that there are."""
    yield from (row for outcome in outcomes if (row := finding.surest(outcome)) is not None)


def _example(study: Study, finding: Finding, row: int) -> Example:
    scan_id = finding.scan_ids[row]
    cohort = next(one for one in study.cohorts if scan_id in one)
    array = cohort.array(scan_id)
    voxel_mm = spacing_mm(cohort, scan_id)
    driving = driving_slices(study.entries[0].detector.on(study.machine), array, voxel_mm, study.machine)
    slices = driving[finding.name] or [Shown(index=int(at * (array.shape[2] - 1))) for at in (0.35, 0.5, 0.65)]
    return Example(
        scan_id=scan_id,
        array=array,
        spacing_mm=voxel_mm,
        finding=finding.name,
        probability=float(finding.probabilities[row]),
        threshold=finding.operating_point.threshold,
        truth=bool(finding.labels[row] == 1),
        slices=slices,
        note="" if driving[finding.name] else "No part of the scan raises the score; slices from the middle are shown.",
    )


# ---- the record, for the checklists ----


def _record(evaluation: Evaluation) -> dict[str, str]:
    """What every evaluation can answer."""
    areas = {name: finding.estimates["auroc"] for name, finding in evaluation.findings.items()}
    counts = "; ".join(f"{called(name)} {area.positives:,} of {area.n:,}" for name, area in areas.items())
    unknown = {called(name): finding.unknown for name, finding in evaluation.findings.items() if finding.unknown}
    unknown_words = "; ".join(f"{name} {number:,}" for name, number in unknown.items())
    points = "; ".join(
        f"{called(name)} {finding.operating_point.threshold:.3f} ({finding.operating_point.origin})"
        for name, finding in evaluation.findings.items()
    )
    record = {
        "counts": f"{count(evaluation.scans, 'scan')} of {count(evaluation.patients, 'patient')}; positive: {counts}.",
        "flow": f"Under Flow of scans; tested were {count(evaluation.scans, 'scan')}.",
        "missing": f"Scans of unknown label are left out of a finding: {unknown_words or 'none'}.",
        "metrics": METRICS,
        "uncertainty": INTERVALS,
        "operating_point": f"{points}.",
        "performance": "Under Performance, each number with its interval.",
        "estimates": "Under Performance: AUROC, sensitivity and specificity with their intervals.",
        "cross_table": "Under Flow of scans: found, missed, false alarms and cleared for each finding.",
        "abstention": "None is declined; under Calibration, what leaving doubtful scans to a reader would gain.",
        "software": ", ".join(f"{name} {version}" for name, version in software_versions(*VERSIONS).items()),
        "technical_detail": "At the foot of this page: settings, hashes, versions.",
        "audit": "metrics.json, labels and predictions lie beside this page, or are named at its foot by their hashes.",
    }
    grouped = sorted({one.column for finding in evaluation.findings.values() for one in finding.subgroups})
    if grouped:
        record["subgroups"] = f"Under Subgroups, by {', '.join(grouped)}."
    if {"age", "sex"} & set(grouped):
        record["fairness"] = "Under Subgroups: differences by age and sex, with intervals."
    return record


def _record_of_study(study: Study) -> dict[str, str]:
    """What is known besides where detectors and cohorts are at hand."""
    entry, tested = study.entries[0], study.labelled.tested
    detector, learned = entry.detector, entry.detector.record
    names = names_of(study.cohorts)
    parts = counted(study.labelled)
    record = {
        "data_sources": f"{count(len(names), 'cohort')}: {joined(names)}.",
        "sites": _values(tested, "site"),
        "eligibility": "Criteria of ingestion are in each cohort's cohort.json; what they rejected is under Flow of "
        "scans.",
        "characteristics": f"{_range(tested, 'age', 'years')}; sex {_values(tested, 'sex')}; scanners "
        f"{_values(tested, 'manufacturer')}.",
        "acquisition": f"Manufacturers {_values(tested, 'manufacturer')}; kernels {_values(tested, 'kernel')}; "
        f"{_range(tested, 'thickness_mm', 'mm')} thick.",
        "deidentification": "Identifiers in the cohorts: "
        + "; ".join(
            f"{name} {'pseudonyms' if hold_pseudonyms([pseudonyms_of(cohort)]) else 'as given'}"
            for name, cohort in zip(names, study.cohorts, strict=True)
        )
        + ".",
        "preprocessing": f"Recipe {study.cohorts[0].recipe.name} ({study.cohorts[0].recipe.id}).",
        "predictors": "The prepared scan and nothing else.",
        "partitions": f"Tested are labelled scans of patients that no detector has seen: {parts['test']:,} of "
        f"{sum(parts.values()):,}{_as_far_as_known(study)}.",
        "disjoint": f"By patient, checked by identifier{_as_far_as_known(study)}; among the scans of these cohorts by "
        "near-identical vectors too.",
        "model": f"{detector!r}; SHA-256 {detector.sha256[:16]}.",
        "initialization": _start(detector),
        "training": f"Method {detector.learned_by}. " + " ".join(f"{one}." for one in learned.get("sentences", ())),
        "ensembling": "None.",
        "calibration": "Each finding's logits, on the detector's own validation scans: "
        + ", ".join(sorted({str(one.settings()["kind"]) for one in detector.calibrations}))
        + ".",
        "blinding": "A prediction is made from the scan alone; its label chose only whether it is tested.",
        "doubts": "Each prediction has its distance from the training scans and reasons to doubt it, in the table of "
        "predictions.",
        "failures": "Under Hits and misses, errors first.",
        "explanation": "Slices whose evening out lowers the score most are shown; no proof of where a finding is.",
    }
    if study.transfer:
        record["transfer"] = "Under Transfer between sites."
    record |= _inside_and_outside(study, tested)
    readers = [f"{name}: {', '.join(ones)}" for one in study.labelled.accounts for name, ones in one.readers.items()]
    if readers:
        rule = study.labelled.accounts[0].reader_rule
        record["readers"] = f"Labels by the {rule} rule over readers ({'; '.join(readers)})."
    if any(name.endswith("_ml") for name in study.labelled.groups):
        record["severity"] = "Under Subgroups, by the volume of the lesion."
    return {name: words for name, words in record.items() if words}


def _inside_and_outside(study: Study, tested: pd.DataFrame) -> dict[str, str]:
    """Scans tested in cohorts that the first detector knows scans of, and in others; nothing where it does not say."""
    splits = study.entries[0].splits
    if splits is None:
        return {}
    known = set(splits["scan_id"][splits["split"].isin(("train", "validation"))])
    names = zip(names_of(study.cohorts), study.cohorts, strict=True)
    homes = [name for name, cohort in names if any(scan_id in cohort for scan_id in known)]
    home = tested["cohort"].isin(homes)
    told = {
        key: f"{count(int(chosen.sum()), 'scan')} of {joined(list(dict.fromkeys(tested['cohort'][chosen])))}"
        for key, chosen in (("internal", home), ("external", ~home))
        if chosen.any()
    }
    which = {
        "internal": "which scans of training or validation came from too",
        "external": "which none of these came from; whether that is another site, the author knows",
    }
    return {key: f"{words}, {which[key]}." for key, words in told.items()}


def _start(detector: Detector) -> str:
    if detector.from_scratch:
        return f"Random weights ({detector.from_scratch})."
    return f"{detector.encoder.architecture}, SHA-256 {detector.encoder.sha256[:16]}."


def _as_far_as_known(study: Study) -> str:
    """What is to be added to a sentence on who was seen, where a detector does not say whom it has seen."""
    silent = [entry.name for entry in study.entries if entry.splits is None]
    return f", as far as is known (no splits.csv beside {joined(silent)})" if silent else ""


def _values(table: pd.DataFrame, column: str) -> str:
    """The values of a column with their counts, the most frequent first."""
    counts = table[column].fillna("").astype(str).replace("", "not stated").value_counts()
    shown = ", ".join(f"{value} ({number:,})" for value, number in counts.head(8).items())
    return shown if len(counts) <= 8 else f"{shown} and {len(counts) - 8} more"


def _range(table: pd.DataFrame, column: str, unit: str) -> str:
    known = pd.to_numeric(table[column], errors="coerce").dropna()
    if known.empty:
        return f"{column.partition('_')[0]} not stated"
    low, middle, high = (known.min(), known.median(), known.max())
    return f"{column.partition('_')[0]} {low:.3g} to {high:.3g} {unit}, median {middle:.3g}"
