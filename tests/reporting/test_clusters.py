"""What the page of a map says first."""

from __future__ import annotations

import pytest

from headct.reporting.clusters import Told, _answer
from headct.reporting.measured import Measured


def told(name: str, low: float) -> Told:
    return Told(
        name=name,
        classes={"a": 20, "b": 20},
        auroc=Measured(value=low + 0.1, low=low, high=low + 0.2, n=40),
        accuracy=Measured(value=0.6, low=0.5, high=0.7, n=40),
        commonest=0.5,
        left_out=0,
    )


@pytest.mark.parametrize(
    ("low", "says"), [(0.7, "can be read from the features"), (0.33, "is not shown to be readable")]
)
def test_a_leak_is_claimed_only_where_its_interval_shows_one(low: float, says: str) -> None:
    assert says in _answer([told("scanner model", low)], [])[0]
