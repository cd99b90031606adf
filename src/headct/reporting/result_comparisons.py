"""Results side by side: models by finding, subgroups as a forest, training sites against test sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from headct.reporting.drawing import WIDTH, across_axis, dot, drawing, figure, line, shortened, text
from headct.reporting.measured import Measured, cases, cell
from headct.reporting.scales import Axis, linear
from headct.reporting.words import tick_number, visible

MEASURE, CHANCE = "AUROC", 0.5
"""What all of these figures show."""
SHADES = 6
"""How many steps of shading a transfer matrix has; the style sheet names them `s0` to `s5`."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What one model reached on one finding; `ours` is drawn filled in the accent, a baseline open and grey."""

    model: str
    value: Measured
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """A part of the scans, what was measured on it, and by how much that differs from all the other scans."""

    label: str
    value: Measured
    difference: Measured | None = None


def _span(values: Sequence[Measured], start: float, end: float, *also: float, parts: int = 4) -> Axis:
    """An axis that holds every value with its interval, and whatever else is given."""
    lows = [value.low if value.has_interval else value.value for value in values]
    highs = [value.high if value.has_interval else value.value for value in values]
    return linear(min([*lows, *also]), max([*highs, *also]), start, end, parts)


def _reach(value: Measured, axis: Axis, y: float, kind: str) -> list[Markup]:
    """The interval as a line, the value as a dot on it."""
    bar = [line(axis.at(value.low), y, axis.at(value.high), y, f"curve {kind}")] if value.has_interval else []
    return [*bar, dot(axis.at(value.value), y, kind)]


def by_finding(
    title: str,
    findings: Mapping[str, Sequence[Compared]],
    *,
    caption: str = "dots with intervals; filled: the model, open: beside it",
) -> Markup:
    """For each finding its cases and a line a model: dot, interval and number; chance is a line. A figure.

    The axis starts at chance or below. Raises ValueError where nothing is given.
    """
    every = [one.value for models in findings.values() for one in models]
    if not every:
        raise ValueError("a comparison needs at least one model on one finding")
    left, right, top, pitch, head = 142.0, WIDTH - 46.0, 22.0, 18.0, 24.0
    bottom = top + sum(head + pitch * len(models) for models in findings.values()) + 4
    axis = _span(every, left, right, CHANCE)
    parts = [text(axis.at(CHANCE), top - 6, "chance", "middle", "tick")]
    y = top
    for finding, models in findings.items():
        parts += [text(2, y + 12, finding, kind="strong"), text(WIDTH - 2, y + 12, _shared(models), "end", "tick")]
        block = y + head - 7, y + head + pitch * len(models) - 5
        parts += [line(axis.at(tick), block[0], axis.at(tick), block[1], "grid") for tick in axis.ticks]
        parts.append(line(axis.at(CHANCE), block[0], axis.at(CHANCE), block[1], "chance"))
        for row, one in enumerate(models):
            at = y + head + pitch * (row + 0.5) - 6
            parts += _reach(one.value, axis, at, "mark" if one.ours else "rest")
            parts.append(text(left - 10, at + 4, shortened(one.model, 19), "end", "ours" if one.ours else "theirs"))
            parts.append(text(WIDTH - 2, at + 4, f"{one.value.value:.3f}", "end", "tick"))
        y += head + pitch * len(models)
    parts.append(across_axis(axis, bottom, MEASURE, spare=30))
    said = "; ".join(
        f"{finding}, {one.model}: {one.value.written()}, {one.value.cases}"
        for finding, models in findings.items()
        for one in models
    )
    return figure(drawing(WIDTH, bottom + 38, title, said, *parts), title, caption)


def _shared(models: Sequence[Compared]) -> str:
    """The cases of a finding, if all models were tested on the same."""
    counted = {(one.value.n, one.value.positives) for one in models}
    return cases(*counted.pop()) if len(counted) == 1 else "cases differ"


def forest(
    title: str,
    overall: Measured,
    groups: Mapping[str, Sequence[Subgroup]],
    *,
    caption: str = "",
) -> Markup:
    """Subgroups by what divides them: dot and interval, cases, difference; a line at the overall value. A figure."""
    left, right, pitch, head = 128.0, 238.0, 34.0, 24.0
    rows = sum(len(subgroups) for subgroups in groups.values())
    top = 40.0
    bottom = top + pitch * (rows + 1) + head * len(groups)
    axis = _span([overall, *(one.value for subgroups in groups.values() for one in subgroups)], left, right, parts=3)
    parts = [line(axis.at(tick), top - 6, axis.at(tick), bottom, "grid") for tick in axis.ticks]
    parts.append(line(axis.at(overall.value), top - 6, axis.at(overall.value), bottom, "overall"))
    parts += [text(WIDTH - 2, 14, MEASURE, "end"), text(WIDTH - 2, 27, "difference from the others", "end", "tick")]
    parts += _branch("all scans", overall, "", axis, top + 0.5 * pitch, kind="rest")
    y = top + pitch
    for name, subgroups in groups.items():
        parts.append(text(2, y + 16, name, kind="strong"))
        y += head
        for one in subgroups:
            differs = "" if one.difference is None else one.difference.written(2, signed=True)
            parts += _branch(one.label, one.value, differs, axis, y + 0.5 * pitch, kind="mark")
            y += pitch
    parts.append(across_axis(axis, bottom, MEASURE, spare=30))
    said = f"overall {overall.written()}, {overall.cases}. " + "; ".join(
        _forest_words(name, one) for name, subgroups in groups.items() for one in subgroups
    )
    line_words = f"line: all scans, {overall.written()}; {overall.cases}"
    return figure(
        drawing(WIDTH, bottom + 38, title, said, *parts), title, f"{caption}; {line_words}" if caption else line_words
    )


def _branch(label: str, value: Measured, differs: str, axis: Axis, y: float, kind: str) -> list[Markup]:
    """A row of the forest: name over cases, the interval drawn, then value over difference in words."""
    return [
        text(axis.start - 12, y - 2, shortened(label, 17), "end"),
        text(axis.start - 12, y + 11, _of(value), "end", "tick"),
        *_reach(value, axis, y, kind),
        text(WIDTH - 2, y - 2, value.written(2), "end"),
        text(WIDTH - 2, y + 11, differs, "end", "tick"),
    ]


def _of(value: Measured) -> str:
    return f"n = {value.n:,}" if value.positives is None else f"{value.positives:,} of {value.n:,} positive"


def _forest_words(name: str, one: Subgroup) -> str:
    differs = "" if one.difference is None else f", difference {one.difference.written(signed=True)}"
    return f"{name} {one.label}: {one.value.written()}, {one.value.cases}{differs}"


def transfer_matrix(title: str, values: Mapping[tuple[str, str], Measured]) -> Markup:
    """Trained on a site (rows), tested on a site (columns): number, interval and cases in each cell, shading besides.

    `values` is by (training site, test site); a missing pair is a dash. Sites stand in the order first mentioned.
    """
    trained = list(dict.fromkeys(site for site, _ in values))
    tested = list(dict.fromkeys(site for _, site in values))
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(visible(site)) for site in tested)
    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            visible(site),
            Markup("").join(_transfer_cell(values.get((site, other)), site == other) for other in tested),
        )
        for site in trained
    )
    framed = "Framed: the same site. " if any(site == other for site, other in values) else ""
    legend = (
        f"{MEASURE} with its interval and cases; rows: trained on, columns: tested on. {framed}"
        f"Shaded from {tick_number(CHANCE)} (chance) to 1."
    )
    return Markup(
        '<div class="table transfer" role="region" tabindex="0" aria-label="{}"><table><caption>{}</caption>'
        '<thead><tr><th scope="col">trained \\ tested</th>{}</tr></thead><tbody>{}</tbody></table></div><p>{}</p>'
    ).format(f"Transfer, {title}", title, head, body, legend)


def _transfer_cell(value: Measured | None, same: bool) -> Markup:
    if value is None:
        return Markup("<td>{}</td>").format(cell(None))
    step = min(SHADES - 1, max(0, int((value.value - CHANCE) / (1 - CHANCE) * SHADES)))
    number, _, interval = value.written().partition(" (")
    return Markup('<td class="s{}{}"><b>{}</b> <span>{}</span> <span>{}</span></td>').format(
        str(step), Markup(" same") if same else Markup(""), number, interval.rstrip(")"), value.cases
    )
