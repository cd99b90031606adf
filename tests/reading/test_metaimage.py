"""MetaImage. Oracle: SimpleITK 2.5 writes the files and reads them in LPS; its answer about position and value counts.

Values are equal; positions agree to 1e-3 mm (text headers hold 17 digits, so in truth to 1e-9).
"""

from __future__ import annotations

import gzip as standard
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from reading.volume_oracles import (
    affines,
    assert_identical,
    assert_same_places,
    flips,
    numbered,
    orders,
    restored,
    shapes,
    source_of,
)

from headct.reading.faults import Fault
from headct.reading.files import find
from headct.reading.grids import VolumeLimits
from headct.reading.metaimage import read_volume

SHAPE = (6, 5, 4)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
FIELDS = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "-60 -80 10",
    "CenterOfRotation": "0 0 0",
    "AnatomicalOrientation": "RAI",
    "ElementSpacing": "0.5 0.5 5",
    "DimSize": "6 5 4",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
VOXELS = numbered(SHAPE).astype("<i2").tobytes(order="F")
GZIPPED = standard.compress(VOXELS)


def read(path, **limits):
    return read_volume(source_of(path), VolumeLimits(**limits))


def refused(path, **limits):
    with pytest.raises(Fault) as fault:
        read(path, **limits)
    return fault.value.code


def text(path, data=VOXELS, drop=(), newline="\n", **changed):
    fields = {name: value for name, value in (FIELDS | changed).items() if name not in drop}
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # the last one
    path.write_bytes("".join(f"{name} = {value}{newline}" for name, value in fields.items()).encode() + data)
    return path


def image_of(values_ijk, affine_ras):
    """A SimpleITK image; it takes no shear."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(values_ijk.transpose(2, 1, 0)))
    affine = LPS @ affine_ras
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def oracle(path):
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), LPS @ affine


@settings(max_examples=100, deadline=None)
@given(
    affine=affines(shear=False),
    shape=shapes,
    dtype=st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]),
    packed=st.booleans(),
)
def test_every_voxel_is_where_simpleitk_says(tmp_path_factory, affine, shape, dtype, packed):
    path = tmp_path_factory.getbasetemp() / "itk.mha"
    values = numbered(shape, np.dtype(dtype), start=-100)
    sitk.WriteImage(image_of(values, affine), str(path), useCompression=packed)
    volume = read(path)
    assert_same_places(volume, *oracle(path))
    assert_same_places(volume, values, affine)
    assert volume.values.dtype == np.dtype(dtype)
    assert volume.flags == ()


@settings(max_examples=60, deadline=None)
@given(affine=affines(shear=False), shape=shapes, axes=orders, turned=flips, packed=st.booleans())
def test_the_way_it_is_stored_makes_no_difference(tmp_path_factory, affine, shape, axes, turned, packed):
    one, other = (tmp_path_factory.getbasetemp() / name for name in ("one.mha", "other.mha"))
    values = numbered(shape)
    stored, stored_affine = restored(values, affine, axes, turned)
    sitk.WriteImage(image_of(values, affine), str(one))
    sitk.WriteImage(image_of(stored, stored_affine), str(other), useCompression=packed)
    assert_identical(read(one), read(other))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"newline": "\r\n"},
        {"TransformMatrix": "0 1 0 -1 0 0 0 0 1"},
        {"TransformMatrix": "0 0 -1 1 0 0 0 1 0"},
        {"AnatomicalOrientation": "LPS"},
        {"BinaryDataByteOrderMSB": "True"},
        {"BinaryDataByteOrderMSB": "True", "ElementType": "MET_USHORT"},
        {"HeaderSize": "-1", "data": b"before" + VOXELS},
        {"CompressedData": "True", "CompressedDataSize": len(zlib.compress(VOXELS)), "data": zlib.compress(VOXELS)},
        {"CompressedData": "True", "CompressedDataSize": len(GZIPPED), "data": GZIPPED},
        {"ElementNumberOfChannels": "1"},
        {"Comment": "any text = with signs"},
    ],
)
def test_as_simpleitk_reads_it(tmp_path, changes):
    path = text(tmp_path / "x.mha", **changes)
    assert_same_places(read(path), *oracle(path))


def test_numbers_as_text(tmp_path):
    """SimpleITK refuses to read these; the plain file is the oracle."""
    numbers = " ".join(map(str, numbered(SHAPE).ravel(order="F"))).encode()
    path = text(tmp_path / "x.mha", BinaryData="False", data=numbers)
    assert_identical(read(text(tmp_path / "y.mha")), read(path))


@pytest.mark.parametrize("names", [("Rotation", "Position"), ("Orientation", "Origin")])
def test_other_names_of_the_same_fields(tmp_path, names):
    plain = text(tmp_path / "x.mha", TransformMatrix="0 1 0 -1 0 0 0 0 1")
    changed = {names[0]: "0 1 0 -1 0 0 0 0 1", names[1]: FIELDS["Offset"]}
    path = text(tmp_path / "y.mha", drop=("TransformMatrix", "Offset"), **changed)
    assert_identical(read(plain), read(path))
    assert_same_places(read(path), *oracle(path))


def test_a_missing_matrix_is_guessed_as_simpleitk_does_and_said(tmp_path):
    volume = read(path := text(tmp_path / "x.mha", drop=("TransformMatrix",)))
    assert volume.flags == ("guessed-orientation",)
    assert_same_places(volume, *oracle(path))


@pytest.mark.parametrize("packed", [True, False])
def test_detached_data(tmp_path, packed):
    affine = np.diag([0.5, 0.5, 5, 1])
    folder = tmp_path / "in"
    folder.mkdir()
    sitk.WriteImage(image_of(numbered(SHAPE), affine), str(folder / "x.mhd"), useCompression=packed)
    (source,) = find([folder], isolated=False)
    assert source.files == ("in/x.mhd", "in/x.zraw" if packed else "in/x.raw")
    assert_same_places(read_volume(source), numbered(SHAPE), affine)
    with pytest.raises(Fault) as fault:
        read_volume(source, VolumeLimits(volume_bytes=239))
    assert fault.value.code == "too-large"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"NDims": "2", "DimSize": "6 5"}, "not-spatial"),
        ({"NDims": "4", "DimSize": "6 5 4 1"}, "not-spatial"),
        ({"drop": ("NDims",)}, "not-spatial"),
        ({"ElementNumberOfChannels": "3"}, "not-spatial"),
        ({"ElementType": "MET_SHORT_ARRAY"}, "not-spatial"),
        ({"ElementType": "MET_NONE"}, "not-spatial"),
        ({"DimSize": "6 5"}, "damaged"),
        ({"DimSize": "6 5 0"}, "damaged"),
        ({"DimSize": "6 5 -4"}, "damaged"),
        ({"DimSize": "6 5 nan"}, "damaged"),
        ({"DimSize": "6 5 x"}, "damaged"),
        ({"DimSize": "6 5 1e30"}, "damaged"),
        ({"drop": ("DimSize",)}, "damaged"),
        ({"DimSize": "6 5 9000"}, "too-large"),
        ({"DimSize": "4000 4000 4000"}, "too-large"),
        ({"drop": ("ElementSpacing",)}, "no-geometry"),
        ({"ElementSpacing": "0.5 0.5 0"}, "no-geometry"),
        ({"ElementSpacing": "0.5 0.5 inf"}, "no-geometry"),
        ({"ElementSpacing": "0.5 0.5"}, "damaged"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "no-geometry"),
        ({"TransformMatrix": "1 0 0 0 1 0"}, "damaged"),
        ({"Offset": "nan 0 0"}, "no-geometry"),
        ({"DistanceUnits": "um"}, "no-geometry"),
        ({"ElementToIntensityFunctionSlope": "2"}, "not-hounsfield"),
        ({"ElementToIntensityFunctionOffset": "-1024"}, "not-hounsfield"),
        ({"data": VOXELS[:-1]}, "damaged"),
        ({"data": b""}, "damaged"),
        ({"HeaderSize": "-1", "data": b"few"}, "damaged"),
        ({"HeaderSize": "-7"}, "damaged"),
        ({"HeaderSize": "nan"}, "damaged"),
        ({"HeaderSize": "1e300"}, "damaged"),
        ({"CompressedData": "True"}, "damaged"),
        ({"CompressedData": "True", "data": zlib.compress(VOXELS)[:-20]}, "damaged"),
        ({"CompressedData": "True", "data": zlib.compress(VOXELS[:100])}, "damaged"),
        ({"BinaryData": "False", "data": b"1 2 x"}, "damaged"),
        ({"ElementDataFile": "/etc/passwd"}, "damaged"),
        ({"ElementDataFile": "../x.raw"}, "damaged"),
        ({"ElementDataFile": "LIST"}, "damaged"),
        ({"ElementDataFile": ""}, "damaged"),
        ({"drop": ("ElementDataFile",), "data": b""}, "damaged"),
    ],
)
def test_broken_files(tmp_path, changes, code):
    if "ElementDataFile" in changes.get("drop", ()):
        (tmp_path / "x.mha").write_text("ObjectType = Image\nNDims = 3\n")
        assert refused(tmp_path / "x.mha") == code
    else:
        assert refused(text(tmp_path / "x.mha", **changes)) == code


def test_a_bomb_is_not_unpacked(tmp_path):
    path = text(tmp_path / "x.mha", CompressedData="True", data=zlib.compress(VOXELS + bytes(50 << 20)))
    np.testing.assert_array_equal(np.sort(read(path).values.ravel()), np.sort(numbered(SHAPE).ravel()))


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 330), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_mutated_header_gives_a_volume_or_a_fault(tmp_path_factory, changes):
    path = text(tmp_path_factory.getbasetemp() / "mutated.mha")
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position] = value
    path.write_bytes(data)
    try:
        volume = read(path, volume_bytes=1 << 20)
    except Fault:
        return
    assert volume.values.ndim == 3
    assert np.all(np.isfinite(volume.origins_mm))
