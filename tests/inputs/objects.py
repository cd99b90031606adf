"""What the object is: contrast, body part, projections and maps, and DICOM objects that are no CT image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    UltrasoundImageStorage,
    XRayRadiationDoseSRStorage,
    generate_uid,
)

from headct.scan import Scan
from headct.virtual.clutter import capture_of, water_cylinder
from headct.writing.dicom import save
from inputs.kinds import kind, refused
from inputs.series import HEADER, all_tagged, each_stored, head, images, tagged, write


@refused("contrast agent in its tag", "contrast", 30)
def contrast_tag(folder: Path) -> None:
    write(images(replace(head(), header=replace(HEADER, contrast=True))), folder)


@refused("contrast tag says NON-IONIC 100ML, which is an agent", "contrast", 30)
def contrast_tag_non_ionic(folder: Path) -> None:
    write(all_tagged(images(), ContrastBolusAgent="NON-IONIC 100ML"), folder)


@kind("described as CT HEAD W C-SPINE, which says nothing of contrast")
def with_spine(folder: Path) -> None:
    write(images(description="CT HEAD W C-SPINE"), folder)


@kind("contrast tag says NONE")
def contrast_tag_none(folder: Path) -> None:
    write(all_tagged(images(), ContrastBolusAgent="NONE"), folder)


@refused("contrast only in the description: CT HEAD W CONTRAST", "contrast", 30)
def contrast_words(folder: Path) -> None:
    write(images(description="CT HEAD W CONTRAST"), folder)


@refused("an angiography by its name: CTA HEAD", "contrast", 30)
def angiography(folder: Path) -> None:
    write(images(description="CTA HEAD 0.75"), folder)


@kind("described as CT HEAD WITHOUT CONTRAST", flags=("contrast-in-words",))
def contrast_negated(folder: Path) -> None:
    write(images(description="CT HEAD WITHOUT CONTRAST"), folder)


@kind("described as CT HEAD WITH AND WITHOUT CONTRAST, which says nothing")
def contrast_either(folder: Path) -> None:
    write(images(description="CT HEAD WITH AND WITHOUT CONTRAST"), folder)


@kind("the eight uppermost slices only", prepared="cropped")
def cropped_top(folder: Path) -> None:
    write(images()[-10:-2], folder)


@kind("the lower half of the head only", prepared="cropped")
def cropped_bottom(folder: Path) -> None:
    write(images()[:14], folder)


@kind("the neck", prepared="no-head")
def neck(folder: Path) -> None:
    write(images(head(slices=16, centre_mm=(0.0, -10.0, -130.0))), folder)


@kind("the skull base and face, no brain to speak of", prepared="no-head")
def face(folder: Path) -> None:
    write(images(head(slices=10, centre_mm=(0.0, 10.0, -95.0))), folder)


@kind("the chest", known=False, prepared="no-head")
def chest(folder: Path) -> None:
    write(all_tagged(images(_chest()), BodyPartExamined="CHEST"), folder)


def _chest() -> Scan:
    """Two lungs, a spine and a heart in an oval of soft tissue."""
    scan = head(slices=20, pixel_mm=5.2, positions_mm=tuple(range(300, 400, 5)), table=False)
    y, x = np.meshgrid(np.linspace(1.4, -1.4, 72), np.linspace(-1.4, 1.4, 72), indexing="ij")
    hu = np.full((72, 72), -1000.0)
    hu[(x / 1.3) ** 2 + (y / 0.95) ** 2 < 1] = -90
    hu[(x / 1.2) ** 2 + (y / 0.85) ** 2 < 1] = 50
    hu[((np.abs(x) - 0.55) / 0.42) ** 2 + (y / 0.68) ** 2 < 1] = -850
    hu[((x - 0.15) / 0.38) ** 2 + ((y - 0.15) / 0.4) ** 2 < 1] = 45
    hu[(x / 0.17) ** 2 + ((y + 0.6) / 0.17) ** 2 < 1] = 450
    ribs = np.abs(np.hypot(x / 1.1, y / 0.78) - 1) < 0.04
    hu[ribs & (np.arange(72)[:, None] % 9 < 3)] = 500
    noise = np.random.default_rng(0).normal(0, 8, scan.hu.shape)
    return replace(scan, hu=np.clip(hu + noise, -1024, 3071).astype(np.int16))


@kind("the scanner's water phantom", known=False, prepared="no-head")
def quality_phantom(folder: Path) -> None:
    write(images(water_cylinder()), folder)


@kind("an empty table", flags=("hu-unverified",), prepared="no-head")
def empty_table(folder: Path) -> None:
    write(images(head(slices=20, centre_mm=(0.0, -60.0, 260.0))), folder)


@refused("a colour page under Modality CT", "screen-capture")
def colour_capture(folder: Path) -> None:
    save(capture_of(np.full((64, 96, 3), (20, 40, 90), dtype=np.uint8)), folder / "dose.dcm", ExplicitVRLittleEndian)


@refused("a dose page stored as a grey CT image", "screen-capture")
def dose_page(folder: Path) -> None:
    write([tagged(images()[14], ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])], folder)


@refused("a secondary capture of CT slices", "film", 30)
def secondary_capture(folder: Path) -> None:
    write(all_tagged(images(), SOPClassUID=SecondaryCaptureImageStorage, ConversionType="WSD"), folder)


@refused("digitised films", "film", 6)
def film(folder: Path) -> None:
    some = all_tagged(images()[:6], SOPClassUID=SecondaryCaptureImageStorage, ConversionType="DF", Modality="OT")
    write(some, folder)


@refused("a maximum intensity projection", "projection", 30)
def projection(folder: Path) -> None:
    write(all_tagged(images(), ImageType=["DERIVED", "SECONDARY", "MIP"]), folder)


@refused("slab averages, named so only in the description", "projection", 30)
def projection_in_words(folder: Path) -> None:
    write(all_tagged(images(description="COR MIP 10mm"), ImageType=["DERIVED", "SECONDARY", "REFORMATTED"]), folder)


@refused("a perfusion map", "derived-map", 30)
def perfusion_map(folder: Path) -> None:
    write(all_tagged(images(), ImageType=["DERIVED", "PRIMARY", "PERFUSION", "CBF"]), folder)


@refused("a dual-energy iodine map", "derived-map", 30)
def iodine_map(folder: Path) -> None:
    some = all_tagged(images(), ImageType=["DERIVED", "PRIMARY", "MATERIAL", "IODINE"], RescaleType="MGML")
    write(some, folder)


@kind("reformatted to other slices: derived, yet Hounsfield units")
def reformatted(folder: Path) -> None:
    write(all_tagged(images(), ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]), folder)


@refused("localizers alone", "localizer", 2)
def localizers(folder: Path) -> None:
    side = images(head(plane="sagittal", slices=1, thickness_mm=160.0))
    front = images(head(plane="coronal", slices=1, thickness_mm=160.0))
    write(all_tagged([*side, *front], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), folder)


@refused("an MR series", "not-ct", 30)
def mr(folder: Path) -> None:
    header = {"Modality": "MR", "SOPClassUID": MRImageStorage, "RescaleIntercept": None, "RescaleSlope": None}
    write(each_stored(images(intercept_hu=0), lambda hu: np.clip(hu + 100, 0, 400), **header), folder)


@refused("a PET series", "not-ct", 30)
def pet(folder: Path) -> None:
    write(all_tagged(images(), Modality="PT", SOPClassUID=PositronEmissionTomographyImageStorage), folder)


@refused("an ultrasound picture", "not-ct")
def ultrasound(folder: Path) -> None:
    write([tagged(images()[14], Modality="US", SOPClassUID=UltrasoundImageStorage)], folder)


@refused("a segmentation object", "not-ct")
def segmentation(folder: Path) -> None:
    write([tagged(images()[14], Modality="SEG", SOPClassUID=SegmentationStorage)], folder)


def _without_image(modality: str, sop_class: str) -> Dataset:
    image, other = images()[0], Dataset()
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "StudyID"):
        setattr(other, keyword, image[keyword].value)
    other.Modality, other.SOPClassUID = modality, sop_class
    return other


def _save_without_image(folder: Path, modality: str, sop_class: str, **content: object) -> None:
    other = tagged(_without_image(modality, sop_class), **content)
    other.ensure_file_meta()
    other.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    other.save_as(folder / "object.dcm", enforce_file_format=True)


@refused("a structure set for radiotherapy", "not-an-image")
def structure_set(folder: Path) -> None:
    _save_without_image(folder, "RTSTRUCT", RTStructureSetStorage, StructureSetLabel="HEAD")


@refused("a dose report", "not-an-image")
def dose_report(folder: Path) -> None:
    _save_without_image(folder, "SR", XRayRadiationDoseSRStorage, CompletionFlag="COMPLETE")


@refused("a presentation state", "not-an-image")
def presentation_state(folder: Path) -> None:
    _save_without_image(folder, "PR", GrayscaleSoftcopyPresentationStateStorage, ContentLabel="WINDOW")


@refused("a PDF in a DICOM object", "not-an-image")
def encapsulated_pdf(folder: Path) -> None:
    pdf = {"MIMETypeOfEncapsulatedDocument": "application/pdf", "EncapsulatedDocument": b"%PDF-1.4 "}
    _save_without_image(folder, "DOC", EncapsulatedPDFStorage, **pdf)


@kind("a DICOMDIR beside the files that it lists", rejected={"not-an-image": 1})
def dicomdir(folder: Path) -> None:
    records = []
    for path in write(images(), folder / "DICOM", names=[f"IM{number:06d}" for number in range(30)]):
        record = Dataset()
        record.DirectoryRecordType = "IMAGE"
        record.ReferencedFileID = ["DICOM", path.name]
        records.append(record)
    directory = Dataset()
    directory.FileSetID = "DISC"
    directory.DirectoryRecordSequence = records
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["disc"])
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)
