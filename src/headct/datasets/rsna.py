"""RSNA 2019: slices labelled one by one, all in one folder (Flanders et al., Radiol Artif Intell 2020;2:e190211).

A series is put together from its headers (`headct.reading`): names of files say nothing. Its label is that of its
slices: 1 where any slice has the finding, 0 where all are known not to.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from headct.datasets import layout
from headct.datasets.publicset import Found, PublicSet, Remark
from headct.failure import Failure

SUBTYPES = {
    "any": "ich",
    "epidural": "edh",
    "intraparenchymal": "iph",
    "intraventricular": "ivh",
    "subarachnoid": "sah",
    "subdural": "sdh",
}
"""What follows the name of an image in the column ID, and what it is called here."""


def read(data: Path) -> Found:
    """stage_2_train.csv and the folder stage_2_train; the images of the test stage have no public labels."""
    do = "download the competition's data from Kaggle and unpack them"
    images = layout.find_folder(data, "stage_2_train", "stage_2_train_images", what="the folder of images", do=do)
    path = layout.find_file(data, "stage_2_train.csv", what="the table of labels", do=do)
    table = layout.read_table(path, ["ID", "Label"])
    parts = [str(one).rpartition("_") for one in table["ID"]]
    column_of = {subtype: column for column, subtype in enumerate(SUBTYPES)}
    columns = np.array([column_of.get(subtype, -1) if image.startswith("ID_") else -1 for image, _, subtype in parts])
    if (columns < 0).any():
        row = int(np.argmin(columns))
        why = f"row {row + 2} is {table['ID'].iloc[row]!r}, not ID_<image>_<subtype>"
        raise Failure(f"{path} has rows of another kind", why=why, do=do)
    values = layout.as_labels(table["Label"]).to_numpy()
    rows, units = pd.factorize(np.array([image for image, _, _ in parts], dtype=object))
    highest, lowest = (np.full((len(units), len(SUBTYPES)), np.nan) for _ in range(2))
    np.fmax.at(highest, (rows, columns), values)
    np.fmin.at(lowest, (rows, columns), values)
    labels = pd.DataFrame(highest, index=pd.Index(units, name="unit"), columns=list(_FINDINGS))
    positive = np.bincount(columns[values == 1], minlength=len(_FINDINGS))
    counts = {"rows of labels": len(table), "labelled slices": len(labels)}
    counts |= {f"rows with {one}": int(number) for one, number in zip(_FINDINGS, positive, strict=True)}
    remarks = _remarks(labels, differing=np.any(lowest < highest, axis=1))
    return Found(inputs=(images,), labels=labels, counts=counts, remarks=remarks)


def _remarks(labels: pd.DataFrame, differing: np.ndarray) -> tuple[Remark, ...]:
    """Slices whose rows differ (n,), and those whose "any" is not what the subtypes say."""
    remarks = [Remark("doubtful label", unit, "its rows differ; 1 was taken") for unit in labels.index[differing]]
    subtypes = labels.drop(columns="ich")
    odd = ((labels["ich"] == 0) & (subtypes == 1).any(axis=1)) | ((labels["ich"] == 1) & (subtypes == 0).all(axis=1))
    remarks += [Remark("doubtful label", unit, "any and the subtypes disagree") for unit in labels.index[odd]]
    return tuple(remarks)


_FINDINGS = tuple(SUBTYPES.values())

RSNA = PublicSet(
    name="rsna-2019",
    title="RSNA 2019 Brain CT Hemorrhage",
    licence="RSNA's terms: non-commercial use only, no attempt to identify anyone, cite when sharing",
    where="https://www.kaggle.com/c/rsna-intracranial-hemorrhage-detection",
    cite="Flanders et al., Radiol Artif Intell 2020;2:e190211",
    unit="slice",
    findings=_FINDINGS,
    expected={
        "rows of labels": 4_516_842,
        "labelled slices": 752_803,
        "rows with ich": 107_933,
        "rows with sdh": 47_166,
        "rows with iph": 36_118,
        "rows with sah": 35_675,
        "rows with ivh": 26_205,
        "rows with edh": 3_145,
        "scans": None,
        "patients with scans": None,
    },
    read=read,
    unit_of=layout.stem,
    split_key="rsna-2019",
)
