"""Schedules. Oracle: the published FM-HCT tables (`schedules.npz`; tolerance 1e-9 relative, from its manifest)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from headct.pretraining.schedules import cosine, ramp, warm_cosine


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "fixtures" / "fm-hct" / "schedules.npz"))


def test_momentum_and_decay_equal_the_published_ones(published: dict[str, np.ndarray]) -> None:
    momentum = [cosine(step, 35, 0.994, 1.0) for step in range(35)]
    decay = [cosine(step, 35, 0.04, 0.4) for step in range(35)]
    assert_allclose(momentum, published["momentum_small_994_1_e5_n7"], rtol=1e-9)
    assert_allclose(decay, published["wd_small_e5_n7"], rtol=1e-9)
    steps = published["full_idx"].tolist()
    assert_allclose([cosine(s, 282600, 0.994, 1.0) for s in steps], published["full_momentum_994"], rtol=1e-9)
    assert_allclose([cosine(s, 282600, 0.04, 0.4) for s in steps], published["full_wd"], rtol=1e-9)


def test_learning_rate_equals_the_published_one_after_its_warm_up(published: dict[str, np.ndarray]) -> None:
    # during warm-up ours is one step ahead, for the published first step has a rate of 0; past the end ours stays
    ours = [warm_cosine(step, 20, 3, 1e-3, 1e-6) for step in range(26)]
    theirs = published["small_lr_cosine_w3_t20_base1e-3_end1e-6"]
    assert_allclose(ours[3:20], theirs[3:20], rtol=1e-9)
    assert_allclose(ours[:3], theirs[1:4], rtol=1e-9)
    assert_allclose(ours[20:], 1e-6, rtol=1e-9)


def test_teacher_temperature_equals_the_published_one(published: dict[str, np.ndarray]) -> None:
    ours = [ramp(epoch, 30, 0.04, 0.07) for epoch in range(200)]
    assert_allclose(ours, published["teacher_temp_0.04_0.07_w30_n200"], rtol=1e-9)


def test_a_run_of_one_step_has_a_rate() -> None:
    assert warm_cosine(0, 1, 0, 1e-3, 1e-6) == pytest.approx(1e-3)
    assert ramp(0, 0, 0.04, 0.07) == 0.07
