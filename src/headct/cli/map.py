"""`headct map`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from headct.cli.options import Batch, Device, Json, KnownKey, Model, Precision, Threads, expect_key
from headct.cli.progress import progress_of
from headct.cli.talk import Talk


def map_cohort(
    talk: Talk,
    cohorts: Annotated[list[Path], typer.Argument(metavar="COHORT", help="Cohorts of the model's recipe.")],
    *,
    model: Model,
    out: Annotated[Path, typer.Option("--out", metavar="PAGE.html", help="The page to write.")],
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="TABLE", help="CSV, Parquet or Excel: who, and 1, 0 or nothing.")
    ] = None,
    findings: Annotated[
        str | None,
        typer.Option("--findings", metavar="NAMES", help="Columns to show, with commas between; all if not given."),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="pca, or umap (pip install umap-learn).")
    ] = "pca",
    place_scans: Annotated[
        int, typer.Option("--place-scans", min=0, metavar="N", help="Scans whose places are mapped too; 0 for none.")
    ] = 40,
    precision: Precision = "auto",
    device: Device = None,
    batch: Batch = 8,
    workers: Threads = 1,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Where vectors are kept; beside PAGE if not given.")
    ] = None,
    key: KnownKey = None,
    as_json: Json = False,
) -> None:
    """Draw where scans and places lie in the features, and say how much of site and scanner can be read from them.

    The numbers are of a straight cut on patients that it was not made from, beside the same for each finding.

    Examples:
        headct map cohort --model run --labels reads.csv --out map.html
        headct map site-a site-b --model run --method umap --place-scans 0 --out map.html --json
    """
    from headct import checkpoints
    from headct.cohort import Cohort
    from headct.cohort.identities import hold_pseudonyms, pseudonyms_of
    from headct.cohort.journal import expect_writable, refused
    from headct.cohort.labels import read_labels
    from headct.embedding.machine import choose
    from headct.evaluation.tables import named
    from headct.failure import Misuse
    from headct.reading.pseudonyms import user_key
    from headct.reporting.page import check_place
    from headct.tasks.clusters import MapSettings, map_features
    from headct.tasks.clusters.projection import method_named

    settings = MapSettings(method=method_named(method), place_scans=place_scans)
    check_place(out)
    expect_writable(out)
    expect_key(key)
    wanted = [name.strip() for name in (findings or "").split(",") if name.strip()]
    if wanted and labels is None:
        raise Misuse("--findings needs labels", do="--labels TABLE")
    opened = [Cohort(place) for place in cohorts]
    labelled = None
    if labels is not None:
        pseudonymous = hold_pseudonyms(map(pseudonyms_of, opened))
        labelled = read_labels(labels, opened, findings=wanted, key=user_key(key) if pseudonymous else None)
        for sentence in labelled.account.sentences():
            talk.say(sentence)
    encoder = checkpoints.load(model)
    machine = choose(precision, device, graph=encoder.runtime)
    talk.say(f"on {machine}")
    with progress_of(talk) as progress:
        mapped = map_features(
            opened,
            encoder,
            machine,
            cache or out.parent / ".headct-vectors",
            settings,
            labels=labelled,
            batch_size=batch,
            workers=workers,
            progress=partial(progress, "embedding"),
            progress_of_places=partial(progress, "places"),
        )
    if mapped.left_out:
        talk.warn(f"nothing can be said of {named(list(mapped.left_out))}: the page says why")
    try:
        mapped.page().write(out)
    except OSError as error:
        raise refused(out, error) from error
    talk.table(mapped.rows(), as_json=as_json)
    talk.say(f"wrote {out}")
