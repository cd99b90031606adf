"""Tables of a result: metrics by finding, and published numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from markupsafe import Markup

from headct.reporting.findings import called
from headct.reporting.measured import Measured, cell, cell_of_difference
from headct.reporting.tables import Column, table
from headct.reporting.words import NOT_STATED, visible

INTERVAL_WORDS = "value (low to high)"


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """The metrics of one finding, or of one model on it; `prevalence` is that of the scans tested."""

    finding: str
    n: int
    positives: int
    prevalence: float
    metrics: Mapping[str, Measured] = field(default_factory=dict)
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """Two models on one finding: the difference of ours and theirs, its p value, and that after correction."""

    finding: str
    ours: str
    theirs: str
    difference: Measured
    p: float | None = None
    p_corrected: float | None = None


@dataclass(frozen=True, kw_only=True)
class MovedRow:
    """A detector away from home: what it loses there, and what that site's own detector has over it.

    Both are differences of AUROC, with p values after correction; None where there is nothing to compare with.
    """

    trained: str
    tested: str
    lost: Measured | None
    lost_p: float | None
    gained: Measured | None
    gained_p: float | None


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number from a publication beside ours; `theirs` is written as published, with what they tell about it."""

    finding: str
    measure: str
    theirs: str
    source: str
    ours: Measured | None = None
    their_cases: str = ""


@dataclass(frozen=True, kw_only=True)
class PointRow:
    """The threshold at and above which a finding is called there, and on which scans it was chosen."""

    finding: str
    threshold: float
    origin: str


@dataclass(frozen=True, kw_only=True)
class MeasurementRow:
    """How far a measured column lies from the true one: mean and absolute error, the share within a tolerance."""

    measurement: str
    unit: str
    bias: Measured
    absolute: Measured
    within: Measured
    tolerance: float
    agreement: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SideRow:
    """How often a side was told, and told rightly; `counts` by (true, told) side in the order of `sides`."""

    measurement: str
    sides: Sequence[str]
    counts: Sequence[Sequence[int]]
    right: Measured
    swapped: Measured


def points_table(rows: Sequence[PointRow]) -> Markup:
    """The operating points, a row a finding."""
    frame = pd.DataFrame(
        [{"finding": called(row.finding), "threshold": row.threshold, "origin": row.origin} for row in rows],
        columns=["finding", "threshold", "origin"],
    ).astype(object)
    columns = [
        Column(key="finding", header="Finding"),
        Column(key="threshold", header="Operating point", decimals=3),
        Column(key="origin", header="Where it comes from", wide=True),
    ]
    return table(frame, columns, "Operating points: a finding is called at or above them")


def measurements_table(rows: Sequence[MeasurementRow]) -> Markup:
    """Errors of measurements, a row a column of the table."""
    frame = pd.DataFrame(
        [
            {
                "measurement": visible(row.measurement),
                "n": row.bias.n,
                "bias": row.bias,
                "absolute": row.absolute,
                "agreement": f"{row.agreement[0]:.2f} to {row.agreement[1]:.2f}",
                "within": row.within,
                "tolerance": f"{row.tolerance:g} {row.unit}",
            }
            for row in rows
        ],
        columns=["measurement", "n", "bias", "absolute", "agreement", "within", "tolerance"],
    ).astype(object)
    columns = [
        Column(key="measurement", header="Measurement"),
        Column(key="n", header="n", unit="scans", decimals=0),
        Column(key="bias", header="Measured less true", unit=INTERVAL_WORDS, decimals=2, write=_cell_of_difference),
        Column(key="absolute", header="Absolute error", unit=INTERVAL_WORDS, decimals=2, write=_cell),
        Column(key="agreement", header="95 % of differences"),
        Column(key="within", header="Share within", unit=INTERVAL_WORDS, decimals=3, write=_cell),
        Column(key="tolerance", header="Tolerance"),
    ]
    return table(frame, columns, "Measurements against the truth")


def sides_table(row: SideRow) -> Markup:
    """The sides that were told (columns) of each true side (rows)."""
    frame = pd.DataFrame(
        [
            {"true": side, **dict(zip(row.sides, counts, strict=True))}
            for side, counts in zip(row.sides, row.counts, strict=True)
        ],
        columns=["true", *row.sides],
    ).astype(object)
    columns = [
        Column(key="true", header="True side"),
        *(Column(key=side, header=f"Told {side}", decimals=0) for side in row.sides),
    ]
    caption = (
        f"{visible(row.measurement)}: told rightly {row.right.written()}; left and right swapped "
        f"{row.swapped.written()} of scans that are of one side"
    )
    return table(frame, columns, caption)


def metrics_table(rows: Sequence[MetricRow], caption: str) -> Markup:
    """A row a finding (and model): cases, prevalence, and each metric with its interval; sorts by the values.

    Metrics stand in the order first mentioned; one that a row lacks is a dash.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    frame = pd.DataFrame(
        [
            {
                "finding": called(row.finding),
                "model": row.model,
                "n": row.n,
                "positives": row.positives,
                "prevalence": row.prevalence,
                **{name: row.metrics.get(name) for name in names},
            }
            for row in rows
        ],
        columns=["finding", "model", "n", "positives", "prevalence", *names],
    ).astype(object)
    columns = [Column(key="finding", header="Finding")]
    if any(row.model for row in rows):
        columns.append(Column(key="model", header="Model"))
    columns += [
        Column(key="n", header="n", unit="scans", decimals=0),
        Column(key="positives", header="Positives", unit="scans", decimals=0),
        Column(key="prevalence", header="Prevalence", decimals=3),
        *(Column(key=name, header=name, decimals=3, write=_cell) for name in names),
    ]
    return table(frame, columns, caption)


def _cell(value: object) -> str:
    return cell(value) if isinstance(value, Measured) else NOT_STATED


def _cell_of_difference(value: object) -> str:
    return cell_of_difference(value) if isinstance(value, Measured) else NOT_STATED


def _p_value(value: object) -> str:
    """A p value with three decimals; below that it is only said to be smaller."""
    if not isinstance(value, float) or value != value:
        return NOT_STATED
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def comparison_table(rows: Sequence[ComparedRow], caption: str) -> Markup:
    """Differences between models with their intervals and p values, a row a finding."""
    frame = pd.DataFrame(
        [
            {
                "finding": called(row.finding),
                "ours": row.ours,
                "theirs": row.theirs,
                "n": row.difference.n,
                "positives": row.difference.positives,
                "difference": row.difference,
                "p": row.p,
                "p_corrected": row.p_corrected,
            }
            for row in rows
        ],
        columns=["finding", "ours", "theirs", "n", "positives", "difference", "p", "p_corrected"],
    ).astype(object)
    columns = [
        Column(key="finding", header="Finding"),
        Column(key="ours", header="Model"),
        Column(key="theirs", header="Compared with"),
        Column(key="n", header="n", unit="scans", decimals=0),
        Column(key="positives", header="Positives", unit="scans", decimals=0),
        Column(key="difference", header="Difference", unit=INTERVAL_WORDS, decimals=3, write=_cell_of_difference),
        Column(key="p", header="p", decimals=3, write=_p_value),
        Column(key="p_corrected", header="p, corrected", decimals=3, write=_p_value),
    ]
    return table(frame, columns, caption)


def moved_table(rows: Sequence[MovedRow], title: str) -> Markup:
    """What detectors lose away from home, and what labels of one's own gain, a row for each pair of sites."""
    frame = pd.DataFrame([vars(row) for row in rows]).astype(object)
    columns = [
        Column(key="trained", header="Trained at"),
        Column(key="tested", header="Tested at"),
        Column(key="lost", header="Lost", decimals=3, write=_cell_of_difference),
        Column(key="lost_p", header="p (Holm)", decimals=3, write=_p_value),
        Column(key="gained", header="Gained by own labels", decimals=3, write=_cell_of_difference),
        Column(key="gained_p", header="p (Holm)", decimals=3, write=_p_value),
    ]
    columns = [column for column in columns if frame[column.key].notna().any()]
    means = {
        "lost": "lost is the AUROC at home less that here",
        "gained": "gained that of the site's own detector less that here",
    }
    told = ", ".join(words for name, words in means.items() if frame[name].notna().any())
    return table(frame, columns, f"{title}: {told}")


def beside_published(rows: Sequence[Published], why_not_comparable: str, caption: str = "Published numbers") -> Markup:
    """Published numbers beside ours, under the sentence that says why the two are not comparable.

    Raises ValueError for an empty sentence: numbers of other scans never stand here without it.
    """
    if not why_not_comparable.strip():
        raise ValueError("published numbers stand beside ours only with the sentence why they are not comparable")
    frame = pd.DataFrame(
        [
            {
                "finding": called(row.finding),
                "measure": row.measure,
                "ours": row.ours,
                "n": None if row.ours is None else row.ours.n,
                "positives": None if row.ours is None else row.ours.positives,
                "theirs": row.theirs,
                "their_cases": row.their_cases,
                "source": row.source,
            }
            for row in rows
        ],
        columns=["finding", "measure", "ours", "n", "positives", "theirs", "their_cases", "source"],
    ).astype(object)
    columns = [
        Column(key="finding", header="Finding"),
        Column(key="measure", header="Measure"),
        Column(key="ours", header="Ours", unit=INTERVAL_WORDS, decimals=3, write=_cell),
        Column(key="n", header="n", unit="scans, ours", decimals=0),
        Column(key="positives", header="Positives", unit="ours", decimals=0),
        Column(key="theirs", header="As published"),
        Column(key="their_cases", header="Cases", unit="published"),
        Column(key="source", header="Source", wide=True),
    ]
    listed = table(frame, columns, caption)
    return Markup('<p class="notice">Not comparable: {}</p>{}').format(why_not_comparable, listed)
