"""The same task with fewer labels. Oracle: the draws themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from headct.checkpoints import PretrainedEncoder
from headct.detection.curves import by_fractions, by_shots
from headct.detection.method import Task
from headct.detection.scans import Held
from headct.detection.shots import draw_fractions, draw_shots
from headct.embedding.machine import choose

IDS = [f"s{row:03d}" for row in range(300)]
TEST = np.arange(200, 300)


@pytest.fixture(scope="module")
def task(encoder: PretrainedEncoder) -> Task:
    """Two findings, one rare, that vectors tell well."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, encoder.scan_width)).astype(np.float32)
    labels = (vectors[:, :2] + 0.3 * rng.normal(size=(300, 2)) > (0.0, 1.3)).astype(float)
    return Task(
        encoder=encoder,
        scans=Held(vectors),
        findings=("ich", "sdh"),
        labels=labels,
        patients=np.array(IDS),
        train=np.arange(150),
        validation=np.arange(150, 200),
        seed=0,
        machine=choose("fp32", "cpu"),
    )


def frame(task: Task) -> pd.DataFrame:
    return pd.DataFrame(task.labels[:150], columns=list(task.findings), index=IDS[:150])


def test_each_task_knows_what_was_drawn_and_no_more(task: Task) -> None:
    shots = draw_shots(frame(task), IDS[:150], seed=1, ks=(4, 8, 32), draws=2)
    assert shots.ks == {"ich": (4, 8, 32), "sdh": (4, 8)}
    few = list(by_shots(task, IDS, shots))
    assert [(one.size, one.draw) for one in few] == [(k, draw) for k in (4, 8, 32) for draw in (0, 1)]
    assert few[-1].task.findings == ("ich",)
    for one in few:
        for column, finding in enumerate(one.task.findings):
            drawn = shots.labels(finding, int(one.size), one.draw)
            known = one.task.labels[:150, column]
            assert {IDS[row] for row in np.flatnonzero(np.isfinite(known))} == set(drawn.index)
            np.testing.assert_array_equal(one.task.labels[150:, column], task.labels[150:, column])


def test_the_seed_is_that_of_the_draw_whatever_is_learned_from_it(task: Task) -> None:
    shots = draw_shots(frame(task), IDS[:150], seed=1, ks=(4, 8), draws=2)
    seeds = {(one.size, one.draw): one.task.seed for one in by_shots(task, IDS, shots)}
    assert seeds[4, 0] == seeds[8, 0] != seeds[4, 1] == seeds[8, 1]
    again = {(one.size, one.draw): one.task.seed for one in by_shots(task, IDS, shots)}
    assert seeds == again
    other = [one.task.seed for one in by_shots(replace(task, seed=2**32 - 1), IDS, shots)]
    assert not set(other) & set(seeds.values())
    assert all(0 <= seed < 2**32 for seed in [*other, *seeds.values()])
    fractions = draw_fractions(frame(task), IDS[:150], seed=1, shares=(0.5,), draws=2)
    assert [one.task.seed for one in by_fractions(task, fractions)] == [seeds[4, 0], seeds[4, 1]]


def test_fractions_keep_all_labels_of_their_patients(task: Task) -> None:
    fractions = draw_fractions(frame(task), IDS[:150], seed=1, shares=(0.1, 1.0), draws=2)
    few = list(by_fractions(task, fractions))
    assert [one.size for one in few] == [0.1, 0.1, 1.0, 1.0]
    assert [len(one.task.known(one.task.train)) for one in few] == [15, 15, 150, 150]
    np.testing.assert_array_equal(few[-1].task.labels, task.labels)
