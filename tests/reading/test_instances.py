"""Headers of single files. Oracle: what was written into them, by pydicom; turned from LPS to RAS by hand."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs.series import images, tagged
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from headct.reading import contrast, instances
from headct.reading.files import Source
from headct.reading.instances import GridFile, Instance, read_header
from headct.scan import Rejection
from headct.writing.dicom import save


@pytest.fixture
def image() -> Dataset:
    """One CT image of a digital head, freely to be changed."""
    return tagged(images()[12])


def read(path: Path) -> Instance | GridFile | Rejection:
    (one,) = read_header(Source(str(path), None, path.name, path.stat().st_size))
    return one


def header_of(image: Dataset, folder: Path, syntax=ExplicitVRLittleEndian) -> Instance:
    save(image, folder / "a.dcm", syntax)
    one = read(folder / "a.dcm")
    assert isinstance(one, Instance), one
    return one


def code_of(image: Dataset, folder: Path) -> str:
    save(image, folder / "a.dcm", ExplicitVRLittleEndian)
    one = read(folder / "a.dcm")
    assert isinstance(one, Rejection), one
    assert one.files == ("a.dcm",)
    return one.code


SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=str)
def test_a_header_is_the_same_in_every_encoding(image, tmp_path, syntax):
    image = tagged(
        image,
        ImagePositionPatient=["1.5", "-2.25", "3"],
        ImageOrientationPatient=["1", "0", "0", "0", "0.8", "-0.6"],
        PixelSpacing=["0.5", "0.25"],
        SliceThickness="4.0",
        RescaleIntercept="-1000",
        RescaleSlope="2",
        PixelPaddingValue=None,
        ConvolutionKernel=["Hr40f", "3"],
        AcquisitionNumber="7",
        PatientAge="018M",
        PatientSex="F",
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "ADD"],
    )
    one = header_of(image, tmp_path, syntax)
    assert one.position_mm == (-1.5, 2.25, 3.0)
    assert one.row_step_mm == pytest.approx((0, -0.4, -0.3))
    assert one.col_step_mm == (-0.25, 0.0, 0.0)
    assert (one.thickness_mm, one.slope, one.intercept) == (4.0, 2.0, -1000.0)
    assert (one.kernel, one.acquisition_number, one.sex, one.age) == ("Hr40f/3", 7, "F", 1.5)
    assert one.image_type == ("ORIGINAL", "PRIMARY", "AXIAL", "ADD")
    assert (one.pixels.rows, one.pixels.cols, one.pixels.transfer_syntax) == (72, 72, syntax)
    assert one.fault == ""
    assert pickle.loads(pickle.dumps(one)) == one


def test_names_dates_and_accession_numbers_are_not_kept(image, tmp_path):
    planted = {
        "PatientName": "DOE^JANE",
        "PatientBirthDate": "19501231",
        "AccessionNumber": "ACC4711",
        "ReferringPhysicianName": "ROE^RICHARD",
        "InstitutionName": "GENERAL",
        "StudyDate": "20200701",
        "PatientComments": "COMMENT",
    }
    one = header_of(tagged(image, **planted), tmp_path)
    for text in ("DOE", "1950", "4711", "ROE", "GENERAL", "2020", "COMMENT"):
        assert text not in repr(one)
    assert one.age == 69.5


@pytest.mark.parametrize(
    ("age", "born", "years"),
    [("052Y", "", 52), ("026W", "", 0.498), ("010D", "", 0.027), ("", "19600101", 60.5), ("XXXY", "19600101", 60.5),
     ("", "20210101", None), ("", "19600231", None), ("", "", None)],
)  # fmt: skip
def test_age(image, tmp_path, age, born, years):
    with_age = tagged(image, PatientAge=None, PatientBirthDate=born, StudyDate="20200701")
    if age:
        with_age.add_new(0x00101010, "LO" if age == "XXXY" else "AS", age)
    assert header_of(with_age, tmp_path).age == years


# What an object is


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "REF_SURVIEW"]}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 TOP"]}, "localizer"),
        ({"ScanOptions": "SCOUT MODE"}, "localizer"),
        ({"SeriesDescription": "Topogram", "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "localizer"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0}, "screen-capture"),
        ({"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]}, "screen-capture"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen-capture"),
        ({"ImageType": ["ORIGINAL", "SECONDARY", "OTHER", "CT_SOM5 PROT"]}, "screen-capture"),
        ({"ImageType": ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]}, "derived-map"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL"], "SeriesDescription": "rCBV"}, "derived-map"),
        ({"RescaleType": "MGML"}, "derived-map"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]}, "projection"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIN IP"]}, "projection"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL"], "SeriesDescription": "MIP 10 mm"}, "projection"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "film"),
        ({"ConversionType": "DF"}, "film"),
        ({"Modality": "PT"}, "not-ct"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR"}, "not-ct"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.3", "Modality": "RTSTRUCT", "Rows": None}, "not-an-image"),
        ({"NumberOfFrames": 4}, "no-geometry"),
        ({"ImagePositionPatient": None}, "no-geometry"),
        ({"ImageOrientationPatient": None}, "no-geometry"),
        ({"PixelSpacing": None}, "no-geometry"),
        ({"PixelSpacing": [0, 0]}, "no-geometry"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no-geometry"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "no-geometry"),
        ({"RescaleSlope": 0}, "not-hounsfield"),
        ({"Rows": 60000, "Columns": 60000}, "too-large"),
        ({"PixelData": None}, "no-pixels"),
    ],
)  # fmt: skip
def test_what_is_no_ct_slice_is_turned_away_by_name(image, tmp_path, changes, code):
    if "PixelData" in changes:
        bare = tagged(image, PixelData=None)
        bare.file_meta = FileMetaDataset()
        bare.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        bare.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        assert read(tmp_path / "a.dcm").code == code
    else:
        assert code_of(tagged(image, **changes), tmp_path) == code


@pytest.mark.parametrize(
    "changes",
    [
        {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]},  # re-encoded samples
        {"ImageType": ["DERIVED", "SECONDARY", "MPR", "CSA 3D EDITOR"]},
        {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]},  # how GE consoles make 5 mm slices
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "SeriesDescription": "scout plan, perfusion to follow"},
        {"Modality": None},
        {"RescaleType": "US"},
        {"ImageType": None},
    ],
)
def test_what_is_a_ct_slice_is_taken(image, tmp_path, changes):
    assert isinstance(header_of(tagged(image, **changes), tmp_path), Instance)


def test_a_missing_rescale_is_the_identity_and_a_bad_number_costs_itself(image, tmp_path):
    one = header_of(tagged(image, RescaleSlope=None, RescaleIntercept=None), tmp_path)
    assert (one.slope, one.intercept) == (1.0, 0.0)
    data = (tmp_path / "a.dcm").read_bytes()
    kvp = b"\x18\x00\x60\x00DS"
    at = data.index(kvp) + len(kvp) + 2
    (tmp_path / "a.dcm").write_bytes(data[:at] + b"oops" + data[at + 4 :])
    assert (one.kvp, read(tmp_path / "a.dcm").kvp) == (120.0, None)


def test_a_rescale_is_known_to_be_stated_or_not(image, tmp_path):
    assert header_of(image, tmp_path).rescaled
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        assert not header_of(tagged(image, **{keyword: None}), tmp_path).rescaled
        assert not header_of(tagged(image, **{keyword: ""}), tmp_path).rescaled


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
@pytest.mark.parametrize("value", [b"nan", b"inf", b"-inf", b"abc", b"1,0", b"1e30", b"-1e308"])
def test_a_rescale_that_no_ct_has_is_not_guessed(image, tmp_path, keyword, value):
    save(tagged(image, **{keyword: "7654321 "}), tmp_path / "a.dcm", ExplicitVRLittleEndian)
    whole = (tmp_path / "a.dcm").read_bytes()
    assert whole.count(b"7654321 ") == 1
    (tmp_path / "a.dcm").write_bytes(whole.replace(b"7654321 ", value.ljust(8)))
    one = read(tmp_path / "a.dcm")
    assert isinstance(one, Rejection)
    assert one.code == "not-hounsfield"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_position_far_from_any_scanner_is_none(image, tmp_path, axis):
    position = ["0", "0", "0"]
    position[axis] = "-90000"
    assert header_of(tagged(image, ImagePositionPatient=position), tmp_path)
    position[axis] = "-1e13"
    assert code_of(tagged(image, ImagePositionPatient=position), tmp_path) == "no-geometry"


@pytest.mark.parametrize(
    ("syntax", "said", "lossy"),
    [(ExplicitVRLittleEndian, "01", True), (ExplicitVRLittleEndian, "", False), (JPEGBaseline8Bit, "00", True),
     (JPEG2000, "", True), (JPEG2000, "00", False)],
)  # fmt: skip
def test_loss_is_told_by_tag_and_syntax(syntax, said, lossy):
    assert instances._lossy(syntax, said) == lossy


# Enhanced multi-frame


def enhanced(image: Dataset, frames: int = 3, frame_type=("ORIGINAL", "PRIMARY", "VOLUME", "NONE")) -> Dataset:
    """An Enhanced CT whose frames lie 5 mm apart; position and rescale per frame, the rest shared."""
    gone = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
            "RescaleIntercept", "ConvolutionKernel", "ImageType")  # fmt: skip
    whole = tagged(image, SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=frames, **dict.fromkeys(gone))
    whole.PixelData = image.PixelData * frames
    shared = Dataset()
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelMeasuresSequence = item(PixelSpacing=["3.2", "3.2"], SliceThickness="5")
    shared.CTImageFrameTypeSequence = item(FrameType=list(frame_type))
    shared.CTReconstructionSequence = item(ConvolutionKernel="Hr40f")
    whole.SharedFunctionalGroupsSequence = Sequence([shared])
    whole.PerFrameFunctionalGroupsSequence = Sequence([])
    for frame in range(frames):
        own = Dataset()
        own.PlanePositionSequence = item(ImagePositionPatient=[-100, -100, 5 * frame])
        own.PixelValueTransformationSequence = item(RescaleIntercept=-1024 - frame, RescaleSlope=1, RescaleType="HU")
        own.FrameContentSequence = item(TemporalPositionIndex=1, FrameAcquisitionNumber=frame + 1)
        whole.PerFrameFunctionalGroupsSequence.append(own)
    return whole


def item(**values) -> Sequence:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return Sequence([dataset])


@pytest.mark.parametrize("syntax", SYNTAXES, ids=str)
def test_frames_of_an_enhanced_ct_are_images(image, tmp_path, syntax):
    save(enhanced(image), tmp_path / "a.dcm", syntax)
    source = Source(str(tmp_path / "a.dcm"), None, "a.dcm", (tmp_path / "a.dcm").stat().st_size)
    some = read_header(source)
    assert [one.frame for one in some] == [0, 1, 2]
    assert [one.position_mm for one in some] == [(100.0, 100.0, 5.0 * frame) for frame in range(3)]
    assert [one.intercept for one in some] == [-1024, -1025, -1026]
    assert {one.kernel for one in some} == {"Hr40f"}
    assert [one.acquisition_number for one in some] == [1, 2, 3]
    assert {one.thickness_mm for one in some} == {5.0}


def test_maps_in_an_enhanced_ct_are_turned_away(image, tmp_path):
    assert code_of(enhanced(image, frame_type=("DERIVED", "PRIMARY", "PERFUSION", "RCBF")), tmp_path) == "derived-map"


def test_an_enhanced_ct_that_lacks_groups_is_damaged(image, tmp_path):
    whole = enhanced(image)
    del whole.PerFrameFunctionalGroupsSequence[1]
    assert code_of(whole, tmp_path) == "damaged"


# Files that are none, or broken


@given(data=st.binary(max_size=300))
def test_any_bytes_give_one_rejection(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    one = read(path)
    assert isinstance(one, Rejection | GridFile)


@given(cut=st.integers(0, 1500))
def test_a_header_cut_anywhere_gives_one_answer_and_never_raises(cut, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "cut"
    save(images()[12], path, ExplicitVRLittleEndian)
    path.write_bytes(path.read_bytes()[:cut])
    one = read(path)
    assert isinstance(one, Rejection) or one.fault


def test_a_deflated_bomb_is_not_inflated(image, tmp_path, monkeypatch):
    monkeypatch.setattr(instances, "LIMITS", instances.HeaderLimits(deflated_bytes=5000))
    save(image, tmp_path / "a.dcm", DeflatedExplicitVRLittleEndian)
    assert read(tmp_path / "a.dcm").code == "too-large"


def test_a_header_longer_than_the_first_chunk_is_read_to_its_end(image, tmp_path):
    image = tagged(image)
    image.add_new(0x00091001, "OB", bytes(200_000))
    one = header_of(image, tmp_path)
    assert one.fault == ""
    assert one.pixels.offset > 200_000


def test_nothing_is_said_about_irregular_values(image, tmp_path, recwarn):
    save(tagged(image, StudyInstanceUID="1.2.3.4"), tmp_path / "a.dcm", ExplicitVRLittleEndian)
    (tmp_path / "a.dcm").write_bytes((tmp_path / "a.dcm").read_bytes().replace(b"1.2.3.4", b"1.2.X.4"))
    one = read(tmp_path / "a.dcm")
    assert one.study_uid == "1.2.X.4"
    assert recwarn.list == []


def test_a_missing_file_is_unreadable():
    (one,) = read_header(Source("/nowhere", None, "nowhere", 10))
    assert one.code == "unreadable"


# Contrast


@pytest.mark.parametrize(
    ("agent", "said"),
    [("ISOVUE300/100", True), ("C+", True), ("Iv contrast", True), ("", None), ("C-", False), ("NONE", False),
     ("No", False), ("w/o", False), ("oral", None), ("Novamix", True)],
)  # fmt: skip
def test_the_contrast_agent(image, tmp_path, agent, said):
    one = header_of(tagged(image, ContrastBolusAgent=agent), tmp_path)
    assert (one.contrast, one.contrast_in_words) == (said, False)


def test_a_volume_of_contrast_and_an_agent_sequence_count_and_an_oral_route_does_not(image, tmp_path):
    assert header_of(tagged(image, ContrastBolusVolume="80"), tmp_path).contrast is True
    assert header_of(tagged(image, ContrastBolusVolume="0"), tmp_path).contrast is None
    assert header_of(tagged(image, ContrastBolusAgent="X", ContrastBolusRoute="ORAL"), tmp_path).contrast is None
    assert header_of(tagged(image, ContrastBolusAgentSequence=item(CodeMeaning="X")), tmp_path).contrast is True


WORDS = {
    True: "HEAD W CONTRAST|HEAD W/CONTRAST|C+|BRAIN +C|CTA HEAD|CT ANGIO|Schaedel mit KM|POST CONTRAST|HEAD POST|CECT|"
    "avec contraste|con contraste|Arterial phase|CE 1mm|head with IV contrast|iv+",
    False: "CT HEAD/BRAIN WITHOUT IV CONTRAST|CT BRAIN WO IVC|5/5mm Plain|HEAD W/O|C-|Schädel nativ|ohne KM|"
    "non-contrast|NON CONTRAST HEAD|noncon|NCCT|sans injection|sin contraste|senza mdc|CT_HEAD_WO_CONTRAST|"
    "NO CONTRAST|Pre-contrast",
    None: "|POST FOSSA 2mm|Posterior fossa|POST OP HEAD|WITH AND WITHOUT CONTRAST|W/WO CONTRAST|HEAD W AND WO|C+/-|"
    "STD BRAIN 5MM|ADULT BRAIN/U|Head 5.0 H31s|e+1|C-SPINE|CONTRAST|HEAD (ROUTINE)",
}


@pytest.mark.parametrize(
    ("said", "words"), [(said, word) for said, words in WORDS.items() for word in words.split("|")]
)
def test_contrast_in_words(said, words):
    assert contrast.in_words(words) is said


def test_tags_come_before_words_and_the_series_before_the_study(image, tmp_path):
    words = {"SeriesDescription": "HEAD C+", "StudyDescription": "HEAD WITHOUT"}
    one = header_of(tagged(image, **words), tmp_path)
    assert (one.contrast, one.contrast_in_words) == (True, True)
    one = header_of(tagged(image, ContrastBolusAgent="NONE", **words), tmp_path)
    assert (one.contrast, one.contrast_in_words) == (False, False)
    assert header_of(tagged(image, StudyDescription="HEAD WITHOUT"), tmp_path).contrast is False


def test_a_volume_is_known_by_what_it_holds_not_by_how_it_is_zipped(tmp_path):
    volume = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)).to_bytes()
    forms = {
        "a.nii": volume,
        "fast.nii.gz": gzip.compress(volume, 1, mtime=0),
        "named.nii.gz": gzip.compress(volume, 9, mtime=7),
        "two.nii.gz": gzip.compress(volume[:400], mtime=0) + gzip.compress(volume[400:], mtime=0),
        "other.nii.gz": gzip.compress(volume[:-1] + b"x", mtime=0),
        "cut.nii.gz": gzip.compress(volume, mtime=0)[:-12],
    }
    digests = {}
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
        digests[name] = read(tmp_path / name).digest
    assert digests["a.nii"] == digests["fast.nii.gz"] == digests["named.nii.gz"] == digests["two.nii.gz"]
    assert len({digests[name] for name in ("a.nii", "other.nii.gz", "cut.nii.gz")}) == 3


def test_a_file_without_uids_is_known_by_its_content(image, tmp_path):
    save(image, tmp_path / "a.dcm", ExplicitVRLittleEndian)
    file = dcmread(tmp_path / "a.dcm")
    del file.SOPInstanceUID, file.file_meta.MediaStorageSOPInstanceUID
    file.save_as(tmp_path / "b.dcm", enforce_file_format=False)
    (tmp_path / "c.dcm").write_bytes((tmp_path / "b.dcm").read_bytes())
    b, c = read(tmp_path / "b.dcm"), read(tmp_path / "c.dcm")
    assert b.sop_uid == c.sop_uid != ""
    assert np.allclose(b.position_mm, c.position_mm)
    assert CTImageStorage == file.SOPClassUID
