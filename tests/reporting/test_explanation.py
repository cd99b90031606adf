"""Pictures whose colours and places are known, and the words of the page."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from PIL import Image

from headct.reporting.explanation import (
    AMBER,
    CYAN,
    ExplainedScan,
    Finding,
    Shown,
    explanation_page,
    outline,
    overlay_png,
    tint,
)
from headct.reporting.page import Provenance

SHAPE = (20, 24, 16)
SHARES = (0.0, 0.5, 1.0)


def shown(method: str, verdict: str, faults: tuple[str, ...] = (), **more: Any) -> Shown:
    values = np.zeros(SHAPE, np.float32)
    values[4, 6, 8] = 1  # towards the patient's left, and behind
    line = np.array([2.0, 1.0, 0.0])
    told: dict[str, Any] = {"areas": (0.5, 1.5), "chances": (0.05, 0.05), "alike": 0.1, **more}
    return Shown(
        method=method, values=values, peak=(4, 6, 8), verdict=verdict, faults=faults,
        deletion=line, insertion=line[::-1], **told,
    )  # fmt: skip


def scan(*maps: Shown, name: str = "iph", mask: np.ndarray | None = None) -> ExplainedScan:
    random = (np.array([2.0, 1.5, 0.0]), np.array([0.0, 0.5, 2.0]))
    return ExplainedScan(
        scan_id="<scan>",
        array=np.full(SHAPE, 40, np.int16),
        spacing_mm=(1.0, 1.0, 1.0),
        slices=list(range(SHAPE[2])),
        findings=[Finding(name=name, probability=0.9, maps=maps, random=random, mask=mask)],
        shares=SHARES,
        left_out={"rollout": "there is no attention"},
        near_mm=5.0,
        meanings={"occlusion": "what is lost", "rollout": "what flows"},
    )


def test_a_map_hides_less_than_half_of_what_is_under_it() -> None:
    layer = tint(np.array([[-1.0, 0.0, 1.0, 2.0]]), 2.0)
    assert layer[0, :, 3].tolist() == [0, 0, 51, 102]
    assert (layer[..., :3] == AMBER).all()
    assert not tint(np.zeros((2, 2)), 0.0)[..., 3].any()


def test_an_outline_is_the_border_of_a_mask() -> None:
    mask = np.zeros((8, 8))
    mask[2:6, 2:6] = 1
    line = outline(mask)
    assert (line[..., 3] > 0).sum() == 12
    assert line[2, 2].tolist() == [*CYAN, 255]
    assert not line[3:5, 3:5].any()


def test_the_picture_shows_the_peak_where_the_patient_has_it() -> None:
    """Seen from the feet, the patient's left is on the right of the picture; behind is below."""
    one = shown("occlusion", "passes")
    with Image.open(io.BytesIO(overlay_png(scan(one), scan(one).findings[0], one))) as picture:
        pixels = np.asarray(picture).astype(int)
    axial = pixels[: SHAPE[1], : SHAPE[0]]
    coloured = np.argwhere(axial[..., 0] - axial[..., 2] > 20)
    assert coloured.tolist() == [[SHAPE[1] - 1 - 6, SHAPE[0] - 1 - 4]]


def test_the_page_says_what_passed_what_failed_and_why() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[4, 6, 8] = True
    beside = {"hit": False, "hit_by_chance": 0.01, "overlap": 0.0, "overlap_by_chance": 0.002}
    fails = shown("gradients", "fails", ("random weights draw much the same map",), **beside)
    page = explanation_page(
        scan(shown("occlusion", "passes", **beside | {"hit": True}), fails, mask=mask), Provenance()
    )
    html = page.html()
    assert "Of 2 maps that had something to explain, 1 passed all checks." in html
    assert "Passed: intraparenchymal hemorrhage by occlusion." in html
    assert "Failed, and not to be believed:</b> intraparenchymal hemorrhage by gradients." in html
    assert "<li>Intraparenchymal hemorrhage by gradients: random weights draw much the same map.</li>" in html
    assert "<li>Rollout: there is no attention.</li>" in html
    assert "what flows" not in html  # no map is by that method
    assert re.findall(r"<td>((?:yes|no) \(0\.01\))</td>", html) == ["yes (0.01)", "no (0.01)"]
    assert "&lt;scan&gt;" in html
    assert "<scan>" not in html


def test_slices_are_a_group_of_buttons_that_needs_no_script() -> None:
    html = explanation_page(scan(shown("occlusion", "passes")), Provenance()).html()
    buttons = re.findall(r'<input type="radio" name="slice-iph" aria-label="slice (\d+) of 16"( checked)?>', html)
    assert [int(number) for number, _ in buttons] == list(range(1, 17))
    assert [number for number, on in buttons if on] == ["9"]  # that of the peak
    assert html.count('<img class="heat m1"') == 16
    assert html.count('<img class="view w1"') == 16  # blood is looked for in the subdural window too
    assert (
        '<img class="view w1"'
        not in explanation_page(scan(shown("occlusion", "fails"), name="tumor"), Provenance()).html()
    )


def test_where_nothing_can_be_explained_the_page_says_so() -> None:
    html = explanation_page(scan(shown("occlusion", "nothing to explain")), Provenance()).html()
    assert "No score rests on anything in this head, so no map explains it." in html
    assert "Peak at lesion" not in html


def test_what_is_unproven_is_said() -> None:
    html = explanation_page(scan(shown("occlusion", "unproven")), Provenance()).html()
    assert "Unproven, as weights at random cannot be asked or say the same of every head" in html
