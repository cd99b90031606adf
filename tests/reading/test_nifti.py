"""NIfTI. Oracle: nibabel 5 wrote the files and says where each voxel is and what it holds (`dataobj`, `affine`).

Tolerances: values are equal except where a fractional slope is applied in float32 here and in float64 there (1e-3 of
values up to 1e4); positions agree to 1e-3 mm, the rounding of the float32 matrix in a NIfTI-1 header.
"""

from __future__ import annotations

import dataclasses
import gzip as standard
import struct
import zipfile

import nibabel as nib
import numpy as np
import pytest
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
    rotation,
    shapes,
    source_of,
)

from headct.reading import nifti
from headct.reading.faults import Fault
from headct.reading.files import Source, find
from headct.reading.grids import VolumeLimits
from headct.reading.nifti import read_volume
from headct.scan import Scan

SORTS = {"NIfTI-1": nib.Nifti1Image, "NIfTI-2": nib.Nifti2Image}
AXIAL = np.array([[-0.5, 0, 0, 60], [0, 0.5, 0, -80], [0, 0, 5, 10], [0, 0, 0, 1.0]])
SHAPE = (6, 5, 4)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.nii"


def image(values=None, affine=AXIAL, sort=nib.Nifti1Image, endian="<", **fields):
    """An image whose header fields are set as given, whatever nibabel thinks of them."""
    values = numbered(SHAPE) if values is None else values
    header = sort.header_class(endianness=endian)
    header.set_data_dtype(values.dtype)
    made = sort(values, affine, header)
    for name, value in fields.items():
        made.header[name] = value
    return made


def write(path, made):
    """As nibabel saves it, but with the header exactly as it stands, scaling fields included."""
    header = made.header.copy()
    header["vox_offset"] = header["vox_offset"] or header.sizeof_hdr + 4
    header["magic"] = header.single_magic
    values = np.asanyarray(made.dataobj).astype(header.get_data_dtype())
    pad = bytes(int(header["vox_offset"]) - header.sizeof_hdr)
    data = header.binaryblock + pad + values.tobytes(order="F")
    path.write_bytes(standard.compress(data, 1) if path.suffix == ".gz" else data)
    return path


def read(path, **limits):
    return read_volume(source_of(path), VolumeLimits(**limits))


def refused(path, **limits):
    with pytest.raises(Fault) as fault:
        read(path, **limits)
    return fault.value.code


@settings(max_examples=150, deadline=None)
@given(
    shape=shapes,
    affine=affines(),
    sort=st.sampled_from(list(SORTS)),
    endian=st.sampled_from("<>"),
    dtype=st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
def test_every_voxel_is_where_nibabel_says(tmp_path_factory, shape, affine, sort, endian, dtype, suffix):
    path = tmp_path_factory.getbasetemp() / f"oracle{suffix}"
    values = numbered(shape, np.dtype(dtype), start=-100)
    made = image(values, sort=SORTS[sort], endian=endian)
    made.set_sform(affine, 1)
    made.set_qform(None, 0)
    nib.save(made, path)
    theirs = nib.load(path)
    ours = read(path)
    assert_same_places(ours, np.asanyarray(theirs.dataobj), theirs.affine)
    assert ours.values.dtype == np.dtype(dtype)
    assert ours.values.dtype.isnative
    assert ours.flags == ()
    scan = Scan(  # checks the order of slices
        np.zeros(ours.values.shape, np.int16), ours.origins_mm, ours.row_step_mm, ours.col_step_mm, ours.thickness_mm
    )
    np.testing.assert_allclose(scan.gaps_mm, ours.thickness_mm, rtol=1e-9)


@settings(max_examples=150, deadline=None)
@given(affine=affines(), shape=shapes, axes=orders, turned=flips, endian=st.sampled_from("<>"), packed=st.booleans())
def test_the_way_it_is_stored_makes_no_difference(tmp_path_factory, affine, shape, axes, turned, endian, packed):
    one, other = (tmp_path_factory.getbasetemp() / name for name in ("one.nii", f"other.nii{'.gz' * packed}"))
    values = numbered(shape)
    stored, stored_affine = restored(values, affine, axes, turned)
    nib.save(nib.Nifti2Image(values, affine), one)  # float64 matrices, so that the two files state the same
    nib.save(image(stored, stored_affine, nib.Nifti2Image, endian), other)
    plain = read(one)
    assert_identical(plain, read(other))
    assert plain.values.base is not None, "turned by strides, not by copying"


def test_axial_slices_go_up_rows_to_the_back_columns_to_the_left(path):
    volume = read(write(path, image()))
    assert volume.values.shape == (4, 5, 6)
    np.testing.assert_allclose(volume.origins_mm[:, 2], [10, 15, 20, 25])
    np.testing.assert_allclose(volume.row_step_mm, [0, -0.5, 0], atol=1e-12)
    np.testing.assert_allclose(volume.col_step_mm, [-0.5, 0, 0], atol=1e-12)
    np.testing.assert_allclose(volume.origins_mm[0], [60, -78, 10])
    assert volume.thickness_mm == pytest.approx(5)


@pytest.mark.parametrize(
    ("voxel_mm", "shape", "slices"),
    [
        ((0.5, 0.5, 5), (6, 5, 4), 4),  # axial
        ((0.5, 5, 0.5), (6, 4, 5), 4),  # thick coronal slices
        ((5, 0.5, 0.5), (4, 6, 5), 4),  # thick sagittal slices
        ((1, 1, 1), (6, 5, 4), 4),  # isotropic: axial
        ((0.5, 0.7, 0.6), (6, 5, 4), 4),  # nearly isotropic: axial
        ((0.5, 0.5, 5), (6, 1, 4), 1),  # one coronal slice
    ],
)
def test_which_axis_are_the_slices(path, voxel_mm, shape, slices):
    volume = read(write(path, image(numbered(shape), np.diag([*voxel_mm, 1.0]))))
    assert volume.values.shape[0] == slices


def test_a_gantry_tilt_is_kept(path):
    tilt = np.radians(18.5)
    sheared = AXIAL.copy()
    sheared[1, 2] = 5 * np.tan(tilt)
    made = image()
    made.set_sform(sheared, 1)
    made.set_qform(AXIAL, 1)
    volume = read(write(path, made))
    assert_same_places(volume, numbered(SHAPE), sheared)
    assert volume.thickness_mm == pytest.approx(5, rel=1e-6), "along the normal of the slices"
    assert volume.flags == ("sform-qform-disagree",)


# Which transform


def oriented(path, sform=None, qform=None, **fields):
    made = image()
    made.set_sform(sform, 2 if sform is not None else 0)
    made.set_qform(qform, 1 if qform is not None else 0)
    for name, value in fields.items():
        made.header[name] = value
    return write(path, made)


ROTATED = np.eye(4)
ROTATED[:3, :3] = rotation((0.1, -0.2, 0.3)) * (0.5, 0.6, 5)
ROTATED[:3, 3] = 1, 2, 3


def test_qform_only(path):
    volume = read(oriented(path, qform=ROTATED))
    assert_same_places(volume, numbered(SHAPE), ROTATED)
    assert volume.flags == ()


def test_a_left_handed_qform(path):
    mirrored = ROTATED * (1, 1, -1, 1)
    assert_same_places(read(oriented(path, qform=mirrored)), numbered(SHAPE), mirrored)


def test_both_agree(path):
    assert read(oriented(path, sform=ROTATED, qform=ROTATED)).flags == ()


def test_both_disagree(path):
    volume = read(oriented(path, sform=AXIAL, qform=ROTATED))
    assert_same_places(volume, numbered(SHAPE), AXIAL)
    assert volume.flags == ("sform-qform-disagree",)


def test_neither_is_guessed_as_nibabel_does_and_says_so(path):
    volume = read(oriented(path, pixdim=[1, 0.5, 0.6, 5, 0, 0, 0, 0]))
    assert_same_places(volume, numbered(SHAPE), nib.load(path).affine)
    assert volume.flags == ("guessed-orientation",)


def test_a_broken_sform_beside_a_sound_qform_is_not_used(path):
    for broken in ([0, 0, 0, 0], [np.nan] * 4):
        volume = read(oriented(path, qform=ROTATED, sform_code=1, srow_x=broken))
        assert_same_places(volume, numbered(SHAPE), ROTATED)


@pytest.mark.parametrize(
    "fields",
    [
        {"sform_code": 1, "srow_x": [np.nan] * 4, "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 1, 0]},
        {"sform_code": 1, "srow_x": [np.inf, 0, 0, 0], "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 1, 0]},
        {"sform_code": 1, "srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4},
        {"sform_code": 1, "srow_x": [1, 1, 0, 0], "srow_y": [1, 1.001, 0, 0], "srow_z": [0, 0, 1, 0]},
        {"sform_code": 1, "srow_x": [1e4, 0, 0, 0], "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 1, 0]},
        {"sform_code": 1, "srow_x": [1e-9, 0, 0, 0], "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 1, 0]},
        {"sform_code": 0, "qform_code": 0, "pixdim": [1, 0.5, 0.5, 0, 0, 0, 0, 0]},
        {"sform_code": 0, "qform_code": 0, "pixdim": [1, 0.5, np.nan, 1, 0, 0, 0, 0]},
        {"sform_code": 0, "qform_code": 1, "pixdim": [1, 0.5, 0, 1, 0, 0, 0, 0]},
        {"sform_code": 0, "qform_code": 1, "quatern_b": 5.0},
        {"sform_code": 0, "qform_code": 1, "quatern_b": np.nan},
        {"sform_code": 0, "qform_code": 1, "qoffset_x": np.inf},
        {"sform_code": 0, "qform_code": 1, "pixdim": [1, -0.5, 0.5, 1, 0, 0, 0, 0]},
    ],
)
def test_impossible_geometry(path, fields):
    assert refused(oriented(path, **fields)) == "no-geometry"


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (10, 1)])
def test_units_of_length(path, unit, factor):
    affine = np.diag([0.5 / factor, 0.5 / factor, 5 / factor, 1])
    made = image(affine=affine, xyzt_units=unit)
    volume = read(write(path, made))
    assert volume.thickness_mm == pytest.approx(5)
    np.testing.assert_allclose(np.linalg.norm(volume.col_step_mm), 0.5)


# Scaling


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype", "result"),
    [
        (1, 0, "i2", "i2"),
        (0, 7, "i2", "i2"),
        (np.nan, 7, "i2", "i2"),
        (np.inf, 7, "i2", "i2"),
        (1, -1024, "u1", "i2"),
        (1, -1024, "i2", "i4"),
        (1, -1024, "u2", "i4"),
        (-2, 3, "i2", "i4"),
        (1, -1024, "u4", "i8"),
        (3, -5, "u8", "f8"),
        (0.1, -10, "i2", "f4"),
        (0.5, 0.25, "u1", "f4"),
        (0.1, -10, "i4", "f8"),
        (2, 1, "f4", "f4"),
        (2, 1, "f8", "f8"),
    ],
)
@pytest.mark.parametrize("endian", "<>")
def test_slope_and_intercept_are_applied_once(path, slope, intercept, dtype, result, endian):
    values = numbered(SHAPE, np.dtype(dtype), start=-60)
    write(path, image(values, scl_slope=slope, scl_inter=intercept, endian=endian))
    volume = read(path)
    assert volume.values.dtype == np.dtype(result)
    theirs = np.asanyarray(nib.load(path).dataobj)
    assert_same = np.testing.assert_array_equal if volume.values.dtype.kind == "i" else np.testing.assert_allclose
    assert_same(np.sort(volume.values.ravel()), np.sort(theirs.ravel()))


def test_scaling_cannot_overflow(path):
    values = np.full(SHAPE, 32767, np.int16)
    values[0] = -32768
    volume = read(write(path, image(values, scl_slope=2, scl_inter=-1024)))
    assert (volume.values.min(), volume.values.max()) == (-66560, 64510)


def test_a_slope_without_an_intercept(path):
    assert refused(write(path, image(scl_slope=2, scl_inter=np.nan))) == "damaged"


# What it holds


@pytest.mark.parametrize(
    ("shape", "kept"),
    [((6, 5, 4, 1), (4, 5, 6)), ((6, 5, 4, 1, 1), (4, 5, 6)), ((6, 5), (1, 5, 6)), ((6, 5, 1), (1, 5, 6))],
)
def test_axes_of_one_are_dropped(path, shape, kept):
    made = image(numbered(shape))
    assert read(write(path, made)).values.shape == kept


@pytest.mark.parametrize("shape", [(6, 5, 4, 2), (6, 5, 4, 1, 3), (6, 5, 1, 7), (6, 5, 4, 1, 1, 1, 2)])
def test_several_volumes(path, shape):
    assert refused(write(path, image(numbered(shape)))) == "not-spatial"


@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "not-spatial"),
        (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")]), "not-spatial"),
        (np.complex64, "not-spatial"),
        (np.complex128, "not-spatial"),
    ],
)
def test_several_numbers_a_voxel(path, dtype, code):
    assert refused(write(path, image(np.zeros(SHAPE, dtype)))) == code


@pytest.mark.parametrize(
    ("datatype", "code"), [(1, "not-hounsfield"), (1536, "not-hounsfield"), (0, "damaged"), (7, "damaged")]
)
def test_types_that_no_ct_has(path, datatype, code):
    data = bytearray(write(path, image()).read_bytes())
    struct.pack_into("<h", data, 70, datatype)
    path.write_bytes(data)
    assert refused(path) == code


@pytest.mark.parametrize(
    "dim", [[0] * 8, [3, 6, 5, 0, 1, 1, 1, 1], [3, 6, -5, 4, 1, 1, 1, 1], [8] * 8, [1, 6, 1, 1, 1, 1, 1, 1]]
)
def test_impossible_dimensions(path, dim):
    data = bytearray(write(path, image()).read_bytes())
    struct.pack_into("<8h", data, 40, *dim)
    path.write_bytes(data)
    assert refused(path) == "damaged"


@pytest.mark.parametrize("offset", [-1.0, 10.0, 351.0, np.nan, np.inf, 1e30])
def test_impossible_offsets(path, offset):
    data = bytearray(write(path, image()).read_bytes())
    struct.pack_into("<f", data, 108, offset)
    path.write_bytes(data)
    assert refused(path) == "damaged"


def test_a_missing_offset_and_extensions(path):
    plain = read(write(path, image()))
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, 108, 0.0)
    path.write_bytes(data)
    assert_identical(plain, read(path))
    extended = image()
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"text" * 50))
    nib.save(extended, path)
    assert_identical(plain, read(path))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_cut_short(tmp_path, suffix):
    path = write(tmp_path / f"x.nii{suffix}", image())
    data = path.read_bytes()
    for kept in (len(data) - 1, len(data) // 2, 100):
        path.write_bytes(data[:kept])
        assert refused(path) == "damaged", kept
    whole = standard.decompress(data) if suffix else data
    path.write_bytes(standard.compress(whole[:-1]) if suffix else whole[:-1])
    assert refused(path) == "damaged"


def test_bytes_behind_the_voxels_are_ignored(tmp_path):
    plain = read(write(tmp_path / "x.nii", image()))
    whole = (tmp_path / "x.nii").read_bytes() + b"behind"
    (tmp_path / "x.nii").write_bytes(whole)
    (tmp_path / "y.nii.gz").write_bytes(standard.compress(whole) + b"behind")
    assert_identical(plain, read(tmp_path / "x.nii"))
    assert_identical(plain, read(tmp_path / "y.nii.gz"))


def test_a_pair_is_refused_by_name(tmp_path):
    nib.save(nib.Nifti1Pair(numbered(SHAPE), AXIAL), tmp_path / "x.hdr")
    with pytest.raises(Fault, match="pair") as fault:
        read(tmp_path / "x.hdr")
    assert fault.value.code == "unknown-format"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_claim_of_gigabytes_is_refused_before_memory_is_asked_for(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"x.nii{suffix}"
    header = image(np.zeros((1, 1, 1), np.float64)).header
    header.set_data_shape((4000, 4000, 4000))
    header["vox_offset"] = 352
    data = header.binaryblock + bytes(100)
    path.write_bytes(standard.compress(data) if suffix else data)
    monkeypatch.setattr(nifti, "stored_values", lambda *_: pytest.fail("went on to the voxels"))
    assert refused(path) == "too-large"


def test_a_compressed_file_of_more_than_the_limit(tmp_path):
    path = write(tmp_path / "x.nii.gz", image())
    path.write_bytes(standard.compress(standard.decompress(path.read_bytes()) + bytes(100_000)))
    assert refused(path, volume_bytes=50_000) == "too-large"


def test_a_member_of_an_archive_is_read_alike(tmp_path):
    path = write(tmp_path / "x.nii.gz", image())
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(path, "deep/x.nii.gz")
    (source,) = find([tmp_path / "x.zip"], isolated=False)
    assert isinstance(source, Source)
    assert_identical(read(path), read_volume(source))


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=8),
    sort=st.sampled_from(list(SORTS)),
)
def test_a_mutated_header_gives_a_volume_or_a_fault(tmp_path_factory, changes, sort):
    path = tmp_path_factory.getbasetemp() / "mutated.nii"
    data = bytearray(write(path, image(sort=SORTS[sort])).read_bytes())
    for position, value in changes:
        data[position] = value
    path.write_bytes(data)
    try:
        volume = read(path, volume_bytes=1 << 20)
    except Fault:
        return
    assert volume.values.ndim == 3
    assert np.all(np.isfinite(volume.origins_mm))


def test_real_files_are_where_nibabel_says(shared):
    for name in ("CT_AVM.nii.gz", "ge_hispeed_dcm2niix_tilt_eq_1mm.nii.gz"):
        path = shared / "data" / "nifti" / name
        theirs = nib.load(path)
        assert_same_places(read(path), np.asanyarray(theirs.dataobj), theirs.affine, rtol=2e-7)  # float32


def test_limits_are_one_visible_value():
    assert dataclasses.asdict(nifti.LIMITS) == dataclasses.asdict(VolumeLimits())
