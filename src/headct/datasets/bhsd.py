"""BHSD: 192 volumes of RSNA 2019 with five kinds of bleeding outlined (arXiv 2308.11298)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from headct.datasets import layout, masks, votes
from headct.datasets.publicset import Found, PublicSet

CLASSES = {1: "edh", 2: "iph", 3: "ivh", 4: "sah", 5: "sdh"}
"""Values of the masks."""


def read(data: Path) -> Found:
    """label_192 with its folders `images` and `ground truths`; the volumes without masks are not read."""
    do = "download label_192.zip and unpack it"
    folder = layout.find_folder(data, "label_192", what="the volumes with masks", do=do)
    images = layout.find_folder(folder, "images", what="the images", do=do)
    outlines = layout.find_folder(folder, "ground truths", what="the masks", do=do)
    pairs = masks.pair(data, images, outlines, CLASSES)
    labels, specks = masks.labels_from(pairs, list(CLASSES.values()))
    labels.insert(0, "ich", votes.any_column(labels))
    measured = pairs.table
    measured.insert(2, "ich_ml", measured[[f"{name}_ml" for name in CLASSES.values()]].sum(axis=1))
    counts = {
        "images": pairs.images,
        "masks": len(measured),
        **{f"volumes with {name}": int((labels[name] == 1).sum()) for name in labels},
    }
    return Found(
        inputs=(images,),
        labels=labels,
        masks=pd.DataFrame(measured),
        counts=counts,
        remarks=(*pairs.remarks, *specks),
    )


def patient_of(unit: str) -> str:
    """`ID_0b10cbee` of `ID_0b10cbee_ID_f91d6a7cd2`: the patient as RSNA 2019 names them."""
    parts = unit.split("_")
    return "_".join(parts[:2]) if len(parts) == 4 and parts[0] == parts[2] == "ID" else unit


BHSD = PublicSet(
    name="bhsd",
    title="Brain Hemorrhage Segmentation Dataset",
    licence="MIT by its repository; the images are RSNA 2019's, whose terms allow non-commercial use only",
    where="https://github.com/White65534/BHSD",
    cite="Wu et al., MLMI 2023, LNCS 14349:147-156, arXiv 2308.11298",
    unit="volume",
    findings=("ich", *CLASSES.values()),
    expected={
        "images": 192,
        "masks": 192,
        **{f"volumes with {name}": None for name in CLASSES.values()},
        "scans": None,
    },
    read=read,
    unit_of=layout.stem,
    patient_of=patient_of,
    split_key="rsna-2019",  # a patient of RSNA's test part is in the test part here too
)
