"""Headers: what one CT image says about itself, as far as grouping, geometry and selection need it.

Elements are taken by an allow-list. Descriptions are kept only for the criteria and never leave this room; names,
birth dates and accession numbers are not kept at all. Positions turn from LPS to RAS here, once.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from isal import igzip, igzip_lib
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from headct.reading import contrast, grids, gzip
from headct.reading.archives import HEAD_BYTES
from headct.reading.beside import ours
from headct.reading.faults import Fault
from headct.reading.files import Source, format_of
from headct.reading.isolation import announce
from headct.reading.objects import ENHANCED_CT_IMAGE, LEGACY_CONVERTED_ENHANCED_CT_IMAGE, Nature, refuse
from headct.scan import Rejection

Vector = tuple[float, float, float]

GRID_KINDS = frozenset({"nifti", "nrrd", "metaimage"})


@dataclass(frozen=True, kw_only=True)
class HeaderLimits:
    """What an image may claim about itself, checked before memory is asked for."""

    matrix: int = 4096  # rows and columns
    frames: int = 5000
    deflated_bytes: int = 1 << 29  # of a deflated data set, once inflated
    pixel_mm: tuple[float, float] = (0.02, 10.0)
    cosine_error: float = 0.02  # of the lengths of the direction cosines, and of their product
    position_mm: float = 1e5  # from the origin, along any axis
    slope: float = 100.0  # either sign; a step between two stored values in HU
    intercept_hu: float = 1e6  # either sign; 16 bits at a slope of 2 need 1e5


LIMITS = HeaderLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelElement:
    """Where the pixel data of an image lie in its file, and how they are stored (PS3.3 C.7.6.3)."""

    transfer_syntax: str
    offset: int  # of the value, in the file or, if that is deflated, in the inflated data set
    length_bytes: int | None  # None: undefined, so the value is encapsulated
    frames: int
    rows: int
    cols: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    inverted: bool  # MONOCHROME1
    padding: tuple[int, ...]  # Pixel Padding Value (0028,0120) and Range Limit (0028,0121), their bits read unsigned
    lossy: bool

    @property
    def encapsulated(self) -> bool:
        """True where the value is a sequence of compressed fragments, not the frames as they are."""
        return self.length_bytes is None

    @property
    def frame_bytes(self) -> int:
        """Size of one frame when it is not compressed."""
        return self.rows * self.cols * self.bits_allocated // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One CT image: a file, or one frame of a multi-frame file. Directions and positions are RAS mm."""

    source: Source
    frame: int | None = None  # from 0; None for a single-frame file
    sop_uid: str
    series_uid: str = ""
    study_uid: str = ""
    patient_id: str = ""
    frame_of_reference_uid: str = ""
    position_mm: Vector  # centre of the first voxel
    row_step_mm: Vector  # to the next row
    col_step_mm: Vector  # to the next column
    thickness_mm: float | None = None
    pixels: PixelElement
    slope: float = 1.0
    intercept: float = 0.0
    rescaled: bool = True  # False where the file does not state both: 1 and 0 are then no more than likely
    image_type: tuple[str, ...] = ()
    kernel: str = ""
    kvp: float | None = None
    temporal_position: int | None = None
    acquisition_number: int | None = None
    acquisition_time: str = ""
    content_time: str = ""
    instance_number: int | None = None
    study_description: str = ""
    series_description: str = ""
    protocol: str = ""
    contrast: bool | None = None
    contrast_in_words: bool = False
    manufacturer: str = ""
    model: str = ""
    age: float | None = None
    sex: str = ""
    fault: str = ""  # what is wrong with the pixel data, seen without decoding them


@dataclass(frozen=True, slots=True)
class GridFile:
    """A file that holds a whole volume: nifti, nrrd or metaimage. `digest` is that of what it holds."""

    source: Source
    kind: str
    digest: str


def read_header(source: Source) -> list[Instance | GridFile | Rejection]:
    """The images of one file, or the one reason why it holds none. Never raises for what a file contains."""
    announce(source.name)
    try:
        if source.size_bytes == 0:
            raise Fault("empty-file", "it has no bytes")
        with source.open() as stream:  # once: opening a member of an archive decompresses it
            head = stream.read(HEAD_BYTES)
            kind = format_of(head)
            if kind == "dicom":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # pydicom warns of every irregularity; what matters is rejected
                    return [*_read_dicom(source, stream)]
            if found := ours(source.name, head):
                raise Fault("side-file", found)
            if kind in GRID_KINDS:
                return [GridFile(source, kind, _digest(source, stream))]
        raise Fault("unknown-format", "not DICOM, NIfTI, NRRD or MetaImage by its content")
    except Fault as fault:
        return [fault.rejection(*source.files)]
    except OSError as error:
        return [Rejection.because("unreadable", f"it cannot be read ({error.strerror or 'I/O error'})", source.files)]
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a hostile header provokes in a parser means: not readable
        # the text of the error may quote the header, which may hold names
        return [Rejection.because("damaged", f"its header cannot be read ({type(error).__name__})", source.files)]


def open_dataset(source: Source, pixels: PixelElement) -> BinaryIO:
    """A stream in which `pixels.offset` counts: the file, or its inflated data set."""
    stream = source.open()
    if pixels.transfer_syntax != DeflatedExplicitVRLittleEndian:
        return stream
    with stream:
        return io.BytesIO(_inflate(stream.read()))


def _digest(source: Source, stream: BinaryIO) -> str:
    """Of all that a file holds, gzipped or not, and of what lies beside it (the data of a detached header)."""
    digest = _of_unzipped(stream) or _sha256(stream)
    if source.member is None:
        for name in source.beside:
            with open(Path(source.path).parent / name, "rb") as beside:
                digest.update(_sha256(beside).digest())
    return digest.hexdigest()[:32]


def _of_unzipped(stream: BinaryIO) -> hashlib._Hash | None:
    """None where it is not gzipped, or what is in it cannot be had: then only the same bytes are the same volume."""
    stream.seek(0)
    if stream.read(len(gzip.MAGIC)) != gzip.MAGIC:
        return None
    stream.seek(0)
    try:
        with igzip.IGzipFile(fileobj=stream) as content:  # type: ignore[no-untyped-call]
            return _sha256(content, grids.LIMITS.volume_bytes)
    except (OSError, EOFError, igzip_lib.error, Fault):  # type: ignore[misc]  # its stub declares a value, not a class
        return None


def _sha256(stream: BinaryIO | io.BufferedIOBase, limit_bytes: int | None = None) -> hashlib._Hash:
    """Of a file from its beginning; twice as fast as BLAKE2 where the processor knows it. Raises Fault (too-large)."""
    digest = hashlib.sha256()
    stream.seek(0)
    read_bytes = 0
    while block := stream.read(1 << 20):
        digest.update(block)
        read_bytes += len(block)
        if limit_bytes is not None and read_bytes > limit_bytes:
            raise Fault("too-large", f"it holds more than {limit_bytes / 1e6:,.0f} MB")
    return digest


# From bytes to elements

# fmt: off
_KEYWORDS = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "StudyDate", "AcquisitionTime",
    "ContentTime", "Modality", "ConversionType", "Manufacturer", "StudyDescription", "SeriesDescription",
    "ManufacturerModelName", "VolumeBasedCalculationTechnique", "PatientID", "PatientBirthDate", "PatientSex",
    "PatientAge", "ContrastBolusAgent", "ContrastBolusAgentSequence", "ScanOptions", "SliceThickness", "KVP",
    "ProtocolName", "ContrastBolusRoute", "ContrastBolusVolume", "ConvolutionKernel", "StudyInstanceUID",
    "SeriesInstanceUID", "AcquisitionNumber", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient",
    "FrameOfReferenceUID", "TemporalPositionIdentifier", "SamplesPerPixel", "PhotometricInterpretation",
    "NumberOfFrames", "Rows", "Columns", "PixelSpacing", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope",
    "RescaleType", "LossyImageCompression", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)
# fmt: on
_ALLOWED: list[Any] = [Tag(keyword) for keyword in _KEYWORDS]
_TAG = dict(zip(_KEYWORDS, _ALLOWED, strict=True))
_CHUNKS_BYTES = (1 << 16, 1 << 22)  # most headers, nearly all headers; then the whole file
_PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF


class _Elements:
    """The values of a data set, each in the one form in which it is needed; absent or unreadable ones are empty.

    Numbers are parsed here from the stored bytes: a malformed decimal string then costs that element, not the file.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def text(self, keyword: str) -> str:
        """The first value as text, in the character set of the file."""
        values = self.texts(keyword)
        return values[0] if values else ""

    def texts(self, keyword: str) -> tuple[str, ...]:
        tag = _TAG.get(keyword) or Tag(keyword)
        if tag not in self.dataset:
            return ()
        try:
            value = self.dataset[tag].value
        except (ValueError, TypeError, LookupError, NotImplementedError, AttributeError):
            return ()
        if value is None:
            return ()
        values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value
        return tuple(str(one).strip(" \0") for one in values)

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Finite numbers of a decimal or integer string; none at all where one of them is not a number."""
        try:
            numbers = tuple(float(part) for part in self._bytes(keyword).strip(b" \0").split(b"\\") if part.strip())
        except ValueError:
            return ()
        return numbers if all(map(math.isfinite, numbers)) else ()

    def is_given(self, keyword: str) -> bool:
        """True where the element holds anything, whether it can be read or not."""
        return bool(self._bytes(keyword).strip(b" \0"))

    def number(self, keyword: str) -> float | None:
        numbers = self.numbers(keyword)
        return numbers[0] if numbers else None

    def integer(self, keyword: str) -> int | None:
        number = self.number(keyword)
        return None if number is None else int(number)

    def unsigned(self, keyword: str) -> int | None:
        """A binary integer of 2 or 4 bytes; of several values the first; a negative one as its bits."""
        tag = _TAG.get(keyword) or Tag(keyword)
        if tag not in self.dataset:
            return None
        item: Any = self.dataset.get_item(tag)
        value = item.value
        if isinstance(value, bytes):
            size = 4 if item.VR in ("UL", "SL") or (item.VR is None and len(value) == 4) else 2
            return int.from_bytes(value[:size], "little" if item.is_little_endian else "big") if value else None
        return int(value) & 0xFFFF if isinstance(value, int) else None

    def items(self, keyword: str) -> list[_Elements]:
        """The items of a sequence."""
        tag = _TAG.get(keyword) or Tag(keyword)
        if tag not in self.dataset:
            return []
        value = self.dataset[tag].value
        return [_Elements(item) for item in value] if value else []

    def first(self, keyword: str) -> _Elements:
        """The first item of a sequence; an empty one if there is none."""
        return next(iter(self.items(keyword)), _NOTHING)

    def _bytes(self, keyword: str) -> bytes:
        tag = _TAG.get(keyword) or Tag(keyword)
        if tag not in self.dataset:
            return b""
        value = self.dataset.get_item(tag).value
        if isinstance(value, bytes):
            return value
        if value is None:
            return b""
        return b"\\".join(str(one).encode() for one in ([value] if not isinstance(value, list | tuple) else value))


_NOTHING = _Elements(Dataset())


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A header, and where its pixel data lie (None: there are none)."""

    elements: _Elements
    media_sop_class: str
    media_sop_instance: str
    transfer_syntax: str
    offset: int | None
    length_bytes: int | None
    left_bytes: int  # in the data set behind `offset`
    cut: bool  # the data set ends inside an element


def _parse(stream: BinaryIO, size_bytes: int) -> _Parsed:
    for chunk_bytes in (*_CHUNKS_BYTES, size_bytes):
        stream.seek(0)
        chunk = stream.read(min(chunk_bytes, size_bytes))
        if DeflatedExplicitVRLittleEndian.encode() in chunk[:1024]:
            return _parse_deflated(chunk + stream.read())
        parsed = _parse_chunk(chunk, size_bytes)
        if parsed.offset is not None or len(chunk) == size_bytes:
            break
    return parsed


def _parse_chunk(chunk: bytes, size_bytes: int) -> _Parsed:
    """The header at the beginning of a file of `size_bytes`."""
    stream = io.BytesIO(chunk)  # unlike a file, it never makes room for more bytes than there are
    dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_ALLOWED)
    meta = dataset.file_meta
    implicit, little = dataset.original_encoding
    syntax = str(getattr(meta, "TransferSyntaxUID", "") or "")
    if not syntax:
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return _locate(
        dataset,
        stream,
        size_bytes,
        transfer_syntax=syntax,
        encoding=(bool(implicit), bool(little)),
        media_sop=tuple(str(getattr(meta, f"MediaStorageSOP{kind}UID", "") or "") for kind in ("Class", "Instance")),
    )


def _parse_deflated(file: bytes) -> _Parsed:
    content = _inflate(file)
    stream = io.BytesIO(content)
    dataset = read_dataset(
        stream, False, True, stop_when=lambda tag, _vr, _length: tag >= 0x7FE00008, specific_tags=_ALLOWED
    )
    return _locate(
        dataset, stream, len(content), transfer_syntax=DeflatedExplicitVRLittleEndian, encoding=(False, True)
    )


def _inflate(file: bytes) -> bytes:
    """The data set of a deflated file (PS3.5 A.5), behind its file meta information."""
    if file[128:132] != b"DICM" or file[132:138] != b"\x02\x00\x00\x00UL":
        raise Fault("damaged", "a deflated file without the length of its file meta information")
    start = 144 + int.from_bytes(file[140:144], "little")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(file[start:], LIMITS.deflated_bytes)
    except zlib.error:
        raise Fault("damaged", "its deflated data set is broken") from None
    if inflater.unconsumed_tail:
        raise Fault("too-large", f"it would inflate to more than {LIMITS.deflated_bytes / 1e6:,.0f} MB")
    if not inflater.eof:
        raise Fault("damaged", "its deflated data set is cut off")
    return content


def _locate(
    dataset: Dataset,
    stream: BinaryIO,
    size_bytes: int,
    *,
    transfer_syntax: str,
    encoding: tuple[bool, bool],
    media_sop: tuple[str, ...] = ("", ""),
) -> _Parsed:
    """Reads tag and length of the pixel data element, at which the parser stopped."""
    implicit, little = encoding
    start = stream.tell()
    head = stream.read(12)
    offset = length = None
    order = "<" if little else ">"
    if len(head) >= 8 and (head[0] | head[1] << 8 if little else head[0] << 8 | head[1]) == 0x7FE0:
        group, element = struct.unpack(order + "HH", head[:4])
        if implicit or len(head) == 12:
            at = 4 if implicit else 8
            (length,) = struct.unpack(order + "L", head[at : at + 4])
            offset = start + at + 4 if group << 16 | element == _PIXEL_DATA else None
    return _Parsed(
        elements=_Elements(dataset),
        media_sop_class=media_sop[0],
        media_sop_instance=media_sop[1],
        transfer_syntax=str(transfer_syntax),
        offset=offset,
        length_bytes=None if length == _UNDEFINED else length,
        left_bytes=size_bytes - (offset or 0),
        cut=offset is None and (start > size_bytes or _ends_inside(dataset)),
    )


def _ends_inside(dataset: Dataset) -> bool:
    """True where the last element promises more bytes than the file had."""
    tags = [tag for tag in dataset.keys() if tag.group != 2]  # noqa: SIM118 - iterating a Dataset converts its values
    if not tags:
        return True
    last = dataset.get_item(max(tags))
    promised = getattr(last, "length", None)
    return isinstance(last.value, bytes) and isinstance(promised, int) and promised > len(last.value)


# From elements to images


def _read_dicom(source: Source, stream: BinaryIO) -> Iterator[Instance]:
    parsed = _parse(stream, source.size_bytes)
    elements = parsed.elements
    sop_class = elements.text("SOPClassUID") or parsed.media_sop_class
    nature = _nature(elements, sop_class)
    if (fault := refuse(nature)) is not None:
        raise fault
    if not nature.has_matrix or parsed.offset is None:
        if parsed.cut:
            raise Fault("damaged", "it ends in the middle of its header")
        raise Fault("no-pixels", "a CT image without pixel data")
    pixels = _pixel_element(parsed)
    image = replace(_image(source, parsed, pixels), fault=_pixel_fault(stream, parsed, pixels))
    if not image.sop_uid:
        image = replace(image, sop_uid="digest " + _digest(source, stream))
    if sop_class in (ENHANCED_CT_IMAGE, LEGACY_CONVERTED_ENHANCED_CT_IMAGE):
        yield from _enhanced(image, elements, pixels.frames, nature)
    elif pixels.frames > 1:
        raise Fault("no-geometry", f"{pixels.frames} frames in one file that does not say where each of them lies")
    else:
        yield replace(image, **_place(elements, elements, elements, elements))


def _nature(elements: _Elements, sop_class: str) -> Nature:
    image_type = elements.texts("ImageType")
    orientation = elements.numbers("ImageOrientationPatient")
    upright = len(orientation) == 6 and abs(np.cross(orientation[:3], orientation[3:])[2]) > math.cos(math.radians(45))
    return Nature(
        sop_class=sop_class,
        modality=elements.text("Modality"),
        image_type=image_type,
        has_matrix=bool(elements.unsigned("Rows") and elements.unsigned("Columns")),
        samples_per_pixel=elements.unsigned("SamplesPerPixel") or 1,
        photometric=elements.text("PhotometricInterpretation"),
        rescale_type=elements.text("RescaleType"),
        conversion_type=elements.text("ConversionType"),
        scan_options=" ".join(elements.texts("ScanOptions")),
        series_description=elements.text("SeriesDescription"),
        calculation_technique=elements.text("VolumeBasedCalculationTechnique"),
        axial=upright,
    )


def _pixel_element(parsed: _Parsed) -> PixelElement:
    elements = parsed.elements
    rows, cols = elements.unsigned("Rows") or 0, elements.unsigned("Columns") or 0
    frames = elements.integer("NumberOfFrames") or 1
    allocated = elements.unsigned("BitsAllocated") or 16
    stored = elements.unsigned("BitsStored") or allocated
    high_bit = elements.unsigned("HighBit")
    if max(rows, cols) > LIMITS.matrix or not 1 <= frames <= LIMITS.frames:
        raise Fault("too-large", f"it claims {frames} frames of {rows} x {cols} pixels; no CT image is that large")
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated:
        raise Fault("damaged", f"{stored} bits stored in {allocated} allocated is not a way to store a CT image")
    padding = (elements.unsigned("PixelPaddingValue"), elements.unsigned("PixelPaddingRangeLimit"))
    assert parsed.offset is not None
    return PixelElement(
        transfer_syntax=parsed.transfer_syntax,
        offset=parsed.offset,
        length_bytes=parsed.length_bytes,
        frames=frames,
        rows=rows,
        cols=cols,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if high_bit is None or not stored - 1 <= high_bit < allocated else high_bit,
        signed=elements.unsigned("PixelRepresentation") == 1,
        inverted=elements.text("PhotometricInterpretation").upper() == "MONOCHROME1",
        padding=tuple(value for value in padding if value is not None) if padding[0] is not None else (),
        lossy=_lossy(parsed.transfer_syntax, elements.text("LossyImageCompression")),
    )


_ALWAYS_LOSSY = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})  # JPEG baseline, extended
_LOSSY_UNLESS_SAID = frozenset(
    {"1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.203"}  # near-lossless JPEG-LS, J2K, HTJ2K
)


def _lossy(transfer_syntax: str, lossy_image_compression: str) -> bool:
    """Lossy Image Compression (0028,2110) is sticky: it also tells of an earlier compression with loss."""
    if transfer_syntax in _ALWAYS_LOSSY or lossy_image_compression == "01":
        return True
    return transfer_syntax in _LOSSY_UNLESS_SAID and lossy_image_compression != "00"


def _image(source: Source, parsed: _Parsed, pixels: PixelElement) -> Instance:
    """What all frames of a file share; its place is still to be filled in."""
    elements = parsed.elements
    descriptions = tuple(map(elements.text, ("SeriesDescription", "ProtocolName", "StudyDescription")))
    given, in_words = contrast.judge(_contrast_in_tags(elements), descriptions)
    return Instance(
        source=source,
        sop_uid=elements.text("SOPInstanceUID") or parsed.media_sop_instance,
        series_uid=elements.text("SeriesInstanceUID"),
        study_uid=elements.text("StudyInstanceUID"),
        patient_id=elements.text("PatientID"),
        frame_of_reference_uid=elements.text("FrameOfReferenceUID"),
        position_mm=(0.0, 0.0, 0.0),
        row_step_mm=(0.0, -1.0, 0.0),
        col_step_mm=(-1.0, 0.0, 0.0),
        pixels=pixels,
        image_type=elements.texts("ImageType"),
        kernel=_kernel(elements),
        kvp=elements.number("KVP"),
        temporal_position=elements.integer("TemporalPositionIdentifier"),
        acquisition_number=elements.integer("AcquisitionNumber"),
        acquisition_time=elements.text("AcquisitionTime"),
        content_time=elements.text("ContentTime"),
        instance_number=elements.integer("InstanceNumber"),
        series_description=descriptions[0],
        protocol=descriptions[1],
        study_description=descriptions[2],
        contrast=given,
        contrast_in_words=in_words,
        manufacturer=elements.text("Manufacturer"),
        model=elements.text("ManufacturerModelName"),
        age=_age(elements),
        sex=sex if (sex := elements.text("PatientSex").upper()) in ("F", "M", "O") else "",
    )


def _kernel(elements: _Elements) -> str:
    """Convolution Kernel (0018,1210); a second value (strength of iterative reconstruction) follows after a slash."""
    return "/".join(elements.texts("ConvolutionKernel"))


def _contrast_in_tags(elements: _Elements) -> bool | None:
    if elements.items("ContrastBolusAgentSequence"):
        return True
    agent, route = elements.text("ContrastBolusAgent"), elements.text("ContrastBolusRoute")
    return contrast.in_tags(agent, route, elements.number("ContrastBolusVolume"))


_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}


def _age(elements: _Elements) -> float | None:
    """Years, from Patient's Age (0010,1010), else from the dates of birth and study, which are not kept."""
    age = elements.text("PatientAge").upper()
    if age[:-1].isdigit() and age[-1:] in _DAYS:
        return round(int(age[:-1]) * _DAYS[age[-1]] / _DAYS["Y"], 3)
    born, studied = _date(elements.text("PatientBirthDate")), _date(elements.text("StudyDate"))
    if born is None or studied is None or not 0 <= (days := (studied - born).days) <= 130 * _DAYS["Y"]:
        return None
    return round(days / _DAYS["Y"], 1)


def _date(text: str) -> date | None:
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8]))
    except ValueError:
        return None


def _place(
    position: _Elements, orientation: _Elements, measures: _Elements, transformation: _Elements
) -> dict[str, Any]:
    """Where a slice lies and how its values turn into Hounsfield units; from four functional groups or one header."""
    origin = position.numbers("ImagePositionPatient")
    cosines = orientation.numbers("ImageOrientationPatient")
    spacing = measures.numbers("PixelSpacing")
    if len(origin) != 3 or len(cosines) != 6 or len(spacing) not in (1, 2):
        raise Fault("no-geometry", "position, orientation or pixel spacing is missing or not made of numbers")
    along_row, along_col = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = np.linalg.norm([along_row, along_col], axis=1)
    if np.any(np.abs(lengths - 1) > LIMITS.cosine_error) or abs(along_row @ along_col) > LIMITS.cosine_error:
        raise Fault("no-geometry", "its orientation is not that of two directions at a right angle")
    if min(spacing) < LIMITS.pixel_mm[0] or max(spacing) > LIMITS.pixel_mm[1]:
        raise Fault("no-geometry", f"its pixels measure {' x '.join(f'{mm:g}' for mm in spacing)} mm")
    if max(map(abs, origin)) > LIMITS.position_mm:
        raise Fault("no-geometry", f"it lies {max(map(abs, origin)) / 1000:,.4g} m from the scanner's origin")
    return {
        "position_mm": _ras(np.array(origin)),
        "row_step_mm": _ras(along_col / lengths[1] * spacing[0]),  # Pixel Spacing: between rows, between columns
        "col_step_mm": _ras(along_row / lengths[0] * spacing[-1]),
        "thickness_mm": thickness if (thickness := measures.number("SliceThickness") or 0) > 0 else None,
        **_rescale(transformation),
    }


def _rescale(transformation: _Elements) -> dict[str, Any]:
    """Rescale Slope (0028,1053) and Intercept (0028,1052); a file without them holds Hounsfield units, most likely."""
    slope = _factor(transformation, "RescaleSlope", LIMITS.slope)
    intercept = _factor(transformation, "RescaleIntercept", LIMITS.intercept_hu)
    if slope == 0:
        raise Fault("not-hounsfield", "its Rescale Slope is 0")
    return {
        "slope": 1.0 if slope is None else slope,
        "intercept": intercept or 0.0,
        "rescaled": slope is not None and intercept is not None,
    }


def _factor(transformation: _Elements, keyword: str, limit: float) -> float | None:
    """None where it is not stated. Raises Fault where it is no number, or one that no CT has: none may be guessed."""
    number = transformation.number(keyword)
    if number is None and transformation.is_given(keyword):
        raise Fault("not-hounsfield", f"its {keyword.replace('Rescale', 'Rescale ')} is no number")
    if number is not None and abs(number) > limit:
        raise Fault("not-hounsfield", f"its {keyword.replace('Rescale', 'Rescale ')} is {number:g}; no CT has that")
    return number


def _ras(lps: np.ndarray) -> Vector:
    """The one place where DICOM's left-posterior-superior becomes right-anterior-superior."""
    return 0.0 - float(lps[0]), 0.0 - float(lps[1]), float(lps[2])


# Enhanced multi-frame CT: functional groups, shared and per frame (PS3.3 C.7.6.16)


def _enhanced(image: Instance, elements: _Elements, frames: int, nature: Nature) -> Iterator[Instance]:
    shared = elements.first("SharedFunctionalGroupsSequence")
    per_frame = elements.items("PerFrameFunctionalGroupsSequence")
    if len(per_frame) != frames:
        raise Fault("damaged", f"{frames} frames, but functional groups for {len(per_frame)}")
    for frame, own in enumerate(per_frame):
        groups = _Groups(own, shared)
        if (fault := refuse(_frame_nature(nature, groups))) is not None:
            raise fault
        yield replace(image, **_frame_place(groups), **_frame_properties(image, groups), frame=frame)


@dataclass(frozen=True, slots=True)
class _Groups:
    own: _Elements
    shared: _Elements

    def __call__(self, sequence: str) -> _Elements:
        """The functional group of the frame, else the one that all frames share; empty if there is neither."""
        return next(iter(self.own.items(sequence) or self.shared.items(sequence)), _NOTHING)


def _frame_nature(nature: Nature, groups: _Groups) -> Nature:
    frame_type = groups("CTImageFrameTypeSequence")
    return replace(
        nature,
        image_type=frame_type.texts("FrameType") or nature.image_type,
        calculation_technique=frame_type.text("VolumeBasedCalculationTechnique") or nature.calculation_technique,
        rescale_type=groups("PixelValueTransformationSequence").text("RescaleType") or nature.rescale_type,
        axial=True,
    )


def _frame_place(groups: _Groups) -> dict[str, Any]:
    return _place(
        groups("PlanePositionSequence"),
        groups("PlaneOrientationSequence"),
        groups("PixelMeasuresSequence"),
        groups("PixelValueTransformationSequence"),
    )


def _frame_properties(image: Instance, groups: _Groups) -> dict[str, Any]:
    content, xray = groups("FrameContentSequence"), groups("CTXRayDetailsSequence")
    contrast_given, in_words = image.contrast, image.contrast_in_words
    administered = groups("ContrastBolusUsageSequence").text("ContrastBolusAgentAdministered").upper()
    if administered in ("YES", "NO"):
        contrast_given, in_words = administered == "YES", False
    acquired = content.text("FrameAcquisitionDateTime")
    return {
        "image_type": groups("CTImageFrameTypeSequence").texts("FrameType") or image.image_type,
        "kernel": _kernel(groups("CTReconstructionSequence")) or image.kernel,
        "kvp": image.kvp if (kvp := xray.number("KVP")) is None else kvp,
        "temporal_position": content.unsigned("TemporalPositionIndex"),
        "acquisition_number": content.unsigned("FrameAcquisitionNumber"),
        "acquisition_time": acquired[8:] or image.acquisition_time,
        "instance_number": None,
        "contrast": contrast_given,
        "contrast_in_words": in_words,
    }


# What can be seen of the pixel data without decoding them

_ITEM, _END_OF_ITEMS = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def _pixel_fault(stream: BinaryIO, parsed: _Parsed, pixels: PixelElement) -> str:
    """Why the pixel data cannot be whole: fewer bytes than promised, or fragments that run past the end."""
    if pixels.encapsulated:
        return _fragments_fault(stream, parsed)
    assert pixels.length_bytes is not None
    whole_bytes = pixels.frames * pixels.frame_bytes
    there_bytes = min(pixels.length_bytes, parsed.left_bytes)
    if there_bytes < whole_bytes:
        return f"its pixel data are cut off: {there_bytes:,} of {whole_bytes:,} bytes are there"
    return ""


def _fragments_fault(stream: BinaryIO, parsed: _Parsed) -> str:
    assert parsed.offset is not None
    at, end, fragments = parsed.offset, parsed.offset + parsed.left_bytes, -1  # the first item is the offset table
    while True:
        stream.seek(at)
        head = stream.read(8)
        if head[:4] == _END_OF_ITEMS or (not head and fragments > 0):  # some writers leave the delimiter out
            return "" if fragments > 0 else "it has no compressed frame"
        if len(head) < 8:
            return "its compressed pixel data are cut off"
        if head[:4] != _ITEM:
            return "its compressed fragments are broken"
        at += 8 + int.from_bytes(head[4:], "little")
        fragments += 1
        if at > end:
            return "its compressed pixel data are cut off"
