"""Oracles: Python's HTML parser for structure, and the contrast formula of WCAG 2.2 for the colours of page.css."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from importlib import resources
from itertools import pairwise

import pytest
from inputs.pages import Tags
from inputs.sample_results import predicted_scan, report

from headct.reporting.page import Provenance
from headct.reporting.result_scan import scan_page
from headct.reporting.results import Check, Report, sections

TEXT_CONTRAST, GRAPHIC_CONTRAST = 4.5, 3.0  # WCAG 2.2, 1.4.3 and 1.4.11


@cache
def pages() -> dict[str, str]:
    return {"report": report().page().html(), "scan": scan_page(predicted_scan(), Provenance(), virtual=True).html()}


@pytest.fixture(params=["report", "scan"])
def tags(request: pytest.FixtureRequest) -> Tags:
    return Tags(pages()[request.param])


def test_sections_follow_a_reader_who_doubts() -> None:
    assert [section.title for section in sections(report())] == [
        "Performance",
        "ROC and precision-recall",
        "Few examples",
        "Calibration",
        "Subgroups",
        "Transfer between sites",
        "Hits and misses",
        "Flow of scans",
        "Checks",
        "Published numbers",
        "Reporting checklists",
    ]


def test_what_was_not_done_has_no_section() -> None:
    bare = Report(title="Bare", answer=["Nothing was found."], metrics=[])
    assert [section.title for section in sections(bare)] == ["Performance", "Reporting checklists"]


def test_a_failed_check_is_said_in_words() -> None:
    failed = Check(name="Shuffled labels", expected="0.50", seen="0.71", passed=False)
    html = replace(report(), checks=[*report().checks, failed]).page().html()
    assert "1 check of 3 failed." in html
    assert "<b>failed</b>" in html


def test_a_report_is_small_and_its_bytes_repeat() -> None:
    assert len(pages()["report"]) < 400_000
    assert report().page().html() == pages()["report"]


def test_nothing_is_fetched(tags: Tags) -> None:
    addresses = [one["attrs"][name] for one in tags.tags for name in ("src", "href") if name in one["attrs"]]
    assert addresses
    assert all(address.startswith(("#", "data:image/")) for address in addresses)


def test_identifiers_are_unique_and_links_arrive(tags: Tags) -> None:
    identifiers = Counter(one["attrs"]["id"] for one in tags.tags if "id" in one["attrs"])
    assert max(identifiers.values()) == 1
    assert {one["attrs"]["href"][1:] for one in tags.named("a")} <= set(identifiers)
    assert {one["attrs"]["aria-labelledby"] for one in tags.named("section")} <= set(identifiers)


def test_headings_are_in_order_and_say_something(tags: Tags) -> None:
    headings = [one for one in tags.tags if re.fullmatch(r"h[1-6]", one["tag"])]
    levels = [int(one["tag"][1]) for one in headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(one["text"].strip() for one in headings)


def test_every_picture_and_drawing_has_words(tags: Tags) -> None:
    assert all(len(one["attrs"]["alt"]) > 20 for one in tags.named("img"))
    assert all(one["attrs"]["role"] == "img" for one in tags.named("svg"))
    for drawing in tags.named("svg"):
        parts = [one for one in tags.tags if one["inside"] == [*drawing["inside"], "svg"]]
        assert {"title", "desc"} <= {one["tag"] for one in parts}
    words = [one for one in tags.tags if one["tag"] in ("title", "desc") and "svg" in one["inside"]]
    assert all(one["text"].strip() for one in words)
    assert all(one["text"].strip() for one in tags.named("figcaption"))


def test_tables_have_captions_and_headers_with_scope(tags: Tags) -> None:
    assert len(tags.named("caption")) == len(tags.named("table"))
    assert all(one["attrs"].get("scope") in ("row", "col") for one in tags.named("th"))


def test_what_scrolls_is_reached_by_keyboard_and_named(tags: Tags) -> None:
    regions = [one for one in tags.tags if (one["attrs"].get("class") or "").split()[:1] == ["table"]]
    assert regions
    assert all(one["attrs"]["tabindex"] == "0" and one["attrs"]["aria-label"] for one in regions)
    labels = Counter(one["attrs"]["aria-label"] for one in regions)
    assert max(labels.values()) == 1


def test_the_page_of_virtual_patients_says_so_at_every_figure() -> None:
    assert all('<body class="virtual">' in html for html in pages().values())


def palettes() -> dict[str, dict[str, str]]:
    """The colours of page.css as light, dark (by the reader's setting and by choice) and print."""
    css = resources.files("headct.reporting").joinpath("page.css").read_text("utf-8")
    blocks = re.findall(r"\{([^{}]*--paper:[^{}]*)\}", css)
    light, dark, chosen, printed = (dict(re.findall(r"--(\w+): (#[0-9a-f]+)", block)) for block in blocks)
    return {"light": light, "dark": dark, "chosen": chosen, "print": printed}


def channels(colour: str) -> list[float]:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    return [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]


def mixed(colour: str, ground: str, share: float) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(channels(colour), channels(ground), strict=True)]


def contrast(one: list[float], other: list[float]) -> float:
    """The contrast ratio of WCAG 2.2 of two colours in sRGB, 1 to 21."""

    def luminance(colour: list[float]) -> float:
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_the_contrast_formula_knows_black_on_white() -> None:
    assert contrast(channels("#000"), channels("#ffffff")) == pytest.approx(21)
    assert contrast(channels("#767676"), channels("#fff")) == pytest.approx(4.54, abs=0.01)  # WCAG's known edge


@pytest.mark.parametrize("name", ["light", "dark", "chosen", "print"])
def test_text_and_marks_stand_out_from_their_ground(name: str) -> None:
    colours = palettes()[name]
    for text in ("ink", "mute", "accent"):
        for ground in ("paper", "wash"):
            assert contrast(channels(colours[text]), channels(colours[ground])) >= TEXT_CONTRAST, (text, ground)
    assert contrast(channels(colours["rest"]), channels(colours["paper"])) >= GRAPHIC_CONTRAST


@pytest.mark.parametrize("name", ["light", "dark", "chosen", "print"])
def test_numbers_stand_out_from_the_shading_of_a_transfer_matrix(name: str) -> None:
    colours = palettes()[name]
    css = resources.files("headct.reporting").joinpath("page.css").read_text("utf-8")
    shares = [int(share) / 100 for share in re.findall(r"\.transfer \.s\d .*?var\(--accent\) (\d+)%", css)]
    assert len(shares) == 5
    for share in shares:
        ground = mixed(colours["accent"], colours["paper"], share)
        assert contrast(channels(colours["ink"]), ground) >= TEXT_CONTRAST
