"""`headct demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headct.cli.talk import Talk


def demo(
    talk: Talk,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write.")] = Path("demo-output"),
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Your own scans; virtual patients otherwise.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Little of everything: some two minutes.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="DIR", help="One of a longer run, instead of virtual-coarse.")
    ] = None,
) -> None:
    """Walk the whole way once on virtual patients: files, cohorts, pre-training, few labels, a test, and a page.

    Meant for some ten minutes of two free cores; the pre-training alone takes two minutes. Findings are learned from
    few labels of one site and tested there and at three others, beside a histogram, random weights, training from
    scratch and the model that comes with the package. With --data your own scans, which have no labels: cohort, a short
    pre-training, embeddings. Prints the path of the page.

    Examples:
        headct demo
        headct demo --quick --data ~/scans --out try
    """
    from headct.studies.demo import demo as whole_way

    print(whole_way(out, data=data, quick=quick, checkpoint=checkpoint, say=talk.say))
