"""Who is learned from, validated on, and kept for a test: by patient, fixed by a seed, written as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from headct.evaluation.cells import read_table
from headct.evaluation.leakage import torn_patients
from headct.evaluation.tables import SPLITS, named
from headct.failure import Misuse

PARTS = ("train", "validation", "test")


def split(labels: np.ndarray, patients: Sequence[str], shares: Mapping[str, float], seed: int) -> np.ndarray:
    """The part (n,) of each scan, so that no patient is in two and each finding is shared out as the patients are.

    `labels` (n, f) are 1, 0 or NaN; `shares` add up to 1. Iterative stratification (Sechidis et al. 2011) over
    patients: what fewest of those left have, a finding or a known lack of it, is shared out first, each of its patients
    to the part that wants it most. What comes out does not depend on the order of the scans.
    """
    names, row_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)  # sorted
    has = np.zeros((len(names), 2 * labels.shape[1]), dtype=bool)
    np.logical_or.at(has, row_of, np.concatenate([labels == 1, labels == 0], axis=1))
    parts, wanted = list(shares), np.array(list(shares.values()))
    lacking = np.outer(wanted, has.sum(axis=0))  # (parts, 2 f), patients with it that each part should still get
    room = wanted * len(names)
    place = np.full(len(names), -1)
    rng = np.random.default_rng(seed)
    left = rng.permutation(len(names))
    while len(left):
        counts = has[left].sum(axis=0)
        rarest = int(np.argmin(np.where(counts > 0, counts, len(names) + 1))) if counts.any() else -1
        chosen = left[has[left, rarest]] if rarest >= 0 else left
        for patient in chosen:
            lacks = lacking[:, rarest] if rarest >= 0 else room
            most = np.flatnonzero(lacks >= lacks.max() - 1e-9)
            part = most[np.argmax(room[most])]
            place[patient] = part
            lacking[part] -= has[patient]
            room[part] -= 1
        left = left[place[left] < 0]
    return np.array(parts, dtype=object)[place[row_of]]


def splits_table(
    scan_ids: Sequence[str], patients: Sequence[str], parts: np.ndarray, told: Sequence[str] | None = None
) -> pd.DataFrame:
    """scan_id, patient_id, split: to publish with what was found, and read again by `read_splits`.

    `told` is what a table of labels called the patients (`Labels.told`), in the column `told_patient`: by it another
    table that calls one of them alike is known.
    """
    table = pd.DataFrame({"scan_id": list(scan_ids), "patient_id": list(patients), "split": parts})
    return table if told is None else table.assign(told_patient=list(told))


def read_splits(path: Path, scan_ids: Sequence[str], patients: Sequence[str]) -> np.ndarray:
    """The part (n,) of each scan by a table with `split` and `scan_id` or `patient_id`.

    It is empty for a scan that the table does not name, or leaves empty, as `splits_table` does.

    Raises Misuse where a split has another name than `PARTS` (or `val`, as public sets are prepared), the table names
    none of the scans, or a patient is in two parts.
    """
    table = read_table(path)
    column = next((name for name in ("scan_id", "patient_id") if name in table), None)
    if column is None or "split" not in table:
        raise Misuse(
            f"{path} is no table of splits: its columns are {', '.join(map(str, table.columns))}",
            do=f"give scan_id or patient_id, and split, which is {', '.join(PARTS)}",
        )
    table = table[table["split"] != ""]
    strange = sorted(set(table["split"]) - set(SPLITS))
    if strange:
        raise Misuse(f"{path} has a split called {strange[0]!r}", do=f"call it one of {', '.join(PARTS)}")
    part_of: dict[str, str] = {}
    for name, part in zip(table[column], table["split"].map(SPLITS), strict=True):
        if part_of.setdefault(name, part) != part:
            raise Misuse(f"{path} has {name} in {part_of[name]} and in {part}", do="keep each in one")
    parts = np.array([part_of.get(name, "") for name in (scan_ids if column == "scan_id" else patients)], dtype=object)
    if not (parts != "").any():
        raise Misuse(f"{path} names none of the labelled scans", do=f"check that its {column} are those of the cohort")
    check_patients(parts, patients, path.name)
    return parts


def check_patients(parts: np.ndarray, patients: Sequence[str], what: str) -> None:
    """Raises Misuse where a patient is in more than one part."""
    torn = torn_patients(patients, parts)
    if torn:
        raise Misuse(
            f"{what} has patients in several splits: {named(torn)}",
            why="what is learned of a patient would be tested on the same patient",
            do="put all scans of a patient into one split",
        )
