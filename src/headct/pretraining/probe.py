"""A look at labels while a run goes on: nearest neighbours of frozen vectors, which nothing is trained by.

It says early whether vectors are of any use. It is no result: the scans are those that the run learns from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from headct.encoders import Encoder, Window, as_input
from headct.failure import Misuse
from headct.pretraining.scans import Scans

NEIGHBOURS = 10
LEAST_CASES = 5
"""Of either kind, for an area under the curve to say anything."""

IDENTIFIERS = {"scan_id", "patient_id", "study_id", "series_id", "site", "age", "sex"}


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Which labels are looked at, and how often."""

    labels: str  # a table with `scan_id` and a column of 1, 0 or nothing for each finding
    findings: tuple[str, ...] = ()  # all columns that hold nothing but 1, 0 or nothing, if none is named
    every: int = 200  # steps
    scans: int = 200  # at most, drawn by the seed

    def __post_init__(self) -> None:
        if min(self.every, self.scans) < 1:
            raise Misuse(f"a probe looks every so many steps at so many scans, got {self.every} and {self.scans}")


@dataclass(frozen=True)
class Probe:
    """The labelled scans of a run, and what is known of them."""

    scans: Scans
    rows: Sequence[tuple[int, str]]  # cohort and scan id
    patients: np.ndarray  # (n,)
    labels: pd.DataFrame  # 1, 0 or NaN, a column a finding
    windows: Sequence[Window]
    every: int  # steps

    def look(self, encoder: Encoder, device: str, batch: int = 8) -> dict[str, float]:
        """The area under the curve of each finding, and their mean as `knn`.

        A scan is scored by the labels of its `NEIGHBOURS` nearest scans of other patients, by cosine.
        """
        modes = {module: module.training for module in encoder.modules()}
        encoder.eval()
        vectors = []
        with torch.inference_mode():
            for start in range(0, len(self.rows), batch):
                some = [self.scans.load(*row).hu for row in self.rows[start : start + batch]]
                x = as_input(torch.from_numpy(np.stack(some)).to(device), self.windows)
                spacing_mm = torch.tensor([self.scans.spacing_mm] * len(some), device=device)
                vectors.append(encoder(x, spacing_mm).scan.float().cpu())
        for module, training in modes.items():  # a teacher's parts need not agree
            module.training = training
        areas = {name: self._area(torch.cat(vectors), name) for name in map(str, self.labels)}
        return {f"knn_{name}": area for name, area in areas.items()} | {"knn": float(np.mean(list(areas.values())))}

    def _area(self, vectors: Tensor, finding: str) -> float:
        from sklearn.metrics import roc_auc_score

        label = self.labels[finding].to_numpy(dtype=float)
        known = np.isfinite(label)
        return float(roc_auc_score(label[known], neighbour_scores(vectors[known], label[known], self.patients[known])))


def neighbour_scores(vectors: Tensor, labels: np.ndarray, patients: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Mean label (n,) of the `k` nearest of vectors (n, F) that are of other patients, by cosine."""
    unit = torch.nn.functional.normalize(vectors - vectors.mean(dim=0), dim=1)
    cosine = (unit @ unit.T).numpy()
    cosine[patients[:, None] == patients] = -np.inf
    nearest = np.argsort(-cosine, axis=1)[:, : min(k, len(labels) - 1)]
    scores: np.ndarray = labels[nearest].mean(axis=1)
    return scores


def probe_of(settings: ProbeSettings, scans: Scans, windows: Sequence[Window], seed: int) -> Probe:
    """Raises Misuse where the table says too little of the scans of the run."""
    path = Path(settings.labels)
    try:
        table = pd.read_csv(path, dtype={"scan_id": str}).dropna(subset=["scan_id"]).set_index("scan_id")
    except (OSError, KeyError, ValueError) as error:
        raise Misuse(
            f"{path} is no table of labels", why=str(error), do="give a CSV with scan_id and findings"
        ) from error
    twice = table.index[table.index.duplicated()].unique()
    if len(twice):
        raise Misuse(f"{path} has {len(twice)} scans twice, such as {twice[0]}", do="give one row a scan")
    labelled = [(case.cohort, case.scan_id) for case in scans.cases if case.scan_id in table.index]
    chosen = np.random.default_rng(seed).permutation(len(labelled))[: settings.scans]
    rows = [labelled[index] for index in sorted(chosen.tolist())]
    labels = table.loc[[scan_id for _, scan_id in rows]]
    names = list(settings.findings) or [name for name in map(str, labels) if _is_label(labels, name)]
    missing = [name for name in names if name not in labels]
    if missing:
        raise Misuse(f"{path} has no column {missing[0]!r}", do=f"name some of {', '.join(map(str, labels.columns))}")
    told = [name for name in names if min((labels[name] == value).sum() for value in (0, 1)) >= LEAST_CASES]
    if not told:
        raise Misuse(
            f"{path} has no finding with {LEAST_CASES} scans of this run that have it and {LEAST_CASES} that do not",
            do="give labels of more scans, or leave the probe out",
        )
    patient_of = {
        str(scan_id): str(patient)
        for cohort in scans.cohorts
        for scan_id, patient in zip(cohort.scans["scan_id"], cohort.scans["patient_id"], strict=True)
    }
    patients = np.array([patient_of[scan_id] for _, scan_id in rows])
    return Probe(scans, rows, patients, labels[told].reset_index(drop=True), windows, settings.every)


def _is_label(table: pd.DataFrame, name: str) -> bool:
    return name not in IDENTIFIERS and set(table[name].dropna().unique()) <= {0, 1}
