"""A public set as downloaded to a cohort, labels and splits: ingest, match by path, write, and compare the counts.

Identifiers are kept, for those of a public set are pseudonyms already: so a scan has the same id, and a patient the
same part, on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from headct.cohort import Cohort, publish
from headct.cohort.ingest import ingest
from headct.cohort.journal import only_writer, write_atomically
from headct.cohort.rounds import Progress
from headct.cohort.summary import Summary
from headct.datasets import splits
from headct.datasets.publicset import Found, PublicSet, Remark
from headct.failure import Failure, Misuse
from headct.preparing.recipe import Recipe
from headct.reporting.words import count
from headct.scan import REASONS

COHORT, REPORT = "cohort", "report.json"

CROWD = (20, 0.05)
"""A patient with more scans than this number, and than this share of all, is no patient but a placeholder."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came out of a set, beside what should have.

    Attributes:
        name: Of the set.
        counts: Rows `what`, `expected` (None: not known), `found`.
        parts: Rows `split`, `patients`, `scans`, and the positive scans of each finding.
        remarks: How many remarks of each kind are in remarks.csv.
        splits_sha256: Of splits.csv; equal for two people who have the same scans.
        ingest: Counts of the cohort.
    """

    name: str
    counts: tuple[Mapping[str, Any], ...]
    parts: tuple[Mapping[str, Any], ...]
    remarks: Mapping[str, int]
    splits_sha256: str
    ingest: Summary

    @property
    def differing(self) -> tuple[str, ...]:
        """Counts that are not what a whole download gives."""
        return tuple(row["what"] for row in self.counts if row["expected"] not in (None, row["found"]))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "differing": list(self.differing)}


def prepare(
    which: PublicSet,
    data: str | PathLike[str],
    out: str | PathLike[str],
    *,
    recipe: str | Recipe = "head",
    workers: int | None = None,
    key: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Read the folder `data` into `out`: cohort/, labels.csv, splits.csv, remarks.csv and report.json.

    Also labels-any.csv and readers.csv of a set with several readers, masks.csv of one with masks. Called again it goes
    on where it was stopped. Raises Misuse where `out` holds another set, Failure where the folder is incomplete or
    nothing usable is in it.
    """
    data, out = Path(data), Path(out)
    _check_out(which, data, out)
    found = which.read(data)
    summary = ingest(
        found.inputs,
        out / COHORT,
        recipe,
        which.criteria,
        workers=workers,
        site=which.name,
        keep_ids=True,
        key=key,
        progress=progress,
    )
    if which.patient_of is not None:
        _name_patients(out / COHORT, which.unit_of, which.patient_of)
    cohort = Cohort(out / COHORT)
    matched = _match(which, found, cohort)
    if matched.scans.empty:
        raise _nothing(which, data, out, summary, matched.remarks)
    labels = matched.labelled(found.labels)
    parts = matched.scans[["scan_id", "patient_id"]].assign(split=matched.scans["patient_id"].map(which.split))
    parts_csv = _csv(parts)
    remarks = [*found.remarks, *matched.remarks]
    tables = {
        "labels.csv": _csv(labels),
        "splits.csv": parts_csv,
        "remarks.csv": _csv(pd.DataFrame([asdict(one) for one in remarks], columns=["kind", "subject", "reason"])),
    }
    if found.labels_any is not None:
        tables["labels-any.csv"] = _csv(matched.labelled(found.labels_any))
    if found.readers is not None:
        tables["readers.csv"] = _csv(found.readers)
    if found.masks is not None:
        tables["masks.csv"] = _csv(matched.masked(found.masks))
    report = Report(
        name=which.name,
        counts=_counts(which, {**found.counts, **_came_out(matched.scans)}),
        parts=_parts(labels, parts, which.findings),
        remarks=dict(Counter(one.kind for one in remarks)),
        splits_sha256=hashlib.sha256(parts_csv).hexdigest(),
        ingest=summary,
    )
    for name, content in tables.items():
        write_atomically(out / name, content)
    write_atomically(out / REPORT, (json.dumps(report.as_dict(), indent=2, sort_keys=True) + "\n").encode())
    return report


def _check_out(which: PublicSet, data: Path, out: Path) -> None:
    if data.resolve() in (out.resolve(), *out.resolve().parents):
        raise Misuse(f"{out} lies in the folder of the set", do="choose another --out: the download stays as it is")
    if not (out / REPORT).is_file():
        return
    try:
        name = json.loads((out / REPORT).read_bytes())["name"]
    except (ValueError, KeyError, TypeError):
        name = "something else"
    if name != which.name:
        raise Misuse(f"{out} holds {name}, not {which.name}", do="choose another --out")


def _nothing(which: PublicSet, data: Path, out: Path, summary: Summary, remarks: Sequence[Remark]) -> Failure:
    codes = ", ".join(f"{code} ({count(number, 'file')})" for code, number in summary.rejected_files.items())
    if not summary.scans:
        do = f"see {out / COHORT / 'rejections.parquet'}, or a page of it: headct qc {out / COHORT} --out qc.html"
        return Failure(f"no usable head CT of {which.name} in {data}", why=codes or "there are no files", do=do)
    kinds = Counter(one.kind for one in remarks)
    return Failure(
        f"none of the {summary.scans} scans of {which.name} has a label",
        why=", ".join(f"{number} × {kind}" for kind, number in kinds.items()),
        do="compare the names of files with those in the table of labels, and both with the page of the set",
    )


def _name_patients(folder: Path, unit_of: Callable[[str], str], patient_of: Callable[[str], str]) -> None:
    """Write into the cohort whose scans they are, where the set knows it and its files do not: NIfTI names nobody."""
    with only_writer(folder / ".ingest"):
        about = publish.read_about(folder)
        content = publish.read(folder, about)
        units = {scan_id: unit for path, scan_id in content.outcome_of.items() if (unit := unit_of(path))}
        scans = tuple(
            {
                **row,
                "patient_id": patient_of(units[row["scan_id"]]),
                "flags": [flag for flag in row["flags"] if flag != "no-patient-id"],
            }
            if row["scan_id"] in units
            else row
            for row in content.scans
        )
        if scans != content.scans:
            publish.write(folder, replace(content, scans=scans), about)


# Scans and units


@dataclass(frozen=True)
class _Matched:
    """Scans with a label: `scan_id`, `patient_id`, `name`; and which units each is made of: `scan_id`, `unit`."""

    scans: pd.DataFrame
    units: pd.DataFrame
    remarks: tuple[Remark, ...]

    def labelled(self, labels: pd.DataFrame) -> pd.DataFrame:
        """A row for each scan: 1 where any of its units is 1, 0 where all are 0, else empty."""
        of_units = labels.reindex(self.units["unit"])
        scan_ids = self.units["scan_id"].to_numpy()
        highest = of_units.groupby(scan_ids).max()
        known = of_units.notna().groupby(scan_ids).all()
        of_scans = highest.where(known | (highest == 1)).reindex(self.scans["scan_id"]).astype("Int8")
        return self.scans.join(of_scans, on="scan_id")

    def masked(self, masks: pd.DataFrame) -> pd.DataFrame:
        """The masks of the scans that came out."""
        of_scans = self.units.merge(masks, on="unit").drop(columns="unit")
        return self.scans.merge(of_scans, on="scan_id")


def _match(which: PublicSet, found: Found, cohort: Cohort) -> _Matched:
    files = cohort.files.assign(unit=cohort.files["path"].map(which.unit_of))
    read = files[~files["outcome"].isin(list(REASONS))]
    units = read[["outcome", "unit"]].drop_duplicates().rename(columns={"outcome": "scan_id"})
    labelled = units[units["unit"].isin(found.labels.index)]
    first = read.drop_duplicates("outcome")
    path_of: dict[str, str] = dict(zip(first["outcome"], first["path"], strict=True))
    first = labelled.drop_duplicates("scan_id")
    unit_of: dict[str, str] = dict(zip(first["scan_id"], first["unit"], strict=True))
    patient_of, doubts = _patients(which, cohort.scans)
    remarks = _without_scan(sorted({*found.labels.index} - {*labelled["unit"]}), files)
    rows = []
    for scan_id, series_id, contrast in cohort.scans[["scan_id", "series_id", "contrast"]].itertuples(index=False):
        path = path_of[scan_id]
        if scan_id not in unit_of:
            remarks.append(Remark("scan without a label", scan_id, f"from {path}"))
        elif contrast is not False and (reason := which.left_out(path)):
            remarks.append(Remark("left out", scan_id, f"{reason}: {path}"))
        else:
            unit = unit_of[scan_id]
            patient = which.patient_of(unit) if which.patient_of else patient_of[scan_id]
            name = series_id if which.unit == "slice" else unit
            rows.append({"scan_id": scan_id, "patient_id": patient, "name": name})
    kept = pd.DataFrame(rows, columns=["scan_id", "patient_id", "name"])
    return _Matched(kept, units[units["scan_id"].isin(kept["scan_id"])], (*remarks, *doubts))


def _without_scan(units: Sequence[str], files: pd.DataFrame) -> list[Remark]:
    """Why these labels have no scan: nothing of them was there, or it was rejected."""
    rejected = files[files["unit"].isin(units)].drop_duplicates(["unit", "outcome"])
    codes: dict[str, list[str]] = {}
    for unit, code in zip(rejected["unit"], rejected["outcome"], strict=True):
        codes.setdefault(unit, []).append(code)
    reasons = {unit: f"rejected: {', '.join(sorted(some))}" for unit, some in codes.items()}
    return [Remark("label without a scan", unit, reasons.get(unit, "no file of it")) for unit in units]


def _patients(which: PublicSet, scans: pd.DataFrame) -> tuple[Mapping[str, str], tuple[Remark, ...]]:
    """The patient of each scan by its header, or its study where the header's patients are placeholders."""
    sizes = Counter(scans["patient_id"])
    (patient, size), *_ = sizes.most_common(1) or [("", 0)]
    placeholder = which.patient_of is None and size > max(CROWD[0], CROWD[1] * len(scans))
    column = "study_id" if placeholder else "patient_id"
    reason = f"{size} of {len(scans)} scans share it: no real patient, so each study counts as one"
    remarks = (Remark("doubtful patient", patient, reason),) if placeholder else ()
    return dict(zip(scans["scan_id"], scans[column], strict=True)), remarks


# Tables and counts


def _csv(table: pd.DataFrame) -> bytes:
    text: str = table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    return text.encode()


def _came_out(scans: pd.DataFrame) -> dict[str, int]:
    return {"scans": len(scans), "patients with scans": int(scans["patient_id"].nunique())}


def _counts(which: PublicSet, found: Mapping[str, int]) -> tuple[dict[str, Any], ...]:
    names = [*which.expected, *(name for name in found if name not in which.expected)]
    return tuple({"what": name, "expected": which.expected.get(name), "found": found[name]} for name in names)


def _parts(labels: pd.DataFrame, parts: pd.DataFrame, findings: Sequence[str]) -> tuple[dict[str, Any], ...]:
    rows = []
    for part in splits.PARTS:
        here = labels[(parts["split"] == part).to_numpy()]
        positive = {finding: int((here[finding] == 1).sum()) for finding in findings}
        rows.append({"split": part, "patients": int(here["patient_id"].nunique()), "scans": len(here), **positive})
    return tuple(rows)
