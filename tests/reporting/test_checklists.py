"""Oracle: the numbers of items that the publications state (44; 27; 40), and their runs of parts."""

from __future__ import annotations

import re

import pytest
from inputs.pages import Tags

from headct.reporting.checklists.checklist import CHECKLISTS, RECORD, filled, load, summary

RECORDED = {"disjoint": "Splits are disjoint by patient.", "metrics": "AUROC and others."}


@pytest.mark.parametrize(
    ("name", "items", "parts"),
    [
        ("claim_2024", 44, {}),
        ("tripod_ai", 27, {3: 3, 5: 2, 6: 3, 8: 3, 9: 3, 12: 7, 18: 6, 20: 3, 23: 2, 27: 3}),
        ("stard_ai", 40, {15: 4, 16: 3, 17: 2, 26: 2, 40: 2}),
    ],
)
def test_every_item_stands_once_and_in_order(name: str, items: int, parts: dict[int, int]) -> None:
    expected = [
        f"{number}{letter}"
        for number in range(1, items + 1)
        for letter in ("abcdefg"[: parts[number]] if number in parts else [""])
    ]
    assert [item.number for item in load(name).items] == expected


@pytest.mark.parametrize("name", CHECKLISTS)
def test_each_item_asks_something_in_a_section_and_the_source_is_named(name: str) -> None:
    listed = load(name)
    assert all(item.asks and item.section for item in listed.items)
    assert "doi:10." in listed.citation
    assert "No text of it is reproduced" in listed.licence
    assert "were not compared with the publisher's page" in listed.checked


def test_every_key_of_a_record_answers_some_item() -> None:
    asked = {item.record for name in CHECKLISTS for item in load(name).items} - {""}
    assert asked == set(RECORD)


def test_what_only_people_know_is_never_asked_of_a_run() -> None:
    people = re.compile(r"funding|ethical approval|conflicts|registration|commercial interests|aims")
    for name in CHECKLISTS:
        assert not [item for item in load(name).items if people.search(item.asks) and item.record]


@pytest.mark.parametrize("name", CHECKLISTS)
def test_an_item_is_answered_unrecorded_or_the_author_s(name: str) -> None:
    listed = load(name)
    parts = [listed.answered(RECORDED), listed.unrecorded(RECORDED), listed.for_the_author]
    assert sorted(item.number for part in parts for item in part) == sorted(item.number for item in listed.items)


def test_the_page_holds_answers_and_names_what_is_open() -> None:
    html = filled(RECORDED, ["claim_2024"])
    assert "Splits are disjoint by patient." in html
    assert "2 of 44 items answered from this run" in html
    rows = {one["text"][:2].strip(): one["text"] for one in Tags(html).named("tr")}
    assert "only the author can say" in rows["44"]
    assert "not recorded by this run" in rows["23"]
    opened = next(one["text"] for one in Tags(html).named("p") if one["text"].startswith("Only the author can say"))
    assert "44: funding" in opened


def test_the_summary_counts() -> None:
    assert summary(RECORDED).startswith("This run answers 2 of 44 of CLAIM 2024, ")


def test_a_slip_of_the_pen_loses_no_answer() -> None:
    with pytest.raises(ValueError, match="disjointed"):
        filled({"disjointed": "yes"})


def test_hostile_answers_stay_words() -> None:
    assert "<script" not in filled({"software": "<script>"})
