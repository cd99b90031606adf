"""A scan as a series of CT images on its own geometry: tilt and uneven gaps stay in the positions (PS3.3 A.3)."""

from __future__ import annotations

import hashlib
import zlib  # noqa: F401 - before gdcm: its own zlib, once loaded, would take the place of Python's and abort
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType

import gdcm
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from headct.scan import GeometryError, Scan

TRANSFER_SYNTAXES: Mapping[str, UID] = MappingProxyType(
    {
        "explicit-little": ExplicitVRLittleEndian,
        "implicit-little": ImplicitVRLittleEndian,
        "explicit-big": ExplicitVRBigEndian,
        "deflated": DeflatedExplicitVRLittleEndian,
        "rle": RLELossless,
        "jpeg-lossless": JPEGLosslessSV1,
        "jpeg-ls": JPEGLSLossless,
        "jpeg-2000": JPEG2000Lossless,
    }
)
"""Names of the ways to store pixels that `write_dicom` offers; all are lossless."""

PIXEL_DATA = Tag("PixelData")

LPS = np.array([-1.0, -1.0, 1.0])
"""RAS to DICOM's patient coordinates and back: left and posterior are positive there."""

SQUARE = 1e-4
"""How far from a right angle (as a cosine) rows and columns may be: DICOM's images have square corners."""


def write_dicom(
    scan: Scan,
    folder: Path,
    *,
    transfer_syntax: str = "explicit-little",
    intercept_hu: int | None = None,
    description: str = "",
    series_number: int = 1,
) -> list[Path]:
    """Write one file for each slice, 0001.dcm and on, in the scan's order; gives their paths.

    Equal scans give equal bytes: identifiers are made from content, and no time is written. `intercept_hu` is the
    Rescale Intercept (-1024 if the values allow it, else 0). Raises GeometryError for rows and columns that are not
    perpendicular, ValueError for an unknown transfer syntax or values that do not fit 16 bits.
    """
    if transfer_syntax not in TRANSFER_SYNTAXES:
        raise ValueError(f"transfer syntax must be one of {', '.join(TRANSFER_SYNTAXES)}, got {transfer_syntax!r}")
    images = images_of(scan, intercept_hu=intercept_hu, description=description, series_number=series_number)
    paths = []
    for index, image in enumerate(images, start=1):
        path = Path(folder) / f"{index:04d}.dcm"
        save(image, path, TRANSFER_SYNTAXES[transfer_syntax])
        paths.append(path)
    return paths


def images_of(
    scan: Scan, *, intercept_hu: int | None = None, description: str = "", series_number: int = 1
) -> list[Dataset]:
    """The CT images of a scan, one for each slice, with little-endian pixels; see `write_dicom`."""
    intercept = _intercept(scan.hu) if intercept_hu is None else intercept_hu
    stored = scan.hu.astype(np.int32) - intercept
    if stored.min() < -32768 or stored.max() > 32767:
        raise ValueError(f"values {scan.hu.min()}..{scan.hu.max()} less an intercept of {intercept} do not fit 16 bits")
    common = _common(scan, intercept, description, series_number)
    images = []
    for index, (pixels, origin_mm) in enumerate(zip(stored.astype("<i2"), scan.origins_mm, strict=True)):
        image = deepcopy(common)
        image.SOPInstanceUID = generate_uid(entropy_srcs=[image.SeriesInstanceUID, "image", str(index)])
        image.InstanceNumber = index + 1
        image.ImagePositionPatient = [_decimal(value) for value in origin_mm * LPS]
        image.add_new(PIXEL_DATA, "OW", pixels.tobytes())
        images.append(image)
    return images


def save(image: Dataset, path: Path, syntax: UID) -> None:
    """Write one image with little-endian pixels as a DICOM file (PS3.10) in a transfer syntax, its folder made."""
    if syntax.is_compressed and not syntax.is_deflated:
        image = compress(image, syntax)
    elif not syntax.is_little_endian:
        image = with_pixels(image, np.frombuffer(image.PixelData, dtype="<u2").astype(">u2").tobytes())
    else:
        image = with_pixels(image, image.PixelData)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, image, enforce_file_format=True)


def compress(image: Dataset, syntax: UID) -> Dataset:
    """The image with its native 16-bit pixels compressed without loss; JPEG by gdcm, the rest by pydicom's encoders."""
    if syntax == JPEGLosslessSV1:
        image = with_pixels(image, encapsulate([_jpeg_lossless(image)]), vr="OB")
        image[PIXEL_DATA].is_undefined_length = True
        return image
    image = with_pixels(image, image.PixelData)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plugin = {RLELossless: "pylibjpeg", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}[syntax]
    image.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    return image


def with_pixels(image: Dataset, data: bytes, *, vr: str = "OW") -> Dataset:
    """The same header with other pixel data; the given image is left as it was."""
    other = Dataset()
    other.update({element.tag: element for element in image if element.tag != PIXEL_DATA})
    other.add_new(PIXEL_DATA, vr, data)
    return other


def _jpeg_lossless(image: Dataset) -> bytes:
    """One frame as a JPEG lossless stream (process 14, first-order prediction), encoded by gdcm."""
    writer = gdcm.ImageWriter()  # owns the frame: it must outlive it
    frame = writer.GetImage()
    frame.SetNumberOfDimensions(2)
    frame.SetDimensions((image.Columns, image.Rows, 1))
    grey = gdcm.PhotometricInterpretation.GetPIType(image.PhotometricInterpretation)
    frame.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    frame.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    bits = (image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation)
    frame.SetPixelFormat(gdcm.PixelFormat(1, *bits))
    pixels = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    pixels.SetByteStringValue(image.PixelData)
    frame.SetDataElement(pixels)
    converter = gdcm.ImageChangeTransferSyntax()
    converter.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    converter.SetInput(frame)
    if not converter.Change():
        raise ValueError("gdcm could not encode the image as JPEG lossless")
    stream = converter.GetOutput().GetDataElement().GetSequenceOfFragments().GetFragment(0)
    # gdcm hands bytes over as text with surrogates
    return bytes(stream.GetByteValue().GetBuffer().encode("utf-8", "surrogateescape"))


def _common(scan: Scan, intercept: int, description: str, series_number: int) -> Dataset:
    """What the images of a series share: PS3.3 A.3 CT Image."""
    content = _fingerprint(scan)
    header, image = scan.header, Dataset()
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID = CTImageStorage
    image.Modality = "CT"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.PatientID = header.patient_id
    image.PatientName = image.PatientBirthDate = image.StudyDate = image.StudyTime = ""
    image.PatientSex = header.sex
    if header.age is not None:
        image.PatientAge = _age(header.age)
    image.ReferringPhysicianName = image.AccessionNumber = image.StudyID = ""
    image.StudyInstanceUID = _uid(header.study_id, "study", header.patient_id or content)
    image.SeriesInstanceUID = _uid(header.series_id, "series", content, description)
    image.FrameOfReferenceUID = generate_uid(entropy_srcs=[image.StudyInstanceUID, "frame"])
    image.PositionReferenceIndicator = ""
    image.SeriesNumber = series_number
    if description:
        image.SeriesDescription = description
    image.Manufacturer = header.manufacturer
    image.ManufacturerModelName = header.model
    image.ConvolutionKernel = header.kernel
    image.KVP = None if header.kvp is None else _decimal(header.kvp)
    if header.contrast is not None:
        image.ContrastBolusAgent = "contrast agent" if header.contrast else "NONE"  # as consoles write it
    image.PatientPosition = image.Laterality = ""
    image.AcquisitionNumber = 1
    _describe_plane(image, scan)
    _describe_pixels(image, scan, intercept)
    return image


def _describe_plane(image: Dataset, scan: Scan) -> None:
    """Image Plane module (PS3.3 C.7.6.2) and gantry tilt, without the position."""
    row_mm, col_mm = scan.pixel_mm
    down, across = scan.row_step_mm / row_mm, scan.col_step_mm / col_mm
    if abs(float(down @ across)) > SQUARE:
        raise GeometryError("rows and columns are not perpendicular: DICOM images cannot say so")
    image.ImageOrientationPatient = [_decimal(value) for value in (*(across * LPS), *(down * LPS))]
    image.PixelSpacing = [_decimal(row_mm), _decimal(col_mm)]
    image.SliceThickness = _decimal(scan.thickness_mm)
    towards_feet = down[2] <= 0  # the sign that most vendors give; readers must take the orientation's word
    image.GantryDetectorTilt = _decimal(scan.tilt_deg if towards_feet else -scan.tilt_deg)


def _describe_pixels(image: Dataset, scan: Scan, intercept: int) -> None:
    """Image Pixel module (PS3.3 C.7.6.3), rescale, and the brain window."""
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = scan.hu.shape[1:]
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit = 15
    image.PixelRepresentation = 1
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = intercept, 1, "HU"
    image.WindowCenter, image.WindowWidth = 40, 80


def _age(years: float) -> str:
    """An Age String (PS3.5 6.2), in years where these are whole, else in the finest unit that three digits allow."""
    units = {"D": 365.25, "W": 365.25 / 7, "M": 12.0}
    fitting = (f"{round(years * per_year):03d}{unit}" for unit, per_year in units.items() if years * per_year < 999.5)
    whole_years = f"{round(years):03d}Y"
    return whole_years if years >= 1 and float(years).is_integer() else next(fitting, whole_years)


def _fingerprint(scan: Scan) -> str:
    """A hash of values and geometry, by which equal scans have equal identifiers."""
    digest = hashlib.blake2b(scan.hu.tobytes(), digest_size=16)
    for numbers in (scan.origins_mm, scan.row_step_mm, scan.col_step_mm, np.float64(scan.thickness_mm)):
        digest.update(np.asarray(numbers, dtype="<f8").tobytes())
    return digest.hexdigest()


def _intercept(hu: np.ndarray) -> int:
    """The usual Rescale Intercept, or none where stored values would leave 16 bits."""
    return -1024 if int(hu.max()) + 1024 <= 32767 else 0


def _decimal(value: float) -> str:
    """A number as a decimal string of at most 16 characters (PS3.5 6.2), which keeps a metre to 1e-9 mm."""
    return format_number_as_ds(0.0 if abs(value) < 1e-9 else float(value))


def _uid(known: str, *sources: str) -> str:
    """The identifier that a scan already carries if it is one, else one made from what it stands for."""
    return known if "." in known and UID(known).is_valid else generate_uid(entropy_srcs=[known, *sources])
