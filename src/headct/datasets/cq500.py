"""CQ500: 491 patients with all their series, read by three radiologists (qure.ai; Lancet 2018;392:2388)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from headct.datasets import layout, votes
from headct.datasets.publicset import Found, PublicSet, Remark
from headct.evaluation.cells import combined
from headct.failure import Failure
from headct.reading import contrast

COLUMNS = {
    "ICH": "ich",
    "IPH": "iph",
    "IVH": "ivh",
    "SDH": "sdh",
    "EDH": "edh",
    "SAH": "sah",
    "BleedLocation-Left": "ich_left",
    "BleedLocation-Right": "ich_right",
    "ChronicBleed": "chronic_bleed",
    "Fracture": "fracture",
    "CalvarialFracture": "calvarial_fracture",
    "OtherFracture": "other_fracture",
    "MassEffect": "mass_effect",
    "MidlineShift": "midline_shift",
}
"""Columns of reads.csv behind the name of a reader, and what they are called here."""

READERS = ("R1", "R2", "R3")

ABNORMAL = "abnormal"
"""Any of the columns by the same rule; with the rule "any reader" it is CT-FM's triage label (arXiv 2501.09001)."""

_PATIENT = re.compile(r"(?<![A-Z0-9])CQ500-?CT-?(\d+)(?![0-9])", re.I)


def unit_of(path: str) -> str:
    """`CQ500-CT-12` for a file below `CQ500CT12 CQ500CT12` or in `CQ500-CT-12.zip`."""
    found = _PATIENT.search(path)
    return f"CQ500-CT-{int(found[1])}" if found else ""


_WITH_AGENT = re.compile(r"\bcontrast\b|\bcect\b|\biv\b|\d ?cc\b|\bc\b", re.I)


def left_out(path: str) -> str:
    """Why a series is taken for one with contrast: by the name of its folder, which is modality and description.

    Its makers' export left out the signs in descriptions, so a folder `CT C` may have been C+ or C-; such a series is
    left out, as are those named after what was injected (`CT 4cc sec 150cc D3D on`).
    """
    folders = path.split("/")
    series = folders[-2].replace("_", " ") if len(folders) > 1 else ""
    series = re.sub(r"^CT\b ?|-\d+$", "", series)
    said = contrast.in_words(series)
    if said or (said is None and _WITH_AGENT.search(series)):
        return "contrast was given, by the name of the series"
    return ""


def read(data: Path) -> Found:
    """Folders or zip files of the patients, and reads.csv beside them or near."""
    do = "download reads.csv from the page of the set"
    reads = layout.find_file(data, "reads.csv", what="the readers' table", do=do)
    columns = [f"{reader}:{column}" for reader in READERS for column in COLUMNS]
    table = layout.read_table(reads, ["name", *columns])
    units = table["name"].map(lambda name: unit_of(str(name)))
    if (units == "").any() or units.duplicated().any():
        row = int(np.flatnonzero((units == "") | units.duplicated())[0])
        why = f"the name in row {row + 2} is {table['name'].iloc[row]!r}, which is no patient, or there twice"
        raise Failure(f"{reads} cannot be matched", why=why, do=do)
    labels, labels_any, readers, remarks = _labels(table, pd.Index(units, name="unit"))
    inputs, patients = _inputs(data)
    counts = {
        "patients in reads.csv": len(table),
        "patients with images": len(patients),
        "patients with ich by majority": int((labels["ich"] == 1).sum()),
        "patients with ich by any reader": int((labels_any["ich"] == 1).sum()),
    }
    return Found(
        inputs=inputs, labels=labels, labels_any=labels_any, readers=readers, counts=counts, remarks=tuple(remarks)
    )


def _labels(table: pd.DataFrame, units: pd.Index) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, list[Remark]]:
    """Labels by majority, labels by any reader, the votes themselves, and remarks on votes that are missing."""
    by_majority, by_any, said, remarks = {}, {}, [], []
    for column, finding in COLUMNS.items():
        cells = pd.DataFrame({reader: layout.as_labels(table[f"{reader}:{column}"]) for reader in READERS})
        cells.index = units
        voted = cells.to_numpy(float)
        by_majority[finding] = combined([*voted.T], "majority", all_read=True)
        by_any[finding] = combined([*voted.T], "any", all_read=True)
        said.append(cells.reset_index().assign(finding=finding))
        for unit in units[np.isnan(voted).any(axis=1)]:
            remarks.append(Remark("doubtful label", str(unit), f"{finding}: a reader said neither 0 nor 1"))
    majority, any_one = pd.DataFrame(by_majority, index=units), pd.DataFrame(by_any, index=units)
    majority[ABNORMAL], any_one[ABNORMAL] = votes.any_column(majority), votes.any_column(any_one)
    return majority, any_one, pd.concat(said)[["unit", "finding", *READERS]], remarks


def _inputs(data: Path) -> tuple[tuple[Path, ...], set[str]]:
    """The folders that hold patients, each once, and the patients that are there."""
    holders: dict[Path, None] = {}
    patients: set[str] = set()
    for folder in layout.folders(data):
        if unit_of(folder.name):
            continue
        here = {
            unit_of(path.name) for path in folder.iterdir() if path.is_dir() or path.suffix.lower() in layout.ARCHIVES
        } - {""}
        patients |= here
        if here and not any(parent in holders for parent in folder.parents):  # which ingest reads as a whole
            holders[folder] = None
    if not patients:
        raise layout.missing(
            data,
            ("CQ500CT0 CQ500CT0", "CQ500-CT-0.zip"),
            "patients",
            "download the zip files of the patients; they need not be unpacked",
        )
    return tuple(holders), patients


CQ500 = PublicSet(
    name="cq500",
    title="CQ500",
    licence="CC BY-NC-SA 4.0 with an end user licence agreement: no commercial use, share changes alike",
    where="http://headctstudy.qure.ai/dataset",
    cite="Chilamkurthy et al., Lancet 2018;392:2388-2396",
    unit="patient",
    findings=(*COLUMNS.values(), ABNORMAL),
    expected={
        "patients in reads.csv": 491,
        "patients with images": 491,
        "patients with ich by majority": 205,
        "patients with ich by any reader": 246,
        "scans": None,
    },
    read=read,
    unit_of=unit_of,
    patient_of=lambda unit: unit,
    left_out=left_out,
)
