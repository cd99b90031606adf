"""Oracles: numpy's counts, the geometry of the drawing read back from the SVG, and the standard XML parser."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headct.reporting.charts import Interval, curves, histogram, intervals, tallies
from headct.reporting.findings import NAMES, called

NASTY = '</svg><script>alert("x")</script>'


def svg(figure: str) -> ElementTree.Element:
    """The drawing of a figure, parsed as XML."""
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, re.DOTALL)[0])


@given(st.lists(st.floats(0.3, 8).map(lambda v: round(v, 2)), min_size=2, max_size=40).filter(lambda v: len({*v}) > 1))
def test_bars_count_every_value_once_and_are_as_high_as_their_count(values: list[float]) -> None:
    bars = svg(histogram(values, title="Gap", unit="mm")).findall("rect")
    counts = np.array([int(bar.find("title").text.rsplit(" ", 2)[1]) for bar in bars])
    heights = np.array([float(bar.get("height")) for bar in bars])
    assert counts.sum() == len(values)
    assert heights / heights.max() == pytest.approx(counts / counts.max(), abs=0.01)  # drawn to a tenth of a unit


def test_missing_values_are_said() -> None:
    figure = histogram([1.0, np.nan, 2.0], title="Thickness", unit="mm")
    assert "1 to 2 mm" in figure
    assert "not stated for 1" in figure
    assert "not stated for any of 2 scans" in histogram([np.nan, np.nan], title="Thickness")


def test_one_value_for_all() -> None:
    same = histogram([5.0] * 7 + [np.nan], title="Thickness", unit="mm")
    assert '<p class="same">all 5 mm</p>' in same
    assert "n\u00a0=\u00a07; not stated for 1" in same
    assert "<svg" not in same, "a bar for one value says nothing"
    assert '<p class="same">30</p>' in histogram([30], title="Slices")
    assert "<svg" in histogram([5.0, 5.1], title="Thickness", unit="mm")


def test_tallies_rank_words_and_put_the_silent_last() -> None:
    figure = tallies({"B": 2, "A": 5, "": 9, "C": 2}, title="Kernel")
    said = svg(figure).find("desc").text
    assert said == "A 5; B 2; C 2; not stated 9"
    lengths = [float(bar.get("x2")) - float(bar.get("x1")) for bar in svg(figure).findall("line")]
    assert np.array(lengths) / lengths[-1] == pytest.approx([5 / 9, 2 / 9, 2 / 9, 1], abs=0.01)


def test_tallies_gather_what_is_rare() -> None:
    said = svg(tallies({f"scanner {i:02d}": 30 - i for i in range(20)}, title="Scanner")).find("desc").text
    assert said.endswith("12 others 198")
    assert said.count(";") == 8


def test_nothing_to_tally() -> None:
    assert "<svg" not in tallies({}, title="Flags", caption="on 0 of 3 scans")


def test_a_curve_goes_through_its_points() -> None:
    drawing = svg(curves({"loss": ([0, 5, 10], [4.0, 2.0, 0.0])}, title="Loss", x_label="step", y_label="", caption=""))
    path = np.array([[float(v) for v in pair.split()] for pair in re.split("[ML]", drawing.find("path").get("d"))[1:]])
    assert path[1] == pytest.approx((path[0] + path[2]) / 2, abs=0.1)
    assert path[2, 1] > path[0, 1]  # SVG counts downwards


def test_logarithmic_axes_give_powers_equal_lengths() -> None:
    axes = {"x_label": "step", "y_label": "", "caption": "", "log_x": True, "log_y": True}
    drawing = svg(curves({"loss": ([1, 10, 100], [1.0, 0.1, 0.01])}, title="Loss", **axes))
    path = np.array([[float(v) for v in pair.split()] for pair in re.split("[ML]", drawing.find("path").get("d"))[1:]])
    assert path[1] == pytest.approx((path[0] + path[2]) / 2, abs=0.1)


def test_a_long_curve_keeps_its_spike_and_stays_small() -> None:
    loss = np.linspace(5, 3, 100_000)
    loss[54_321] = 40.0
    figure = curves({"loss": (np.arange(100_000), loss)}, title="Loss", x_label="step", y_label="nats", caption="")
    heights = [float(pair.split()[1]) for pair in re.split("[ML]", svg(figure).find("path").get("d"))[1:]]
    assert min(heights) < 40  # drawn near the top, which lies at 26
    assert len(figure) < 15_000


def test_values_that_are_no_numbers_break_the_line() -> None:
    drawing = svg(curves({"a": ([1, 2, 3, 4], [1, np.nan, 2, 3])}, title="", x_label="", y_label="", caption=""))
    assert drawing.find("path").get("d").count("M") == 2


def test_a_curve_without_any_value_says_so() -> None:
    figure = curves({"a": ([1], [np.nan])}, title="Loss", x_label="", y_label="", caption="")
    assert "nothing was recorded" in figure


def test_a_curve_needs_as_many_x_as_y() -> None:
    with pytest.raises(ValueError, match="as many x as y"):
        curves({"a": ([1, 2], [1])}, title="", x_label="", y_label="", caption="")


def test_curves_are_told_apart_without_colour() -> None:
    both = {"ours": ([1, 2], [1, 2]), "baseline": ([1, 2], [1, 2])}
    drawing = svg(curves(both, title="", x_label="", y_label="", caption=""))
    assert len({path.get("stroke-dasharray") for path in drawing.findall("path")}) == 2
    names = [text for text in drawing.findall("text") if text.text in both]
    assert abs(float(names[0].get("y")) - float(names[1].get("y"))) >= 14  # pushed apart though they end together


def test_intervals_are_drawn_to_scale_with_chance_and_n() -> None:
    rows = [
        Interval(label="ours", value=0.9, low=0.8, high=1.0, n=420),
        Interval(label="theirs", value=0.7, low=0.6, high=0.8, n=1420, ours=False),
    ]
    drawing = svg(intervals(rows, title="AUROC", x_label="AUROC", caption="", low=0.5, high=1.0, chance=0.5))
    lines = {line.get("class"): line for line in drawing.findall("line")}
    chance = float(lines["chance"].get("x1"))
    ours, theirs = lines["curve mark"], lines["curve rest"]
    per_unit = (float(ours.get("x2")) - float(ours.get("x1"))) / 0.2
    assert float(theirs.get("x1")) - chance == pytest.approx(0.1 * per_unit, abs=0.3)
    assert {"n = 420", "n = 1,420", "ours", "theirs"} <= {text.text for text in drawing.findall("text")}


def test_the_names_of_findings_are_written_whole_beside_their_intervals() -> None:
    rows = [Interval(label=called(name), value=0.9, low=0.8, high=1.0, n=12_345) for name in NAMES]
    drawing = svg(intervals(rows, title="AUROC", x_label="AUROC", caption="", low=0.5, high=1.0))
    assert {row.label for row in rows} <= {text.text for text in drawing.findall("text")}


def test_hostile_words_stay_words() -> None:
    drawn = [
        histogram([1.0], title=NASTY, unit=NASTY),
        tallies({NASTY: 1}, title=NASTY, caption=NASTY),
        curves({NASTY: ([1, 2], [1, 2])}, title=NASTY, x_label=NASTY, y_label=NASTY, caption=NASTY),
        intervals(
            [Interval(label=NASTY, value=1, low=0, high=2, n=1)], title=NASTY, x_label="", caption="", low=0, high=1
        ),
    ]
    assert not any("<script" in figure for figure in drawn)


def test_the_same_values_give_the_same_bytes() -> None:
    values = np.random.default_rng(0).normal(5, 1, 50)
    assert histogram(values, title="a") == histogram(values.copy(), title="a")
    assert tallies({"a": 1, "b": 1}, title="t") == tallies({"b": 1, "a": 1}, title="t")
