"""NIfTI-1 and NIfTI-2 in one file, plain or gzipped (https://nifti.nimh.nih.gov/nifti-1, .../nifti-2).

Which transform. sform where it is set and usable, else qform (codes above 0). A file with neither states no
orientation ("method 1" of the standard): it is read as nibabel, SPM and FSL read it, with i to the left, j to the
front, k up, and carries the flag guessed-orientation, because left and right may be swapped. A sheared sform is
kept as it is; where a qform stands beside it, the flag says that the two differ.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import nibabel.nifti1
import nibabel.nifti2
import nibabel.spatialimages
import numpy as np

from headct.reading import gzip
from headct.reading.faults import Fault
from headct.reading.files import Source
from headct.reading.grids import LIMITS, RawVolume, VolumeLimits, check_shape, stored_values, volume_from_affine

DISAGREE_MM = 0.5
"""How far apart sform and qform may put a corner of the volume before they count as different."""

_HEADER_BYTES = 1 << 10  # more than either header
_UNIT_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # spatial part of xyzt_units; unknown counts as mm
_NUMBERS = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_SEVERAL_VALUES = {32: "complex", 128: "RGB", 1792: "complex", 2048: "complex", 2304: "RGBA"}
_NO_CT = {1: "one-bit", 1536: "128-bit"}
_Header = Any  # of nibabel, which has no types


def read_volume(source: Source, limits: VolumeLimits = LIMITS) -> RawVolume:
    """The volume with its scl_slope and scl_inter applied; integers stay integers where slope and intercept are.

    Raises Fault: damaged, not-spatial, no-geometry, not-hounsfield, too-large, and what reading the file can raise.
    """
    stored = source.read(limits.volume_bytes + _HEADER_BYTES)
    packed = stored.startswith(gzip.MAGIC)
    header = _header(gzip.peek(stored[: 4 * _HEADER_BYTES], _HEADER_BYTES) if packed else stored[:_HEADER_BYTES])
    dtype, shape = _dtype(header), _shape(header)
    check_shape(shape, dtype.itemsize, limits)
    affine_ras, flags = _affine(header, shape)
    data = gzip.decompress(stored, limits.volume_bytes + _HEADER_BYTES) if packed else stored
    values = _scaled(stored_values(data, _start_byte(header), dtype, shape), header)
    return volume_from_affine(values, affine_ras, flags=flags, limits=limits)


def _header(head: bytes) -> _Header:
    """The header, of either version and byte order."""
    for sort, size_bytes in ((nibabel.nifti1.Nifti1Header, 348), (nibabel.nifti2.Nifti2Header, 540)):
        for order in ("<", ">"):
            if head[:4] == struct.pack(f"{order}i", size_bytes) and len(head) >= size_bytes:
                header: _Header = sort(head[:size_bytes], order, check=False)  # type: ignore[no-untyped-call]
                if bytes(header["magic"])[:2] == b"ni":
                    raise Fault("unknown-format", "it is half of a pair (.hdr and .img); convert it to a single .nii")
                return header
    raise Fault("damaged", "its NIfTI header is cut short")


def _dtype(header: _Header) -> np.dtype:
    code = int(header["datatype"])
    if code in _SEVERAL_VALUES:
        raise Fault("not-spatial", f"its voxels are {_SEVERAL_VALUES[code]} values, not one number each")
    if code in _NO_CT:
        raise Fault("not-hounsfield", f"its voxels are {_NO_CT[code]} values, which no CT has")
    if code not in _NUMBERS:
        raise Fault("damaged", f"its data type {code} is none of the standard")
    return np.dtype(_NUMBERS[code]).newbyteorder(header.endianness)


def _shape(header: _Header) -> tuple[int, ...]:
    """Three sizes; a missing third is one slice, further ones are dropped where they are one."""
    dimensions, *sizes = map(int, header["dim"])
    if not 2 <= dimensions <= 7 or min(sizes[:dimensions]) < 1:
        raise Fault("damaged", f"its dimensions {[dimensions, *sizes]} are impossible")
    volumes = math.prod(sizes[3:dimensions])
    if volumes > 1:
        raise Fault("not-spatial", f"it holds {volumes} volumes, not one")
    return tuple((*sizes[:dimensions], 1)[:3])


def _start_byte(header: _Header) -> int:
    start = float(header["vox_offset"])
    shortest = int(header["sizeof_hdr"]) + 4  # the header and its extension flag
    if start == 0:  # some programs leave it out
        return shortest
    if not shortest <= start < 2**62:
        raise Fault("damaged", f"its voxels cannot start at byte {start:g}")
    return int(start)


def _scaled(values: np.ndarray, header: _Header) -> np.ndarray:
    """Values times scl_slope plus scl_inter; no scaling where the slope is zero or no finite number."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope) or (slope, intercept) == (1, 0):
        return values
    if not math.isfinite(intercept):
        raise Fault("damaged", f"its scl_slope is {slope:g} but its scl_inter is no number")
    whole = values.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer()
    dtype = _whole_dtype(values.dtype, int(slope), int(intercept)) if whole else None
    if dtype is None:
        # float32 keeps all of a 16-bit integer, and 1e-4 HU after scaling
        dtype = np.dtype(np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else np.float64)
    scaled = values.astype(dtype, order="K")
    scaled *= dtype.type(slope)
    scaled += dtype.type(intercept)
    return scaled


def _whole_dtype(stored: np.dtype, slope: int, intercept: int) -> np.dtype | None:
    """The smallest integer type that holds whatever the stored type can become, if there is one."""
    ends = [end * slope + intercept for end in (int(np.iinfo(stored).min), int(np.iinfo(stored).max))]
    steps = [*ends, *(end - intercept for end in ends), slope, intercept]  # what scaling meets on its way
    for dtype in map(np.dtype, ("i2", "i4", "i8")):
        bound = 1 << (8 * dtype.itemsize - 1)
        if -bound <= min(steps) and max(steps) < bound:
            return dtype
    return None


def _affine(header: _Header, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The (4, 4) matrix from voxel to RAS mm and the flags that go with it."""
    sform, qform = _sform(header), _qform(header)
    flags: tuple[str, ...] = ()
    if sform is not None:
        affine_ras = sform
        if qform is not None and _furthest_corner_mm(sform, qform, shape) > DISAGREE_MM:
            flags = ("sform-qform-disagree",)
    elif qform is not None:
        affine_ras = qform
    elif int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0:
        raise Fault("no-geometry", "the orientation that it states is no possible one")
    else:
        flags = ("guessed-orientation",)
        affine_ras = _centred(np.abs(header["pixdim"][1:4].astype(np.float64)), shape)
    unit_mm = _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return np.diag([unit_mm, unit_mm, unit_mm, 1.0]) @ affine_ras, flags


def _sform(header: _Header) -> np.ndarray | None:
    affine = np.eye(4)
    affine[:3] = header["srow_x"], header["srow_y"], header["srow_z"]
    usable = int(header["sform_code"]) > 0 and np.all(np.isfinite(affine)) and np.linalg.det(affine[:3, :3]) != 0
    return affine if usable else None


def _qform(header: _Header) -> np.ndarray | None:
    if int(header["qform_code"]) <= 0:
        return None
    try:
        affine = np.array(header.get_qform(), dtype=np.float64)
    except (ValueError, nibabel.spatialimages.HeaderDataError):  # no quaternion, or negative voxel sizes
        return None
    return affine if np.all(np.isfinite(affine)) and np.linalg.det(affine[:3, :3]) != 0 else None


def _furthest_corner_mm(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
    apart = np.c_[corners, np.ones(8)] @ (one - other).T
    return float(np.linalg.norm(apart[:, :3], axis=1).max())


def _centred(voxel_mm: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Method 1: i to the left, j to the front, k up, the middle of the volume at the origin (as nibabel has it)."""
    affine = np.diag([*(voxel_mm * (-1.0, 1.0, 1.0)), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine
