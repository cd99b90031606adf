"""SinoCT: head CT with their sinograms, normal or abnormal by the radiologist's report (Stanford AIMI)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from headct.datasets import layout
from headct.datasets.publicset import Found, PublicSet, Remark
from headct.failure import Failure

_SERIES = re.compile(r"(?:^|/)(series_\d+)(?=/|$)")
_LABELS = {"1,0": 0.0, "0,1": 1.0, "0": 0.0, "1": 1.0}
"""normal, abnormal: one of the two is 1; some copies of the table give abnormal alone."""


def unit_of(path: str) -> str:
    """`series_12` for a file below that folder; the sinograms beside the images are no scans."""
    found = _SERIES.search(path)
    return found[1] if found else ""


def read(data: Path) -> Found:
    """head_ct_dataset_anon with its batches, and labels.csv beside it or near."""
    do = "download the set from Stanford AIMI as a whole and unpack it"
    images = layout.find_folder(data, "head_ct_dataset_anon", what="the folder of batches", do=do)
    path = layout.find_file(data, "labels.csv", what="the table of labels", do=do)
    table = layout.read_table(path, ["patient_id", "label"])
    if table["patient_id"].duplicated().any():
        twice = table["patient_id"][table["patient_id"].duplicated()].iloc[0]
        raise Failure(f"{path} names {twice} twice", do=do)
    said = table["label"].fillna("").str.replace(r"[\s\[\]()]", "", regex=True)
    values = said.map(_LABELS).to_numpy(float)
    labels = pd.DataFrame({"abnormal": values}, index=pd.Index(table["patient_id"], name="unit"))
    remarks = [
        Remark("doubtful label", str(unit), f"its label is {text!r}, neither normal nor abnormal")
        for unit, text in zip(labels.index[np.isnan(values)], table["label"][np.isnan(values)], strict=True)
    ]
    series = {one.name for batch in sorted(images.iterdir()) if batch.is_dir() for one in batch.iterdir()}
    counts = {
        "labelled series": len(labels),
        "series abnormal": int((values == 1).sum()),
        "series normal": int((values == 0).sum()),
        "series with images": len({one for one in series if unit_of(one)}),
    }
    return Found(inputs=(images,), labels=labels, counts=counts, remarks=tuple(remarks))


SINOCT = PublicSet(
    name="sinoct",
    title="SinoCT",
    licence="Stanford AIMI's agreement, accepted at download; read it for what it forbids",
    where="the shared data sets of Stanford AIMI, https://aimi.stanford.edu",
    cite="not recorded",
    unit="series",
    findings=("abnormal",),
    expected={
        "labelled series": 9_779,
        "series abnormal": 5_399,
        "series normal": 4_380,
        "series with images": 9_779,
        "scans": None,
        "patients with scans": None,
    },
    read=read,
    unit_of=unit_of,
)
