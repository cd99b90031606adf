"""Labels as users have them: a table in their words, matched to the scans of cohorts, with an account of the match.

The table is a CSV, Parquet or Excel file. One of its columns names scans, series, studies, patients or files of the
cohorts; others hold 1, 0 or nothing, for a finding or for a finding as one of several readers saw it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from headct.cohort.cohort import Cohort
from headct.cohort.identities import fingerprint, hold_pseudonyms, pseudonyms_of
from headct.evaluation.cells import (
    IDENTIFIERS,
    MEASURES,
    NEGATIVE,
    POSITIVE,
    SIDE,
    UNKNOWN,
    Readers,
    by_reader,
    combined,
    expect_labels,
    nearest,
    parsed,
    read_table,
    reader_of,
)
from headct.failure import Misuse
from headct.reading.pseudonyms import Kind, Pseudonyms
from headct.reporting.words import count

KINDS: Mapping[str, Kind] = dict(zip(IDENTIFIERS, ("scan", "series", "study", "patient"), strict=True))
"""The identifiers of `scans.parquet`, and their kinds of pseudonym."""
PATIENTS = ("patient_id", "patient")
"""Columns that tell whose scans are whose, where another one names the scans."""
ABOUT = frozenset({"site", "age", "sex", "split"})
"""Columns that name no scan, though an age may be some patient's number."""
TOLD = ("age", "sex", "site")
"""Columns of these that say what a scan is of, and are kept beside its labels."""
IDENTIFYING = frozenset({*KINDS, "path", "file", "files", "series", "study"})
"""Columns that are called as what names a scan."""
NOT_FINDINGS = frozenset({*IDENTIFYING, *PATIENTS, *ABOUT})
MEASUREMENT = "a measurement by its name"
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Account:
    """How a table of labels was understood: what a reader must know to believe what is learned from it."""

    table: str  # name of the file
    sha256: str
    rows: int
    column: str  # of the table, that names scans
    matched_as: str  # scan_id, series_id, study_id, patient_id or path
    pseudonymised: bool  # whether its identifiers were turned into pseudonyms first
    matched_rows: int
    unmatched: tuple[str, ...]  # `row 7 (CQ500-12): why`
    scans: int  # of the cohorts
    labelled: int  # of these
    alternates: int | None  # labelled scans that are not the preferred one of their study; None where these are wanted
    spread_rows: int  # that gave their label to more than one scan
    keyed: bool  # whether a key was given
    pseudonyms: tuple[str, ...]  # fingerprints of the cohorts' keys; `none` for original ids, nothing for virtual ones
    patient_column: str  # of the table, that tells whose scans are whose beside the cohort; empty for none
    patients: tuple[int, int]  # of the labelled scans, by the cohorts alone, and as that column joins them
    readers: Mapping[str, tuple[str, ...]]  # finding: columns
    reader_rule: str
    left_out: Mapping[str, str]  # column: why
    counts: Mapping[str, tuple[int, int, int]]  # finding: scans with it, without it, unknown

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """The account for a reader, the most important first."""
        by = f"the {self.matched_as.removesuffix('_id')} {'id' if self.matched_as in KINDS else 'of its files'}"
        secretly = ", turned into pseudonyms by the key" if self.pseudonymised else ""
        lines = [
            f"{self.table}: column {self.column!r} is {by}{secretly}; {self.matched_rows:,} of "
            f"{count(self.rows, 'row')} match, labelled are {self.labelled:,} of {count(self.scans, 'scan')}"
        ]
        if self.spread_rows:
            unit = self.matched_as.removesuffix("_id")
            measured = ", its measurements to none" if MEASUREMENT in self.left_out.values() else ""
            lines.append(
                f"{count(self.spread_rows, 'row')} gave the label of a {unit} to several scans of it{measured}"
            )
        if self.alternates is not None:
            lines.append(
                f"of each study its preferred series alone; left out: {count(self.alternates, 'labelled scan')}"
            )
        by_cohorts, joined = self.patients
        if joined < by_cohorts:
            lines.append(
                f"{count(by_cohorts, 'patient')} of the cohort are {joined:,} by column {self.patient_column!r}: "
                f"their scans stay together"
            )
        if self.patient_column and not self.keyed and hold_pseudonyms(self.pseudonyms):
            lines.append(
                f"what column {self.patient_column!r} calls patients is not kept, as the cohorts hide ids and no key "
                "was given: another table that calls a patient alike will not be known by it"
            )
        if len(self.pseudonyms) > 1:
            lines.append(
                f"the cohorts' ids are pseudonyms of different keys ({', '.join(self.pseudonyms)}): a patient of "
                f"several cohorts counts as several, and may be learned from and tested on"
            )
        for finding, columns in self.readers.items():
            lines.append(f"{finding} is the {self.reader_rule} rule over {', '.join(columns)}")
        if self.unmatched:
            more = len(self.unmatched) - SHOWN
            lines.append(
                f"{count(len(self.unmatched), 'row')} without a match: {'; '.join(self.unmatched[:SHOWN])}"
                + (f"; and {more:,} more" if more > 0 else "")
            )
        alike: dict[str, list[str]] = defaultdict(list)
        for column, why in self.left_out.items():
            alike[why].append(column)
        return lines + [f"no finding ({why}): {_some(columns)}" for why, columns in alike.items()]


def _some(names: Sequence[str]) -> str:
    """The first few; `Account.left_out` has them all."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


@dataclass(frozen=True)
class Labels:
    """Labels of scans: `values` has a row for each labelled scan (its index is scan_id), a float column a finding.

    1 is there, 0 is not, NaN unknown. In the same order: `patients` are their patients; `told` is what the table itself
    calls them, a pseudonym where a key was given, empty where the table does not tell or the cohorts hide ids and there
    is no key; `measured` has the columns of sides and measurements as they stand, NaN for a scan that shares its row
    with others; `about` has those of `TOLD`, and what else was asked for, as they stand.
    """

    values: pd.DataFrame
    patients: pd.Series
    told: pd.Series
    measured: pd.DataFrame
    about: pd.DataFrame
    account: Account

    @property
    def findings(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(map(str, self.values.columns))


def read_labels(
    path: Path,
    cohorts: Sequence[Cohort],
    *,
    findings: Sequence[str] = (),
    readers: Readers = "majority",
    key: bytes | None = None,
    preferred: bool = False,
    beside: Sequence[str] = (),
) -> Labels:
    """The labels of the cohorts' scans in a table; of `findings`, or of all columns that hold nothing but labels.

    The column that names scans is found by trying: one called like an identifier goes first, then the one that
    matches most rows. Where the cohorts hold pseudonyms, `key` is what they were made with, and original identifiers
    match too. A row that names a study or patient labels all of its scans; with `preferred` one of each study is
    taken, which its cohort prefers, of several cohorts the first. Scans are of one patient where the cohorts say so or
    a column of `PATIENTS` does. Rows that match nothing are listed in the account, never an error unless all do.
    `beside` are other columns that are kept, where the table has them.

    Raises Misuse, naming the rows, for a value that is no label, for two rows about the same thing, and where nothing
    matches, nothing is labelled, or nothing that is preferred.
    """
    table = read_table(path)
    expect_labels(table, path)
    found = _match(table, _Known(cohorts, key), path)
    columns, left_out = _findings(table, findings, found.column, path)
    groups, of_readers = by_reader(columns)
    values = {name: combined([columns[one] for one in ones], readers) for name, ones in groups.items()}
    _expect_once(found, pd.DataFrame(values), path)
    whole, told_of = found, pd.DataFrame(values).notna().any(axis=1)
    found = found.preferred() if preferred else found
    alternates = sum(len(whole.scans[row]) - len(found.scans[row]) for row in np.flatnonzero(told_of))
    scans = [scan_id for ids in found.scans for scan_id in ids]
    rows = np.repeat(np.arange(len(found.scans)), [len(ids) for ids in found.scans])
    labels = pd.DataFrame(
        {name: column[rows] for name, column in values.items()}, index=pd.Index(scans, name="scan_id")
    )
    labels = labels[labels.notna().any(axis=1)]
    if labels.empty and alternates:
        raise Misuse(
            f"{path} labels no series that is the preferred one of its study",
            do="leave out --preferred, or name studies instead of series",
        )
    if labels.empty:
        raise Misuse(
            f"{path} labels no scan of the cohort: all values of {', '.join(values)} are unknown",
            why=f"empty, and {', '.join(sorted(UNKNOWN - {''}))}, mean unknown",
            do="write 1 where a finding is there and 0 where it is not",
        )
    of_cohorts = found.known.patient_of
    labels = labels.loc[[scan_id for scan_id in of_cohorts if scan_id in labels.index]]
    patient_column = _patient_column(table, found)
    words = _words(table[patient_column], rows) if patient_column else [""] * len(rows)
    told = words if key is None else [Pseudonyms(key).of("patient", word) for word in words]
    joined = joined_patients([of_cohorts[scan_id] for scan_id in scans], told)
    if key is None and found.known.has_pseudonyms:
        told = [""] * len(rows)
    patients = pd.Series(joined, index=scans, dtype=object).loc[labels.index]
    account = Account(
        table=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        rows=len(table),
        column=found.column,
        matched_as=found.matched_as,
        pseudonymised=found.pseudonymised,
        matched_rows=whole.matched,
        unmatched=whole.unmatched,
        scans=len(of_cohorts),
        labelled=len(labels),
        alternates=alternates if preferred else None,
        spread_rows=sum(len(ids) > 1 for ids in found.scans),
        keyed=key is not None,
        pseudonyms=found.known.made_by,
        patient_column=patient_column,
        patients=(len({of_cohorts[scan_id] for scan_id in labels.index}), patients.nunique()),
        readers={name: tuple(ones) for name, ones in groups.items() if len(ones) > 1},
        reader_rule=readers,
        left_out=left_out | of_readers,
        counts={str(name): _counts(labels[name].to_numpy(), len(of_cohorts)) for name in labels},
    )
    called = pd.Series(told, index=scans, dtype=object).loc[labels.index]
    about = _about(table, beside).iloc[rows].set_axis(pd.Index(scans, name="scan_id"), axis=0)
    measured = _measured(table, found).reindex(labels.index)
    return Labels(labels, patients, called, measured, about.loc[labels.index], account)


# ---- which scans a row is about ----


@dataclass(frozen=True)
class _Found:
    """A way to match: the scans of each row, by a column that names them."""

    column: str
    matched_as: str
    pseudonymised: bool
    values: list[str]
    scans: list[tuple[str, ...]]
    known: _Known
    why: list[str] | None = None  # of each row that matches nothing, where more is known than that

    def preferred(self) -> _Found:
        """The same with the preferred scan of each study alone."""
        wanted = set(self.known.preferred_of.values())
        return replace(self, scans=[tuple(one for one in ids if one in wanted) for ids in self.scans])

    @property
    def matched(self) -> int:
        """Rows that name a scan."""
        return sum(bool(ids) for ids in self.scans)

    @property
    def unmatched(self) -> tuple[str, ...]:
        """The other rows, each with its line, its value and why."""
        missed = (row for row, ids in enumerate(self.scans) if not ids)
        why = self.why or [f"no such {self.matched_as} in the cohort"] * len(self.values)
        return tuple(f"row {_line(row)} ({self.values[row] or 'empty'}): {why[row]}" for row in missed)


class _Known:
    """By what the scans of cohorts can be named."""

    def __init__(self, cohorts: Sequence[Cohort], key: bytes | None) -> None:
        self.cohorts = cohorts
        self.made_by = tuple(sorted({*map(pseudonyms_of, cohorts)} - {""}))
        self.has_pseudonyms = hold_pseudonyms(self.made_by)
        self.hides_paths = any(cohort.about.get("hashed_paths", "none") != "none" for cohort in cohorts)
        fits = key is not None and self.made_by == (fingerprint(key),)
        self.pseudonyms = Pseudonyms(key) if fits else None
        self.patient_of: dict[str, str] = {}
        self.preferred_of: dict[str, str] = {}  # study: the scan to take when one is taken
        self._by_end: dict[int, dict[tuple[str, ...], list[tuple[str, ...]]]] = {}  # how many parts: these: paths
        self._ids: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in KINDS}
        for cohort in cohorts:
            rows = cohort.scans[list(KINDS)].fillna("").astype(str)
            for row, preferred in zip(rows.to_dict("records"), cohort.scans["preferred"], strict=True):
                self._take(cast(dict[str, str], row), preferred=bool(preferred))
        if not self.patient_of:
            raise Misuse(
                f"the cohort {', '.join(str(cohort.path) for cohort in cohorts)} has no scans",
                do="see its rejections.parquet for the reasons, or name another cohort",
            )

    def _take(self, row: Mapping[str, str], *, preferred: bool) -> None:
        scan_id = row["scan_id"]
        if scan_id in self.patient_of:  # another cohort holds it too; the first is taken, as in embedding
            return
        self.patient_of[scan_id] = row["patient_id"] or row["study_id"] or scan_id
        if preferred:
            self.preferred_of.setdefault(row["study_id"] or scan_id, scan_id)
        for name in KINDS:
            if row[name]:
                self._ids[name][row[name]].append(scan_id)

    def examples(self) -> list[str]:
        """One identifier of each kind that there is."""
        return [f"{name} {next(iter(ids))!r}" for name, ids in self._ids.items() if ids]

    def by_id(self, name: str, values: Iterable[str], *, pseudonymised: bool) -> list[tuple[str, ...]]:
        """The scans that each value names as an identifier of this kind."""
        ids = self._ids[name]
        if pseudonymised and self.pseudonyms is not None:
            values = (self.pseudonyms.of(KINDS[name], value) for value in values)
        return [tuple(ids.get(value, ())) for value in values]

    def by_path(self, values: Iterable[str]) -> tuple[list[tuple[str, ...]], list[str]]:
        """The scans of the file or folder that each value ends with, and of what does not match, why."""
        found, why = [], []
        for value in values:
            nodes = self._nodes_of(PurePosixPath(value.replace("\\", "/")).parts)
            found.append(self._paths[nodes[0]] if len(nodes) == 1 else ())
            why.append(f"{len(nodes)} files or folders end so" if len(nodes) > 1 else "no file or folder ends so")
        return found, why

    def _nodes_of(self, parts: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The files and folders whose path ends as `parts` does, or is the end of it; where several, the closest."""
        if len(parts) not in self._by_end:
            nodes: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
            for node in self._paths:
                nodes[node[-len(parts) :]].append(node)
            self._by_end[len(parts)] = dict(nodes)
        if parts in self._by_end[len(parts)]:
            return self._by_end[len(parts)][parts]
        shorter = (parts[-length:] for length in range(len(parts) - 1, 0, -1))
        return [node for node in shorter if node in self._paths][:1]

    @cached_property
    def _paths(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        """By file, and by folder, the scans that were read from it."""
        scans: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
        for cohort in self.cohorts:
            for path, outcome in zip(cohort.files["path"], cohort.files["outcome"], strict=True):
                if outcome in self.patient_of:
                    parts = PurePosixPath(str(path)).parts
                    for length in range(1, len(parts) + 1):
                        scans[parts[:length]].setdefault(str(outcome))
        return {node: tuple(ids) for node, ids in scans.items()}


def _match(table: pd.DataFrame, known: _Known, path: Path) -> _Found:
    """Paths are looked at only where a column is called so, or identifiers leave rows unmatched.

    Raises Misuse where nothing matches.
    """
    found: list[tuple[tuple[bool, int, int], _Found]] = []
    columns = {column: table[column].tolist() for column in map(str, table.columns)}
    columns = {column: values for column, values in columns.items() if _may_name(column.lower(), values)}
    for tried in (_by_ids, _by_paths):
        for column, values in columns.items():
            found += [
                ((column.lower() == one.matched_as, one.matched, exactness), one)
                for exactness, one in tried(column, values, known)
                if one.matched
            ]
        if "path" not in map(str.lower, columns) and any(one.matched == len(table) for _, one in found):
            break
    if not found:
        raise _no_match(columns, known, path)
    return max(found, key=lambda ranked: ranked[0])[1]  # the first of equal ones


PATH_EXACTNESS = 3
"""As exact as a series, and more than a study or a patient, which may have several scans."""


def _may_name(column: str, values: list[str]) -> bool:
    """Labels, ages and measurements are no identifiers, though small numbers may be some patient's."""
    if column in KINDS:
        return True
    labels = set(map(str.lower, values)) <= POSITIVE | NEGATIVE | UNKNOWN
    return not (labels or column in ABOUT or column.endswith(MEASURES))


def _by_ids(column: str, values: list[str], known: _Known) -> Iterator[tuple[int, _Found]]:
    """Each way to take a column as identifiers, and how exact it is."""
    for exactness, name in enumerate(reversed(tuple(KINDS)), start=1):
        for secretly in (False, True) if known.pseudonyms else (False,):
            scans = known.by_id(name, values, pseudonymised=secretly)
            yield exactness, _Found(column, name, secretly, values, scans, known)


def _by_paths(column: str, values: list[str], known: _Known) -> Iterator[tuple[int, _Found]]:
    if not known.hides_paths:
        scans, why = known.by_path(values)
        yield PATH_EXACTNESS, _Found(column, "path", False, values, scans, known, why)


def _line(row: int) -> int:
    """How a reader counts a row of a table whose first line holds the names of columns."""
    return row + 2


def _no_match(tried: Mapping[str, Sequence[str]], known: _Known, path: Path) -> Misuse:
    # Other columns may hold names and comments, which are not for logs.
    theirs = [f"{name} {values[0]!r}" if _is_called_id(name) else name for name, values in tried.items()]
    why = f"it has {_some(theirs) or 'no column of ids'}; the cohort has {', '.join(known.examples())}"
    if known.has_pseudonyms and known.pseudonyms is None:
        do = "its ids are pseudonyms: name the key that it was ingested with (--key FILE), or ingest with --keep-ids"
    else:
        do = "add a column scan_id, series_id, study_id, patient_id or path, with values as in scans.parquet"
    return Misuse(f"{path} matches no scan of the cohort", why=why, do=do)


def _is_called_id(column: str) -> bool:
    return column.lower() in IDENTIFYING or column.lower().endswith("id")


def _expect_once(found: _Found, values: pd.DataFrame, path: Path) -> None:
    """Raises Misuse where two rows are about the same scan: they contradict each other, or one is too many."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, ids in enumerate(found.scans):
        for scan_id in ids:
            rows_of[scan_id].append(row)
    groups: dict[tuple[int, ...], str] = {}
    for scan_id, rows in rows_of.items():
        if len(rows) > 1:
            groups.setdefault(tuple(rows), scan_id)
    if not groups:
        return
    contradictory = {rows: names for rows in groups if (names := _contradicted(values.iloc[list(rows)]))}
    shown = [
        f"rows {', '.join(str(_line(row)) for row in rows)} (scan {groups[rows]})"
        + (f" on {', '.join(contradictory[rows])}" if rows in contradictory else "")
        for rows in list(contradictory or groups)[:SHOWN]
    ]
    number = len(contradictory or groups)
    what = "contradict each other" if contradictory else "are about the same scan"
    by = f"they were matched by {found.column!r} as {found.matched_as}"
    raise Misuse(
        f"rows of {path} {what}: {'; '.join(shown)}" + (f"; and {number - SHOWN} more" if number > SHOWN else ""),
        why=f"{by}, and which of them is right cannot be known" if contradictory else by,
        do="keep one row for each, or one column for each reader (ich_r1, ich_r2)",
    )


def _contradicted(rows: pd.DataFrame) -> list[str]:
    return [str(name) for name in rows if {0.0, 1.0} <= set(rows[name].dropna())]


# ---- whose scans are whose ----


def joined_patients(of_cohorts: Sequence[str], told: Sequence[str]) -> list[str]:
    """A patient for each scan (n,), the same where cohorts or tables (n, empty for nothing) say so, or both in turn.

    Files other than DICOM name nobody, so that a cohort takes each for a patient; whoever labels them may know better.
    A name is the same patient whoever says it.
    """
    number = len(of_cohorts)
    names, code = np.unique(np.array([*of_cohorts, *told], dtype=object), return_inverse=True)
    ours, theirs = code[:number], code[number:]
    known = np.array([bool(one) for one in told], dtype=bool)
    links = coo_array((np.ones(known.sum()), (ours[known], theirs[known])), shape=(len(names),) * 2)
    _, group = connected_components(links, directed=False)
    first_of: dict[int, str] = {}
    for one in np.unique(ours):  # sorted by name
        first_of.setdefault(int(group[one]), str(names[one]))
    return [first_of[int(group[one])] for one in ours]


def _words(column: pd.Series, rows: np.ndarray) -> list[str]:
    """What a column calls the patient of each of these rows; empty where it is unknown."""
    return ["" if str(one).lower() in UNKNOWN else str(one) for one in column.to_numpy()[rows]]


def _patient_column(table: pd.DataFrame, found: _Found) -> str:
    """The column that tells patients, beside the one that names scans or by naming their folders; empty for none."""
    named = {column.lower(): column for column in map(str, table.columns)}
    if found.matched_as in KINDS:
        named.pop(found.column.lower(), None)  # what the cohort knows already
    return next((named[name] for name in PATIENTS if name in named), "")


# ---- what a row says ----


def _findings(
    table: pd.DataFrame, wanted: Sequence[str], identifier: str, path: Path
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Columns of labels (rows,), and why the others are none. Raises Misuse where a wanted one is not."""
    columns: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    for name in map(str, table.columns):
        if name == identifier or name.lower() in NOT_FINDINGS:
            continue
        if name.lower().endswith(MEASURES) and name not in wanted:
            left_out[name] = MEASUREMENT
            continue
        finding = reader_of(name)[0]
        if wanted and name not in wanted and finding not in wanted:
            continue
        values, wrong = parsed(table[name].tolist())
        minus = [row for row in wrong if table[name].iloc[row] in {"-1", "-1.0"}]
        if wrong and (wanted or len(minus) == len(wrong)):
            raise _no_label(table[name], wrong, minus, path)
        if wrong:
            left_out[name] = f"row {_line(wrong[0])} holds {table[name].iloc[wrong[0]]!r}"
        elif not np.isfinite(values).any() and not wanted:
            left_out[name] = "every value is unknown"
        else:
            columns[name] = values
    known = {reader_of(name)[0] for name in columns} | columns.keys()
    missing = [name for name in wanted if name not in known]
    if missing:
        others = [name for name in map(str, table.columns) if name.lower() not in NOT_FINDINGS]
        near = nearest(missing[0], [reader_of(name)[0] for name in others])
        told = f"its columns are {', '.join(map(str, table.columns))}"
        raise Misuse(f"{path} has no finding {missing[0]!r}", do=f"did you mean {near}? {told}" if near else told)
    if not columns:
        told = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "it has no other columns"
        raise Misuse(
            f"{path} has no finding, beside {identifier!r}", why=told,
            do="give a column of 1, 0 or nothing for each finding",
        )  # fmt: skip
    return columns, left_out


def _no_label(column: pd.Series, wrong: Sequence[int], minus: Sequence[int], path: Path) -> Misuse:
    shown = ", ".join(f"row {_line(row)} {column.iloc[row]!r}" for row in wrong[:SHOWN])
    more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    if minus:
        do = "write nothing where it is unknown or uncertain, and 0 where the finding is not there"
        why = "-1 means uncertain in some tables and absent in others"
    else:
        do, why = "write 1, 0 or nothing; make a number or a grade into a label by a threshold of your choice", ""
    return Misuse(f"{path} has values that are no label in {column.name}: {shown}{more}", why=why, do=do)


def _measured(table: pd.DataFrame, found: _Found) -> pd.DataFrame:
    """Columns of sides and measurements by scan: text, of the rows that are about one scan."""
    columns = [name for name in table if str(name).lower().endswith((*MEASURES, SIDE))]
    alone = [row for row, ids in enumerate(found.scans) if len(ids) == 1]
    measured = table[columns].iloc[alone]
    measured.index = pd.Index([found.scans[row][0] for row in alone], name="scan_id")
    return measured[~measured.index.duplicated()]


def _about(table: pd.DataFrame, beside: Sequence[str]) -> pd.DataFrame:
    """Columns of `TOLD`, however they are written, and those that are asked for, as text."""
    named = {column.lower(): column for column in map(str, table.columns)}
    columns = {name: named[name] for name in TOLD if name in named} | {name: name for name in beside if name in table}
    return table[list(columns.values())].set_axis(list(columns), axis=1)


def _counts(values: np.ndarray, scans: int) -> tuple[int, int, int]:
    positive, negative = int((values == 1).sum()), int((values == 0).sum())
    return positive, negative, scans - positive - negative


def only(labels: Labels, findings: Sequence[str]) -> Labels:
    """The labels of some findings; scans that these say nothing of are left out."""
    values = labels.values[list(findings)]
    values = values[values.notna().any(axis=1)]
    account = replace(
        labels.account,
        labelled=len(values),
        counts={name: _counts(values[name].to_numpy(), labels.account.scans) for name in findings},
    )
    kept = values.index
    return replace(
        labels,
        values=values,
        patients=labels.patients.loc[kept],
        told=labels.told.loc[kept],
        measured=labels.measured.loc[kept],
        about=labels.about.loc[kept],
        account=account,
    )
