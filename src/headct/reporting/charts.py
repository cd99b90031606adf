"""Charts as inline SVG: small, drawn by hand, coloured by the page, the same input giving the same bytes.

Each is a figure with its caption; `headct.reporting.drawing` holds what they are drawn with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from headct.reporting.drawing import (
    DASHES,
    END_LETTERS,
    LETTER,
    WIDTH,
    across_axis,
    dot,
    drawing,
    figure,
    line,
    names_at_ends,
    path,
    place,
    shortened,
    stroke,
    text,
    upward_axis,
)
from headct.reporting.scales import Axis, edges, linear, logarithmic
from headct.reporting.words import count, short_number, tick_number, visible


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its interval, the number of cases under it, and whether it is ours or a baseline."""

    label: str
    value: float
    low: float
    high: float
    n: int
    ours: bool = True


def histogram(
    values: Sequence[float] | np.ndarray | pd.Series,
    *,
    title: str,
    unit: str = "",
    noun: str = "scan",
    highest: float | None = None,
) -> Markup:
    """How often each value occurs; missing values (NaN) are counted in words. A figure with its caption.

    Where all are equal, the value is written and nothing drawn. No value can exceed `highest`, if given (100 %).
    """
    given = np.asarray(values, dtype=np.float64)
    known = np.round(given[np.isfinite(given)], 6)  # positions carry rounding errors, which are no spread
    if known.size == 0:
        return figure(Markup(""), title, f"not stated for any of {count(given.size, noun)}")
    cases = f"n\u00a0=\u00a0{known.size:,}{_silent(given.size - known.size)}"
    if known.min() == known.max():
        return figure(Markup('<p class="same">{}</p>').format(_span(known, unit)), title, cases)
    bins = edges(known, highest=highest)
    counts = np.histogram(known, np.append(bins[:-1], np.inf))[0]
    caption = f"{_span(known, unit)}; {cases}"
    bottom, top, left, right = 112.0, 20.0, 34.0, WIDTH - 10.0
    upward = _counts_axis(int(counts.max()), bottom, top)
    across = Axis(float(bins[0]), float(bins[-1]), left, right, tuple(float(edge) for edge in bins))
    bars = [
        _column(across.at(start), across.at(end), upward.at(n), bottom, f"{_between(start, end)}: {count(n, noun)}")
        for start, end, n in zip(bins.tolist(), bins[1:].tolist(), counts.tolist(), strict=False)
        if n
    ]
    most = int(np.argmax(counts))
    described = f"{caption}. Most, {counts[most]:,}, are {_between(*bins[most : most + 2].tolist())}."
    label = "degrees" if unit == "°" else unit
    parts = [upward_axis(upward, left, right, f"{noun}s"), *bars, across_axis(across, bottom, label)]
    return figure(drawing(WIDTH, 150 if unit else 134, title, described, *parts), title, caption)


def _span(known: np.ndarray, unit: str) -> str:
    low, high = short_number(float(known.min())), short_number(float(known.max()))
    unit = f" {unit}" if unit and unit != "°" else unit
    alike = "" if known.size == 1 else "all "
    return f"{alike}{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _silent(number: int) -> str:
    return f"; not stated for {number:,}" if number else ""


def _between(start: float, end: float) -> str:
    return f"{tick_number(start)} to below {tick_number(end)}"


def _column(x1: float, x2: float, top: float, bottom: float, words: str) -> Markup:
    """One bar of a histogram with what it says when pointed at."""
    return Markup('<rect class="mark" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
        place(x1 + 1), place(top), place(x2 - x1 - 2), place(bottom - top), words
    )


def _counts_axis(most: int, start: float, end: float) -> Axis:
    """An axis of whole numbers from 0 that holds `most`."""
    axis = linear(0, most, start, end, parts=min(most, 4))
    whole = tuple(tick for tick in axis.ticks if float(tick).is_integer())
    return Axis(axis.low, axis.high, start, end, whole)


def tallies(counts: Mapping[str, int], *, title: str, caption: str = "", rows: int = 9) -> Markup:
    """How many have each word: a line a word, most first, the rest beyond `rows` in one. A figure with its caption.

    The empty word stands for what files do not state, and comes last.
    """
    total, silent = sum(counts.values()), counts.get("", 0)
    ranked = sorted(((visible(word), n) for word, n in counts.items() if word), key=lambda item: (-item[1], item[0]))
    shown = ranked[:rows] if len(ranked) <= rows else ranked[: rows - 1]
    if rest := ranked[len(shown) :]:
        shown.append((count(len(rest), "other"), sum(n for _, n in rest)))
    if silent:
        shown.append(("not stated", silent))
    caption = caption or f"n\u00a0=\u00a0{total - silent:,}{_silent(silent)}"
    if not shown:
        return figure(Markup(""), title, caption)
    left = min(16 + LETTER * max(len(word) for word, _ in shown), 0.62 * WIDTH)
    each = (WIDTH - 46 - left) / max(n for _, n in shown)
    parts = [
        _tally(12.0 + 20 * row, left, each * n, word, n, "rest" if silent and row == len(shown) - 1 else "mark")
        for row, (word, n) in enumerate(shown)
    ]
    said = "; ".join(f"{word} {n:,}" for word, n in shown)
    return figure(drawing(WIDTH, 4 + 20 * len(shown), title, said, *parts), title, caption)


def _tally(y: float, left: float, length: float, word: str, n: int, kind: str) -> Markup:
    """One word, its line and its count."""
    named = text(left - 8, y + 4, shortened(word, int((left - 10) / LETTER)), "end")
    return named + line(left, y, left + length, y, f"bar {kind}") + text(left + length + 8, y + 4, f"{n:,}")


def curves(
    series: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    caption: str,
    log_x: bool = False,
    log_y: bool = False,
    chance: tuple[float, str] | None = None,
) -> Markup:
    """Lines of y over x by name, each named at its end; the first is ours, the others grey. A figure with caption.

    `chance` is a value of y with its name, drawn as a dotted line. Points without a finite y break the line; on a
    logarithmic axis so do those at or below zero.
    """
    drawn = {name: _usable(x, y, log_x, log_y) for name, (x, y) in series.items()}
    xs = np.concatenate([x[np.isfinite(y)] for x, y in drawn.values()])
    ys = np.concatenate([y[np.isfinite(y)] for _, y in drawn.values()])
    if ys.size == 0:
        return figure(Markup(""), title, "nothing was recorded")
    if chance is not None:
        ys = np.append(ys, chance[0])
    left, bottom, top = 48.0, 186.0, 26.0
    right = WIDTH - 12.0 - LETTER * max(len(shortened(name, END_LETTERS)) for name in series)
    make_x, make_y = (logarithmic if log_x else linear), (logarithmic if log_y else linear)
    x_axis = make_x(float(xs.min()), float(xs.max()), left, right)
    if not log_x:
        x_axis = Axis(float(xs.min()), max(float(xs.max()), float(xs.min()) + 1e-9), left, right, _inside(x_axis, xs))
    y_axis = make_y(float(ys.min()), float(ys.max()), bottom, top)
    parts = [upward_axis(y_axis, left, right, y_label), across_axis(x_axis, bottom, x_label, spare=34)]
    if chance is not None:
        y = y_axis.at(chance[0])
        parts += [line(left, y, right, y, "chance"), text(right - 2, y - 5, chance[1], "end", "tick")]
    for index, (across, upward) in enumerate(drawn.values()):
        kind = "mark" if index == 0 else "rest"
        parts.append(stroke(path(across, upward, x_axis, y_axis), f"curve {kind}", DASHES[index % len(DASHES)]))
    parts += names_at_ends(_ends(drawn, y_axis), x_axis.end + 6)
    said = "; ".join(_from_to(name, x, y, x_label) for name, (x, y) in drawn.items())
    return figure(drawing(WIDTH, 224, title, said, *parts), title, caption)


def _ends(drawn: Mapping[str, tuple[np.ndarray, np.ndarray]], y_axis: Axis) -> list[tuple[float, str, str]]:
    """Where each curve ends that has any value, its name, and the class of its name: the first is ours."""
    known = [(index, name, y[~np.isnan(y)]) for index, (name, (_, y)) in enumerate(drawn.items())]
    return [(y_axis.at(float(y[-1])), name, "theirs" if index else "ours") for index, name, y in known if y.size]


def _usable(x: object, y: object, log_x: bool, log_y: bool) -> tuple[np.ndarray, np.ndarray]:
    """Values as floats, y without a finite value (or without a logarithm) as NaN, x in rising order."""
    across, upward = np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)
    if across.shape != upward.shape or across.ndim != 1:
        raise ValueError(f"a curve needs as many x as y, got {across.shape} and {upward.shape}")
    upward[~np.isfinite(upward) | ((upward <= 0) & log_y) | ((across <= 0) & log_x)] = np.nan
    order = np.argsort(across, kind="stable")
    return across[order], upward[order]


def _inside(axis: Axis, values: np.ndarray) -> tuple[float, ...]:
    return tuple(tick for tick in axis.ticks if values.min() <= tick <= values.max()) or (float(values.min()),)


def _from_to(name: str, x: np.ndarray, y: np.ndarray, x_label: str) -> str:
    known = ~np.isnan(y)
    if not known.any():
        return f"{name}: nothing recorded"
    first, last = y[known][0], y[known][-1]
    return f"{name}: from {first:.4g} to {last:.4g} between {x_label} {x[known][0]:.6g} and {x[known][-1]:.6g}"


def intervals(
    rows: Sequence[Interval],
    *,
    title: str,
    x_label: str,
    caption: str,
    low: float,
    high: float,
    chance: float | None = None,
) -> Markup:
    """A dot with its interval for each row, on one axis that holds `low` to `high`; chance is a line. A figure.

    Ours are filled dots in the accent, baselines open dots in grey. Names stand above their dots, whole.
    """
    left, right, pitch, top = 14.0, WIDTH - 14.0, 40.0, 10.0
    bottom = top + pitch * len(rows)
    axis = linear(min(low, *(row.low for row in rows)), max(high, *(row.high for row in rows)), left, right)
    parts = []
    for index, row in enumerate(rows):
        above, kind, cases = top + pitch * index, "mark" if row.ours else "rest", f"n = {row.n:,}"
        y = above + 26
        parts += [line(axis.at(tick), y - 9, axis.at(tick), y + 9, "grid") for tick in axis.ticks]
        if chance is not None:
            parts.append(line(axis.at(chance), y - 9, axis.at(chance), y + 9, "chance"))
        parts += [
            text(2, above + 12, shortened(row.label, int(WIDTH / LETTER) - len(cases) - 2)),
            line(axis.at(row.low), y, axis.at(row.high), y, f"curve {kind}"),
            dot(axis.at(row.value), y, kind),
            text(WIDTH - 2, above + 12, cases, "end", "tick"),
        ]
    parts.append(across_axis(axis, bottom, x_label, spare=30))
    said = "; ".join(f"{row.label} {row.value:.3f} ({row.low:.3f} to {row.high:.3f}, n = {row.n:,})" for row in rows)
    return figure(drawing(WIDTH, bottom + 38, title, said, *parts), title, caption)
