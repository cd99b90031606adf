"""The two things that reading a file can give: a `Scan`, or a `Rejection` that says why not.

Patient space is RAS millimetres everywhere in this package: x grows to the patient's right, y to anterior,
z to superior. DICOM's LPS is turned once, where files are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

AIR_HU = -1000
"""Radiodensity of air by the definition of the Hounsfield scale; also what padding becomes."""


class GeometryError(ValueError):
    """The positions of a stack do not allow what was asked of them."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """What a rejection code means and what a user can do about it."""

    meaning: str
    remedy: str


def _reasons(**entries: tuple[str, str]) -> Mapping[str, Reason]:
    return MappingProxyType(
        {code.replace("_", "-"): Reason(meaning=meaning, remedy=remedy) for code, (meaning, remedy) in entries.items()}
    )


REASONS: Mapping[str, Reason] = _reasons(
    # the file itself
    not_found=("the path does not exist", "check the path; nothing was read from it"),
    unreadable=("the operating system refuses to read the file", "check its permissions and the disk it lies on"),
    empty_file=("the file has no bytes", "copy it again from where it came"),
    dangling_link=("a symbolic link points to nothing", "restore the target, or remove the link"),
    link_loop=("a symbolic link leads back to a folder already visited", "nothing to do: its files are read once"),
    special_file=("not a regular file (a pipe, socket or device)", "remove it from the input"),
    unknown_format=("not DICOM, NIfTI, NRRD, MetaImage or an archive", "nothing to do, unless it should be a scan"),
    side_file=(
        "a mask, or a table or array that headct writes beside scans",
        "nothing to do; masks and labels are named where they are asked for (--masks, --labels)",
    ),
    duplicate_file=("the same content was already read from another file", "nothing to do; the first copy is used"),
    # archives
    archive_unreadable=(
        "the archive is damaged or encrypted, or holds what is not read without unpacking it",
        "unpack it with the tool that made it, then ingest the folder",
    ),
    archive_bomb=(
        "the archive would unpack to far more than it should",
        "unpack it under supervision if you trust its source",
    ),
    archive_path=(
        "a member's name leaves the archive or is not a plain file",
        "do not trust this archive; the member was not read",
    ),
    # decoding
    damaged=("the file is truncated or its structure is broken", "copy it again from where it came"),
    no_pixels=("an image object without pixel data", "send the series again from the archive"),
    no_decoder=(
        "no installed codec decodes its compression",
        "run `headct doctor`; decompress with dcmdjpeg or gdcmconv",
    ),
    too_large=(
        "its size is beyond what a head CT can need",
        "cut it to the head if it is a real scan; else leave it out",
    ),
    time_limit=(
        "reading it took longer than the limit",
        "ingest a copy on a faster disk, decompressed with dcmdjpeg or gdcmconv; else leave it out",
    ),
    memory_limit=(
        "reading it needed more memory than the limit",
        "ingest a copy cut to the head, or decompressed with dcmdjpeg or gdcmconv; else leave it out",
    ),
    crashed=("the decoder crashed on it", "decompress it with another tool, or leave it out"),
    # what it is
    not_ct=("not a CT image", "nothing to do"),
    not_an_image=("a DICOM object that holds no image (plan, structure set, report, directory)", "nothing to do"),
    localizer=("a localizer (scout, topogram, surview)", "nothing to do; the axial series are read on their own"),
    screen_capture=("a colour or screen capture (dose page, patient page, exam summary)", "nothing to do"),
    derived_map=("a derived map, not Hounsfield units (perfusion, dual-energy material, subtraction)", "nothing to do"),
    projection=("a slab projection (maximum, minimum, average) or 3D rendering", "use the series it was made from"),
    film=("a film scan or secondary capture", "use the original CT series"),
    # what it says about space
    no_geometry=(
        "position, orientation or pixel spacing is missing or impossible",
        "send the series again from the archive",
    ),
    same_position=(
        "several images at one position: a repeated slice, or passes that nothing tells apart",
        "send each pass as a series of its own; nothing to do for bolus tracking and fluoroscopy",
    ),
    duplicate_slice=(
        "another image of the series already fills this position",
        "nothing to do; the first by UID is used",
    ),
    missing_slices=(
        "a gap too wide to fill between two slices",
        "mend its rejected files if there are any; else send the series again from the archive",
    ),
    split_series=(
        "its series is in the cohort already, from files that are not in this input",
        "name all files of the series together",
    ),
    not_spatial=("the data have no third dimension, or more than one value a voxel", "give one 3D volume a file"),
    # what its values say
    not_hounsfield=(
        "values are not Hounsfield units and cannot be brought back",
        "export the original CT, not a processed copy",
    ),
    # what the criteria say
    contrast=("an intravenous or intrathecal contrast agent was given", 'set contrast = "any" in a criteria file'),
    too_few_slices=("fewer slices than the criteria ask for", "set min_slices in a criteria file"),
    too_many_slices=("more slices than the criteria allow", "set max_slices in a criteria file"),
    thickness=("slice thickness outside the criteria", "set thickness_mm in a criteria file"),
    kvp=("tube voltage outside the criteria", "set kvp in a criteria file"),
    kernel=("reconstruction kernel outside the criteria", "set kernels in a criteria file"),
    description=("study or series description outside the criteria", "set descriptions in a criteria file"),
    # what the pixels show
    no_head=("no skull with a brain in it", "set check_head = false in a criteria file for phantoms"),
    cropped=("too little of the brain is covered", "set min_coverage in a criteria file"),
    recipe_unfit=("the recipe cannot be applied to this scan", "choose another recipe"),
)
"""Every code a `Rejection` can carry. The documentation prints this table; nothing else invents codes."""


@dataclass(frozen=True)
class Rejection:
    """Why an input did not become a scan. Always names its files; never raised.

    Attributes:
        code: One of `REASONS`, the documented list.
        sentence: What was seen in this input, without names, dates or free text.
        remedy: What can be done about it.
        files: Paths below the input that was named; empty where a scan in memory was rejected.
    """

    code: str
    sentence: str
    remedy: str
    files: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.code not in REASONS:
            raise ValueError(f"unknown rejection code {self.code!r}; codes are listed in headct.scan.REASONS")

    @classmethod
    def because(cls, code: str, sentence: str, files: tuple[str, ...]) -> Rejection:
        """A rejection with the remedy that the list of reasons gives for its code."""
        return cls(code, sentence, REASONS[code].remedy, files)


@dataclass(frozen=True)
class Repair:
    """A change of Hounsfield values that reading made, with what undoes it.

    Every voxel was shifted by `shift_hu`, but the voxels of the packed mask `where` (`np.packbits` of the flattened
    volume) held `values` before, one for all or one each in C order.
    """

    flag: str
    shift_hu: int = 0
    where: np.ndarray | None = None
    values: np.ndarray | None = None

    def undo(self, hu: np.ndarray) -> np.ndarray:
        """The volume as it was before this repair; int16, same shape, a new array."""
        before = hu - np.int16(self.shift_hu)
        if self.where is not None and self.values is not None:
            mask = np.unpackbits(self.where, count=hu.size).astype(bool).reshape(hu.shape)
            before[mask] = self.values
        return before


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is known about a scan besides its voxels; no names, dates or free text.

    Identifiers are pseudonyms unless the reader was told to keep them. Empty texts and None: the file does not say.

    Attributes:
        source: `dicom`, `nifti`, `nrrd` or `metaimage`.
        manufacturer: Manufacturer (0008,0070).
        model: Manufacturer's Model Name (0008,1090).
        kernel: Convolution Kernel (0018,1210).
        kvp: KVP (0018,0060), in kV.
        contrast: Whether a contrast agent was given.
        age: In years.
        sex: F, M, O, or empty.
        patient_id: The same for all scans of a patient.
        study_id: The same for all scans of a study.
        series_id: The same for all scans of a series.
        scan_id: Names this scan in every table.
        transfer_syntax: UID of how the DICOM files were encoded.
        decoder: What decoded them.
        flags: Sorted words from `FLAGS`.
    """

    source: str = ""
    manufacturer: str = ""
    model: str = ""
    kernel: str = ""
    kvp: float | None = None
    contrast: bool | None = None
    age: float | None = None
    sex: str = ""
    patient_id: str = ""
    study_id: str = ""
    series_id: str = ""
    scan_id: str = ""
    transfer_syntax: str = ""
    decoder: str = ""
    flags: tuple[str, ...] = ()


FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "tilt": "slices are sheared against each other (gantry tilt)",
        "uneven": "gaps between slices differ",
        "gap-filled": "a slice is missing and the resample bridges it",
        "skipped-tissue": "slices lie further apart than they are thick: what is between them was not seen",
        "mixed-thickness": "slices of different thickness form the volume",
        "mixed-settings": "slices of different kernels or tube voltages form the volume",
        "duplicate-dropped": "a second image at the same position was left out",
        "file-dropped": "a faulty file of the series was left out",
        "padding": "padding outside the field of view was set to air",
        "intercept-added": "values were stored without their Rescale Intercept; -1024 was added",
        "intercept-removed": "Rescale Intercept had been applied twice; +1024 was added",
        "sign": "header and stored values disagree on their sign; the reading that makes sense was taken",
        "inverted": "MONOCHROME1 values were inverted",
        "not-a-number": "voxels without a number were set to air",
        "clipped": "values beyond int16 were clipped",
        "metal": "values above 3071 HU",
        "lossy": "compressed with loss",
        "contrast-in-words": "contrast was judged from a description, not from the contrast tags",
        "hu-unverified": "air and soft tissue were not both found, so the scale could not be checked",
        "no-patient-id": "the file names no patient: the study counts as one",
        "sform-qform-disagree": "the two NIfTI transforms differ; the sform was taken",
        "guessed-orientation": "the file states no orientation",
    }
)
"""Every flag that a `Scan` can carry, with what it means."""


@dataclass(frozen=True)
class Scan:
    """One CT volume in Hounsfield units, on the grid on which it was acquired.

    The centre of voxel (s, r, c) lies at `origins_mm[s] + r * row_step_mm + c * col_step_mm` in RAS millimetres: a
    tilted or unevenly spaced acquisition is a scan whose origins say so. Nothing has been resampled. Slices are
    ordered along `normal`.
    Raises GeometryError where the arrays do not fit each other, two slices share a position, or a step is zero.

    Attributes:
        hu: int16 (slices, rows, cols).
        origins_mm: (slices, 3), the centre of each slice's first voxel.
        row_step_mm: (3,), from one row to the next.
        col_step_mm: (3,), from one column to the next.
        thickness_mm: Of the slices as stated (the lower median), else of the gaps; 0 where nothing tells it.
        header: What else is known.
        repairs: Changes of Hounsfield values that reading made, in order; `as_read` undoes them.
    """

    hu: np.ndarray
    origins_mm: np.ndarray
    row_step_mm: np.ndarray
    col_step_mm: np.ndarray
    thickness_mm: float
    header: Header = field(default_factory=Header)
    repairs: tuple[Repair, ...] = ()

    def __post_init__(self) -> None:
        for name in ("origins_mm", "row_step_mm", "col_step_mm"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        if self.hu.ndim != 3 or self.hu.dtype != np.int16:
            raise GeometryError(f"hu must be int16 (slices, rows, cols), got {self.hu.dtype} {self.hu.shape}")
        if self.origins_mm.shape != (self.hu.shape[0], 3):
            raise GeometryError(f"{self.hu.shape[0]} slices need as many origins, got {self.origins_mm.shape}")
        if not np.all(np.isfinite(self.origins_mm)):
            raise GeometryError("origins must be finite")
        area = np.linalg.norm(np.cross(self.row_step_mm, self.col_step_mm))
        if not (np.isfinite(area) and area > 0):
            raise GeometryError("row and column steps must be finite, not zero and not parallel")
        if np.any(self.gaps_mm <= 0):
            raise GeometryError("slices must be ordered along their normal, one at each position")

    def __repr__(self) -> str:
        slices, rows, cols = self.hu.shape
        size = f"{slices} slices of {rows} × {cols}, {self.thickness_mm:g} mm thick, pixel {self.pixel_mm[0]:.3g} mm"
        flags = f", flags {' '.join(self.header.flags)}" if self.header.flags else ""
        return f"Scan({self.header.scan_id or 'without id'}: {size}{flags})"

    @property
    def normal(self) -> np.ndarray:
        """Unit vector (3,) across the slices, pointing from the first slice to the last."""
        across = np.cross(self.row_step_mm, self.col_step_mm)
        across = across / np.linalg.norm(across)
        return -across if (self.origins_mm[-1] - self.origins_mm[0]) @ across < 0 else across

    @property
    def gaps_mm(self) -> np.ndarray:
        """Distances (slices - 1,) between neighbouring slices along the normal; Slice Thickness is not the gap."""
        return np.diff(self.origins_mm @ self.normal)

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Distance between neighbouring rows and between neighbouring columns."""
        return float(np.linalg.norm(self.row_step_mm)), float(np.linalg.norm(self.col_step_mm))

    @property
    def tilt_deg(self) -> float:
        """Angle between the slice normal and the line along which most slices follow each other; 0 for one slice."""
        if len(self.origins_mm) < 2:
            return 0.0
        shears = np.diff(self.origins_mm, axis=0) / self.gaps_mm[:, None] - self.normal
        return float(np.degrees(np.arctan(np.linalg.norm(np.median(shears, axis=0)))))

    def affine(self, tolerance_mm: float = 0.05) -> np.ndarray:
        """The (4, 4) matrix from voxel (slice, row, col) to RAS mm, shear included.

        Raises GeometryError where no single matrix describes the stack to within the tolerance: unevenly spaced
        slices, or a single slice without thickness.
        """
        slices = len(self.origins_mm)
        if slices == 1:
            if not self.thickness_mm > 0:
                raise GeometryError("a single slice without thickness has no third axis")
            step = self.normal * self.thickness_mm
        else:
            step = (self.origins_mm[-1] - self.origins_mm[0]) / (slices - 1)
        ideal = self.origins_mm[0] + np.arange(slices)[:, None] * step
        worst = float(np.max(np.linalg.norm(self.origins_mm - ideal, axis=1)))
        if worst > tolerance_mm:
            raise GeometryError(f"slices are not evenly spaced: a matrix would misplace one by {worst:.2f} mm")
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = step, self.row_step_mm, self.col_step_mm
        matrix[:3, 3] = self.origins_mm[0]
        return matrix

    def as_read(self) -> np.ndarray:
        """The values before any repair, int16 (slices, rows, cols), as published recipes take them."""
        hu = self.hu
        for repair in reversed(self.repairs):
            hu = repair.undo(hu)
        return hu
