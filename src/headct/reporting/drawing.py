"""The pencil of the charts: SVG elements, axes, lines and the names at their ends.

Sizes are in user units of a view box about as wide as a phone, so that text stays legible there. Colours come from
the page's style sheet (`accent`, `mute`, `ink`), so a drawing follows light, dark and print; without it all is black.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from headct.reporting.scales import Axis
from headct.reporting.words import tick_number

WIDTH = 380
LETTER = 7.0
"""Width of a letter of the charts' text, on average."""
END_LETTERS = 18
"""How much of a curve's name stands at its end."""
NAME_PITCH = 14
"""From one such name to the next, at least."""
DASHES = ("", "6 3", "2 3", "8 3 2 3")
"""Line styles of curves, so that none is told from another by colour alone."""


def place(value: float) -> str:
    """A place or length as it stands in the SVG: tenths of a unit are less than an eye sees."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def drawing(width: float, height: float, title: str, description: str, *parts: Markup) -> Markup:
    """An SVG image with the title and description that a screen reader speaks."""
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title><desc>{}</desc>{}</svg>').format(
        place(width), place(height), title, description, Markup("").join(parts)
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line between two places."""
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
        kind, place(x1), place(y1), place(x2), place(y2)
    )


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> Markup:
    """Text at a place; `anchor` is start, middle or end."""
    named = Markup(' class="{}"').format(kind) if kind else ""
    return Markup('<text{} x="{}" y="{}" text-anchor="{}">{}</text>').format(named, place(x), place(y), anchor, words)


def dot(x: float, y: float, kind: str, radius: float = 4.5) -> Markup:
    """A round mark."""
    return Markup('<circle class="dot {}" cx="{}" cy="{}" r="{}"/>').format(kind, place(x), place(y), place(radius))


def stroke(commands: str, kind: str, dashes: str = "") -> Markup:
    """A path, dashed if `dashes` says how."""
    dashed = Markup(' stroke-dasharray="{}"').format(dashes) if dashes else ""
    return Markup('<path class="{}" d="{}"{}/>').format(kind, commands, dashed)


def figure(chart: Markup, name: str, caption: str | Markup) -> Markup:
    """A chart under its name and the sentence that says what it shows."""
    return Markup('<figure class="plot"><figcaption><b>{}</b> {}</figcaption>{}</figure>').format(name, caption, chart)


def across_axis(axis: Axis, y: float, label: str, spare: float = 26) -> Markup:
    """The axis along the bottom at `y`, its name beneath; a number takes `spare` units, and those that collide go."""
    ticks = [line(axis.at(tick), y, axis.at(tick), y + 4, "axis") for tick in axis.ticks]
    kept = _not_crowded(axis, spare)
    numbers = [text(axis.at(tick), y + 16, tick_number(tick), "middle", "tick") for tick in kept]
    name = text((axis.start + axis.end) / 2, y + 33, label, "middle")
    return Markup("").join([line(axis.start, y, axis.end, y, "axis"), *ticks, *numbers, name])


def upward_axis(axis: Axis, x: float, right: float, label: str) -> Markup:
    """The axis at the left edge `x` with grid lines to `right`, its name above."""
    grid = [line(x, axis.at(tick), right, axis.at(tick), "grid") for tick in axis.ticks]
    numbers = [text(x - 6, axis.at(tick) + 4, tick_number(tick), "end", "tick") for tick in axis.ticks]
    return Markup("").join([*grid, *numbers, text(2, axis.end - 10, label)])


def _not_crowded(axis: Axis, spare: float) -> list[float]:
    """The ticks that can carry their number: every one, or every second or third from the first."""
    apart = min((abs(axis.at(b) - axis.at(a)) for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)), default=spare)
    return list(axis.ticks[:: max(1, int(np.ceil(spare / apart)))])


def shortened(word: str, letters: int) -> str:
    """The word, cut to so many letters with an ellipsis."""
    return word if len(word) <= letters else word[: letters - 1] + "…"


def path(x: np.ndarray, y: np.ndarray, x_axis: Axis, y_axis: Axis, points: int = 400) -> str:
    """The line as path commands; beyond `points` it keeps each stretch's lowest and highest, so no spike is lost."""
    kept = _thinned(y, points)
    pen_down, commands = False, []
    for across, upward in zip(x[kept], y[kept], strict=True):
        if np.isnan(upward):
            pen_down = False
            continue
        commands.append(
            f"{'L' if pen_down else 'M'}{place(x_axis.at(float(across)))} {place(y_axis.at(float(upward)))}"
        )
        pen_down = True
    return "".join(commands)


def ribbon(x: np.ndarray, low: np.ndarray, high: np.ndarray, x_axis: Axis, y_axis: Axis) -> str:
    """The area between two lines over the same x as path commands; every value is finite."""
    there, back = path(x, low, x_axis, y_axis), path(x[::-1], high[::-1], x_axis, y_axis)
    return f"{there}L{back[1:]}Z"


def _thinned(y: np.ndarray, points: int) -> np.ndarray:
    """Indices of at most about `points` values: the lowest and highest of equal stretches, the first and the last."""
    if y.size <= points:
        return np.arange(y.size)
    kept = {0, y.size - 1}
    for stretch in np.array_split(np.arange(y.size), points // 2):
        known = stretch[~np.isnan(y[stretch])]
        kept |= {int(known[np.argmin(y[known])]), int(known[np.argmax(y[known])])} if known.size else {int(stretch[0])}
    return np.array(sorted(kept))


def names_at_ends(ends: Sequence[tuple[float, str, str]], x: float) -> list[Markup]:
    """The names of curves at `x`, each given as (height of its end, name, class), pushed apart where they overlap."""
    placed: list[Markup] = []
    free = 0.0
    for wanted, name, kind in sorted(ends, key=lambda end: end[0]):
        height = max(wanted, free)
        free = height + NAME_PITCH
        placed.append(text(x, height + 4, shortened(name, END_LETTERS), kind=kind))
    return placed
