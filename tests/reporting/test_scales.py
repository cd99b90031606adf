"""Oracle: the definition of a bin and of a scale, on values that hypothesis invents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headct.reporting.scales import edges, linear, logarithmic, nice_step

values = st.lists(st.floats(-1e4, 1e4).map(lambda v: round(v, 3)), min_size=1, max_size=30).map(np.array)


@given(values)
def test_bins_hold_every_value_and_their_lower_edge(some: np.ndarray) -> None:
    bins = edges(some)
    assert bins[0] <= some.min()
    assert bins[-1] > some.max()
    assert len(bins) <= 18
    assert np.all(np.diff(bins) > 0)


def test_a_value_on_an_edge_belongs_to_the_bin_that_begins_there() -> None:
    bins = edges(np.array([0.625, 1.0, 2.5, 5.0]))
    assert bins[np.searchsorted(bins, 5.0, side="right") - 1] == 5.0


def test_a_share_ends_at_its_highest_value() -> None:
    assert edges(np.array([92.0, 100.0]), highest=100)[-1] == 100
    assert edges(np.array([100.0]), highest=100).tolist() == [99, 100]


@pytest.mark.parametrize(("span", "parts", "step"), [(1, 5, 0.2), (7, 5, 2), (100, 4, 25), (0, 5, 1), (3e-5, 5, 1e-5)])
def test_nice_steps(span: float, parts: int, step: float) -> None:
    assert nice_step(span, parts) == pytest.approx(step)


@given(st.floats(-1e3, 1e3), st.floats(0.01, 1e3))
def test_a_linear_axis_holds_its_ends_and_keeps_proportions(low: float, span: float) -> None:
    axis = linear(low, low + span, 10, 110)
    assert axis.low <= low + 1e-6
    assert axis.high >= low + span - 1e-6
    middle = (axis.low + axis.high) / 2
    assert axis.at(axis.low) == 10
    assert axis.at(axis.high) == pytest.approx(110)
    assert axis.at(middle) == pytest.approx(60)


@given(st.floats(1e-6, 1e5), st.floats(1, 1e6))
def test_a_logarithmic_axis_gives_equal_ratios_equal_lengths(low: float, ratio: float) -> None:
    axis = logarithmic(low, low * ratio, 0, 100)
    assert axis.low <= low * (1 + 1e-6)
    assert axis.high >= low * ratio * (1 - 1e-6)
    middle = float(np.sqrt(axis.low * axis.high))
    assert axis.at(middle) == pytest.approx(50, abs=1e-6)


def test_a_logarithmic_axis_cannot_begin_at_zero() -> None:
    with pytest.raises(ValueError, match="above zero"):
        logarithmic(0, 1, 0, 1)
