"""`headct embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headct.cli.options import (
    Batch,
    CriteriaName,
    Device,
    Inputs,
    KeepIds,
    Key,
    Model,
    Precision,
    Threads,
    criteria_of,
    tell_new_key,
)
from headct.cli.talk import Talk

NOTHING = "nothing could be embedded"


def embed(
    talk: Talk,
    inputs: Inputs,
    *,
    model: Model,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.parquet", help="Where the vectors go.")],
    tokens: Annotated[
        Path | None, typer.Option("--tokens", metavar="DIR", help="Write a vector for each place of a scan there too.")
    ] = None,
    precision: Precision = "auto",
    device: Device = None,
    batch: Batch = 8,
    workers: Threads = 1,
    criteria: CriteriaName = "default",
    keep_ids: KeepIds = False,
    key: Key = None,
) -> None:
    """Turn scans, or the scans of a cohort, into vectors: a table with a row for each scan.

    What cannot be embedded is in FILE.rejections.parquet beside it, with the reason. The same line goes on after a
    kill, and embeds only what is new in a cohort that has grown. --criteria, --keep-ids and --key are for files: a
    cohort keeps what it was ingested with.

    Examples:
        headct embed night --model run --out night.parquet
        headct embed /data/ct scan.nii.gz --model run/checkpoint --out vectors.parquet
    """
    from headct import checkpoints
    from headct.cli.rejected import expect_something, nothing, reasons
    from headct.embedding.embeddings import rejections_path
    from headct.embedding.inputs import Reading, is_cohort
    from headct.embedding.job import check, embed_into
    from headct.embedding.machine import choose
    from headct.failure import Misuse
    from headct.reading.pseudonyms import user_key
    from headct.reporting.words import count

    check(out, inputs, tokens)
    expect_something(NOTHING, inputs)
    wanted = criteria_of(criteria)
    given = {"--criteria": criteria != "default", "--keep-ids": keep_ids, "--key": key is not None}
    of_files = ", ".join(option for option, is_given in given.items() if is_given)
    if of_files and (cohorts := [place for place in inputs if is_cohort(place)]):
        what = f"{of_files} cannot change the cohort {cohorts[0]}, which keeps what it was ingested with"
        if len(cohorts) == len(inputs):
            raise Misuse(what, do=f"leave out {of_files}, or ingest its files again")
        talk.warn(what)
    tell_new_key(talk, key)
    encoder = checkpoints.load(model)
    machine = choose(precision, device, graph=encoder.runtime)
    for note in encoder.notes:
        talk.say(note)
    talk.say(f"embedding on {machine}")
    reading = Reading(
        recipe=encoder.recipe,
        criteria=wanted,
        key=None if key is None else user_key(key),
        keep_ids=keep_ids,
    )
    with talk.progress("embedding") as progress:
        done = embed_into(
            out, inputs, encoder, reading, machine, batch_size=batch, workers=workers, tokens=tokens, progress=progress
        )
    talk.table(reasons(done.rejected), to_stderr=True)
    if done.repeated:
        talk.warn(f"the inputs overlap; left out as repeated: {count(done.repeated, 'scan')}")
    before = f", {done.kept:,} of them before" if done.kept else ""
    talk.say(f"{count(done.scans, 'scan')} embedded in {done.width:,} numbers each{before}: {out}")
    sentences = rejections_path(out)
    if not done.scans:
        counted = {code: f"{number:,}" for code, number in done.rejected.items()}
        raise nothing(NOTHING, inputs, counted, do=f"see the sentences in {sentences}; {out} has no rows")
    if done.rejected:
        talk.say(f"what was seen in the others: {sentences}")
