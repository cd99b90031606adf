"""From maps and their checks to files: NIfTI in patient space, pictures, tables and the page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headct.cohort.journal import write_atomically
from headct.detection import Detector
from headct.embedding.machine import Machine
from headct.evaluation.intervals import Estimate
from headct.failure import Misuse
from headct.reporting import page
from headct.reporting.explanation import ExplainedScan, Finding, Shown, explanation_page, overlay_png
from headct.tasks.explanation.evening import HEAD_HU
from headct.tasks.explanation.faithfulness import NEAR_MM, SHARES
from headct.tasks.explanation.job import Explained, Explanation, Settings
from headct.tasks.explanation.maps import METHODS
from headct.writing import write_nifti

TABLE, CURVES, METRICS, PAGE = "explained.csv", "curves.csv", "metrics.json", "page.html"
MAPS, OVERLAYS, SCAN = "maps", "overlays", "scan.nii.gz"
COLUMNS = (
    *("scan_id", "finding", "method", "verdict", "why", "probability", "fall"),
    *("deletion", "deletion_random", "deletion_p", "insertion", "insertion_random", "insertion_p"),
    *("random_weights", "gap", "peak_r_mm", "peak_a_mm", "peak_s_mm"),
    *("hit", "hit_by_chance", "overlap", "overlap_by_chance"),
)
"""Of explained.csv; what does not exist is empty."""


def check(out: Path) -> None:
    """Raises Misuse where what `write` makes would replace what is not ours."""
    page.check_place(out / PAGE)
    if (out / TABLE).exists() and not (out / PAGE).exists():
        raise Misuse(f"{out / TABLE} is there already, and no page of ours beside it", do="name another folder")


def table_of(found: Explanation) -> pd.DataFrame:
    """A row for each finding and method, by `COLUMNS`, and one for each method that does not fit."""
    rows = [_row(found, one) for one in found.explained]
    scan_id = found.subject.ready.ids["scan_id"]
    rows += [
        {"scan_id": scan_id, "finding": "", "method": name, "verdict": "left out", "why": reason}
        for name, reason in found.left_out.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(found: Explanation, one: Explained) -> dict[str, Any]:
    faith, place, affine = one.faith, one.place, found.subject.ready.affine
    r_mm, a_mm, s_mm = (affine @ [*one.map.peak(found.subject.domain), 1.0])[:3].tolist()
    told = {
        "scan_id": found.subject.ready.ids["scan_id"],
        "finding": one.finding,
        "method": one.map.method,
        "verdict": one.verdict,
        "why": "; ".join(one.faults),
        "probability": found.probabilities[one.finding],
        "fall": faith.fall,
        "deletion": faith.deletion,
        "deletion_random": float(faith.random_deletion.mean()),
        "deletion_p": faith.deletion_p,
        "insertion": faith.insertion,
        "insertion_random": float(faith.random_insertion.mean()),
        "insertion_p": faith.insertion_p,
        "random_weights": one.alike,
        "gap": one.gap,
        "peak_r_mm": r_mm,
        "peak_a_mm": a_mm,
        "peak_s_mm": s_mm,
    }
    if place is not None:
        told |= {
            "hit": int(place.hit),
            "hit_by_chance": place.hit_by_chance,
            "overlap": place.overlap,
            "overlap_by_chance": place.overlap_by_chance,
        }
    return told


def metrics(found: Explanation) -> dict[str, Any]:
    """By finding and method: leaves of `metrics.json`, and the verdict. One scan gives no intervals."""
    tree: dict[str, Any] = {}
    for one in found.explained:
        place = tree.setdefault(one.finding, {}).setdefault(one.map.method, {"verdict": one.verdict})
        for name, value, how in _numbers(one):
            positives = int(one.place is not None)
            leaf = Estimate.of(value, math.nan, math.nan, n=1, positives=positives, method=f"{how}; no interval")
            place[name] = dict(leaf.leaf())
    return tree


def _numbers(one: Explained) -> list[tuple[str, float, str]]:
    faith = one.faith
    told = [
        ("deletion", faith.deletion, "mean logit while the map's highest is evened out"),
        ("deletion_random", float(faith.random_deletion.mean()), f"mean of {len(faith.random_deletion)} random orders"),
        ("insertion", faith.insertion, "mean logit while the map's highest is put back"),
        ("insertion_random", float(faith.random_insertion.mean()), f"mean of {len(faith.random_deletion)} random ones"),
    ]
    if one.alike is not None:
        told.append(("random_weights", one.alike, "largest rank correlation with a map of random weights"))
    if one.place is not None:
        told += [
            ("hit", float(one.place.hit), f"1 where the peak lies in the lesion or within {NEAR_MM:g} mm of it"),
            ("hit_by_chance", one.place.hit_by_chance, "share of voxels that would be a hit"),
            ("overlap", one.place.overlap, "Dice of the lesion and as many of the highest voxels"),
            ("overlap_by_chance", one.place.overlap_by_chance, "share of the lesion among the voxels"),
        ]
    return told


def curves_of(found: Explanation) -> pd.DataFrame:
    """Logits by finding, order (a method, or `random` for the mean of random orders) and share of the head."""
    orders = [(one.finding, one.map.method, one.deletion, one.insertion) for one in found.explained]
    orders += [(finding, "random", *both) for finding, both in found.randoms.items()]
    return pd.DataFrame(
        [
            {"finding": finding, "order": order, "share": share, "deletion": down, "insertion": up}
            for finding, order, deletion, insertion in orders
            for share, down, up in zip(SHARES, deletion.tolist(), insertion.tolist(), strict=True)
        ]
    )


def write(
    found: Explanation, detector: Detector, machine: Machine, settings: Settings, out: Path, *, virtual: bool = False
) -> None:
    """Write maps, pictures, tables and page into a folder, which is made as needed.

    Maps lie on the grid of the prepared head, scan.nii.gz, whose matrix leads to RAS mm of the scanner: opened together
    with the original scan they lie on it. A map that all findings share is written once. Maps and pictures that an
    earlier call has left there, perhaps of another scan, are removed.
    """
    check(out)
    out.mkdir(parents=True, exist_ok=True)
    _clear(out)
    affine = found.subject.ready.affine
    write_nifti(found.subject.hu, out / SCAN, affine)
    for one in found.explained:
        name = ".".join(part for part in (one.map.finding, one.map.method) if part)
        write_nifti(one.map.values, out / MAPS / f"{name}.nii.gz", affine)
    write_atomically(out / TABLE, table_of(found).to_csv(index=False).encode())
    write_atomically(out / CURVES, curves_of(found).to_csv(index=False).encode())
    write_atomically(out / METRICS, (json.dumps(metrics(found), indent=1, allow_nan=False) + "\n").encode())
    scan = _scan(found)
    (out / OVERLAYS).mkdir(exist_ok=True)
    for finding in scan.findings:
        for shown in finding.maps:
            write_atomically(out / OVERLAYS / f"{finding.name}.{shown.method}.png", overlay_png(scan, finding, shown))
    explanation_page(scan, _provenance(found, detector, machine, settings), virtual=virtual).write(out / PAGE)


def _clear(out: Path) -> None:
    """Remove the maps and pictures of the rows that an earlier call has listed in its table."""
    if not (out / TABLE).exists():
        return
    before = pd.read_csv(out / TABLE, dtype=str, keep_default_na=False)
    for finding, method in zip(before["finding"], before["method"], strict=True):
        (out / OVERLAYS / f"{finding}.{method}.png").unlink(missing_ok=True)
        for name in (f"{finding}.{method}", method):
            (out / MAPS / f"{name}.nii.gz").unlink(missing_ok=True)


def _scan(found: Explanation) -> ExplainedScan:
    hu = found.subject.hu
    x, y, z = found.subject.ready.spacing_mm.tolist()
    return ExplainedScan(
        scan_id=found.subject.ready.ids["scan_id"],
        array=hu,
        spacing_mm=(x, y, z),
        slices=np.flatnonzero((hu > HEAD_HU).any(axis=(0, 1))).tolist(),
        findings=[
            Finding(
                name=name,
                probability=found.probabilities[name],
                maps=[_shown(found, one) for one in found.explained if one.finding == name],
                random=found.randoms[name],
                mask=found.masks.get(name),
            )
            for name in found.findings
        ],
        shares=SHARES,
        left_out=found.left_out,
        meanings=METHODS,
        near_mm=NEAR_MM,
        notes=found.notes,
    )


def _shown(found: Explanation, one: Explained) -> Shown:
    place: dict[str, Any] = {}
    if one.place is not None:
        place = {
            "hit": one.place.hit,
            "hit_by_chance": one.place.hit_by_chance,
            "overlap": one.place.overlap,
            "overlap_by_chance": one.place.overlap_by_chance,
        }
    return Shown(
        method=one.map.method,
        values=one.map.values,
        peak=one.map.peak(found.subject.domain),
        verdict=one.verdict,
        faults=one.faults,
        deletion=one.deletion,
        insertion=one.insertion,
        areas=(one.faith.deletion, one.faith.insertion),
        chances=(one.faith.deletion_p, one.faith.insertion_p),
        alike=math.nan if one.alike is None else one.alike,
        **place,
    )


def _provenance(found: Explanation, detector: Detector, machine: Machine, settings: Settings) -> page.Provenance:
    encoder = detector.encoder
    return page.Provenance(
        settings={
            "scan": found.subject.ready.ids["scan_id"],
            "detector": repr(detector),
            "recipe": f"{encoder.recipe.name} ({encoder.recipe.id})",
            "machine": str(machine),
            "box": f"{settings.box_mm:g} mm",
            "steps of gradients": settings.steps,
            "random orders": settings.orders,
            "random weights": settings.randomised,
            "seed": settings.seed,
        },
        hashes={"detector": detector.sha256, "encoder": encoder.sha256},
        versions=page.software_versions("headct", "torch", "numpy", "scipy"),
    )
