"""`headct adapt`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headct.cli.options import Batch, Device, Json, KnownKey, Model, Precision, Preferred, Threads, expect_key
from headct.cli.progress import progress_of
from headct.cli.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headct.embedding.machine import Machine

PARTS = ("train", "validation")


def adapt(
    talk: Talk,
    cohorts: Annotated[list[Path], typer.Argument(metavar="COHORT", help="Cohorts of the model's recipe.")],
    *,
    labels: Annotated[
        Path, typer.Option("--labels", metavar="TABLE", help="CSV, Parquet or Excel: who, and 1, 0 or nothing.")
    ],
    model: Model,
    out: Annotated[Path, typer.Option("--out", metavar="DETECTOR", help="The folder to make.")],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME",
            help="auto, knn, linear, attentive, lora or full; to compare with: scratch, scratch-conv, scratch-slices.",
        ),
    ] = "auto",
    findings: Annotated[
        str | None,
        typer.Option("--findings", metavar="NAMES", help="Columns to learn, with commas between; all if not given."),
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=1, metavar="K", help="Learn from K positives and K negatives of each.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Fixes every draw.")] = 0,
    validation: Annotated[
        float, typer.Option("--validation", metavar="SHARE", help="Patients to calibrate and choose by.")
    ] = 0.25,
    test: Annotated[
        float, typer.Option("--test", metavar="SHARE", help="Patients to keep out of it, for a test of yours.")
    ] = 0.0,
    splits: Annotated[
        Path | None,
        typer.Option("--splits", metavar="FILE.csv", help="Who is where instead: scan_id or patient_id, split."),
    ] = None,
    readers: Annotated[
        str, typer.Option("--readers", metavar="RULE", help="Of one column a reader: majority, or any.")
    ] = "majority",
    preferred: Preferred = False,
    key: KnownKey = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Where vectors are kept; beside DETECTOR.")
    ] = None,
    precision: Precision = "auto",
    device: Device = None,
    batch: Batch = 8,
    workers: Threads = 1,
    as_json: Json = False,
) -> None:
    """Learn findings from labels: a detector that gives calibrated probabilities, and says when to doubt them.

    The column that names scans, series, studies, patients or files is found by trying, and said. Patients are shared
    out to training and validation. auto goes from a frozen probe to LoRA to full fine-tuning, and takes what is best
    on validation. Each cohort is embedded once: another call, or the same one after a kill, finds it.

    Examples:
        headct adapt night --labels reads.csv --model run --out detector
        headct adapt night day --labels reads.csv --model run --out few --method linear --shots 16 --findings ich
    """
    from headct import checkpoints
    from headct.checkpoints.layout import check_new
    from headct.cohort import Cohort
    from headct.cohort.identities import hold_pseudonyms, pseudonyms_of
    from headct.cohort.journal import expect_writable
    from headct.cohort.labels import read_labels
    from headct.detection import AdaptSettings
    from headct.detection import adapt as learn
    from headct.detection.adapting import AUTO
    from headct.embedding.machine import choose
    from headct.evaluation.cells import readers_rule
    from headct.reading.pseudonyms import user_key

    settings = AdaptSettings(method=method, shots=shots, seed=seed, validation=validation, test=test)
    check_new(out)
    expect_writable(out)
    expect_key(key)
    wanted = [name.strip() for name in (findings or "").split(",") if name.strip()]
    opened = [Cohort(place) for place in cohorts]
    labelled = read_labels(
        labels,
        opened,
        findings=wanted,
        readers=readers_rule(readers),
        key=user_key(key) if hold_pseudonyms(map(pseudonyms_of, opened)) else None,
        preferred=preferred,
    )
    for sentence in labelled.account.sentences():
        talk.say(sentence)
    encoder = checkpoints.load(model)
    for note in encoder.notes:
        talk.say(note)
    machine = choose(precision, device, graph=encoder.runtime)
    talk.say(f"on {machine}")
    if method == AUTO:
        talk.say(_plan_of_auto(machine))
    place = cache or out.parent / ".headct-vectors"
    with progress_of(talk) as progress:
        adapted = learn(
            opened,
            labelled,
            encoder,
            machine,
            place,
            settings,
            required=wanted,
            splits=splits,
            batch_size=batch,
            workers=workers,
            progress=lambda what: partial(progress, what),
        )
    for note in adapted.notes:
        talk.warn(note)
    adapted.save(out)
    talk.table([_shown_rung(row) for row in adapted.ladder], to_stderr=True)
    talk.table(adapted.rows if as_json else [_shown(row) for row in adapted.rows], as_json=as_json)
    talk.say(f"validation chose and calibrated, so its numbers are too good; vectors are kept in {place}")
    talk.say(f"the detector ({adapted.detector.learned_by}) is in {out}")


def _plan_of_auto(machine: Machine) -> str:
    """What `auto` will do, said before it begins, and on a CPU what would be quicker."""
    from headct.detection.ladder import RUNGS

    told = f"auto: {', then '.join(RUNGS)}; what is best on validation is taken"
    if machine.device.type != "cpu" or machine.of_graph:  # a graph is never trained
        return told
    return f"{told}. Training takes long on a CPU: --method {RUNGS[0]} is the first alone, done once scans are embedded"


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    area, low, high = (row[f"validation_auroc{end}"] for end in ("", "_low", "_high"))
    return {
        "finding": row["finding"],
        **{f"{part} with / without": f"{row[f'{part}_with']} / {row[f'{part}_without']}" for part in PARTS},
        "validation AUROC": f"{area:.3f} ({low:.3f} to {high:.3f})",
    }


def _shown_rung(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"method": row["method"], "validation AUROC": row["validation_auroc"], "decision": row["decision"]}
