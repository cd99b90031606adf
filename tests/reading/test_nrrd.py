"""NRRD. Oracles: pynrrd 1.1 and SimpleITK 2.5 write the files; SimpleITK, which reads in LPS, says where voxels are.

Values are equal; positions agree to 1e-3 mm (text headers hold all digits, so in truth to 1e-9).
"""

from __future__ import annotations

import bz2
import gzip as standard

import nrrd as pynrrd
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
from headct.reading.files import Source, find
from headct.reading.grids import VolumeLimits
from headct.reading.nrrd import read_volume

SHAPE = (6, 5, 4)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AXIAL = np.array([[-0.5, 0, 0, 60], [0, -0.5, 0, 80], [0, 0, 5, 10], [0, 0, 0, 1.0]])
SIGNS = {
    "right-anterior-superior": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
}


def read(path, **limits):
    return read_volume(source_of(path), VolumeLimits(**limits))


def refused(path, **limits):
    with pytest.raises(Fault) as fault:
        read(path, **limits)
    return fault.value.code


def write(path, values=None, affine_ras=AXIAL, space="left-posterior-superior", **fields):
    """A file by pynrrd, the matrix given in RAS and written in the space asked for."""
    values = numbered(SHAPE) if values is None else values
    affine = np.diag([*SIGNS[space], 1]) @ affine_ras
    header = {
        "space": space,
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
        "encoding": "raw",
        "endian": "little",
        **fields,
    }
    pynrrd.write(str(path), values, {name: value for name, value in header.items() if value is not None})
    return path


def text(path, *lines, data=b""):
    path.write_bytes(b"\n".join(line.encode() for line in ("NRRD0004", *lines, "", "")) + data)
    return path


MINIMAL = {
    "type": "short",
    "dimension": "3",
    "sizes": "6 5 4",
    "encoding": "raw",
    "endian": "little",
    "space": "left-posterior-superior",
    "space directions": "(0.5,0,0) (0,0.5,0) (0,0,5)",
    "space origin": "(-60,-80,10)",
}


def minimal(path, data=None, drop=(), **changed):
    """A file as text, with fields changed (underscores for spaces) or dropped."""
    fields = MINIMAL | {name.replace("_", " "): value for name, value in changed.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if name not in drop]
    return text(path, *lines, data=numbered(SHAPE).astype("<i2").tobytes(order="F") if data is None else data)


@settings(max_examples=100, deadline=None)
@given(
    affine=affines(),
    shape=shapes,
    space=st.sampled_from(list(SIGNS)),
    dtype=st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]),
    encoding=st.sampled_from(["raw", "gzip", "bzip2", "ascii"]),
)
def test_every_voxel_is_where_it_was_written(tmp_path_factory, affine, shape, space, dtype, encoding):
    path = tmp_path_factory.getbasetemp() / "oracle.nrrd"
    values = numbered(shape, np.dtype(dtype), start=-100)
    volume = read(write(path, values, affine, space, encoding=encoding))
    assert_same_places(volume, values, affine)
    assert volume.values.dtype == np.dtype(dtype)
    assert volume.flags == ()


@settings(max_examples=60, deadline=None)
@given(affine=affines(shear=False), shape=shapes, packed=st.booleans())
def test_every_voxel_is_where_simpleitk_says(tmp_path_factory, affine, shape, packed):
    path = tmp_path_factory.getbasetemp() / "itk.nrrd"
    values = numbered(shape)
    write(path, values, affine, encoding="gzip" if packed else "raw")
    image = sitk.ReadImage(str(path))
    directions = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    theirs = LPS @ np.block([[directions, np.array(image.GetOrigin())[:, None]], [np.zeros((1, 3)), 1]])
    assert_same_places(read(path), sitk.GetArrayFromImage(image).transpose(2, 1, 0), theirs)


@settings(max_examples=60, deadline=None)
@given(affine=affines(), shape=shapes, axes=orders, turned=flips, endian=st.sampled_from(["little", "big"]))
def test_the_way_it_is_stored_makes_no_difference(tmp_path_factory, affine, shape, axes, turned, endian):
    one, other = (tmp_path_factory.getbasetemp() / name for name in ("one.nrrd", "other.nrrd"))
    values = numbered(shape)
    stored, stored_affine = restored(values, affine, axes, turned)
    write(one, values, affine)
    write(other, stored, stored_affine, "right-anterior-superior", endian=endian, encoding="gz")
    assert_identical(read(one), read(other))


@pytest.mark.parametrize("short", ["RAS", "LAS", "LPS"])
def test_short_names_of_spaces(tmp_path, short):
    full = {"RAS": "right-anterior-superior", "LAS": "left-anterior-superior", "LPS": "left-posterior-superior"}[short]
    path = write(tmp_path / "x.nrrd", space=full)
    data = path.read_bytes()
    assert f"space: {full}".encode() in data
    path.write_bytes(data.replace(f"space: {full}".encode(), f"space: {short}".encode()))
    assert_same_places(read(path), numbered(SHAPE), AXIAL)


def test_written_by_simpleitk(tmp_path):
    image = sitk.GetImageFromArray(numbered((4, 5, 6)))
    image.SetSpacing((0.5, 0.6, 5))
    image.SetOrigin((1, 2, 3))
    sitk.WriteImage(image, str(tmp_path / "x.nrrd"), useCompression=True)
    expected = LPS @ np.array([[0.5, 0, 0, 1], [0, 0.6, 0, 2], [0, 0, 5, 3], [0, 0, 0, 1]])
    assert_same_places(read(tmp_path / "x.nrrd"), numbered((4, 5, 6)).transpose(2, 1, 0), expected)


# Orientation that is not stated


@pytest.mark.parametrize("space", [None, "scanner-xyz", "3D-right-handed"])
def test_a_space_without_sides_is_guessed_as_itk_does_and_said(tmp_path, space):
    changes = {"drop": ("space",)} if space is None else {"space": space}
    volume = read(minimal(tmp_path / "x.nrrd", **changes))
    assert volume.flags == ("guessed-orientation",)
    expected = LPS @ np.array([[0.5, 0, 0, -60], [0, 0.5, 0, -80], [0, 0, 5, 10], [0, 0, 0, 1]])
    assert_same_places(volume, numbered(SHAPE), expected)


def test_spacings_alone(tmp_path):
    path = minimal(tmp_path / "x.nrrd", spacings="0.5 0.6 5", drop=("space", "space directions", "space origin"))
    volume = read(path)
    assert volume.flags == ("guessed-orientation",)
    assert_same_places(volume, numbered(SHAPE), LPS @ np.diag([0.5, 0.6, 5, 1]))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"drop": ("space directions",)}, "no-geometry"),
        ({"space_directions": "(0.5,0,0) (0,0.5,0) (0,0,0)"}, "no-geometry"),
        ({"space_directions": "(0.5,0,0) (0.5,0,0) (0,0,5)"}, "no-geometry"),
        ({"space_directions": "(0.5,0,0) (0,inf,0) (0,0,5)"}, "not-spatial"),
        ({"space_directions": "(0.5,0,0) (0,0.5,0)"}, "damaged"),
        ({"space_directions": "(0.5,0) (0,0.5) (0,5)"}, "damaged"),
        ({"space_origin": "(1,2)"}, "damaged"),
        ({"space_origin": "(nan,2,3)"}, "no-geometry"),
        ({"space_units": '"furlong" "furlong" "furlong"'}, "no-geometry"),
        ({"space_units": '"mm" "mm" "cm"'}, "no-geometry"),
    ],
)
def test_impossible_geometry(tmp_path, changes, code):
    assert refused(minimal(tmp_path / "x.nrrd", **changes)) == code


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("cm", 10), ("m", 1000), ("um", 0.001), ("???", 1)])
def test_units_of_length(tmp_path, unit, factor):
    steps = f"({0.5 / factor},0,0) (0,{0.5 / factor},0) (0,0,{5 / factor})"
    path = minimal(tmp_path / "x.nrrd", space_directions=steps, space_units=" ".join([f'"{unit}"'] * 3))
    assert read(path).thickness_mm == pytest.approx(5)


# What it holds


def test_an_axis_of_one_that_is_no_space_is_dropped(tmp_path):
    plain = read(minimal(tmp_path / "x.nrrd"))
    for sizes, directions in (
        ("1 6 5 4", "none (0.5,0,0) (0,0.5,0) (0,0,5)"),
        ("6 5 4 1", "(0.5,0,0) (0,0.5,0) (0,0,5) none"),
    ):
        path = minimal(tmp_path / "y.nrrd", dimension="4", sizes=sizes, space_directions=directions)
        assert_identical(plain, read(path))


@pytest.mark.parametrize(
    "changes",
    [
        {"dimension": "4", "sizes": "3 6 5 4", "space_directions": "none (0.5,0,0) (0,0.5,0) (0,0,5)"},
        {"dimension": "2", "sizes": "6 5", "space_directions": "(0.5,0,0) (0,0.5,0)"},
        {"type": "block"},
        {"type": "complex"},
    ],
)
def test_what_is_no_volume(tmp_path, changes):
    assert refused(minimal(tmp_path / "x.nrrd", **changes)) == "not-spatial"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"drop": ("type",)}, "not-spatial"),
        ({"drop": ("sizes",)}, "not-spatial"),
        ({"drop": ("endian",)}, "damaged"),
        ({"endian": "middle"}, "damaged"),
        ({"encoding": "hex"}, "damaged"),
        ({"drop": ("encoding",)}, "damaged"),
        ({"sizes": "6 5 -4"}, "not-spatial"),
        ({"sizes": "6 5 many"}, "damaged"),
        ({"sizes": "6 5 9000"}, "too-large"),
        ({"sizes": "8000 8000 8000"}, "too-large"),
        ({"line_skip": "100000"}, "damaged"),
        ({"byte_skip": "1"}, "damaged"),
        ({"byte_skip": "-5"}, "damaged"),
        ({"data": b""}, "damaged"),
        ({"data": bytes(239)}, "damaged"),
        ({"encoding": "gzip", "data": b"no gzip"}, "damaged"),
        ({"encoding": "gzip", "data": standard.compress(bytes(240))[:-3]}, "damaged"),
        ({"encoding": "bzip2", "data": b"no bzip2"}, "damaged"),
        ({"encoding": "bzip2", "data": bz2.compress(bytes(240))[:-10]}, "damaged"),
        ({"encoding": "ascii", "data": b"1 2 3"}, "damaged"),
        ({"encoding": "ascii", "data": b"x " * 120}, "damaged"),
        ({"encoding": "ascii", "data": b"70000 " * 120}, "damaged"),
        ({"data_file": "/etc/passwd"}, "damaged"),
        ({"data_file": "../x.raw"}, "damaged"),
        ({"data_file": "LIST"}, "damaged"),
    ],
)
def test_broken_files(tmp_path, changes, code):
    path = minimal(tmp_path / "x.nrrd", **changes)
    limits = {} if code == "too-large" else {"volume_bytes": 1 << 20}
    assert refused(path, **limits) == code


@pytest.mark.parametrize(
    "data", [b"NRRD0004", b"NRRD0009\ntype: short\n\n", b"NRRD0004\nnonsense\n\n", b"NRRD0004\n" + b"\xff" * 9]
)
def test_broken_headers(tmp_path, data):
    (tmp_path / "x.nrrd").write_bytes(data)
    assert refused(tmp_path / "x.nrrd") in ("damaged", "not-spatial")


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", standard.compress), ("bzip2", bz2.compress)])
def test_bombs(tmp_path, encoding, compress):
    path = minimal(tmp_path / "x.nrrd", encoding=encoding, data=compress(bytes(30 << 20)))
    assert refused(path, volume_bytes=1 << 20) == "too-large"


def test_skipped_lines_and_bytes(tmp_path):
    voxels = numbered(SHAPE).astype("<i2").tobytes(order="F")
    plain = read(minimal(tmp_path / "x.nrrd"))
    for changes in (
        {"line_skip": "2", "data": b"one\ntwo\n" + voxels},
        {"byte_skip": "7", "data": b"7 bytes" + voxels},
        {"line_skip": "1", "byte_skip": "3", "data": b"one\n123" + voxels},
        {"byte_skip": "-1", "data": b"whatever comes before" + voxels},
        {"byte_skip": "3", "encoding": "gzip", "data": standard.compress(b"123" + voxels)},
        {"byte_skip": "-1", "encoding": "gzip", "data": standard.compress(b"before" + voxels)},
    ):
        assert_identical(plain, read(minimal(tmp_path / "y.nrrd", **changes)))


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_detached_data(tmp_path, encoding):
    plain = read(write(tmp_path / "x.nrrd"))
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "x.nhdr", encoding=encoding)
    (source,) = find([folder], isolated=False)
    assert len(source.files) == 2
    assert_identical(plain, read_volume(source))
    (folder / source.beside[0]).write_bytes(b"too few")
    with pytest.raises(Fault) as fault:
        read_volume(source)
    assert fault.value.code == "damaged"


def test_data_that_became_a_link_since_they_were_found_are_not_followed(tmp_path):
    write(tmp_path / "x.nhdr")
    (source,) = find([tmp_path], isolated=False)
    data = tmp_path / source.beside[0]
    data.rename(tmp_path.parent / "elsewhere")
    data.symlink_to(tmp_path.parent / "elsewhere")
    with pytest.raises(Fault) as fault:
        read_volume(source)
    assert fault.value.code == "unreadable"


def test_a_detached_header_alone(tmp_path):
    write(tmp_path / "x.nhdr")
    (data,) = (path for path in tmp_path.iterdir() if path.suffix != ".nhdr")
    data.unlink()
    (source,) = find([tmp_path / "x.nhdr"], isolated=False)
    assert isinstance(source, Source)
    with pytest.raises(Fault, match=data.name):
        read_volume(source)


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_mutated_header_gives_a_volume_or_a_fault(tmp_path_factory, changes):
    path = minimal(tmp_path_factory.getbasetemp() / "mutated.nrrd")
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
