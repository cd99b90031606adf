from __future__ import annotations

import re

import pandas as pd
import pytest
from markupsafe import Markup

from headct.reporting.tables import BROAD, LONG, Column, pairs, table


def test_numbers_share_their_decimals_and_the_unit_stands_in_the_header() -> None:
    frame = pd.DataFrame({"scan": ["a", "b"], "gap": [5, 0.625]})
    html = table(
        frame, [Column(key="scan", header="Scan"), Column(key="gap", header="Gap", unit="mm", decimals=2)], "Gaps"
    )
    assert re.findall(r'<td class="number">(.*?)</td>', html) == ["5.00", "0.62"]
    assert '<th scope="col" class="number">Gap <span class="unit">mm</span></th>' in html
    assert html.count('<th scope="row">') == 2
    assert "<caption>Gaps</caption>" in html


def test_hostile_cells_stay_text() -> None:
    frame = pd.DataFrame({"name": ["<script>alert(1)</script>", "a\u202eb", None]})
    html = table(frame, [Column(key="name", header="<b>")], '"<i>')
    assert "<script" not in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert re.findall(r'<th scope="row">(.*?)</th>', html)[1:] == ["a\\u202eb", "–"]


def test_a_cell_may_be_written_by_its_column() -> None:
    frame = pd.DataFrame({"flags": [["tilt", "<uneven>"]]})
    written = Column(key="flags", header="Flags", write=", ".join)
    assert "tilt, &lt;uneven&gt;" in table(frame, [written], "")
    assert "<i>x</i>" in table(frame, [Column(key="flags", header="", write=lambda _: Markup("<i>x</i>"))], "")


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(KeyError, match="gap"):
        table(pd.DataFrame({"a": [1]}), [Column(key="gap", header="Gap")], "")


def test_large_tables_are_marked_for_screen_and_paper() -> None:
    columns = [Column(key="a", header="A")] * (BROAD + 1)
    assert 'class="table long broad"' in table(pd.DataFrame({"a": [0] * (LONG + 1)}), columns, "")
    assert 'class="table"' in table(pd.DataFrame({"a": [0]}), columns[:2], "")


def test_pairs_keep_their_order_and_are_escaped() -> None:
    html = pairs({"b": "<script>", "a": 1}, "Settings")
    assert re.findall(r"<td>(.*?)</td>", html) == ["&lt;script&gt;", "1"]
