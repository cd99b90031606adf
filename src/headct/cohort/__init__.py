"""Prepared scans on disk: `Cohort` reads one, `headct.cohort.ingest` makes one."""

from __future__ import annotations

from headct.cohort.cohort import Cohort

__all__ = ["Cohort"]
