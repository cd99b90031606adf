"""From a mask beside its image to volumes and labels; a mask that does not lie on its image is not believed."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd

from headct.datasets.layout import stem
from headct.datasets.publicset import Remark

TOLERANCE_MM = 0.5
"""How far apart image and mask may put a corner of their common grid."""

WHOLE = 0.01
"""How far from a whole number the value of a class may lie, for scl_slope is float32."""

MIN_ML = 0.01
"""A finding of less, some ten voxels of a head CT, is neither there nor not: its label is unknown."""

_BROKEN = (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile, nibabel.filebasedimages.ImageFileError)


@dataclass(frozen=True)
class Measured:
    """Volumes in ml of each finding; empty where `fault` says why the mask cannot be used."""

    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    fault: str = ""


def measure(image: Path, mask: Path, classes: Mapping[int, str] | str) -> Measured:
    """The volumes in a mask. `classes` name the value of each finding, or one finding for a mask of two values.

    The two values of such a mask are 0 and anything: 1, or 255 by a scl_slope that makes it 254.996.
    """
    try:
        on, over = _opened(image), _opened(mask)
        if fault := _misplaced(on, over):
            return Measured(fault=fault)
        values = np.asanyarray(over.dataobj)
    except _BROKEN as error:
        return Measured(fault=f"it cannot be read ({type(error).__name__})")
    voxel_ml = abs(float(np.linalg.det(over.affine[:3, :3]))) / 1000
    if isinstance(classes, str):
        largest = float(values.max(initial=0))
        return Measured({classes: voxel_ml * int(np.count_nonzero(values > max(0.5, largest / 2)))})
    whole = np.rint(values)
    strange = np.setdiff1d(np.unique(whole), [0, *classes])
    if len(strange) or np.abs(values - whole).max(initial=0) > WHOLE:
        shown = ", ".join(f"{value:g}" for value in strange[:4]) or "fractions"
        return Measured(fault=f"it holds values that are no class ({shown})")
    return Measured({name: voxel_ml * int(np.count_nonzero(whole == value)) for value, name in classes.items()})


def _opened(path: Path) -> Any:
    """An image of nibabel, which has no types for what a volume can."""
    return nibabel.load(path)


def _misplaced(image: Any, mask: Any) -> str:
    """Why a mask does not lie on its image; empty where it does."""
    if image.shape[:3] != mask.shape[:3] or mask.ndim != 3:
        return f"its shape is {_sizes(mask.shape)}, that of its image {_sizes(image.shape)}"
    corners = np.array(np.meshgrid(*((0, size - 1) for size in mask.shape), [1], indexing="ij")).reshape(4, -1)
    apart_mm = float(np.linalg.norm((image.affine - mask.affine) @ corners, axis=0).max())
    return "" if apart_mm <= TOLERANCE_MM else f"it lies up to {apart_mm:.1f} mm beside its image"


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


@dataclass(frozen=True)
class Pairs:
    """Images and masks of a set, paired by name: the table of masks, and what is wrong with them."""

    table: pd.DataFrame
    remarks: tuple[Remark, ...]
    images: int


def pair(data: Path, images: Path, masks: Path, classes: Mapping[int, str] | str) -> Pairs:
    """Measure the mask of every image in a folder; one row (`unit`, `mask`, `<finding>_ml`) for each that is sound."""
    image_of, mask_of = _volumes(images), _volumes(masks)
    rows: list[dict[str, Any]] = []
    remarks = [
        Remark("doubtful label", unit, f"{masks.name} has no mask for this image") for unit in image_of.keys() - mask_of
    ]
    remarks += [
        Remark("label without a scan", unit, f"{images.name} has no image for this mask")
        for unit in mask_of.keys() - image_of
    ]
    for unit in sorted(image_of.keys() & mask_of):
        measured = measure(image_of[unit], mask_of[unit], classes)
        if measured.fault:
            remarks.append(Remark("doubtful label", unit, f"its mask is not used: {measured.fault}"))
            continue
        volumes = {f"{name}_ml": volume_ml for name, volume_ml in measured.volumes_ml.items()}
        rows.append({"unit": unit, "mask": mask_of[unit].relative_to(data).as_posix(), **volumes})
    findings = [classes] if isinstance(classes, str) else list(classes.values())
    table = pd.DataFrame(rows, columns=["unit", "mask", *(f"{name}_ml" for name in findings)])
    return Pairs(table, tuple(sorted(remarks, key=lambda remark: remark.subject)), len(image_of))


def _volumes(folder: Path) -> dict[str, Path]:
    files = sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz")))
    return {stem(path.name): path for path in files}


def labels_from(pairs: Pairs, findings: Sequence[str]) -> tuple[pd.DataFrame, tuple[Remark, ...]]:
    """Labels by volume, and remarks on what is too small to say: 1 from `MIN_ML` up, 0 for nothing, else NaN."""
    volumes_ml = pairs.table.set_index("unit")[[f"{name}_ml" for name in findings]]
    values = volumes_ml.to_numpy(float)
    labels = np.select([values >= MIN_ML, values == 0], [1.0, 0.0], np.nan)
    table = pd.DataFrame(labels, index=volumes_ml.index, columns=list(findings))
    specks = [
        Remark("doubtful label", str(table.index[row]), f"{findings[column]} of {values[row, column]:.4f} ml: unknown")
        for row, column in np.argwhere(np.isnan(labels))
    ]
    return table, tuple(specks)
