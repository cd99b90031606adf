"""Curves of a result: ROC, precision-recall, reliability, coverage-risk, and few-shot.

Each is one small figure, to stand among others of its kind (`small_multiples`), with its interval as a band or bars,
the line that it is to be compared with, and the cases under it. Nothing is computed here but places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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
    ribbon,
    shortened,
    stroke,
    text,
    upward_axis,
)
from headct.reporting.measured import Measured, cases
from headct.reporting.scales import Axis, linear

CHANCE = 0.5
"""Of an area under the ROC curve."""
SMALL = 250
"""Width of a small figure's view box."""
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SHOTS = "positive examples (K)"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of y over x, both (points,), with the low and high end of its interval at each x, if there is one.

    x may repeat, as it does where an ROC curve rises; it never falls. Raises ValueError for parts of other lengths
    and for values that are not finite.
    """

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    low: Sequence[float] | np.ndarray | None = None
    high: Sequence[float] | np.ndarray | None = None

    def __post_init__(self) -> None:
        parts = [
            np.asarray(part, dtype=np.float64) for part in (self.x, self.y, self.low, self.high) if part is not None
        ]
        if len({part.shape for part in parts}) != 1 or parts[0].ndim != 1 or parts[0].size == 0:
            raise ValueError(f"a curve needs as many x as y and ends, got {[part.shape for part in parts]}")
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError("a curve holds values that are not finite")
        if (np.diff(parts[0]) < 0).any():
            raise ValueError("the x of a curve never fall")
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two ends")

    def drawn(self, across: Axis, upward: Axis) -> Markup:
        """The band, if there is one, and the line over it."""
        x, y = np.asarray(self.x, dtype=np.float64), np.asarray(self.y, dtype=np.float64)
        band = Markup("")
        if self.low is not None and self.high is not None:
            low, high = np.asarray(self.low, dtype=np.float64), np.asarray(self.high, dtype=np.float64)
            band = stroke(ribbon(x, low, high, across, upward), "band")
        return band + stroke(path(x, y, across, upward), "curve mark")

    def at(self, x: float) -> float:
        """The y at an x, for the words that describe the curve; the highest where x repeats."""
        return float(np.interp(x, np.asarray(self.x, dtype=np.float64), np.asarray(self.y, dtype=np.float64)))


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """Where a detector says yes: the threshold, and what that gives. The threshold was chosen on other scans."""

    threshold: float
    sensitivity: Measured
    specificity: Measured
    ppv: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Scans of like predicted probability: its mean, the share that has the finding with its interval, how many."""

    predicted: float
    observed: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What K positive examples gave: the mean over draws with its interval, and how many draws."""

    k: int
    value: float
    low: float
    high: float
    draws: int


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A model in the few-shot figure, ours or a baseline."""

    name: str
    shots: Sequence[Shot]
    ours: bool = False


def small_multiples(figures: Sequence[Markup]) -> Markup:
    """Small figures side by side, as many as fit."""
    return Markup('<div class="plots small">{}</div>').format(Markup("").join(figures))


def _square(x_name: str, y_name: str) -> tuple[Axis, Axis, list[Markup]]:
    """Axes from 0 to 1 of one length, and their drawing."""
    across, upward = Axis(0, 1, 40, 238, SHARES), Axis(0, 1, 222, 24, SHARES)
    return across, upward, [upward_axis(upward, 40, 238, y_name), across_axis(across, 222, x_name)]


def _cross(across: Axis, upward: Axis, x: Measured, y: Measured) -> list[Markup]:
    """A point with its intervals in both directions."""
    here = across.at(x.value), upward.at(y.value)
    bars = []
    if x.has_interval:
        bars.append(line(across.at(x.low), here[1], across.at(x.high), here[1], "whisker"))
    if y.has_interval:
        bars.append(line(here[0], upward.at(y.low), here[0], upward.at(y.high), "whisker"))
    return [*bars, dot(*here, "point")]


def roc(finding: str, curve: Curve, auroc: Measured, *, operating: OperatingPoint | None = None) -> Markup:
    """Sensitivity over 1 - specificity with the line of chance; the operating point is marked with its intervals."""
    across, upward, parts = _square("1 - specificity", "sensitivity")
    chance = line(across.at(0), upward.at(0), across.at(1), upward.at(1), "chance")
    parts += [chance, text(across.at(0.62), upward.at(0.5), "chance", kind="tick"), curve.drawn(across, upward)]
    said = f"AUROC {auroc.written()}. At 1 - specificity 0.1 the sensitivity is {curve.at(0.1):.2f}."
    caption = f"AUROC {auroc.written()}; {auroc.cases}"
    if operating is not None:
        fall_out = _complement(operating.specificity)
        parts += _cross(across, upward, fall_out, operating.sensitivity)
        at = _operating_words(operating)
        said, caption = f"{said} {at}", f"{caption}. {at}"
    return figure(drawing(SMALL, 260, f"ROC curve, {finding}", said, *parts), finding, caption)


def _complement(share: Measured) -> Measured:
    return Measured(value=1 - share.value, low=1 - share.high, high=1 - share.low, n=share.n, positives=share.positives)


def _operating_words(point: OperatingPoint) -> str:
    return (
        f"At threshold {point.threshold:.3f}: sensitivity {point.sensitivity.written(2)}, "
        f"specificity {point.specificity.written(2)}."
    )


def precision_recall(
    finding: str,
    curve: Curve,
    average_precision: Measured,
    *,
    prevalence: float,
    operating: OperatingPoint | None = None,
) -> Markup:
    """Predictive value over sensitivity with the line of prevalence, which calling every scan positive reaches."""
    across, upward, parts = _square("sensitivity (recall)", "positive predictive value (precision)")
    y = upward.at(prevalence)
    above = y - 5 if prevalence < 0.9 else y + 13
    parts += [
        line(across.at(0), y, across.at(1), y, "chance"),
        text(across.at(0) + 4, above, f"prevalence {prevalence:.2f}", kind="tick"),
        curve.drawn(across, upward),
    ]
    stated = f"average precision {average_precision.written()}"
    caption = f"{stated}; {average_precision.cases}"
    said = f"{stated}, prevalence {prevalence:.3f}. At sensitivity 0.8 the predictive value is {curve.at(0.8):.2f}."
    if operating is not None and operating.ppv is not None:
        parts += _cross(across, upward, operating.sensitivity, operating.ppv)
        at = f"At threshold {operating.threshold:.3f}: predictive value {operating.ppv.written(2)}."
        said, caption = f"{said} {at}", f"{caption}. {at}"
    return figure(drawing(SMALL, 260, f"Precision-recall curve, {finding}", said, *parts), finding, caption)


def reliability(finding: str, bins: Sequence[Bin], *, ece: Measured) -> Markup:
    """Observed share over predicted probability, with the number of scans in each bin as columns beneath."""
    across, upward, parts = _square("", "share with the finding")
    perfect = line(across.at(0), upward.at(0), across.at(1), upward.at(1), "chance")
    parts.append(perfect)
    for one in bins:
        x = across.at(one.predicted)
        parts.append(line(x, upward.at(one.low), x, upward.at(one.high), "whisker accent"))
        parts.append(dot(x, upward.at(one.observed), "mark", 4))
    parts += _columns(bins, across, top=264, bottom=302)
    parts.append(text((across.start + across.end) / 2, 318, "predicted probability", "middle"))
    said = "; ".join(
        f"predicted {one.predicted:.2f}, observed {one.observed:.2f} ({one.low:.2f} to {one.high:.2f}), n {one.n:,}"
        for one in bins
    )
    caption = f"calibration error {ece.written()}; {ece.cases}; dotted: as predicted"
    return figure(drawing(SMALL, 322, f"Reliability diagram, {finding}", said, *parts), finding, caption)


def _columns(bins: Sequence[Bin], across: Axis, *, top: float, bottom: float) -> list[Markup]:
    """A column for each bin as high as its count, the highest with its number."""
    most = max((one.n for one in bins), default=1)
    drawn = [text(across.start - 6, top + 9, f"{most:,}", "end", "tick"), text(2, top - 9, "scans")]
    for one in bins:
        height = one.n / most * (bottom - top)
        drawn.append(
            Markup('<rect class="mark" x="{}" y="{}" width="8" height="{}"><title>{}</title></rect>').format(
                place(across.at(one.predicted) - 4), place(bottom - height), place(height), f"{one.n:,} scans"
            )
        )
    return [*drawn, line(across.start, bottom, across.end, bottom, "axis")]


def coverage_risk(finding: str, curve: Curve, *, overall: Measured, risk: str = "error rate") -> Markup:
    """The risk among the scans that are answered, over the share that is; the line is the risk when all are."""
    highest = max(np.max(curve.y), overall.value, *(np.max(end) for end in (curve.high,) if end is not None))
    across = Axis(0, 1, 46, 238, SHARES)
    upward = linear(0, max(float(highest), 0.01), 222, 24)
    y = upward.at(overall.value)
    parts = [
        upward_axis(upward, 46, 238, risk),
        across_axis(across, 222, "share of scans answered"),
        line(across.start, y, across.end, y, "chance"),
        text(across.start + 4, y - 5, "all answered", kind="tick"),
        curve.drawn(across, upward),
    ]
    caption = f"{risk} {overall.written()} when all are answered; {overall.cases}"
    said = f"{caption}. When 80 % are answered it is {curve.at(0.8):.3f}, when half are {curve.at(0.5):.3f}."
    return figure(drawing(SMALL, 260, f"Coverage and risk, {finding}", said, *parts), finding, caption)


def few_shot(
    title: str,
    learners: Sequence[Learner],
    *,
    measure: str = "AUROC",
    n: int,
    positives: int | None = None,
    across: str = SHOTS,
) -> Markup:
    """An area over the number of examples (logarithmic; `across` says of what), a line a model, an interval at each.

    `n` and `positives` count the scans on which all were tested.
    """
    every = [shot for learner in learners for shot in learner.shots]
    if not every:
        return figure(Markup(""), title, "nothing was measured")
    ks = sorted({shot.k for shot in every})
    right = WIDTH - 12.0 - LETTER * max(len(shortened(learner.name, END_LETTERS)) for learner in learners)
    along = Axis(ks[0] / 1.2, ks[-1] * 1.2, 46.0, right, tuple(float(k) for k in ks), log=True)
    lowest = min(shot.low for shot in every)
    upward = linear(min(lowest, CHANCE), max(shot.high for shot in every), 216, 26)
    parts = [upward_axis(upward, 46, right, measure), across_axis(along, 216, across, spare=24)]
    y = upward.at(CHANCE)
    parts += [line(46, y, right, y, "chance"), text(right - 2, y - 5, "chance", "end", "tick")]
    ends = []
    # ours are drawn last, so that they lie on top
    for index, learner in sorted(enumerate(learners), key=lambda entry: entry[1].ours):
        aside = 3.0 * (index - (len(learners) - 1) / 2)
        parts += _learner(learner, along, upward, aside, DASHES[index % len(DASHES)])
        ends.append((upward.at(learner.shots[-1].value), learner.name, "ours" if learner.ours else "theirs"))
    parts += names_at_ends(ends, right + 6)
    said = "; ".join(_learned(learner, measure) for learner in learners)
    caption = f"tested on {cases(n, positives)}; {_draws(every)} at each; bars are intervals"
    return figure(drawing(WIDTH, 254, title, said, *parts), title, caption)


def _learner(learner: Learner, across: Axis, upward: Axis, aside: float, dashes: str) -> list[Markup]:
    """One line with its bars, moved aside by a few units so that bars of one K stand next to each other."""
    kind = "mark" if learner.ours else "rest"
    places = [(across.at(shot.k) + aside, upward.at(shot.value)) for shot in learner.shots]
    commands = "M" + "L".join(f"{place(x)} {place(y)}" for x, y in places)
    drawn = [stroke(commands, f"curve {kind}", "" if learner.ours else dashes or "4 2")]
    for shot, (x, y) in zip(learner.shots, places, strict=True):
        drawn.append(line(x, upward.at(shot.low), x, upward.at(shot.high), f"thin {kind}"))
        drawn.append(dot(x, y, kind, 3.5 if learner.ours else 2.5))
    return drawn


def _learned(learner: Learner, measure: str) -> str:
    values = ", ".join(f"{shot.value:.3f} ({shot.low:.3f} to {shot.high:.3f}) at {shot.k}" for shot in learner.shots)
    return f"{learner.name}: {measure} {values}"


def _draws(shots: Sequence[Shot]) -> str:
    fewest, most = min(shot.draws for shot in shots), max(shot.draws for shot in shots)
    return f"{fewest} draws" if fewest == most else f"{fewest} to {most} draws"
