"""Pages of predictions: one for a scan, and for several an index that leads to one for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from headct.cohort.journal import refused
from headct.detection import Detector
from headct.detection.method import Progress, quiet
from headct.detection.ood import DOUBT
from headct.detection.reasons import VIRTUAL, undecided
from headct.embedding.inputs import Reading, Ready, stream
from headct.embedding.machine import Machine
from headct.evaluation.operating import is_close
from headct.reporting.findings import called
from headct.reporting.page import Page, Provenance, Section, check_place, clear, numbered, software_versions
from headct.reporting.result_pictures import Shown
from headct.reporting.result_scan import Familiarity, Found, PredictedScan, read_from, scan_page
from headct.reporting.tables import Column, table
from headct.reporting.words import count, joined, visible
from headct.tasks.explanation.judging import can_look, vectors_of
from headct.tasks.explanation.slabs import SLAB_MM, driving_slices

VERSIONS = ("headct", "torch", "numpy", "scikit-learn")


def write_pages(
    page: Path,
    inputs: Sequence[Path],
    rows: Sequence[Mapping[str, Any]],
    detector: Detector,
    reading: Reading,
    machine: Machine,
    *,
    workers: int = 1,
    progress: Progress = quiet,
) -> int:
    """Write the page of predictions (`rows` of `detection.job.predict_into`) and say how many scans it is about.

    One scan is `page` itself; of several it is an index beside a folder of its name with a page for each. The scans are
    read once more, and looked at a dozen times where a finding is called, to see which slices it rests on. Raises
    Misuse where `page` is not the place for a page, Failure where it cannot be written.
    """
    check_place(page)
    told = {str(scan_id): list(own) for scan_id, own in groupby(rows, key=lambda row: row["scan_id"])}
    places = {scan_id: numbered(page.with_suffix(""), number) for number, scan_id in enumerate(told, start=1)}
    if len(told) == 1:
        places = dict.fromkeys(told, page)
    detector, provenance, written = detector.on(machine), _provenance(detector, machine), dict[str, bool]()
    try:
        clear(page.with_suffix(""))
        for ready in _ready(inputs, reading, workers):
            scan_id = ready.ids["scan_id"]
            if scan_id in told and scan_id not in written:
                scan = _scan(ready, told[scan_id], detector, machine)
                scan_page(scan, provenance, virtual=ready.virtual).write(places[scan_id])
                written[scan_id] = ready.virtual
                progress(len(written), len(told))
        if len(told) > 1:
            _index(told, places, page, detector, provenance, virtual=all(written.values())).write(page)
    except OSError as error:
        raise refused(page, error) from error
    return len(written)


def _ready(inputs: Sequence[Path], reading: Reading, workers: int) -> Iterator[Ready]:
    for _, items in stream(list(inputs), reading, workers=workers):
        yield from (one for one in items or () if isinstance(one, Ready))


def _scan(ready: Ready, rows: Sequence[Mapping[str, Any]], detector: Detector, machine: Machine) -> PredictedScan:
    x, y, z = (float(mm) for mm in ready.spacing_mm)
    vectors = vectors_of(detector, [ready.array], (x, y, z), machine)
    far = detector.familiar
    driving: Mapping[str, Sequence[Shown]] = {}
    if any(map(_said, rows)) and can_look(detector):
        driving = driving_slices(detector, ready.array, (x, y, z), machine)
    return PredictedScan(
        scan_id=ready.ids["scan_id"],
        array=ready.array,
        spacing_mm=(x, y, z),
        findings=[
            Found(
                finding=row["finding"],
                probability=row["probability"],
                low=row["low"],
                high=row["high"],
                threshold=row["threshold"],
                slices=driving.get(row["finding"], ()),
            )
            for row in rows
        ],
        familiarity=Familiarity(
            distance=float(far.distances(vectors)[0]), nearer=rows[0]["ood"], usual=far.usual, share=DOUBT
        ),
        reasons=[*_of_virtual(rows), *detector.met.doubts(ready.traits)],
        patient_id=ready.ids["patient_id"],
        files=ready.files,
    )


def _of_virtual(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What all of these rows say of a detector that knows virtual patients alone."""
    return [VIRTUAL] if all(VIRTUAL in row["reasons"] for row in rows) else []


def _provenance(detector: Detector, machine: Machine) -> Provenance:
    encoder = detector.encoder
    return Provenance(
        settings={
            "detector": repr(detector),
            "recipe": f"{encoder.recipe.name} ({encoder.recipe.id})",
            "machine": str(machine),
            "slab": f"{SLAB_MM:g} mm",
        },
        hashes={"detector": detector.sha256, "encoder": encoder.sha256},
        versions=software_versions(*VERSIONS),
    )


def _index(
    told: Mapping[str, Sequence[Mapping[str, Any]]],
    places: Mapping[str, Path],
    page: Path,
    detector: Detector,
    provenance: Provenance,
    *,
    virtual: bool,
) -> Page:
    """All scans in one table, those with the most probable answers first; each leads to its page."""
    doubts = _of_virtual([row for rows in told.values() for row in rows])
    positive = Counter(str(row["finding"]) for rows in told.values() for row in rows if _said(row))
    anything = sum(any(map(_said, rows)) for rows in told.values())
    named = joined([f"{called(name)} ({positive[name]:,})" for name in detector.findings])
    order = sorted(told, key=lambda scan_id: (-sum(map(_said, told[scan_id])), scan_id))
    frame = pd.DataFrame(
        [
            {
                "scan": scan_id,
                "patient": told[scan_id][0]["patient_id"],
                **{row["finding"]: row for row in told[scan_id]},
                "files": read_from(told[scan_id][0]["files"]),
                "doubts": "; ".join(
                    dict.fromkeys(
                        reason
                        for row in told[scan_id]
                        for reason in row["reasons"]
                        if reason not in (*doubts, *undecided(row["low"], row["high"], row["threshold"]))
                    )
                ),
            }
            for scan_id in order
        ]
    ).astype(object)
    columns = [
        Column(key="scan", header="Scan", write=lambda scan_id: _link(scan_id, places[scan_id], page)),
        *([Column(key="patient", header="Patient", write=visible)] if frame["patient"].any() else []),
        *(Column(key=name, header=called(name), decimals=2, write=_answered) for name in detector.findings),
        Column(key="doubts", header="Reasons to doubt", wide=True),
        *([Column(key="files", header="Read from", wide=True)] if frame["files"].any() else []),
    ]
    return Page(
        title=f"Findings on {count(len(told), 'scan')}",
        kind="predictions",
        answer=[
            f"The detector says yes to at least one finding in {anything:,} of {count(len(told), 'scan')}.",
            Markup("Scans with a yes, by finding: {}.").format(named),
            *(Markup("<b>Reason to doubt all of it:</b> {}.").format(one) for one in doubts),
        ],
        sections=[
            Section(
                title="All scans",
                lead="Calibrated probabilities, bold where they reach the operating point, with ± where the interval "
                "holds it, so that the answer might be the other; each scan leads to its page with intervals and "
                "slices.",
                body=table(frame, columns, "Scans with their probabilities, most answers first"),
            )
        ],
        provenance=provenance,
        virtual=virtual,
    )


def _link(scan_id: str, place: Path, page: Path) -> Markup:
    """Relative, so that the index and its pages may move together."""
    return Markup('<a href="{}">{}</a>').format(quote(place.relative_to(page.parent).as_posix()), visible(scan_id))


def _said(row: Mapping[str, Any]) -> bool:
    return bool(row["answer"] == "yes")


def _answered(row: Mapping[str, Any]) -> Markup:
    close = " ±" if is_close(row["low"], row["high"], row["threshold"]) else ""
    return Markup("<b>{}</b>" if _said(row) else "{}").format(f"{row['probability']:.2f}{close}")
