"""The page of a test and re-test: how far vectors and predictions move when the same head is scanned again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from headct.reporting.charts import Interval, intervals
from headct.reporting.findings import called
from headct.reporting.measured import Measured
from headct.reporting.page import Page, Provenance, Section
from headct.reporting.tables import Column, pairs, table
from headct.reporting.words import count, joined

MEASURES: Mapping[str, str] = {
    "cosine": "Cosine of the pair",
    "cosine_of_others": "Cosine of other heads",
    "first_of_all": "True pair first",
    "rank": "Median rank",
    "icc_of_features": "ICC of features",
    "icc": "ICC(2,1)",
    "bias": "Bias",
    "flips": "Flips",
}
"""Measures that the tables show, with their headers."""
NAMED = 3
"""Findings that the first sentences name; all have a section."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measure of a group of pairs; `finding` is empty for vectors."""

    group: str
    change: str
    measure: str
    finding: str
    measured: Measured


def robustness_page(
    rows: Sequence[Row],
    *,
    findings: Sequence[str],
    notes: Sequence[str],
    perturbed: Mapping[str, str],
    heads: int,
    provenance: Provenance,
    virtual: bool = False,
) -> Page:
    """The whole page. `perturbed` says in words what each change does; empty where patients were scanned twice."""
    sections = [_vectors(rows), *(_finding(rows, finding) for finding in findings)]
    if perturbed:
        lead = "Each scan was changed in the computer; a real re-scan changes several of these at once."
        sections.append(Section(title="Changes", lead=lead, body=pairs(dict(perturbed), "What each change does")))
    return Page(
        title="What a re-scan changes",
        kind="robustness",
        answer=[*_answer(rows, findings, heads, bool(perturbed)), *notes],
        sections=sections,
        provenance=provenance,
        virtual=virtual,
    )


def _answer(rows: Sequence[Row], findings: Sequence[str], heads: int, perturbed: bool) -> list[str | Markup]:
    how = "changed by known amounts" if perturbed else "scanned twice"
    said: list[str | Markup] = []
    worst = min(_of(rows, "first_of_all", ""), key=lambda row: row.measured.value)
    where = f", with {worst.group}" if perturbed else ""
    said.append(
        f"Of {count(heads, 'head')} {how}, {_percent(worst.measured)} are nearest to their own second scan"
        f"{' at worst' if perturbed else ''}{where}."
    )
    flips = [
        (called(finding), max(of, key=lambda row: row.measured.value))
        for finding in findings
        if (of := _of(rows, "flips", finding))
    ]
    if flips:
        flips.sort(key=lambda one: -one[1].measured.value)
        told = joined(
            [f"{name} {_percent(row.measured)}{f', with {row.group}' * perturbed}" for name, row in flips[:NAMED]]
        )
        said.append(Markup("Decisions flip at the operating point, most often: {}.").format(told))
    if not perturbed:
        said.append("Whatever happened to a patient between the two scans counts as a change.")
    return said


def _percent(measured: Measured) -> str:
    value, low, high = (f"{100 * part:.0f}" for part in (measured.value, measured.low, measured.high))
    return f"{value} % ({low} to {high}, n = {measured.n:,})"


def _of(rows: Sequence[Row], measure: str, finding: str) -> list[Row]:
    return [
        row for row in rows if row.measure == measure and row.finding == finding and math.isfinite(row.measured.value)
    ]


def _vectors(rows: Sequence[Row]) -> Section:
    others = [row.measured.value for row in _of(rows, "cosine_of_others", "")]
    chance = sum(others) / len(others)
    charts = [
        _chart(
            _of(rows, "cosine", ""),
            title="Cosine",
            x_label="cosine of two scans of one head",
            caption="95 % interval; the line is the mean cosine of different heads.",
            low=min(chance, 0.9),
            high=1.0,
            chance=chance,
        ),
        _chart(
            _of(rows, "first_of_all", ""),
            title="Found again",
            x_label="share nearest to their own second scan",
            caption="95 % interval, Wilson.",
            low=0.0,
            high=1.0,
        ),
    ]
    listed = _table(rows, "", "Vectors of two scans of one head")
    lead = (
        "A high cosine means little by itself: where different heads are as near, the vector does not know whose it is."
    )
    return Section(title="Vectors", lead=lead, body=_side_by_side(charts) + listed)


def _finding(rows: Sequence[Row], finding: str) -> Section:
    name = called(finding)
    charts = []
    if agreed := _of(rows, "icc", finding):
        charts.append(
            _chart(
                agreed,
                title="ICC(2,1)",
                x_label="intraclass correlation of the probability",
                caption="95 % interval of McGraw and Wong; 1 is agreement.",
                low=0.0,
                high=1.0,
            )
        )
    if flips := _of(rows, "flips", finding):
        charts.append(
            _chart(
                flips,
                title="Flips",
                x_label="share of decisions that change",
                caption="at the operating point; 95 % interval, Wilson.",
                low=0.0,
                high=0.2,
            )
        )
    lead = f"How far the probability of {name} moves, and how often that turns the decision."
    title = name[:1].upper() + name[1:]
    return Section(title=title, lead=lead, body=_side_by_side(charts) + _table(rows, finding, f"Predictions, {name}"))


def _side_by_side(charts: Sequence[Markup]) -> Markup:
    return Markup('<div class="plots">{}</div>').format(Markup("").join(charts))


def _chart(
    rows: Sequence[Row],
    *,
    title: str,
    x_label: str,
    caption: str,
    low: float,
    high: float,
    chance: float | None = None,
) -> Markup:
    drawn = [
        Interval(label=row.group, value=one.value, low=_or(one.low, one.value), high=_or(one.high, one.value), n=one.n)
        for row in rows
        for one in [row.measured]
    ]
    return intervals(drawn, title=title, x_label=x_label, caption=caption, low=low, high=high, chance=chance)


def _or(value: float, other: float) -> float:
    return value if math.isfinite(value) else other


def _table(rows: Sequence[Row], finding: str, caption: str) -> Markup:
    """A line for each group, a column for each measure."""
    mine = [row for row in rows if row.finding == finding]
    names = [name for name in MEASURES if any(row.measure == name for row in mine)]
    lines: dict[str, dict[str, object]] = {}
    for row in mine:
        line = lines.setdefault(row.group, {"group": row.group, "n": row.measured.n, **dict.fromkeys(names, "")})
        if row.measure in names:
            line[row.measure] = _written(row)
    frame = pd.DataFrame(list(lines.values()), columns=["group", "n", *names])
    columns = [
        Column(key="group", header="Change"),
        Column(key="n", header="n", decimals=0),
        *(Column(key=name, header=MEASURES[name], decimals=3, write=str) for name in names),
    ]
    return table(frame, columns, caption)


def _written(row: Row) -> str:
    if row.measured.has_interval or not math.isfinite(row.measured.value):
        return row.measured.written()
    return f"{row.measured.value:.3f}"
