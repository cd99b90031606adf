"""Several models on the same scans, each with each: differences with intervals, corrected for being many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headct.evaluation import leakage
from headct.evaluation.comparison import Difference, corrected, delong, paired_bootstrap
from headct.evaluation.evaluation import EvaluationSettings
from headct.evaluation.intervals import Area, Patients
from headct.evaluation.metrics import Array, Ranked
from headct.evaluation.tables import labels_of
from headct.failure import Misuse

Test = tuple[str, str, str]
"""Two models and a finding."""
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
    on_scans: dict[bytes, list[Test]] = {}
    for test in tests:
        on_scans.setdefault(_rows(test, told, labels).tobytes(), []).append(test)
    draws = max(settings.draws, DRAWS_A_TEST * len(tests))
    found: dict[Test, Pair] = {}
    for rows, on_these in on_scans.items():
        scans = labels.iloc[np.frombuffer(rows, dtype=np.intp)]
        found |= _compared(on_these, told, scans, draws, settings.seed)
    return _corrected([found[test] for test in tests if test in found])


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """A row a scan, a column a finding."""
    wide = table.pivot(index="scan_id", columns="finding", values="probability")
    return wide[list(dict.fromkeys(table["finding"]))]


def _rows(test: Test, told: Mapping[str, pd.DataFrame], labels: pd.DataFrame) -> NDArray[np.intp]:
    """Which rows of the labels are known and predicted by both. Raises Misuse for scans that the labels lack."""
    first, second, finding = test
    of_both = pd.concat([told[name][finding].rename(name) for name in (first, second)], axis=1, join="inner").dropna()
    rows = pd.Index(labels["scan_id"]).get_indexer(of_both.index)
    if (rows < 0).any():
        raise Misuse(f"{int((rows < 0).sum()):,} predicted scans are not in the labels", do="label them, or leave them")
    known: NDArray[np.intp] = rows[np.isfinite(labels_of(labels, finding)[rows])]
    return known


def _compared(
    tests: Sequence[Test], told: Mapping[str, pd.DataFrame], scans: pd.DataFrame, draws: int, seed: int
) -> dict[Test, Pair]:
    """Tests on the same scans, rows of the labels, whose patients are drawn once for all of them."""
    patients = Patients.of(scans["patient_id"].to_numpy())
    truth = {finding: labels_of(scans, finding) for finding in dict.fromkeys(finding for *_, finding in tests)}
    tests = [test for test in tests if not leakage.too_few(truth[test[2]], patients)]
    scores = {
        (name, finding): told[name][finding].loc[scans["scan_id"]].to_numpy(dtype=float)
        for first, second, finding in tests
        for name in (first, second)
    }
    areas = {one: Area.of(truth[one[1]], values, patients) for one, values in scores.items()}
    ranked = {one: Ranked.of(truth[one[1]], values) for one, values in scores.items()}
    parts: dict[tuple[str, str], list[Array]] = {one: [] for one in ranked}
    for weights in patients.blocks(draws, seed) if tests else ():
        for one, of_one in ranked.items():
            parts[one].append(of_one.average_precision(weights))
    precision = {one: (float(ranked[one].average_precision()), np.concatenate(parts[one])) for one in ranked}
    return {
        (first, second, finding): Pair(
            first=first,
            second=second,
            finding=finding,
            auroc=delong(areas[first, finding], areas[second, finding]),
            average_precision=paired_bootstrap(
                precision[first, finding],
                precision[second, finding],
                n=len(scans),
                positives=areas[first, finding].positives,
            ),
        )
        for first, second, finding in tests
    }


def _corrected(pairs: Sequence[Pair]) -> list[Pair]:
    areas = corrected({place: pair.auroc for place, pair in enumerate(pairs)})
    precisions = corrected({place: pair.average_precision for place, pair in enumerate(pairs)})
    return [replace(pair, auroc=areas[place], average_precision=precisions[place]) for place, pair in enumerate(pairs)]
