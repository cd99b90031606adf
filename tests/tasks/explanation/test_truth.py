"""Masks from files: on another grid, and every way in which a mask can be wrong."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from tasks.explanation import painted

from headct.failure import Misuse
from headct.tasks.explanation import read_mask
from headct.writing import write_nifti

FINER = np.array([[-2.0, 0, 0, 66], [0, -2, 0, 56], [0, 0, 2, 29], [0, 0, 0, 1]])
"""Half as wide voxels, counted from the other sides; the middle of a voxel of the head is a corner of eight."""


def written(folder: Path, values: np.ndarray, affine: np.ndarray = painted.AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), folder / "mask.nii.gz")
    return folder / "mask.nii.gz"


def test_a_mask_on_the_grid_of_the_head_is_itself(tmp_path: Path) -> None:
    classes = np.where(painted.lesion(), 7, 0).astype(np.uint8)
    classes[2, 2, 2] = 3
    path = write_nifti(classes, tmp_path / "mask.nii.gz", painted.AFFINE)
    found = read_mask(path, painted.AFFINE, painted.SHAPE, {"iph": (7,), "ich": (7, 8), "sdh": (9,)})
    np.testing.assert_array_equal(found["iph"], painted.lesion())
    np.testing.assert_array_equal(found["ich"], painted.lesion())
    assert not found["sdh"].any()
    with pytest.raises(Misuse, match="holds the values 3, 7"):
        read_mask(path, painted.AFFINE, painted.SHAPE, {"iph": ()})


def test_a_mask_on_another_grid_lies_in_the_same_place(tmp_path: Path) -> None:
    """Oracle: a box in patient millimetres, voxel by voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, (64, 64, 64)), indexing="ij"), axis=-1)
    places_mm = index @ FINER[:3, :3].T + FINER[:3, 3]
    low, high = (painted.AFFINE[:3, :3] @ corner + painted.AFFINE[:3, 3] for corner in ([18, 8, 10], [24, 14, 16]))
    inside = np.all((places_mm >= low - 2) & (places_mm <= high + 2), axis=-1)
    path = written(tmp_path, inside.astype(np.uint8), FINER)
    found = read_mask(path, painted.AFFINE, painted.SHAPE, {"iph": ()})["iph"]
    np.testing.assert_array_equal(found, painted.lesion())


def test_a_lesion_smaller_than_a_voxel_keeps_one(tmp_path: Path) -> None:
    fine = np.zeros((256, 256, 256), np.uint8)
    fine[100:103, 100:103, 100:103] = 7
    quarter = painted.AFFINE.copy()
    quarter[:3, :3] /= 8
    found = read_mask(written(tmp_path, fine, quarter), painted.AFFINE, painted.SHAPE, {"iph": (7,)})["iph"]
    assert np.argwhere(found).tolist() == [[13, 13, 13]]  # 101 / 8 lies next to it


@pytest.mark.parametrize(
    ("values", "affine", "says"),
    [
        (np.zeros((4, 4, 4, 2), np.uint8), painted.AFFINE, "has the shape 4 x 4 x 4 x 2"),
        (np.full((4, 4, 4), np.nan, np.float32), painted.AFFINE, "NaN"),
        (np.full((4, 4, 4), 0.5, np.float32), painted.AFFINE, "between whole numbers"),
        (np.ones((4, 4, 4), np.uint8), np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 5000, "does not meet the head"),
    ],
)
def test_what_is_no_mask_of_this_head_is_refused(
    tmp_path: Path, values: np.ndarray, affine: np.ndarray, says: str
) -> None:
    with pytest.raises(Misuse, match=says):
        read_mask(written(tmp_path, values, affine), painted.AFFINE, painted.SHAPE, {"iph": ()})


def test_what_is_no_file_or_no_nifti_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="there is no mask"):
        read_mask(tmp_path / "none.nii", painted.AFFINE, painted.SHAPE, {"iph": ()})
    (tmp_path / "text.nii").write_text("no image")
    with pytest.raises(Misuse, match="cannot be read"):
        read_mask(tmp_path / "text.nii", painted.AFFINE, painted.SHAPE, {"iph": ()})
