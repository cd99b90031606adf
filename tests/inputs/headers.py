"""Headers that lack what the standard asks for, or hold what it forbids."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from headct.writing.dicom import with_pixels
from inputs.kinds import kind, refused
from inputs.series import all_tagged, images, tagged, write


@kind("no preamble and no meta information, implicit VR")
def no_preamble(folder: Path) -> None:
    for index, image in enumerate(images()):
        dcmwrite(folder / f"{index}", image, implicit_vr=True, little_endian=True)


@kind("no preamble and no meta information, explicit VR")
def no_preamble_explicit(folder: Path) -> None:
    for index, image in enumerate(images()):
        dcmwrite(folder / f"{index}", image, implicit_vr=False, little_endian=True)


@kind("a preamble and DICM, but no meta information")
def no_file_meta(folder: Path) -> None:
    for index, image in enumerate(images()):
        dcmwrite(folder / f"{index}.dcm", image, implicit_vr=True, little_endian=True)
        path = folder / f"{index}.dcm"
        path.write_bytes(bytes(128) + b"DICM" + path.read_bytes())


@kind("no Transfer Syntax in the meta information; values are explicit little endian")
def no_transfer_syntax(folder: Path) -> None:
    for path in write(images(), folder):
        file = dcmread(path)
        del file.file_meta.TransferSyntaxUID
        dcmwrite(path, file, implicit_vr=False, little_endian=True, enforce_file_format=False)


@kind("no Modality, the SOP class says CT")
def no_modality(folder: Path) -> None:
    write(all_tagged(images(), Modality=None), folder)


@kind("no study and series UIDs")
def no_series_uid(folder: Path) -> None:
    write(all_tagged(images(), StudyInstanceUID=None, SeriesInstanceUID=None), folder)


@kind("no UIDs of study, series and image", flags=("no-patient-id",))
def no_uids(folder: Path) -> None:
    bare = {"StudyInstanceUID": None, "SeriesInstanceUID": None, "PatientID": None}
    for path in write(all_tagged(images(), **bare), folder):
        file = dcmread(path)
        del file.SOPInstanceUID
        del file.file_meta.MediaStorageSOPInstanceUID
        dcmwrite(path, file, enforce_file_format=False)


@kind("no Patient ID", flags=("no-patient-id",))
def no_patient_id(folder: Path) -> None:
    write(all_tagged(images(), PatientID=None), folder)


@kind("no Image Type, Manufacturer, kernel or kVp")
def bare_header(folder: Path) -> None:
    write(all_tagged(images(), ImageType=None, Manufacturer=None, ConvolutionKernel=None, KVP=None), folder)


@kind("all images carry one SOP Instance UID")
def one_sop_uid(folder: Path) -> None:
    some = images()
    write(all_tagged(some, SOPInstanceUID=some[0].SOPInstanceUID), folder)


@kind("dates as 1999.05.05, an age of 45 without unit, a multi-valued window")
def odd_values(folder: Path) -> None:
    some = all_tagged(images(), WindowCenter=["40", "600"], WindowWidth=["80", "2800"])
    for path in write(some, folder):
        content = path.read_bytes().replace(b"\x08\x00\x20\x00DA\x00\x00", b"\x08\x00\x20\x00DA\x0a\x001999.05.05")
        path.write_bytes(content)


@kind("names and descriptions in Japanese and German", flags=("contrast-in-words",))
def other_alphabets(folder: Path) -> None:
    write(all_tagged(images(), PatientName="山田^太郎", SeriesDescription="Schädel nativ, 頭部"), folder)


@kind("private elements, nested sequences, 1 MB of vendor data in each file")
def private_elements(folder: Path) -> None:
    deep = Dataset()
    for _ in range(40):
        outer = Dataset()
        outer.ReferencedImageSequence = [deep]
        deep = outer
    some = []
    for image in images():
        full = tagged(image, ReferencedImageSequence=[deep])
        full.private_block(0x0029, "VENDOR", create=True).add_new(0x10, "OB", bytes(1 << 20))
        some.append(full)
    write(some, folder)


@refused("CT objects without pixel data", "no-pixels", 30)
def no_pixel_data(folder: Path) -> None:
    for index, image in enumerate(images()):
        bare = tagged(image, PixelData=None)
        bare.ensure_file_meta()
        bare.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        bare.save_as(folder / f"{index}.dcm", enforce_file_format=True)


@kind("pixel data one byte longer than the matrix")
def padded_pixel_data(folder: Path) -> None:
    write([_with_tail(image, b"\0\0") for image in images()], folder)


def _with_tail(image: Dataset, tail: bytes) -> Dataset:
    return with_pixels(image, image.PixelData + tail)


@refused("Rows and Columns of 65,535 in each header", "too-large", 4)
def huge_matrix(folder: Path) -> None:
    write(all_tagged(images()[:4], Rows=65535, Columns=65535), folder)


@refused("Number of Frames of two thousand million", "too-large", 1)
def huge_frames(folder: Path) -> None:
    write([tagged(images()[0], NumberOfFrames="2000000000")], folder)


@refused("Rows and Columns of zero", "no-pixels", 4)
def zero_matrix(folder: Path) -> None:
    write(all_tagged(images()[:4], Rows=0, Columns=0), folder)


@refused("32 bits allocated, two bytes a pixel there", "damaged", 4)
def wrong_bits(folder: Path) -> None:
    write(all_tagged(images()[:4], BitsAllocated=32, BitsStored=32, HighBit=31), folder)
