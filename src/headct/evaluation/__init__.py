"""Predictions and labels to numbers with intervals: pure functions on arrays and tables, without networks."""

from __future__ import annotations

from headct.evaluation.evaluation import Evaluation, EvaluationSettings, evaluate, rival, untaught
from headct.evaluation.intervals import Area, Estimate, Patients
from headct.evaluation.metrics import auroc, average_precision
from headct.evaluation.operating import rule_named
from headct.evaluation.tables import read_labels, read_predictions

__all__ = [
    "Area",
    "Estimate",
    "Evaluation",
    "EvaluationSettings",
    "Patients",
    "auroc",
    "average_precision",
    "evaluate",
    "read_labels",
    "read_predictions",
    "rival",
    "rule_named",
    "untaught",
]
