"""Sections that every demo's page has: where the files went, and how the scans look."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from headct.cohort import Cohort
from headct.cohort.quality import NAMED_WINDOWS, acquisition, scans_table
from headct.reporting.intake import Intake, flow_of_files, rejections_by_reason
from headct.reporting.neighbours import Neighbour
from headct.reporting.page import Section
from headct.reporting.pictures import View, montage
from headct.reporting.words import visible

SHOWN = 12
"""Scans whose slices a page shows; the quality page beside it shows all."""


def intake_of(cohort: Cohort) -> Intake:
    """The three tables of a cohort."""
    return Intake(cohort.scans, cohort.rejections, cohort.files)


def of_files(cohort: Cohort) -> list[Section]:
    """Where the files went and why."""
    intake = intake_of(cohort)
    return [
        Section(
            title="Where the files went",
            lead="Each file counts once, at the first step that stopped it. A reason leads to its list.",
            body=flow_of_files(intake),
        ),
        Section(
            title="What was rejected and why",
            lead="Most frequent first; each line opens to all its rejections with what was seen.",
            body=rejections_by_reason(intake),
        ),
    ]


def of_scans(cohort: Cohort) -> list[Section]:
    """How the accepted scans look, and what they are."""
    return [
        Section(title="How the scans look", lead=_slices_lead(len(cohort)), body=_slices(cohort)),
        Section(
            title="All accepted scans",
            lead="One row a scan, as in the cohort's own table. Select a header to sort by it.",
            body=scans_table(cohort.scans),
        ),
    ]


def shown(cohort: Cohort, scan_id: str, similarity: float | None = None) -> Neighbour:
    """A scan with what is needed to draw it."""
    return Neighbour(
        scan_id=scan_id, array=cohort.array(scan_id), spacing_mm=spacing_mm(cohort, scan_id), similarity=similarity
    )


def spacing_mm(cohort: Cohort, scan_id: str) -> tuple[float, float, float]:
    """Sizes of the voxels of a prepared array."""
    x, y, z = np.linalg.norm(cohort.affine(scan_id)[:3, :3], axis=0).tolist()
    return x, y, z


def _slices_lead(scans: int) -> str:
    which = "every accepted scan" if scans <= SHOWN else f"the first {SHOWN} of {scans} accepted scans"
    return (
        f"Three middle slices of {which}, in three windows and at one scale. The patient's right is on your left in "
        "axial and coronal slices. All of them are in quality.html beside this page."
    )


def _slices(cohort: Cohort) -> Markup:
    rows = cohort.scans.head(SHOWN).to_dict("records")
    return Markup('<ol class="scans">{}</ol>').format(Markup("").join(_card(cohort, row) for row in rows))


def _card(cohort: Cohort, row: dict[Any, Any]) -> Markup:
    scan = shown(cohort, str(row["scan_id"]))
    pictures = montage(
        [View(window, scan.array) for window in NAMED_WINDOWS],
        scan.spacing_mm,
        subject=f"scan {visible(scan.scan_id)}",
        mm_per_pixel=2.0,
        limit_bytes=30_000,
    )
    return Markup('<li class="scan"><h3><span class="id">{}</span></h3><p>{}</p>{}</li>').format(
        visible(scan.scan_id), acquisition(row), pictures
    )
