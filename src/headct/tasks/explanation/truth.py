"""A mask of lesions as a file, brought onto the grid of the prepared head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError

from headct.failure import Misuse


def read_mask(
    path: Path, affine: np.ndarray, shape: tuple[int, int, int], values: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """For each finding of `values` whether a voxel (X, Y, Z) is its lesion; `affine` (4, 4) is that of the head.

    The file may have any grid of its own: each voxel takes the value of the file's voxel that lies nearest. A finding
    without values is all that is not 0. Raises Misuse where the file is no NIfTI of three axes, holds NaN or values
    other than whole numbers, or does not meet the head.
    """
    found = _on_grid(*_read(path), affine, shape, path)
    return {name: np.isin(found, codes) if codes else found != 0 for name, codes in values.items()}


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values (i, j, k) and affine, voxel to RAS mm."""
    if not path.is_file():
        raise Misuse(f"there is no mask {path}", do="name a NIfTI file")
    try:
        image: Any = nibabel.load(path)
        values = np.asarray(image.dataobj)
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise Misuse(f"the mask {path} cannot be read", why=str(error), do="name a NIfTI file") from error
    values = values[..., 0] if values.ndim == 4 and values.shape[3] == 1 else values
    if values.ndim != 3:
        raise Misuse(f"the mask {path} has the shape {values.shape}", why="a mask has three axes", do="name another")
    if not np.isfinite(values).all():
        raise Misuse(f"the mask {path} holds values that are no numbers (NaN)", do="put 0 where there is no lesion")
    if (np.abs(values - np.rint(values)) > 0.01).any():
        raise Misuse(
            f"the mask {path} holds values between whole numbers", why="it may be an image", do="name the mask instead"
        )
    return np.rint(values).astype(np.int64), np.asarray(image.affine, dtype=float)


def _on_grid(
    values: np.ndarray, theirs: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int], path: Path
) -> np.ndarray:
    to_theirs = np.linalg.inv(theirs) @ affine
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
    places = np.rint(grid @ to_theirs[:3, :3].T + to_theirs[:3, 3]).astype(np.int64)
    inside = np.all((places >= 0) & (places < np.array(values.shape)), axis=1)
    if not inside.any():
        raise Misuse(
            f"the mask {path} does not meet the head",
            why="in the patient's millimetres it lies elsewhere",
            do="name the mask of this scan, with the matrix of its image",
        )
    found = np.zeros(len(grid), dtype=np.int64)
    found[inside] = values[tuple(places[inside].T)]
    return found.reshape(shape)
