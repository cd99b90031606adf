"""The page of drawn masks beside true ones: overlap, distances, lesions, and slices with both outlines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from headct.reporting.charts import Interval, intervals
from headct.reporting.findings import BONE, BRAIN, called
from headct.reporting.measured import Measured
from headct.reporting.page import Page, Provenance, Section
from headct.reporting.pictures import Window, alt_text, cut, framed, shades, sides, webp
from headct.reporting.tables import Column, table
from headct.reporting.words import NOT_STATED, count, sentence_case, visible

ALL = "all"
MEASURES: Mapping[str, tuple[str, int]] = {
    "dice": ("Dice", 3),
    "surface_dice": ("Surface Dice", 3),
    "hausdorff_95_mm": ("HD95, mm", 1),
    "average_surface_mm": ("Surface distance, mm", 1),
    "missed": ("Missed", 3),
    "false_alarms": ("False alarms", 3),
    "lesions_found": ("Lesions found", 3),
    "false_lesions_per_scan": ("False lesions a scan", 2),
    "volume_error_ml": ("Volume error, ml", 1),
}
"""Measures that the tables show: header and decimals."""
OVERLAP = ("dice", "surface_dice", "hausdorff_95_mm", "average_surface_mm")
COUNTS = ("missed", "false_alarms", "lesions_found", "false_lesions_per_scan", "volume_error_ml")
COLOURS = (
    (255, 214, 10), (10, 200, 255), (255, 90, 80), (90, 230, 120), (230, 120, 255), (255, 160, 60), (120, 160, 255),
)  # fmt: skip
"""Of outlines, in turn; a page's slices show few classes at a time."""
MM_PER_PIXEL = 0.8
QUALITY = 70


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measure of a class; `all` for the mean of classes."""

    name: str
    measure: str
    measured: Measured


@dataclass(frozen=True)
class Outlined:
    """A scan with two maps of class numbers: array (X, Y, Z) in HU, RAS."""

    scan_id: str
    array: np.ndarray
    drawn: np.ndarray
    true: np.ndarray
    spacing_mm: tuple[float, float, float]


def segmentation_page(
    rows: Sequence[Row],
    *,
    classes: Sequence[str],
    pictures: Sequence[Outlined],
    notes: Sequence[str],
    scans: int,
    patients: int,
    tolerance_mm: float,
    provenance: Provenance,
    virtual: bool = False,
) -> Page:
    """The whole page. `pictures` may be none, where arrays are not in HU."""
    sections = [_overlap(rows, classes, tolerance_mm), _found(rows, classes)]
    if pictures:
        sections.append(_slices(pictures, classes))
    return Page(
        title="What was drawn, beside the truth",
        kind="segmentation",
        answer=[
            _answer(rows, scans, patients),
            *_weakest(rows, classes),
            *(f"{sentence_case(note)}." for note in notes),
        ],
        sections=sections,
        provenance=provenance,
        virtual=virtual,
    )


def _of(rows: Sequence[Row], name: str, measure: str) -> Measured | None:
    found = next((row.measured for row in rows if row.name == name and row.measure == measure), None)
    return found if found is not None and math.isfinite(found.value) else None


def _answer(rows: Sequence[Row], scans: int, patients: int) -> str:
    whom = f"{count(scans, 'scan')} of {count(patients, 'patient')}"
    mean = _of(rows, ALL, "dice") or next((row.measured for row in rows if row.measure == "dice"), None)
    if mean is None or not math.isfinite(mean.value):
        return f"In {whom} none of the classes is there, so no overlap can be told."
    several = _of(rows, ALL, "dice") is not None
    what = "The mean Dice over classes" if several else "Dice"
    return f"{what} is {mean.written(2)} in {whom}; a class that is there and was not drawn counts as 0."


def _weakest(rows: Sequence[Row], classes: Sequence[str]) -> list[str]:
    """The class that was drawn worst, if there are several, and how often it was missed."""
    told = [(name, dice) for name in classes if (dice := _of(rows, name, "dice"))]
    if len(told) < 2:
        return []
    name, dice = min(told, key=lambda one: one[1].value)
    missed = _of(rows, name, "missed")
    often = f"; missed altogether in {100 * missed.value:.0f} % of {count(missed.n, 'scan')} with it" if missed else ""
    return [f"Drawn worst: {called(name)}, Dice {dice.written(2)}{often}."]


def _overlap(rows: Sequence[Row], classes: Sequence[str], tolerance_mm: float) -> Section:
    body = Markup('<div class="plots">{}</div>').format(
        Markup("").join(
            _chart(rows, classes, measure, title, caption)
            for measure, title, caption in (
                ("dice", "Dice", "Mean over scans that have the class, misses 0; 95 % of draws of patients."),
                ("surface_dice", "Surface Dice", f"Share of both surfaces within {tolerance_mm:g} mm of each other."),
            )
        )
    )
    lead = (
        "Over the scans in which a class is there. Distances are medians, in which a miss is farther than any "
        "distance; where half are missed there is no number."
    )
    return Section(
        title="Overlap", lead=lead, body=body + _table(rows, [*classes, ALL], OVERLAP, "Overlap and distance")
    )


def _found(rows: Sequence[Row], classes: Sequence[str]) -> Section:
    lead = (
        "Whether a class was drawn at all where it is, and where it is not; and its connected bodies one by one: a "
        "lesion is found when a tenth of it is drawn, and false when it touches nothing of its class."
    )
    return Section(title="Missed and made up", lead=lead, body=_table(rows, classes, COUNTS, "Scans, lesions, volumes"))


def _chart(rows: Sequence[Row], classes: Sequence[str], measure: str, title: str, caption: str) -> Markup:
    drawn = [
        Interval(
            label=sentence_case(called(name)),
            value=one.value,
            low=one.low if one.has_interval else one.value,
            high=one.high if one.has_interval else one.value,
            n=one.n,
        )
        for name in classes
        if (one := _of(rows, name, measure))
    ]
    if not drawn:
        return Markup("")
    return intervals(drawn, title=title, x_label=title, caption=caption, low=0.0, high=1.0)


def _table(rows: Sequence[Row], names: Sequence[str], measures: Sequence[str], caption: str) -> Markup:
    """A line for each class, a column for each measure."""
    lines = []
    for name in names:
        mine = {row.measure: row.measured for row in rows if row.name == name}
        if mine:
            cells = {measure: _written(mine.get(measure), MEASURES[measure][1]) for measure in measures}
            lines.append({"class": "Mean of classes" if name == ALL else sentence_case(called(name)), **cells})
    columns = [
        Column(key="class", header="Class"),
        *(Column(key=name, header=MEASURES[name][0], decimals=MEASURES[name][1], write=str) for name in measures),
    ]
    return table(pd.DataFrame(lines, columns=["class", *measures]), columns, caption)


def _written(measured: Measured | None, decimals: int) -> str:
    if measured is None or not measured.n:
        return NOT_STATED
    return f"{measured.written(decimals)}, n = {measured.n:,}"


def _slices(pictures: Sequence[Outlined], classes: Sequence[str]) -> Section:
    items = Markup("").join(_item(one, classes) for one in pictures)
    shown = sorted({number for one in pictures for number in _numbers(one)})
    key = Markup(", ").join(
        Markup('<span style="color:rgb{};background:#222;padding:0 .3em">{}</span>').format(
            str(_colour(number)), called(classes[number - 1])
        )
        for number in shown
    )
    lead = Markup(
        "The truth on the left, what was drawn on the right, at the slice that shows most of what is rarest: {}."
    )
    return Section(
        title="Slices", lead=lead.format(key), body=Markup('<ol class="neighbours spots">{}</ol>').format(items)
    )


def _item(one: Outlined, classes: Sequence[str]) -> Markup:
    numbers = _numbers(one)
    rarest = min(numbers, key=lambda number: int((one.true == number).sum() or one.true.size)) if numbers else 0
    of_slice = ((one.true == rarest) | (one.drawn == rarest)).sum(axis=(0, 1))
    index = int(of_slice.argmax()) if rarest else one.array.shape[2] // 2
    window = BONE if rarest and classes[rarest - 1] in ("skull", "fracture") else BRAIN
    halves = [_outlined(one, map_, index, window) for map_ in (one.true, one.drawn)]
    picture = webp(np.hstack(halves), QUALITY)
    wide, high = halves[0].shape[1], halves[0].shape[0]
    alt = f"{alt_text(visible(one.scan_id), ['axial'], window)}, outlined in truth and as drawn"
    image = framed(picture, 2 * wide, high, sides(["axial", "axial"], [wide, wide]), alt)
    told = f"slice {index + 1} of {one.array.shape[2]}, {called(classes[rarest - 1])}" if rarest else "nothing is drawn"
    return Markup('<li><figure class="slice">{}<figcaption>{}</figcaption></figure><p>{}<br>{}</p></li>').format(
        image, str(window), told, Markup('<span class="id">{}</span>').format(visible(one.scan_id))
    )


def _numbers(one: Outlined) -> list[int]:
    """Classes that are there or were drawn."""
    found = set(np.unique(one.true).tolist()) | set(np.unique(one.drawn).tolist())
    return sorted(number for number in found if number > 0)


def _colour(number: int) -> tuple[int, int, int]:
    return COLOURS[(number - 1) % len(COLOURS)]


def _outlined(one: Outlined, numbers: np.ndarray, index: int, window: Window) -> np.ndarray:
    """An axial slice uint8 (rows, cols, 3) as the viewer sees it, classes outlined."""
    grey = shades(cut(one.array, "axial", one.spacing_mm, MM_PER_PIXEL, index), window)
    seen = numbers[:, :, index].T[::-1, ::-1].astype(np.uint8)
    size = (grey.shape[1], grey.shape[0])
    return outlined(grey, np.asarray(Image.fromarray(seen).resize(size, Image.Resampling.NEAREST)))


def outlined(grey: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """A grey picture uint8 (rows, cols) with the border of each class in its colour, uint8 (rows, cols, 3)."""
    coloured = np.repeat(grey[:, :, None], 3, axis=2)
    border = np.zeros(numbers.shape, dtype=bool)
    for axis in (0, 1):
        changes = np.diff(numbers.astype(np.int16), axis=axis) != 0
        first, second = [slice(None)] * 2, [slice(None)] * 2
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        border[tuple(first)] |= changes
        border[tuple(second)] |= changes
    for number in np.unique(numbers[border]).tolist():
        if number:
            coloured[border & (numbers == number)] = _colour(number)
    return coloured
