"""`headct robustness`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from headct.cli.options import Batch, Device, Json, Precision
from headct.cli.talk import Talk
from headct.failure import Misuse


def robustness(
    talk: Talk,
    cohort: Annotated[Path, typer.Argument(metavar="COHORT", help="A folder of headct ingest or headct simulate.")],
    *,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder for robustness.csv, pairs.csv, metrics.json, page.html."),
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Judge the vectors of this model.")
    ] = None,
    detector: Annotated[
        Path | None, typer.Option("--detector", metavar="D", help="Judge the predictions of this detector as well.")
    ] = None,
    perturb: Annotated[
        bool | None,
        typer.Option(
            "--perturb/--rescans", help="Change each scan, or take two scans of each patient; else whichever there is."
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--change", metavar="KIND=SIZE", help="noise, soft, sharp, energy, thick, shift, turn; may be repeated."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Of noise and directions.")] = 0,
    precision: Precision = "fp32",
    device: Device = None,
    batch: Batch = 8,
    as_json: Json = False,
) -> None:
    """What a re-scan changes: vectors and predictions of the same head, seen twice.

    A cohort with two scans of each patient is compared as it is (headct simulate --rescan makes one); else each scan is
    changed: noise in HU, kernel, slice thickness and shift in mm, turn in degrees. Cosine and rank of the true
    pair, ICC of every prediction, decisions that flip, each against the size of the change.

    Examples:
        headct robustness cohort --model model --out stability
        headct robustness rescans --detector detector --rescans --out stability
    """
    from headct import checkpoints
    from headct.cohort import Cohort
    from headct.detection import Detector
    from headct.embedding.machine import choose
    from headct.tasks.robustness import Change, Settings, measure
    from headct.tasks.robustness.changes import all_changes
    from headct.tasks.robustness.job import check, write

    if (detector is None) and (model is None):
        raise Misuse("there is nothing to judge", do="give --model MODEL or --detector D")
    if change and perturb is False:
        raise Misuse("--change is for scans that are changed, --rescans for patients who were scanned twice")
    changes = tuple(Change(*_parted(one)) for one in change or ()) or all_changes()
    settings = Settings(perturb=True if change else perturb, changes=changes, seed=seed, batch_size=batch)
    check(out)
    place = Cohort(cohort)
    by = checkpoints.load(model or "") if detector is None else Detector.load(detector, model=model)
    encoder = by.encoder if isinstance(by, Detector) else by
    machine = choose(precision, device, graph=encoder.runtime)
    with talk.progress("looking twice") as progress:
        found = measure(place, by, machine, settings, progress=progress)
    write(found, place, by, machine, seed, out)
    for note in found.notes:
        talk.warn(note)
    shown = found.table[found.table["measure"].isin(["cosine", "cosine_of_others", "first_of_all", "icc", "flips"])]
    if as_json:
        talk.json(found.metrics())
    else:
        columns = ["group", "finding", "measure", "value", "low", "high", "n"]
        talk.table([{key: _known(row[key]) for key in columns} for row in shown.to_dict("records")])
    how = "changed by known amounts" if found.perturbed else "scanned twice"
    talk.say(f"{found.pairs['patient_id'].nunique():,} heads {how}: {out}")


def _parted(text: str) -> tuple[str, float]:
    """Kind and size of `--change`. Raises Misuse for what is not KIND=SIZE."""
    kind, _, size = text.partition("=")
    try:
        return kind, float(size)
    except ValueError:
        raise Misuse(f"--change {text!r} is not KIND=SIZE", do="write for example noise=10") from None


def _known(value: Any) -> Any:
    """A cell of the table; what does not exist is empty."""
    return None if isinstance(value, float) and math.isnan(value) else value
