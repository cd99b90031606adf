"""`headct qc`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headct.cli.talk import Talk


def qc(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT", help="A folder made by `headct ingest`.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="PAGE.html", help="The page to write; a page that headct wrote there before is replaced."
        ),
    ],
    talk: Talk,
) -> None:
    """Write one HTML page about a cohort: slices of every scan, every rejection, histograms.

    The page opens from disk, without a network.

    Examples:
        headct qc cohort --out quality.html
        headct qc cohort --out quality.html --quiet
    """
    from headct.cohort import Cohort
    from headct.cohort.quality import write_page

    write_page(Cohort(cohort), out)
    talk.say(f"wrote {out}")
