"""Oracles: places in the SVG read back by an XML parser, and the table read by Python's HTML parser."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from inputs.pages import read_table
from inputs.sample_results import forest as sample_forest
from inputs.sample_results import measured

from headct.reporting.measured import Measured
from headct.reporting.result_comparisons import Compared, by_finding, forest, transfer_matrix


def svg(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, re.DOTALL)[0])


def models() -> dict[str, list[Compared]]:
    return {
        "sdh": [
            Compared(model="ours", value=measured(0.9, 0.05, positives=61), ours=True),
            Compared(model="scratch", value=measured(0.7, 0.05, positives=61)),
        ],
        "sah": [Compared(model="ours", value=measured(0.8, 0.05, 300, 20), ours=True)],
    }


def test_dots_are_to_scale_and_the_axis_holds_chance() -> None:
    drawing = svg(by_finding("AUROC", models()))
    dots = [float(circle.get("cx")) for circle in drawing.findall("circle")]
    assert (dots[0] - dots[1]) / (dots[0] - dots[2]) == pytest.approx(2, abs=0.01)
    chance = {float(line.get("x1")) for line in drawing.findall("line") if line.get("class") == "chance"}
    assert len(chance) == 1
    assert dots[1] - chance.pop() == pytest.approx(dots[0] - dots[1], abs=0.2)


def test_each_finding_says_its_cases() -> None:
    figure = by_finding("AUROC", models())
    assert "n\u00a0=\u00a0420, 61\u00a0positive" in figure
    assert "n\u00a0=\u00a0300, 20\u00a0positive" in figure
    unlike = {"sdh": [*models()["sdh"], Compared(model="other", value=measured(0.6, 0.1, 10, 5))]}
    assert "cases differ" in by_finding("AUROC", unlike)


def test_ours_is_filled_and_baselines_are_open() -> None:
    kinds = [circle.get("class") for circle in svg(by_finding("AUROC", models())).findall("circle")]
    assert kinds == ["dot mark", "dot rest", "dot mark"]


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one model"):
        by_finding("AUROC", {})


def test_the_line_of_a_forest_lies_under_the_overall_dot() -> None:
    shown = sample_forest(0.93, 61)
    drawing = svg(forest("sdh", shown.overall, shown.groups))
    line = next(line for line in drawing.findall("line") if line.get("class") == "overall")
    assert float(line.get("x1")) == float(drawing.findall("circle")[0].get("cx"))
    count = 1 + sum(len(subgroups) for subgroups in shown.groups.values())
    assert len(drawing.findall("circle")) == count


def test_a_forest_says_cases_and_differences() -> None:
    shown = sample_forest(0.93, 61)
    figure = forest("sdh", shown.overall, shown.groups)
    words = [text.text for text in svg(figure).findall("text")]
    assert "30 of 210 positive" in words
    assert "+0.03 (-0.03 to +0.09)" in words
    assert "difference -0.050 (-0.110 to +0.010)" in svg(figure).find("desc").text


def test_a_subgroup_without_an_interval_is_a_dot_alone() -> None:
    lone = Measured(value=0.9, low=np.nan, high=np.nan, n=4, positives=2)
    drawing = svg(forest("sdh", lone, {}))
    assert not [line for line in drawing.findall("line") if line.get("class").startswith("curve")]


def test_a_transfer_matrix_holds_its_numbers_and_shades_by_them() -> None:
    values = {("a", "a"): measured(0.95, 0.02, 90, 9), ("a", "b"): measured(0.7, 0.05), ("b", "b"): measured(0.45, 0.1)}
    html = transfer_matrix("sdh", values)
    frame = read_table(html).set_index("trained \\ tested")
    assert frame.columns.tolist() == ["a", "b"]
    assert frame.loc["a", "a"] == "0.950 0.930 to 0.966 n = 90, 9 positive"
    assert frame.loc["b", "a"] == "–"
    assert re.findall(r'<td class="s(\d)( same)?"', html) == [("5", " same"), ("2", ""), ("0", " same")]
    assert html.count('scope="row"') == 2
    assert html.count('scope="col"') == 3


def test_hostile_names_stay_words() -> None:
    nasty = "<script>"
    drawn = [
        by_finding(nasty, {nasty: [Compared(model=nasty, value=measured(0.7, 0.1))]}),
        forest(nasty, measured(0.7, 0.1), {nasty: []}),
        transfer_matrix(nasty, {(nasty, nasty): measured(0.7, 0.1)}),
    ]
    assert not any("<script" in one for one in drawn)
