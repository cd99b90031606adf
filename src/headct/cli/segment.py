"""`headct segment train`, `headct segment predict`, `headct segment evaluate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from headct.cli.options import (
    CriteriaName,
    Device,
    Inputs,
    Json,
    KeepIds,
    Key,
    Model,
    Precision,
    criteria_of,
    tell_new_key,
)
from headct.cli.progress import progress_of
from headct.cli.talk import Talk
from headct.failure import Misuse

SHOWN = 20
"""Rows of the table that are printed; all of them are in the file."""
A_SEGMENTER = typer.Option("--segmenter", metavar="SEGMENTER", help="A folder of headct segment train.")
MaskFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--masks", metavar="DIR", help="SCAN_ID.nii.gz and classes.csv; once a cohort; masks/ in it if not given."
    ),
]
ClassNames = Annotated[
    str,
    typer.Option(
        "--classes", metavar="NAMES", help="Which: brain,ich=iph+ivh, or NAME=VALUE without classes.csv; else all."
    ),
]


def segment(talk: Talk) -> None:
    """Draw what lies where: learn it from masks, draw on scans, and judge what was drawn.

    Examples:
        headct segment train virtual --model run --out segmenter
        headct segment predict scans --segmenter segmenter --out drawn
    """
    raise Misuse("segment is train, predict or evaluate", do="headct segment --help")


def train(
    talk: Talk,
    cohorts: Annotated[list[Path], typer.Argument(metavar="COHORT", help="Cohorts of the model's recipe.")],
    *,
    model: Model,
    out: Annotated[Path, typer.Option("--out", metavar="SEGMENTER", help="The folder to make.")],
    masks: MaskFolders = None,
    classes: ClassNames = "",
    decoder: Annotated[
        str, typer.Option("--decoder", metavar="NAME", help="segresnet, light, or auto: what fits the encoder.")
    ] = "auto",
    initial: Annotated[
        str, typer.Option("--initial", metavar="NAME", help="pretrained, or random: what pre-training is worth.")
    ] = "pretrained",
    frozen: Annotated[bool, typer.Option("--frozen", help="Train the decoder alone.")] = False,
    shots: Annotated[
        int | None, typer.Option("--shots", min=1, metavar="K", help="Learn from K patients, drawn by the seed.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="N", help="Of the training.")] = 1000,
    lr: Annotated[float, typer.Option("--lr", metavar="RATE", help="The peak, of the decoder.")] = 1e-3,
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Patches a step.")] = 2,
    window: Annotated[
        str, typer.Option("--window", metavar="X,Y,Z", help="Voxels of a patch; by the recipe if not given.")
    ] = "",
    validation: Annotated[
        float, typer.Option("--validation", metavar="SHARE", help="Patients who choose the step.")
    ] = 0.2,
    splits: Annotated[
        Path | None,
        typer.Option("--splits", metavar="FILE.csv", help="Who is where instead: scan_id or patient_id, split."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Fixes every draw.")] = 0,
    precision: Precision = "fp32",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Learn to draw from masks: a segmenter, whose classes are those of the masks.

    A mask lies on the prepared array (headct simulate --masks) or on the scanner's own grid, and is refused anywhere
    else. Patches are drawn so that rare classes come as often as others. Of several steps the one is taken whose Dice
    on whole scans of validation patients is best. The same line goes on after a kill. Not a medical device.

    Examples:
        headct segment train virtual --model run --out segmenter
        headct segment train night --masks drawn --classes ich=1 --model ct-fm --shots 16 --out few
    """
    from headct import checkpoints
    from headct.embedding.machine import choose
    from headct.tasks.segmentation.fitting import TrainSettings, check, fit, opened, splits_of
    from headct.tasks.segmentation.masks import gathered
    from headct.tasks.segmentation.training import Schedule

    settings = TrainSettings(
        decoder=decoder,
        initial=initial,
        frozen=frozen,
        shots=shots,
        validation=validation,
        window=_triple(window) if window else None,
        seed=seed,
        schedule=Schedule(steps=steps, lr=lr, batch=batch),
    )
    check(out, splits)
    given = gathered(list(opened(cohorts)), masks or [], classes)
    encoder = checkpoints.load(model)
    for note in encoder.notes:
        talk.say(note)
    machine = choose(precision, device, graph=encoder.runtime)
    talk.say(f"{', '.join(given[0].classes.names)} on {machine}")
    with progress_of(talk) as progress:
        fitted = fit(
            given,
            encoder,
            machine,
            settings,
            out=out,
            split_file=splits,
            progress=partial(progress, "training"),
            reading=partial(progress, "reading masks"),
            say=talk.say,
        )
    for sentence in fitted.started:
        talk.say(sentence)
    for note in fitted.notes:
        talk.warn(note)
    rows = [dict(row) for row in fitted.course.history]
    talk.table([{**dict.fromkeys(rows[-1]), **row} for row in rows], as_json=as_json)
    chosen = "validation chose the step, so its Dice is too good; " if fitted.validated else ""
    talk.say(f"{chosen}step {fitted.course.best_step:,} was taken: {out}; {splits_of(out)} names the patients")


def predict(
    talk: Talk,
    inputs: Inputs,
    *,
    segmenter: Annotated[Path, A_SEGMENTER],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for masks and volumes.")],
    dicom: Annotated[
        bool, typer.Option("--dicom/--no-dicom", help="Also a DICOM segmentation and report, for DICOM series.")
    ] = True,
    precision: Precision = "fp32",
    device: Device = None,
    criteria: CriteriaName = "default",
    keep_ids: KeepIds = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Masks in the scanner's own geometry, tilt included, and the volume of each class in ml. Not a medical device.

    DIR holds volumes.csv, masks/SCAN_ID.nii.gz, for DICOM series dicom/SCAN_ID.seg.dcm and SCAN_ID.sr.dcm, and
    rejections.csv. The DICOM files bear the patient's name and ids, as a viewer needs them. Where slices are
    unevenly spaced, which NIfTI cannot say, its mask lies on the recipe's grid. The same line goes on after a kill;
    what an earlier line has drawn into DIR is replaced.

    Examples:
        headct segment predict night --segmenter segmenter --out drawn
        headct segment predict scan.nii.gz --segmenter segmenter --out drawn --json
    """
    from headct.cli.rejected import nothing, reasons
    from headct.embedding.inputs import Reading
    from headct.embedding.machine import choose
    from headct.reading.pseudonyms import user_key
    from headct.reporting.words import count
    from headct.tasks.segmentation.drawing import REJECTIONS, VOLUMES, check, draw_into
    from headct.tasks.segmentation.segmenter import Segmenter

    check(out)
    wanted = criteria_of(criteria)
    tell_new_key(talk, key)
    found = Segmenter.load(segmenter)
    machine = choose(precision, device)
    talk.say(f"{', '.join(found.classes)} by {found.plan.decoder} on {machine}")
    reading = Reading(
        recipe=found.recipe, criteria=wanted, key=None if key is None else user_key(key), keep_ids=keep_ids
    )
    with talk.progress("drawing") as progress:
        drawn = draw_into(out, inputs, found, reading, machine, dicom=dicom, progress=progress)
    talk.table(reasons(drawn.rejected), to_stderr=True)
    if not drawn.rows:
        counted = {code: f"{number:,}" for code, number in drawn.rejected.items()}
        raise nothing("nothing could be drawn on", inputs, counted, do=f"see the sentences in {out / REJECTIONS}")
    if as_json:
        talk.json(drawn.rows)
    else:
        hidden = ("patient_id", "study_id", "series_id", "nifti", "segmentation", "report")
        talk.table([{name: row[name] for name in row if name not in hidden} for row in drawn.rows[:SHOWN]])
        if len(drawn.rows) > SHOWN:
            talk.say(f"and {len(drawn.rows) - SHOWN:,} more rows")
    if any(row["segmentation"] for row in drawn.rows):
        talk.say("files in dicom/ bear the patient's name and ids, as those of their series do")
    talk.say(f"{count(len(drawn.rows), 'scan')}: {out / VOLUMES}; research software, not a medical device")


def evaluate(
    talk: Talk,
    cohorts: Annotated[
        list[Path] | None, typer.Argument(metavar="COHORT", help="With a segmenter, who is drawn on; else, who is who.")
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for segments.csv, metrics.json, report.html.")
    ],
    segmenter: Annotated[Path | None, A_SEGMENTER] = None,
    drawn: Annotated[
        Path | None, typer.Option("--drawn", metavar="DIR", help="Masks that were drawn before, instead.")
    ] = None,
    masks: MaskFolders = None,
    classes: ClassNames = "",
    tolerance: Annotated[float, typer.Option("--tolerance", metavar="MM", help="Within which surfaces agree.")] = 2.0,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Of the draws of patients.")] = 0,
    precision: Precision = "fp32",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Masks that were drawn beside masks that are true: overlap, distances, lesions, volumes, each with its interval.

    A class that is there and was not drawn is a miss, with a Dice of 0 and a distance beyond all. With --segmenter,
    patients that it has learned from are left out; with --drawn nobody is. Intervals are of draws of patients.

    Examples:
        headct segment evaluate other --segmenter segmenter --out judged
        headct segment evaluate other --drawn drawn/masks --masks true --out judged
    """
    from headct.embedding.machine import choose
    from headct.tasks.segmentation import judging
    from headct.tasks.segmentation.fitting import opened
    from headct.tasks.segmentation.masks import gathered
    from headct.tasks.segmentation.measuring import Judging, leaf_rows
    from headct.tasks.segmentation.segmenter import Segmenter

    if (segmenter is None) == (drawn is None):
        raise Misuse("what is judged is one segmenter or one folder of masks", do="give --segmenter or --drawn")
    how = Judging(tolerance_mm=tolerance, seed=seed)
    judging.check(out)
    given = list(opened(cohorts or []))
    settings: dict[str, Any] = {"cohorts": ", ".join(cohort.path.name for cohort in given) or "none"}
    hashes: dict[str, str] = {}
    with talk.progress("judging") as progress:
        if segmenter is not None:
            if not given:
                raise Misuse("a segmenter draws on the scans of a cohort", do="name one")
            found = Segmenter.load(segmenter)
            true = gathered(given, masks or [], classes, learned=found.definition)
            machine = choose(precision, device)
            talk.say(f"{', '.join(found.classes)} by {found.plan.decoder} on {machine}")
            done = judging.judge_segmenter(true, found, machine, how, progress=progress)
            settings |= {"network": f"{found.plan.decoder} on {found.plan.architecture}", "recipe": found.recipe.name}
            hashes["segmenter"] = found.sha256
        else:
            assert drawn is not None
            if not masks or len(masks) != 1 or len(given) > 1:
                raise Misuse("drawn masks are compared with one folder of true ones", do="give --masks DIR once")
            of_truth, of_drawn = judging.classes_of_both(drawn, masks[0], classes)
            done = judging.judge_folders(
                drawn, masks[0], of_truth, of_drawn, how, cohort=given[0] if given else None, progress=progress
            )
            settings["drawn"] = drawn.name
    for note in done.notes:
        talk.warn(note)
    metrics = judging.write(done, out, settings=settings, hashes=hashes)
    shown = ("dice", "surface_dice", "hausdorff_95_mm", "missed", "false_alarms", "lesions_found")
    if as_json:
        talk.json(metrics)
    else:
        talk.table([row for row in leaf_rows(metrics) if row["measure"] in shown])
    scans = done.agreement.rows["scan_id"].nunique()
    talk.say(f"{scans:,} scans: {out / judging.METRICS}, {out / judging.PAGE}")


def _triple(text: str) -> tuple[int, int, int]:
    """The numbers of `--window`. Raises Misuse for anything else."""
    try:
        x, y, z = (int(part) for part in text.split(","))
    except ValueError:
        raise Misuse(f"--window {text} is not three whole numbers", do="write for example --window 96,96,96") from None
    return x, y, z
