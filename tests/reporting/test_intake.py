from __future__ import annotations

import re

import pandas as pd
import pytest

from headct.reporting.intake import (
    FILES_NAMED,
    STEP_OF,
    STEPS,
    Intake,
    flow_of_files,
    rejections_by_reason,
    what_to_do,
    what_was_found,
)
from headct.scan import REASONS, Rejection


def intake(scans: dict[str, list[str]], rejections: list[Rejection]) -> Intake:
    """The three tables, from the files of each scan (all of one patient) and the rejections."""
    accepted = [(name, scan_id) for scan_id, names in scans.items() for name in names]
    refused = [(name, rejection.code) for rejection in rejections for name in rejection.files]
    return Intake(
        pd.DataFrame({"scan_id": list(scans), "patient_id": ["p"] * len(scans)}),
        pd.DataFrame([vars(rejection) for rejection in rejections], columns=["code", "sentence", "remedy", "files"]),
        pd.DataFrame(
            [(name, 1, outcome) for name, outcome in accepted + refused], columns=["path", "bytes", "outcome"]
        ),
    )


MIXED = intake(
    {"s1": ["a/1", "a/2", "a/3"], "s2": ["b/1"]},
    [
        Rejection.because("localizer", "ImageType says LOCALIZER", ("a/scout1", "a/scout2")),
        Rejection.because("localizer", "ImageType says LOCALIZER", ("b/scout",)),
        Rejection.because("damaged", "ends after 3 bytes", ("b/<script>alert(1)</script>", )),
        Rejection.because("no-head", "no ring of bone", tuple(f"c/{i}" for i in range(40))),
    ],
)  # fmt: skip


def test_every_reason_belongs_to_one_step() -> None:
    assert set(STEP_OF) == set(REASONS)
    assert set(STEP_OF.values()) == set(STEPS)


def test_the_first_sentences() -> None:
    first, rejected, sums = what_was_found(MIXED)
    assert first == "2 scans of 1 patient were accepted, from 48 files."
    assert "4 series or single files were rejected, most often as" in rejected
    assert ">localizer</a> (2)" in rejected
    assert sums == "Every file is accounted for: 4 are part of a scan and 44 are not, 48 together."


def test_nothing_accepted_and_nothing_rejected() -> None:
    assert what_was_found(intake({}, MIXED_REJECTIONS))[0] == "No scan was accepted, from 1 file."
    assert what_was_found(intake({"s": ["a"]}, []))[1] == "Nothing was rejected."
    assert rejections_by_reason(intake({"s": ["a"]}, [])) == "<p>Nothing was rejected.</p>"


MIXED_REJECTIONS = [Rejection.because("empty-file", "has no bytes", ("a",))]


def test_only_what_can_be_done_is_asked_for() -> None:
    asked = what_to_do(MIXED)
    assert [re.search(r">([\w-]+)</a>", step)[1] for step in asked] == ["damaged", "no-head"]
    assert "Copy it again from where it came." in asked[0]


def test_the_flow_counts_files_and_links_to_the_reasons() -> None:
    html = flow_of_files(MIXED)
    assert re.findall(r"<b>(\d+)</b> ([\w ]+)", html) == [
        ("48", "files found"),
        ("47", "readable"),
        ("44", "part of a CT volume"),
        ("44", "within the criteria"),
        ("4", "showing a head"),
        ("4", "in 2 accepted scans"),
    ]
    targets = set(re.findall(r'id="([\w-]+)"', rejections_by_reason(MIXED)))
    assert set(re.findall(r'href="#([\w-]+)"', html)) == targets


def test_every_rejection_has_its_row() -> None:
    html = rejections_by_reason(MIXED)
    rows = re.findall(r'<tr><th scope="row"', html)
    assert len(rows) == len(MIXED.rejections)
    for sentence in MIXED.rejections["sentence"]:
        assert sentence in html
    assert [html.index(f'id="rejected-{code}"') for code in ("localizer", "damaged", "no-head")] == sorted(
        html.index(f'id="rejected-{code}"') for code in ("localizer", "damaged", "no-head")
    )
    assert "2 rejections, 3 files" in html


def test_names_are_text_and_share_their_folder() -> None:
    html = rejections_by_reason(MIXED)
    assert "<script" not in html
    assert "b/&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<bdi>a/</bdi> <bdi>scout1</bdi>, <bdi>scout2</bdi>" in html


def test_long_lists_of_files_say_what_they_leave_out() -> None:
    assert f"and {40 - FILES_NAMED} more, named in rejections.parquet" in rejections_by_reason(MIXED)


def test_an_outcome_must_be_a_scan_or_a_code() -> None:
    files = pd.DataFrame({"path": ["a"], "bytes": [1], "outcome": ["lost"]})
    with pytest.raises(ValueError, match="lost"):
        Intake(MIXED.scans, MIXED.rejections, files)
