"""What was found and what was rejected, and why: the pieces that say what a job made of its input files.

They take the three tables of a cohort: scans (a row per accepted scan), rejections (`code`, `sentence`, `remedy`,
`files`) and files (`path`, `bytes`, `outcome` = scan id or rejection code).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from types import MappingProxyType

import pandas as pd
from markupsafe import Markup

from headct.reporting.flow import Loss, Stage, flow
from headct.reporting.tables import Column, table
from headct.reporting.words import count, joined, sentence_case, visible
from headct.scan import REASONS

REASONS_NAMED = 3
"""How many reasons of rejections stand in a sentence, the most frequent ones."""
FILES_NAMED = 12
"""How many files a rejection names on the page; the table of rejections names them all."""


def _steps(**codes: str) -> Mapping[str, str]:
    named = {code: step.replace("_", " ") for step, listed in codes.items() for code in listed.split()}
    return MappingProxyType(named)


STEPS: tuple[str, ...] = (
    "readable",
    "part of a CT volume",
    "within the criteria",
    "showing a head",
    "in accepted scans",
)
"""What is left after each step of the flow."""

STEP_OF: Mapping[str, str] = _steps(
    readable="not-found unreadable empty-file dangling-link link-loop special-file unknown-format duplicate-file "
    "archive-unreadable archive-bomb archive-path "
    "damaged no-pixels no-decoder too-large time-limit memory-limit crashed",
    part_of_a_CT_volume="side-file not-ct not-an-image localizer screen-capture derived-map projection film "
    "no-geometry same-position duplicate-slice missing-slices not-spatial not-hounsfield split-series",
    within_the_criteria="contrast too-few-slices too-many-slices thickness kvp kernel description",
    showing_a_head="no-head",
    in_accepted_scans="cropped recipe-unfit",
)
"""The step at which each rejection code stops a file."""


@dataclass(frozen=True)
class Intake:
    """The three tables of a cohort. Raises ValueError where a file has an outcome that is neither scan nor code."""

    scans: pd.DataFrame
    rejections: pd.DataFrame
    files: pd.DataFrame

    def __post_init__(self) -> None:
        unknown = set(self.files["outcome"]) - set(self.scans["scan_id"]) - set(REASONS)
        if unknown:
            raise ValueError(f"files end as {sorted(unknown)[:3]}, neither accepted scans nor rejection codes")

    @property
    def files_accepted(self) -> int:
        """How many files became part of an accepted scan."""
        return int(self.files["outcome"].isin(self.scans["scan_id"]).sum())

    def files_by_code(self) -> dict[str, int]:
        """How many files each rejection code took, in the order of the documented list."""
        counts = self.files["outcome"].value_counts()
        return {code: int(counts[code]) for code in REASONS if code in counts}

    def rejections_by_code(self) -> dict[str, int]:
        """How many rows of the table of rejections have each code, most first."""
        counts = self.rejections["code"].value_counts()
        return {code: int(counts[code]) for code in sorted(counts.index, key=lambda code: (-counts[code], code))}


def anchor(code: str) -> str:
    """Where the page lists the rejections of a code."""
    return f"rejected-{code}"


def what_was_found(intake: Intake) -> list[str | Markup]:
    """The first sentences of a page: what came in, what was accepted, what was rejected most, whether all adds up."""
    scans, files, taken = len(intake.scans), len(intake.files), intake.files_accepted
    people = count(intake.scans["patient_id"].nunique(), "patient") if scans else ""
    accepted = f"{count(scans, 'scan')} of {people} {_was(scans)} accepted" if scans else "No scan was accepted"
    return [
        f"{accepted}, from {count(files, 'file')}.",
        _most_rejected(intake),
        f"Every file is accounted for: {taken:,} are part of a scan and {files - taken:,} are not, {files:,} together.",
    ]


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def _most_rejected(intake: Intake) -> str | Markup:
    by_code = intake.rejections_by_code()
    if not by_code:
        return "Nothing was rejected."
    total = sum(by_code.values())
    listed = [
        Markup('<a href="#{}">{}</a> ({})').format(anchor(code), code, f"{rows:,}")
        for code, rows in list(by_code.items())[:REASONS_NAMED]
    ]
    often = "most often as" if len(by_code) > 1 else "as"
    rejected = f"{count(total, 'series or single file', 'series or single files')} {_was(total)} rejected"
    return Markup("{}, {} {}.").format(rejected, often, joined(listed))


def what_to_do(intake: Intake) -> list[Markup]:
    """The most frequent reasons about which a user can do something, each with what it means and its remedy."""
    actionable = [code for code in intake.rejections_by_code() if not _nothing_to_do(REASONS[code].remedy)]
    return [
        Markup('<a href="#{}">{}</a>: {}. {}.').format(
            anchor(code), code, REASONS[code].meaning, sentence_case(REASONS[code].remedy)
        )
        for code in actionable[:REASONS_NAMED]
    ]


def _nothing_to_do(remedy: str) -> bool:
    """True where the list of reasons says that all is as it should be."""
    return remedy.startswith("nothing to do")


def flow_of_files(intake: Intake) -> Markup:
    """How many files remained after each step; each loss links to the rejections of its code."""
    by_code = intake.files_by_code()
    stages = [Stage("files found", len(intake.files))]
    for step in STEPS:
        losses = tuple(Loss(code, n, anchor(code)) for code, n in by_code.items() if STEP_OF[code] == step)
        stages.append(Stage(step, stages[-1].count - sum(loss.count for loss in losses), losses))
    stages[-1] = replace(stages[-1], name=f"in {count(len(intake.scans), 'accepted scan')}")
    return flow(stages, "file")


def rejections_by_reason(intake: Intake) -> Markup:
    """Every rejection, grouped by code in the order of frequency; a group opens to show all its rows."""
    if intake.rejections.empty:
        return Markup("<p>Nothing was rejected.</p>")
    return Markup("").join(
        _group(code, intake.rejections[intake.rejections["code"] == code]) for code in intake.rejections_by_code()
    )


def _group(code: str, rows: pd.DataFrame) -> Markup:
    files = sum(len(names) for names in rows["files"])
    meaning = REASONS[code].meaning if code in REASONS else "a reason that this version does not know"
    remedies = joined(sorted({sentence_case(remedy) for remedy in rows["remedy"]}))
    columns = [
        Column(key="sentence", header="What was seen", wide=True),
        Column(key="number", header="Files", decimals=0),
        Column(key="files", header="Names", write=_names, wide=True),
    ]
    listed = table(rows.assign(number=[len(names) for names in rows["files"]]), columns, f"Rejected as {code}")
    counted = f"{count(len(rows), 'rejection')}, {count(files, 'file')}"
    return Markup('<details id="{}"><summary><h3><code>{}</code> · {}</h3><p>{}. {}.</p></summary>{}</details>').format(
        anchor(code), code, counted, sentence_case(meaning), remedies, listed
    )


def _names(files: Iterable[str]) -> Markup:
    """File names after the folder that they share; long lists are cut, and say so."""
    names = list(files)
    folder = _shared_folder(names) if len(names) > 1 else ""
    inner = [name[len(folder) + 1 :] if folder else name for name in names]
    shown = [Markup("<bdi>{}</bdi>").format(visible(name)) for name in inner[:FILES_NAMED]]
    if len(inner) > FILES_NAMED:
        shown.append(Markup("and {} more, named in rejections.parquet").format(f"{len(inner) - FILES_NAMED:,}"))
    place = Markup("<bdi>{}/</bdi> ").format(visible(folder)) if folder else Markup("")
    return place + Markup(", ").join(shown)


def _shared_folder(names: list[str]) -> str:
    """The innermost folder in which all names lie, or nothing."""
    first, *others = [name.split("/")[:-1] for name in names]
    depth = min(sum(1 for _ in takewhile(_same, zip(first, other, strict=False))) for other in others)
    return "/".join(first[:depth])


def _same(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]
