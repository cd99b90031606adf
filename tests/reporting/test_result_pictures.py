from __future__ import annotations

import re

import pytest
from inputs.sample_results import example, head

from headct.preparing import windows as prepared
from headct.reporting.findings import BONE, BRAIN, SUBDURAL, called, windows
from headct.reporting.result_pictures import Shown, hits_and_misses, slices


def test_windows_are_those_that_encoders_see() -> None:
    assert {window.name: (window.level_hu, window.width_hu) for window in (BRAIN, SUBDURAL, BONE)} == dict(
        prepared.WINDOWS
    )


def test_blood_is_shown_in_two_windows_and_fractures_in_bone() -> None:
    assert [window.name for window in windows("sdh")] == ["brain", "subdural"]
    assert [window.name for window in windows("fracture")] == ["bone"]
    assert [window.name for window in windows("tumor")] == ["brain"]
    assert called("sdh") == "subdural hematoma"
    assert called("a finding of theirs") == "a finding of theirs"


@pytest.mark.parametrize(
    ("probability", "truth", "outcome"),
    [(0.31, True, "hit"), (0.31, False, "false alarm"), (0.3, True, "miss"), (0.3, False, "cleared")],
)
def test_yes_is_said_from_the_threshold_on(probability: float, truth: bool, outcome: str) -> None:
    assert example(probability, truth).outcome == outcome


def test_errors_come_first_and_each_says_probability_and_truth() -> None:
    html = hits_and_misses([example(0.93, True), example(0.12, True), example(0.77, False)])
    assert re.findall(r"<h3>(.*?)</h3>", html) == ["Misses", "False alarms", "Hits"]
    assert "probability 0.12, said no at 0.31; truth: present." in html
    assert "probability 0.77, said yes at 0.31; truth: absent." in html


def test_every_picture_says_its_window_its_slice_and_its_sides() -> None:
    html = hits_and_misses([example(0.12, True)])
    alts = re.findall(r'alt="([^"]*)"', html)
    assert len(alts) == 6
    assert alts[0] == "axial slice of virtual-0012 (miss), slice 9 of 24, brain window, level 40, width 80 HU"
    assert html.count("<figcaption>subdural 80/200</figcaption>") == 3
    assert re.findall(r"<b>(\w)</b><b>(\w)</b>", html) == [("R", "L")] * 6
    assert len(set(re.findall(r'width="(\d+)" height="(\d+)"', html))) == 1  # one scale


def test_weights_are_written() -> None:
    html = slices(head(), (2, 2, 5), [Shown(index=3, weight=0.412)], BRAIN, subject="scan")
    assert "slice 4 of 24, weight 0.41" in html


@pytest.mark.parametrize("index", [-1, 24])
def test_a_slice_that_is_not_there_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match=f"slice {index} of scan does not exist: there are 24"):
        slices(head(), (2, 2, 5), [Shown(index=index)], BRAIN, subject="scan")
