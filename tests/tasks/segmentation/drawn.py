"""A cohort of blocks with masks of them, and a segmenter that has learned a little: small, and quick to make."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import torch
from detection import made

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder, load, save
from headct.cohort import Cohort
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS
from headct.tasks.segmentation import Schedule, TrainSettings

QUICK = TrainSettings(
    window=(24, 28, 24),
    overlap=0.0,
    validation=0.25,
    schedule=Schedule(steps=32, lr=1e-2, looks=2, apart=1, warmup=0.1),
)
VIT = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": (8, 8, 8), "grid": (6, 7, 6)}
SEGRES = {"init_filters": 4, "blocks_down": (1, 1, 1)}


def numbers_of(labels: dict[str, int]) -> np.ndarray:
    """1 where the bright block is, 2 where the dark one is, as `made.array_of` paints them."""
    numbers = np.zeros(made.SHAPE, np.uint8)
    if labels["ich"]:
        numbers[8:28, 8:28, 8:28] = 1
    if labels["sdh"]:
        numbers[30:44, 30:50, 20:44] = 2
    return numbers


def write_mask(path: Path, numbers: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(numbers, affine), path)


def make(folder: Path, patients: int, **settings: object) -> Cohort:
    """A cohort of `made.make` with `masks/` in it."""
    recipe = settings.pop("recipe", recipes["head-coarse"])
    cohort = made.make(folder, patients, recipe=recipe, **settings)  # type: ignore[arg-type]
    affine = np.diag([*made.SPACING_MM, 1.0])
    patient_of = cohort.scans.set_index("scan_id")["patient_id"]
    for scan_id in cohort:
        numbers = numbers_of(made.labels_of(int(patient_of.loc[scan_id][1:])))
        write_mask(folder / "masks" / f"{scan_id}.nii.gz", numbers, affine)
    (folder / "masks" / "classes.csv").write_text("value,name\n1,ich\n2,sdh\n")
    return cohort


def model(
    folder: Path, architecture: str = "vit-tiny", recipe: str = "head-coarse", **settings: object
) -> PretrainedEncoder:
    """A checkpoint with random weights."""
    torch.manual_seed(0)
    shape = settings or {"vit-tiny": VIT, "segresenc": SEGRES}[architecture]
    encoder = encoders.build(architecture, **{"channels": len(WINDOWS), **shape})
    save(folder, encoder, Card(recipe=recipes[recipe], windows=WINDOWS))
    return load(folder)
