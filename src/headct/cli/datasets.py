"""`headct datasets`, `headct datasets show` and `headct datasets prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headct.cli.options import Json, Key, Workers, tell_new_key
from headct.cli.progress import progress_of
from headct.cli.talk import Talk

if TYPE_CHECKING:
    from headct.datasets import Report

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name from the list.")]

TO_BE_CHECKED = "to be checked"


def datasets(talk: Talk, *, as_json: Json = False) -> None:
    """List the public sets of head CT that can be prepared. Nothing is fetched: accept their terms, and download them.

    Examples:
        headct datasets
        headct datasets --json
    """
    from headct.datasets import SETS

    if as_json:
        talk.json([one.about() for one in SETS.values()])
    else:
        columns = ("name", "unit", "licence", "where")
        talk.table([{column: getattr(one, column) for column in columns} for one in SETS.values()])


def show(talk: Talk, name: Name, *, as_json: Json = False) -> None:
    """Show what is known about one set: where it is, its licence, its findings, the counts that must come out.

    Examples:
        headct datasets show cq500
        headct datasets show rsna-2019 --json
    """
    from headct.datasets import named

    about = named(name).about()
    if as_json:
        talk.json(about)
        return
    expected = {f"expected {what}": _number(number) for what, number in about.pop("expected").items()}
    lines = {**about, "findings": ", ".join(about["findings"]), **expected}
    talk.table([{"": key, "value": value} for key, value in lines.items()])


def prepare(
    talk: Talk,
    name: Name,
    *,
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="The folder of the set as downloaded.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where cohort, labels and splits go.")],
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME", help="How scans are prepared, as for `headct ingest`.")
    ] = "head",
    workers: Workers = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a cohort, labels and splits from a public set as downloaded, and compare the counts with what must come out.

    The folder gets cohort/, labels.csv, splits.csv (by patient, the same for everyone), remarks.csv with every label
    or scan that has a fault, and report.json. Called again with the same line it goes on where it was stopped.

    Examples:
        headct datasets prepare cq500 --data CQ500 --out cq500
        headct datasets prepare rsna-2019 --data rsna-intracranial-hemorrhage-detection --out rsna
    """
    from headct.datasets import named
    from headct.datasets import prepare as run

    tell_new_key(talk, key)
    with progress_of(talk) as progress:
        report = run(named(name), data, out, recipe=recipe, workers=workers, key=key, progress=progress)
    if as_json:
        talk.json(report.as_dict())
    else:
        _show(talk, report)
    if report.differing:
        talk.warn(
            f"{len(report.differing)} counts are not those of the whole set ({', '.join(report.differing[:3])}):\n"
            f"  is the download complete? {out / 'remarks.csv'} names what is missing"
        )
    if not as_json:
        talk.say(f"labels are in {out / 'labels.csv'}, the cohort in {out / 'cohort'}")


def _show(talk: Talk, report: Report) -> None:
    from headct.cli.rejected import reasons

    counts = [{**row, "expected": _number(row["expected"]), "found": _number(row["found"])} for row in report.counts]
    talk.table(counts, to_stderr=True)
    talk.table(report.parts, to_stderr=True)
    remarks = [{"remarks.csv": kind, "number": number} for kind, number in report.remarks.items()]
    talk.table(remarks, to_stderr=True)
    talk.table(reasons(report.ingest.rejected, files=report.ingest.rejected_files), to_stderr=True)


def _number(value: int | None) -> str:
    return TO_BE_CHECKED if value is None else f"{value:,}"
