"""Labels of a table that need not name scans itself: predictions tell which series, study and patient each is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from headct.evaluation.cells import IDENTIFIERS, MEASURES, SIDE, UNKNOWN, expect_labels, opened
from headct.evaluation.tables import checked_labels, expect_columns, listed, named, none_match, stripped
from headct.failure import Misuse

SCAN, PATIENT = "scan_id", "patient_id"


def labels_for(path: Path, predictions: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, list[str]]:
    """As `read_labels`, and in sentences how rows match the first of the predictions, and which do not.

    A row labels all scans that it names by what is most exact of `IDENTIFIERS` (`_best`); patients are those of the
    predictions where the labels tell none. Raises Misuse where nothing matches, or two rows name the same.
    """
    table = opened(path)
    expect_labels(table, path)
    rows = table.drop(columns=[name for name in IDENTIFIERS if name in table and not _told(table[name]).any()])
    scans = pd.concat([one[[name for name in IDENTIFIERS if name in one]] for one in predictions])
    scans = scans.drop_duplicates(SCAN).reset_index(drop=True)
    by = _best(rows, scans, path)
    told_patients = PATIENT in rows
    if not told_patients and not (PATIENT in scans and _told(scans[PATIENT]).all()):
        expect_columns(rows, path, (PATIENT,))
    first = predictions[0][SCAN]
    if by == SCAN and told_patients:
        labels, lines = checked_labels(rows, path), list[str]()
    else:
        rows, lines = _once_each(rows, by, scans, path)
        wanted = dict.fromkeys((SCAN, by) if told_patients else (SCAN, by, PATIENT))
        labels = scans[list(wanted)].merge(rows.drop(columns={SCAN} & (set(rows) - {by})), on=by)
        labels, more = _measured_once(labels, by, labels[SCAN].isin(first))
        labels = checked_labels(labels, path)
        lines += more
    if not told_patients:
        lines.append(_whose(labels))
    matched = labels[by][labels[SCAN].isin(first)].nunique()
    return labels, [f"{matched:,} of {len(table):,} rows of labels match by {by}", *lines]


def _told(column: pd.Series) -> pd.Series:
    return ~stripped(column).str.lower().isin(UNKNOWN)


def _best(rows: pd.DataFrame, scans: pd.DataFrame, path: Path) -> str:
    """The most exact identifier that every row tells and that names a scan, or else the one that most rows match by.

    A patient's name is not tried where rows tell something finer: patients 1, 2, 3 are at every hospital. Raises Misuse
    where nothing matches.
    """
    both = [name for name in IDENTIFIERS if name in rows and name in scans and _told(scans[name]).any()]
    if not both:
        raise Misuse(
            f"{path} names no scan of the predictions",
            why=f"it has {', '.join(map(str, rows.columns))}; predictions have {', '.join(scans.columns)}",
            do=f"add a column {' or '.join(scans.columns)} to it{_by_path(rows)}",
        )
    finer = [name for name in both if name != PATIENT] or both
    matched = {
        name: int((_told(rows[name]) & stripped(rows[name]).isin(stripped(scans[name]))).sum()) for name in finer
    }
    if not any(matched.values()):
        raise none_match(finer[0], stripped(scans[finer[0]]), stripped(rows[finer[0]]), also=_by_path(rows))
    whole = [name for name in finer if matched[name] and _told(rows[name]).all()]
    return whole[0] if whole else max(finer, key=lambda name: matched[name])


def _by_path(rows: pd.DataFrame) -> str:
    return "; or judge the detector by --detector and --cohort, where rows may name files" if "path" in rows else ""


def _once_each(rows: pd.DataFrame, by: str, scans: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The rows that name something, and in sentences which do not, or name no predicted scan.

    Raises Misuse where two name the same.
    """
    rows = rows.assign(**{by: stripped(rows[by])})
    silent = ~_told(rows[by])
    lines = [f"{int(silent.sum()):,} rows of labels tell no {by}"] if silent.any() else []
    rows = rows[~silent]
    twice = rows.duplicated(by, keep=False)
    if twice.any():
        raise Misuse(
            f"{path}: {named(list(dict.fromkeys(rows[by][twice])))}: listed more than once",
            why=f"rows are matched by {by}, and which of them is right cannot be known",
            do=f"keep one row for each {by}, or name each scan by {SCAN}",
        )
    return rows, lines + listed(rows[by][~rows[by].isin(stripped(scans[by]))], "rows of labels name no predicted scan")


def _measured_once(labels: pd.DataFrame, by: str, ours: pd.Series) -> tuple[pd.DataFrame, list[str]]:
    """Without measurements of rows that label several of our scans: whose of them they are is not known."""
    times = labels[by][ours].value_counts()
    several = labels[by].isin(times.index[times > 1])
    if not several.any():
        return labels, []
    measured = [name for name in map(str, labels) if name.endswith((*MEASURES, SIDE))]
    labels = labels.assign(**{name: labels[name].astype(object).where(~several, "") for name in measured})
    to_none = ", its measurements to none" if measured else ""
    unit, number = by.removesuffix("_id"), labels[by][several].nunique()
    return labels, [f"{number:,} rows gave the label of a {unit} to several scans of it{to_none}"]


def _whose(labels: pd.DataFrame) -> str:
    """How many patients there are by the predictions, which take a file that names none for a patient of its own."""
    patients, scans = labels[PATIENT].nunique(), len(labels)
    told = f"patients are those of the predictions: {patients:,} of {scans:,} scans"
    if patients < scans:
        return told
    return f"{told}; if some are of one patient, intervals are too narrow: give the labels a column {PATIENT}"
