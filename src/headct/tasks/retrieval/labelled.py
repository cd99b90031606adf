"""Labels of the scans of an index, from a table in its user's words, and what they say of its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from headct.cohort import Cohort
from headct.cohort import labels as of_cohorts
from headct.cohort.identities import hold_pseudonyms, pseudonyms_of
from headct.evaluation import tables
from headct.evaluation.cells import MEASURES
from headct.failure import Misuse
from headct.reading.pseudonyms import user_key
from headct.tasks.retrieval.index import Index
from headct.tasks.retrieval.judging import Judged, Judging, Labelled, judge


def labels_of(
    path: Path, index: Index, cohort: Cohort | None, findings: Sequence[str] = (), key: bytes | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """A row for each scan of the index, in its order, a column a finding (1, 0, NaN); and how the table was understood.

    With the index's cohort at hand the table may name scans, series, studies, patients or files; without it, it must
    have `scan_id` and `patient_id`. Raises Misuse where it labels no scan of the index.
    """
    if cohort is not None:
        pseudonymous = hold_pseudonyms([pseudonyms_of(cohort)])
        found = of_cohorts.read_labels(
            path, [cohort], findings=findings, key=(key or user_key()) if pseudonymous else None
        )
        values, sentences = found.values, found.account.sentences()
    else:
        table = tables.read_labels(path)
        missing = [name for name in findings if name not in table]
        if missing:
            raise Misuse(f"{path.name} has no finding {missing[0]!r}", do=f"its columns are {', '.join(table.columns)}")
        named = list(findings) or [name for name in map(str, table) if _holds_labels(table, name)]
        values = pd.DataFrame({name: tables.labels_of(table, name) for name in named}, index=pd.Index(table["scan_id"]))
        sentences = [f"{path.name}: columns {', '.join(named)}, matched by scan_id"]
    rows = values.reindex(index.scans["scan_id"])
    if not len(rows.columns) or not rows.notna().any(axis=None):
        raise Misuse(
            f"{path.name} labels no scan of the index {index.path}",
            do=f"compare its scan_id with those in {index.path / 'scans.parquet'}",
        )
    return rows, sentences


def _holds_labels(table: pd.DataFrame, name: str) -> bool:
    """Whether a column holds 1, 0 or nothing, and at least one of either."""
    if name in of_cohorts.NOT_FINDINGS or name.endswith(MEASURES):
        return False
    try:
        return bool(np.isfinite(tables.labels_of(table, name)).any())
    except Misuse:
        return False


def judge_by(index: Index, labels: pd.DataFrame, settings: Judging) -> tuple[dict[str, Judged], Mapping[str, str]]:
    """Each finding by which neighbours can be judged, and why others cannot. Raises Misuse where none can."""
    vectors, patients = np.asarray(index.vectors), index.scans["patient_id"].to_numpy(dtype=str)
    judged, left_out = {}, {}
    for name in map(str, labels.columns):
        try:
            judged[name] = judge(Labelled(vectors, labels[name].to_numpy(dtype=float), patients), settings)
        except Misuse as error:
            left_out[name] = error.what
    if not judged:
        whys = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise Misuse("no finding can be judged by", why=whys, do="label more scans of more patients")
    return judged, left_out
