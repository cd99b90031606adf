"""The page of scans that are alike: each query beside its neighbours, slice by slice, at one scale and window.

Likeness is the encoder's: it may be of size, tilt or scanner as well as of disease, and the page says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from markupsafe import Markup

from headct.reporting.charts import Interval, intervals
from headct.reporting.findings import BRAIN, called
from headct.reporting.measured import Measured, cell, cell_of_difference
from headct.reporting.page import Page, Provenance, Section
from headct.reporting.pictures import Window, slice_picture
from headct.reporting.tables import Column, table
from headct.reporting.words import NOT_STATED, count, is_missing, number, sentence_case, visible

LEVELS = (0.42, 0.56, 0.70)
"""Where slices are cut, as shares of the array from below: about the skull base, the ventricles, the vault."""
LEVEL_NAMES = ("low", "middle", "high")
MM_PER_PIXEL = 1.5
BYTES_PER_SLICE = 7_000
HEADERS = {
    "manufacturer": ("Manufacturer", "", None),
    "model": ("Model", "", None),
    "kernel": ("Kernel", "", None),
    "thickness_mm": ("Thickness", "mm", 1),
    "tilt_deg": ("Tilt", "°", 1),
    "age": ("Age", "years", 0),
    "sex": ("Sex", "", None),
    "site": ("Site", "", None),
}
"""Facts that a table of neighbours tells: header, unit, decimals of a number."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A scan on the page: array (X, Y, Z) in HU, RAS, or None where it is not at hand; `similarity` None: the query."""

    scan_id: str
    patient_id: str = ""
    array: np.ndarray | None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    similarity: float | None = None
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One query with what it found, best first. `query` may be a vector without a picture."""

    query: Seen
    found: Sequence[Seen]
    barred: int  # other scans of its own patient that were passed over
    warning: str = ""


def page(
    answers: Sequence[Answered],
    *,
    metric: str,
    searched: str,
    conditions: Sequence[str],
    provenance: Provenance,
    note: str = "",
    virtual: bool = False,
    window: Window = BRAIN,
) -> Page:
    """The page. `searched` is half a sentence: in how many scans, and what the search may miss; `note` another one."""
    best = [answer.found[0] for answer in answers]
    first = (
        f"The scan most like {visible(answers[0].query.scan_id)} is {visible(best[0].scan_id)} "
        f"({likeness(metric, best[0].similarity)})."
        if len(answers) == 1
        else f"{count(len(answers), 'query', 'queries')}, each with its most similar scans."
    )
    chosen = f"Only scans with {', '.join(conditions)} were looked at." if conditions else ""
    sections = [
        Section(
            title=f"Query {place}: {visible(one.query.scan_id)}",
            lead=_lead(one, metric),
            body=_answer(one, metric, window),
        )
        for place, one in enumerate(answers, start=1)
    ]
    return Page(
        title="Scans like this one" if len(answers) == 1 else "Scans like these",
        kind="neighbours",
        answer=[
            first,
            sentence_case(f"{searched}."),
            *([chosen] if chosen else []),
            *([f"{sentence_case(note)}."] if note else []),
            "Alike is what the encoder takes for alike. Size, tilt, thickness and scanner count as much as disease, "
            "and a neighbour's diagnosis says nothing about the query's.",
        ],
        sections=sections,
        provenance=provenance,
        virtual=virtual,
    )


def likeness(metric: str, similarity: float | None) -> str:
    """The similarity in words: a cosine, or a distance, which is stored with a minus."""
    if similarity is None:
        return "the query"
    return f"cosine {similarity:.3f}" if metric == "cosine" else f"distance {number(-similarity, 3)}"


def _lead(answer: Answered, metric: str) -> str:
    own = {
        0: "The index holds no other scan of the same patient, as far as ids tell",
        1: "One other scan of the query's own patient was passed over",
    }.get(answer.barred, f"{answer.barred:,} other scans of the query's own patient were passed over")
    order = "largest cosine" if metric == "cosine" else "smallest distance"
    warning = f" {sentence_case(answer.warning)}." if answer.warning else ""
    return f"{count(len(answer.found), 'scan')} with the {order}, best first. {own}.{warning}"


def _answer(answer: Answered, metric: str, window: Window) -> Markup:
    shown = [one for one in (answer.query, *answer.found) if one.array is not None]
    if not shown:
        pictures = Markup("<p>No pictures: the cohort that the index was made of is not at hand.</p>")
    else:
        rows = [
            Markup('<h3>{} slices</h3><ol class="neighbours">{}</ol>').format(
                sentence_case(name), Markup("").join(_slice(one, level, name, metric, window) for one in shown)
            )
            for level, name in zip(LEVELS, LEVEL_NAMES, strict=True)
        ]
        pictures = Markup("").join(rows)
    return pictures + _table(answer, metric)


def _slice(scan: Seen, level: float, name: str, metric: str, window: Window) -> Markup:
    assert scan.array is not None, "scans without an array are not drawn"
    words = likeness(metric, scan.similarity)
    picture = slice_picture(
        scan.array,
        scan.spacing_mm,
        window,
        subject=f"{visible(scan.scan_id)} ({words}), {name}",
        index=min(int(level * scan.array.shape[2]), scan.array.shape[2] - 1),
        mm_per_pixel=MM_PER_PIXEL,
        limit_bytes=BYTES_PER_SLICE,
    )
    kind = Markup(' class="query"') if scan.similarity is None else Markup("")
    return Markup('<li{}>{}<p><b>{}</b><br><span class="id">{}</span></p></li>').format(
        kind, picture, words, visible(scan.scan_id)
    )


def _table(answer: Answered, metric: str) -> Markup:
    scans = (answer.query, *answer.found)
    rows = [
        {
            "rank": "query" if scan.similarity is None else str(place),
            "scan": scan.scan_id,
            "patient": scan.patient_id,
            "similarity": None
            if scan.similarity is None
            else abs(scan.similarity)
            if metric != "cosine"
            else scan.similarity,
            **{name: scan.facts.get(name) for name in HEADERS},
        }
        for place, scan in enumerate(scans)
    ]
    told = [name for name in HEADERS if any(not is_missing(row[name]) for row in rows)]
    columns = [
        Column(key="rank", header="Rank"),
        Column(key="scan", header="Scan"),
        Column(key="similarity", header="Cosine" if metric == "cosine" else "Distance", decimals=4),
        Column(key="patient", header="Patient"),
        *(_fact(name) for name in told),
    ]
    frame = pd.DataFrame(rows).astype(object)
    caption = "The query and what was found; what an index does not know is left open"
    return table(frame, columns, caption)


def _fact(name: str) -> Column:
    header, unit, decimals = HEADERS[name]
    if decimals is not None:
        return Column(key=name, header=header, unit=unit, decimals=decimals)
    return Column(key=name, header=header, write=lambda value: NOT_STATED if is_missing(value) else visible(str(value)))


@dataclass(frozen=True, kw_only=True)
class JudgedRow:
    """One finding by which neighbours were judged: numbers by name, each beside chance and the gain over it."""

    finding: str
    queries: int
    gallery: int
    against_chance: str  # above or not above: the mAP, by the lower end of its interval
    alone: int  # queries without a relevant scan of another patient
    unknown: int  # scans whose label is unknown
    values: Mapping[str, Measured]
    gains: Mapping[str, Measured]
    chance: Mapping[str, float]
    as_published: Mapping[str, float]


NUMBERS = {
    "precision_at": "Precision",
    "average_precision_at": "Average precision",
    "hit_rate_at": "Hit rate",
}


def report(
    rows: Sequence[JudgedRow],
    *,
    ks: Sequence[int],
    relevance: str,
    left_out: Mapping[str, str],
    understood: Sequence[str],
    provenance: Provenance,
    virtual: bool = False,
) -> Page:
    """The page of a judgement: do neighbours share a finding more often than a random order would have them?"""
    who = (
        "Queries are the scans with the finding, and a neighbour is right when it has the finding too"
        if relevance == "present"
        else "All scans are queries, and a neighbour is right when its label is the same"
    )
    missing = [f"{sentence_case(called(name))} could not be judged: {why}." for name, why in left_out.items()]
    return Page(
        title="Do neighbours share a finding?",
        kind="retrieval",
        answer=[*_against_chance(rows), f"{who}. Scans of the query's own patient are never looked at.", *missing],
        sections=[
            Section(
                title="Over the whole order",
                lead="Average precision of all scans of other patients, ordered by likeness: its mean over queries "
                "(mAP), beside that of a random order. Where queries are few the upper ends of intervals lie too low.",
                body=_above_chance(rows) + _whole(rows),
            ),
            *(
                Section(
                    title=f"Among the nearest {k}" if k > 1 else "The nearest one",
                    lead="Average precision is divided by the hits that could have been found. CT-FM's published one "
                    "divides by those that were found, so that misses after the last hit are free: the last column is "
                    "for comparison with its figures alone.",
                    body=_table_at(rows, k),
                )
                for k in ks
            ),
            Section(
                title="Who was looked at",
                lead="Unknown labels are left out, and so are queries that have nothing to find.",
                body=_who(rows)
                + Markup('<ul class="plain">{}</ul>').format(
                    Markup("").join(Markup("<li>{}</li>").format(visible(one)) for one in understood)
                ),
            ),
        ],
        provenance=provenance,
        virtual=virtual,
    )


def _against_chance(rows: Sequence[JudgedRow]) -> list[str]:
    """For which findings likeness is better than a random order, and for which that is not shown."""

    def named(how: str) -> str:
        chosen = [row for row in rows if row.against_chance == how]
        return ", ".join(f"{called(row.finding)} ({count(row.queries, 'query', 'queries')})" for row in chosen)

    above, neither = named("above"), named("not above")
    sentences = [
        f"Neighbours share {above} more often than by chance."
        if above
        else "It is not shown that neighbours share any finding more often than by chance."
    ]
    sentences += [f"Not shown to be above chance: {neither}."] if neither else []
    return sentences


def _above_chance(rows: Sequence[JudgedRow]) -> Markup:
    gains = [(row, row.gains["average_precision"]) for row in rows]
    drawn = [
        Interval(label=called(row.finding), value=gain.value, low=gain.low, high=gain.high, n=gain.n)
        for row, gain in gains
        if gain.has_interval
    ]
    if not drawn:
        return Markup("<p>No interval can be given for so few patients.</p>")
    return intervals(
        drawn,
        title="mAP above chance",
        x_label="mAP, less that of a random order",
        caption="dots with intervals by patient; dotted: as good as a random order; n counts queries",
        low=-0.1,
        high=0.1,
        chance=0.0,
    )


def _whole(rows: Sequence[JudgedRow]) -> Markup:
    frame = pd.DataFrame(
        [
            {
                "finding": called(row.finding),
                "queries": row.queries,
                "map": cell(row.values["average_precision"]),
                "chance": row.chance["average_precision"],
                "gain": cell_of_difference(row.gains["average_precision"]),
            }
            for row in rows
        ]
    )
    columns = [
        Column(key="finding", header="Finding"),
        Column(key="queries", header="Queries", decimals=0),
        Column(key="map", header="mAP"),
        Column(key="chance", header="By chance", decimals=3),
        Column(key="gain", header="Gain"),
    ]
    return table(frame, columns, "Mean average precision over queries, with intervals by patient")


def _table_at(rows: Sequence[JudgedRow], k: int) -> Markup:
    columns = [Column(key="finding", header="Finding"), Column(key="queries", header="Queries", decimals=0)]
    told: list[dict[str, object]] = [{"finding": called(row.finding), "queries": row.queries} for row in rows]
    for name, header in NUMBERS.items():
        key = f"{name}_{k}"
        columns += [Column(key=key, header=header), Column(key=f"{key} by chance", header="By chance", decimals=3)]
        for line, row in zip(told, rows, strict=True):
            line |= {key: cell(row.values[key]), f"{key} by chance": row.chance[key]}
    columns.append(Column(key="published", header="As CT-FM counts it", decimals=3))
    for line, row in zip(told, rows, strict=True):
        line["published"] = row.as_published[f"average_precision_of_hits_at_{k}"]
    return table(pd.DataFrame(told), columns, f"Among the nearest {k}, with intervals by patient")


def _who(rows: Sequence[JudgedRow]) -> Markup:
    frame = pd.DataFrame(
        [
            {
                "finding": called(row.finding),
                **{key: getattr(row, key) for key in ("queries", "gallery", "alone", "unknown")},
            }
            for row in rows
        ]
    )
    columns = [
        Column(key="finding", header="Finding"),
        Column(key="queries", header="Queries", decimals=0),
        Column(key="gallery", header="Scans looked among", decimals=0),
        Column(key="alone", header="Queries with nothing to find", decimals=0),
        Column(key="unknown", header="Label unknown", decimals=0),
    ]
    return table(frame, columns, "Scans by finding")
