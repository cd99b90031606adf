"""The ways in which DICOM stores pixels."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from openjpeg.utils import encode_array
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import (
    JPEG2000,
    MPEG4HP41,
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from headct.scan import Scan
from inputs.kinds import kind, refused
from inputs.series import all_tagged, head, images, stored, tagged, write


@kind("implicit VR little endian")
def implicit_little(folder: Path) -> None:
    write(images(), folder, syntax=ImplicitVRLittleEndian)


@kind("explicit VR big endian")
def explicit_big(folder: Path) -> None:
    write(images(), folder, syntax=ExplicitVRBigEndian)


@kind("deflated")
def deflated(folder: Path) -> None:
    write(images(), folder, syntax=DeflatedExplicitVRLittleEndian)


@kind("RLE")
def rle(folder: Path) -> None:
    write(images(), folder, syntax=RLELossless)


@kind("JPEG lossless, first-order prediction")
def jpeg_lossless(folder: Path) -> None:
    write(images(), folder, syntax=JPEGLosslessSV1)


@kind("JPEG lossless, process 14")
def jpeg_lossless_process_14(folder: Path) -> None:
    for path in write(images(), folder, syntax=JPEGLosslessSV1):
        file = dcmread(path)
        file.file_meta.TransferSyntaxUID = JPEGLossless  # which first-order prediction is a case of
        file.save_as(path, enforce_file_format=True)


@kind("JPEG-LS lossless")
def jpeg_ls(folder: Path) -> None:
    write(images(), folder, syntax=JPEGLSLossless)


@kind("JPEG 2000 lossless")
def jpeg_2000(folder: Path) -> None:
    write(images(), folder, syntax=JPEG2000Lossless)


@kind("JPEG-LS with an error of 2 HU", flags=("lossy",))
def jpeg_ls_lossy(folder: Path) -> None:
    for index, image in enumerate(images()):
        lossy = tagged(image)
        lossy.file_meta = FileMetaDataset()
        lossy.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        lossy.compress(JPEGLSNearLossless, jls_error=2, encoding_plugin="pyjpegls", generate_instance_uid=False)
        lossy.LossyImageCompression = "01"
        lossy.save_as(folder / f"{index}.dcm", enforce_file_format=True)


@kind("JPEG 2000 at a tenth of the size", known=False, flags=("lossy", "padding"))
def jpeg_2000_lossy(folder: Path) -> None:
    some = all_tagged(images(), LossyImageCompression="01", LossyImageCompressionRatio="10")
    _write_streams(some, folder, JPEG2000, lambda values: encode_array(
        values, photometric_interpretation=2, use_mct=False, compression_ratios=[10]))  # fmt: skip


def _write_streams(some: list[Dataset], folder: Path, syntax: UID, encode: Callable[[np.ndarray], bytes]) -> None:
    """Store images with pixel streams that an encoder makes of their stored values."""
    for image, path in zip(some, write(some, folder), strict=True):
        file = dcmread(path)
        file.file_meta.TransferSyntaxUID = syntax
        del file.PixelData
        file.add_new(Tag("PixelData"), "OB", encapsulate([encode(stored(image))]))
        file["PixelData"].is_undefined_length = True
        file.save_as(path, enforce_file_format=True)


@kind("high-throughput JPEG 2000", lacking="" if importlib.util.find_spec("imagecodecs") else "no encoder is installed")
def htj2k(folder: Path) -> None:
    import imagecodecs  # not needed for anything else

    _write_streams(images(), folder, HTJ2KLossless, partial(imagecodecs.htj2k_encode, reversible=True))


@kind(
    "JPEG extended with 12 bits",
    scans=0,
    rejected={"no-decoder": 30},
    lacking="" if importlib.util.find_spec("imagecodecs") else "no encoder is installed",
)
def jpeg_extended(folder: Path) -> None:
    import imagecodecs

    some = all_tagged(images(), LossyImageCompression="01", BitsStored=12, HighBit=11)
    _write_streams(some, folder, JPEGExtended12Bit, lambda values: imagecodecs.jpeg_encode(
        np.clip(values, 0, 4095).astype(np.uint16), level=95, bitspersample=12))  # fmt: skip


@refused("a transfer syntax nobody knows", "no-decoder", 30)
def unknown_syntax(folder: Path) -> None:
    _relabelled(folder, UID("1.2.3.4.5"))


@refused("slices as a video", "no-decoder", 30)
def video(folder: Path) -> None:
    _relabelled(folder, MPEG4HP41)


def _relabelled(folder: Path, syntax: UID) -> None:
    for path in write(images(), folder, syntax=JPEGLSLossless):
        file = dcmread(path)
        file.file_meta.TransferSyntaxUID = syntax
        file.save_as(path, enforce_file_format=True)


@kind("one JPEG 2000 stream is garbage", flags=("file-dropped", "gap-filled", "uneven"), rejected={"damaged": 1})
def broken_stream(folder: Path) -> None:
    paths = write(images(), folder, syntax=JPEG2000Lossless)
    file = dcmread(paths[14])
    file.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(range(256)) * 8])
    file["PixelData"].is_undefined_length = True
    file.save_as(paths[14], enforce_file_format=True)


@kind("one stream is that of a larger image", flags=("file-dropped", "gap-filled", "uneven"), rejected={"damaged": 1})
def stream_of_other_size(folder: Path) -> None:
    paths = write(images(), folder, syntax=JPEG2000Lossless)
    file = dcmread(paths[14])
    large = np.zeros((512, 512), dtype=np.int16)
    file.PixelData = encapsulate([encode_array(large, photometric_interpretation=2, use_mct=False)])
    file["PixelData"].is_undefined_length = True
    file.save_as(paths[14], enforce_file_format=True)


@kind("enhanced multi-frame CT, one file")
def enhanced(folder: Path) -> None:
    enhanced_of(head()).save_as(folder / "enhanced.dcm", enforce_file_format=True)


@kind("enhanced multi-frame CT, tilted and uneven, frames in another order", flags=("tilt", "uneven"))
def enhanced_tilted(folder: Path) -> None:
    scan = head(positions_mm=(*range(-63, 0, 3), *range(0, 78, 7)), thickness_mm=3.0, tilt_deg=17.0)
    order = np.random.default_rng(0).permutation(len(scan.hu))
    enhanced_of(scan, order).save_as(folder / "enhanced.dcm", enforce_file_format=True)


@refused("an enhanced perfusion map", "derived-map")
def enhanced_map(folder: Path) -> None:
    image = enhanced_of(head())
    image.ImageType = ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]
    image.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0].FrameType = image.ImageType
    image.save_as(folder / "map.dcm", enforce_file_format=True)


def enhanced_of(scan: Scan, order: np.ndarray | None = None) -> Dataset:
    """A scan as one Enhanced CT image (PS3.3 A.38), its frames in the given order of slices."""
    singles = images(scan)
    singles = singles if order is None else [singles[index] for index in order]
    first, pixels = singles[0], b"".join(image.PixelData for image in singles)
    own = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "InstanceNumber",
           "RescaleIntercept", "RescaleSlope", "RescaleType", "WindowCenter", "WindowWidth", "GantryDetectorTilt",
           "KVP", "ConvolutionKernel", "PixelData")  # fmt: skip
    image = tagged(first, **dict.fromkeys(own))
    image.SOPClassUID, image.InstanceNumber, image.NumberOfFrames = EnhancedCTImageStorage, 1, len(singles)
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image.SharedFunctionalGroupsSequence = [_shared_groups(first)]
    image.PerFrameFunctionalGroupsSequence = [_frame_groups(single, number) for number, single in enumerate(singles, 1)]
    image.add_new(Tag("PixelData"), "OW", pixels)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def _group(**content: object) -> list[Dataset]:
    """A functional group: a sequence of one item with the given attributes."""
    return [tagged(Dataset(), **content)]


def _shared_groups(first: Dataset) -> Dataset:
    return tagged(
        Dataset(),
        PixelMeasuresSequence=_group(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness),
        PlaneOrientationSequence=_group(ImageOrientationPatient=first.ImageOrientationPatient),
        PixelValueTransformationSequence=_group(
            RescaleIntercept=first.RescaleIntercept, RescaleSlope=1, RescaleType="HU"
        ),
        CTImageFrameTypeSequence=_group(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]),
        CTXRayDetailsSequence=_group(KVP=120),
        CTReconstructionSequence=_group(ConvolutionKernel="H31s"),
    )


def _frame_groups(single: Dataset, number: int) -> Dataset:
    return tagged(
        Dataset(),
        PlanePositionSequence=_group(ImagePositionPatient=single.ImagePositionPatient),
        FrameContentSequence=_group(StackID="1", InStackPositionNumber=number, DimensionIndexValues=[1, number]),
    )
