"""The page of a search: the place in one scan, and the same place in others, marked on their slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from headct.reporting.findings import BONE, BRAIN
from headct.reporting.page import Page, Provenance, Section
from headct.reporting.pictures import Window, alt_text, cut, fitting, framed, shades, sides
from headct.reporting.tables import Column, table
from headct.reporting.words import count, visible

MM_PER_PIXEL = 1.0
BYTES_PER_SLICE = 12_000
BONE_HU = 200
"""A query in voxels denser than this is shown in the bone window."""


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A scan with a place on it: array (X, Y, Z) in HU, RAS, the place in voxels, and a box's half edges in voxels."""

    scan_id: str
    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    voxel: tuple[float, float, float]
    place_mm: tuple[float, float, float]
    half: tuple[float, float, float] | None = None
    forward_backward_mm: float | None = None  # None for the query
    similarity: float | None = None

    @property
    def index(self) -> int:
        """The axial slice through the place."""
        return int(np.clip(round(self.voxel[2]), 0, self.array.shape[2] - 1))


def search_page(
    query: Marked | None,
    found: Sequence[Marked],
    rows: pd.DataFrame,
    *,
    resolution_mm: tuple[float, float, float],
    near_mm: float,
    provenance: Provenance,
    virtual: bool = False,
    note: str = "",
) -> Page:
    """The whole page. `rows` are those of found.csv; `query` is None where arrays are not in HU and cannot be shown.

    `note` is a further sentence of the answer. `near_mm` is how far a search back may end from the query to agree.
    """
    agreed = int((rows["forward_backward_mm"] <= near_mm).sum())
    cells = " × ".join(f"{mm:.3g}" for mm in resolution_mm)
    answer: list[str | Markup] = [
        f"The place was looked for in {count(len(rows), 'scan')}; in {agreed:,} of them the search back ends within "
        f"{near_mm:g} mm of where it began.",
        f"Cells of the feature map are {cells} mm; between them features are interpolated, so no place is known much "
        "better than to half a cell.",
        "Something is found in every scan, whether it is there or not: trust a place only where the search back agrees "
        "and the slice shows it.",
    ]
    if note:
        answer.append(note)
    shown = _pictures(query, found, len(rows)) if query is not None else _no_pictures()
    return Page(
        title="The same place in other heads",
        kind="search",
        answer=answer,
        sections=[shown, _places(rows)],
        provenance=provenance,
        virtual=virtual,
    )


def _pictures(query: Marked, found: Sequence[Marked], total: int) -> Section:
    dense = query.array[tuple(np.clip(np.rint(query.voxel), 0, np.array(query.array.shape) - 1).astype(int))] > BONE_HU
    window = BONE if dense else BRAIN
    items = Markup("").join(_item(one, window) for one in (query, *found))
    more = f" The first {len(found):,} of {total:,} are shown." if len(found) < total else ""
    lead = f"Axial slices through the place, all in one window and at one scale; best agreement first.{more}"
    switch = Markup('<label class="hide-spots"><input type="checkbox"> Hide the marks</label>')
    return Section(
        title="Slices", lead=lead, body=switch + Markup('<ol class="neighbours spots">{}</ol>').format(items)
    )


def _no_pictures() -> Section:
    lead = "Slices are not shown: the model's recipe gives arrays that are not in Hounsfield units."
    return Section(title="Slices", lead=lead, body=Markup(""))


def _item(one: Marked, window: Window) -> Markup:
    is_query = one.forward_backward_mm is None
    place = ", ".join(f"{value:.0f}" for value in one.place_mm)
    role = "query" if is_query else f"{one.forward_backward_mm:.0f} mm back, similarity {one.similarity:.2f}"
    picture = marked_slice(one, window, subject=f"{visible(one.scan_id)} ({role})")
    return Markup('<li{}>{}<p><b>{}</b><br>R, A, S {} mm<br><span class="id">{}</span></p></li>').format(
        Markup(' class="query"') if is_query else Markup(""), picture, role, place, visible(one.scan_id)
    )


def marked_slice(one: Marked, window: Window, *, subject: str) -> Markup:
    """The axial slice through a place with a ring around it, or the box's outline, as a figure."""
    seen = cut(one.array, "axial", one.spacing_mm, MM_PER_PIXEL, one.index)
    (picture,) = fitting([shades(seen, window)], BYTES_PER_SLICE)
    over = sides(["axial"], [seen.shape[1]]) + _spot(one)
    alt = f"{alt_text(subject, ['axial'], window)}, the place marked"
    image = framed(picture, seen.shape[1], seen.shape[0], over, alt)
    return Markup('<figure class="slice">{}<figcaption>{}</figcaption></figure>').format(image, str(window))


def _spot(one: Marked) -> Markup:
    """A ring, or a rectangle, at the place as the viewer sees it: patient's right on the left, anterior up."""
    cols, rows = one.array.shape[:2]
    left, top = (cols - 0.5 - one.voxel[0]) / cols, (rows - 0.5 - one.voxel[1]) / rows
    if one.half is None:
        return Markup('<i class="spot ring" style="left:{}%;top:{}%" aria-hidden="true"></i>').format(
            f"{100 * left:.4g}", f"{100 * top:.4g}"
        )
    wide, high = one.half[0] / cols, one.half[1] / rows
    edges = (100 * (left - wide), 100 * (top - high), 200 * wide, 200 * high)
    return Markup('<i class="spot" style="left:{}%;top:{}%;width:{}%;height:{}%" aria-hidden="true"></i>').format(
        *(f"{edge:.4g}" for edge in edges)
    )


def _places(rows: pd.DataFrame) -> Section:
    columns = [
        Column(key="scan_id", header="Scan"),
        Column(key="r_mm", header="Right", unit="mm", decimals=1),
        Column(key="a_mm", header="Anterior", unit="mm", decimals=1),
        Column(key="s_mm", header="Superior", unit="mm", decimals=1),
        Column(key="similarity", header="Similarity", decimals=3),
        Column(key="forward_backward_mm", header="Back", unit="mm", decimals=1),
    ]
    if "r_low_mm" in rows:
        columns += [
            Column(key=f"{axis}_{end}_mm", header=f"{axis.upper()} {end}", unit="mm", decimals=1)
            for end in ("low", "high")
            for axis in "ras"
        ]
    lead = "Places are in each patient's own space, right, anterior and superior from the scanner's origin."
    return Section(title="Places", lead=lead, body=table(rows, columns, "The place in each scan, best agreement first"))
