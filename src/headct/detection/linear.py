"""Logistic regression on frozen vectors, a finding at a time, its penalty chosen by the training patients alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from headct.checkpoints import PretrainedEncoder
from headct.detection.method import Progress, Scans, Task, expect_both, quiet
from headct.detection.scaling import Scaling
from headct.embedding.machine import Machine


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A logistic regression for each finding, on the scans whose label is known, either class weighing the same.

    `C` of scikit-learn is chosen by the log loss in an inner cross-validation that is grouped by patient, on no more
    than `chosen_on` scans of either class: it says how large weights are beforehand, which does not depend on how
    many scans there are.
    """

    candidates: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)
    fallback: float = 10.0  # where a class has fewer than two patients, so that nothing can be chosen
    folds: int = 5
    chosen_on: int = 2000  # scans of either class

    def fit(self, task: Task, progress: Progress = quiet) -> FittedLinear:
        """Raises Misuse where a finding lacks a class."""
        rows = task.known(task.train)
        labels, patients = task.labels[rows], np.asarray(task.patients)[rows]
        expect_both(labels, task.findings)
        vectors = task.scans.vectors(rows)
        scaling = Scaling.of(vectors)
        scaled = scaling(vectors)
        weights, biases, chosen = [], [], {}
        for column, finding in enumerate(task.findings):
            known = np.flatnonzero(np.isfinite(labels[:, column]))
            x, y = scaled[known], labels[known, column].astype(int)
            chosen[finding] = self._choose(x, y, patients[known], task.seed)
            model = _model(chosen[finding]).fit(x, y)
            weights.append(model.coef_[0])
            # Equal weight of the classes moved the intercept by the log of their ratio; it goes back, so that the
            # logits mean the share of positives that was seen.
            biases.append(model.intercept_[0] + np.log(y.sum() / (len(y) - y.sum())))
            progress(column + 1, len(task.findings))
        facts = {"scans": len(rows), "C": chosen}
        return FittedLinear(task.findings, scaling, np.array(weights), np.array(biases), facts)

    def _choose(self, x: np.ndarray, y: np.ndarray, patients: np.ndarray, seed: int) -> float:
        """The candidate with the least held-out log loss; of equal ones the strongest penalty."""
        rng = np.random.default_rng(seed)
        some = np.concatenate([rng.permutation(np.flatnonzero(y == value))[: self.chosen_on] for value in (0, 1)])
        x, y, patients = x[some], y[some], patients[some]
        folds = min(self.folds, *(len(np.unique(patients[y == value])) for value in (0, 1)))
        if folds < 2:
            return self.fallback
        fold, losses = _folds(y, patients, folds, rng), np.zeros(len(self.candidates))
        for train, test in ((fold != one, fold == one) for one in range(folds)):
            if len(np.unique(y[train])) == 2:
                losses += _path(self.candidates, x[train], y[train], x[test], y[test])
        return self.candidates[int(np.argmin(losses.round(9)))]


@dataclass(frozen=True)
class FittedLinear:
    """Weights of logistic regressions."""

    method: ClassVar[str] = "linear"
    findings: tuple[str, ...]
    scaling: Scaling
    weights: np.ndarray  # (f, F)
    biases: np.ndarray  # (f,)
    facts: Mapping[str, Any]

    def scores(self, scans: Scans, rows: np.ndarray) -> np.ndarray:
        """Logits (B, f)."""
        found: np.ndarray = self.scaling(scans.vectors(rows)) @ self.weights.T + self.biases
        return found

    def settings(self) -> dict[str, Any]:
        """None: all is in the tensors."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Weights and the scale of what they are applied to."""
        own = {"weights": torch.from_numpy(self.weights), "biases": torch.from_numpy(self.biases)}
        return own | self.scaling.tensors()

    @classmethod
    def restore(
        cls,
        encoder: PretrainedEncoder,
        findings: tuple[str, ...],
        settings: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        machine: Machine,
    ) -> Self:
        """Raises ValueError where shapes do not fit."""
        scaling, weights, biases = Scaling.restore(tensors), tensors["weights"].numpy(), tensors["biases"].numpy()
        if weights.shape != (len(findings), encoder.scan_width) or biases.shape != (len(findings),):
            raise ValueError(f"weights {weights.shape} do not fit {len(findings)} findings of {encoder.scan_width}")
        return cls(findings, scaling, weights, biases, facts)


def _folds(y: np.ndarray, patients: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """The fold (n,) of each scan: none has more than one patient, or one positive patient, more than another.

    scikit-learn's StratifiedGroupKFold looks at each patient in Python, longer than all regressions take.
    """
    names, row_of = np.unique(patients, return_inverse=True)
    positive = np.bincount(row_of, weights=y) > 0
    place = np.empty(len(names), dtype=int)
    place[np.lexsort((rng.permutation(len(names)), positive))] = np.arange(len(names)) % folds
    return place[row_of]


def _model(c: float) -> LogisticRegression:
    # On vectors as short as `Scaling` makes them, scikit-learn's own tolerance stops 0.4 away from the best logits.
    return LogisticRegression(C=c, class_weight="balanced", tol=1e-5, max_iter=5000, warm_start=True)


def _path(
    candidates: Sequence[float], x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> np.ndarray:
    """Summed log loss of the test scans for each candidate, either class weighing the same; each starts at the last."""
    model, losses = _model(candidates[0]), []
    share = y.mean()
    weight = np.where(y_test == 1, 0.5 / share, 0.5 / (1 - share))
    for c in candidates:
        logits = model.set_params(C=c).fit(x, y).decision_function(x_test)
        losses.append(weight @ np.logaddexp(0, np.where(y_test == 1, -logits, logits)))
    return np.array(losses)
