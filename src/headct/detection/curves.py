"""Few-shot curves: the same task with fewer labels, again and again.

Each draw has a seed of its own, made from the task's and its number, so that draws differ as repeated training does:
who is drawn and how the learning begins both vary. All K of a draw share its seed, as they share the order of scans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from headct.detection.method import Task
from headct.detection.shots import Fractions, Shots

MACRO = "macro"
"""What the mean over findings is called among them."""


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
