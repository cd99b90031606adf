"""The method `auto`: up from frozen vectors to trained networks, and never to something worse than where it began."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headct.detection.method import Fitted, Progress, Task, quiet
from headct.detection.methods import METHODS, method
from headct.evaluation.metrics import auroc
from headct.failure import Failure

RUNGS = ("linear", "lora", "full")
"""From the least that is trained to the most; the first is frozen."""


@dataclass(frozen=True)
class Climbed:
    """What was taken, and how each rung did: `rows` have method, `validation_auroc`, and what was decided, in words."""

    fitted: Fitted
    rows: tuple[dict[str, Any], ...]


def climb(
    task: Task,
    *,
    rungs: Sequence[str] = RUNGS,
    progress: Callable[[str], Progress] = lambda name: quiet,
) -> Climbed:
    """Fit each rung and take the best by its validation AUROC (mean over findings); of equal ones the lower rung.

    So what comes out is never worse on validation than the frozen first rung. Trained rungs are left out, and why is
    said, where they cannot be learned: the encoder is an exported graph, arrays differ in shape, training diverges or
    does not fit into the memory of a GPU. `progress` gives the one for a rung. Raises Misuse where the first rung
    cannot be learned.
    """
    fits = {rungs[0]: method(rungs[0]).fit(task, progress(rungs[0]))}
    areas = {rungs[0]: validation_auroc(task, fits[rungs[0]])}
    skipped = {}
    for name in rungs[1:]:
        if task.encoder.runtime is not None and not METHODS[name].frozen:
            skipped[name] = f"left out: a graph ({task.encoder.runtime.kind}) cannot be trained"
            continue
        try:
            fits[name] = method(name).fit(task, progress(name))
        except Failure as failure:
            skipped[name] = f"left out: {failure.what}"
            continue
        except torch.OutOfMemoryError:
            skipped[name] = "left out: it does not fit into the memory of the device"
            continue
        areas[name] = validation_auroc(task, fits[name])
    best = max(areas, key=lambda name: areas[name])  # the first of equal ones
    return Climbed(fits[best], tuple(_row(name, areas, skipped, best, rungs[0]) for name in rungs))


def validation_auroc(task: Task, fitted: Fitted) -> float:
    """Mean over the findings that validation has both with and without; NaN where there is none."""
    scores, labels = fitted.scores(task.scans, task.validation), task.labels[task.validation]
    areas = []
    for column in range(len(task.findings)):
        known = np.isfinite(labels[:, column])
        if len(np.unique(labels[known, column])) == 2:
            areas.append(auroc(labels[known, column], scores[known, column]))
    return float(np.mean(areas)) if areas else float("nan")


def _row(name: str, areas: dict[str, float], skipped: dict[str, str], best: str, frozen: str) -> dict[str, Any]:
    if name in skipped:
        return {"method": name, "validation_auroc": None, "decision": skipped[name]}
    if name == best:
        decision = "taken" if name != frozen or len(areas) == 1 else "taken: nothing that was trained is better"
    elif name == frozen:
        decision = "bettered by training"
    else:
        decision = f"not taken: {'worse' if areas[name] < areas[frozen] else 'no better'} than {best}"
    return {"method": name, "validation_auroc": areas[name], "decision": decision}
