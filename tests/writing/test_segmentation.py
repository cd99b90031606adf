"""Written segmentations against readers not ours: highdicom, pydicom, dciodvfy.

Masks are bits, so they must be equal. A frame's position is its image's own decimal string, so it is equal too.
"""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

import headct
from headct.failure import Failure
from headct.virtual.phantom import Phantom
from headct.writing import segmentation, write_dicom
from headct.writing.segmentation import OWN_SCHEME, SEGMENTS, write_segmentation

SERIES: dict[str, dict[str, Any]] = {
    "upright": {},
    "tilted": {"tilt_deg": 18.0},
    "uneven": {"positions_mm": [-60.0, -50.0, -40.0, -37.0, -30.0, 0.0, 2.5, 40.0]},
    "coronal": {"plane": "coronal"},
    "alone": {"slices": 1},
}
ROWS, COLS = 21, 17
"""Odd on purpose: the frames of a binary segmentation are packed without padding between them."""

DCIODVFY = shutil.which("dciodvfy") or shutil.which("dciodvfy", path=str(Path(sys.executable).parent))


def series(folder: Path, **settings: Any) -> list[Path]:
    scan = Phantom(0).scan(**{"slices": 8, "gap_mm": 10.0, "rows": ROWS, "cols": COLS, "pixel_mm": 10.0, **settings})
    return write_dicom(scan, folder)


def masks_for(sources: list[Path]) -> dict[str, np.ndarray]:
    """Overlapping findings, with slices without any, and not in the order of `SEGMENTS`."""
    random = np.random.default_rng(5)
    shape = (len(sources), ROWS, COLS)
    masks = {name: random.random(shape) < 0.3 for name in ("edema", "sdh", "iph", "hydrocephalus")}
    masks["sdh"][::2] = len(sources) == 1
    masks["iph"][1:] = False
    return masks


def frames_of(path: Path) -> dict[tuple[str, str], pydicom.Dataset]:
    """Functional groups of each frame by segment label and source image, from plain pydicom."""
    image = pydicom.dcmread(path)
    labels = {item.SegmentNumber: item.SegmentLabel for item in image.SegmentSequence}
    shared = image.SharedFunctionalGroupsSequence[0]
    frames = {}
    for groups in image.PerFrameFunctionalGroupsSequence:
        number = (groups if "SegmentIdentificationSequence" in groups else shared).SegmentIdentificationSequence[0]
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        frames[labels[number.ReferencedSegmentNumber], source] = groups
    return frames


@pytest.mark.parametrize("kind", SERIES)
def test_masks_and_names_come_back(kind: str, tmp_path: Path) -> None:
    sources = series(tmp_path / "ct", **SERIES[kind])
    masks = masks_for(sources)
    read = highdicom.seg.segread(write_segmentation(masks, sources, tmp_path / "new" / "seg.dcm"))
    uids = [pydicom.dcmread(source).SOPInstanceUID for source in sources]
    found = read.get_pixels_by_source_instance(uids, ignore_spatial_locations=True)
    np.testing.assert_array_equal(found, np.stack(list(masks.values()), axis=-1))
    labels = [read.get_segment_description(number).segment_label for number in read.segment_numbers]
    assert labels == list(masks)
    assert read.transfer_syntax_uid == pydicom.uid.ExplicitVRLittleEndian
    assert read.SegmentationType == "BINARY"


@pytest.mark.parametrize("kind", SERIES)
def test_every_frame_lies_where_its_image_lies(kind: str, tmp_path: Path) -> None:
    sources = series(tmp_path / "ct", **SERIES[kind])
    masks = masks_for(sources)
    path = write_segmentation(masks, sources, tmp_path / "seg.dcm")
    frames, images = frames_of(path), [pydicom.dcmread(source) for source in sources]
    drawn = {(name, image.SOPInstanceUID) for name in masks for image, slice_ in zip(images, masks[name], strict=True)
             if slice_.any()}  # fmt: skip
    assert set(frames) == drawn
    positions = {image.SOPInstanceUID: image.ImagePositionPatient for image in images}
    for (_, source), groups in frames.items():
        assert groups.PlanePositionSequence[0].ImagePositionPatient == positions[source]
    image, shared = images[0], pydicom.dcmread(path).SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == image.ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == image.PixelSpacing
    assert pydicom.dcmread(path).FrameOfReferenceUID == image.FrameOfReferenceUID


@pytest.mark.parametrize("kind", ["tilted", "uneven"])
def test_what_is_no_box_is_not_called_one(kind: str, tmp_path: Path) -> None:
    """A distance between slices would let a viewer stack the frames of a sheared or uneven series upright."""
    sources = series(tmp_path / "ct", **SERIES[kind])
    path = write_segmentation({"iph": np.ones((8, ROWS, COLS), bool)}, sources, tmp_path / "seg.dcm")
    image = pydicom.dcmread(path)
    assert "SpacingBetweenSlices" not in image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert "DimensionOrganizationType" not in image


def test_slices_follow_the_sources_whatever_their_order(tmp_path: Path) -> None:
    sources = series(tmp_path / "ct")
    masks = masks_for(sources)
    turned = {name: mask[::-1] for name, mask in masks.items()}
    one, other = (
        highdicom.seg.segread(write_segmentation(given, files, tmp_path / f"{index}.dcm"))
        for index, (given, files) in enumerate([(masks, sources), (turned, sources[::-1])])
    )
    uids = [pydicom.dcmread(source).SOPInstanceUID for source in sources]
    for read in (one, other):
        found = read.get_pixels_by_source_instance(uids, ignore_spatial_locations=True)
        np.testing.assert_array_equal(found, np.stack(list(masks.values()), axis=-1))


def test_empty_masks_are_left_out(tmp_path: Path) -> None:
    sources = series(tmp_path / "ct")
    empty, full = np.zeros((8, ROWS, COLS), bool), np.ones((8, ROWS, COLS), bool)
    path = write_segmentation({"sah": empty, "edh": full, "tumor": empty}, sources, tmp_path / "seg.dcm")
    image = pydicom.dcmread(path)
    assert [(item.SegmentNumber, item.SegmentLabel) for item in image.SegmentSequence] == [(1, "edh")]
    with pytest.raises(ValueError, match=r"no mask has a voxel.*got sah, tumor"):
        write_segmentation({"sah": empty, "tumor": empty}, sources, tmp_path / "none.dcm")
    assert not (tmp_path / "none.dcm").exists()


def test_equal_input_gives_equal_bytes_and_other_input_other_identifiers(tmp_path: Path) -> None:
    sources = series(tmp_path / "ct")
    masks = masks_for(sources)
    one = write_segmentation(masks, sources, tmp_path / "a.dcm")
    assert one.read_bytes() == write_segmentation(masks, sources, tmp_path / "b.dcm").read_bytes()
    changed = {**masks, "sdh": ~masks["sdh"]}
    others = [
        write_segmentation(changed, sources, tmp_path / "c.dcm"),
        write_segmentation(masks, series(tmp_path / "ct-2", tilt_deg=5.0), tmp_path / "d.dcm"),
        write_segmentation(masks, sources, tmp_path / "e.dcm", description="another"),
    ]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert len({pydicom.dcmread(path)[keyword].value for path in (one, *others)}) == 4


def test_the_file_knows_no_time_but_that_of_its_images(tmp_path: Path) -> None:
    sources = series(tmp_path / "ct")
    masks = masks_for(sources)
    image = pydicom.dcmread(write_segmentation(masks, sources, tmp_path / "seg.dcm"))
    said = {str(element.value) for element in image.iterall() if element.VR in ("DA", "TM", "DT") and element.value}
    assert said == {"19700101", "000000"}
    for source in sources:
        dated = pydicom.dcmread(source)
        dated.StudyDate, dated.StudyTime, dated.AcquisitionDate = "20010203", "040506", "20010204"
        dated.save_as(source)
    image = pydicom.dcmread(write_segmentation(masks, sources, tmp_path / "dated.dcm"))
    assert (image.ContentDate, image.ContentTime) == ("20010204", "000000")
    assert (image.StudyDate, image.StudyTime) == ("20010203", "040506")


def test_the_header_says_who_drew_on_what(tmp_path: Path) -> None:
    sources = series(tmp_path / "ct")
    path = write_segmentation(masks_for(sources), sources, tmp_path / "seg.dcm", description="Truth")
    image, source = pydicom.dcmread(path), pydicom.dcmread(sources[0])
    assert (image.Manufacturer, image.SoftwareVersions, image.Modality) == ("headct", headct.__version__, "SEG")
    assert (image.ContentDescription, image.SeriesDescription) == ("Truth", "Truth")
    assert (image.PatientID, image.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
    assert image.SeriesInstanceUID != source.SeriesInstanceUID
    for item in image.SegmentSequence:
        assert (item.SegmentAlgorithmType, item.SegmentAlgorithmName) == ("AUTOMATIC", "headct")
        kind, segment = item.SegmentedPropertyTypeCodeSequence[0], SEGMENTS[item.SegmentLabel]
        assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == tuple(segment.kind)[:3]


def test_snomed_codes_are_those_of_the_standard() -> None:
    """Against pydicom's dictionary of PS3.16: every SNOMED code is in the context group that its attribute asks for."""
    types = {code.value for cid in (codes.cid7192, codes.cid7194) for code in cid.concepts.values()}
    categories = {code.value for code in codes.cid7150.concepts.values()}
    for name, segment in SEGMENTS.items():
        assert segment.name == name
        assert segment.category.scheme_designator == "SCT"
        assert segment.category.value in categories
        assert len(segment.kind.value) <= 16  # Code Value is a Short String
        assert segment.kind.scheme_designator == OWN_SCHEME or segment.kind.value in types
    assert len({segment.kind.value for segment in SEGMENTS.values()}) == len(SEGMENTS)


def test_images_that_lack_what_may_be_empty_are_drawn_on(tmp_path: Path) -> None:
    sources = series(tmp_path / "ct")
    for source in sources:
        image = pydicom.dcmread(source)
        for name in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            if name in image:
                delattr(image, name)
        image.save_as(source)
    masks = masks_for(sources)
    path = write_segmentation(masks, sources, tmp_path / "seg.dcm")
    image = pydicom.dcmread(path)
    assert "PatientBirthDate" in image
    assert not image.PatientBirthDate
    if DCIODVFY:
        told = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False)
        assert "Error" not in told.stdout + told.stderr


def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    sources, path = series(tmp_path / "ct"), tmp_path / "seg.dcm"
    good = np.ones((8, ROWS, COLS), bool)
    with pytest.raises(ValueError, match=r"one of iph, .*hydrocephalus, got 'bleed'"):
        write_segmentation({"iph": good, "bleed": good}, sources, path)
    with pytest.raises(ValueError, match=r"'sdh' must be bool \(8, 21, 17\).* got bool \(7, 21, 17\)"):
        write_segmentation({"iph": good, "sdh": good[1:]}, sources, path)
    with pytest.raises(ValueError, match=r"'sdh' must be bool .* got uint8"):
        write_segmentation({"sdh": good.astype(np.uint8)}, sources, path)
    with pytest.raises(ValueError, match="got no sources"):
        write_segmentation({"sdh": good}, [], path)
    assert not path.exists()


@pytest.mark.skipif(DCIODVFY is None, reason="needs dciodvfy")
@pytest.mark.parametrize("kind", SERIES)
def test_the_standard_finds_no_error(kind: str, tmp_path: Path) -> None:
    sources = series(tmp_path / "ct", **SERIES[kind])
    path = write_segmentation(masks_for(sources), sources, tmp_path / "seg.dcm")
    said = subprocess.run([str(DCIODVFY), path], capture_output=True, text=True, check=False).stderr
    assert "Segmentation" in said
    assert [line for line in said.splitlines() if line.startswith("Error")] == []


def test_without_highdicom_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)  # as where it is not installed
    with pytest.raises(Failure, match="highdicom is not installed") as caught:
        runpy.run_path(segmentation.__file__)
    assert caught.value.do == "pip install highdicom"
