"""`headct protocol`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headct.cli.options import Batch, Device, Json, Key, Precision, Workers, tell_new_key
from headct.cli.progress import progress_of
from headct.cli.talk import Talk
from headct.failure import Misuse

if TYPE_CHECKING:
    from headct.evaluation.comparison import Difference
    from headct.studies.protocol_results import Line


def protocol(
    talk: Talk,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Which; without it they are listed.")] = "",
    *,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="The folder of the set as downloaded.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="A checkpoint folder, a finished run, or a name (headct models)."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the table and the page go.")] = None,
    methods: Annotated[
        str,
        typer.Option("--methods", metavar="NAMES", help="Some of its methods, with commas between; all if not given."),
    ] = "",
    prepared: Annotated[
        Path | None,
        typer.Option("--prepared", metavar="DIR", help="Where cohort, labels and splits are kept; OUT/set."),
    ] = None,
    precision: Precision = "auto",
    device: Device = None,
    batch: Batch = 8,
    workers: Workers = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """From a public set as downloaded to a table: prepare, embed, learn from few and all labels, test, compare.

    A protocol fixes findings, patients, draws and methods, so that numbers of two models can be compared. OUT gets
    table.csv, metrics.json, report.html and protocol.json (settings, hashes). The same line goes on after a kill.
    Models of one recipe may share the prepared set (--prepared).

    Examples:
        headct protocol
        headct protocol fm-hct-cq500 --data CQ500 --model run --out cq500-run
    """
    from headct.studies.protocol import PROTOCOLS, named

    if not name:
        talk.table([one.about() for one in PROTOCOLS.values()], as_json=as_json)
        return
    found = named(name)
    if data is None or model is None or out is None:
        missing = [option for option, value in (("--data", data), ("--model", model), ("--out", out)) if value is None]
        raise Misuse(
            f"the protocol {name} needs {' and '.join(missing)}",
            do=f"headct protocol {name} --data DIR --model MODEL --out DIR, where DIR holds {found.dataset} "
            f"(headct datasets show {found.dataset})",
        )
    from headct import checkpoints
    from headct.cohort.journal import refused
    from headct.embedding.machine import choose
    from headct.studies.protocol_job import Way, run_protocol
    from headct.studies.protocol_page import write_page

    encoder = checkpoints.load(model)
    for note in encoder.notes:
        talk.say(note)
    machine = choose(precision, device, graph=encoder.runtime)
    talk.say(f"on {machine}")
    tell_new_key(talk, key)
    wanted = tuple(one.strip() for one in methods.split(",") if one.strip())
    way = Way(methods=wanted, prepared=prepared, batch_size=batch, workers=workers, key=key)
    with progress_of(talk) as progress:
        walked = run_protocol(found, data, out, encoder, machine, way, progress=progress)
    page = out / "report.html"
    try:
        write_page(walked, page)
    except OSError as error:
        raise refused(page, error) from error
    for note in walked.notes:
        talk.warn(note)
    if as_json:
        talk.json(walked.results.rows())
    else:
        talk.table(list(_rows(walked.results.lines)))
    talk.say(f"intervals are over test patients, and over draws where labels are few: {page}")


def _rows(lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    from headct.detection.curves import MACRO

    for line in lines:
        yield {
            "finding": line.finding,
            "labels": line.labels,
            "learner": line.learner.name,
            "scans": line.auroc.n,
            "with it": "" if line.finding == MACRO else line.auroc.positives,
            "AUROC": line.auroc.written(),
            "less random": _difference(line.less.get("random")),
            "less histogram": _difference(line.less.get("histogram")),
        }


def _difference(found: Difference | None) -> str:
    return "" if found is None else found.estimate.written(signed=True)
