"""Few-shot curves. Oracles: the draws themselves, scikit-learn's area, scipy's interval, and shuffled labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from headct.checkpoints import PretrainedEncoder
from headct.detection.curves import MACRO, by_fractions, by_shots, curve, measured
from headct.detection.linear import FittedLinear, Linear
from headct.detection.method import Progress, Task, quiet
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


def test_more_shots_are_better_and_the_area_is_scikit_learns(task: Task) -> None:
    shots = draw_shots(frame(task), IDS[:150], seed=1, ks=(4, 8), draws=3)
    settings = Linear(candidates=(10.0,))
    table = measured(by_shots(task, IDS, shots), settings, TEST)
    assert len(table) == 2 * 3 * 3
    first = next(by_shots(task, IDS, shots)).task
    scores = settings.fit(first).scores(first.scans, TEST)
    areas = [roc_auc_score(task.labels[TEST, column], scores[:, column]) for column in range(2)]
    np.testing.assert_allclose(table["auroc"][:3], [*areas, np.mean(areas)])
    means = curve(table).query("finding == @MACRO").set_index("size")["mean"]
    assert 0.6 < means[4] < means[8]


def test_shuffled_labels_find_nothing(task: Task) -> None:
    rng = np.random.default_rng(3)
    shuffled = pd.DataFrame(frame(task).to_numpy()[rng.permutation(150)], columns=["ich", "sdh"], index=IDS[:150])
    shots = draw_shots(shuffled, IDS[:150], seed=1, ks=(16,), draws=10)
    found = curve(measured(by_shots(task, IDS, shots), Linear(candidates=(10.0,)), TEST))
    assert found.set_index("finding").loc[MACRO, "mean"] == pytest.approx(0.5, abs=0.1)


def test_every_draw_is_learned_with_a_seed_of_its_own(task: Task) -> None:
    seeds = []

    class Watched(Linear):
        def fit(self, task: Task, progress: Progress = quiet) -> FittedLinear:
            seeds.append(task.seed)
            return super().fit(task, progress)

    shots = draw_shots(frame(task), IDS[:150], seed=1, ks=(4,), draws=3)
    for seed in (0, 2**32 - 1):
        measured(by_shots(replace(task, seed=seed), IDS, shots), Watched(candidates=(10.0,)), TEST)
    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_the_seed_is_that_of_the_draw_whatever_is_learned_from_it(task: Task) -> None:
    shots = draw_shots(frame(task), IDS[:150], seed=1, ks=(4, 8), draws=2)
    seeds = {(one.size, one.draw): one.task.seed for one in by_shots(task, IDS, shots)}
    assert seeds[4, 0] == seeds[8, 0] != seeds[4, 1] == seeds[8, 1]
    again = {(one.size, one.draw): one.task.seed for one in by_shots(task, IDS, shots)}
    assert seeds == again
    fractions = draw_fractions(frame(task), IDS[:150], seed=1, shares=(0.5,), draws=2)
    assert [one.task.seed for one in by_fractions(task, fractions)] == [seeds[4, 0], seeds[4, 1]]


def test_a_curve_tells_over_how_many_findings_its_mean_is(task: Task) -> None:
    """The rare finding cannot be drawn at 32, where the mean is the other's area alone."""
    shots = draw_shots(frame(task), IDS[:150], seed=1, ks=(8, 32), draws=2)
    found = curve(measured(by_shots(task, IDS, shots), Linear(candidates=(10.0,)), TEST))
    assert found[["finding", "size", "findings"]].to_numpy().tolist() == [
        ["ich", 8, 1], ["ich", 32, 1], [MACRO, 8, 2], [MACRO, 32, 1], ["sdh", 8, 1],
    ]  # fmt: skip
    areas = [(0, "ich"), (0, "sdh"), (0, MACRO), (1, "ich"), (1, MACRO)]  # draw 1 of a share lacks a class of sdh
    table = pd.DataFrame([{"size": 0.1, "draw": draw, "finding": name, "auroc": 0.7} for draw, name in areas])
    assert curve(table).set_index("finding")["findings"].to_dict() == {"ich": 1, "sdh": 1, MACRO: 1}


def test_fractions_keep_all_labels_of_their_patients(task: Task) -> None:
    fractions = draw_fractions(frame(task), IDS[:150], seed=1, shares=(0.1, 1.0), draws=2)
    few = list(by_fractions(task, fractions))
    assert [one.size for one in few] == [0.1, 0.1, 1.0, 1.0]
    assert [len(one.task.known(one.task.train)) for one in few] == [15, 15, 150, 150]
    np.testing.assert_array_equal(few[-1].task.labels, task.labels)


def test_the_interval_is_students() -> None:
    areas = [0.6, 0.7, 0.65, 0.72]
    table = pd.DataFrame({"size": 8, "draw": range(4), "finding": "ich", "auroc": areas})
    found = curve(table).iloc[0]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(areas), scale=stats.sem(areas))
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
    assert np.isnan(curve(table.head(1)).iloc[0]["low"])
