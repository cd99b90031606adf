"""`headct export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headct.cli.talk import Talk

BLURRED = 0.95
"""A cosine of centred vectors below this is told: about a tenth of what tells scans apart is then noise."""


def export(
    talk: Talk,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder, a finished run, or a name.")],
    *,
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="hub, onnx or openvino.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    precision: Annotated[
        str, typer.Option("--precision", metavar="NAME", help="fp32; for openvino also bf16 or int8.")
    ] = "fp32",
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", metavar="COHORT", help="Scans to compare on; for int8 half of them calibrate."),
    ] = None,
    scans: Annotated[int, typer.Option("--scans", min=1, metavar="N", help="How many of them.")] = 16,
) -> None:
    """Write a model in another form: a folder for the Hub, or a graph that is faster on a CPU.

    A graph is compared with the model on scans before anything is written, and a model card is always part of it. The
    folder is a MODEL again: `headct embed --model DIR` runs the graph. Nothing is uploaded.

    Examples:
        headct export run --to hub --out my-model
        headct export run --to openvino --precision int8 --calibrate night --out fast
    """
    from headct import checkpoints
    from headct.checkpoints.export import check, check_model, drawn_heads
    from headct.checkpoints.export import export as write
    from headct.cohort import Cohort
    from headct.failure import Misuse

    check(to, out, precision)
    if to == "hub" and calibrate is not None:
        raise Misuse("--calibrate is for graphs, and the Hub takes the checkpoint", do="leave it out")
    encoder = checkpoints.load(model)
    check_model(encoder)
    arrays = []
    if calibrate is not None:
        cohort = Cohort(calibrate)
        cohort.expect(encoder.recipe)
        taken = list(cohort)[:: max(1, len(cohort) // scans)][:scans]  # from all of it: neighbours are alike
        arrays = [cohort.array(scan_id) for scan_id in taken]
    elif to != "hub":
        arrays = drawn_heads(encoder.recipe)
        talk.warn("no scans to compare on: simple drawn heads are taken, which says less (--calibrate COHORT)")
    if to != "hub":
        talk.say(f"writing a graph for {to} in {precision}; of a large model this takes minutes")
    done = write(encoder, to, out, precision=precision, arrays=arrays)
    if done.runtime is not None:
        talk.say(
            f"on {done.runtime.compared_on} scans the cosine to the model is {done.runtime.cosine:.6f} or more, "
            f"the largest difference of a feature {done.runtime.difference:.2g}"
        )
        if done.runtime.centred is not None and done.runtime.centred < BLURRED:
            talk.warn(
                f"without what these scans have in common the cosine is {done.runtime.centred:.2f}: their vectors are "
                "almost the same, and this precision loses part of what tells them apart"
            )
    print(done.folder)
