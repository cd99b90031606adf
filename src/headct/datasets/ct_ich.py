"""CT-ICH: 75 trauma patients of one hospital, slices labelled and bleeding outlined (PhysioNet ct-ich 1.3.1)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from headct.datasets import layout, masks, votes
from headct.datasets.publicset import Found, PublicSet, Remark
from headct.failure import Failure

COLUMNS = {
    "Intraventricular": "ivh",
    "Intraparenchymal": "iph",
    "Subarachnoid": "sah",
    "Epidural": "edh",
    "Subdural": "sdh",
    "Fracture_Yes_No": "fracture",
}
"""Columns of the table of slices, and what they are called here."""

BLEEDS = ("ivh", "iph", "sah", "edh", "sdh")


def read(data: Path) -> Found:
    """hemorrhage_diagnosis_raw_ct.csv, ct_scans and masks; a patient's label is that of any slice."""
    do = "download version 1.3.1 from PhysioNet as a whole"
    path = layout.find_file(data, "hemorrhage_diagnosis_raw_ct.csv", what="the table of slices", do=do)
    images = layout.find_folder(path.parent, "ct_scans", what="the scans", do=do)
    outlines = layout.find_folder(path.parent, "masks", what="the masks", do=do)
    table = layout.read_table(path, ["PatientNumber", "SliceNumber", *COLUMNS])
    numbers = pd.to_numeric(table["PatientNumber"], errors="coerce")
    if numbers.isna().any():
        row = int(numbers.isna().to_numpy().argmax())
        why = f"the patient's number in row {row + 2} is {table['PatientNumber'].iloc[row]!r}"
        raise Failure(f"{path} cannot be matched", why=why, do=do)
    units = numbers.astype(int).map("{:03d}".format).rename("unit")
    slices = pd.DataFrame({finding: layout.as_labels(table[column]) for column, finding in COLUMNS.items()})
    by_patient = slices.groupby(units)
    # unknown where no slice says 1 and one says nothing
    labels = by_patient.max().where((by_patient.max() == 1) | ~slices.isna().groupby(units).any())
    labels.insert(0, "ich", votes.any_column(labels[list(BLEEDS)]))
    pairs = masks.pair(data, images, outlines, "ich")
    counts = {
        "rows of slices": len(table),
        "patients in the table": len(labels),
        "patients with ich": int((labels["ich"] == 1).sum()),
        "scan files": pairs.images,
        **{f"slices with {finding}": int((slices[finding] == 1).sum()) for finding in BLEEDS},
    }
    return Found(
        inputs=(images,),
        labels=labels,
        masks=pairs.table,
        counts=counts,
        remarks=(*pairs.remarks, *_disagreements(labels, pairs.table)),
    )


def _disagreements(labels: pd.DataFrame, outlined: pd.DataFrame) -> list[Remark]:
    """Patients of whom the table and the mask do not say the same; the table, which radiologists wrote, is believed."""
    ml = outlined.set_index("unit")["ich_ml"].reindex(labels.index)
    remarks = []
    for unit, label, volume_ml in zip(labels.index, labels["ich"], ml, strict=True):
        if label == 1 and volume_ml == 0:
            remarks.append(Remark("doubtful label", str(unit), "bleeding in the table, none in its mask"))
        elif label == 0 and volume_ml > 0:
            remarks.append(Remark("doubtful label", str(unit), f"none in the table, {volume_ml:.2f} ml in its mask"))
    return remarks


CT_ICH = PublicSet(
    name="ct-ich",
    title="Computed Tomography Images for Intracranial Hemorrhage Detection and Segmentation 1.3.1",
    licence="PhysioNet Restricted Health Data License 1.5.0: sign it, do not pass the data on, research only",
    where="https://physionet.org/content/ct-ich/1.3.1/",
    cite="Hssayeni et al., Data 2020;5:14",
    unit="patient",
    findings=("ich", *COLUMNS.values()),
    expected={
        "rows of slices": 2_814,
        "patients in the table": 75,
        "patients with ich": 36,
        "scan files": 75,
        "slices with edh": 173,
        "slices with iph": 73,
        "slices with sdh": 56,
        "slices with ivh": 24,
        "slices with sah": 18,
        "scans": None,
    },
    read=read,
    unit_of=layout.stem,
    patient_of="ct-ich-{}".format,
)
