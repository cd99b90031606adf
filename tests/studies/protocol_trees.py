"""A small CT-ICH, as downloaded, of patients who lie in the parts that a test needs and whose bleeding can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import torch
from inputs import downloads

from headct import encoders
from headct.checkpoints import Card, save
from headct.datasets import named
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS
from headct.writing.nifti import write_nifti

PATIENTS = {"train": 4, "val": 2, "test": 10}
COLUMNS = ("Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural", "No_Hemorrhage")


def numbers(part: str) -> list[int]:
    """The first patients of a part, by the set's own rule."""
    which = named("ct-ich")
    found = (number for number in count(1) if which.split(f"ct-ich-{number:03d}") == part)
    return list(islice(found, PATIENTS[part]))


def truth() -> Mapping[int, tuple[int, int]]:
    """Bleeding and fracture of each patient: every second, and the first half of each part."""
    return {
        number: (place % 2, int(place < PATIENTS[part] // 2))
        for part in PATIENTS
        for place, number in enumerate(numbers(part))
    }


def ct_ich(folder: Path) -> Path:
    root = folder / "ct-ich-1.3.1"
    lines = [f"PatientNumber,SliceNumber,{','.join(COLUMNS)},Fracture_Yes_No"]
    for number, (bleeds, fractured) in truth().items():
        scan = downloads.patient(number)
        hu = scan.hu.copy()
        if bleeds:
            hu[9:15, 28:44, 28:44] = 75
        image = write_nifti(replace(scan, hu=hu), root / "ct_scans" / f"{number:03d}.nii")
        boxes = {1: (30, 9)} if bleeds else {}
        downloads.mask(image, root / "masks" / f"{number:03d}.nii", boxes, stored=(255 / 65535, 127.504))
        for slice_number in range(1, downloads.SLICES + 1):
            here = int(slice_number == 9)
            said = (0, bleeds * here, 0, 0, 0, 1 - bleeds * here, fractured * here)
            lines.append(f"{number},{slice_number},{','.join(map(str, said))}")
    (root / "hemorrhage_diagnosis_raw_ct.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return folder


def model(folder: Path, recipe: str = "head-coarse") -> Path:
    """A checkpoint of a tiny network with BatchNorms, and random weights."""
    torch.manual_seed(0)
    save(
        folder,
        encoders.build("conv-tiny", stem=4, widths=(4, 8), blocks=(1, 1)),
        Card(recipe=recipes[recipe], windows=WINDOWS),
    )
    return folder
