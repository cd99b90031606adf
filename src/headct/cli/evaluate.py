"""`headct evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headct.cli.options import Batch, Device, Json, KnownKey, Precision, Preferred, Threads, expect_key
from headct.cli.progress import progress_of
from headct.cli.talk import Talk
from headct.failure import Misuse

if TYPE_CHECKING:
    import pandas as pd

    from headct.checkpoints import PretrainedEncoder
    from headct.embedding.machine import Machine
    from headct.evaluation import Evaluation, EvaluationSettings
    from headct.evaluation.comparison import Difference
    from headct.evaluation.measurements import Measurements
    from headct.studies.evaluation import Study
    from headct.studies.evaluation_checks import Unlearned
    from headct.studies.evaluation_curves import LearningCurve


BATCH, WORKERS = 8, 1


def evaluate(
    talk: Talk,
    *,
    labels: Annotated[
        list[Path],
        typer.Option(
            "--labels",
            metavar="FILE",
            help="CSV, Parquet or Excel: who, and 1, 0 or nothing for each; with --cohort it may be repeated.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of metrics.json and report.html.")],
    detector: Annotated[
        list[Path] | None,
        typer.Option("--detector", metavar="DETECTOR", help="A folder of headct adapt; the first is reported on."),
    ] = None,
    cohort: Annotated[
        list[Path] | None, typer.Option("--cohort", metavar="COHORT", help="Whose labelled scans are looked at.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions", metavar="FILE", help="Instead of both: a table of scan_id, finding, probability."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="Predictions of another model, compared on the same scans."),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            "--measured",
            metavar="FILE",
            help="scan_id and measurements (_mm, _ml, _side), compared with those columns of the labels.",
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="COLUMN", help="A column of the labels to see subgroups by; may be repeated."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", metavar="P", help="Positive at or above it; else that of validation or of the table."
        ),
    ] = None,
    rule: Annotated[
        str,
        typer.Option("--rule", metavar="NAME", help="How it is chosen: youden, f1, sensitivity or specificity."),
    ] = "youden",
    target: Annotated[
        float | None,
        typer.Option(
            "--target",
            metavar="P",
            help="The fixed specificity, and the fixed sensitivity: 0.9, or what the detectors' own thresholds reach.",
        ),
    ] = None,
    prevalence: Annotated[
        float | None,
        typer.Option("--prevalence", metavar="P", help="Where predictive values are wanted; else that of the scans."),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", metavar="N", help="Of the bootstrap over patients.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Of the bootstrap and of shuffled labels.")] = 0,
    baselines: Annotated[
        bool,
        typer.Option("--baselines/--no-baselines", help="Random weights and histograms beside the first detector."),
    ] = True,
    curve: Annotated[
        list[str] | None,
        typer.Option(
            "--curve",
            metavar="NAME",
            help="Learn again from fewer labels: shots (K of each class) or shares (of patients); may be repeated.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The detectors' encoder, where it has moved.")
    ] = None,
    readers: Annotated[
        str, typer.Option("--readers", metavar="RULE", help="One label of several readers: majority or any.")
    ] = "majority",
    preferred: Preferred = False,
    key: KnownKey = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Where vectors are kept; beside --out if not given."),
    ] = None,
    precision: Precision = "auto",
    device: Device = None,
    batch: Batch = BATCH,
    workers: Threads = WORKERS,
    as_json: Json = False,
) -> None:
    """Judge detectors on cohorts, or predictions by labels: every number with an interval that counts patients.

    Labels are 1, 0 or empty (unknown: the scan is left out for that finding). Patients that a detector has seen are
    left out, its thresholds are those of its own validation scans, several detectors are compared in pairs. Of tables,
    labels name scans, series, studies or patients as the predictions do; with a column `split` in the predictions,
    thresholds are chosen on validation scans and everything else is read from test scans.

    Examples:
        headct evaluate --detector detector --cohort night --labels reads.csv --out evaluation
        headct evaluate --detector detector --cohort night --labels reads.csv --curve shares --out curves
        headct evaluate --predictions a.parquet --against b.parquet --labels labels.csv --group site --out evaluation
    """
    from headct import evaluation

    settings = evaluation.EvaluationSettings(
        draws=draws,
        seed=seed,
        threshold=threshold,
        rule=evaluation.rule_named(rule),
        target=evaluation.EvaluationSettings.target if target is None else target,
        prevalence=prevalence,
        groups=tuple(group or ()),
    )
    if predictions is not None:
        _expect(not detector and not cohort, "--predictions stand instead of --detector and --cohort")
        _expect(len(labels) == 1, "with --predictions there is one table of labels")
        _expect(not curve, "--curve learns from a cohort: name --detector and --cohort")
        _expect(not preferred, "--preferred chooses series of a cohort: name --detector and --cohort")
        of_detectors = {
            "--model": model is not None,
            "--key": key is not None,
            "--cache": cache is not None,
            "--device": device is not None,
            "--precision": precision != "auto",
            "--batch": batch != BATCH,
            "--workers": workers != WORKERS,
            "--no-baselines": not baselines,
        }
        for name, given in of_detectors.items():
            _expect(not given, f"{name} is for detectors, and tables are judged as they are: leave it out")
        _of_tables(talk, predictions, labels[0], out, settings, against, measured, readers, as_json=as_json)
        return
    _expect(bool(detector) and bool(cohort), "evaluate needs --detector and --cohort, or --predictions")
    _expect(against is None, "--against goes with --predictions; name several detectors to compare them")
    if target is None:
        from headct.studies.evaluation import own_target

        settings = replace(settings, target=own_target(settings))
    _of_detectors(
        talk, detector or [], cohort or [], labels, out, settings,
        measured=measured, beside=baselines, curves=curve or [], model=model, readers=readers,
        preferred=preferred, key=key, cache=cache, precision=precision, device=device, batch=batch, workers=workers,
        as_json=as_json,
    )  # fmt: skip


def _expect(fits: bool, what: str) -> None:
    if not fits:
        raise Misuse(what, do="see `headct evaluate --help`")


def _of_tables(
    talk: Talk,
    predictions: Path,
    labels: Path,
    out: Path,
    settings: EvaluationSettings,
    against: Path | None,
    measured: Path | None,
    readers: str,
    *,
    as_json: bool,
) -> None:
    from headct import evaluation
    from headct.cohort.journal import expect_writable
    from headct.evaluation.cells import readers_rule
    from headct.evaluation.matching import labels_for
    from headct.evaluation.tables import agreed, label_counts
    from headct.studies.evaluation import PAGE, expect_own_folder
    from headct.studies.evaluation_report import names_of_tables, report_of_tables

    expect_writable(out / "metrics.json")
    expect_own_folder(out, (PAGE,))
    rule = readers_rule(readers)
    told = evaluation.read_predictions(predictions)
    other = None if against is None else evaluation.read_predictions(against)
    truth, matched = labels_for(labels, [told] if other is None else [told, other])
    truth, of_readers = agreed(truth, list(dict.fromkeys(told["finding"])), rule)
    lines = [f"{labels.name}: {line}" for line in (*matched, *label_counts(told, truth), *of_readers)]
    for sentence in lines:
        talk.say(sentence)
    done = evaluation.evaluate(told, truth, settings, other)
    found = None if measured is None else _measurements(measured, truth, evaluation.untaught(truth, told))
    files = {"predictions": predictions, "labels": labels}
    files |= {name: path for name, path in (("against", against), ("measured", measured)) if path is not None}
    its_numbers = None if other is None else evaluation.rival(done, other, truth)
    report = report_of_tables(done, told, truth, files=files, rival=its_numbers, measurements=found)
    report = replace(report, notes=[*lines, *report.notes])
    measurements = None if found is None else found.tree()
    model, other_model = names_of_tables(files)
    others = {} if its_numbers is None else {other_model: its_numbers}
    tree = {
        **done.tree(),
        "notes": [*lines, *done.notes],
        "others": {name: one.tree() for name, one in others.items()},
        "measurements": measurements,
    }
    _write_metrics(tree, out)
    _write_page(report.page(), out)
    _tell(done, talk)
    for name, one in others.items():
        for note in one.notes:
            if note not in done.notes:
                talk.warn(f"{name}: {note}")
    talk.table(list(_differences(done, model, other_model)), to_stderr=True)
    _end({model: done, **others}, tree, talk, out, as_json=as_json)


def _differences(done: Evaluation, model: str, other: str) -> Iterator[Mapping[str, Any]]:
    for name, of_finding in done.comparison.items():
        yield _difference(name, model, other, of_finding["auroc"])


def _measurements(path: Path, labels: pd.DataFrame, untaught: pd.DataFrame) -> Measurements:
    """Of the patients whom the model does not know. Raises Misuse where none of those was measured."""
    from headct.evaluation.measurements import compare_tables
    from headct.evaluation.tables import read_measured

    table = read_measured(path)
    if labels["scan_id"].isin(table["scan_id"]).any() and not untaught["scan_id"].isin(table["scan_id"]).any():
        raise Misuse(
            f"all scans of {path} are of patients whom the model has learned from",
            why="measurements are judged where predictions are, on other patients",
            do="measure test scans too",
        )
    return compare_tables(table, untaught)


def _of_detectors(
    talk: Talk,
    detectors: list[Path],
    cohorts: list[Path],
    labels: list[Path],
    out: Path,
    settings: EvaluationSettings,
    *,
    measured: Path | None,
    beside: bool,
    curves: list[str],
    model: str | None,
    readers: str,
    preferred: bool,
    key: Path | None,
    cache: Path | None,
    precision: str,
    device: str | None,
    batch: int,
    workers: int,
    as_json: bool,
) -> None:
    from headct.cohort import Cohort
    from headct.cohort.identities import hold_pseudonyms, pseudonyms_of
    from headct.cohort.journal import expect_writable
    from headct.embedding.machine import choose
    from headct.evaluation.cells import readers_rule
    from headct.evaluation.tables import read_measured
    from headct.reading.pseudonyms import user_key
    from headct.studies.evaluation import LABELS, evaluate_detectors, expect_own_folder, points_of
    from headct.studies.evaluation_curves import kinds
    from headct.studies.evaluation_report import report_of_study
    from headct.studies.evaluation_scans import labelled_scans, open_detectors

    expect_writable(out / "metrics.json")
    expect_own_folder(out)
    expect_key(key)
    few = kinds(curves)
    ours = (out / LABELS).resolve()
    for path in (*labels, *([measured] if measured else [])):
        _expect(path.resolve() != ours, f"{path} would be replaced by the labels as they were read: name another --out")
    opened = [Cohort(place) for place in cohorts]
    entries = open_detectors(detectors, model)
    for entry in entries:
        points_of(entry, settings)
        for one in opened:
            one.expect(entry.detector.encoder.recipe)
    made_by = {*map(pseudonyms_of, opened)}.union(*(entry.pseudonyms for entry in entries))
    labelled = labelled_scans(
        entries, opened, labels,
        readers=readers_rule(readers), key=user_key(key) if hold_pseudonyms(made_by) else None, preferred=preferred,
        groups=settings.groups,
    )  # fmt: skip
    for sentence in (sentence for account in labelled.accounts for sentence in account.sentences()):
        talk.say(sentence)

    def machine_of(encoder: PretrainedEncoder) -> Machine:
        return choose(precision, device, graph=encoder.runtime)

    for machine in dict.fromkeys(str(machine_of(entry.detector.encoder)) for entry in entries):
        talk.say(f"on {machine}")
    with progress_of(talk) as progress:
        study = evaluate_detectors(
            entries, opened, labelled, out, cache or out.parent / ".headct-vectors", machine_of, settings,
            measured=None if measured is None else read_measured(measured), beside=beside, few=few,
            batch_size=batch, workers=workers, progress=lambda what: partial(progress, what),
        )  # fmt: skip
    files = {"/".join(path.resolve().parts[-2:]): path for path in [*labels, *([measured] if measured else [])]}
    tree = study.tree()
    _write_metrics(tree, out)
    _write_page(report_of_study(study, files=files).page(), out)
    _tell(study.first, talk)
    if study.unlearned is not None:
        _tell_unlearned(study.unlearned, talk)
    talk.table(list(_compared(study)), to_stderr=True)
    talk.table(list(_by_cohort(study)), to_stderr=True)
    for found in study.curves:
        talk.table(_of_curve(found), to_stderr=True)
    _end(study.evaluations, tree, talk, out, as_json=as_json)


def _of_curve(curve: LearningCurve) -> list[dict[str, Any]]:
    """The mean over findings, or the findings where there is none, of each learner at each size."""
    from headct.detection.curves import MACRO

    table, shown = curve.table(), []
    for place in curve.results.study.places():
        findings = curve.shown(place)
        shown += [(place, finding) for finding in ([MACRO] if MACRO in findings else findings)]
    table = table[[pair in shown for pair in zip(table["cohort"], table["finding"], strict=True)]]
    return [
        {
            curve.kind: f"{100 * row['size']:g} %" if curve.kind == "shares" else f"{row['size']:g}",
            "cohort": row["cohort"],
            "finding": row["finding"],
            "learner": row["learner"],
            "AUROC": f"{row['auroc']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
            **_behind(curve, row),
            "draws": row["draws"],
        }
        for row in table.to_dict("records")
    ]


def _behind(curve: LearningCurve, row: Mapping[Any, Any]) -> dict[str, str]:
    """By how much the encoder exceeds a learner in what is compared; nothing for a single finding of several."""
    from headct.studies.evaluation_curves import OURS

    if row["finding"] != curve.compared(row["cohort"]) or row["learner"] == OURS:
        return {f"{OURS} less it": ""}
    less = curve.less(row["learner"], row["cohort"], row["size"])
    assert less is not None
    of = less.estimate
    return {f"{OURS} less it": f"{of.value:.3f} ({of.low:.3f} to {of.high:.3f})"}


def _write_metrics(tree: Mapping[str, Any], out: Path) -> None:
    from headct.cohort.journal import write_atomically

    text = json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(out / "metrics.json", f"{text}\n".encode())


def _write_page(page: Any, out: Path) -> None:
    from headct.cohort.journal import refused

    place = out / "report.html"
    try:
        page.write(place)
    except OSError as error:
        raise refused(place, error) from error


def _end(
    evaluations: Mapping[str, Evaluation], tree: Mapping[str, Any], talk: Talk, out: Path, *, as_json: bool
) -> None:
    """`evaluations` by detector, of the same scans."""
    from headct.reporting.words import count

    if as_json:
        talk.json(tree)
    several = len(evaluations) > 1
    rows = [
        ({"detector": name} if several else {}) | dict(row) for name, one in evaluations.items() for row in _rows(one)
    ]
    talk.table(rows, to_stderr=True)
    done = next(iter(evaluations.values()))
    tested = f"{count(done.scans, 'scan')} of {count(done.patients, 'patient')}"
    talk.say(f"{tested}: {out / 'metrics.json'}, {out / 'report.html'}")


def _tell(done: Evaluation, talk: Talk) -> None:
    for name, reason in done.left_out.items():
        talk.warn(f"{name} is left out: {reason}")
    for note in done.notes:
        talk.warn(note)
    for name, finding in done.findings.items():
        shuffled = finding.shuffled
        talk.say(f"{name}: shuffled test labels give {shuffled.mean:.3f} ({shuffled.shufflings:,} times)")


def _tell_unlearned(found: Unlearned, talk: Talk) -> None:
    told = f"a probe of shuffled training labels gives {found.mean:.3f} (± {found.error:.3f} by chance)"
    if found.passed:
        talk.say(told)
    else:
        talk.warn(f"{told}, more than 0.5: the labels of tested scans may reach the training")


def _compared(study: Study) -> Iterator[Mapping[str, Any]]:
    """Differences of AUROC from every other detector and from the baselines."""
    for pair in study.pairs:
        yield _difference(pair.finding, pair.first, pair.second, pair.auroc)


def _difference(finding: str, first: str, second: str, auroc: Difference) -> Mapping[str, Any]:
    return {
        "finding": finding,
        "AUROC of": first,
        "less that of": second,
        "difference": auroc.estimate.written(),
        "p (Holm)": f"{auroc.corrected:.3g}",
    }


def _by_cohort(study: Study) -> Iterator[Mapping[str, Any]]:
    """The mean over findings, and the findings where there is none, of each detector on each cohort."""
    mean, name_of = study.mean_transfer, {row: name for name, row in study.rows.items()}
    areas = (
        {"mean": mean.areas}
        if mean is not None and len(mean.findings) > 1
        else {
            matrix.finding: {pair: cell.area.estimate() for pair, cell in matrix.cells.items()}
            for matrix in study.transfer
        }
    )
    for finding, cells in areas.items():
        for (detector, cohort), area in cells.items():
            yield {"detector": name_of[detector], "cohort": cohort, "finding": finding, "AUROC": area.written()}


def _rows(done: Evaluation) -> Iterator[Mapping[str, Any]]:
    for name, finding in done.findings.items():
        found = finding.estimates
        yield {
            "finding": name,
            "scans": found["auroc"].n,
            "with it": found["auroc"].positives,
            "AUROC": found["auroc"].written(),
            "average precision": found["average_precision"].written(),
            "sensitivity": found["sensitivity"].written(),
            "specificity": found["specificity"].written(),
            "F1": found["f1"].written(),
            "F1 of always positive": finding.baselines["always_positive"]["f1"].written(),
            "Brier": found["brier"].written(),
        }
    if len(done.findings) > 1:
        macro, nothing = done.macro, ""
        yield {
            "finding": "mean",
            "scans": macro["auroc"].n,
            "with it": nothing,  # a scan has one finding and lacks another
            "AUROC": macro["auroc"].written(),
            "average precision": macro["average_precision"].written(),
            **dict.fromkeys(("sensitivity", "specificity", "F1", "F1 of always positive", "Brier"), nothing),
        }
