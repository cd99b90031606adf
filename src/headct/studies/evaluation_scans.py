"""Which scans detectors are tested on: labelled, and of patients that none of them has learned from or validated on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from headct.cohort import Cohort
from headct.cohort.identities import ids_of, pseudonyms_of, strangers
from headct.cohort.labels import Account, joined_patients, read_labels
from headct.detection import Detector
from headct.evaluation import subgroups
from headct.evaluation.cells import Readers, read_table
from headct.evaluation.tables import named, texts
from headct.failure import Failure, Misuse
from headct.reading.pseudonyms import Pseudonyms
from headct.reporting.words import count

GROUPS = ("site", "manufacturer", "kernel", "thickness_mm", "tilt_deg", "age", "sex")
"""Columns of `scans.parquet` by which every evaluation is divided, where they tell scans apart."""
USED = ("train", "validation")
"""Splits whose patients a detector has seen, the one that taught it most first."""
SPLITS, SHOTS = "splits.csv", "shots.csv"


@dataclass(frozen=True)
class Entry:
    """A detector under the name that tables and pages call it by, with the tables beside it, where they are there.

    `splits` have scan_id, patient_id, split; `shots` the scans that were drawn, where few were learned from.
    """

    name: str
    detector: Detector
    splits: pd.DataFrame | None
    shots: pd.DataFrame | None

    @property
    def pseudonyms(self) -> tuple[str, ...]:
        """Fingerprints of the keys of the cohorts that it was made from; `none` for original ids."""
        return tuple(self.detector.record.get("labels", {}).get("pseudonyms", ()))


@dataclass(frozen=True)
class Labelled:
    """All labelled scans of the cohorts.

    `table` has a row for each: scan_id, patient_id, cohort, a column of 1, 0 or NaN for each of `findings`, what scans
    are grouped by (as the cohorts have it, and where they do not say, the labels), and measurements. `parts` (n,) are
    train, validation or test.
    """

    table: pd.DataFrame
    findings: tuple[str, ...]
    groups: tuple[str, ...]
    parts: np.ndarray
    accounts: Sequence[Account]
    notes: tuple[str, ...]

    @property
    def scan_ids(self) -> list[str]:
        """In the order of the table."""
        return [str(one) for one in self.table["scan_id"]]

    @property
    def tested(self) -> pd.DataFrame:
        """The rows that are tested."""
        return self.table[self.parts == "test"].reset_index(drop=True)


def open_detectors(folders: Sequence[Path], model: str | None = None) -> list[Entry]:
    """Detectors called by their folders; by the folder above too, where two are called alike."""
    alike = len({folder.resolve().name for folder in folders}) < len(folders)
    entries = []
    for folder in folders:
        place = folder.resolve()
        name = f"{place.parent.name}/{place.name}" if alike else place.name
        tables = [read_table(place / one) if (place / one).is_file() else None for one in (SPLITS, SHOTS)]
        entries.append(Entry(name, Detector.load(folder, model=model), *tables))
    if len({entry.name for entry in entries}) < len(entries):
        raise Misuse("a detector is named twice", do="name each folder once")
    return entries


def labelled_scans(
    entries: Sequence[Entry],
    cohorts: Sequence[Cohort],
    tables: Sequence[Path],
    *,
    readers: Readers = "majority",
    key: bytes | None = None,
    preferred: bool = False,
    groups: Sequence[str] = (),
) -> Labelled:
    """The labelled scans of the cohorts, and which of them may be tested; of each study one series if `preferred`.

    Each table is matched to all cohorts as `headct adapt` does it. `key` is what pseudonyms were made with: by it a
    patient is known again where a detector has pseudonyms and a cohort has ids, or the other way round. `groups` are
    columns of the tables that are to be kept. Raises Misuse where a table does not fit, two of them label a scan, or
    none has a finding of a detector; Failure where no scan is left to test.
    """
    read = [
        read_labels(table, cohorts, readers=readers, key=key, preferred=preferred, beside=groups) for table in tables
    ]
    values = pd.concat([one.values for one in read])
    twice = values.index[values.index.duplicated()]
    if len(twice):
        both = [str(table) for table, one in zip(tables, read, strict=True) if one.values.index.isin(twice).any()]
        raise Misuse(
            f"several tables label the same scans: {named(list(twice))}",
            why=f"they are in {', '.join(both)}",
            do="label each scan in one table",
        )
    told = pd.concat([one.told for one in read])
    of_tables = pd.concat([one.patients for one in read]).astype(str)
    patients = pd.Series(joined_patients(of_tables.tolist(), told.tolist()), index=of_tables.index)
    predicted = list(dict.fromkeys(name for entry in entries for name in entry.detector.findings))
    _expect_findings(entries, values)
    findings = tuple(name for name in predicted if name in values)
    values = values[values[list(findings)].notna().any(axis=1)]
    if values.empty:
        raise Failure(f"every label of {', '.join(findings)} is unknown", do="fill in 1 or 0 where it is known")
    table = _table(values[list(findings)], patients.loc[values.index], cohorts)
    about, measured = (pd.concat([getattr(one, name) for one in read]) for name in ("about", "measured"))
    table, completed = _completed(table, about.join(measured[measured.columns.difference(about.columns, sort=False)]))
    names = _all_names(table, told.loc[table["scan_id"]].tolist(), cohorts, key)
    parts, notes = _parts(table, names, entries, key)
    notes += [*_unknown_alike(entries, cohorts, key), *completed]
    missing = [name for name in predicted if name not in findings]
    if missing:
        notes.append(f"detected, but without labels: {', '.join(missing)}")
    if not (parts == "test").any():
        raise Failure(
            f"no labelled scan is left to test: all {len(table):,} are of patients that "
            f"{named([entry.name for entry in entries])} learned from or validated on",
            why="a detector knows its own patients, and the numbers would tell how well",
            do="keep patients out of it (`headct adapt --test 0.2`), or name a cohort that it has not seen",
        )
    telling = tuple(_telling(table[parts == "test"], findings))
    return Labelled(table, findings, telling, parts, _told_apart([one.account for one in read], tables), tuple(notes))


def _told_apart(accounts: Sequence[Account], tables: Sequence[Path]) -> list[Account]:
    """Accounts whose tables are called as they were typed where files of different folders have one name."""
    alike = len({table.name for table in tables}) < len(tables)
    pairs = zip(accounts, tables, strict=True)
    return [replace(account, table=str(table)) if alike else account for account, table in pairs]


def _expect_findings(entries: Sequence[Entry], values: pd.DataFrame) -> None:
    """Raises Misuse where a detector has no finding among the columns of labels."""
    for entry in entries:
        if not any(name in values for name in entry.detector.findings):
            raise Misuse(
                f"the labels have none of the findings that {entry.name} detects: {', '.join(entry.detector.findings)}",
                why=f"they have {', '.join(map(str, values.columns))}",
                do="call them alike, name the labels of these findings, or leave this detector out",
            )


def _table(values: pd.DataFrame, patients: pd.Series, cohorts: Sequence[Cohort]) -> pd.DataFrame:
    scans = pd.concat(
        [
            cohort.scans[["scan_id", *GROUPS]].assign(cohort=name)
            for name, cohort in zip(names_of(cohorts), cohorts, strict=True)
        ],
        ignore_index=True,
    ).drop_duplicates("scan_id")
    known = scans.set_index("scan_id").loc[values.index]
    table = pd.concat([patients.rename("patient_id"), known["cohort"], values, known[list(GROUPS)]], axis=1)
    return table.rename_axis("scan_id").reset_index()


def _completed(table: pd.DataFrame, about: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """With what tables of labels say beside (`about`, by scan): in empty cells of `GROUPS`, else as a column more."""
    notes = []
    for name in map(str, about):
        said = table["scan_id"].map(about[name])
        if name not in table:
            table = table.assign(**{name: said})
        elif name in GROUPS:
            said = pd.to_numeric(said, errors="coerce") if is_numeric_dtype(table[name]) else said
            empty = (texts(table[name]) == "") & (texts(said) != "")
            if empty.any():
                table = table.assign(**{name: table[name].where(~empty, said)})
                notes.append(f"{name} of {count(int(empty.sum()), 'scan')} is from the labels, as no cohort says it")
        elif name == "cohort" and (texts(table[name]) != texts(said)).any():
            notes.append("cohort is the name of the folder; the column of the labels is not used")
    return table, notes


def names_of(cohorts: Sequence[Cohort]) -> list[str]:
    """What cohorts are called: by their folder, and by the one above where two are called alike."""
    places = [cohort.path.resolve() for cohort in cohorts]
    alike = len({place.name for place in places}) < len(places)
    names = [f"{place.parent.name}/{place.name}" if alike else place.name for place in places]
    if len(set(names)) < len(names):
        raise Misuse("a cohort is named twice", do="name each folder once")
    return names


def _all_names(table: pd.DataFrame, told: Sequence[str], cohorts: Sequence[Cohort], key: bytes | None) -> pd.DataFrame:
    """scan_id, patient_id: a row for everything that labels, tables of labels (`told`) or cohorts call its patient."""
    own = table[["scan_id", "patient_id"]]
    names = pd.concat([own, own.assign(patient_id=told), *(one.scans[["scan_id", "patient_id"]] for one in cohorts)])
    return _with_pseudonyms(names, key)


def _with_pseudonyms(names: pd.DataFrame, key: bytes | None) -> pd.DataFrame:
    """Rows with a `patient_id`, and again with the pseudonym that the key makes of it."""
    names = names[names["patient_id"].fillna("") != ""].astype({"patient_id": str})
    if key is None:
        return names
    hidden = [Pseudonyms(key).of("patient", name) for name in names["patient_id"]]
    return pd.concat([names, names.assign(patient_id=hidden)])


def _parts(
    table: pd.DataFrame, names: pd.DataFrame, entries: Sequence[Entry], key: bytes | None
) -> tuple[np.ndarray, list[str]]:
    """The part (n,) of each scan, the strictest of all detectors'; sentences on patients that turn up again.

    A patient is known by any name that a detector's splits have for one, or that is given here (`names`) to a scan in
    these splits: another table of labels may have joined scans under another name.
    """
    parts = np.full(len(table), "test", dtype=object)
    notes = []
    for entry in entries:
        if entry.splits is None:
            notes.append(
                f"{entry.name} has no {SPLITS} beside it: whether it was made from these patients cannot be known"
            )
            continue
        own = _part_of(entry.splits, "scan_id")
        called = names.assign(split=names["scan_id"].map(own))
        of_name = _part_of(pd.concat([_with_pseudonyms(_names(entry.splits), key), called]), "patient_id")
        of_scan = _part_of(names.assign(split=names["patient_id"].map(of_name)), "scan_id")
        of_patient = _part_of(
            table[["scan_id", "patient_id"]].assign(split=table["scan_id"].map(of_scan)), "patient_id"
        )
        again = []
        for row, (scan_id, patient) in enumerate(zip(table["scan_id"], table["patient_id"], strict=True)):
            part = of_patient.get(patient, "test")
            if part == "test":
                continue
            if scan_id not in own:
                again.append(f"{patient} ({scan_id})")
            if part == USED[0] or parts[row] == "test":
                parts[row] = part
        if again:
            notes.append(
                f"left out, as {entry.name} knows their patients from other scans: {len(again):,} scans, {named(again)}"
            )
    return parts, notes


def _unknown_alike(entries: Sequence[Entry], cohorts: Sequence[Cohort], key: bytes | None) -> list[str]:
    """Sentences on detectors and cohorts that cannot know a patient of both by the name."""
    notes = []
    for entry in entries:
        for name, cohort in zip(names_of(cohorts), cohorts, strict=True):
            made_by = [pseudonyms_of(cohort)]
            virtual = entry.detector.record.get("virtual")  # whose patients are nobody's
            if not virtual and strangers(entry.pseudonyms, made_by, key):
                notes.append(
                    f"{entry.name} and {name} call patients by {ids_of(entry.pseudonyms)} and {ids_of(made_by)}: a "
                    f"patient of both is not known, and may be tested; name the key (--key), or ingest both with one"
                )
    return notes


def _names(splits: pd.DataFrame) -> pd.DataFrame:
    """patient_id, split: a row for every name that a detector's splits have for a patient."""
    own = splits[["patient_id", "split"]]
    if "told_patient" not in splits:  # of a detector that was made from tables without one
        return own
    told = splits[["told_patient", "split"]].set_axis(["patient_id", "split"], axis=1)
    return pd.concat([own, told[told["patient_id"] != ""]])


def _part_of(splits: pd.DataFrame, column: str) -> dict[str, str]:
    """By identifier, the split among `USED` that it is in, or nothing."""
    found: dict[str, str] = {}
    for part in reversed(USED):
        found.update(dict.fromkeys(splits[column][splits["split"] == part].astype(str), part))
    return found


def _telling(tested: pd.DataFrame, findings: Sequence[str]) -> Iterable[str]:
    """The columns that divide the tested scans into at least two groups."""
    for name in (*GROUPS, *(f"{finding}_ml" for finding in findings)):
        if name in tested:
            groups = subgroups.groups_of(tested[name], findings)
            if groups[groups != ""].nunique() > 1:
                yield name


def counted(labelled: Labelled) -> Mapping[str, int]:
    """How many labelled scans play which part."""
    return {part: int((labelled.parts == part).sum()) for part in (*USED, "test")}
