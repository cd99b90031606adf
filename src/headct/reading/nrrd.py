"""NRRD (https://teem.sourceforge.net/nrrd/format.html), attached (.nrrd) and detached (.nhdr): the header by pynrrd,
the data here, where they stay within limits.

A file without a space, or in one that does not name the patient's sides, is read as ITK reads it, its axes to the
left, to the back and up, and carries the flag guessed-orientation.
"""

from __future__ import annotations

import bz2
import io
from typing import Any

import nrrd
import numpy as np

from headct.reading import detached, gzip
from headct.reading.faults import Fault
from headct.reading.files import Source
from headct.reading.grids import (
    LIMITS,
    RawVolume,
    VolumeLimits,
    check_shape,
    stored_values,
    values_from_text,
    volume_from_affine,
)

_TO_RAS = {  # signs of x, y, z
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "left-posterior-superior": (-1.0, -1.0, 1.0),
}
_SHORT = {"RAS": "right-anterior-superior", "LAS": "left-anterior-superior", "LPS": "left-posterior-superior"}
_LPS = _TO_RAS["left-posterior-superior"]
_UNIT_MM = {"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "???": 1.0, "": 1.0}
_NUMBERS = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), "i8"),
    **dict.fromkeys(("int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}


def read_volume(source: Source, limits: VolumeLimits = LIMITS) -> RawVolume:
    """The volume as stored. Raises Fault: damaged, not-spatial, no-geometry, too-large, and what reading can raise."""
    data = source.read(limits.volume_bytes + detached.HEADER_BYTES)
    header, start = _header(data)
    dtype = _dtype(header)
    shape, spatial = _shape(header)
    check_shape(shape, dtype.itemsize, limits)
    affine_ras, flags = _affine(header, spatial)
    named = header.get("data file", header.get("datafile"))
    if named is not None:
        data, start = source.read_beside(named, limits.volume_bytes), 0
    values = _values(data, start, header, dtype, shape, limits)
    return volume_from_affine(values, affine_ras, flags=flags, limits=limits)


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """The fields that pynrrd reads, and the byte after them."""
    lines = io.BytesIO(data[: detached.HEADER_BYTES])
    try:
        header = nrrd.read_header(lines)
    except Exception as error:  # noqa: BLE001 - pynrrd parses hostile text with whatever error comes of it
        raise Fault("damaged", f"its NRRD header is broken ({error})") from None
    return header, lines.tell()


def _dtype(header: dict[str, Any]) -> np.dtype:
    name = header.get("type", "")
    if name not in _NUMBERS:
        raise Fault("not-spatial", f"its voxels are of the type {name!r}, not one number each")
    dtype = np.dtype(_NUMBERS[name])
    endian = header.get("endian", "")
    if dtype.itemsize > 1 and endian not in ("little", "big") and header.get("encoding") not in _TEXT:
        raise Fault("damaged", "it does not say in which order its bytes are")
    return dtype.newbyteorder(">" if endian == "big" else "<")


def _shape(header: dict[str, Any]) -> tuple[tuple[int, ...], list[int]]:
    """The sizes of the three axes in space, and which axes these are; others must have one element."""
    sizes = [int(size) for size in header.get("sizes", ())]
    directions = header.get("space directions")
    spatial = list(range(len(sizes)))
    if directions is not None and len(directions) == len(sizes):
        spatial = [axis for axis in spatial if np.all(np.isfinite(directions[axis]))]
    if len(spatial) > 3:
        spatial = [axis for axis in spatial if sizes[axis] > 1]
    if any(size != 1 for axis, size in enumerate(sizes) if axis not in spatial):
        raise Fault("not-spatial", f"its sizes are {sizes}, more than one value a voxel")
    return tuple(sizes[axis] for axis in spatial), spatial


def _affine(header: dict[str, Any], spatial: list[int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The (4, 4) matrix from voxel to RAS mm and the flags that go with it."""
    space = header.get("space", "")
    space = _SHORT.get(space, space).lower()
    affine = np.eye(4)
    try:
        if "space directions" in header:
            affine[:3, :3] = np.asarray(header["space directions"], dtype=np.float64)[spatial].T
        elif "spacings" in header:
            affine[:3, :3] = np.diag(np.asarray(header["spacings"], dtype=np.float64)[spatial])
        else:
            raise Fault("no-geometry", "it gives neither space directions nor spacings")
        affine[:3, 3] = header.get("space origin", np.zeros(3))
    except (ValueError, IndexError):
        raise Fault("damaged", "its space directions, spacings and origin do not fit its dimensions") from None
    sure = space in _TO_RAS and "space directions" in header
    scale = np.diag([*np.multiply(_TO_RAS.get(space, _LPS), _unit_mm(header)), 1.0])
    with np.errstate(invalid="ignore"):  # what is not finite is refused as geometry
        return scale @ affine, () if sure else ("guessed-orientation",)


def _unit_mm(header: dict[str, Any]) -> float:
    units = {unit.lower() for unit in header.get("space units", ())}
    if len(units) > 1 or not units <= _UNIT_MM.keys():
        raise Fault("no-geometry", f"its space units are {sorted(units)}")
    return _UNIT_MM[units.pop()] if units else 1.0


_RAW, _GZIP, _BZIP2, _TEXT = ("raw",), ("gzip", "gz"), ("bzip2", "bz2"), ("ascii", "text", "txt")


def _values(
    data: bytes,
    start: int,
    header: dict[str, Any],
    dtype: np.dtype,
    shape: tuple[int, ...],
    limits: VolumeLimits,
) -> np.ndarray:
    """The values (i, j, k), whatever their encoding. Skipped lines lie outside, skipped bytes inside a compression."""
    encoding = header.get("encoding", "").lower()
    skip_lines = header.get("line skip", header.get("lineskip", 0))
    skip_bytes = header.get("byte skip", header.get("byteskip", 0))
    if skip_lines < 0 or skip_bytes < -1:
        raise Fault("damaged", f"it cannot skip {skip_lines} lines and {skip_bytes} bytes")
    for _ in range(skip_lines):
        start = data.find(b"\n", start) + 1
        if start == 0:
            raise Fault("damaged", f"it has no {skip_lines} lines to skip")
    if encoding in _TEXT:
        return values_from_text(data[start:], dtype.newbyteorder("="), shape)
    size_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    content: bytes | bytearray = data
    if encoding in _GZIP:
        content, start = gzip.decompress(data[start:], limits.volume_bytes), 0
    elif encoding in _BZIP2:
        content, start = _bunzipped(data[start:], limits.volume_bytes), 0
    elif encoding not in _RAW:
        raise Fault("damaged", f"its encoding {encoding!r} is not read")
    start = len(content) - size_bytes if skip_bytes == -1 else start + skip_bytes
    if start < 0:
        raise Fault("damaged", "it holds fewer bytes than its header says")
    return stored_values(content, start, dtype, shape)


def _bunzipped(data: bytes, limit_bytes: int) -> bytes:
    unpacking = bz2.BZ2Decompressor()
    try:
        content = unpacking.decompress(data, limit_bytes + 1)
    except OSError as error:
        raise Fault("damaged", f"its bzip2 data are broken ({error})") from None
    if len(content) > limit_bytes:
        raise Fault("too-large", f"its bzip2 data hold more than the limit of {limit_bytes / 1e6:,.0f} MB")
    if not unpacking.eof:
        raise Fault("damaged", "its bzip2 data end too early")
    return content
