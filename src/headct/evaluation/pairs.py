"""Several models on the same scans, each with each: differences with intervals, corrected for being many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from headct.evaluation import leakage
from headct.evaluation.comparison import Difference, compare, corrected, delong
from headct.evaluation.evaluation import EvaluationSettings
from headct.evaluation.intervals import Area, Patients
from headct.evaluation.metrics import Ranked
from headct.evaluation.tables import labels_of
from headct.failure import Misuse

DRAWS_A_TEST = 60
"""B draws tell no p value below about 2 / B; with so many for each of n tests Holm makes that n * 2 / B = 0.033."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The first model less the second on one finding."""

    first: str
    second: str
    finding: str
    auroc: Difference
    average_precision: Difference

    def tree(self) -> Mapping[str, Any]:
        """As it stands in `metrics.json`."""
        return {
            "first": self.first,
            "second": self.second,
            "finding": self.finding,
            "auroc": self.auroc.leaf(),
            "average_precision": self.average_precision.leaf(),
        }


def compare_all(
    predictions: Mapping[str, pd.DataFrame],
    labels: pd.DataFrame,
    settings: EvaluationSettings | None = None,
    wanted: Sequence[tuple[str, str]] | None = None,
) -> list[Pair]:
    """Every two of the models, or those that are wanted, on the findings and scans that both predicted.

    `labels` have `scan_id, patient_id` and a column for each finding.

    DeLong's test for the area, the paired bootstrap for average precision, and Holm's correction over all pairs and
    findings, with `DRAWS_A_TEST` times as many draws as there are tests if the settings have fewer. A finding with too
    few patients of a class is left out. Raises Misuse for scans that the labels lack.
    """
    settings = settings or EvaluationSettings()
    told = {name: _wide(table) for name, table in predictions.items()}
    tests = [
        (first, second, str(finding))
        for first, second in (combinations(told, 2) if wanted is None else wanted)
        for finding in told[first].columns.intersection(told[second].columns, sort=False)
        if finding in labels
    ]
    settings = replace(settings, draws=max(settings.draws, DRAWS_A_TEST * len(tests)))
    found = [_pair(*test, told, labels, settings) for test in tests]
    return _corrected([pair for pair in found if pair is not None])


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """A row a scan, a column a finding."""
    wide = table.pivot(index="scan_id", columns="finding", values="probability")
    return wide[list(dict.fromkeys(table["finding"]))]


def _pair(
    first: str,
    second: str,
    finding: str,
    told: Mapping[str, pd.DataFrame],
    labels: pd.DataFrame,
    settings: EvaluationSettings,
) -> Pair | None:
    of_both = pd.concat([told[name][finding].rename(name) for name in (first, second)], axis=1, join="inner").dropna()
    rows = pd.Index(labels["scan_id"]).get_indexer(of_both.index)
    if (rows < 0).any():
        raise Misuse(f"{int((rows < 0).sum()):,} predicted scans are not in the labels", do="label them, or leave them")
    truth = labels_of(labels, finding)[rows]
    known = np.isfinite(truth)
    truth, patients = truth[known], Patients.of(labels["patient_id"].to_numpy()[rows[known]])
    if leakage.too_few(truth, patients):
        return None
    mine, theirs = (of_both[name].to_numpy(dtype=float)[known] for name in (first, second))
    weights = patients.weights(settings.draws, settings.seed)
    return Pair(
        first=first,
        second=second,
        finding=finding,
        auroc=delong(Area.of(truth, mine, patients), Area.of(truth, theirs, patients)),
        average_precision=compare(truth, mine, theirs, Ranked.average_precision, weights),
    )


def _corrected(pairs: Sequence[Pair]) -> list[Pair]:
    area = corrected({str(index): pair.auroc for index, pair in enumerate(pairs)})
    precision = corrected({str(index): pair.average_precision for index, pair in enumerate(pairs)})
    return [
        Pair(
            first=pair.first,
            second=pair.second,
            finding=pair.finding,
            auroc=area[str(index)],
            average_precision=precision[str(index)],
        )
        for index, pair in enumerate(pairs)
    ]
