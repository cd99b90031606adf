"""A volume as one NIfTI file whose matrix says exactly where its voxels are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from headct.scan import Scan

SCANNER = 1
"""NIfTI's code for the coordinates of the scanner that made the image."""


def write_nifti(volume: Scan | np.ndarray, path: Path, affine: np.ndarray | None = None) -> Path:
    """Write a scan, or an array (i, j, k) with its affine (4, 4) from voxel to RAS mm, as .nii or .nii.gz.

    A scan's axes are turned from (slice, row, col) to NIfTI's usual (col, row, slice); its values are not. Both of
    NIfTI's transforms are filled in, except that a sheared matrix (gantry tilt) has no qform. The same volume gives
    the same bytes. Raises GeometryError for a scan that no matrix describes, ValueError for an array without one.
    """
    if isinstance(volume, Scan):
        matrix = volume.affine() if affine is None else affine
        data, matrix = volume.hu.transpose(2, 1, 0), matrix[:, [2, 1, 0, 3]]
    elif affine is None:
        raise ValueError("an array needs an affine from voxel to RAS millimetres")
    else:
        data, matrix = volume, np.asarray(affine, dtype=float)
    image: Any = nibabel.Nifti1Image(data, matrix)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1, 0)
    image.set_sform(matrix, SCANNER)
    if _is_sheared(matrix):
        image.set_qform(None, 0)
    else:
        image.set_qform(matrix, SCANNER)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def _is_sheared(matrix: np.ndarray) -> bool:
    """Whether the axes of an affine are not perpendicular, beyond what rounding to float32 does."""
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    return bool(np.max(np.abs(axes.T @ axes - np.eye(3))) > 1e-5)
