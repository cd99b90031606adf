"""Real scans end as their README says, and lie where dcm2niix says.

Oracle: dcm2niix 1.0.20260724 on the original files (`oracle_dcm2niix.json`), within 0.5 mm and 0.5 degrees; percentiles
of the same voxels must agree to 1 HU, since both read integers. Its plain outputs ignore the shear of a tilted stack:
there the grid of the first slice, the gaps along the normal, the angle of its messages, and the rows by which it had to
widen the corrected volume are what can be compared.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import ndimage

import headct
from headct.scan import Rejection, Scan

KEY = bytes(32)


@pytest.fixture(scope="module")
def data(shared) -> Path:
    return shared / "data"


@pytest.fixture(scope="module")
def oracle(data) -> dict[str, dict]:
    return {series["name"]: series for series in json.loads((data / "oracle_dcm2niix.json").read_text())}


@cache
def read(path: Path) -> tuple[tuple[Scan, ...], dict[str, str]]:
    """The scans in a folder, the one with most slices first, and the code of each rejected file."""
    items = list(headct.read(path, key=KEY, isolated=False))
    scans = sorted((item for item in items if isinstance(item, Scan)), key=lambda scan: -len(scan.hu))
    return tuple(scans), {name: item.code for item in items if isinstance(item, Rejection) for name in item.files}


SERIES = {
    "ge_hispeed_tilt": (28, {"tilt", "uneven", "mixed-thickness", "padding"}),
    "philips_phantom_flat": (28, {"contrast-in-words"}),
    "philips_phantom_tilt_neg": (54, {"tilt", "contrast-in-words"}),
    "siemens_tilt_iop_only": (4, {"tilt", "hu-unverified"}),
    "ge_uneven_shuffled": (4, {"uneven", "gap-filled", "hu-unverified"}),
}


@pytest.mark.parametrize("name", SERIES)
def test_each_series_is_one_scan_with_its_flags(data, name):
    (scan,), _ = read(data / "dicom" / name)
    slices, flags = SERIES[name]
    assert len(scan.hu) == slices
    assert set(scan.header.flags) == flags


@pytest.mark.parametrize("name", SERIES)
def test_geometry_is_that_of_dcm2niix(data, oracle, name):
    (scan,), _ = read(data / "dicom" / name)
    plain = oracle[name]["outputs"][0]
    affine = np.array(plain["affine"])
    assert scan.hu.shape[::-1] == tuple(plain["shape"])
    # dcm2niix stores columns, then rows from the last to the first, then slices upwards
    last_row_mm = scan.origins_mm[0] + (scan.hu.shape[1] - 1) * scan.row_step_mm
    assert_allclose(last_row_mm, affine[:3, 3], atol=0.5)
    for ours, theirs in ((scan.col_step_mm, affine[:3, 0]), (-scan.row_step_mm, affine[:3, 1])):
        assert_allclose(np.linalg.norm(ours), np.linalg.norm(theirs), rtol=1e-3)
        assert angle_deg(ours, theirs) < 0.5
    assert_allclose(np.min(scan.gaps_mm[scan.gaps_mm > 2]), plain["zooms_mm"][2], atol=0.01)


def angle_deg(one: np.ndarray, other: np.ndarray) -> float:
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


@pytest.mark.parametrize("name", SERIES)
def test_tilt_is_that_of_dcm2niix(data, oracle, name):
    (scan,), _ = read(data / "dicom" / name)
    said = [re.search(r"estimated from slice vector ([\d.-]+)", line) for line in oracle[name]["messages"]]
    expected = [float(found[1]) for found in said if found] or [0.0]
    assert_allclose(scan.tilt_deg, abs(expected[0]), atol=0.5)


@pytest.mark.parametrize("name", ["philips_phantom_tilt_neg", "siemens_tilt_iop_only", "ge_hispeed_tilt"])
def test_shear_goes_as_far_as_dcm2niix_has_to_widen_the_volume(data, oracle, name):
    (scan,), _ = read(data / "dicom" / name)
    corrected = oracle[name]["outputs"][1]
    travel_mm = scan.origins_mm[-1] - scan.origins_mm[0]
    aside_mm = np.linalg.norm(travel_mm - (travel_mm @ scan.normal) * scan.normal)
    widened_mm = (corrected["shape"][1] - scan.hu.shape[1]) * scan.pixel_mm[0]
    assert_allclose(aside_mm, widened_mm, atol=2 * scan.pixel_mm[0])  # it rounds up to whole rows


@pytest.mark.parametrize("name", SERIES)
def test_values_are_those_of_dcm2niix(data, oracle, name):
    (scan,), _ = read(data / "dicom" / name)
    plain = oracle[name]["outputs"][0]
    as_read = scan.as_read()
    assert (as_read.min(), as_read.max()) == (plain["min"], plain["max"])
    percentiles = np.percentile(as_read, [1, 5, 25, 50, 75, 95, 99])
    assert_allclose(percentiles, plain["pct_1_5_25_50_75_95_99"], atol=1)


def test_ge_hispeed_in_detail(data, oracle):
    """README: 13 gaps of 4.00, one of 1.08, 13 of 7.00 mm; padding -1500 becomes air; the brain is in HU."""
    (scan,), rejected = read(data / "dicom" / "ge_hispeed_tilt")
    assert rejected == {}
    assert_allclose(scan.gaps_mm, [4.0] * 13 + [1.08] + [7.0] * 13, atol=0.01)
    assert_allclose(scan.tilt_deg, 18.5, atol=0.05)
    assert scan.as_read().min() == -1500
    assert scan.hu.min() > -1200
    core = ndimage.binary_erosion((scan.hu >= -10) & (scan.hu <= 90), iterations=3)
    soft = oracle["ge_hispeed_tilt"]["outputs"][0]["soft_tissue_core_p10_50_90"]
    assert_allclose(np.percentile(scan.hu[core], [10, 50, 90]), soft, atol=2)  # the oracle's core is not defined closer
    assert scan.header.manufacturer == "GE MEDICAL SYSTEMS"
    assert scan.header.patient_id != "QMNx85rKkkg"


def test_of_the_phantom_studies_one_series_is_read_and_the_rest_named(data):
    flat, rejected_flat = read(data / "dicom" / "philips_phantom_flat")
    tilted, rejected_tilted = read(data / "dicom" / "philips_phantom_tilt_neg")
    assert [len(scans) for scans in (flat, tilted)] == [1, 1]
    assert sorted(rejected_flat.values()) == ["localizer"] * 4 + ["not-an-image"] * 3 + ["screen-capture"] * 3
    assert sorted(rejected_tilted.values()) == ["localizer"] * 3 + ["not-an-image"] + ["screen-capture"] * 3
    assert flat[0].header.kernel == "UB"
    assert_allclose(tilted[0].gaps_mm, 2.37081, atol=1e-3)


def test_bolus_tracking_is_no_volume(data):
    scans, rejected = read(data / "dicom" / "siemens_same_position")
    assert scans == ()
    assert list(rejected.values()) == ["same-position"] * 4


def test_a_missing_slice_is_found_not_stacked_over(data):
    (scan,), _ = read(data / "dicom" / "ge_uneven_shuffled")
    assert_allclose(scan.origins_mm[:, 2], [18.1075, 23.1075, 28.1075, 38.1075], atol=1e-3)


def test_nothing_among_the_negatives_is_a_head(data):
    """Chest slices are CT and are read as such; one of them is with contrast, two lie 59 mm apart."""
    scans, rejected = read(data / "dicom" / "negatives")
    assert {name.rpartition("/")[2]: code for name, code in rejected.items()} == {
        "ct_chest_lidc_100.dcm": "missing-slices",
        "ct_chest_lidc_101.dcm": "missing-slices",
        "ct_chest_localizer_jpegll.dcm": "localizer",
        "enhanced_mr.dcm": "not-ct",
        "mr_brain_flair.dcm": "not-ct",
        "rtplan_truncated.dcm": "not-an-image",
        "rtstruct_pydicom.dcm": "not-an-image",
        "seg_liver.dcm": "not-ct",
        "us.dcm": "not-ct",
    }
    (chest,) = scans
    assert (len(chest.hu), chest.header.contrast) == (1, True)


def test_one_slice_in_six_syntaxes_is_two_series_of_one_slice(data):
    scans, rejected = read(data / "dicom" / "transfer_syntaxes")
    assert sorted(rejected.values()) == ["duplicate-file"] * 4
    assert [scan.header.flags for scan in scans] == [("padding",)] * 2  # without loss, though a lossy copy comes first
    assert np.array_equal(scans[0].hu, scans[1].hu)


@pytest.mark.parametrize(("name", "lossy"), [("J2KI", True), ("JLSN", True), ("J2KR", False)])
def test_a_lossy_slice_is_read_and_flagged(data, name, lossy):
    (scan,), _ = read(data / "dicom" / "transfer_syntaxes" / f"CT2_{name}.dcm")
    assert ("lossy" in scan.header.flags) == lossy


def test_odd_headers(data):
    scans, rejected = read(data / "dicom" / "odd_headers")
    codes = {name.rpartition("/")[2]: code for name, code in rejected.items()}
    assert codes == {
        "693_J2KR.dcm": "duplicate-file",
        "MR_truncated.dcm": "not-ct",
        "eCT_Supplemental.dcm": "derived-map",
    }
    assert len(scans) == 5
    for scan in scans:
        assert scan.hu.min() >= -1200
        if "hu-unverified" not in scan.header.flags:
            assert -1030 < np.median(scan.hu[scan.hu < -900]) < -950  # air is air: no intercept is missing or doubled


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("J2K_pixelrep_mismatch.dcm", ("padding", "sign")),
        ("CT_Explicit_Little.dcm", ("no-patient-id",)),
        ("siemens_no_modality.dcm", ("no-patient-id",)),
        ("693_UNCR.dcm", ("contrast-in-words", "padding")),
        ("CT_small.dcm", ("hu-unverified",)),
    ],
)
def test_each_odd_header(data, name, flags):
    (scan,), rejected = read(data / "dicom" / "odd_headers" / name)
    assert rejected == {}
    assert scan.header.flags == flags


def test_padding_of_cq500_is_3024_below_water_as_read(data):
    (scan,), _ = read(data / "dicom" / "odd_headers" / "693_UNCR.dcm")
    assert scan.as_read().min() == -3024
    assert scan.hu.min() > -1200


def test_vessels_without_a_head_are_no_hounsfield_units(data):
    scans, rejected = read(data / "nifti" / "CT_AVM.nii.gz")
    assert scans == ()
    assert rejected == {"CT_AVM.nii.gz": "not-hounsfield"}


def test_the_nifti_head_lies_where_its_matrix_says(data, oracle):
    name = "ge_hispeed_dcm2niix_tilt_eq_1mm.nii.gz"
    (scan,), _ = read(data / "nifti" / name)
    (theirs,) = (output for output in oracle["nifti"]["outputs"] if output["file"] == name)
    ours_mm = [
        scan.origins_mm[s] + r * scan.row_step_mm + c * scan.col_step_mm
        for s in (0, -1) for r in (0, scan.hu.shape[1] - 1) for c in (0, scan.hu.shape[2] - 1)
    ]  # fmt: skip
    i, j, k = theirs["shape"]
    corners = np.array([[a, b, c, 1] for a in (0, i - 1) for b in (0, j - 1) for c in (0, k - 1)])
    theirs_mm = corners @ np.array(theirs["affine"]).T[:, :3]
    assert_allclose(sorted(map(tuple, np.round(ours_mm, 1))), sorted(map(tuple, np.round(theirs_mm, 1))), atol=0.5)
    assert (scan.as_read().min(), scan.as_read().max()) == (theirs["min"], theirs["max"])
    assert set(scan.header.flags) == {"no-patient-id", "padding"}
    air = scan.hu[(scan.hu < -900) & (scan.hu != -1000)]
    assert_allclose(np.median(air), theirs["air_median"], atol=1)


def test_every_file_is_accounted_for(data):
    """Read all at once: files read and files rejected are the files there."""
    items = list(headct.read(data / "dicom", key=KEY))
    rejected = [name for item in items if isinstance(item, Rejection) for name in item.files]
    assert len(rejected) == len(set(rejected))
    files = sum(path.is_file() for path in (data / "dicom").rglob("*"))
    assert files - len(rejected) == sum(len(item.hu) for item in items if isinstance(item, Scan))
