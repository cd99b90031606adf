"""Volumes in one file: NIfTI, NRRD, MetaImage."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import SimpleITK as sitk

from headct.writing import write_nifti
from inputs.kinds import kind, refused
from inputs.series import head


def _nifti(values: np.ndarray | None = None) -> Any:
    """The average head as a NIfTI image in memory, axes (col, row, slice)."""
    scan = head()
    affine = scan.affine()[:, [2, 1, 0, 3]]
    data = scan.hu.transpose(2, 1, 0) if values is None else values
    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return image


@kind("NIfTI", flags=("no-patient-id",))
def nifti(folder: Path) -> None:
    write_nifti(head(), folder / "head.nii")


@kind("NIfTI, gzipped", flags=("no-patient-id",))
def nifti_gz(folder: Path) -> None:
    write_nifti(head(), folder / "head.nii.gz")


@kind("NIfTI, plain and gzipped", flags=("no-patient-id",), rejected={"duplicate-file": 1})
def nifti_twice(folder: Path) -> None:
    write_nifti(head(), folder / "head.nii")
    write_nifti(head(), folder / "head.nii.gz")


@kind("NIfTI with a tilted gantry in its sform", flags=("no-patient-id", "tilt"))
def nifti_tilted(folder: Path) -> None:
    write_nifti(head(tilt_deg=18.0), folder / "head.nii.gz")


@kind("NIfTI with a qform only", flags=("no-patient-id",))
def nifti_qform_only(folder: Path) -> None:
    image = _nifti()
    image.set_sform(None, 0)
    image.to_filename(folder / "head.nii.gz")


@kind("NIfTI with an sform only", flags=("no-patient-id",))
def nifti_sform_only(folder: Path) -> None:
    image = _nifti()
    image.set_qform(None, 0)
    image.to_filename(folder / "head.nii.gz")


@kind("NIfTI whose sform and qform disagree by 25 mm", flags=("no-patient-id", "sform-qform-disagree"))
def nifti_disagreeing(folder: Path) -> None:
    image = _nifti()
    shifted = image.affine.copy()
    shifted[0, 3] += 25
    image.set_qform(shifted, 1)
    image.to_filename(folder / "head.nii.gz")


@kind("NIfTI with neither sform nor qform", known=False, flags=("guessed-orientation", "no-patient-id"))
def nifti_without_transform(folder: Path) -> None:
    image = _nifti()
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    image.to_filename(folder / "head.nii.gz")


@kind("NIfTI with flipped and permuted axes", flags=("no-patient-id",))
def nifti_permuted(folder: Path) -> None:
    scan = head()
    affine = scan.affine() @ np.array([[-1, 0, 0, 29], [0, 1, 0, 0], [0, 0, -1, 71], [0, 0, 0, 1]])
    write_nifti(np.ascontiguousarray(scan.hu[::-1, :, ::-1]), folder / "head.nii.gz", affine)


@kind("NIfTI, float64", flags=("no-patient-id",))
def nifti_float(folder: Path) -> None:
    _nifti(head().hu.transpose(2, 1, 0).astype(np.float64)).to_filename(folder / "head.nii.gz")


@kind("NIfTI, big endian", flags=("no-patient-id",))
def nifti_big_endian(folder: Path) -> None:
    image = _nifti()
    other = nibabel.Nifti1Image(image.dataobj, image.affine, nibabel.Nifti1Header(endianness=">"))
    other.set_data_dtype(np.int16)
    other.to_filename(folder / "head.nii")


@kind("NIfTI-2", flags=("no-patient-id",))
def nifti_2(folder: Path) -> None:
    image = _nifti()
    nibabel.Nifti2Image(image.dataobj, image.affine).to_filename(folder / "head.nii.gz")


@kind("NIfTI with a slope of 0.5", flags=("no-patient-id",))
def nifti_slope(folder: Path) -> None:
    image = _nifti(head().hu.transpose(2, 1, 0) * 2)
    image.header.set_slope_inter(0.5, 0)
    image.to_filename(folder / "head.nii.gz")
    if nibabel.load(folder / "head.nii.gz").header["scl_slope"] != 0.5:
        _overwrite_slope(folder / "head.nii.gz")


def _overwrite_slope(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[112:120] = np.array([0.5, 0.0], dtype="<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(content), mtime=0))


@kind("NIfTI that lost its intercept: air at 24, brain at 1060", flags=("intercept-added", "no-patient-id"))
def nifti_intercept_missing(folder: Path) -> None:
    _nifti((head().hu.transpose(2, 1, 0) + 1024).astype(np.uint16)).to_filename(folder / "head.nii.gz")


@kind("NIfTI with voxels that are not numbers", flags=("no-patient-id", "not-a-number"))
def nifti_nan(folder: Path) -> None:
    values = head().hu.transpose(2, 1, 0).astype(np.float32)
    values[:4] = np.nan
    _nifti(values).to_filename(folder / "head.nii.gz")


@kind("NIfTI with metal at 60,000 HU", flags=("clipped", "metal", "no-patient-id"))
def nifti_clipped(folder: Path) -> None:
    values = head().hu.transpose(2, 1, 0).astype(np.float32)
    values[30:32, 40:42, 18] = 60_000
    _nifti(values).to_filename(folder / "head.nii.gz")


@kind("NIfTI padded with -3024", flags=("no-patient-id", "padding"))
def nifti_padding(folder: Path) -> None:
    values = head().hu.transpose(2, 1, 0).copy()
    values[:6] = -3024
    _nifti(values).to_filename(folder / "head.nii.gz")


@kind("NIfTI with a fourth axis of one", flags=("no-patient-id",))
def nifti_4d_single(folder: Path) -> None:
    _nifti(head().hu.transpose(2, 1, 0)[..., None]).to_filename(folder / "head.nii.gz")


@refused("NIfTI of several time points", "not-spatial")
def nifti_4d(folder: Path) -> None:
    _nifti(np.stack([head().hu.transpose(2, 1, 0)] * 3, axis=-1)).to_filename(folder / "perfusion.nii.gz")


@refused("NIfTI of one slice", "too-few-slices")
def nifti_2d(folder: Path) -> None:
    _nifti(head().hu.transpose(2, 1, 0)[..., :1]).to_filename(folder / "slice.nii.gz")


@refused("NIfTI in colour", "not-spatial")
def nifti_rgb(folder: Path) -> None:
    colour = np.zeros((72, 72, 30), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    _nifti(colour).to_filename(folder / "colour.nii.gz")


@refused("NIfTI of an MR image", "not-hounsfield")
def nifti_mr(folder: Path) -> None:
    mr = np.clip(head().hu.transpose(2, 1, 0).astype(np.int32) + 60, 0, 300).astype(np.int16)
    _nifti(mr).to_filename(folder / "t1.nii.gz")


@refused("NIfTI of a mask", "side-file")
def nifti_mask(folder: Path) -> None:
    _nifti((head().hu.transpose(2, 1, 0) > 0).astype(np.uint8)).to_filename(folder / "mask.nii.gz")


@refused("NIfTI windowed to 0..1", "not-hounsfield")
def nifti_normalised(folder: Path) -> None:
    values = np.clip(head().hu.transpose(2, 1, 0) / 80.0, 0, 1).astype(np.float32)
    _nifti(values).to_filename(folder / "head.nii.gz")


@refused("NIfTI a thousand times too large", "not-hounsfield")
def nifti_thousandfold(folder: Path) -> None:
    _nifti(head().hu.transpose(2, 1, 0).astype(np.int32) * 1000).to_filename(folder / "head.nii.gz")


@refused("NIfTI ten times too small", "not-hounsfield")
def nifti_tenth(folder: Path) -> None:
    _nifti(head().hu.transpose(2, 1, 0) // 10).to_filename(folder / "head.nii.gz")


@refused("NIfTI 200 HU too high", "not-hounsfield")
def nifti_200_too_high(folder: Path) -> None:
    _nifti(head().hu.transpose(2, 1, 0) + np.int16(200)).to_filename(folder / "head.nii.gz")


@refused("NIfTI of the brain alone, on zero", "not-hounsfield")
def nifti_skull_stripped(folder: Path) -> None:
    hu = head().hu.transpose(2, 1, 0)
    _nifti(np.where((hu > -20) & (hu < 80), hu, 0).astype(np.int16)).to_filename(folder / "brain.nii.gz")


@refused("NIfTI with its origin ten million kilometres away", "no-geometry")
def nifti_far_away(folder: Path) -> None:
    image = _nifti()
    image.affine[2, 3] = 1e13
    nibabel.Nifti1Image(image.dataobj, image.affine).to_filename(folder / "head.nii.gz")


@refused("NIfTI with an affine of zeros", "no-geometry")
def nifti_zero_affine(folder: Path) -> None:
    content = bytearray(_nifti().to_bytes())
    content[252:256] = (0).to_bytes(2, "little") + (1).to_bytes(2, "little")
    content[280:328] = bytes(48)
    (folder / "head.nii").write_bytes(content)


@refused("a .nii.gz that breaks off", "damaged")
def nifti_gz_truncated(folder: Path) -> None:
    path = write_nifti(head(), folder / "head.nii.gz")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@refused("a .nii that breaks off", "damaged")
def nifti_truncated(folder: Path) -> None:
    path = write_nifti(head(), folder / "head.nii")
    path.write_bytes(path.read_bytes()[:100_000])


@refused("a .nii.gz with a flipped bit", "damaged")
def nifti_gz_corrupt(folder: Path) -> None:
    path = write_nifti(head(), folder / "head.nii.gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@refused("a .nii.gz that unpacks to 4 GB", "too-large")
def nifti_gz_bomb(folder: Path) -> None:
    header = bytearray(_nifti().to_bytes()[:352])
    header[40:56] = np.array([3, 1300, 1300, 1300, 1, 1, 1, 1], dtype="<i2").tobytes()
    squeeze = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    parts = [squeeze.compress(bytes(header)), *(squeeze.compress(bytes(1 << 24)) for _ in range(32)), squeeze.flush()]
    (folder / "bomb.nii.gz").write_bytes(b"".join(parts))


@refused("a header that claims 30,000 voxels an axis", "too-large")
def nifti_huge(folder: Path) -> None:
    content = bytearray(_nifti().to_bytes())
    content[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], dtype="<i2").tobytes()
    (folder / "head.nii").write_bytes(content)


@refused("a NIfTI pair (.hdr and .img)", "unknown-format", 2)
def nifti_pair(folder: Path) -> None:
    image = _nifti()
    nibabel.Nifti1Pair(image.dataobj, image.affine).to_filename(folder / "head.img")


def _nrrd_header(**changes: Any) -> dict[str, Any]:
    """NRRD fields for the average head with axes (col, row, slice) in LPS."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ head().affine()
    header = {
        "space": "left-posterior-superior",
        "space directions": affine[:3, [2, 1, 0]].T,
        "space origin": affine[:3, 3],
        "kinds": ["domain"] * 3,
    }
    return {key: value for key, value in {**header, **changes}.items() if value is not None}


@kind("NRRD in LPS, gzipped", flags=("no-patient-id",))
def nrrd_lps(folder: Path) -> None:
    nrrd.write(str(folder / "head.nrrd"), head().hu.transpose(2, 1, 0), _nrrd_header())


@kind("NRRD in RAS, raw", flags=("no-patient-id",))
def nrrd_ras(folder: Path) -> None:
    affine = head().affine()
    ras = {
        "space": "right-anterior-superior",
        "space directions": affine[:3, [2, 1, 0]].T,
        "space origin": affine[:3, 3],
    }
    nrrd.write(str(folder / "head.nrrd"), head().hu.transpose(2, 1, 0), _nrrd_header(**ras, encoding="raw"))


@kind("NRRD without a space", known=False, flags=("guessed-orientation", "no-patient-id"))
def nrrd_without_space(folder: Path) -> None:
    bare = {"space": None, "space directions": None, "space origin": None, "spacings": [3.2, 3.2, 5.0]}
    nrrd.write(str(folder / "head.nrrd"), head().hu.transpose(2, 1, 0), _nrrd_header(**bare))


@kind("NRRD with a detached data file", flags=("no-patient-id",))
def nrrd_detached(folder: Path) -> None:
    nrrd.write(str(folder / "head.nhdr"), head().hu.transpose(2, 1, 0), _nrrd_header(encoding="raw"))


@refused("NRRD whose data file lies elsewhere: ../../../etc/passwd", "damaged")
def nrrd_path_trick(folder: Path) -> None:
    text = "NRRD0004\ntype: short\ndimension: 3\nsizes: 72 72 30\nspacings: 3 3 5\nencoding: raw\nendian: little\n"
    (folder / "head.nhdr").write_text(text + "data file: ../../../../../../etc/passwd\n")


def _metaimage(path: Path, *, compressed: bool = False) -> None:
    scan = head()
    image = sitk.GetImageFromArray(scan.hu)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine()
    image.SetSpacing((3.2, 3.2, 5.0))
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, [2, 1, 0]] / [3.2, 3.2, 5.0]).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=compressed)


@kind("MetaImage in one file", flags=("no-patient-id",))
def mha(folder: Path) -> None:
    _metaimage(folder / "head.mha", compressed=True)


@kind("MetaImage with its voxels in a second file", flags=("no-patient-id",))
def mhd(folder: Path) -> None:
    _metaimage(folder / "head.mhd")


@kind("MetaImage whose header is reached by a link", flags=("no-patient-id",), rejected={"duplicate-file": 1})
def mhd_linked(folder: Path) -> None:
    (folder / "store").mkdir()
    _metaimage(folder / "store" / "head.mhd")
    (folder / "head.mhd").symlink_to(folder / "store" / "head.mhd")


@kind("two MetaImage headers of the same voxels", scans=2, flags=("no-patient-id",))
def mhd_twice(folder: Path) -> None:
    _metaimage(folder / "head.mhd")
    text = (folder / "head.mhd").read_text()
    (folder / "other.mhd").write_text(text.replace("BinaryData = True", "BinaryData = True\nComment = again"))


@kind("MetaImage that names its second file as ./head.raw", flags=("no-patient-id",))
def mhd_dot(folder: Path) -> None:
    _metaimage(folder / "head.mhd")
    text = (folder / "head.mhd").read_text()
    (folder / "head.mhd").write_text(text.replace("= head.raw", "= ./head.raw"))


@refused("MetaImage without its second file", "damaged")
def mhd_without_data(folder: Path) -> None:
    _metaimage(folder / "head.mhd")
    (folder / "head.raw").unlink()


@refused("the voxels of a MetaImage without their header", "unknown-format")
def raw_without_header(folder: Path) -> None:
    _metaimage(folder / "head.mhd")
    (folder / "head.mhd").unlink()
