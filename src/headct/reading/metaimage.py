"""MetaImage (.mha, and .mhd with its data beside it; https://itk.org/Wiki/ITK/MetaIO/Documentation).

Read here because no small permissive library reads it from memory: ITK and SimpleITK are large and want a path. The
meaning is that of ITK, which is the oracle of the tests: positions are LPS mm, a row of TransformMatrix is the
direction of an axis, AnatomicalOrientation only repeats it. A file without TransformMatrix carries the flag
guessed-orientation. What ITK reads past although it would change the volume (units, scaling) is refused.
"""

from __future__ import annotations

import re
import zlib

import deflate
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

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NUMBERS = {
    "CHAR": "i1",
    "UCHAR": "u1",
    "SHORT": "i2",
    "USHORT": "u2",
    "INT": "i4",
    "UINT": "u4",
    "LONG": "i4",  # four bytes on every system
    "ULONG": "u4",
    "LONG_LONG": "i8",
    "ULONG_LONG": "u8",
    "FLOAT": "f4",
    "DOUBLE": "f8",
}
_LINE = re.compile(rb"[ \t]*([A-Za-z]+)[ \t]*=[ \t]*([^\r\n]*?)[ \t]*(?:\r\n|\n|\r|\Z)")
_Fields = dict[str, str]


def read_volume(source: Source, limits: VolumeLimits = LIMITS) -> RawVolume:
    """The volume as stored. Raises Fault: damaged, not-spatial, no-geometry, too-large, and what reading can raise."""
    data = source.read(limits.volume_bytes + detached.HEADER_BYTES)
    fields, start = _fields(data)
    dtype, shape = _dtype(fields), _shape(fields)
    check_shape(shape, dtype.itemsize, limits)
    affine_ras, flags = _affine(fields)
    named = fields["ElementDataFile"]
    if named.upper() != "LOCAL":
        data, start = source.read_beside(named, limits.volume_bytes), 0
    values = _values(data, start, fields, dtype, shape)
    return volume_from_affine(values, affine_ras, flags=flags, limits=limits)


def _fields(data: bytes) -> tuple[_Fields, int]:
    """The fields of the header, of which ElementDataFile is the last, and the byte after them."""
    fields: _Fields = {}
    start = 0
    while "ElementDataFile" not in fields:
        line = _LINE.match(data, start, detached.HEADER_BYTES)
        if line is None:
            raise Fault("damaged", "its MetaImage header does not come to ElementDataFile")
        fields[line[1].decode()] = line[2].decode("utf-8", "surrogateescape")
        start = line.end()
    return fields, start


def _numbers(fields: _Fields, name: str, count: int) -> np.ndarray | None:
    """The numbers of a field, None where it is missing."""
    if name not in fields:
        return None
    try:
        numbers = np.array(fields[name].split(), dtype=np.float64)
    except ValueError:
        numbers = np.empty(0)
    if numbers.size != count:
        raise Fault("damaged", f"{name} should be {count} numbers, not {fields[name][:80]!r}")
    return numbers


def _is_true(fields: _Fields, *names: str) -> bool:
    return any(fields.get(name, "")[:1] in ("T", "t", "1") for name in names)


def _dtype(fields: _Fields) -> np.dtype:
    name, channels = fields.get("ElementType", "").removeprefix("MET_"), fields.get("ElementNumberOfChannels", "1")
    if name not in _NUMBERS or channels != "1":
        raise Fault("not-spatial", f"its voxels are {channels} values of the type {name!r}, not one number each")
    big = _is_true(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return np.dtype(_NUMBERS[name]).newbyteorder(">" if big else "<")


def _shape(fields: _Fields) -> tuple[int, ...]:
    dimensions = _numbers(fields, "NDims", 1)
    if dimensions is None or dimensions[0] != 3:
        raise Fault("not-spatial", f"it has {fields.get('NDims', 'no')} dimensions, not three")
    sizes = _numbers(fields, "DimSize", 3)
    if sizes is None or not np.all((sizes >= 1) & (sizes < 2**31)):
        raise Fault("damaged", f"its DimSize {fields.get('DimSize', '')[:80]!r} is impossible")
    return tuple(int(size) for size in sizes)


def _affine(fields: _Fields) -> tuple[np.ndarray, tuple[str, ...]]:
    """The (4, 4) matrix from voxel to RAS mm and the flags that go with it."""
    if fields.get("DistanceUnits", "mm") not in ("mm", "?", ""):
        raise Fault("no-geometry", f"its DistanceUnits are {fields['DistanceUnits']!r}; programs read them as mm")
    names = ("TransformMatrix", "Rotation", "Orientation"), ("Offset", "Position", "Origin")
    matrix = next((name for name in names[0] if name in fields), names[0][0])
    offset = next((name for name in names[1] if name in fields), names[1][0])
    spacing_mm = _numbers(fields, "ElementSpacing", 3)
    if spacing_mm is None:
        raise Fault("no-geometry", "it gives no ElementSpacing")
    directions, origin_mm = _numbers(fields, matrix, 9), _numbers(fields, offset, 3)
    affine_lps = np.eye(4)
    with np.errstate(invalid="ignore"):  # what is not finite is refused as geometry
        affine_lps[:3, :3] = (np.eye(3) if directions is None else directions.reshape(3, 3)).T * spacing_mm
        affine_lps[:3, 3] = 0 if origin_mm is None else origin_mm
        return _LPS_TO_RAS @ affine_lps, () if directions is not None else ("guessed-orientation",)


def _values(data: bytes, start: int, fields: _Fields, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    slope, shift = (_numbers(fields, f"ElementToIntensityFunction{part}", 1) for part in ("Slope", "Offset"))
    if (slope is not None and slope[0] != 1) or (shift is not None and shift[0] != 0):
        raise Fault("not-hounsfield", "its ElementToIntensityFunction would scale its values; programs ignore that")
    size_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    start = _first_voxel(fields, start, len(data) - size_bytes)
    if not _is_true(fields, "BinaryData"):
        return values_from_text(data[start:], dtype.newbyteorder("="), shape)
    if _is_true(fields, "CompressedData"):
        return stored_values(_inflated(data[start:], size_bytes), 0, dtype, shape)
    return stored_values(data, start, dtype, shape)


def _first_voxel(fields: _Fields, start: int, last_start: int) -> int:
    """The byte at which voxels start: HeaderSize counts from the start of their file, -1 means that they end it."""
    skipped = _numbers(fields, "HeaderSize", 1)
    if skipped is None or skipped[0] == 0:
        return start
    first = float(last_start if skipped[0] == -1 else skipped[0])
    if not start <= first <= last_start:
        raise Fault("damaged", f"its voxels cannot start where HeaderSize {fields['HeaderSize'][:20]} says")
    return int(first)


def _inflated(packed: bytes, size_bytes: int) -> bytes | bytearray:
    """zlib data, or gzip data, which MetaIO reads too."""
    if packed.startswith(gzip.MAGIC):
        return gzip.decompress(packed, size_bytes)
    try:
        return deflate.zlib_decompress(packed, size_bytes)
    except deflate.DeflateError:
        pass
    try:
        return zlib.decompressobj().decompress(packed, size_bytes)
    except zlib.error as error:
        raise Fault("damaged", f"its compressed voxels are broken ({error})") from None
