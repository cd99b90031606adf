"""`headct predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from headct.cli.options import (
    Batch,
    CriteriaName,
    Device,
    Inputs,
    Json,
    KeepIds,
    Key,
    Precision,
    Threads,
    criteria_of,
    tell_new_key,
)
from headct.cli.talk import Talk

NOTHING = "nothing could be looked at"
SHOWN = 20
"""Rows of the table that are printed; all of them are in the file."""


def predict(
    talk: Talk,
    inputs: Inputs,
    *,
    detector: Annotated[Path, typer.Option("--detector", metavar="DETECTOR", help="A folder of headct adapt.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.parquet", help="Where the predictions go.")],
    page: Annotated[
        Path | None,
        typer.Option(
            "--page",
            metavar="FILE.html",
            help="Also a page for the scan, with the slices behind each yes; of several an index and a page each.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The detector's encoder, where it has moved.")
    ] = None,
    precision: Precision = "auto",
    device: Device = None,
    batch: Batch = 8,
    workers: Threads = 1,
    criteria: CriteriaName = "default",
    keep_ids: KeepIds = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Probabilities of findings, each with its interval and the reasons to doubt it. Not a medical device.

    FILE.parquet has a row for each scan and finding; what could not be looked at is in FILE.rejections.parquet. An
    answer is yes from a probability of `threshold` on, and close where the interval holds it. ood is the share of
    validation scans that are more like the training scans. The same line goes on after a kill; pages
    are begun anew. --criteria, --keep-ids and --key are for files: a cohort keeps what it was ingested with.

    Examples:
        headct predict night --detector detector --out night.parquet
        headct predict scan.nii.gz --detector detector --out scan.parquet --json
        headct predict scan.nii.gz --detector detector --out scan.parquet --page scan.html
    """
    from headct.cli.rejected import expect_something, nothing, reasons
    from headct.detection import Detector
    from headct.detection.job import check, predict_into
    from headct.embedding.embeddings import rejections_path
    from headct.embedding.inputs import Reading
    from headct.embedding.machine import choose
    from headct.reading.pseudonyms import user_key
    from headct.reporting.page import check_place
    from headct.reporting.words import count
    from headct.studies.prediction_pages import write_pages

    check(out, inputs)
    expect_something(NOTHING, inputs)
    if page is not None:
        check_place(page)
    wanted = criteria_of(criteria)
    tell_new_key(talk, key)
    found = Detector.load(detector, model=model)
    machine = choose(precision, device, graph=found.encoder.runtime)
    talk.say(f"{', '.join(found.findings)} by {found.learned_by} on {machine}")
    reading = Reading(
        recipe=found.encoder.recipe,
        criteria=wanted,
        key=None if key is None else user_key(key),
        keep_ids=keep_ids,
    )
    with talk.progress("predicting") as progress:
        done = predict_into(out, inputs, found, reading, machine, batch_size=batch, workers=workers, progress=progress)
    talk.table(reasons(done.rejected), to_stderr=True)
    if done.repeated:
        talk.warn(f"the inputs overlap; left out as repeated: {count(done.repeated, 'scan')}")
    sentences = rejections_path(out)
    if not done.scans:
        counted = {code: f"{number:,}" for code, number in done.rejected.items()}
        raise nothing(NOTHING, inputs, counted, do=f"see the sentences in {sentences}; {out} has no rows")
    if as_json:
        talk.json(done.rows)
    else:
        talk.table([_shown(row) for row in done.rows[:SHOWN]])
        if len(done.rows) > SHOWN:
            talk.say(f"and {len(done.rows) - SHOWN:,} more rows")
        talk.table(_doubts(done.rows))
    doubted = sum(bool(row["reasons"]) for row in done.rows)
    talk.say(f"{count(done.scans, 'scan')}, {count(len(done.rows), 'row')}, {doubted:,} with a reason to doubt: {out}")
    if done.rejected:
        talk.say(f"what was seen in the others: {sentences}")
    if page is not None:
        with talk.progress("pages") as progress:
            pages = write_pages(page, inputs, done.rows, found, reading, machine, workers=workers, progress=progress)
        talk.say(
            f"{count(pages, 'page')}: {page}" if pages == 1 else f"{count(pages, 'page')}, and their index: {page}"
        )
    talk.say("research software, not a medical device")


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for the terminal, where the reasons to doubt have a table of their own."""
    from headct.evaluation.operating import is_close

    close = ", close" if is_close(row["low"], row["high"], row["threshold"]) else ""
    return {
        "scan": row["scan_id"],
        "patient": row["patient_id"],
        "finding": row["finding"],
        "probability": f"{row['probability']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
        "yes from": row["threshold"],
        "answer": row["answer"] + close,
        "ood": row["ood"],
    }


def _doubts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each reason once, with how many scans have it; that an answer is close, the answer says."""
    from headct.detection.reasons import undecided

    scans_of: dict[str, set[str]] = {}
    for row in rows:
        for reason in row["reasons"]:
            if reason in undecided(row["low"], row["high"], row["threshold"]):
                continue
            scans_of.setdefault(reason, set()).add(row["scan_id"])
    return [{"reason to doubt": reason, "scans": len(scans)} for reason, scans in scans_of.items()]
