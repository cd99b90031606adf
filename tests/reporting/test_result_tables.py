"""Oracle: Python's own HTML parser."""

from __future__ import annotations

import re

import pytest
from inputs.pages import read_table
from inputs.sample_results import FINDINGS, measured, metric_rows

from headct.reporting.result_tables import (
    ComparedRow,
    MetricRow,
    Published,
    beside_published,
    comparison_table,
    metrics_table,
)


def test_a_table_of_metrics_reads_back() -> None:
    frame = read_table(metrics_table(metric_rows(), "Metrics"))
    assert frame["n scans"].tolist() == ["420"] * 4
    assert frame["Positives scans"].tolist() == [str(positives) for _, positives in FINDINGS.values()]
    assert frame["AUROC"].tolist()[0] == "0.930 (0.890 to 0.962)"


def test_metrics_sort_as_numbers() -> None:
    html = metrics_table(metric_rows(), "Metrics")
    cells = re.findall(r'<td class="number">([^<]*)</td>', html)
    assert all(re.match(r"-?\d+(\.\d+)?( \(|$)", cell) for cell in cells)  # what the page's parseFloat reads
    assert '<th scope="col" class="number">AUROC</th>' in html


def test_a_metric_that_a_row_lacks_is_a_dash() -> None:
    rows = [
        MetricRow(finding="a", n=1, positives=1, prevalence=1, metrics={"AUROC": measured(0.5, 0.1)}),
        MetricRow(finding="b", n=1, positives=0, prevalence=0, model="ours"),
    ]
    frame = read_table(metrics_table(rows, "Metrics"))
    assert frame["AUROC"].tolist() == ["0.500 (0.400 to 0.580)", "–"]
    assert frame["Model"].tolist()[1] == "ours"


def test_differences_carry_their_sign_and_small_p_are_only_small() -> None:
    rows = [
        ComparedRow(finding="sdh", ours="a", theirs="b", difference=measured(0.1, 0.05), p=0.0002, p_corrected=0.04),
        ComparedRow(finding="sah", ours="a", theirs="b", difference=measured(-0.1, 0.05)),
    ]
    html = comparison_table(rows, "Differences")
    assert "+0.100 (+0.050 to +0.140)" in html
    assert re.findall(r'<td class="number">([^<]*)</td>', html)[3:5] == ["&lt;0.001", "0.040"]
    assert "-0.100 (-0.150 to -0.060)" in html


def test_published_numbers_never_stand_without_the_sentence() -> None:
    row = Published(finding="sdh", measure="AUROC", theirs="0.95", source="<A study>", ours=measured(0.9, 0.1, 420, 61))
    html = beside_published([row], "other scans.")
    assert "Not comparable: other scans." in html
    assert html.index("Not comparable") < html.index("0.95")
    assert "&lt;A study&gt;" in html
    with pytest.raises(ValueError, match="why they are not comparable"):
        beside_published([row], " ")
