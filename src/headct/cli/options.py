"""Options that several commands share, so that one word means one thing everywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headct.failure import Misuse

if TYPE_CHECKING:
    from headct.cli.talk import Talk
    from headct.reading import Criteria

Inputs = Annotated[list[Path], typer.Argument(metavar="INPUT", help="Files, folders or archives, in any mix.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
CriteriaName = Annotated[
    str, typer.Option("--criteria", metavar="FILE.toml", help="Which series to take; or default, fm-hct, ct-fm.")
]
Key = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Secret of the pseudonyms, made if not there; else the user's own.",
    ),
]
KnownKey = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Secret that the cohort's pseudonyms were made with, which must be there; else the user's own.",
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, metavar="N", help="Processes; all cores if not given.")
]
Model = Annotated[
    str,
    typer.Option("--model", metavar="MODEL", help="A checkpoint folder, a finished run, or a name (headct models)."),
]
Precision = Annotated[
    str, typer.Option("--precision", metavar="NAME", help="fp32, bf16, or auto: bf16 where the machine has units.")
]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="cpu or cuda; a GPU if there is one.")]
Batch = Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Scans that are looked at together.")]
Threads = Annotated[int, typer.Option("--workers", min=1, metavar="N", help="Threads that prepare scans meanwhile.")]
Preferred = Annotated[
    bool, typer.Option("--preferred", help="Of each study the preferred series alone, else all that are labelled.")
]
KeepIds = Annotated[bool, typer.Option("--keep-ids", help="Keep identifiers instead of pseudonyms.")]


def tell_new_key(talk: Talk, key: Path | None) -> None:
    """Warn where `--key` names no file: it will be made, and a slip in its name would change every pseudonym."""
    if key is not None and not key.exists():
        talk.warn(f"there is no file {key}: a new key is made there, whose pseudonyms match those of no other")


def expect_key(key: Path | None) -> None:
    """Raises Misuse where `--key` names no file and is to know patients again: a new key would know none."""
    if key is not None and not key.exists():
        raise Misuse(
            f"there is no key {key}",
            why="a new one would know nobody of the cohort again",
            do="name the key that the cohort was ingested with",
        )


def criteria_of(option: str) -> Criteria:
    """The criteria that `--criteria` names. Raises Misuse where there are none, or no file of that name."""
    from headct.reading.criteria import named

    option = os.path.expanduser(option)
    path = Path(option)
    if (path.suffix == ".toml" or len(path.parts) > 1) and not path.is_file():
        raise Misuse(f"there is no file {option}", do="check the path")
    return named(option)
