"""Nearest neighbours as a strip of pictures: the query first, then the scans most like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from headct.reporting.pictures import Plane, Window, slice_picture
from headct.reporting.words import visible


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A scan of the strip: canonical array (X, Y, Z) in HU with its spacing, its similarity to the query, a note."""

    scan_id: str
    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    similarity: float | None = None  # None for the query itself
    note: str = ""


def neighbour_strip(
    query: Neighbour, nearest: Sequence[Neighbour], window: Window, *, plane: Plane = "axial", mm_per_pixel: float = 2.0
) -> Markup:
    """One slice of the query and of each neighbour, most similar first as given, all in one window and at one scale."""
    items = [_item(scan, window, plane, mm_per_pixel) for scan in (query, *nearest)]
    return Markup('<ol class="neighbours">{}</ol>').format(Markup("").join(items))


def _item(scan: Neighbour, window: Window, plane: Plane, mm_per_pixel: float) -> Markup:
    role = "query" if scan.similarity is None else f"similarity {scan.similarity:.3f}"
    name = visible(scan.scan_id)
    picture = slice_picture(
        scan.array, scan.spacing_mm, window, subject=f"{name} ({role})", plane=plane, mm_per_pixel=mm_per_pixel
    )
    note = Markup("<br>{}").format(scan.note) if scan.note else Markup("")
    return Markup('<li{}>{}<p><b>{}</b><br><span class="id">{}</span>{}</p></li>').format(
        Markup(' class="query"') if scan.similarity is None else Markup(""), picture, role, name, note
    )
