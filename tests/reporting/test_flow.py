from __future__ import annotations

import re

import pytest

from headct.reporting.flow import Loss, Stage, flow


def test_each_loss_is_counted_and_linked() -> None:
    html = flow([Stage("found", 1200), Stage("read", 1190, (Loss("empty", 3), Loss("damaged", 7, "why")))], "file")
    assert re.findall(r"<b>([\d,]+)</b>", html) == ["1,200", "1,190"]
    assert "10 files left out" in html
    assert '7 <a href="#why">damaged</a>' in html
    assert html.index("damaged") < html.index("empty")  # most first


def test_counts_must_add_up() -> None:
    with pytest.raises(ValueError, match="10 found less 3 are not 6 read"):
        flow([Stage("found", 10), Stage("read", 6, (Loss("empty", 3),))], "file")


def test_a_step_that_loses_none_says_so() -> None:
    assert "none left out" in flow([Stage("found", 1), Stage("read", 1)], "file")


def test_hostile_reasons_stay_words() -> None:
    assert "<script" not in flow([Stage("<script>", 1), Stage("b", 0, (Loss("<script>", 1, '"><script>'),))], "file")
