"""A mask of lesions as a file, brought onto the grid of the prepared head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from headct.failure import Misuse
from headct.preparing import masks

SHOWN = 8
"""Values of a mask that are named."""


def read_mask(
    path: Path, affine: np.ndarray, shape: tuple[int, int, int], values: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """For each finding of `values` whether a voxel (X, Y, Z) is its lesion; `affine` (4, 4) is that of the head.

    The file may have any grid of its own: a voxel is of the lesion if that fills half of it, and where it fills
    half of none, it keeps one. A finding without values is all that is not 0. Raises Misuse where the file is no NIfTI
    of three axes, holds NaN or values other than whole numbers, or does not meet the head, and where a finding is
    without values and the file has several.
    """
    if not path.is_file():
        raise Misuse(f"there is no mask {path}", do="name a NIfTI file")
    stored, theirs = masks.read_mask(path)
    found = _whole(stored, path)
    several = np.setdiff1d(found, 0)
    if len(several) > 1 and not all(values.values()):
        raise Misuse(
            f"the mask {path} holds the values {', '.join(map(str, several[:SHOWN].tolist()))}",
            why="it is not said which of them is the lesion: all together may be the whole head",
            do="name it, for example --truth iph=7, or all of them, --truth iph=1,2,3",
        )
    _expect_met(found.shape, theirs, affine, shape, path)
    return {
        name: masks.on_grid((np.isin(found, codes) if codes else found != 0).astype(np.uint8), theirs, shape, affine, 2)
        > 0
        for name, codes in values.items()
    }


def _whole(stored: np.ndarray, path: Path) -> np.ndarray:
    """The values (i, j, k) as whole numbers. Raises Misuse where they are none."""
    if not np.isfinite(stored).all():
        raise Misuse(f"the mask {path} holds values that are no numbers (NaN)", do="put 0 where there is no lesion")
    if (np.abs(stored - np.rint(stored)) > 0.01).any():
        raise Misuse(
            f"the mask {path} holds values between whole numbers", why="it may be an image", do="name the mask instead"
        )
    return np.rint(stored).astype(np.int64)


def _expect_met(
    theirs: Sequence[int], matrix: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int], path: Path
) -> None:
    """Raises Misuse where no voxel of the head lies in the file's grid, of shape `theirs`."""
    to_theirs = np.linalg.inv(matrix) @ affine
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
    places = np.rint(grid @ to_theirs[:3, :3].T + to_theirs[:3, 3])
    if not np.all((places >= 0) & (places < np.array(theirs)), axis=1).any():
        raise Misuse(
            f"the mask {path} does not meet the head",
            why="in the patient's millimetres it lies elsewhere",
            do="name the mask of this scan, with the matrix of its image",
        )
