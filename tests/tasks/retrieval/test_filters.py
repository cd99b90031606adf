"""Conditions as they are typed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from headct.failure import Misuse
from headct.tasks.retrieval import Condition, kept

SCANS = pd.DataFrame(
    {
        "manufacturer": ["SIEMENS", "GE MEDICAL SYSTEMS", "Siemens", None],
        "model": ["Force", "Revolution", "", "Force"],
        "kernel": ["Hr40", "STANDARD", "Hr68", ""],
        "thickness_mm": [1.0, 5.0, np.nan, 2.5],
        "tilt_deg": [0.0, -18.0, 4.0, 0.0],
        "age": [80.0, 61.0, 33.0, np.nan],
        "sex": ["F", "M", "F", ""],
        "contrast": pd.array([True, False, None, False], dtype="object"),
        "slices": pd.array([30, 40, 200, 30], dtype="int32"),
    }
)


@pytest.mark.parametrize(
    ("conditions", "rows"),
    [
        (["thickness_mm<=2.5"], [0, 3]),
        (["thickness <= 2.5"], [0, 3]),
        (["thickness_mm=5|1"], [0, 1]),
        (["thickness_mm!=5"], [0, 3]),
        (["age>60", "sex=F"], [0]),
        (["sex=f"], [0, 2]),
        (["sex!=F"], [1]),
        (["kernel~hr*"], [0, 2]),
        (["kernel~Hr4*|ST*"], [0, 1]),
        (["scanner=siemens"], [0, 2]),
        (["scanner=force"], [0, 3]),
        (["scanner!=force"], [1]),  # row 2 states no model, and what is not stated meets no condition
        (["scanner~ge*"], [1]),
        (["tilt<0"], [1]),
        (["contrast=yes"], [0]),
        (["contrast=no"], [1, 3]),
        (["slices>=40"], [1, 2]),
        ([], [0, 1, 2, 3]),
    ],
)
def test_what_they_choose(conditions: list[str], rows: list[int]) -> None:
    assert kept(SCANS, [Condition.of(text) for text in conditions]).tolist() == rows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("thickness", "'thickness' is no condition"),
        ("age>", "'age>' is no condition"),
        ("kernal=H30", "no column 'kernal' to choose scans by"),
        ("age>60|70", "several values after >"),
    ],
)
def test_what_is_no_condition(text: str, says: str) -> None:
    with pytest.raises(Misuse, match=says.replace("|", r"\|")):
        Condition.of(text)


@pytest.mark.parametrize(
    ("conditions", "says", "why"),
    [
        (["age>90"], "no scan meets 'age>90'", "age lies in 33 to 80, not stated for 1"),
        (["kernel=soft"], "no scan meets 'kernel=soft'", "kernel is Hr40, STANDARD, Hr68, not stated for 1"),
        (["sex=M", "thickness<2"], "no scan meets 'thickness<2' among the 1 that meet the others", "thickness_mm lies"),
        (["age~old"], "'age~old' does not fit age, which holds numbers", ""),
        (["age=old"], "'age=old' does not fit age, which holds numbers", ""),
        (["sex<3"], "asks for an order, and sex holds words", ""),
    ],
)
def test_what_leaves_nothing_says_what_there_is(conditions: list[str], says: str, why: str) -> None:
    with pytest.raises(Misuse) as caught:
        kept(SCANS, [Condition.of(text) for text in conditions])
    assert says in caught.value.what
    assert why in caught.value.why
