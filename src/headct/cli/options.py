"""Options that several commands share, so that one word means one thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Inputs = Annotated[list[Path], typer.Argument(metavar="INPUT", help="Files, folders or archives, in any mix.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
CriteriaName = Annotated[
    str, typer.Option("--criteria", metavar="FILE.toml", help="Which series to take; or default, fm-hct, ct-fm.")
]
Key = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="File with the secret for pseudonyms; made once per user otherwise."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, metavar="N", help="Processes; all cores if not given.")
]
