"""Public sets as downloaded to cohorts, labels and splits. Nothing here downloads: the sets have terms to accept."""

from __future__ import annotations

from headct.datasets.job import Report, prepare
from headct.datasets.publicset import PublicSet
from headct.datasets.registry import NAMES, SETS, named

__all__ = ["NAMES", "SETS", "PublicSet", "Report", "named", "prepare"]
