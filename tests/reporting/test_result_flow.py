from __future__ import annotations

from dataclasses import replace

import pytest
from inputs.pages import read_table
from inputs.sample_results import FINDINGS, SCANS
from inputs.sample_results import flow as sample_flow

from headct.reporting.flow import Stage
from headct.reporting.result_flow import Confusion, study_flow


def draw(**changes: object) -> str:
    shown = replace(sample_flow(), **changes)
    return study_flow(shown.stages, shown.splits, shown.findings, tested=shown.tested)


def test_the_flow_ends_in_findings_that_account_for_every_scan() -> None:
    html = draw()
    frame = read_table(html[html.index('<div class="table"') :]).set_index("Finding").astype(int)
    assert (frame["With"] + frame["Without"] + frame["Unknown"] == SCANS).all()
    assert (frame["Found"] + frame["Missed"] == frame["With"]).all()
    assert frame["With"].tolist() == [positives for _, positives in FINDINGS.values()]


def test_the_tested_split_is_said_not_only_framed() -> None:
    html = draw()
    assert "<b>420</b> test – evaluated here" in html
    assert "<b>480</b> train</li>" in html


def test_without_answers_there_are_counts_only() -> None:
    html = draw(findings=[replace(one, said=None) for one in sample_flow().findings])
    assert "Missed" not in html
    assert "Unknown" in html


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": [Stage("found", 10), Stage("labelled", 9)]}, "10 found less 0 are not 9 labelled"),
        ({"splits": {"train": 480, "test": SCANS}}, "900 in splits are not 1040 labelled"),
        ({"tested": "holdout"}, "holdout that was evaluated is not among train, validation, test"),
        ({"findings": [replace(sample_flow().findings[0], unknown=1)]}, "421 with, without or unknown are not 420"),
        (
            {
                "findings": [
                    replace(
                        sample_flow().findings[0],
                        said=Confusion(true_positive=1, false_negative=1, false_positive=43, true_negative=316),
                    )
                ]
            },
            "hits and misses are not the 61",
        ),
        (
            {
                "findings": [
                    replace(
                        sample_flow().findings[0],
                        said=Confusion(true_positive=61, false_negative=0, false_positive=0, true_negative=1),
                    )
                ]
            },
            "are not the 359 without",
        ),
    ],
)
def test_counts_must_add_up(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw(**changes)
