"""Findings drawn on a CT series as one DICOM segmentation, the format that viewers overlay (PS3.3 A.51).

For virtual patients, whose findings are known by construction, and for what a segmenter has drawn. Needs highdicom,
`pip install highdicom`.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from headct import __version__
from headct.failure import Misuse

try:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.seg import (
        SegmentAlgorithmTypeValues,
        Segmentation,
        SegmentationTypeValues,
        SegmentDescription,
    )
except ImportError as error:
    raise Misuse("highdicom is not installed", why=str(error), do="pip install highdicom") from error

OWN_SCHEME = "99HEADCT"
"""Coding scheme of our own; designators that begin with 99 are free for that (PS3.16 8.2)."""

BY_CONSTRUCTION = Code("CONSTRUCTED", OWN_SCHEME, "Known by construction")
"""Algorithm family: the truth was drawn first and imaged after. CID 7162 lists only ways to find it in an image."""

BY_NETWORK = codes.DCM.ArtificialIntelligence
"""Algorithm family of what a network has drawn."""

CODE_LENGTH = 16
"""Characters of a Code Value (0008,0100), VR SH."""

NO_DATE, NO_TIME = "19700101", "000000"
"""Content Date and Time may not be empty (PS3.3 C.7.6.16); these stand where the images state none."""

DATES = tuple((f"{what}Date", f"{what}Time") for what in ("Content", "Acquisition", "Series", "Study"))
"""Where images state their date and time, nearest to the pixels first."""

MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
"""Attributes of patient and study that every image must have, if empty (type 2, PS3.3 C.7.1.1 and C.7.2.1)."""

SERIES_OFFSET = 1000
"""Added to the images' Series Number, so that viewers list the segmentation after them."""


@dataclass(frozen=True)
class Segment:
    """How a finding is named in a file.

    Attributes:
        name: Ours, also Segment Label (0062,0005).
        category: Segmented Property Category, from CID 7150.
        kind: Segmented Property Type, from CID 7151 or our own scheme.
    """

    name: str
    category: Code
    kind: Code


def _lesion(name: str, kind: Code) -> Segment:
    return Segment(name, codes.SCT.MorphologicallyAbnormalStructure, kind)


def _own(name: str, meaning: str) -> Segment:
    """A lesion for which pydicom's dictionary of PS3.16 has no code: one of ours, never a SNOMED number by heart.

    It knows hemorrhage, but not by compartment of the head; infarctions of heart and breast, fractures of a leg.
    """
    return _lesion(name, Code(name.upper(), OWN_SCHEME, meaning))


SEGMENTS: Mapping[str, Segment] = MappingProxyType(
    {
        segment.name: segment
        for segment in (
            _own("iph", "Intraparenchymal hemorrhage"),
            _own("ivh", "Intraventricular hemorrhage"),
            _own("sdh", "Subdural hemorrhage"),
            _own("edh", "Epidural hemorrhage"),
            _own("sah", "Subarachnoid hemorrhage"),
            _lesion("tumor", codes.SCT.Neoplasm),
            _lesion("edema", codes.SCT.Edema),
            _own("infarct", "Cerebral infarction"),
            _own("fracture", "Fracture of skull"),
            # what is drawn are the ventricles: that they are too wide is a judgement of the whole, not of a voxel
            Segment("hydrocephalus", codes.SCT.AnatomicalStructure, codes.SCT.BrainVentricle),
        )
    }
)
"""Every finding that `write_segmentation` takes."""

ANATOMY: Mapping[str, Code] = MappingProxyType(
    {"brain": codes.SCT.Brain, "ventricles": codes.SCT.BrainVentricle, "skull": codes.SCT.Skull}
)
"""Structures that a class map may hold beside the findings."""

Source = Path | bytes
"""A CT image: its file, or what is in it."""


def segment_named(name: str) -> Segment:
    """How a class is named in a file: by the standard's code where one is known, else by one of ours."""
    if name in SEGMENTS:
        return SEGMENTS[name]
    if name in ANATOMY:
        return Segment(name, codes.SCT.AnatomicalStructure, ANATOMY[name])
    code = name.upper()
    if len(code) > CODE_LENGTH:  # told apart by more than what fits
        code = f"{code[: CODE_LENGTH - 7]}-{hashlib.blake2b(name.encode(), digest_size=3).hexdigest().upper()}"
    return Segment(name, codes.SCT.SpatialAndRelationalConcept, Code(code, OWN_SCHEME, name[:64]))


def write_segmentation(
    masks: Mapping[str, np.ndarray],
    sources: Sequence[Source],
    path: Path,
    *,
    description: str = "Findings known by construction",
) -> Path:
    """Write findings as one binary DICOM segmentation, explicit VR little endian; gives the path.

    `masks` are bool (slices, rows, cols), True on the finding, with slices in the order of `sources`: one CT image
    file each, all of one series. Segments follow the mapping's order; empty masks and empty slices are left out. Each
    frame takes its position and orientation from its image, so a tilted or unevenly spaced series keeps them
    (Plane Position, PS3.3 C.7.6.16.2.3). `description` has at most 64 characters.

    Equal input gives equal bytes: identifiers are made from content, dates come from the images or are fixed.
    Raises ValueError for an unknown name, a mask of another shape or type, or where no mask has a voxel.
    """
    images = headers(sources)
    shape = _shape(images)
    for name, mask in masks.items():
        _check(name, mask, shape)
    drawn = {name: mask for name, mask in masks.items() if mask.any()}
    if not drawn:
        raise ValueError(f"no mask has a voxel, and a segmentation needs a segment; got {', '.join(masks) or 'none'}")
    content = _fingerprint(drawn, images, description)
    pixels = np.stack(list(drawn.values()), axis=-1).astype(np.uint8)
    described = [_describe(number, SEGMENTS[name], BY_CONSTRUCTION) for number, name in enumerate(drawn, start=1)]
    return _save(_segmentation(pixels, described, images, description, content), path)


def write_class_map(
    numbers: np.ndarray, names: Sequence[str], sources: Sequence[Source], path: Path, *, description: str
) -> tuple[Path, dict[str, int]]:
    """Write what a network has drawn as one binary DICOM segmentation; gives the path and each class's segment number.

    `numbers` are uint8 (slices, rows, cols), 0 for nothing and n for `names[n - 1]`, with slices in the order of
    `sources`, as for `write_segmentation`; classes without a voxel are left out. Raises ValueError for another shape
    or type, for a number without a name, where nothing was drawn, or where the images do not allow a segmentation.
    """
    images = headers(sources)
    if numbers.dtype != np.uint8 or numbers.shape != _shape(images):
        raise ValueError(f"a class map must be uint8 {_shape(images)}, got {numbers.dtype} {numbers.shape}")
    present = np.unique(numbers)
    present = present[present > 0]
    if not len(present):
        raise ValueError("nothing was drawn, and a segmentation needs a segment")
    if present[-1] > len(names):
        raise ValueError(f"the class {present[-1]} has no name among {', '.join(names)}")
    renumbered = np.zeros(256, dtype=np.uint8)
    renumbered[present] = np.arange(1, len(present) + 1)
    drawn = [names[number - 1] for number in present]
    content = _fingerprint({"+".join(drawn): numbers}, images, description, packed=False)
    described = [_describe(number, segment_named(name), BY_NETWORK) for number, name in enumerate(drawn, start=1)]
    try:
        segmentation = _segmentation(renumbered[numbers], described, images, description, content)
    except (AttributeError, TypeError) as error:  # a header that lacks what the standard asks of every CT image
        raise ValueError(f"the images do not allow a segmentation: {error}") from error
    return _save(segmentation, path), {name: number for number, name in enumerate(drawn, start=1)}


def headers(sources: Sequence[Source]) -> list[Dataset]:
    """The images without their pixels, empty where `MAY_BE_EMPTY` and absent, as real ones lack some of these.

    Raises ValueError where there are no sources.
    """
    if not sources:
        raise ValueError("a segmentation needs the images it lies on, got no sources")
    images: list[Dataset] = []
    for source in sources:
        image = dcmread(io.BytesIO(source) if isinstance(source, bytes) else source, stop_before_pixels=True)
        for name in MAY_BE_EMPTY:
            if name not in image:
                setattr(image, name, None)
        images.append(image)
    return images


def _shape(images: Sequence[Dataset]) -> tuple[int, int, int]:
    return len(images), int(images[0].Rows), int(images[0].Columns)


def _save(segmentation: Segmentation, path: Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, segmentation, enforce_file_format=True)
    return path


def _check(name: str, mask: np.ndarray, shape: tuple[int, ...]) -> None:
    if name not in SEGMENTS:
        raise ValueError(f"a finding must be one of {', '.join(SEGMENTS)}, got {name!r}")
    if mask.dtype != np.bool_ or mask.shape != shape:
        raise ValueError(f"mask {name!r} must be bool {shape} as its images are, got {mask.dtype} {mask.shape}")


def _segmentation(
    pixels: np.ndarray,
    described: Sequence[SegmentDescription],
    images: Sequence[Dataset],
    description: str,
    content: str,
) -> Segmentation:
    """Segmentation IOD (PS3.3 A.51) of segments that are not empty: masks (..., segment), or their numbers."""
    first = images[0]
    date, time = date_and_time(first)
    with names_as_they_are():
        segmentation = Segmentation(
            source_images=images,
            pixel_array=pixels,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_instance_uid=_uid("series", content),
            series_number=int(first.get("SeriesNumber") or 0) + SERIES_OFFSET,
            sop_instance_uid=_uid("image", content),
            instance_number=1,
            manufacturer="headct",
            manufacturer_model_name="headct",
            software_versions=__version__,
            device_serial_number="none",  # may not be empty (PS3.3 C.7.5.2), and software has none
            content_label="FINDINGS",
            content_description=description,
            series_description=description,
            content_date=date,
            content_time=time,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            coding_schemes=[CodingSchemeIdentificationItem(OWN_SCHEME, name="Findings of headct, research software")],
        )
    forget_the_moment(segmentation)
    organization = _uid("dimensions", content)
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    return segmentation


@contextmanager
def names_as_they_are() -> Iterator[None]:
    """Patients keep the name that the scanner wrote: that it may be none ("ANON") is not for a segmenter to judge."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The string .* is unlikely to represent the intended person name")
        yield


def _describe(number: int, segment: Segment, by: Code) -> SegmentDescription:
    """Segment Description macro (PS3.3 C.8.20.4): what the segment is, and that no human drew it."""
    return SegmentDescription(
        segment_number=number,
        segment_label=segment.name,
        segmented_property_category=segment.category,
        segmented_property_type=segment.kind,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence("headct", by, __version__),
    )


def forget_the_moment(instance: Dataset) -> None:
    """Take out, in place, the time of writing, which highdicom notes anew in every run."""
    del instance.InstanceCreationDate, instance.InstanceCreationTime
    for equipment in instance.get("ContributingEquipmentSequence", ()):
        if equipment.get("ContributionDateTime") and equipment.get("ManufacturerModelName") == "highdicom":
            del equipment.ContributionDateTime


def date_and_time(image: Dataset) -> tuple[str, str]:
    """Date and time of an image as DICOM strings, both from the same pair of attributes."""
    for date, time in DATES:
        if image.get(date):
            return str(image[date].value), str(image.get(time) or NO_TIME)
    return NO_DATE, NO_TIME


def _fingerprint(
    masks: Mapping[str, np.ndarray], images: Sequence[Dataset], description: str, *, packed: bool = True
) -> str:
    """A hash of masks, of the images they lie on, and of what is said about them."""
    digest = hashlib.blake2b(repr((__version__, description, list(masks))).encode(), digest_size=16)
    for image in images:
        digest.update(f"{image.SOPInstanceUID}\n".encode())
    for mask in masks.values():
        digest.update(np.packbits(mask).tobytes() if packed else mask.tobytes())
    return digest.hexdigest()


def _uid(*sources: str) -> str:
    return str(generate_uid(entropy_srcs=["segmentation", *sources]))
