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
    quick: Annotated[bool, typer.Option("--quick", help="A shorter training: under two minutes on two cores.")] = False,
) -> None:
    """Walk the whole way once: scans to cohort, a short pre-training, embeddings, and a page to look at.

    Prints the path of the page.

    Examples:
        headct demo
        headct demo --quick --data ~/scans --out try
    """
    from headct.studies.demo import demo as whole_way

    print(whole_way(out, data=data, quick=quick, say=talk.say))
