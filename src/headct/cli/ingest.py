"""`headct ingest`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headct.cli.options import CriteriaName, Inputs, Json, Key, Workers
from headct.cli.talk import Talk

if TYPE_CHECKING:
    from headct.cohort.rounds import Progress
    from headct.cohort.summary import Summary

LINE_EVERY_S = 30.0
"""How often progress is said in a log, where no bar can be drawn."""


def ingest(
    talk: Talk,
    inputs: Inputs,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="COHORT", help="The cohort to make, go on with, or add to.")],
    recipe: Annotated[str, typer.Option("--recipe", metavar="NAME", help="How scans are prepared.")] = "head",
    criteria: CriteriaName = "default",
    workers: Workers = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", metavar="ADDRESS", help="Let the workers of a Dask scheduler do the work."),
    ] = None,
    site: Annotated[str, typer.Option("--site", metavar="NAME", help="Written into the column `site`.")] = "",
    keep_ids: Annotated[bool, typer.Option("--keep-ids", help="Keep identifiers instead of pseudonyms.")] = False,
    key: Key = None,
    hash_paths: Annotated[bool, typer.Option("--hash-paths", help="Write hashes of paths into the tables.")] = False,
    as_json: Json = False,
) -> None:
    """Read files, folders and archives, and write every usable head CT into a cohort.

    Called again with the same line it goes on where it was stopped, or adds what is new. The cohort holds no names,
    dates or free text; its bytes depend on the input only, not on the number of workers.

    Examples:
        headct ingest /data/ct --out night
        headct ingest /data/a /data/b.zip --out night --recipe head-fine --site north
    """
    from headct.cohort.ingest import ingest as run
    from headct.failure import Failure
    from headct.reading.criteria import named

    with _progress(talk) as progress:
        summary = run(
            inputs,
            out,
            recipe,
            named(criteria),
            workers=workers,
            cluster=cluster,
            site=site,
            keep_ids=keep_ids,
            key=key,
            hash_paths=hash_paths,
            progress=progress,
        )
    if as_json:
        talk.json(summary.as_dict())
    _tell(talk, summary, out)
    if not summary.scans:
        why = ", ".join(f"{code} ({files} files)" for code, files in summary.rejected_files.items())
        raise Failure("no usable head CT was found", why=why, do=f"see the sentences in {out / 'rejections.parquet'}")


@contextmanager
def _progress(talk: Talk) -> Iterator[Progress]:
    """A bar for each part of the work on a terminal; a line now and then in a log."""
    begun_s: dict[str, float] = {}
    said_s = time.monotonic()
    with ExitStack() as bars:
        update: dict[str, Callable[[int, int | None], None]] = {}

        def progress(what: str, done: int, total: int | None) -> None:
            nonlocal said_s
            now_s = time.monotonic()
            if what not in update:
                bars.close()
                update[what] = bars.enter_context(talk.progress(what))
                begun_s[what] = now_s
            update[what](done, total)
            if not sys.stderr.isatty() and now_s - said_s > LINE_EVERY_S:
                said_s = now_s
                talk.say(_line(what, done, total, now_s - begun_s[what]))

        yield progress


def _line(what: str, done: int, total: int | None, seconds: float) -> str:
    rate = done / seconds if seconds > 0 else 0.0
    if not total or not rate:
        return f"{what}: {done:,}"
    return f"{what}: {done:,} of {total:,}, {rate:.3g} per second, {(total - done) / rate / 60:.0f} min left"


def _tell(talk: Talk, summary: Summary, out: Path) -> None:
    """The table at the end, and what the user should know besides."""
    from headct.scan import REASONS

    counts = {
        "files found": summary.files_found,
        "files read": summary.files_read,
        "files rejected": summary.files_rejected,
        "scans": summary.scans,
        "scans, one per study": summary.preferred,
        "scans new in this call": summary.added_scans + summary.replaced_scans,
        "scans per second": round(summary.scans_per_s, 2),
        "size in MB": round(summary.cohort_bytes / 1e6, 1),
    }
    talk.table([{"cohort": name, str(out): number} for name, number in counts.items()], to_stderr=True)
    reasons = [
        {
            "code": code,
            "rejected because": REASONS[code].meaning,
            "series or files": number,
            "files": summary.rejected_files.get(code, 0),
            "what to do": REASONS[code].remedy,
        }
        for code, number in summary.rejected.items()
    ]
    talk.table(reasons, to_stderr=True)
    if summary.changed:
        some = ", ".join(summary.changed[:3]) + (", …" if len(summary.changed) > 3 else "")
        talk.say(
            f"warning: {len(summary.changed)} files changed since their scans were read ({some});\n"
            "  the cohort keeps what it read; ingest into a new folder to read them again;\n"
            "  if they are other files of the same name, name the folder above them as the input"
        )
    if summary.gone:
        talk.say(f"note: {summary.gone} files read before are no longer there; their scans stay in the cohort")
