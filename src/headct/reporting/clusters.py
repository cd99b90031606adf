"""Maps of features: clouds of points as small multiples, and how well each thing can be told from them.

A class has a colour of Okabe and Ito's, which colour-blind people tell apart, and a shape of its own; rarer classes lie
on top. Points are joined to one path a class, so that a thousand weigh little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from headct.reporting.charts import Interval, intervals
from headct.reporting.drawing import LETTER, drawing, figure, line, place, shortened, text
from headct.reporting.findings import called
from headct.reporting.measured import Measured, cell
from headct.reporting.page import Page, Provenance, Section
from headct.reporting.tables import Column, table
from headct.reporting.words import count, sentence_case, visible

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "wedge")
REST = "#8a8f94"
SIDE, MARGIN, PITCH = 300.0, 8.0, 17.0
TOP = 14.0
"""Of the name of the upward axis, above all points."""
RADIUS = 2.6
CHANCE = 0.5
MOST_POINTS = 1500
"""More are thinned out evenly, and the caption says so."""


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """What the points of a map are coloured by: a word for each point, "" where it is unknown."""

    name: str
    classes: np.ndarray
    is_finding: bool = False


@dataclass(frozen=True, kw_only=True)
class Told:
    """How well the classes of something can be told apart by a straight cut through the features."""

    name: str
    classes: Mapping[str, int]
    auroc: Measured
    accuracy: Measured
    commonest: float
    left_out: int


@dataclass(frozen=True, kw_only=True)
class MappedPlaces:
    """The map of places inside heads, and how far off a straight line from features to millimetres is."""

    points: np.ndarray
    axes: tuple[str, str]
    clouds: Sequence[Cloud]
    scans: int
    air_left_out: bool
    error_mm: Measured | None
    middle_mm: Measured | None


def page(
    *,
    machines: Sequence[Told],
    findings: Sequence[Told],
    left_out: Mapping[str, str],
    axes: tuple[str, str],
    points: np.ndarray,
    clouds: Sequence[Cloud],
    places: MappedPlaces | None,
    scans: int,
    patients: int,
    provenance: Provenance,
    virtual: bool = False,
) -> Page:
    """The page."""
    sections = []
    if machines or findings:
        sections.append(
            Section(
                title="What a straight cut tells apart",
                lead="By logistic regression on the features, on patients that it was not made from. Findings are "
                "filled, site and scanner open: what the features know of the machine can be taken for disease.",
                body=_areas(machines, findings) + _table([*machines, *findings]),
            )
        )
    if clouds:
        sections.append(
            Section(
                title="The map of scans",
                lead="The same points in each picture, coloured by another thing. What looks like one cloud may still "
                "be told apart in the many directions that a plane does not show.",
                body=_multiples(points, axes, clouds, "scan"),
            )
        )
    else:
        whole = Cloud(name="all scans", classes=np.full(len(points), "scan"))
        sections.append(
            Section(
                title="The map of scans",
                lead="All are of one site and scanner, and no labels were given: there is nothing to colour by.",
                body=_multiples(points, axes, [whole], "scan"),
            )
        )
    if places is not None:
        sections.append(_of_places(places))
    if left_out:
        sections.append(_unanswered(left_out))
    return Page(
        title="What the features know",
        kind="map of a cohort",
        answer=[
            *_answer(machines, findings),
            f"{count(scans, 'scan')} of {count(patients, 'patient')}.",
            *([f"{count(len(left_out), 'question')} cannot be answered: see below."] if left_out else []),
        ],
        sections=sections,
        provenance=provenance,
        virtual=virtual,
    )


def _unanswered(left_out: Mapping[str, str]) -> Section:
    listed = [Markup("<li>{}.</li>").format(sentence_case(why)) for why in left_out.values()]
    return Section(
        title="What cannot be told",
        lead="Of these nothing is said above; more patients, or labels of more of them, would answer.",
        body=Markup("<ul>{}</ul>").format(Markup("").join(listed)),
    )


def _answer(machines: Sequence[Told], findings: Sequence[Told]) -> list[str]:
    def best(told: Sequence[Told]) -> Told:
        return max(told, key=lambda one: one.auroc.value)

    lines = []
    if machines:
        one = best(machines)
        shown = one.auroc.has_interval and one.auroc.low > CHANCE
        can = "can be read from the features with" if shown else "is not shown to be readable:"
        lines.append(f"The {one.name} {can} an AUROC of {one.auroc.written(2)}.")
    else:
        lines.append("How much of site and scanner is in the features cannot be told from these scans.")
    if findings:
        one = best(findings)
        lines.append(f"The finding that is read best is {called(one.name)}: {one.auroc.written(2)}.")
    return lines


def _areas(machines: Sequence[Told], findings: Sequence[Told]) -> Markup:
    rows = [
        Interval(
            label=called(one.name),
            value=one.auroc.value,
            low=one.auroc.low,
            high=one.auroc.high,
            n=one.auroc.n,
            ours=told is findings,
        )
        for told in (machines, findings)
        for one in told
        if one.auroc.has_interval
    ]
    if not rows:
        return Markup("<p>No interval can be given for so few patients.</p>")
    return intervals(
        rows,
        title="AUROC",
        x_label="AUROC, on patients held out",
        caption="dots with intervals by patient; filled: findings, open: site and scanner; dotted: chance",
        low=0.4,
        high=1.0,
        chance=CHANCE,
    )


def _table(told: Sequence[Told]) -> Markup:
    frame = pd.DataFrame(
        [
            {
                "name": sentence_case(called(one.name)),
                "n": one.auroc.n,
                "classes": _sizes(one.classes),
                "auroc": cell(one.auroc),
                "accuracy": cell(one.accuracy),
                "commonest": one.commonest,
                "left_out": one.left_out,
            }
            for one in told
        ]
    )
    columns = [
        Column(key="name", header="What"),
        Column(key="n", header="Scans", decimals=0),
        Column(key="classes", header="Classes", wide=True),
        Column(key="auroc", header="AUROC"),
        Column(key="accuracy", header="Accuracy"),
        Column(key="commonest", header="Always the commonest", decimals=3),
        Column(key="left_out", header="Left out", decimals=0),
    ]
    caption = (
        "Of several classes, AUROC is the mean of each against the rest. Left out: unknown, or of too rare a class"
    )
    return table(frame, columns, caption)


def _sizes(classes: Mapping[str, int]) -> str:
    if set(classes) == {"0", "1"}:
        return f"{classes['1']:,} with, {classes['0']:,} without"
    return ", ".join(f"{visible(name)} {number:,}" for name, number in classes.items())


def _of_places(places: MappedPlaces) -> Section:
    air = "in the head" if places.air_left_out else "of the array, air too, for it is not in HU"
    known = ""
    if places.error_mm is not None and places.middle_mm is not None:
        known = (
            f" A straight line from features to position is off by {places.error_mm.written(1)} mm on patients it has "
            f"not seen; naming the middle, by {places.middle_mm.written(1)} mm."
        )
    return Section(
        title="The map of places",
        lead=f"{count(len(places.points), 'place')} {air}, drawn from {count(places.scans, 'scan')}, coloured by where "
        f"they are, and by what is known of their scans.{known}",
        body=_multiples(places.points, places.axes, places.clouds, "place"),
    )


def _multiples(points: np.ndarray, axes: tuple[str, str], clouds: Sequence[Cloud], noun: str) -> Markup:
    drawn = Markup("").join(scatter(points, axes, cloud, noun) for cloud in clouds)
    return Markup('<div class="plots small top">{}</div>').format(drawn)


def scatter(points: np.ndarray, axes: tuple[str, str], cloud: Cloud, noun: str = "scan") -> Markup:
    """Points (n, 2) by the classes of a cloud, (n,), with a key beneath. A figure with its caption."""
    if points.shape != (len(cloud.classes), 2):
        raise ValueError(f"{len(cloud.classes)} classes do not fit points of shape {points.shape}")
    kept = np.unique(np.linspace(0, len(points) - 1, min(MOST_POINTS, len(points))).round().astype(int))
    seen = points[kept]
    low, span = seen.min(axis=0), np.maximum(np.ptp(seen, axis=0), 1e-12)
    across = MARGIN + (SIDE - 2 * MARGIN) * (seen[:, 0] - low[0]) / span[0]
    upward = SIDE - MARGIN - (SIDE - 2 * MARGIN - TOP) * (seen[:, 1] - low[1]) / span[1]
    groups = _groups(cloud)
    marks = []
    for words, colour, shape in groups:
        mine = np.isin(cloud.classes[kept], words)
        if mine.any():
            marks.append(_path(across[mine], upward[mine], colour, shape))
    keys = [_key(row, cloud, *group) for row, group in enumerate(groups)]
    frame = [line(0, 0, 0, SIDE, "axis"), line(0, SIDE, SIDE, SIDE, "axis")]
    names = [text(SIDE, SIDE + 15, axes[0], "end", "tick"), text(4, 10, axes[1], kind="tick")]
    height = SIDE + 26 + PITCH * len(groups)
    said = "; ".join(f"{_named(words)} {int(np.isin(cloud.classes, words).sum()):,}" for words, *_ in groups)
    thinned = f"; {len(kept):,} are drawn" if len(kept) < len(points) else ""
    caption = f"n\u00a0=\u00a0{len(points):,} {noun}s{thinned}" if len(points) != 1 else f"one {noun}"
    title = sentence_case(called(cloud.name))
    return figure(drawing(SIDE, height, title, f"{caption}: {said}", *frame, *marks, *names, *keys), title, caption)


Group = tuple[list[str], str, str]


def _groups(cloud: Cloud) -> list[Group]:
    """Classes with colour and shape, in the order of drawing: unknown, the rest, then the known from common to rare."""
    words, counts = np.unique(cloud.classes, return_counts=True)
    known = [str(words[at]) for at in np.argsort(-counts, kind="stable") if words[at]]
    unknown: list[Group] = [([""], REST, "dot")] if "" in words else []
    if cloud.is_finding:
        colours = {"without": (REST, "circle"), "with": (COLOURS[0], "triangle")}
        said: list[Group] = [([word], *colours[word]) for word in colours if word in known]
        return [*unknown, *said]
    most = len(COLOURS) if len(known) <= len(COLOURS) else len(COLOURS) - 1
    others: list[Group] = [(known[most:], REST, "dot")] if known[most:] else []
    named = [([word], colour, shape) for word, colour, shape in zip(known[:most], COLOURS, SHAPES, strict=False)]
    return [*unknown, *others, *named]


def _named(words: list[str]) -> str:
    if words == [""]:
        return "unknown"
    return visible(words[0]) if len(words) == 1 else f"{len(words)} others"


def _key(row: int, cloud: Cloud, words: list[str], colour: str, shape: str) -> Markup:
    y = SIDE + 32 + PITCH * row
    number = int(np.isin(cloud.classes, words).sum())
    mark = _path(np.array([8.0]), np.array([y - 4]), colour, shape, radius=4.0)
    return mark + text(20, y, f"{shortened(_named(words), int(SIDE / LETTER) - 12)} ({number:,})")


def _path(across: np.ndarray, upward: np.ndarray, colour: str, shape: str, radius: float = RADIUS) -> Markup:
    """All points of a class as one path; a cross is stroked, the others are filled."""
    commands = "".join(_mark(x, y, shape, radius) for x, y in zip(across.tolist(), upward.tolist(), strict=True))
    if shape == "cross":
        return Markup('<path d="{}" fill="none" stroke="{}" stroke-width="1.6"/>').format(commands, colour)
    return Markup('<path d="{}" fill="{}" fill-opacity="0.8"/>').format(commands, colour)


def _mark(x: float, y: float, shape: str, r: float) -> str:
    """One mark about (x, y) as path commands."""
    at, size = place, place(2 * r)
    if shape in ("circle", "dot"):
        r = r if shape == "circle" else 0.6 * r
        return f"M{at(x - r)} {at(y)}a{at(r)} {at(r)} 0 1 0 {at(2 * r)} 0a{at(r)} {at(r)} 0 1 0 {at(-2 * r)} 0"
    if shape == "square":
        return f"M{at(x - r)} {at(y - r)}h{size}v{size}h-{size}z"
    if shape == "triangle":
        return f"M{at(x - r)} {at(y + r)}h{size}L{at(x)} {at(y - r)}z"
    if shape == "wedge":
        return f"M{at(x - r)} {at(y - r)}h{size}L{at(x)} {at(y + r)}z"
    if shape == "diamond":
        return (
            f"M{at(x)} {at(y - 1.3 * r)}L{at(x + 1.3 * r)} {at(y)} {at(x)} {at(y + 1.3 * r)} {at(x - 1.3 * r)} {at(y)}z"
        )
    return f"M{at(x - r)} {at(y)}h{size}M{at(x)} {at(y - r)}v{size}"
