"""Charts as inline SVG: small, drawn by hand, coloured by the page, the same input giving the same bytes.

Sizes are in user units of a view box about as wide as a phone, so that text stays legible there. Colours come from
the page's style sheet (`accent`, `mute`, `ink`), so a chart follows light, dark and print; without it all is black.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from headct.reporting.scales import Axis, edges, linear, logarithmic
from headct.reporting.words import count, short_number, tick_number, visible

WIDTH = 380
LETTER = 7.0
"""Width of a letter of the charts' text, on average."""
END_LETTERS = 18
"""How much of a curve's name stands at its end."""
DASHES = ("", "6 3", "2 3", "8 3 2 3")
"""Line styles of curves, so that none is told from another by colour alone."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its interval, the number of cases under it, and whether it is ours or a baseline."""

    label: str
    value: float
    low: float
    high: float
    n: int
    ours: bool = True


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def drawing(width: float, height: float, title: str, description: str, *parts: Markup) -> Markup:
    """An SVG image with the title and description that a screen reader speaks."""
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title><desc>{}</desc>{}</svg>').format(
        _n(width), _n(height), title, description, Markup("").join(parts)
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line between two places."""
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, _n(x1), _n(y1), _n(x2), _n(y2))


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> Markup:
    """Text at a place; `anchor` is start, middle or end."""
    named = Markup(' class="{}"').format(kind) if kind else ""
    return Markup('<text{} x="{}" y="{}" text-anchor="{}">{}</text>').format(named, _n(x), _n(y), anchor, words)


def figure(chart: Markup, name: str, caption: str | Markup) -> Markup:
    """A chart under its name and the sentence that says what it shows."""
    return Markup('<figure class="plot"><figcaption><b>{}</b> {}</figcaption>{}</figure>').format(name, caption, chart)


def _x_axis(axis: Axis, y: float, label: str, spare: float = 26) -> Markup:
    ticks = [line(axis.at(tick), y, axis.at(tick), y + 4, "axis") for tick in axis.ticks]
    kept = _not_crowded(axis, spare)
    numbers = [text(axis.at(tick), y + 16, tick_number(tick), "middle", "tick") for tick in kept]
    name = text((axis.start + axis.end) / 2, y + 33, label, "middle")
    return Markup("").join([line(axis.start, y, axis.end, y, "axis"), *ticks, *numbers, name])


def _y_axis(axis: Axis, x: float, right: float, label: str) -> Markup:
    grid = [line(x, axis.at(tick), right, axis.at(tick), "grid") for tick in axis.ticks]
    numbers = [text(x - 6, axis.at(tick) + 4, tick_number(tick), "end", "tick") for tick in axis.ticks]
    return Markup("").join([*grid, *numbers, text(2, axis.end - 10, label)])


def _not_crowded(axis: Axis, spare: float) -> list[float]:
    """The ticks that can carry their number: every one, or every second or third from the first."""
    apart = min((abs(axis.at(b) - axis.at(a)) for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)), default=spare)
    return list(axis.ticks[:: max(1, int(np.ceil(spare / apart)))])


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
    parts = [_y_axis(upward, left, right, f"{noun}s"), *bars, _x_axis(across, bottom, label)]
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
        _n(x1 + 1), _n(top), _n(x2 - x1 - 2), _n(bottom - top), words
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
        shown.append((f"{len(rest)} others", sum(n for _, n in rest)))
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
    named = text(left - 8, y + 4, _shortened(word, int((left - 10) / LETTER)), "end")
    return named + line(left, y, left + length, y, f"bar {kind}") + text(left + length + 8, y + 4, f"{n:,}")


def _shortened(word: str, letters: int) -> str:
    return word if len(word) <= letters else word[: letters - 1] + "…"


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
    right = WIDTH - 12.0 - LETTER * max(len(_shortened(name, END_LETTERS)) for name in series)
    make_x, make_y = (logarithmic if log_x else linear), (logarithmic if log_y else linear)
    x_axis = make_x(float(xs.min()), float(xs.max()), left, right)
    if not log_x:
        x_axis = Axis(float(xs.min()), max(float(xs.max()), float(xs.min()) + 1e-9), left, right, _inside(x_axis, xs))
    y_axis = make_y(float(ys.min()), float(ys.max()), bottom, top)
    parts = [_y_axis(y_axis, left, right, y_label), _x_axis(x_axis, bottom, x_label, spare=34)]
    if chance is not None:
        y = y_axis.at(chance[0])
        parts += [line(left, y, right, y, "chance"), text(right - 2, y - 5, chance[1], "end", "tick")]
    parts += [
        Markup('<path class="curve {}" d="{}" stroke-dasharray="{}"/>').format(
            "mark" if index == 0 else "rest", _path(x, y, x_axis, y_axis), DASHES[index % len(DASHES)]
        )
        for index, (x, y) in enumerate(drawn.values())
    ]
    parts += _names_at_ends(drawn, x_axis, y_axis)
    said = "; ".join(_from_to(name, x, y, x_label) for name, (x, y) in drawn.items())
    return figure(drawing(WIDTH, 224, title, said, *parts), title, caption)


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


def _path(x: np.ndarray, y: np.ndarray, x_axis: Axis, y_axis: Axis, points: int = 400) -> str:
    """The line as path commands; beyond `points` it keeps each stretch's lowest and highest, so no spike is lost."""
    kept = _thinned(y, points)
    pen_down, commands = False, []
    for across, upward in zip(x[kept], y[kept], strict=True):
        if np.isnan(upward):
            pen_down = False
            continue
        commands.append(f"{'L' if pen_down else 'M'}{_n(x_axis.at(float(across)))} {_n(y_axis.at(float(upward)))}")
        pen_down = True
    return "".join(commands)


def _thinned(y: np.ndarray, points: int) -> np.ndarray:
    """Indices of at most about `points` values: the lowest and highest of equal stretches, the first and the last."""
    if y.size <= points:
        return np.arange(y.size)
    kept = {0, y.size - 1}
    for stretch in np.array_split(np.arange(y.size), points // 2):
        known = stretch[~np.isnan(y[stretch])]
        kept |= {int(known[np.argmin(y[known])]), int(known[np.argmax(y[known])])} if known.size else {int(stretch[0])}
    return np.array(sorted(kept))


def _names_at_ends(
    drawn: Mapping[str, tuple[np.ndarray, np.ndarray]], x_axis: Axis, y_axis: Axis, pitch: float = 14
) -> list[Markup]:
    """Each curve's name right of its last point, pushed apart where they would overlap."""
    ends: list[tuple[float, int, str]] = []
    for index, (name, (_, y)) in enumerate(drawn.items()):
        known = y[~np.isnan(y)]
        if known.size:
            ends.append((y_axis.at(float(known[-1])), index, name))
    placed: list[Markup] = []
    free = 0.0
    for wanted, index, name in sorted(ends):
        place = max(wanted, free)
        free = place + pitch
        kind = "theirs" if index else "ours"
        placed.append(text(x_axis.end + 6, place + 4, _shortened(name, END_LETTERS), kind=kind))
    return placed


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

    Ours are filled dots in the accent, baselines open dots in grey.
    """
    left, right, pitch, top = 140.0, WIDTH - 62.0, 24, 18.0
    bottom = top + pitch * len(rows)
    axis = linear(min(low, *(row.low for row in rows)), max(high, *(row.high for row in rows)), left, right)
    parts = [line(axis.at(tick), top - 8, axis.at(tick), bottom, "grid") for tick in axis.ticks]
    if chance is not None:
        parts.append(line(axis.at(chance), top - 8, axis.at(chance), bottom, "chance"))
    for index, row in enumerate(rows):
        y, kind = top + pitch * (index + 0.5), "mark" if row.ours else "rest"
        parts += [
            text(left - 10, y + 4, _shortened(row.label, 20), "end"),
            line(axis.at(row.low), y, axis.at(row.high), y, f"curve {kind}"),
            Markup('<circle class="dot {}" cx="{}" cy="{}" r="4.5"/>').format(kind, _n(axis.at(row.value)), _n(y)),
            text(WIDTH - 2, y + 4, f"n = {row.n:,}", "end", "tick"),
        ]
    parts.append(_x_axis(axis, bottom, x_label, spare=30))
    said = "; ".join(f"{row.label} {row.value:.3f} ({row.low:.3f} to {row.high:.3f}, n = {row.n:,})" for row in rows)
    return figure(drawing(WIDTH, bottom + 38, title, said, *parts), title, caption)
