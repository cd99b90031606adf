"""`headct search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headct.cli.options import Device, Json, KeepIds, KnownKey, Model, Precision, Threads, expect_key
from headct.cli.talk import Talk
from headct.failure import Misuse

SHOWN = 20
"""Rows of the table that are printed; all of them are in the file, or in the JSON."""


def search(
    talk: Talk,
    *,
    from_: Annotated[str, typer.Option("--from", metavar="SCAN", help="A file or folder of one scan, or a scan id.")],
    within: Annotated[Path, typer.Option("--in", metavar="COHORT", help="Where the place is looked for.")],
    model: Model,
    point: Annotated[
        str, typer.Option("--point", metavar="R,A,S", help="Right, anterior, superior in mm of the scan's own space.")
    ] = "",
    box: Annotated[
        str, typer.Option("--box", metavar="R,A,S,R,A,S", help="Lower and upper corner, instead of a point.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for found.csv and page.html.")
    ] = None,
    heat: Annotated[
        bool, typer.Option("--heat", help="Also write similarity/SCAN_ID.nii.gz: the cosine of every voxel.")
    ] = False,
    patch: Annotated[
        float, typer.Option("--patch", metavar="MM", help="Compare patches with this edge, slowly; 0: the whole map.")
    ] = 0.0,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", metavar="WHAT", help="template points, which anatomy encoders name (their default), or tokens."
        ),
    ] = None,
    precision: Precision = "fp32",
    device: Device = None,
    workers: Threads = 1,
    keep_ids: KeepIds = False,
    key: KnownKey = None,
    as_json: Json = False,
) -> None:
    """A point or a box in one scan, and the same place in every scan of a cohort.

    Each row has the place in that patient's own space, the similarity of what the model sees there, and how far from
    the query one arrives when it is looked for backwards: small where both agree. Something is found in every scan,
    whether it is there or not. The query's own scan is left out, by its id: a scan in a file needs the --key (or
    --keep-ids) that the cohort was ingested with. Not a medical device.

    Examples:
        headct search --from scan.nii.gz --point 12,-30,45 --in cohort --model model
        headct search --from scan.nii.gz --box 0,-40,30,25,-15,60 --in cohort --model model --out found
    """
    import numpy as np

    from headct import checkpoints
    from headct.cohort import Cohort
    from headct.embedding.inputs import Reading
    from headct.embedding.machine import choose
    from headct.reading import Criteria
    from headct.reading.pseudonyms import user_key
    from headct.reporting.words import count
    from headct.tasks.correspondence import Box, MapSettings, Search, same_place
    from headct.tasks.correspondence.job import HEAT, PAGE, TABLE, check, clear, write

    if heat and out is None:
        raise Misuse("--heat writes files, and there is no place for them", do="give --out DIR too")
    if out is not None:
        check(out)
    corners = np.array(_numbers("--box", box, 6)) if box else None
    wanted = Search(
        point_mm=np.array(_numbers("--point", point, 3)) if point else None,
        box=None if corners is None else Box(corners[:3], corners[3:]),
        maps=MapSettings(patch_mm=patch, compared=compare),  # type: ignore[arg-type]  # checked there
    )
    expect_key(key)
    cohort = Cohort(within)
    encoder = checkpoints.load(model)
    machine = choose(precision, device, graph=encoder.runtime)
    reading = Reading(
        recipe=encoder.recipe, criteria=Criteria(), key=None if key is None else user_key(key), keep_ids=keep_ids
    )
    if out is not None:
        clear(out, cohort)
    talk.say(f"comparing {wanted.maps.of(encoder)} of {encoder.architecture} on {machine}")
    with talk.progress("searching") as progress:
        found = same_place(
            from_, cohort, encoder, machine, wanted,
            reading=reading, heat=None if out is None or not heat else out / HEAT, workers=workers, progress=progress,
        )  # fmt: skip
    cells = " x ".join(f"{mm:.3g}" for mm in found.resolution_mm)
    if out is not None:
        write(found, cohort, encoder, machine, out)
        talk.say(f"written: {out / TABLE}, {out / PAGE}")
    rows = found.table.to_dict("records")
    talk.table(rows if as_json else rows[:SHOWN], as_json=as_json)  # type: ignore[arg-type]
    if len(rows) > SHOWN and not as_json:
        talk.say(f"and {len(rows) - SHOWN:,} more rows")
    talk.say(
        f"{count(len(rows), 'scan')}, cells of {cells} mm; best agreement first, which does not say how sure a place is"
    )
    talk.say("research software, not a medical device")


def _numbers(option: str, text: str, number: int) -> list[float]:
    """The numbers of `--point` or `--box`. Raises Misuse for anything else."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != number:
        example = "12,-30,45" if number == 3 else "0,-40,30,25,-15,60"
        raise Misuse(f"{option} {text} is not {number} numbers", do=f"write for example {option} {example}")
    return found
