"""A check of the learning itself: a probe that learned from shuffled labels must find nothing.

Shuffling the labels of the tested scans (`headct.evaluation.leakage.shuffled_labels`) tries the arithmetic alone. Here
those of the training scans are shuffled and learned from, and the true labels of the tested scans are asked for: where
they, or what they were made from, reach the training on another way, the area is not one half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import t as student

from headct.detection.method import Method, Progress, quiet
from headct.evaluation.intervals import LEVEL, Patients
from headct.evaluation.leakage import SHUFFLED, too_few
from headct.evaluation.metrics import auroc
from headct.studies.evaluation_predictions import Taught
from headct.studies.few_labels import PROBE

SHUFFLES = 10


@dataclass(frozen=True)
class Unlearned:
    """Areas (s,) of a probe that learned from shuffled labels, means over `findings`, one for each shuffling."""

    findings: tuple[str, ...]
    areas: np.ndarray

    @property
    def mean(self) -> float:
        """Over the shufflings: one half where nothing leaks, or a little less where few patients stand far out."""
        return float(self.areas.mean())

    @property
    def error(self) -> float:
        """How far from it so few shufflings may lie by chance (95 %, by their own spread)."""
        number = len(self.areas)
        return float(student.ppf((1 + LEVEL) / 2, number - 1) * self.areas.std(ddof=1) / np.sqrt(number))

    @property
    def passed(self) -> bool:
        """Whether the mean is at most one half, give or take `SHUFFLED` and the error: what leaks raises it."""
        return self.mean - 0.5 <= SHUFFLED + self.error

    def tree(self) -> Mapping[str, Any]:
        """As it stands in `metrics.json`."""
        return {
            "mean": self.mean,
            "error": self.error,
            "shufflings": len(self.areas),
            "findings": list(self.findings),
            "passed": self.passed,
        }


def unlearned(
    known: Taught, progress: Progress = quiet, *, method: Method = PROBE, shuffles: int = SHUFFLES
) -> Unlearned | None:
    """Shuffle the training labels by patient, learn from them, test; so many times, with seeds made from the task's.

    The probe is that of the curves, on the frozen vectors of the detector's encoder. A shuffling by which a finding
    loses a class leaves that finding out. None where no finding has enough test patients, or two shufflings cannot be
    learned from.
    """
    task, patients = known.task, Patients.of(known.task.patients.astype(str))
    of_tested = patients.only(known.tested)
    testable = [
        column for column in range(len(task.findings)) if not too_few(task.labels[known.tested, column], of_tested)
    ]
    areas = []
    for number in range(shuffles):
        progress(number, shuffles)
        labels = task.labels.copy()
        rng = np.random.default_rng((task.seed, number))
        labels[task.train] = shuffled_by_patient(labels[task.train], task.patients[task.train], rng)
        kept = [column for column in testable if {0.0, 1.0} <= set(labels[task.train, column])]
        if not kept:
            continue
        findings = tuple(task.findings[column] for column in kept)
        fitted = method.fit(replace(task, findings=findings, labels=labels[:, kept]))
        told, truth = fitted.scores(task.scans, known.tested), task.labels[known.tested][:, kept]
        areas.append(np.mean([_area(truth[:, place], told[:, place]) for place in range(len(kept))]))
    progress(shuffles, shuffles)
    return Unlearned(tuple(task.findings[column] for column in testable), np.array(areas)) if len(areas) > 1 else None


def shuffled_by_patient(labels: np.ndarray, patients: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels (n, f) in which each patient has those of another one, over and over where that one has fewer scans."""
    _, who = np.unique(patients.astype(str), return_inverse=True)
    rows = np.split(np.argsort(who, kind="stable"), np.cumsum(np.bincount(who))[:-1])
    found = np.empty_like(labels)
    for mine, other in zip(rows, rng.permutation(len(rows)), strict=True):
        found[mine] = labels[np.resize(rows[other], len(mine))]
    return found


def _area(truth: np.ndarray, told: np.ndarray) -> float:
    is_known = np.isfinite(truth)
    return float(auroc(truth[is_known], told[is_known]))
