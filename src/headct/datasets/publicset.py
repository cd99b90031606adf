"""What is known about a public set, and what its adapter finds in a folder as downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from headct.datasets import splits
from headct.reading.criteria import Criteria


@dataclass(frozen=True)
class Remark:
    """Something about one row, file or scan that a user of the labels should know."""

    kind: Literal["label without a scan", "scan without a label", "left out", "doubtful label", "doubtful patient"]
    subject: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies in the folder of a set: files for ingest, and labels by the set's own names.

    Attributes:
        inputs: Folders or archives that `headct.cohort.ingest` reads.
        labels: A row for each unit (index `unit`), a float column for each finding: 1, 0, or NaN for unknown.
        labels_any: The same by the rule "any reader", where the set has several readers.
        readers: Their votes: columns `unit`, `finding`, and one for each reader.
        masks: A row for each mask: `unit`, `mask` (path below the folder), `<finding>_ml`.
        counts: What there is, by the words of `PublicSet.expected`.
        remarks: Rows and masks that are not as they should be.
    """

    inputs: tuple[Path, ...]
    labels: pd.DataFrame
    labels_any: pd.DataFrame | None = None
    readers: pd.DataFrame | None = None
    masks: pd.DataFrame | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()


def nothing_left_out(path: str) -> str:
    """For sets of which every scan counts."""
    return ""


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """A public set of head CT. A fact without a source is None, never a guess.

    Attributes:
        name: As it is typed.
        title: As its makers call it.
        licence: In short, with what it forbids.
        where: The page from which its makers give it.
        cite: The paper.
        unit: What one row of its labels speaks of: patient, series, volume or slice.
        findings: Columns of the labels, in the house's words.
        expected: Counts that must come out of a whole download; None: to be checked on the download.
        read: From the folder as downloaded to what is there. Raises Failure where it is incomplete or renamed.
        unit_of: The unit to which a file of the cohort belongs, from its path there; empty: to none.
        patient_of: The patient of a unit; None: the DICOM headers say it.
        left_out: Why the scan of a file must not be labelled, from its path; empty where it may. Asked where headers
            leave open whether contrast was given.
        split_key: Sets with the same key put the same patient into the same part.
        criteria: Which series are taken.
    """

    name: str
    title: str
    licence: str
    where: str
    cite: str
    unit: Literal["patient", "series", "volume", "slice"]
    findings: tuple[str, ...]
    expected: Mapping[str, int | None]
    read: Callable[[Path], Found]
    unit_of: Callable[[str], str]
    patient_of: Callable[[str], str] | None = None
    left_out: Callable[[str], str] = nothing_left_out
    split_key: str = ""
    criteria: Criteria = field(default_factory=Criteria)

    def split(self, patient: str) -> splits.Part:
        """The part to which a patient belongs for ever."""
        return splits.part(self.split_key or self.name, patient)

    def about(self) -> dict[str, Any]:
        """What is known, as JSON can hold it."""
        plain = {key: value for key, value in asdict(self).items() if isinstance(value, str) and key != "split_key"}
        return {**plain, "findings": list(self.findings), "expected": dict(self.expected)}
