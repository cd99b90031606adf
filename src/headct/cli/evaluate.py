"""`headct evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headct.cli.options import Json
from headct.cli.talk import Talk

if TYPE_CHECKING:
    from headct.evaluation import Estimate, Evaluation


def evaluate(
    talk: Talk,
    *,
    predictions: Annotated[
        Path, typer.Option("--predictions", metavar="FILE", help="CSV or Parquet: scan_id, finding, probability.")
    ],
    labels: Annotated[
        Path,
        typer.Option(
            "--labels", metavar="FILE", help="CSV or Parquet: scan_id, patient_id, a column for each finding."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of metrics.json.")],
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="Predictions of another model, compared on the same scans."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="COLUMN", help="A column of the labels to see subgroups by; may be repeated."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", metavar="P", help="Positive at or above it; else chosen on validation scans."),
    ] = None,
    rule: Annotated[
        str,
        typer.Option("--rule", metavar="NAME", help="How it is chosen: youden, f1, sensitivity or specificity."),
    ] = "youden",
    target: Annotated[
        float, typer.Option("--target", metavar="P", help="The fixed specificity, and the fixed sensitivity.")
    ] = 0.9,
    prevalence: Annotated[
        float | None,
        typer.Option("--prevalence", metavar="P", help="Where predictive values are wanted; else that of the scans."),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", metavar="N", help="Of the bootstrap over patients.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Of the bootstrap and of shuffled labels.")] = 0,
    as_json: Json = False,
) -> None:
    """Judge predictions by labels: every number with an interval that counts patients, in DIR/metrics.json.

    Labels are 1, 0 or empty (unknown: the scan is left out for that finding). With a column `split` in the predictions,
    thresholds are chosen on validation scans and everything else is read from test scans.

    Examples:
        headct evaluate --predictions predictions.csv --labels labels.csv --out evaluation
        headct evaluate --predictions a.parquet --against b.parquet --labels labels.csv --group site --out evaluation
    """
    from headct import evaluation

    done = evaluation.evaluate(
        evaluation.read_predictions(predictions),
        evaluation.read_labels(labels),
        evaluation.EvaluationSettings(
            draws=draws,
            seed=seed,
            threshold=threshold,
            rule=evaluation.rule_named(rule),
            target=target,
            prevalence=prevalence,
            groups=tuple(group or ()),
        ),
        None if against is None else evaluation.read_predictions(against),
    )
    done.write(out / "metrics.json")
    _tell(done, talk)
    if as_json:
        talk.json(done.tree())
    talk.table(list(_rows(done)), to_stderr=True)
    talk.say(f"{done.scans:,} scans of {done.patients:,} patients: {out / 'metrics.json'}")


def _tell(done: Evaluation, talk: Talk) -> None:
    for name, reason in done.left_out.items():
        talk.warn(f"{name} is left out: {reason}")
    for note in done.notes:
        talk.warn(note)
    for name, finding in done.findings.items():
        shuffled = finding.shuffled
        talk.say(f"{name}: shuffled labels give {shuffled.mean:.3f} ({shuffled.shufflings:,} times)")


def _rows(done: Evaluation) -> Iterator[Mapping[str, Any]]:
    for name, finding in done.findings.items():
        found = finding.estimates
        yield {
            "finding": name,
            "scans": found["auroc"].n,
            "with it": found["auroc"].positives,
            "AUROC": _shown(found["auroc"]),
            "average precision": _shown(found["average_precision"]),
            "sensitivity": _shown(found["sensitivity"]),
            "specificity": _shown(found["specificity"]),
            "F1": _shown(found["f1"]),
            "F1 of always positive": _shown(finding.baselines["always_positive"]["f1"]),
            "Brier": _shown(found["brier"]),
        }
    if len(done.findings) > 1:
        macro, nothing = done.macro, ""
        yield {
            "finding": "mean",
            "scans": macro["auroc"].n,
            "with it": macro["auroc"].positives,
            "AUROC": _shown(macro["auroc"]),
            "average precision": _shown(macro["average_precision"]),
            **dict.fromkeys(("sensitivity", "specificity", "F1", "F1 of always positive", "Brier"), nothing),
        }


def _shown(estimate: Estimate) -> str:
    if estimate.value is None:
        return "none"
    interval = "" if estimate.low is None else f" ({estimate.low:.3f} to {estimate.high:.3f})"
    return f"{estimate.value:.3f}{interval}"
