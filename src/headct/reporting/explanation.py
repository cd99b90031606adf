"""The page of an explanation: maps over slices, each with what it was asked and whether it passed; and its pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image, ImageDraw

from headct.reporting.charts import curves
from headct.reporting.findings import called, windows
from headct.reporting.page import NOT_A_DEVICE, Page, Provenance, Section
from headct.reporting.pictures import (
    ACROSS,
    PLANES,
    SIDES,
    Plane,
    Window,
    alt_text,
    cut,
    data_uri,
    fitting,
    shades,
    side_by_side,
    sides,
)
from headct.reporting.tables import Column, table
from headct.reporting.words import count, joined, number, sentence_case, visible

MM_PER_PIXEL = 1.0
BYTES_PER_SLICE = 7_000
MOST_SLICES = 24
"""Of a stack on the page; the NIfTI beside it has all."""
AMBER = (255, 166, 0)
CYAN = (0, 214, 255)
"""Colours of the map and of the lesion's outline, told apart also by those who see no red or green."""
OPACITY = 0.4
"""Of the map where it is highest."""
CAPTION = 18
"""Rows of pixels under a picture in which its window is written."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A map (X, Y, Z) of a finding by a method, its peak voxel, and what came of its checks.

    Numbers are NaN where they do not exist. `deletion` and `insertion` are logits over the shares of the page.
    """

    method: str
    values: np.ndarray
    peak: tuple[int, int, int]
    verdict: str
    faults: Sequence[str]
    deletion: np.ndarray
    insertion: np.ndarray
    areas: tuple[float, float]
    chances: tuple[float, float]  # of a random order to be as good
    alike: float
    hit: bool | None = None
    hit_by_chance: float = math.nan
    overlap: float = math.nan
    overlap_by_chance: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A finding with its maps; mean curves of random orders, and where its lesion is (X, Y, Z) bool, if known."""

    name: str
    probability: float
    maps: Sequence[Shown]
    random: tuple[np.ndarray, np.ndarray]
    mask: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class ExplainedScan:
    """A scan (X, Y, Z) in HU, RAS, and all that was asked of it. `slices` are those that hold some of the head."""

    scan_id: str
    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    slices: Sequence[int]
    findings: Sequence[Finding]
    shares: Sequence[float]
    left_out: Mapping[str, str]
    meanings: Mapping[str, str]  # of methods, what their maps say
    near_mm: float  # a peak this near to the lesion is at it
    notes: Sequence[str] = ()


def explanation_page(scan: ExplainedScan, provenance: Provenance, *, virtual: bool = False) -> Page:
    """The whole page."""
    return Page(
        title=f"What the answers on {visible(scan.scan_id)} rest on",
        kind="explanation",
        answer=_answer(scan),
        sections=[_verdicts(scan), *(_finding(scan, one) for one in scan.findings), _meaning(scan)],
        provenance=provenance,
        virtual=virtual,
    )


def _answer(scan: ExplainedScan) -> list[str | Markup]:
    maps = [(finding, one) for finding in scan.findings for one in finding.maps]
    passed = [(finding, one) for finding, one in maps if one.verdict == "passes"]
    asked = [(finding, one) for finding, one in maps if one.verdict != "nothing to explain"]
    first = f"Of {count(len(asked), 'map')} that had something to explain, {len(passed):,} passed all checks."
    told: list[str | Markup] = [first if asked else "No score rests on anything in this head, so no map explains it."]
    if passed:
        named = [f"{called(finding.name)} by {one.method}" for finding, one in passed]
        told.append(Markup("Passed: {}.").format(joined(named)))
    failed = [f"{called(finding.name)} by {one.method}" for finding, one in asked if one.verdict == "fails"]
    if failed:
        told.append(Markup("<b>Failed, and not to be believed:</b> {}.").format(joined(failed)))
    unproven = [f"{called(finding.name)} by {one.method}" for finding, one in asked if one.verdict == "unproven"]
    if unproven:
        told.append(
            Markup("<b>Unproven, as weights at random cannot be asked or say the same of every head:</b> {}.").format(
                joined(unproven)
            )
        )
    if len(asked) > 1:
        told.append(
            f"Of 20 maps without sense one is better than all random orders by luck, and {count(len(asked), 'map')} "
            "were asked."
        )
    told.append(
        "A map that passes shows what this detector looks at. It does not show that the detector is right, nor where "
        "the lesion ends."
    )
    return [*told, *(f"{sentence_case(note)}." for note in scan.notes)]


def _verdicts(scan: ExplainedScan) -> Section:
    rows = [_row(finding, one) for finding in scan.findings for one in finding.maps]
    columns = [
        Column(key="finding", header="Finding"),
        Column(key="method", header="Method"),
        Column(key="verdict", header="Verdict"),
        Column(key="deletion", header="Deletion", unit="logit (p)", decimals=2, write=str),
        Column(key="insertion", header="Insertion", unit="logit (p)", decimals=2, write=str),
        Column(key="alike", header="Like random weights", decimals=2),
    ]
    if any(finding.mask is not None for finding in scan.findings):
        columns += [
            Column(key="peak", header="Peak at lesion", unit="(chance)"),
            Column(key="overlap", header="Overlap", unit="Dice (chance)", decimals=2, write=str),
        ]
    lead = (
        "Deletion is the mean score while the head is evened out in the map's order, lower is better; insertion while "
        "it is put back, higher is better; p is the chance of a random order to do as well, not corrected for the "
        "number of maps. A map that is like one of random weights, whichever sign these have (a rank correlation of "
        "0.5 or more), shows nothing that was learned."
    )
    if any(finding.mask is not None for finding in scan.findings):
        lead += (
            f" The peak is at the lesion where it lies in it or within {scan.near_mm:g} mm of it. Peak and overlap do "
            "not decide: a true map of a wrong look lies elsewhere."
        )
    listed = table(pd.DataFrame(rows).astype(object), columns, "Each map with its checks")
    return Section(title="Checks", lead=lead, body=listed + _faults(scan) + _left_out(scan))


def _row(finding: Finding, one: Shown) -> dict[str, object]:
    def against(value: float, chance: float) -> str:
        return f"{number(value, 2)} ({number(chance, 2)})"

    known = one.hit is not None
    return {
        "finding": called(finding.name),
        "method": one.method,
        "verdict": one.verdict,
        "deletion": against(one.areas[0], one.chances[0]),
        "insertion": against(one.areas[1], one.chances[1]),
        "alike": one.alike,
        "peak": f"{'yes' if one.hit else 'no'} ({number(one.hit_by_chance, 2)})" if known else "",
        "overlap": against(one.overlap, one.overlap_by_chance) if known else "",
    }


def _faults(scan: ExplainedScan) -> Markup:
    """Why maps fail, in words."""
    items = Markup("").join(
        Markup("<li>{} by {}: {}.</li>").format(sentence_case(called(finding.name)), one.method, "; ".join(one.faults))
        for finding in scan.findings
        for one in finding.maps
        if one.faults
    )
    return Markup('<h3>Why maps fail</h3><ul class="plain">{}</ul>').format(items) if items else items


def _left_out(scan: ExplainedScan) -> Markup:
    if not scan.left_out:
        return Markup("")
    items = Markup("").join(
        Markup("<li>{}: {}.</li>").format(sentence_case(name), reason) for name, reason in scan.left_out.items()
    )
    return Markup('<h3>Methods that do not fit this detector</h3><ul class="plain">{}</ul>').format(items)


def _finding(scan: ExplainedScan, finding: Finding) -> Section:
    name = called(finding.name)
    drawn = {one.method: one for one in finding.maps}
    charts = [
        curves(
            {name: (scan.shares, values) for name, values in rows.items()},
            title=title,
            x_label="share of the head",
            y_label="logit",
            caption=caption,
        )
        for title, caption, rows in (
            (
                "Deletion",
                "evened out, the map's highest first; a faithful map falls below the random order.",
                {name: one.deletion for name, one in drawn.items()} | {"random order": finding.random[0]},
            ),
            (
                "Insertion",
                "put back into the evened-out head; a faithful map rises above the random order.",
                {name: one.insertion for name, one in drawn.items()} | {"random order": finding.random[1]},
            ),
        )
    ]
    body = Markup('{}<div class="plots">{}</div>').format(_stack(scan, finding), Markup("").join(charts))
    lead = f"The detector gives {name} a probability of {finding.probability:.2f}; amber is what speaks for it."
    if finding.mask is not None:
        lead += " The thin line is the outline of the lesion."
    return Section(title=sentence_case(name), lead=lead, body=body)


def _stack(scan: ExplainedScan, finding: Finding) -> Markup:
    """Slices one at a time, chosen by a row of radio buttons, which arrow keys step through; it needs no script."""
    of, chosen = visible(finding.name), _slices(scan, finding)
    peak = finding.maps[0].peak[2]
    begin = min(chosen, key=lambda index: abs(index - peak))
    options = [("none", "No map", False)] + [
        (f"m{place}", f"{one.method} ({one.verdict})", place == 1) for place, one in enumerate(finding.maps, start=1)
    ]
    views = windows(finding.name)
    switches = _switch("Map", f"map-{of}", options)
    if len(views) > 1:
        switches += _switch(
            "Window", f"window-{of}", [(f"w{place}", str(one), not place) for place, one in enumerate(views)]
        )
    slices = Markup("").join(_level(scan, finding, index, index == begin) for index in chosen)
    return Markup(
        '<div class="stack">{}<div class="levels" role="radiogroup" aria-label="Slices for {}">'
        "<p>Slices from below to above; arrow keys step through them.</p>{}</div></div>"
    ).format(switches, called(finding.name), slices)


def _switch(legend: str, name: str, options: Sequence[tuple[str, str, bool]]) -> Markup:
    labels = Markup("").join(
        Markup('<label><input type="radio" name="{}" class="{}"{}>{}</label>').format(
            name, kind, Markup(" checked") if is_on else "", words
        )
        for kind, words, is_on in options
    )
    return Markup('<fieldset class="switch"><legend>{}</legend>{}</fieldset>').format(legend, labels)


def _slices(scan: ExplainedScan, finding: Finding) -> list[int]:
    """Slices evenly over the head, and the one of each map's peak."""
    held = list(scan.slices)
    every = max(1, math.ceil(len(held) / (MOST_SLICES - len(finding.maps))))
    return sorted({*held[::every], *(one.peak[2] for one in finding.maps)})


def _level(scan: ExplainedScan, finding: Finding, index: int, is_on: bool) -> Markup:
    place = f"slice {index + 1} of {scan.array.shape[2]}"
    seen = cut(scan.array, "axial", scan.spacing_mm, MM_PER_PIXEL, index)
    rows, cols = seen.shape
    layers = []
    for number_of, window in enumerate(windows(finding.name)):
        (picture,) = fitting([shades(seen, window)], BYTES_PER_SLICE)
        alt = alt_text(f"{visible(scan.scan_id)}, {place}", ["axial"], window)
        layers.append(
            Markup('<img class="view w{}" src="{}" width="{}" height="{}" alt="{}">').format(
                number_of, data_uri(picture), cols, rows, alt
            )
        )
    for place_of, one in enumerate(finding.maps, start=1):
        layer = tint(cut(one.values, "axial", scan.spacing_mm, MM_PER_PIXEL, index), float(one.values.max()))
        layers.append(
            Markup('<img class="heat m{}" src="{}" alt="" aria-hidden="true">').format(place_of, data_uri(_webp(layer)))
        )
    if finding.mask is not None and finding.mask[:, :, index].any():
        line = outline(cut(finding.mask, "axial", scan.spacing_mm, MM_PER_PIXEL, index))
        layers.append(Markup('<img class="line" src="{}" alt="" aria-hidden="true">').format(data_uri(_webp(line))))
    shown = Markup("").join(
        Markup('<span class="w{}">{}</span>').format(number_of, str(window))
        for number_of, window in enumerate(windows(finding.name))
    )
    return Markup(
        '<input type="radio" name="slice-{}" aria-label="{}"{}><figure><span class="ct">{}{}</span>'
        "<figcaption>{} · {}</figcaption></figure>"
    ).format(
        visible(finding.name),
        place,
        Markup(" checked") if is_on else "",
        Markup("").join(layers),
        sides(["axial"], [cols]),
        sentence_case(place),
        shown,
    )


def _meaning(scan: ExplainedScan) -> Section:
    used = {one.method for finding in scan.findings for one in finding.maps}
    items = Markup("").join(
        Markup("<li><b>{}</b>: {}.</li>").format(sentence_case(name), words)
        for name, words in scan.meanings.items()
        if name in used
    )
    lead = (
        "Evened out means: soft tissue as dense as most of it, bone without its detail, so that blood, infarcts, "
        "ventricles and fractures vanish. No detector was trained on such a head, and what it says of one is a guess."
    )
    return Section(title="How to read the maps", lead=lead, body=Markup('<ul class="plain">{}</ul>').format(items))


def tint(values: np.ndarray, highest: float) -> np.ndarray:
    """Amber RGBA uint8 (rows, cols, 4) of values (rows, cols): clear at 0 and below, `OPACITY` at `highest`."""
    share = np.clip(values / highest, 0, 1) if highest > 0 else np.zeros(values.shape)
    layer = np.empty((*values.shape, 4), dtype=np.uint8)
    layer[..., :3] = AMBER
    layer[..., 3] = np.round(255 * OPACITY * share)
    return layer


def outline(mask: np.ndarray) -> np.ndarray:
    """A line of one pixel around a mask (rows, cols), from 0.5 on, as RGBA uint8 (rows, cols, 4)."""
    inside = np.pad(np.asarray(mask) >= 0.5, 1)
    core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    layer = np.zeros((*np.shape(mask), 4), dtype=np.uint8)
    layer[inside[1:-1, 1:-1] & ~core] = (*CYAN, 255)
    return layer


def _webp(layer: np.ndarray) -> bytes:
    with io.BytesIO() as stream:
        Image.fromarray(layer, "RGBA").save(stream, "WEBP", quality=40, alpha_quality=60, method=4)
        return stream.getvalue()


def overlay_png(scan: ExplainedScan, finding: Finding, one: Shown) -> bytes:
    """The three planes through the peak of a map in each window of the finding, as PNG bytes.

    Patient's right on the viewer's left, sides marked, windows and verdict written beneath.
    """
    strips = [_strip(scan, finding, one, window) for window in windows(finding.name)]
    wide = max(strip.width for strip in strips)
    whole = Image.new("RGB", (wide, sum(strip.height for strip in strips) + 2 * CAPTION))
    top = 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    words = f"{called(finding.name)} by {one.method}: {one.verdict}"
    for line, text in enumerate((words, NOT_A_DEVICE)):
        ImageDraw.Draw(whole).text((4, top + 2 + line * CAPTION), text, fill="white")
    with io.BytesIO() as stream:
        whole.save(stream, "PNG", optimize=True)
        return stream.getvalue()


def _strip(scan: ExplainedScan, finding: Finding, one: Shown, window: Window) -> Image.Image:
    def planes(array: np.ndarray) -> list[np.ndarray]:
        return [cut(array, plane, scan.spacing_mm, MM_PER_PIXEL, one.peak[ACROSS[plane]]) for plane in PLANES]

    slices = planes(scan.array)
    grey = Image.fromarray(shades(side_by_side(slices), window)).convert("RGBA")
    heat = tint(_beside(planes(one.values)), float(one.values.max()))
    grey.alpha_composite(Image.fromarray(heat, "RGBA"))
    if finding.mask is not None:
        line = outline(_beside(planes(finding.mask)))
        grey.alpha_composite(Image.fromarray(line, "RGBA"))
    strip = Image.new("RGB", (grey.width, grey.height + CAPTION))
    strip.paste(grey.convert("RGB"), (0, 0))
    _write(strip, [seen.shape[1] for seen in slices], str(window))
    return strip


def _beside(slices: Sequence[np.ndarray]) -> np.ndarray:
    """As `side_by_side`, with 0 around, which is no value of a map."""
    rows = max(seen.shape[0] for seen in slices)
    padded = [
        np.pad(seen, (((rows - len(seen)) // 2, rows - len(seen) - (rows - len(seen)) // 2), (0, 0))) for seen in slices
    ]
    return np.hstack(padded)


def _write(strip: Image.Image, widths: Sequence[int], words: str) -> None:
    """The letters of each plane's sides, and what the window is."""
    pen, left = ImageDraw.Draw(strip), 0
    planes: Sequence[Plane] = PLANES
    for plane, wide in zip(planes, widths, strict=True):
        first, second = SIDES[plane]
        pen.text((left + 4, 2), first, fill="white")
        pen.text((left + wide - 12, 2), second, fill="white")
        left += wide
    pen.text((4, strip.height - CAPTION + 2), words, fill="white")
