from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from inputs.sample_results import predicted_scan

from headct.reporting.drawing import LETTER, WIDTH
from headct.reporting.findings import NAMES, called
from headct.reporting.page import Provenance
from headct.reporting.result_scan import Familiarity, Found, PredictedScan, probabilities, scan_page


def html(scan: PredictedScan) -> str:
    return scan_page(scan, Provenance()).html()


def test_the_answer_names_the_positive_findings_most_probable_first() -> None:
    page = html(replace(predicted_scan(), findings=predicted_scan().findings[::-1]))
    assert "The detector says yes to 2 of 4 findings: subdural hematoma (0.91) and mass effect (0.41)." in page
    assert "so that the answer might be the other: mass effect." in page


def test_no_finding_is_an_answer_too() -> None:
    page = html(replace(predicted_scan(), findings=predicted_scan().findings[2:]))
    assert "The detector says no to all 2 findings." in page
    assert "No finding with a positive answer names its slices." in page


def test_whose_scan_it_is_and_what_it_was_read_from_is_said() -> None:
    assert "Read from" not in html(predicted_scan())
    files = ("<b>/0001.dcm", "<b>/0002.dcm", "<b>/0003.dcm")
    page = html(replace(predicted_scan(), patient_id="a-17", files=files))
    assert "Patient a-17. Read from &lt;b&gt;/0001.dcm and 2 more files." in page
    assert "Patient" not in html(replace(predicted_scan(), patient_id="head.nii.gz", files=("head.nii.gz",)))


def test_reasons_to_doubt_stand_before_the_numbers() -> None:
    page = html(predicted_scan())
    assert page.index("unlike the scans the detector was trained on; the kernel is sharper") < page.index("<table")
    calm = html(
        replace(predicted_scan(), reasons=(), familiarity=Familiarity(distance=1.0, nearer=0.4, usual=2.0, share=0.99))
    )
    assert "Nothing about this scan speaks against" in calm
    assert "No farther than usual: 1 from the middle of the training scans; 40 % of validation scans lie nearer" in calm


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(0.4, 0.6, "yes"), (0.2, 0.6, "yes, close"), (0.1, 0.25, "no"), (0.1, 0.31, "no, close")],
)
def test_an_answer_is_close_where_the_interval_holds_the_operating_point(low: float, high: float, answer: str) -> None:
    probability = 0.5 if answer.startswith("yes") else 0.2
    assert Found(finding="sdh", probability=probability, low=low, high=high, threshold=0.31).answer == answer


def test_probabilities_are_drawn_on_an_axis_from_0_to_1() -> None:
    findings = predicted_scan().findings
    drawing = ElementTree.fromstring(re.search(r"<svg.*</svg>", probabilities(findings), re.DOTALL)[0])
    dots = [float(circle.get("cx")) for circle in drawing.findall("circle")]
    bars = [float(line.get("x1")) for line in drawing.findall("line") if line.get("class") == "whisker"]
    per_unit = (dots[0] - dots[3]) / (0.91 - 0.02)
    assert bars[0] - dots[3] == pytest.approx((0.31 - 0.02) * per_unit, abs=0.15)
    assert "subdural hematoma 0.91 (0.84 to 0.96), yes" in drawing.find("desc").text


@pytest.mark.parametrize("answer", [0.1, 0.5])
def test_names_are_whole_and_fit(answer: float) -> None:
    """The longest name that findings have here, and a user's own that no phone could hold in one line."""
    findings = [
        Found(finding=name, probability=answer, low=0.05, high=0.6, threshold=0.3) for name in (*NAMES, "x" * 90)
    ]
    drawing = ElementTree.fromstring(re.search(r"<svg.*</svg>", probabilities(findings), re.DOTALL)[0])
    words = [text.text for text in drawing.findall("text")]
    assert {called(name) for name in NAMES} <= set(words)
    answers = [word for word in words if word.endswith(", close")]
    assert len(answers) == len(findings)
    longest = max((word for word in words if word not in answers), key=len)
    assert longest.endswith("x…")
    assert LETTER * (len(longest) + len(answers[0])) < WIDTH


def test_slices_of_positive_findings_are_shown_with_their_weights() -> None:
    page = html(predicted_scan())
    assert page.count("weight 0.41") == 3  # two windows of the hematoma, one of mass effect
    assert "<h3>Subdural hematoma, 0.91</h3>" in page
    assert "Subarachnoid hemorrhage, 0.08" not in page


def test_hostile_words_stay_words() -> None:
    nasty = "<script>x</script>"
    scan = replace(predicted_scan(), scan_id=nasty, reasons=[nasty])
    assert html(scan).count("<script>") == 1  # the page's own
