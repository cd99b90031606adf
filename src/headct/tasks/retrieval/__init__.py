"""Scans like this one: an index of a cohort's vectors, searched by scan, id or vector, and judged by labels."""

from __future__ import annotations

from headct.tasks.retrieval.filters import Condition, kept
from headct.tasks.retrieval.gallery import Gallery, of_cohort, of_table
from headct.tasks.retrieval.index import Found, Index, build
from headct.tasks.retrieval.judging import Judged, Judging, judge

__all__ = [
    "Condition",
    "Found",
    "Gallery",
    "Index",
    "Judged",
    "Judging",
    "build",
    "judge",
    "kept",
    "of_cohort",
    "of_table",
]
