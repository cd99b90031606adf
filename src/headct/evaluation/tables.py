"""The tables that are evaluated, as `headct predict` or anyone else writes them: CSV, Parquet or Excel.

Predictions: `scan_id, finding, probability`, a row for each scan and finding; optional `threshold` (from which on the
finding is called), `ood`, `split`, and what else `headct predict` writes. Labels: `scan_id, patient_id`, then a column
for each finding, or for each of its readers, that holds 1, 0 or nothing (unknown), in the spellings of
`headct.evaluation.cells`. Other columns of the labels (`site`, `manufacturer`, `kernel`, `age`, ...) are what subgroups
are made of. Identifiers are texts: `007` is not `7`. Where labels have no `scan_id`, rows may name series, studies or
patients, if predictions tell these too, as those of `headct predict` do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from headct.evaluation.cells import (
    IDENTIFIERS,
    MEASURES,
    UNKNOWN,
    Readers,
    combined,
    expect_labels,
    nearest,
    opened,
    parsed,
    reader_of,
)
from headct.evaluation.intervals import Patients
from headct.evaluation.metrics import Array
from headct.failure import Misuse

SHOWN = 5
"""Rows that an error names before it counts the others."""
_PSEUDONYM = re.compile("[0-9a-f]{16}")
"""What `headct.reading.pseudonyms` makes of an identifier."""
NOT_FINDINGS = ("split", "age", "low", "high", "threshold", "ood", "score")
"""Columns of numbers that stand beside predictions."""
SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class Case:
    """The scans of one finding whose label is known: all (n,); `rows` says which rows of the labels they are."""

    finding: str
    scan_ids: pd.Series
    rows: np.ndarray
    labels: Array
    probabilities: Array
    splits: pd.Series  # train, validation, test, or "" where nothing is said
    patients: Patients
    unknown: int  # predictions left out because the label is empty
    ood: Array  # how unlike the training scans each is, 0 to 1; NaN where nothing is said
    threshold: float | None = None  # the model's own
    unknown_in: Mapping[str, int] = field(default_factory=dict)  # of `unknown`, by split

    def of(self, split: str) -> Case:
        """The scans of one split."""
        chosen = (self.splits == split).to_numpy()
        return replace(
            self,
            scan_ids=self.scan_ids[chosen].reset_index(drop=True),
            rows=self.rows[chosen],
            labels=self.labels[chosen],
            probabilities=self.probabilities[chosen],
            splits=self.splits[chosen].reset_index(drop=True),
            patients=self.patients.only(chosen),
            unknown=self.unknown_in.get(split, 0),
            ood=self.ood[chosen],
        )


def read_predictions(path: Path) -> pd.DataFrame:
    """Predictions, checked: `scan_id, finding` as text, `probability` in 0..1, and `split` if there is one.

    Raises Misuse for a file that is no such table, and names the rows that cannot be meant.
    """
    table = opened(path)
    _expect_rows(table, path)
    table = _checked(table, path, ("scan_id", "finding", "probability"))
    text = table["probability"].astype(str)
    numbers = pd.to_numeric(table["probability"], errors="coerce")
    wrong = ~((numbers >= 0) & (numbers <= 1))
    if wrong.any():
        raise Misuse(
            f"{path}: {_rows(table[wrong])}: the probability is {text[wrong].iloc[0] or 'empty'}",
            why="a probability is a number in 0..1",
            do="divide percentages by 100"
            if numbers.between(0, 100).all() and numbers.max() > 1
            else "turn scores into probabilities, and leave out the rows of scans that were not predicted",
        )
    table["probability"] = numbers.astype(float)
    twice = table.duplicated(["scan_id", "finding"], keep=False)
    if twice.any():
        raise Misuse(
            f"{path}: {_rows(table[twice])}: predicted more than once for {table['finding'][twice].iloc[0]}",
            why="a scan counts once",
            do="keep one row for each scan and finding",
        )
    if "split" in table:
        table["split"] = _splits(path, table)
        torn = table.groupby("scan_id")["split"].transform("nunique") > 1
        if torn.any():
            raise Misuse(
                f"{path}: {_rows(table[torn])}: {table['scan_id'][torn].iloc[0]} is in several splits",
                why="a scan is in the same split for every finding",
                do="give all of its rows the same split",
            )
    for column in ("ood", "threshold"):
        if column in table:
            table[column] = _shares(path, table, column)
    if "threshold" in table:
        for finding, own in table.groupby("finding", sort=False)["threshold"]:
            if own.nunique() > 1:
                raise Misuse(
                    f"{path}: {finding} has several thresholds: {named(sorted(own.dropna().unique()))}",
                    why="a threshold is that of a model, and these are of several",
                    do="evaluate each model apart, or leave the column out",
                )
    return table


def read_labels(path: Path) -> pd.DataFrame:
    """Labels, checked: `scan_id, patient_id` as text; other columns as they are.

    Raises Misuse for a file that is no such table, for scans listed twice and scans of nobody.
    """
    table = opened(path)
    expect_labels(table, path)
    return checked_labels(table, path)


def checked_labels(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Labels that were opened, as `read_labels` gives them."""
    table = _checked(table, path, ("scan_id", "patient_id"))
    twice = table.duplicated("scan_id", keep=False)
    if twice.any():
        raise Misuse(f"{path}: {_rows(table[twice])}: listed more than once", do="keep one row for each scan")
    nobody = table["patient_id"].str.lower().isin(UNKNOWN)
    if nobody.any():
        raise Misuse(
            f"{path}: {_rows(table[nobody])}: the patient_id is empty",
            why="intervals count patients, and scans of one patient must be known to be so",
            do="fill it in; where each scan is of a patient of its own, copy scan_id",
        )
    return table


def agreed(
    labels: pd.DataFrame, findings: Sequence[str], readers: Readers = "majority"
) -> tuple[pd.DataFrame, list[str]]:
    """Labels with one column for each of the findings that several readers have read, and sentences on how.

    A column of the finding itself goes before those of readers. Raises Misuse for a reader's value that is no label.
    """
    lines, made = [], {}
    for finding in findings:
        ones = [name for name in map(str, labels.columns) if name != finding and reader_of(name)[0] == finding]
        if len(ones) < 2:  # one alone may not mean a reader
            continue
        if finding in labels:
            lines.append(f"no finding (a reader's, and there is {finding} itself): {', '.join(ones)}")
        else:
            made[finding] = combined([labels_of(labels, one) for one in ones], readers)
            lines.append(f"{finding} is the {readers} rule over {', '.join(ones)}")
    return labels.assign(**made), lines


def label_counts(predictions: pd.DataFrame, labels: pd.DataFrame) -> list[str]:
    """How many of the predicted scans have each predicted finding, in sentences."""
    rows = labels["scan_id"].isin(predictions["scan_id"]).to_numpy()
    lines = []
    for finding in map(str, dict.fromkeys(predictions["finding"])):
        if finding in labels:
            known = labels_of(labels, finding)[rows]
            with_it, without = int((known == 1).sum()), int((known == 0).sum())
            unknown = len(known) - with_it - without
            lines.append(f"{finding} by their labels: {with_it:,} with it, {without:,} without, {unknown:,} unknown")
    return lines


def read_measured(path: Path) -> pd.DataFrame:
    """Measurements: `scan_id` as text, other columns as they are. Raises Misuse where scans are listed twice."""
    table = _checked(opened(path), path, ("scan_id",))
    twice = table.duplicated("scan_id", keep=False)
    if twice.any():
        raise Misuse(f"{path}: {_rows(table[twice])}: measured more than once", do="keep one row for each scan")
    return table


def labels_of(labels: pd.DataFrame, finding: str) -> Array:
    """One column of labels as 1, 0 or NaN, (rows,). Raises Misuse, with the rows named, for anything else."""
    values, wrong = parsed(stripped(labels[finding]).tolist())
    if wrong:
        raise Misuse(
            f"labels of {finding}: {_rows(labels.iloc[wrong])}: {labels[finding].iloc[wrong[0]]!r} is no label",
            why="a label is 1, 0 or empty (unknown)",
            do="mend these rows, or leave the column out",
        )
    return values


def join(predictions: pd.DataFrame, labels: pd.DataFrame) -> tuple[dict[str, Case], list[str]]:
    """The cases of each finding that has both predictions and a column of labels, and notes on what has only one.

    Raises Misuse where nothing matches.
    """
    known = pd.Index(labels["scan_id"])
    matched = predictions["scan_id"].isin(known)
    if not matched.any():
        raise none_match("scan_id", predictions["scan_id"], labels["scan_id"])
    predicted = list(dict.fromkeys(predictions["finding"]))
    both = [finding for finding in predicted if finding in labels.columns]
    if not both:
        columns = [str(name) for name in labels.columns if name not in ("scan_id", "patient_id")]
        near = {name: close for name in map(str, predicted) if (close := nearest(name, columns))}
        raise Misuse(
            f"no predicted finding ({', '.join(predicted)}) has a column of labels",
            why=f"the labels have {', '.join(columns) or 'no other columns'}",
            do="name findings alike in both tables" + "".join(f"; is {name} {close}?" for name, close in near.items()),
        )
    notes = listed(predictions[~matched]["scan_id"], "scans are predicted but not in the labels")
    missing = [finding for finding in predicted if finding not in both]
    if missing:
        notes.append(f"predicted, but without labels: {', '.join(missing)}")
    patients = Patients.of(labels["patient_id"])
    cases = {}
    for finding in both:
        of_finding = predictions[matched & (predictions["finding"] == finding)]
        told = known.get_indexer(of_finding["scan_id"])
        truth = labels_of(labels, finding)
        left = int((~np.isnan(truth)).sum() - (~np.isnan(truth[told])).sum())
        if left:
            absent = labels["scan_id"][~np.isnan(truth) & ~labels["scan_id"].isin(of_finding["scan_id"])]
            notes += listed(absent, f"scans have a label of {finding} but no prediction")
        cases[finding] = _case(finding, of_finding, told, truth, patients)
    return cases, notes


def none_match(by: str, predicted: pd.Series, labelled: pd.Series, also: str = "") -> Misuse:
    """The error for two tables that name nothing alike; `also` is another way out."""
    do = "call them alike in both tables"
    if predicted.map(lambda name: bool(_PSEUDONYM.fullmatch(name))).all():
        how = (
            "by their series_id, study_id or patient_id" if by == "scan_id" else "as they are: predict with --keep-ids"
        )
        do = f"name them {how}; or judge the detector by --detector, --cohort and --key, which hides ids alike"
    return Misuse(
        f"no {by} of the predictions is in the labels",
        why=f"predictions have {_some(predicted)}; labels have {_some(labelled)}",
        do=f"{do}{also}",
    )


def _case(finding: str, predictions: pd.DataFrame, rows: np.ndarray, truth: Array, patients: Patients) -> Case:
    kept = ~np.isnan(truth[rows])
    of_known = predictions[kept].reset_index(drop=True)
    splits = of_known["split"] if "split" in of_known else pd.Series([""] * len(of_known), dtype=object)
    return Case(
        finding=finding,
        scan_ids=of_known["scan_id"],
        rows=rows[kept],
        labels=truth[rows[kept]],
        probabilities=of_known["probability"].to_numpy(dtype=float),
        splits=splits,
        patients=patients.only(rows[kept]),
        unknown=int((~kept).sum()),
        ood=of_known["ood"].to_numpy(dtype=float) if "ood" in of_known else np.full(len(of_known), np.nan),
        threshold=_own_threshold(of_known),
        unknown_in=Counter(predictions["split"][~kept]) if "split" in predictions else {},
    )


def _own_threshold(predictions: pd.DataFrame) -> float | None:
    if "threshold" not in predictions or not len(own := predictions["threshold"].dropna()):
        return None
    return float(own.iloc[0])


def stripped(column: pd.Series) -> pd.Series:
    """A column as text; what is missing is empty."""
    return column.astype(object).where(column.notna(), "").astype(str).str.strip()


def texts(column: pd.Series) -> pd.Series:
    """A column as small letters; whatever says that nothing is known is empty."""
    text = stripped(column).str.lower()
    return text.where(~text.isin(UNKNOWN), "")


def _expect_rows(table: pd.DataFrame, path: Path) -> None:
    """Raises Misuse for what has columns of findings instead of rows: predictions of that form, or labels."""
    if {"finding", "probability"} & set(map(str.lower, map(str, table.columns))):
        return
    texts_of = {
        name: stripped(table[name])
        for name in map(str, table)
        if name not in (*IDENTIFIERS, *NOT_FINDINGS) and not name.endswith(MEASURES)
    }
    labels = [name for name, text in texts_of.items() if _holds_labels(text)]
    numbers = {name: pd.to_numeric(text, errors="coerce") for name, text in texts_of.items() if name not in labels}
    wide = [name for name, values in numbers.items() if values.between(0, 1).all()]
    if len(wide) > 1 and "scan_id" in table:
        raise Misuse(
            f"{path} has a column for each finding: {', '.join(wide)}",
            why="predictions have a row for each scan and finding, in the columns scan_id, finding, probability",
            do=f"turn columns into rows; in pandas: table.melt('scan_id', {wide}, 'finding', 'probability')",
        )
    if labels and not wide:
        raise Misuse(
            f"{path} holds labels, and no predictions",
            why=f"it has no column finding and no column probability, and {', '.join(labels)} hold 1, 0 or nothing",
            do="name it by --labels, and by --predictions the table with the probabilities",
        )


def _holds_labels(text: pd.Series) -> bool:
    values, wrong = parsed(text.tolist())
    return not wrong and bool(np.isfinite(values).any())


def expect_columns(table: pd.DataFrame, path: Path, needed: Sequence[str]) -> None:
    """Raises Misuse where columns are missing, with what to do."""
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise Misuse(
            f"{path} has no column {' and no column '.join(missing)}",
            why=f"it has {', '.join(map(str, table.columns))}",
            do=_remedy(missing, table, needed),
        )


def _checked(table: pd.DataFrame, path: Path, needed: Sequence[str]) -> pd.DataFrame:
    expect_columns(table, path, needed)
    for name in (*IDENTIFIERS, "finding"):
        if name in table:
            table[name] = stripped(table[name])
    nameless = table["scan_id"].str.lower().isin(UNKNOWN)
    if nameless.any():
        raise Misuse(f"{path}: {_numbers(nameless)}: the scan_id is empty", do="name every scan")
    return table


def _remedy(missing: Sequence[str], table: pd.DataFrame, needed: Sequence[str]) -> str:
    if list(missing) != ["patient_id"]:
        return f"give it the columns {', '.join(needed)}"
    near = nearest("patient_id", [str(name) for name in table if name not in IDENTIFIERS])
    rename = f"call the column {near} patient_id, if it tells patients" if near else "add the patient of each scan"
    own = next(name for name in IDENTIFIERS if name in table)
    return f"{rename}; where each scan is of a patient of its own, copy {own} into a column patient_id"


def _splits(path: Path, table: pd.DataFrame) -> pd.Series:
    text = texts(table["split"])
    wrong = ~text.isin([*SPLITS, ""])
    if wrong.any():
        raise Misuse(
            f"{path}: {_rows(table[wrong])}: {text[wrong].iloc[0]!r} is no split",
            do="a split is train, validation or test",
        )
    return text.map({**SPLITS, "": ""})


def _shares(path: Path, table: pd.DataFrame, column: str) -> pd.Series:
    """A column of numbers in 0..1, NaN where nothing is said."""
    text = texts(table[column])
    numbers = pd.to_numeric(text.where(text != ""), errors="coerce")
    wrong = (text != "") & ~((numbers >= 0) & (numbers <= 1))
    if wrong.any():
        raise Misuse(
            f"{path}: {_rows(table[wrong])}: {column} is {text[wrong].iloc[0]!r}",
            do=f"{column} is a number in 0..1, or empty; leave the column out where it is not known",
        )
    return numbers.astype(float)


def _rows(chosen: pd.DataFrame) -> str:
    """The scans of these rows, so that they can be found."""
    return named(list(dict.fromkeys(chosen["scan_id"])))


def named(names: Sequence[object]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(map(str, names[:SHOWN]))
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN:,} more"


def _numbers(chosen: pd.Series) -> str:
    return f"row {named([int(row) + 2 for row in np.flatnonzero(chosen)])}"  # as a spreadsheet counts


def _some(identifiers: pd.Series) -> str:
    return ", ".join(repr(name) for name in identifiers.head(3))


def listed(scans: pd.Series, what: str) -> list[str]:
    """A sentence on these, with their names; none where there are none."""
    names = list(dict.fromkeys(scans))
    return [f"{len(names):,} {what}: {named(names)}"] if names else []
