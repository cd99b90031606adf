"""What makes a good number a wrong one: patients in two splits, scans in twice, labels that cannot be learned from.

Each check returns nothing where all is well, and raises a Failure that names the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from headct.evaluation.intervals import Patients
from headct.evaluation.metrics import auroc, checked
from headct.evaluation.tables import SHOWN, named
from headct.failure import Failure, Misuse

LEAST_PATIENTS = 5
"""With a finding, and as many without, for a number to say anything at all."""
COVERED_FROM = 25
"""Patients of the rarer kind from which intervals cover what they say, in simulation."""
ALIKE = 0.9999
"""Cosine of two vectors, each less the mean of all, above which the scans are as good as the same."""
SHUFFLED = 0.03
"""How far from one half the area of shuffled labels may lie."""
BLOCK = 1024
"""Vectors that are compared with others at once."""
ROUNDING = 1e-3
"""Of single precision, many times over, beside a distance of 0.014."""


@dataclass(frozen=True)
class Pair:
    """Two scans whose vectors are nearly the same."""

    first: str
    second: str
    cosine: float


def torn_patients(patient_ids: ArrayLike, parts: ArrayLike) -> list[str]:
    """Patients whose scans (n,) are in several parts, each with these; a scan in no part (empty, NaN) is of none."""
    table = pd.DataFrame({"patient": np.asarray(patient_ids), "part": np.asarray(parts, dtype=object)})
    seen = table[table["part"].notna() & (table["part"] != "")].groupby("patient")["part"].unique()
    return [f"{patient} ({', '.join(sorted(map(str, found)))})" for patient, found in seen.items() if len(found) > 1]


def patients_in_one_split(patient_ids: ArrayLike, splits: ArrayLike, what: str = "") -> None:
    """Raise Failure where scans of one patient are in several splits; `what` says of which table they are."""
    torn = torn_patients(patient_ids, splits)
    if not torn:
        return
    raise Failure(
        f"{len(torn):,} patients {what}are in more than one split: {named(torn)}",
        why="a model knows a patient again, and the number tells how well",
        do="split by patient, train again, predict again",
    )


def too_few(labels: ArrayLike, patients: Patients) -> str:
    """Why labels (n,) give no number: they are unknown, all the same, or of too few patients; nothing if they do."""
    kinds = np.asarray(labels, dtype=float)
    known = np.isfinite(kinds)
    if not known.any():
        return "every label is unknown"
    if len(np.unique(kinds[known])) == 1:
        return f"all {int(known.sum()):,} known labels are {int(kinds[known][0])}"
    with_it, without = (patients.having(known & (kinds == kind)) for kind in (1, 0))
    if min(with_it, without) < LEAST_PATIENTS:
        return f"{with_it:,} patients with the finding, {without:,} without"
    return ""


def near_duplicates(vectors: ArrayLike, scan_ids: Sequence[str], alike: float = ALIKE) -> list[Pair]:
    """Pairs of scans whose vectors (n, F) are identical or nearly so, the most alike first.

    By cosine after the mean of all was taken away, as vectors of heads share most of what they say. Unit vectors with a
    cosine of `alike` lie sqrt(2 - 2 alike) apart, and no farther on any line: so each is compared with its neighbours
    alone along one line, the one on which they spread most.
    """
    given = np.asarray(vectors, dtype=np.float32)
    if given.ndim != 2 or len(given) != len(scan_ids) or not np.isfinite(given).all():
        raise Misuse(f"vectors of shape {given.shape} for {len(scan_ids):,} scans, or some that are not numbers")
    centred = given if (given == given[:1]).all() else given - given.mean(axis=0)  # else nothing of them would be left
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    along = unit @ np.linalg.eigh(unit.T @ unit)[1][:, -1]
    order = np.argsort(along, kind="stable")
    unit, along = unit[order], along[order]
    apart = np.sqrt(2 * (1 - alike)) + ROUNDING
    found = []
    for start in range(0, len(unit), BLOCK):
        stop = min(start + BLOCK, len(unit))
        end = int(np.searchsorted(along, along[stop - 1] + apart, side="right"))
        cosine = unit[start:stop] @ unit[start:end].T
        rows, columns = np.nonzero(cosine >= alike)
        for row, column in zip(rows[columns > rows], columns[columns > rows], strict=True):
            first, second = sorted((int(order[start + row]), int(order[start + column])))
            found.append((first, second, min(1.0, float(cosine[row, column]))))
    found.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    return [Pair(scan_ids[first], scan_ids[second], cosine) for first, second, cosine in found]


def duplicates(
    vectors: ArrayLike, scan_ids: Sequence[str], patient_ids: Sequence[str], alike: float = ALIKE
) -> list[Pair]:
    """Those pairs of `near_duplicates` that are said to be of different patients."""
    patient = dict(zip(scan_ids, patient_ids, strict=True))
    return [pair for pair in near_duplicates(vectors, scan_ids, alike) if patient[pair.first] != patient[pair.second]]


def no_duplicates(
    vectors: ArrayLike, scan_ids: Sequence[str], patient_ids: Sequence[str], alike: float = ALIKE
) -> None:
    """Raise Failure where scans that are said to be of different patients have (nearly) the same vector."""
    pairs = duplicates(vectors, scan_ids, patient_ids, alike)
    if not pairs:
        return
    raise Failure(
        f"{len(pairs):,} pairs of scans of different patients have the same vector: {pairs_named(pairs)}",
        why="the same scan under two names falls into training and test, and counts twice",
        do="keep one of each, or give both the same patient_id",
    )


def pairs_named(pairs: Sequence[Pair]) -> str:
    """The first few pairs, and how many more there are."""
    names = [f"{pair.first} and {pair.second} (cosine {pair.cosine:.5f})" for pair in pairs[:SHOWN]]
    return "; ".join(names) + (f" and {len(pairs) - SHOWN:,} more" if len(pairs) > SHOWN else "")


@dataclass(frozen=True)
class Shuffled:
    """The mean area of so many shufflings of the labels, which must be one half."""

    mean: float
    shufflings: int


def shuffled_labels(labels: ArrayLike, scores: ArrayLike, seed: int = 0) -> Shuffled:
    """Shuffle labels until their mean area is known to 0.005, and look whether it is one half.

    The scores stay as they are, so whatever a model has seen, it finds mistakes of the arithmetic alone; for those of
    the training, train on shuffled labels. Raises Failure where the mean lies more than `SHUFFLED` from 0.5.
    """
    is_positive, values = checked(labels, scores)
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    values, rng = np.sort(values), np.random.default_rng(seed)  # sorted is quicker, and its labels are shuffled
    variance = (positives + negatives + 1) / (12 * positives * negatives)
    shufflings = int(np.clip(np.ceil(variance / 0.005**2), 100, 10_000))
    mean = float(np.mean([auroc(rng.permutation(is_positive), values) for _ in range(shufflings)]))
    if abs(mean - 0.5) > SHUFFLED:
        raise Failure(
            f"shuffled labels give an area of {mean:.3f}",
            why="without any knowledge it is 0.50: the table or the evaluation is at fault",
            do="report this, with the table",
        )
    return Shuffled(mean, shufflings)
