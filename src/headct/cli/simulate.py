"""`headct simulate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headct.cli.options import Json, Workers
from headct.cli.progress import progress_of
from headct.cli.talk import Talk
from headct.failure import Misuse

if TYPE_CHECKING:
    from headct.virtual.job import Result


def simulate(
    talk: Talk,
    *,
    patients: Annotated[int, typer.Option("--patients", metavar="N", help="How many patients.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder, or one to go on with.")],
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Another seed, other patients.")] = 0,
    site: Annotated[str, typer.Option("--site", metavar="NAME", help="site-a, site-b, site-c or site-d.")] = "site-a",
    format_: Annotated[str, typer.Option("--format", metavar="FORM", help="dicom, nifti or cohort.")] = "cohort",
    recipe: Annotated[str, typer.Option("--recipe", metavar="NAME", help="How a cohort is prepared.")] = "head",
    rescan: Annotated[
        str, typer.Option("--rescan", metavar="SITE", help="Scan every patient a second time, at this site.")
    ] = "",
    twin: Annotated[
        str, typer.Option("--twin", metavar="FINDING", help="Scan every patient with and without this finding.")
    ] = "",
    prevalence: Annotated[
        list[str] | None,
        typer.Option("--prevalence", metavar="FINDING=SHARE", help="How often a finding is drawn; may be repeated."),
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", metavar="P", help="DICOM with each vendor's quirks, or clean.")
    ] = "quirks",
    masks: Annotated[
        bool, typer.Option("--masks", help="Keep class maps beside a cohort; files have them always.")
    ] = False,
    deformation: Annotated[
        bool, typer.Option("--deformation", help="Keep the template coordinate of every voxel.")
    ] = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Make virtual patients: head CT with known findings, masks and landmarks, as files or as a cohort.

    Nobody was scanned. The same line gives the same bytes, whatever the number of workers, and goes on where it was
    stopped. labels.csv has 1, 0, or nothing where a finding is there but can hardly be seen.

    \b
    Sites: site-a (5 and 3 mm), site-b (tilted, thick), site-c (thin), site-d (noisy, mixed).
    Findings: iph, ivh, sah, sdh, edh, tumor, hydrocephalus, edema, dementia, infarct, fracture.
    Traps, which are drawn like these: surgery, bruise.
    With numba installed (pip install numba) the same patients take less time.

    Examples:
        headct simulate --patients 200 --seed 1 --out virtual
        headct simulate --patients 12 --site site-b --format dicom --out archive
        headct simulate --patients 500 --prevalence sah=0.3 --prevalence surgery=0 --out bleeding
    """
    from headct.reporting.words import count
    from headct.virtual.job import Job, run
    from headct.virtual.simulated import Simulation

    job = Job(
        simulation=Simulation(seed=seed, site=site, rescan=rescan, twin=twin, prevalence=_mixture(prevalence or ())),
        patients=patients,
        format=format_,
        recipe=recipe,
        profile=profile,
        masks=masks,
        deformation=deformation,
    )
    with progress_of(talk) as progress:
        result = run(job, out, workers=workers, progress=progress)
    for code, number in result.rejected.items():
        talk.warn(f"not prepared: {count(number, 'scan')}, {code}; see {out / 'rejections.parquet'}")
    talk.table(_counts(result), as_json=as_json, to_stderr=not as_json)
    made = "had been made before and are" if result.before else "are"
    talk.say(f"the virtual patients {made} in {out}; their labels in {out / 'labels.csv'}")


def _mixture(asked: Sequence[str]) -> Mapping[str, float]:
    """The usual mixture, other where asked for; raises Misuse for what is not FINDING=SHARE, or asked for twice."""
    from headct.virtual.findings.mixture import PREVALENCE

    wanted: dict[str, float] = {}
    for item in asked:
        name, _, share = item.partition("=")
        if name in wanted:
            raise Misuse(f"--prevalence: {name} is given twice", do="say once how often it is drawn")
        try:
            wanted[name] = float(share)
        except ValueError:
            raise Misuse(f"--prevalence {item!r} is not FINDING=SHARE", do="write for example sah=0.3") from None
    return {**PREVALENCE, **wanted}


def _counts(result: Result) -> list[dict[str, int | str]]:
    """How many scans show each finding, have it too faint to be seen, or lack it."""
    return [{"finding": name, "seen": n[1], "subtle": n[None], "none": n[0]} for name, n in result.counts.items()]
