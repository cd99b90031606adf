"""Monitors stop a run that has collapsed or diverged, name why, and leave a healthy one alone."""

from __future__ import annotations

import pytest

from headct.failure import Failure
from headct.pretraining.monitors import Monitors

HEALTHY = {"loss": 5.0, "entropy": 0.7, "used": 0.9, "spread": 0.3}


def steps_until_stopped(values: dict[str, float], *, warm: int = 5, patience: int = 3) -> tuple[int, str]:
    monitors = Monitors(warm=warm, patience=patience)
    for step in range(50):
        if why := monitors.see(step, values, lambda: ["a"]):
            return step, why
    return -1, ""


def test_a_healthy_run_goes_on() -> None:
    assert steps_until_stopped(HEALTHY) == (-1, "")


@pytest.mark.parametrize(
    ("sign", "message"),
    [
        ({"entropy": 1.0}, "uniform"),
        ({"used": 0.0}, "same prototype"),
        ({"spread": 0.0}, "same vector"),
        ({"rank": 1.0}, "targets differ along one line"),
        ({"dimensions": 1.0}, "vectors of scans differ along one line"),
        ({"changed": 0.0}, "no skull encloses"),
        ({"target_spread": 0.0}, "same everywhere"),
    ],
)
def test_a_collapse_stops_the_run_after_its_patience(sign: dict[str, float], message: str) -> None:
    step, why = steps_until_stopped({**HEALTHY, **sign})
    assert step == 5 + 3 - 1
    assert message in why


def test_a_sign_that_passes_does_not_count() -> None:
    monitors = Monitors(warm=0, patience=3)
    stops = [monitors.see(step, {**HEALTHY, "spread": 0.0 if step % 3 else 0.3}, lambda: ["a"]) for step in range(30)]
    assert not any(stops)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_fails_with_the_scans_in_sight(number: float) -> None:
    with pytest.raises(Failure, match=r"loss was not a finite number at step 7, on scans a, b"):
        Monitors(warm=0).see(7, {**HEALTHY, "loss": number}, lambda: ["a", "b"])


def test_each_of_several_objectives_is_watched_by_itself() -> None:
    values = {"loss": 5.0, "dino/spread": 0.3, "rescan/spread": 0.0}
    step, why = steps_until_stopped(values)
    assert step == 5 + 3 - 1
    assert why.startswith("collapsed (rescan): every scan gets the same vector")
