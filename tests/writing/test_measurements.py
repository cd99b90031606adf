"""Class maps and reports of volumes, against readers not ours: highdicom, pydicom, dciodvfy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from headct.virtual.phantom import Phantom
from headct.writing import write_dicom
from headct.writing.measurements import write_measurements
from headct.writing.segmentation import OWN_SCHEME, segment_named, write_class_map

NAMES = ("brain", "ventricles", "iph", "a-lesion-of-ones-own")
DCIODVFY = shutil.which("dciodvfy") or shutil.which("dciodvfy", path=str(Path(sys.executable).parent))


def series(folder: Path) -> list[Path]:
    return write_dicom(Phantom(0).scan(slices=5, gap_mm=10.0, rows=13, cols=11, pixel_mm=16.0, tilt_deg=12.0), folder)


def numbers() -> np.ndarray:
    """Classes 1, 3 and 4 of four, and a slice without any."""
    found = np.random.default_rng(0).choice(np.array([0, 1, 3, 4], np.uint8), (5, 13, 11))
    found[2] = 0
    return found


def test_a_class_map_comes_back_with_its_names(tmp_path: Path) -> None:
    sources = series(tmp_path / "ct")
    path, segments = write_class_map(numbers(), NAMES, sources, tmp_path / "seg.dcm", description="drawn")
    assert segments == {"brain": 1, "iph": 2, "a-lesion-of-ones-own": 3}
    read = highdicom.seg.segread(path)
    uids = [pydicom.dcmread(source).SOPInstanceUID for source in sources]
    pixels = read.get_pixels_by_source_instance(uids, ignore_spatial_locations=True)
    np.testing.assert_array_equal(pixels, np.stack([numbers() == number for number in (1, 3, 4)], axis=-1))
    described = [read.get_segment_description(number) for number in read.segment_numbers]
    assert [one.segment_label for one in described] == list(segments)
    assert described[0].segmented_property_type == codes.SCT.Brain
    assert described[2].segmented_property_type.scheme_designator == OWN_SCHEME
    assert {one.algorithm_identification.family.meaning for one in described} == {"Artificial Intelligence"}
    assert read.SegmentationType == "BINARY"
    from_bytes = [source.read_bytes() for source in sources]
    again, _ = write_class_map(numbers(), NAMES, from_bytes, tmp_path / "again.dcm", description="drawn")
    assert again.read_bytes() == path.read_bytes()


def test_a_report_names_the_segments_that_it_measures(tmp_path: Path) -> None:
    sources = series(tmp_path / "ct")
    path, segments = write_class_map(numbers(), NAMES, sources, tmp_path / "seg.dcm", description="drawn")
    volumes_ml = {"brain": 1234.56789, "iph": 0.5, "a-lesion-of-ones-own": 7.0, "ventricles": 0.0}
    one = write_measurements(volumes_ml, path, segments, sources, tmp_path / "one.dcm")
    same = write_measurements(volumes_ml, path, segments, sources, tmp_path / "same.dcm")
    assert one.read_bytes() == same.read_bytes()
    other = write_measurements({**volumes_ml, "iph": 0.6}, path, segments, sources, tmp_path / "other.dcm")
    assert pydicom.dcmread(other).SOPInstanceUID != pydicom.dcmread(one).SOPInstanceUID
    report = highdicom.sr.srread(one)
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (report.PatientID, report.StudyInstanceUID) == tuple(
        pydicom.dcmread(sources[0])[name].value for name in ("PatientID", "StudyInstanceUID")
    )
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 3  # nothing is told of what was not drawn
    for group, (name, number) in zip(groups, segments.items(), strict=True):
        (measured,) = group.get_measurements(name=codes.SCT.Volume)
        assert measured.value == pytest.approx(volumes_ml[name], abs=1e-4)
        assert measured.unit.value == "ml"
        assert group.tracking_identifier == name
        assert group.finding_type == segment_named(name).kind
        item = group.referenced_segment
        assert item.referenced_sop_instance_uid == pydicom.dcmread(path).SOPInstanceUID
        assert np.ravel(item.referenced_segment_numbers).tolist() == [number]


def test_long_names_have_codes_of_their_own() -> None:
    """A Code Value has 16 characters at most (VR SH)."""
    left, right = (segment_named(f"subdural_hematoma_{side}").kind for side in ("left", "right"))
    assert left.value != right.value
    assert max(len(left.value), len(right.value)) <= 16
    assert segment_named("subdural_hematoma_left").kind == left


@pytest.mark.skipif(DCIODVFY is None, reason="needs dciodvfy")
def test_the_standard_finds_no_error(tmp_path: Path) -> None:
    sources = series(tmp_path / "ct")
    path, segments = write_class_map(numbers(), NAMES, sources, tmp_path / "seg.dcm", description="drawn")
    report = write_measurements(dict.fromkeys(NAMES, 1.0), path, segments, sources, tmp_path / "sr.dcm")
    for file in (path, report):
        said = subprocess.run([str(DCIODVFY), file], capture_output=True, text=True, check=False).stderr
        assert [line for line in said.splitlines() if line.startswith("Error")] == []


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    sources, path = series(tmp_path / "ct"), tmp_path / "seg.dcm"
    for given, says in (
        (numbers()[1:], "must be uint8"),
        (numbers().astype(int), "got int64"),
        (np.zeros((5, 13, 11), np.uint8), "nothing was drawn"),
        (np.full((5, 13, 11), 7, np.uint8), "the class 7 has no name"),
    ):
        with pytest.raises(ValueError, match=says):
            write_class_map(given, NAMES, sources, path, description="drawn")
    assert not path.exists()
    _, segments = write_class_map(numbers(), NAMES, sources, path, description="drawn")
    with pytest.raises(ValueError, match="the segment 'brain' has no volume"):
        write_measurements({"iph": 1.0}, path, {"brain": 1}, sources, tmp_path / "sr.dcm")
    assert segments
    lame = [pydicom.dcmread(source) for source in sources]
    for image, source in zip(lame, sources, strict=True):
        del image.FrameOfReferenceUID
        image.save_as(source)
    with pytest.raises(ValueError, match="Frame Of Reference UID"):
        write_class_map(numbers(), NAMES, sources, path, description="drawn")


def test_a_name_that_is_none_is_kept_without_a_word(tmp_path: Path) -> None:
    """In the segmentation and in its report; warnings are errors in these tests."""
    sources = series(tmp_path / "ct")
    for source in sources:
        image = pydicom.dcmread(source)
        image.PatientName = "ANON"
        image.save_as(source)
    path, segments = write_class_map(numbers(), NAMES, sources, tmp_path / "seg.dcm", description="drawn")
    report = write_measurements(dict.fromkeys(segments, 1.0), path, segments, sources, tmp_path / "sr.dcm")
    assert [str(pydicom.dcmread(one).PatientName) for one in (path, report)] == ["ANON", "ANON"]
