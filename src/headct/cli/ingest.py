"""`headct ingest`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headct.cli.options import CriteriaName, Inputs, Json, KeepIds, Key, Workers, criteria_of, tell_new_key
from headct.cli.progress import progress_of
from headct.cli.talk import Talk

if TYPE_CHECKING:
    from headct.cohort.summary import Summary

NOTHING = "no usable head CT was found"


def ingest(
    talk: Talk,
    inputs: Inputs,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="COHORT", help="The cohort to make, go on with, or add to.")],
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME", help="How scans are prepared; the names are above.")
    ] = "head",
    criteria: CriteriaName = "default",
    workers: Workers = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", metavar="ADDRESS", help="Let the workers of a Dask scheduler do the work."),
    ] = None,
    site: Annotated[
        str,
        typer.Option("--site", metavar="NAME", help="Written into the column `site` of new scans; others keep theirs."),
    ] = "",
    keep_ids: KeepIds = False,
    key: Key = None,
    hash_paths: Annotated[bool, typer.Option("--hash-paths", help="Write hashes of paths into the tables.")] = False,
    as_json: Json = False,
) -> None:
    """Read files, folders and archives, and write every usable head CT into a cohort.

    Called again with the same line it goes on where it was stopped, or adds what is new. The cohort holds no names,
    dates or free text, but for what paths say (--hash-paths); its bytes depend on the input only, not on the number of
    workers.

    \b
    Recipes: head (2 mm), head-axial (finer in the plane), head-fine (1 mm), head-coarse (4 mm);
    as published: fm-hct, fm-hct-notebook, ct-fm-pretrain, ct-fm-hub, ct-fm-head.

    Examples:
        headct ingest /data/ct --out night
        headct ingest /data/a /data/b.zip --out night --recipe head-fine --site north
    """
    from headct.cli.rejected import nothing
    from headct.cohort.ingest import check_places
    from headct.cohort.ingest import ingest as run
    from headct.cohort.inputs import holds_files
    from headct.cohort.publish import COHORT_JSON
    from headct.reporting.words import count

    check_places(inputs, out)
    if not any(map(holds_files, inputs)) and not (out / COHORT_JSON).exists():  # else the inbox is empty tonight
        raise nothing(NOTHING, inputs, {}, do="")
    tell_new_key(talk, key)
    with progress_of(talk) as progress:
        summary = run(
            inputs,
            out,
            recipe,
            criteria_of(criteria),
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
    else:
        _show(talk, summary)
    _warn(talk, summary, site)
    page = shlex.join(["headct", "qc", str(out), "--out", f"{out.resolve().name}.html"])
    if not summary.scans:
        counted = {code: count(files, "file") for code, files in summary.rejected_files.items()}
        do = f"see every one with its sentence: {page} (or read {out / 'rejections.parquet'})"
        raise nothing(NOTHING, inputs, counted, do)
    if not as_json:
        talk.say(f"the cohort is in {out}; look at it: {page}")


def _show(talk: Talk, summary: Summary) -> None:
    """The tables at the end."""
    from headct.cli.rejected import reasons

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
    talk.table([{"cohort": name, "number": number} for name, number in counts.items()], to_stderr=True)
    talk.table(reasons(summary.rejected, files=summary.rejected_files), to_stderr=True)


def _warn(talk: Talk, summary: Summary, site: str) -> None:
    """What the user should know although all went well."""
    from headct.reporting.words import count

    if summary.changed:
        some = ", ".join(summary.changed[:3]) + (", …" if len(summary.changed) > 3 else "")
        talk.warn(
            f"{count(len(summary.changed), 'file')} changed since being read ({some});\n"
            "  the cohort keeps what it read; ingest into a new folder to read again;\n"
            "  if they are other files of the same name, name the folder above them as the input"
        )
    if summary.other_site:
        talk.warn(
            f"--site {site} is written for new scans only; {count(summary.other_site, 'scan')} of these inputs came "
            "into the cohort before, without it;\n  ingest into a new folder to write it for all"
        )
    if summary.gone:
        talk.say(f"note: no longer there: {count(summary.gone, 'file')} read before; their scans stay in the cohort")
