from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup

from headct.reporting.words import NOT_STATED, count, is_missing, joined, number, short_number, tick_number, visible


def test_what_cannot_be_seen_is_written_out() -> None:
    assert visible("a\u202egpj.exe") == "a\\u202egpj.exe"
    assert visible("a\nb\x00c") == "a\\x0ab\\x00c"
    assert visible("undecodable \udcff") == "undecodable \\udcff"


def test_what_can_be_seen_stays() -> None:
    assert visible("Schädel <1> 頭部.dcm") == "Schädel <1> 頭部.dcm"


def test_count_agrees_in_number() -> None:
    assert [count(n, "file") for n in (0, 1, 1200)] == ["0 files", "1 file", "1,200 files"]
    assert count(2, "series or file", "series or files") == "2 series or files"


@pytest.mark.parametrize("value", [None, "", float("nan"), np.float64("nan"), pd.NA, pd.NaT])
def test_missing_values(value: object) -> None:
    assert is_missing(value)
    assert number(value, 2) == NOT_STATED


@pytest.mark.parametrize("value", [0, 0.0, False, "0", np.int64(0)])
def test_zero_is_not_missing(value: object) -> None:
    assert not is_missing(value)


def test_numbers_keep_their_decimals_and_lose_the_sign_of_zero() -> None:
    assert [number(v, 2) for v in (1, -1.5, -0.001, np.float32(0.488))] == ["1.00", "-1.50", "0.00", "0.49"]
    assert [tick_number(v) for v in (0.0, 0.5, 20.0, 1e-5)] == ["0", "0.5", "20", "1e-05"]
    assert [short_number(v) for v in (0.48843, 12345.6)] == ["0.4884", "12,346"]


def test_joined_escapes_what_is_not_markup() -> None:
    assert joined(["a"]) == "a"
    assert joined(["<a>", Markup("<b>x</b>"), "c"]) == "&lt;a&gt;, <b>x</b> and c"
