"""What a re-scan changes: vectors and predictions of the same head, seen twice."""

from __future__ import annotations

from headct.tasks.robustness.agreement import Icc, cosines, icc, ranks
from headct.tasks.robustness.changes import KINDS, Change, changed
from headct.tasks.robustness.job import Robustness, Settings, measure

__all__ = ["KINDS", "Change", "Icc", "Robustness", "Settings", "changed", "cosines", "icc", "measure", "ranks"]
