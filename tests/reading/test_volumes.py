"""From files to scans. Oracle: the digital head that was written; stored values are integers, so it comes back exactly.

The tests with a cell start a worker process that dies on purpose.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from inputs.series import HEADER, all_tagged, each_stored, head, images, renamed, stored, tagged, with_stored, write
from numpy.testing import assert_allclose
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless

import headct
from headct.preparing import prepare
from headct.reading import volumes
from headct.reading.criteria import Criteria
from headct.reading.files import find
from headct.reading.geometry import LIMITS
from headct.reading.guard import guarded
from headct.reading.instances import read_header
from headct.reading.isolation import announce
from headct.reading.pseudonyms import Pseudonyms
from headct.reading.series import Volume, assemble
from headct.reading.volumes import load
from headct.scan import Header, Rejection, Scan
from headct.writing.dicom import write_dicom
from headct.writing.nifti import write_nifti

KEY = bytes(32)


def volume_in(folder: Path) -> Volume:
    headers = [header for source in find([folder]) for header in read_header(source)]
    (one,), rejections = assemble(headers)
    assert rejections == []
    return one


def outcome(folder: Path, **settings) -> tuple[list[Scan], dict[str, str]]:
    """The scans in a folder, and for each rejected file its code; without worker processes."""
    items = list(headct.read(folder, key=KEY, isolated=False, **settings))
    codes = {name: item.code for item in items if isinstance(item, Rejection) for name in item.files}
    return [item for item in items if isinstance(item, Scan)], codes


def only(folder: Path) -> Scan:
    (scan,), codes = outcome(folder)
    assert codes == {}
    return scan


def assert_same(scan: Scan, other: Scan) -> None:
    assert np.array_equal(scan.hu, other.hu)
    assert_allclose(scan.origins_mm, other.origins_mm, atol=1e-4)  # decimal strings of 16 characters
    assert_allclose([scan.row_step_mm, scan.col_step_mm], [other.row_step_mm, other.col_step_mm], atol=1e-6)


def test_what_was_written_is_read(tmp_path):
    write(images(), tmp_path)
    scan = only(tmp_path)
    assert_same(scan, head())
    assert scan.thickness_mm == head().thickness_mm
    header = scan.header
    assert (header.source, header.manufacturer, header.kernel, header.kvp) == ("dicom", "headct", "H31s", 120.0)
    assert (header.transfer_syntax, header.decoder, header.flags) == (ExplicitVRLittleEndian, "numpy", ())


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    tilt_deg=st.floats(-25, 25),
    gaps_mm=st.lists(st.sampled_from([2.5, 4.0, 5.0]), min_size=4, max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_any_tilt_and_spacing_is_kept_as_it_is_whatever_the_file_names(tmp_path_factory, tilt_deg, gaps_mm, order):
    assume(abs(abs(tilt_deg) - LIMITS.tilt_deg) > 1e-3)
    folder = tmp_path_factory.mktemp("any")
    slices = len(gaps_mm) + 1
    heights_mm = np.concatenate([[0.0], np.cumsum(sorted(gaps_mm))])
    tilt = np.radians(tilt_deg)
    scan = Scan(
        hu=head().hu[10 : 10 + slices],
        origins_mm=np.stack([np.full(slices, 110.0), np.full(slices, 100.0), 50 + heights_mm], axis=1),
        row_step_mm=np.array([0, -np.cos(tilt), np.sin(tilt)]) * 3.2,
        col_step_mm=np.array([-3.2, 0, 0]),
        thickness_mm=5.0,
        header=HEADER,
    )
    paths = write_dicom(scan, folder)
    names = list(range(len(paths)))
    order.shuffle(names)
    for path, name in zip(paths, names, strict=True):
        path.rename(folder / f"x{name}")
    read = only(folder)
    assert_same(read, scan)
    assert_allclose(read.tilt_deg, abs(tilt_deg), atol=1e-3)
    assert ("tilt" in read.header.flags) == (abs(tilt_deg) > 0.5)


def test_slopes_and_intercepts_may_differ_from_slice_to_slice(tmp_path):
    some = []
    for index, image in enumerate(images(intercept_hu=-1024)):
        shift = 10 * (index % 3)
        some.append(
            with_stored(image, (stored(image).astype(np.int32) + shift).astype("<i2"), RescaleIntercept=-1024 - shift)
        )
    write(some, tmp_path)
    assert np.array_equal(only(tmp_path).hu, head().hu)


@pytest.mark.parametrize("padding", [-2000, 63536])
@pytest.mark.parametrize("signed", [True, False])
def test_padding_is_air_whatever_sign_its_tag_has(tmp_path, padding, signed):
    """Stored with 12 bits and -1024; the tag may have the sign that the data lack, or lack the sign that they have."""
    some = []
    for image in images(intercept_hu=-1024):
        values = np.maximum(stored(image).astype(np.int32), 0)
        values[:3] = -2000
        bits = {"BitsStored": 16, "HighBit": 15} if signed else {"BitsStored": 12, "HighBit": 11}
        changed = with_stored(image, values.astype("<i2"), PixelRepresentation=int(signed), **bits)
        changed.add_new(0x00280120, "US" if padding > 0 else "SS", padding)
        some.append(changed)
    write(some, tmp_path)
    scan = only(tmp_path)
    assert np.all(scan.hu[:, :3] == -1000)
    assert np.array_equal(scan.hu[:, 3:], np.maximum(head().hu, -1024)[:, 3:])
    assert scan.header.flags == ("padding",)
    assert np.all(scan.as_read()[:, :3] == -3024)


@pytest.mark.parametrize("kind", ["as the standard says", "of all bits", "of the range"])
def test_monochrome1_is_inverted_only_where_the_values_are(tmp_path, kind):
    some = images(intercept_hu=-1024)
    highest = {
        "of all bits": -1,
        "of the range": max(int(stored(i).max()) for i in some) + min(int(stored(i).min()) for i in some),
    }
    if kind in highest:
        some = each_stored(some, lambda values: highest[kind] - values)
    write(all_tagged(some, PhotometricInterpretation="MONOCHROME1"), tmp_path)
    scan = only(tmp_path)
    assert np.array_equal(scan.hu, head().hu)
    assert scan.header.flags == (("inverted",) if kind in highest else ())


def test_a_wrong_pixel_representation_is_seen_through(tmp_path):
    write(all_tagged(images(intercept_hu=0), PixelRepresentation=0), tmp_path)
    scan = only(tmp_path)
    assert np.array_equal(scan.hu, head().hu)
    assert scan.header.flags == ("sign",)


def test_a_broken_file_costs_itself(tmp_path):
    paths = write(images(), tmp_path, syntax=JPEG2000Lossless)
    spoil(paths[14])
    (scan,), codes = outcome(tmp_path)
    assert codes == {f"{tmp_path.name}/015.dcm": "damaged"}
    assert np.array_equal(scan.hu, np.delete(head().hu, 14, axis=0))
    assert scan.header.flags == ("file-dropped", "gap-filled", "uneven")


def spoil(path: Path) -> None:
    """Replaces the codestream by garbage; the file stays whole to look at."""
    file = dcmread(path)
    file.PixelData = encapsulate([bytes(range(256)) * 8])
    file["PixelData"].is_undefined_length = True
    file.save_as(path)


def test_a_copy_takes_the_place_of_a_broken_file(tmp_path):
    paths = write(images(), tmp_path, syntax=JPEG2000Lossless)
    (tmp_path / "zz-copy.dcm").write_bytes(paths[14].read_bytes())
    spoil(paths[14])
    (scan,), codes = outcome(tmp_path)
    assert codes == {f"{tmp_path.name}/015.dcm": "damaged"}
    assert np.array_equal(scan.hu, head().hu)


def test_copies_and_doubles_cost_themselves(tmp_path):
    some = images()
    write(some, tmp_path)
    write(some[3:5], tmp_path / "copy", syntax=JPEGLSLossless)
    write(renamed(some[7:8], ContentTime="235959"), tmp_path / "double")
    (scan,), codes = outcome(tmp_path)
    assert sorted(codes.values()) == ["duplicate-file", "duplicate-file", "duplicate-slice"]
    assert {f"{tmp_path.name}/copy/00{n}.dcm" for n in (1, 2)} == {
        n for n, code in codes.items() if code == "duplicate-file"
    }
    assert np.array_equal(scan.hu, head().hu)
    assert scan.header.flags == ("duplicate-dropped",)


def test_too_many_broken_files_leave_no_volume(tmp_path):
    paths = write(images(), tmp_path, syntax=JPEG2000Lossless)
    for path in paths[12:18]:
        spoil(path)
    scans, codes = outcome(tmp_path)
    assert scans == []
    assert sorted(codes.values()) == ["damaged"] * 6 + ["missing-slices"] * 24
    (missing,) = (item for item in headct.read(tmp_path, key=KEY, isolated=False) if item.code == "missing-slices")
    assert missing.sentence.endswith("faulty files of the series were left out")


def test_a_gap_in_a_whole_series_blames_no_file(tmp_path):
    write([*images()[:12], *images()[18:]], tmp_path)
    (missing,) = headct.read(tmp_path, key=KEY, isolated=False)
    assert missing.code == "missing-slices"
    assert "faulty" not in missing.sentence


def test_a_volume_beyond_the_limit_is_refused_before_memory_is_asked_for(tmp_path, monkeypatch):
    write(images(), tmp_path)
    monkeypatch.setattr(volumes, "LIMITS", volumes.LoadLimits(voxels=1000))
    monkeypatch.setattr(volumes, "_Stack", None)
    assert set(outcome(tmp_path)[1].values()) == {"too-large"}


def test_one_slice_is_a_scan_unless_criteria_ask_for_more(tmp_path):
    write(images()[12:13], tmp_path)
    assert only(tmp_path).hu.shape == (1, 72, 72)
    assert set(outcome(tmp_path, criteria=Criteria())[1].values()) == {"too-few-slices"}


# Identifiers


def test_identifiers_are_pseudonyms_unless_kept(tmp_path):
    write(images(), tmp_path)
    kept = next(iter(headct.read(tmp_path, keep_ids=True, isolated=False))).header
    keyed = only(tmp_path).header
    assert kept.patient_id == "phantom-0"
    for kind in ("patient", "study", "series"):
        raw = getattr(kept, f"{kind}_id")
        assert getattr(keyed, f"{kind}_id") == Pseudonyms(KEY).of(kind, raw)
    assert keyed.scan_id != kept.scan_id


def test_the_identity_of_a_scan_is_its_images_not_its_files(tmp_path):
    write(images(), tmp_path / "a")
    write(images(), tmp_path / "b", syntax=JPEGLSLossless, names=[f"I{i}" for i in range(30, 0, -1)])
    write(images()[:29], tmp_path / "c")
    a, b, c = (only(tmp_path / name).header.scan_id for name in "abc")
    assert a == b != c


def test_patients_whose_images_are_numbered_alike_are_two_scans(tmp_path):
    write(images(), tmp_path / "a")
    write(all_tagged(images(), PatientID="phantom-1"), tmp_path / "b")
    scans, codes = outcome(tmp_path)
    assert codes == {}
    assert len({scan.header.scan_id for scan in scans}) == len({scan.header.patient_id for scan in scans}) == 2


def test_a_first_slice_without_owner_has_that_of_the_others(tmp_path):
    some = images()
    write(some, tmp_path / "a")
    write([tagged(some[0], PatientID=None, StudyInstanceUID=None), *some[1:]], tmp_path / "b")
    whole, silent = (only(tmp_path / name).header for name in "ab")
    assert whole == silent


@pytest.mark.parametrize("other", [{"KVP": "140"}, {"ConvolutionKernel": "H60s"}])
def test_slices_of_different_settings_are_told(tmp_path, other):
    write([*images()[:20], *all_tagged(images()[20:], **other)], tmp_path)
    assert only(tmp_path).header.flags == ("mixed-settings",)


def test_without_patient_and_study_each_series_stands_for_itself(tmp_path):
    write(all_tagged(images(), PatientID=None, StudyInstanceUID=None), tmp_path)
    header = only(tmp_path).header
    assert header.flags == ("no-patient-id",)
    assert header.patient_id
    assert header.study_id


def test_contrast_in_any_slice_is_contrast_and_words_are_told(tmp_path):
    some = images()
    some[5] = tagged(some[5], ContrastBolusAgent="Ultravist")
    write(some, tmp_path / "a")
    write(all_tagged(images(), SeriesDescription="HEAD W/O"), tmp_path / "b")
    assert only(tmp_path / "a").header.contrast is True
    b = only(tmp_path / "b").header
    assert (b.contrast, b.flags) == (False, ("contrast-in-words",))


# Volumes in one file


def test_a_nifti_file_is_the_same_head(tmp_path):
    write_nifti(head(), tmp_path / "a.nii.gz")
    scan = only(tmp_path)
    assert_same(scan, head())
    assert (scan.header.source, scan.header.flags) == ("nifti", ("no-patient-id",))


def test_thin_slices_are_the_same_array_from_dicom_and_nifti(tmp_path):
    """NIfTI has no Slice Thickness: the ends of a stack must not depend on it."""
    scan = head(thickness_mm=2.5)
    write(images(scan), tmp_path / "dicom")
    write_nifti(scan, tmp_path / "a.nii")
    arrays = [prepare(only(path)).array for path in (tmp_path / "dicom", tmp_path / "a.nii")]
    assert np.array_equal(*arrays)


def test_a_nifti_file_is_known_by_its_content_or_by_its_name(tmp_path):
    write_nifti(head(), tmp_path / "a.nii.gz")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes())
    a, b = only(tmp_path / "a.nii.gz").header, only(tmp_path / "other" / "b.nii.gz").header
    assert (a.patient_id, a.scan_id) == (b.patient_id, b.scan_id)
    assert next(iter(headct.read(tmp_path / "a.nii.gz", keep_ids=True, isolated=False))).header.patient_id == "a.nii.gz"
    scans, codes = outcome(tmp_path)
    assert len(scans) == 1
    assert set(codes.values()) == {"duplicate-file"}


# Worker processes that die


def dies_of(volume: Volume, how: str) -> list[str]:
    """Names the files of a volume in order; dies at the third, if it is still there."""
    names = []
    for part in volume.slices:
        announce(part.chosen.source.name)
        if part.chosen.source.name.endswith("003.dcm"):
            if how == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if how == "hang":
                time.sleep(1000)
            np.ones(8 << 30, np.uint8)
        names.append(part.chosen.source.name)
    return names


@pytest.mark.parametrize(("how", "code"), [("crash", "crashed"), ("hang", "time-limit"), ("swallow", "memory-limit")])
def test_a_file_that_kills_its_worker_costs_itself(tmp_path, how, code):
    write(images()[:6], tmp_path)
    left, (rejection,) = guarded(dies_of, volume_in(tmp_path), how, time_s=lambda volume: 1.0)
    assert (rejection.code, rejection.files) == (code, (f"{tmp_path.name}/003.dcm",))
    assert left == [f"{tmp_path.name}/{n:03d}.dcm" for n in (1, 2, 4, 5, 6)]


def dies_nameless(volume: Volume) -> None:
    """Dies without having said of what."""
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_death_that_no_file_is_to_blame_for_costs_the_volume(tmp_path):
    write(images()[:6], tmp_path)
    left, (rejection,) = guarded(dies_nameless, volume_in(tmp_path), time_s=lambda volume: 10.0)
    assert left is None
    assert (rejection.code, len(rejection.files)) == ("crashed", 6)


def test_read_in_a_cell_gives_what_read_without_one_gives(tmp_path):
    write(images(), tmp_path)
    (tmp_path / "junk").write_bytes(b"junk")
    inside, outside = (list(headct.read(tmp_path, key=KEY, isolated=isolated)) for isolated in (True, False))
    assert [item.code for item in inside if isinstance(item, Rejection)] == ["unknown-format"]
    assert inside[0] == outside[0]
    assert_same(inside[1], outside[1])
    assert inside[1].header == outside[1].header


def test_a_scan_needs_no_header():
    assert Header().flags == ()
    assert load(Volume(slices=()), Pseudonyms(None))[0] is None
