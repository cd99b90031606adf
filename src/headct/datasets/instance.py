"""INSTANCE 2022: 100 volumes with bleeding outlined, of patients who all bleed (arXiv 2301.03281)."""

from __future__ import annotations

from pathlib import Path

from headct.datasets import layout, masks
from headct.datasets.publicset import Found, PublicSet


def read(data: Path) -> Found:
    """train_2 with its folders `data` and `label`; the volumes of the other stages have no public masks."""
    do = "unpack what the challenge's organisers sent"
    folder = layout.find_folder(data, "train_2", what="the training volumes", do=do)
    images = layout.find_folder(folder, "data", what="the images", do=do)
    outlines = layout.find_folder(folder, "label", what="the masks", do=do)
    pairs = masks.pair(data, images, outlines, "ich")
    labels, specks = masks.labels_from(pairs, ["ich"])
    counts = {
        "images": pairs.images,
        "masks": len(pairs.table),
        "volumes with ich": int((labels["ich"] == 1).sum()),
    }
    return Found(inputs=(images,), labels=labels, masks=pairs.table, counts=counts, remarks=(*pairs.remarks, *specks))


INSTANCE = PublicSet(
    name="instance-2022",
    title="INSTANCE 2022",
    licence="the challenge's signed agreement; read it for what it forbids",
    where="https://instance.grand-challenge.org",
    cite="Li et al., arXiv 2301.03281",
    unit="volume",
    findings=("ich",),
    expected={"images": 100, "masks": 100, "volumes with ich": None, "scans": None},
    read=read,
    unit_of=layout.stem,
    patient_of="instance-2022-{}".format,
)
