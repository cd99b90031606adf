"""`headct explain`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headct.cli.options import Batch, CriteriaName, Device, Json, Precision, criteria_of
from headct.cli.progress import progress_of
from headct.cli.talk import Talk
from headct.failure import Misuse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headct.cohort import Cohort

SHOWN = ("finding", "method", "verdict", "deletion_p", "insertion_p", "random_weights", "hit", "overlap", "why")


def explain(
    talk: Talk,
    scan: Annotated[str, typer.Argument(metavar="SCAN", help="A file or folder of one scan, or a scan id of --in.")],
    *,
    detector: Annotated[Path, typer.Option("--detector", metavar="D", help="A folder of headct adapt.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for maps, pictures, tables and page.")],
    within: Annotated[Path | None, typer.Option("--in", metavar="COHORT", help="The cohort that holds SCAN.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", metavar="NAME", help="occlusion, rollout, gradients; may be repeated. All that fit."),
    ] = None,
    finding: Annotated[
        list[str] | None, typer.Option("--finding", metavar="NAME", help="May be repeated; all of the detector.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", metavar="FILE", help="Where the lesion is: NIfTI in the patient's space.")
    ] = None,
    truth: Annotated[
        list[str] | None,
        typer.Option("--truth", metavar="FINDING=N,N", help="Which values of the mask are a finding; may be repeated."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The detector's encoder, where it has moved.")
    ] = None,
    box: Annotated[float, typer.Option("--box", metavar="MM", help="Edge of what is hidden at a time.")] = 32.0,
    orders: Annotated[
        int, typer.Option("--orders", metavar="N", help="Random orders that a map has to be better than.")
    ] = 19,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Of random orders and random weights.")] = 0,
    precision: Precision = "fp32",
    device: Device = None,
    batch: Batch = 8,
    criteria: CriteriaName = "default",
    as_json: Json = False,
) -> None:
    """Maps of what a detector's answers rest on, each with whether it can be believed. Not a medical device.

    Each map is asked three things: does the score fall when what it shows is evened out, does it return when that alone
    is put back (both against random orders), and do random weights draw another map. A map that fails is reported as
    failing. Rollout is the same for all findings unless the detector attends to each. With a mask it is also told
    whether the map lies on the lesion; a virtual cohort that was made with --masks brings its own.

    Examples:
        headct explain scan.nii.gz --detector detector --out why
        headct explain scan.nii.gz --detector detector --finding iph --mask lesion.nii.gz --out why
    """
    from headct.cohort import Cohort
    from headct.cohort.identities import is_virtual
    from headct.detection import Detector
    from headct.embedding.inputs import Reading, is_cohort, one_scan
    from headct.embedding.machine import choose
    from headct.reporting.words import count
    from headct.tasks.explanation import Settings, read_mask
    from headct.tasks.explanation import explain as run
    from headct.tasks.explanation.job import expect_hu
    from headct.tasks.explanation.showing import check, metrics, table_of, write

    if truth and mask is None:
        raise Misuse("--truth says what values of a mask mean, and there is none", do="give --mask FILE too")
    settings = Settings(
        methods=tuple(method or ()),
        findings=tuple(finding or ()),
        box_mm=box,
        orders=orders,
        seed=seed,
        batch_size=batch,
    )
    check(out)
    wanted = criteria_of(criteria)
    found = Detector.load(detector, model=model)
    expect_hu(found)
    machine = choose(precision, device, graph=found.encoder.runtime)
    place = within or (Path(scan) if is_cohort(Path(scan)) else None)
    cohort = None if place is None else Cohort(place)
    ready = one_scan(scan, Reading(recipe=found.encoder.recipe, criteria=wanted), cohort)
    where, values = _truth(ready.ids["scan_id"], cohort, mask, truth or (), settings.findings or found.findings)
    masks = None
    if where is not None:
        x, y, z = ready.array.shape
        masks = read_mask(where, ready.affine, (x, y, z), values)
    talk.say(f"{', '.join(settings.findings or found.findings)} by {found.fitted.method} on {machine}")
    with progress_of(talk) as progress:
        told = run(ready, found, machine, settings, masks, progress=partial(progress, "looks"))
    virtual = cohort is not None and is_virtual(cohort) and ready.ids["scan_id"] in cohort
    write(told, found, machine, settings, out, virtual=virtual)
    for note in told.notes:
        talk.warn(note)
    for name, reason in told.left_out.items():
        talk.say(f"left out: {name}, for {reason}")
    table = table_of(told)
    if as_json:
        talk.json(metrics(told))
    else:
        rows = table[table["verdict"] != "left out"].astype(object)
        rows = rows.where(rows.notna(), None)
        talk.table([{name: row[name] for name in SHOWN} for row in rows.to_dict("records")])
    passed = sum(one.verdict == "passes" for one in told.explained)
    failed = sum(one.verdict == "fails" for one in told.explained)
    talk.say(f"{count(len(told.explained), 'map')}, {passed} pass, {failed} fail: {out}")
    talk.say("research software, not a medical device")


def _truth(
    scan_id: str, cohort: Cohort | None, mask: Path | None, truth: Sequence[str], findings: Sequence[str]
) -> tuple[Path | None, dict[str, tuple[int, ...]]]:
    """The file of the mask, if there is one, and which of its values each finding has; none means all but 0.

    Raises Misuse where it is not clear of which finding a mask is.
    """
    from headct.cohort.identities import is_virtual

    if mask is None:
        if cohort is None or not is_virtual(cohort):
            return None, {}
        beside = cohort.path / "masks" / f"{scan_id}.nii.gz"
        return (beside, _of_virtual(findings)) if beside.is_file() else (None, {})
    named = mask.name.removesuffix(".gz").removesuffix(".nii")
    if cohort is not None and named in cohort and named != scan_id:
        raise Misuse(
            f"{mask} is called after another scan of the cohort than {scan_id}",
            why="the mask of another patient would lie elsewhere",
            do="name the mask of this scan",
        )
    if truth:
        return mask, dict(_parted(one, findings) for one in truth)
    if len(findings) > 1:
        raise Misuse(
            f"it is not said of which finding {mask} is the mask",
            why=f"the detector has {', '.join(findings)}",
            do="give --finding NAME, or --truth NAME=VALUE for each",
        )
    return mask, {findings[0]: ()}


def _of_virtual(findings: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The values of the findings in the masks of virtual patients; those without a place of their own are left out."""
    from headct.virtual.truth import CLASSES

    values: dict[str, tuple[int, ...]] = {name: (number,) for number, name in enumerate(CLASSES, start=1)}
    values["ich"] = tuple(values[name][0] for name in ("iph", "ivh", "sah", "sdh", "edh"))
    values["hydrocephalus"] = values["ventricles"]
    return {name: values[name] for name in findings if name in values}


def _parted(text: str, findings: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """Finding and values of `--truth`. Raises Misuse for what is not FINDING=N,N, or no finding."""
    name, _, numbers = text.partition("=")
    try:
        values = tuple(int(one) for one in numbers.split(","))
    except ValueError:
        raise Misuse(f"--truth {text!r} is not FINDING=N,N", do="write for example iph=7") from None
    if name not in findings:
        raise Misuse(f"--truth names {name!r}, which is not explained", do=f"name one of {', '.join(findings)}")
    return name, values
