"""Few-shot curves: the same task with fewer labels, again and again, and what each gives on scans kept for a test.

Each draw has a seed of its own, made from the task's and its number, so that draws differ as repeated training does:
who is drawn and how the learning begins both vary. All K of a draw share its seed, as they share the order of scans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from headct.detection.method import Method, Progress, Task, quiet
from headct.detection.shots import Fractions, Shots
from headct.evaluation.metrics import auroc

MACRO = "macro"
LEVEL = 0.95


@dataclass(frozen=True)
class Few:
    """A task of which training has few labels. `size` is K, or the share of patients, `draw` the number of its draw.

    Findings that were not drawn at this size are left out of the task, whose seed is that of its draw.
    """

    size: float
    draw: int
    task: Task


def by_shots(task: Task, scan_ids: Sequence[str], shots: Shots) -> Iterator[Few]:
    """A task for each K and draw, from `task` whose row i is the scan `scan_ids[i]`.

    Of each finding K positives and K negatives are known in training, all of them training rows; other rows keep
    their labels, so validation is that of `task`.
    """
    row_of = {scan_id: row for row, scan_id in enumerate(scan_ids)}
    for k in sorted({k for ks in shots.ks.values() for k in ks}):
        findings = [name for name in task.findings if k in shots.ks.get(name, ())]
        for draw in sorted(set(shots.table["draw"])):
            known = {}
            for name in findings:
                drawn = shots.labels(name, k, draw)
                known[name] = (np.array([row_of[one] for one in drawn.index]), drawn.to_numpy())
            yield Few(k, draw, _with(task, known, draw))


def by_fractions(task: Task, fractions: Fractions) -> Iterator[Few]:
    """A task for each share and draw: the labels of training patients outside the share are unknown."""
    for share in fractions.shares:
        for draw in sorted(set(fractions.table["draw"])):
            chosen = np.isin(task.patients.astype(str), list(fractions.patients(share, draw)))
            rows = task.train[chosen[task.train]]
            labels = {name: task.labels[rows, column] for column, name in enumerate(task.findings)}
            known = {name: (rows, told) for name, told in labels.items() if {0.0, 1.0} <= set(told[np.isfinite(told)])}
            yield Few(share, draw, _with(task, known, draw))


def _with(task: Task, known: Mapping[str, tuple[np.ndarray, np.ndarray]], draw: int) -> Task:
    """The task of these findings, of which training knows these rows only, with the seed of the draw."""
    columns = [task.findings.index(name) for name in known]
    labels = task.labels[:, columns].copy()
    labels[task.train] = np.nan
    for column, (rows, told) in enumerate(known.values()):
        assert np.isin(rows, task.train).all(), "labels were drawn that are not for training"
        labels[rows, column] = told
    return replace(task, findings=tuple(known), labels=labels, seed=seed_of(task.seed, draw))


def seed_of(seed: int, draw: int) -> int:
    """The seed of a draw: another for each pair of numbers, which `seed + draw` would not be."""
    return int(np.random.SeedSequence([seed, draw]).generate_state(1)[0])


def measured(few: Iterator[Few], method: Method, test: np.ndarray, progress: Progress = quiet) -> pd.DataFrame:
    """AUROC on the rows `test` of what the method learns from each: a table of size, draw, finding, auroc.

    The finding `macro` is the mean over those of its size and draw. A finding that `test` lacks a class of is left
    out.
    """
    rows = []
    for done, one in enumerate(few, start=1):
        fitted = method.fit(one.task)
        scores, labels = fitted.scores(one.task.scans, test), one.task.labels[test]
        areas = {}
        for column, finding in enumerate(one.task.findings):
            known = np.isfinite(labels[:, column])
            if len(np.unique(labels[known, column])) == 2:
                areas[finding] = auroc(labels[known, column], scores[known, column])
        if areas:
            areas[MACRO] = float(np.mean(list(areas.values())))
        rows += [{"size": one.size, "draw": one.draw, "finding": name, "auroc": area} for name, area in areas.items()]
        progress(done, None)
    return pd.DataFrame(rows, columns=["size", "draw", "finding", "auroc"])


def curve(table: pd.DataFrame) -> pd.DataFrame:
    """The mean of `measured` over draws: finding, size, findings, draws, mean, sd, low, high.

    `findings` is how many are averaged, the fewest of any draw: where it differs between sizes, those of `macro` are
    not the same task with fewer labels, and must not be joined by a line.
    `low` to `high` is Student's 95 % interval of the mean over draws; empty for a single one. It says how much which
    scans were drawn matters, not how much the test patients do.
    """
    rows = []
    own = table[table["finding"] != MACRO]
    averaged = own.groupby(["size", "draw"]).size().groupby("size").min().to_dict()
    for (finding, size), areas in table.groupby(["finding", "size"], sort=True)["auroc"]:
        count, mean = len(areas), float(areas.mean())
        sd = float(areas.std(ddof=1)) if count > 1 else np.nan
        half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * sd / count**0.5 if count > 1 else np.nan
        low, high = mean - half, mean + half
        findings = int(averaged[size]) if finding == MACRO else 1
        rows.append([finding, size, findings, count, mean, sd, low, high])
    return pd.DataFrame(rows, columns=["finding", "size", "findings", "draws", "mean", "sd", "low", "high"])
