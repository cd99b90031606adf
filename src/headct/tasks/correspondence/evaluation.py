"""How far from the truth a search ends, in mm, beside what needs no encoder.

Every landmark that the target has is counted: one that cannot be asked for, because it lies outside of what was
prepared of the query, is a miss of infinite error and stays in medians and shares. Intervals draw patients anew, in
both roles: one that is drawn twice counts twice as a query and twice as a target.

Virtual heads descend from one template, so that a landmark means exactly the same in each of them, and their shapes
differ by smooth deformation. Real heads differ by more: numbers on virtual patients are an upper bound.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headct.cohort import Cohort
from headct.evaluation.intervals import DRAWS, Estimate, Patients, Share
from headct.failure import Misuse
from headct.tasks.correspondence.baselines import BASELINES
from headct.tasks.correspondence.maps import Head
from headct.tasks.correspondence.matching import places_in

NEAR_MM = 10.0
"""An error up to this is a place that was found."""
LEAST_LANDMARKS = 20
OURS = "encoder"
COLUMNS = (
    "query",
    "target",
    "query_patient",
    "target_patient",
    "landmark",
    "method",
    "error_mm",
    "forward_backward_mm",
)

Landmarks = Mapping[str, Mapping[str, np.ndarray]]
"""By scan id and name: points (3,) in RAS mm of that scan."""


def read_landmarks(path: Path, cohort: Cohort) -> Landmarks:
    """Landmarks of a cohort's scans from a CSV: scan_id or series_id, landmark, x_mm, y_mm, z_mm (RAS).

    `headct simulate` writes one beside each cohort. Raises Misuse where there is none, columns are missing, a value is
    no number, or no row is of a scan of the cohort.
    """
    if not path.is_file():
        raise Misuse(
            f"there is no file {path}", do="name a table of landmarks, such as the landmarks.csv of headct simulate"
        )
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    key = next((name for name in ("scan_id", "series_id") if rows and name in rows[0]), "")
    missing = [name for name in ("landmark", "x_mm", "y_mm", "z_mm") if not rows or name not in rows[0]]
    if not key or missing:
        lacks = ", ".join(missing or ["scan_id or series_id"])
        raise Misuse(f"{path} has no column {lacks}", do="give scan_id (or series_id), landmark, x_mm, y_mm, z_mm")
    scan_of = dict(zip(cohort.scans[key].astype(str), cohort.scans["scan_id"].astype(str), strict=True))
    found: dict[str, dict[str, np.ndarray]] = {}
    for row in rows:
        if row[key] in scan_of:
            found.setdefault(scan_of[row[key]], {})[row["landmark"]] = _point(row, path)
    if not found:
        raise Misuse(f"no landmark in {path} is of a scan of {cohort.path}", do=f"check the column {key}")
    return found


def _point(row: Mapping[str, str], path: Path) -> np.ndarray:
    try:
        point = np.array([float(row[name]) for name in ("x_mm", "y_mm", "z_mm")])
    except (TypeError, ValueError):
        point = np.full(3, np.nan)
    if not np.isfinite(point).all():
        raise Misuse(f"the landmark {row['landmark']} in {path} is not at three finite numbers", do="correct that row")
    return point


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found.

    `errors` has a row for each query, target, landmark and method (`COLUMNS`); `without_truth` counts the landmarks
    of targets that the truth does not hold, because a finding displaced them beyond recognition.
    """

    errors: pd.DataFrame
    without_truth: int
    resolution_mm: tuple[float, float, float]

    @property
    def methods(self) -> list[str]:
        """Ours first, then the baselines."""
        return list(dict.fromkeys(self.errors["method"]))

    def metrics(self, *, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
        """A tree whose leaves are those of `metrics.json`: by method median and shares, and ours less each baseline."""
        table = self.errors
        drawn = _Draws.of(table[table["method"] == OURS], draws, seed)
        by_method = {name: table[table["method"] == name] for name in self.methods}
        tree: dict[str, Any] = {name: _summary(rows, drawn) for name, rows in by_method.items()}
        ours = by_method[OURS]
        agreed = (ours["forward_backward_mm"] <= NEAR_MM).to_numpy()
        tree[OURS]["mutual"] = drawn.share(agreed).leaf()
        tree[OURS][f"within_{NEAR_MM:g}_mm_where_mutual"] = drawn.share(_near(ours), agreed).leaf()
        for name in self.methods[1:]:
            tree[name]["within_difference"] = drawn.difference(_near(ours), _near(by_method[name])).leaf()
        return tree


def _near(rows: pd.DataFrame) -> np.ndarray:
    return (rows["error_mm"] <= NEAR_MM).to_numpy()


def _summary(rows: pd.DataFrame, drawn: _Draws) -> dict[str, Any]:
    return {
        "median_mm": drawn.median(rows["error_mm"].to_numpy(), misses=int((~_near(rows)).sum())).leaf(),
        f"within_{NEAR_MM:g}_mm": drawn.share(_near(rows)).leaf(),
    }


@dataclass(frozen=True)
class _Draws:
    """How often each row counts when patients are drawn anew: (draws, n)."""

    weights: np.ndarray
    targets: Patients

    @classmethod
    def of(cls, rows: pd.DataFrame, draws: int, seed: int) -> _Draws:
        everyone = Patients.of(pd.concat([rows["query_patient"], rows["target_patient"]]).astype(str).to_numpy())
        times = everyone.weights(draws, seed)
        weights = times[:, : len(rows)].astype(np.float32) * times[:, len(rows) :]
        return cls(weights, Patients.of(rows["target_patient"].astype(str).to_numpy()))

    def _limits(self, drawn: np.ndarray) -> tuple[float, float]:
        kept = drawn[~np.isnan(drawn)]
        if self.targets.number < 2 or len(kept) < len(drawn) / 2:
            return np.nan, np.nan
        low, high = np.quantile(kept, [0.025, 0.975], method="nearest")
        return float(low), float(high)

    def median(self, values: np.ndarray, *, misses: int) -> Estimate:
        """`positives` of the leaf counts the misses; infinite where half are missed without an answer."""
        order = np.argsort(values, kind="stable")
        summed = np.cumsum(self.weights[:, order], axis=1)
        total = summed[:, -1]
        at = (summed < total[:, None] / 2).sum(axis=1)
        drawn = np.where(total > 0, values[order][np.minimum(at, len(values) - 1)], np.nan)
        low, high = self._limits(drawn)
        method = f"median; percentiles of {len(drawn):,} draws of patients as queries and targets; positives are misses"
        return Estimate.of(float(np.median(values)), low, high, n=len(values), positives=misses, method=method)

    def share(self, hits: np.ndarray, among: np.ndarray | None = None) -> Estimate:
        """Of the rows `among`; no narrower than Wilson's interval over target patients, which stays open at 0 and 1."""
        among = np.ones(len(hits), bool) if among is None else among
        with np.errstate(invalid="ignore"):
            drawn = (self.weights @ (hits & among)) / (self.weights @ among)
        plain = Share.of(hits, among, self.targets)
        low, high = self._limits(drawn)
        if plain.n:
            wilson = plain.limits()
            low, high = min(low, wilson[0]), max(high, wilson[1])
        method = f"share; percentiles of {len(drawn):,} draws of patients, or Wilson's interval where that is wider"
        return Estimate.of(plain.value, low, high, n=plain.n, positives=int((hits & among).sum()), method=method)

    def difference(self, ours: np.ndarray, theirs: np.ndarray) -> Estimate:
        """Of two shares of the same rows, paired."""
        apart = ours.astype(np.float32) - theirs
        with np.errstate(invalid="ignore"):
            drawn = (self.weights @ apart) / self.weights.sum(axis=1)
        low, high = self._limits(drawn)
        method = f"share less share, paired; percentiles of {len(drawn):,} draws of patients"
        return Estimate.of(float(apart.mean()), low, high, n=len(ours), positives=int(ours.sum()), method=method)


def evaluate(heads: Sequence[Head], landmarks: Landmarks, *, queries: int = 5, seed: int = 0) -> Outcome:
    """Every landmark of `queries` heads, drawn by `seed`, looked for in every head of another patient.

    Raises Misuse with fewer than two patients, or fewer landmarks than `LEAST_LANDMARKS` in the truth.
    """
    known = [head for head in heads if head.scan_id in landmarks]
    patients = {head.ids["patient_id"] for head in known}
    if len(patients) < 2:
        raise Misuse(
            f"landmarks are known in scans of {len(patients)} patient{'s' * (len(patients) != 1)}; "
            "a search goes from one patient to another",
            do="give scans of at least two",
        )
    names = sorted({name for head in known for name in landmarks[head.scan_id]})
    if len(names) < LEAST_LANDMARKS:
        raise Misuse(f"{len(names)} landmarks are too few to judge a search", do=f"give {LEAST_LANDMARKS} or more")
    drawn = np.random.default_rng(seed).permutation(len(known))[: max(1, queries)]
    rows: list[dict[str, Any]] = []
    without = 0
    for query in (known[index] for index in drawn):
        for target in known:
            if target.ids["patient_id"] != query.ids["patient_id"]:
                truth = landmarks[target.scan_id]
                without += len(names) - len(truth)
                rows += _rows(query, target, landmarks[query.scan_id], truth)
    return Outcome(pd.DataFrame(rows, columns=list(COLUMNS)), without, known[0].map.resolution_mm)


def _rows(
    query: Head, target: Head, asked: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    """A row for each landmark of the target and each method."""
    names = list(truth)
    true_mm = np.stack([truth[name] for name in names])
    query_mm = np.stack([asked.get(name, np.full(3, np.nan)) for name in names])
    can = np.isfinite(query_mm).all(axis=1)
    can[can] = query.map.holds(query_mm[can])
    matches = places_in(query.map, target.map, query_mm[can])
    answers = {OURS: matches.points_mm, **{k: of(query, target)(query_mm[can]) for k, of in BASELINES.items()}}
    back_mm = np.full(len(names), np.inf)
    back_mm[can] = matches.forward_backward_mm
    for method, found_mm in answers.items():
        error_mm = np.full(len(names), np.inf)
        error_mm[can] = np.linalg.norm(found_mm - true_mm[can], axis=1)
        for name, error, back in zip(names, error_mm.tolist(), back_mm.tolist(), strict=True):
            yield {
                "query": query.scan_id,
                "target": target.scan_id,
                "query_patient": query.ids["patient_id"],
                "target_patient": target.ids["patient_id"],
                "landmark": name,
                "method": method,
                "error_mm": error,
                "forward_backward_mm": back if method == OURS else np.nan,
            }
