"""Written volumes against nibabel's and SimpleITK's reading; positions equal to float32, which NIfTI holds."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from headct.scan import GeometryError, Scan
from headct.virtual.phantom import Phantom
from headct.writing import write_nifti


def head(**settings: object) -> Scan:
    return Phantom(0).scan(**{"slices": 5, "gap_mm": 20.0, "rows": 24, "cols": 30, "pixel_mm": 8.0, **settings})


@pytest.mark.parametrize("tilt_deg", [0.0, 17.0])
@pytest.mark.parametrize("name", ["head.nii", "head.nii.gz"])
def test_voxels_lie_where_the_scan_has_them(tilt_deg: float, name: str, tmp_path: Path) -> None:
    scan = head(tilt_deg=tilt_deg)
    image = nibabel.load(write_nifti(scan, tmp_path / name))
    data = np.asarray(image.dataobj)
    assert data.dtype == np.int16
    np.testing.assert_array_equal(data.transpose(2, 1, 0), scan.hu)
    for s, r, c in [(0, 0, 0), (4, 23, 29), (2, 5, 17)]:
        place = scan.origins_mm[s] + r * scan.row_step_mm + c * scan.col_step_mm
        np.testing.assert_allclose(nibabel.affines.apply_affine(image.affine, (c, r, s)), place, atol=1e-3)


def test_a_second_reader_agrees(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    scan = head()
    image = sitk.ReadImage(str(write_nifti(scan, tmp_path / "head.nii.gz")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan.hu)
    place = scan.origins_mm[3] + 4 * scan.row_step_mm + 9 * scan.col_step_mm
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((9, 4, 3)), place * (-1, -1, 1), atol=1e-3)


def test_both_transforms_agree_unless_sheared(tmp_path: Path) -> None:
    upright = nibabel.load(write_nifti(head(), tmp_path / "upright.nii"))
    np.testing.assert_allclose(upright.get_qform(), upright.get_sform(), atol=1e-3)
    assert (upright.header["qform_code"], upright.header["sform_code"]) == (1, 1)
    sheared = nibabel.load(write_nifti(head(tilt_deg=17.0), tmp_path / "sheared.nii"))
    assert (sheared.header["qform_code"], sheared.header["sform_code"]) == (0, 1)


def test_arrays_keep_their_type_and_affine(tmp_path: Path) -> None:
    array = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    image = nibabel.load(write_nifti(array, tmp_path / "deep" / "array.nii.gz", affine))
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_nifti(head(), tmp_path / name / "head.nii.gz") for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_what_no_matrix_describes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="not evenly spaced"):
        write_nifti(head(positions_mm=[0, 5, 10, 20]), tmp_path / "uneven.nii")
    with pytest.raises(ValueError, match="needs an affine"):
        write_nifti(np.zeros((2, 2, 2), dtype=np.int16), tmp_path / "array.nii")
