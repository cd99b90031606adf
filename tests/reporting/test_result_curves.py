"""Oracles: closed forms of the curves, and the geometry of the drawing read back from the SVG by an XML parser."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from inputs.sample_results import calibration, learner, measured, ranking

from headct.reporting.measured import Measured
from headct.reporting.result_curves import (
    Bin,
    Curve,
    Learner,
    coverage_risk,
    few_shot,
    precision_recall,
    reliability,
    roc,
    small_multiples,
)

NASTY = '</svg><script>alert("x")</script>'
LEFT, RIGHT, BOTTOM, TOP = 40.0, 238.0, 222.0, 24.0
"""The places of 0 and 1 on the axes of a square figure."""


def svg(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, re.DOTALL)[0])


def points(drawing: ElementTree.Element, kind: str) -> np.ndarray:
    """The places of a path of a class, (points, 2)."""
    commands = next(path.get("d") for path in drawing.findall("path") if path.get("class") == kind)
    return np.array([[float(v) for v in pair.split()] for pair in re.split("[MLZ]", commands) if pair])


def unit(places: np.ndarray) -> np.ndarray:
    """Places of a square figure as values from 0 to 1."""
    return np.stack([(places[:, 0] - LEFT) / (RIGHT - LEFT), (places[:, 1] - BOTTOM) / (TOP - BOTTOM)], axis=1)


@pytest.mark.parametrize("auroc", [0.74, 0.81, 0.93])
def test_the_area_under_the_drawn_roc_curve_is_the_closed_form(auroc: float) -> None:
    shown = ranking(auroc, 61)
    drawn = unit(points(svg(roc("sdh", shown.roc, shown.auroc)), "curve mark"))
    # the sample is x ** (1 / power), whose area is the AUROC; 101 points and tenths of a unit cost under 0.02
    assert np.trapezoid(drawn[:, 1], drawn[:, 0]) == pytest.approx(auroc, abs=0.02)


def test_the_band_holds_the_curve_and_is_as_wide_as_its_interval() -> None:
    x = np.linspace(0, 1, 5)
    curve = Curve(x=x, y=x, low=0.5 * x, high=np.minimum(1, x + 0.1))
    drawn = unit(points(svg(roc("sdh", curve, measured(0.5, 0.1, positives=9))), "band"))
    low, high = drawn[:5], drawn[5:][::-1]
    assert low[:, 1] == pytest.approx(0.5 * x, abs=0.001)
    assert high[:, 1] == pytest.approx(np.minimum(1, x + 0.1), abs=0.001)


def test_the_operating_point_carries_both_intervals() -> None:
    shown = ranking(0.81, 44)
    drawing = svg(roc("sah", shown.roc, shown.auroc, operating=shown.operating))
    whiskers = [line for line in drawing.findall("line") if line.get("class") == "whisker"]
    across = [float(whiskers[0].get(name)) for name in ("x1", "x2")]
    upward = [float(whiskers[1].get(name)) for name in ("y1", "y2")]
    point = shown.operating
    assert across == pytest.approx(
        [LEFT + (RIGHT - LEFT) * (1 - end) for end in (point.specificity.high, point.specificity.low)], abs=0.06
    )
    assert upward == pytest.approx(
        [BOTTOM + (TOP - BOTTOM) * end for end in (point.sensitivity.low, point.sensitivity.high)], abs=0.06
    )
    assert "sensitivity" in drawing.find("desc").text


def test_chance_is_the_diagonal_and_the_cases_are_said() -> None:
    shown = ranking(0.93, 61)
    figure = roc("sdh", shown.roc, shown.auroc)
    chance = next(line for line in svg(figure).findall("line") if line.get("class") == "chance")
    assert [float(chance.get(name)) for name in ("x1", "y1", "x2", "y2")] == [LEFT, BOTTOM, RIGHT, TOP]
    assert "n\u00a0=\u00a0420, 61\u00a0positive" in figure
    assert "0.930 (0.890 to 0.962)" in figure


def test_the_line_of_prevalence_lies_at_it() -> None:
    shown = ranking(0.93, 61)
    figure = precision_recall("sdh", shown.precision_recall, shown.average_precision, prevalence=shown.prevalence)
    line = next(line for line in svg(figure).findall("line") if line.get("class") == "chance")
    assert float(line.get("y1")) == float(line.get("y2"))
    assert float(line.get("y1")) == pytest.approx(BOTTOM + (TOP - BOTTOM) * 61 / 420, abs=0.06)
    assert f"prevalence {61 / 420:.2f}" in figure


def test_bins_of_a_reliability_diagram_lie_where_they_are_and_count_their_scans() -> None:
    bins = [Bin(predicted=p, observed=p, low=p - 0.05, high=p + 0.05, n=n) for p, n in ((0.2, 80), (0.7, 20))]
    drawing = svg(reliability("sdh", bins, ece=measured(0.0, 0.0, 100, 30)))
    dots = [circle for circle in drawing.findall("circle") if circle.get("class") == "dot mark"]
    places = unit(np.array([[float(one.get("cx")), float(one.get("cy"))] for one in dots]))
    assert places == pytest.approx(np.array([[0.2, 0.2], [0.7, 0.7]]), abs=0.001)
    heights = [float(column.get("height")) for column in drawing.findall("rect")]
    assert heights[0] / heights[1] == pytest.approx(4, abs=0.05)
    assert "n 80" in drawing.find("desc").text
    places = [(float(words.get("x")), float(words.get("y"))) for words in drawing.findall("text")]
    assert not [place for place in places if 40 < place[0] < 238 and 24 < place[1] < 222]  # where bars would cross it


def test_the_risk_at_full_coverage_ends_on_the_line_of_all() -> None:
    shown = calibration(61)
    drawing = svg(coverage_risk("sdh", shown.coverage, overall=shown.overall_risk))
    line = next(line for line in drawing.findall("line") if line.get("class") == "chance")
    assert points(drawing, "curve mark")[-1, 1] == pytest.approx(float(line.get("y1")), abs=0.1)


def test_doublings_of_k_are_equal_steps_and_bars_are_to_scale() -> None:
    ours = learner("ours", 0.7, 0.9, ours=True)
    drawing = svg(few_shot("Macro", [ours], n=420))
    dots = drawing.findall("circle")
    steps = np.diff([float(one.get("cx")) for one in dots])
    assert steps == pytest.approx(np.full(5, steps.mean()), abs=0.11)
    bars = [line for line in drawing.findall("line") if line.get("class") == "thin mark"]
    lengths = np.array([float(bar.get("y1")) - float(bar.get("y2")) for bar in bars])
    widths = np.array([shot.high - shot.low for shot in ours.shots])
    assert lengths / lengths[0] == pytest.approx(widths / widths[0], abs=0.02)


def test_the_few_shot_axis_holds_chance_and_lines_differ_without_colour() -> None:
    learners = [learner("ours", 0.8, 0.9, ours=True), learner("scratch", 0.7, 0.85), learner("histogram", 0.6, 0.7)]
    drawing = svg(few_shot("Macro", learners, n=420, positives=61))
    chance = next(line for line in drawing.findall("line") if line.get("class") == "chance")
    assert TOP < float(chance.get("y1")) <= 216
    dashes = [path.get("stroke-dasharray") for path in drawing.findall("path")]
    assert len(set(dashes)) == 3
    assert dashes[-1] is None  # ours, drawn last, is the solid line
    assert {"ours", "scratch", "histogram"} <= {text.text for text in drawing.findall("text")}


def test_nothing_measured_is_said() -> None:
    assert "nothing was measured" in few_shot("Macro", [Learner(name="ours", shots=[])], n=0)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"x": [0, 1], "y": [0]}, "as many x as y"),
        ({"x": [], "y": []}, "as many x as y"),
        ({"x": [0, 1], "y": [0, np.nan]}, "not finite"),
        ({"x": [1, 0], "y": [0, 1]}, "never fall"),
        ({"x": [0, 1], "y": [0, 1], "low": [0, 0]}, "two ends"),
    ],
)
def test_a_curve_is_valid_from_the_moment_it_exists(parts: dict[str, list[float]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Curve(**parts)


def test_a_number_without_an_interval_says_so() -> None:
    lone = Measured(value=0.7, low=float("nan"), high=float("nan"), n=12, positives=3)
    assert lone.written() == "0.700 (no interval)"
    assert Measured(value=float("nan"), low=0, high=1, n=0).written() == "–"
    assert Measured(value=0.021, low=-0.009, high=0.051, n=9).written(2, signed=True) == "+0.02 (-0.01 to +0.05)"
    assert measured(0.0, 0.0).written(2, signed=True) == "0.00 (0.00 to 0.00)"


def test_hostile_names_stay_words() -> None:
    shown = ranking(0.93, 61)
    figures = small_multiples(
        [
            roc(NASTY, shown.roc, shown.auroc, operating=shown.operating),
            precision_recall(NASTY, shown.precision_recall, shown.average_precision, prevalence=0.1),
            reliability(NASTY, calibration(61).bins, ece=measured(0.1, 0.1)),
            few_shot(NASTY, [learner(NASTY, 0.6, 0.7)], n=1, measure=NASTY),
        ]
    )
    assert "<script" not in figures
