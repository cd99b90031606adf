"""`headct search`: a point or a box of one scan, found in every scan of a cohort."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.cohort.identities import is_virtual
from headct.cohort.journal import write_atomically
from headct.embedding.inputs import Reading
from headct.embedding.machine import Machine
from headct.failure import Misuse
from headct.reporting import page
from headct.reporting.correspondence import Marked, search_page
from headct.tasks.correspondence import windows
from headct.tasks.correspondence.maps import Head, MapSettings, heads_of, one_head
from headct.tasks.correspondence.matching import Box, box_in, places_in, similarities
from headct.writing import write_nifti

TABLE, PAGE, HEAT = "found.csv", "page.html", "similarity"
"""What is written to a folder: a row for each scan, the page, and a folder of maps of cosines if asked for."""
COLUMNS = ("scan_id", "r_mm", "a_mm", "s_mm", "similarity", "forward_backward_mm")
SHOWN = 24
"""Scans whose slices are on the page."""
SMOOTH = (
    "Template points were compared: they change smoothly through every head, so that similarity is high and the search "
    "back agrees nearly always, also where a head was misread."
)
AGREED_MM = 10.0
"""A search back that ends within this agrees."""
BOX_COLUMNS = ("r_low_mm", "a_low_mm", "s_low_mm", "r_high_mm", "a_high_mm", "s_high_mm")
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is looked for: a point (3,) or a box, in RAS mm of the query's patient. Raises Misuse for both or none."""

    point_mm: np.ndarray | None = None
    box: Box | None = None
    maps: MapSettings = field(default_factory=MapSettings)

    def __post_init__(self) -> None:
        if (self.point_mm is None) == (self.box is None):
            raise Misuse("a search is for one point or one box", do="give --point R,A,S or --box R,A,S,R,A,S")

    @property
    def place_mm(self) -> np.ndarray:
        """The point, or the middle of the box, (3,)."""
        if self.box is not None:
            return self.box.middle_mm
        assert self.point_mm is not None
        return self.point_mm


@dataclass(frozen=True)
class Found:
    """Where it lies in each other scan.

    `table` has a row for each scan of the cohort but the query's own, by `COLUMNS`, and for a box by `BOX_COLUMNS` too:
    right, anterior, superior in mm of that scan's patient. The best agreement, forward and backward, comes first.
    """

    search: Search
    query: Head
    table: pd.DataFrame
    resolution_mm: tuple[float, float, float]


def same_place(
    scan: str | os.PathLike[str],
    cohort: Cohort,
    encoder: PretrainedEncoder,
    machine: Machine,
    search: Search,
    *,
    reading: Reading | None = None,
    heat: Path | None = None,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> Found:
    """The same place in every scan of a cohort; into the folder `heat`, if given, the cosines with every voxel.

    `scan` is a file, a folder of one scan, or a scan id of the cohort. A scan of the cohort with the query's id is not
    looked at. Raises Misuse where recipes differ, the cohort holds no other scan, or the place lies outside the head.
    """
    cohort.expect(encoder.recipe)
    if not len(cohort):
        raise Misuse(f"cohort {cohort.path} holds no scans", do="see its rejections, or name another cohort")
    query = one_head(scan, encoder, machine, search.maps, reading=reading, cohort=cohort)
    if set(cohort) == {query.scan_id}:
        raise Misuse(f"cohort {cohort.path} holds the query alone", do="name a cohort with other scans")
    query.expect_inside(search.place_mm[None])
    rows = []
    for done, target in enumerate(heads_of(cohort, encoder, machine, search.maps, workers), start=1):
        if target.scan_id != query.scan_id:
            rows.append(_row(search, query, target))
            if heat is not None:
                _write_heat(search, query, target, heat)
        progress(done, len(cohort))
    columns = COLUMNS if search.box is None else (*COLUMNS, *BOX_COLUMNS)
    table = pd.DataFrame(rows, columns=list(columns))
    table = table.sort_values(["forward_backward_mm", "similarity"], ascending=[True, False], kind="stable")
    return Found(search, query, table.reset_index(drop=True), query.map.resolution_mm)


def _row(search: Search, query: Head, target: Head) -> dict[str, Any]:
    corners: dict[str, float] = {}
    if search.box is None:
        matches = places_in(query.map, target.map, search.place_mm[None])
        place_mm = matches.points_mm[0]
        similarity, back_mm = float(matches.similarity[0]), float(matches.forward_backward_mm[0])
    else:
        box, similarity, back_mm = box_in(query.map, target.map, search.box)
        place_mm = box.middle_mm
        corners = dict(zip(BOX_COLUMNS, [*box.low_mm.tolist(), *box.high_mm.tolist()], strict=True))
    r_mm, a_mm, s_mm = place_mm.tolist()
    return {
        "scan_id": target.scan_id,
        "r_mm": r_mm,
        "a_mm": a_mm,
        "s_mm": s_mm,
        "similarity": similarity,
        "forward_backward_mm": back_mm,
        **corners,
    }


def _write_heat(search: Search, query: Head, target: Head, folder: Path) -> None:
    """The cosine of every voxel of the target with the query's place, averaged where cells overlap, as NIfTI."""
    cosines = similarities(target.map, query.map.at(query.map.places_of(search.place_mm[None])))[0]
    cells = target.map.mm_of(np.stack(np.meshgrid(*map(np.arange, cosines.shape), indexing="ij"), -1).reshape(-1, 3))
    to_voxel = np.linalg.inv(target.affine)
    middles = cells @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    edges = _edges(search.maps, target)
    begins = np.rint(middles - (np.array(edges) - 1) / 2).astype(int)
    volume, _ = windows.blended(cosines.reshape(-1), begins, edges, target.array.shape[-3:])
    write_nifti(volume.astype(np.float32), folder / f"{target.scan_id}.nii.gz", target.affine)


def _edges(settings: MapSettings, head: Head) -> list[int]:
    """Voxels of a cell along each axis: of a patch, or from one token to the next."""
    voxel_mm = np.linalg.norm(head.affine[:3, :3], axis=0)
    edges_mm = (settings.patch_mm,) * 3 if settings.patch_mm else head.map.resolution_mm
    return [max(1, round(edge / mm)) for edge, mm in zip(edges_mm, voxel_mm.tolist(), strict=True)]


def check(out: Path) -> None:
    """Raises Misuse where what `write` makes would replace what is not ours."""
    page.check_place(out / PAGE)
    if (out / TABLE).exists() and not (out / PAGE).exists():
        raise Misuse(f"{out / TABLE} is there already, and no page of ours beside it", do="name another folder")


def clear(out: Path, cohort: Cohort) -> None:
    """Remove the maps of cosines that an earlier call, or one that was killed, has left of the cohort's scans."""
    for scan_id in cohort:
        (out / HEAT / f"{scan_id}.nii.gz").unlink(missing_ok=True)


def write(found: Found, cohort: Cohort, encoder: PretrainedEncoder, machine: Machine, out: Path) -> None:
    """Write found.csv and page.html into a folder, which is made as needed."""
    check(out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / TABLE, found.table.to_csv(index=False).encode())
    query, simulated = found.query, is_virtual(cohort)
    rows = found.table.head(SHOWN).to_dict("records") if query.is_hu else []
    search_page(
        _marked(query, found, None) if query.is_hu else None,
        [_marked(query, found, row, cohort) for row in rows],
        found.table,
        resolution_mm=found.resolution_mm,
        near_mm=AGREED_MM,
        provenance=_provenance(found, cohort, encoder, machine),
        virtual=simulated and query.scan_id in cohort,  # a query from a file may be of a person
        note=" ".join(
            [
                *["The scans of the cohort are of virtual patients."] * (simulated and query.scan_id not in cohort),
                *[SMOOTH] * (found.search.maps.of(encoder) == "template"),
            ]
        ),
    ).write(out / PAGE)


def _marked(query: Head, found: Found, row: Mapping[Any, Any] | None, cohort: Cohort | None = None) -> Marked:
    """The query, or a row of the table, as the page shows it."""
    array, affine, place_mm, box = query.array, query.affine, found.search.place_mm, found.search.box
    if row is not None and cohort is not None:
        array, affine = cohort.array(row["scan_id"]), cohort.affine(row["scan_id"])
        place_mm = np.array([row[name] for name in ("r_mm", "a_mm", "s_mm")])
        if box is not None:
            corners = np.array([row[name] for name in BOX_COLUMNS])
            box = Box(corners[:3], corners[3:])
    inverse, spacing_mm = np.linalg.inv(affine), np.linalg.norm(affine[:3, :3], axis=0)
    return Marked(
        scan_id=query.scan_id if row is None else row["scan_id"],
        array=array,
        spacing_mm=_triple(spacing_mm),
        voxel=_triple(inverse[:3, :3] @ place_mm + inverse[:3, 3]),
        place_mm=_triple(place_mm),
        half=None if box is None else _triple((box.high_mm - box.low_mm) / 2 / spacing_mm),
        forward_backward_mm=None if row is None else float(row["forward_backward_mm"]),
        similarity=None if row is None else float(row["similarity"]),
    )


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z


def _provenance(found: Found, cohort: Cohort, encoder: PretrainedEncoder, machine: Machine) -> page.Provenance:
    search = found.search
    asked = search.place_mm if search.box is None else np.concatenate([search.box.low_mm, search.box.high_mm])
    return page.Provenance(
        settings={
            "query": found.query.scan_id,
            "point" if search.box is None else "box": ", ".join(f"{value:g}" for value in asked) + " mm",
            "compared": f"patches of {search.maps.patch_mm:g} mm" if search.maps.patch_mm else search.maps.of(encoder),
            "model": encoder.architecture,
            "machine": str(machine),
            "recipe": f"{encoder.recipe.name} ({encoder.recipe.id})",
            "cohort": cohort.path.name,
        },
        hashes={"model": encoder.sha256},
        versions=page.software_versions("headct", "torch", "numpy"),
    )
