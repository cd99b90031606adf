"""Where slices lie: tilt, gaps, doubled and missing slices, several volumes under one series."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from headct.scan import Scan
from inputs.kinds import kind, refused
from inputs.series import all_tagged, head, images, renamed, tagged, write


@kind("an upright head, 30 slices of 5 mm")
def upright(folder: Path) -> None:
    write(images(), folder)


@kind("gantry tilted by +20 degrees", flags=("tilt",))
def tilt_forwards(folder: Path) -> None:
    write(images(head(tilt_deg=20.0)), folder)


@kind("gantry tilted by -15 degrees", flags=("tilt",))
def tilt_backwards(folder: Path) -> None:
    write(images(head(tilt_deg=-15.0)), folder)


@kind("tilted by 18 degrees, tag with the other vendors' sign", flags=("tilt",))
def tilt_tag_other_sign(folder: Path) -> None:
    write(all_tagged(images(head(tilt_deg=18.0)), GantryDetectorTilt="-18"), folder)


@kind("tilted by 18 degrees, no tilt tag", flags=("tilt",))
def tilt_without_tag(folder: Path) -> None:
    write(all_tagged(images(head(tilt_deg=18.0)), GantryDetectorTilt=None), folder)


@kind("a tilt tag of 20 degrees on an upright series")
def tilt_only_in_tag(folder: Path) -> None:
    write(all_tagged(images(), GantryDetectorTilt="20"), folder)


@kind("slices every 3 mm below, every 7 mm above", flags=("uneven",))
def uneven(folder: Path) -> None:
    positions = (*range(-63, 0, 3), *range(0, 78, 7))
    write(images(head(positions_mm=positions, thickness_mm=3.0)), folder)


@kind("4 mm slices of the base and 7 mm slices above, one series, tilted", flags=("mixed-thickness", "tilt", "uneven"))
def stack_4_and_7_mm(folder: Path) -> None:
    lower = head(positions_mm=tuple(range(-60, -4, 4)), thickness_mm=4.0, tilt_deg=18.5)
    upper = head(positions_mm=tuple(range(-2, 76, 7)), thickness_mm=7.0, tilt_deg=18.5)
    first, second = images(lower), images(upper)
    same = {"SeriesInstanceUID": first[0].SeriesInstanceUID}
    write([*first, *all_tagged(second, **same)], folder)


@kind("rounding of positions by 0.01 mm")
def jittered_positions(folder: Path) -> None:
    scan = head()
    jitter = np.random.default_rng(0).uniform(-0.01, 0.01, scan.origins_mm.shape)
    write(images(replace(scan, origins_mm=scan.origins_mm + jitter)), folder)


@kind("overlapping slices: 5 mm thick, 2.5 mm apart")
def overlapping(folder: Path) -> None:
    write(images(head(gap_mm=2.5, slices=60, thickness_mm=5.0)), folder)


@kind("one slice is missing", flags=("gap-filled", "uneven"))
def missing_one(folder: Path) -> None:
    write([image for index, image in enumerate(images()) if index != 14], folder)


@refused("six neighbouring slices are missing", "missing-slices", 24)
def missing_many(folder: Path) -> None:
    write([image for index, image in enumerate(images()) if not 12 <= index < 18], folder)


@refused("eight slices are missing, here and there", "missing-slices", 22)
def missing_everywhere(folder: Path) -> None:
    write([image for index, image in enumerate(images()) if index not in (1, 4, 8, 11, 15, 18, 22, 25)], folder)


@refused("two of three gaps lack a slice", "missing-slices", 18)
def missing_two_of_five(folder: Path) -> None:
    write([image for index, image in enumerate(images()) if index % 5 not in (1, 3)], folder)


@kind("5 mm slices every 10 mm, an old protocol", flags=("skipped-tissue",))
def interspaced(folder: Path) -> None:
    write(images(head(gap_mm=10.0, slices=15, thickness_mm=5.0)), folder)


@refused("every third slice is missing", "missing-slices", 20)
def missing_every_third(folder: Path) -> None:
    write([image for index, image in enumerate(images()) if index % 3 != 2], folder)


@kind("a second, different image at one position", flags=("duplicate-dropped",), rejected={"duplicate-slice": 1})
def duplicate_slice(folder: Path) -> None:
    again = renamed(images(head(noise_hu=3.0))[9:10], SeriesInstanceUID=images()[0].SeriesInstanceUID)
    write([*images(), *again], folder)


@kind("each file twice, byte for byte", rejected={"duplicate-file": 30})
def identical_copies(folder: Path) -> None:
    write(images(), folder / "a")
    write(images(), folder / "b")


@kind("two time points under one series UID", scans=2)
def two_time_points(folder: Path) -> None:
    first = all_tagged(images(), AcquisitionNumber=1, AcquisitionTime="101010")
    second = images(head(noise_hu=3.0))
    same = {"SeriesInstanceUID": first[0].SeriesInstanceUID, "AcquisitionNumber": 2, "AcquisitionTime": "101510"}
    write([*first, *all_tagged(second, **same)], folder)


@kind("two patients under one study and series UID", scans=2)
def two_patients(folder: Path) -> None:
    first = images()
    same = {"StudyInstanceUID": first[0].StudyInstanceUID, "SeriesInstanceUID": first[0].SeriesInstanceUID}
    write([*first, *all_tagged(images(head(noise_hu=3.0)), PatientID="phantom-1", **same)], folder)


def _second_pass(up_mm: float = 0.0, **header: Any) -> list[Dataset]:
    """The head imaged again somewhat higher, under the series UID of `images()`."""
    again = images(head(noise_hu=3.0, centre_mm=(0.0, -6.0, 12.0 + up_mm)))
    return all_tagged(again, SeriesInstanceUID=images()[0].SeriesInstanceUID, **header)


@kind("two acquisitions under one series UID, 0.3 mm apart", scans=2)
def two_acquisitions_nearly_at_one_place(folder: Path) -> None:
    write([*all_tagged(images(), AcquisitionNumber=1), *_second_pass(0.3, AcquisitionNumber=2)], folder)


@kind("two acquisitions under one series UID, half a gap apart", scans=2)
def two_acquisitions_interleaved(folder: Path) -> None:
    write([*all_tagged(images(), AcquisitionNumber=1), *_second_pass(2.5, AcquisitionNumber=2)], folder)


@kind("two passes under one series UID that only their folders tell apart", scans=2)
def two_passes_in_folders(folder: Path) -> None:
    write(images(), folder / "a")
    write(_second_pass(), folder / "b")


@refused("two passes under one series UID that nothing tells apart", "same-position", 60)
def two_passes_mixed(folder: Path) -> None:
    write([*images(), *_second_pass()], folder)


@kind("axial and coronal slices under one series UID", scans=2)
def two_orientations(folder: Path) -> None:
    axial = images()
    coronal = images(head(plane="coronal", slices=34, gap_mm=6.0))
    write([*axial, *all_tagged(coronal, SeriesInstanceUID=axial[0].SeriesInstanceUID)], folder)


@kind("a soft and a bone kernel under one series UID", scans=2)
def two_kernels(folder: Path) -> None:
    soft = images(head(blur_mm=1.0))
    bone = images(head(noise_hu=12.0))
    same = {"SeriesInstanceUID": soft[0].SeriesInstanceUID, "ConvolutionKernel": "H70h"}
    write([*soft, *all_tagged(bone, **same)], folder)


@kind("a soft and a bone kernel as two series", scans=2)
def two_series(folder: Path) -> None:
    write(images(head(blur_mm=1.0)), folder / "2")
    write(all_tagged(images(head(noise_hu=12.0)), ConvolutionKernel="H70h", SeriesNumber=3), folder / "3")


@kind("the localizer lies in the series", rejected={"localizer": 1})
def localizer_inside(folder: Path) -> None:
    side = images(head(plane="sagittal", slices=1, thickness_mm=160.0))
    inside = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": images()[0].SeriesInstanceUID}
    write([*images(), *all_tagged(side, **inside)], folder)


_UNSTATED = dict.fromkeys(("KVP", "ConvolutionKernel", "SliceThickness", "ImageType", "FrameOfReferenceUID"))


@kind("one slice states neither kernel, voltage, thickness, image type nor frame of reference")
def silent_slice(folder: Path) -> None:
    some = images()
    write([*some[:14], tagged(some[14], **_UNSTATED), *some[15:]], folder)


@kind("one slice has another image type and frame of reference")
def odd_slice(folder: Path) -> None:
    some = images()
    other = {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "SEQ"], "FrameOfReferenceUID": "1.2.3"}
    write([*some[:14], tagged(some[14], **other), *some[15:]], folder)


@kind("one slice was taken with another voltage", flags=("mixed-settings",))
def slice_of_another_voltage(folder: Path) -> None:
    some = images()
    write([*some[:14], tagged(some[14], KVP="140"), *some[15:]], folder)


@kind("file names and instance numbers in random order, names without extension")
def shuffled(folder: Path) -> None:
    order = np.random.default_rng(0).permutation(30)
    some = [tagged(image, InstanceNumber=int(number)) for image, number in zip(images(), order, strict=True)]
    write(some, folder, names=[f"I{10 * number}" for number in np.random.default_rng(1).permutation(30)])


@kind("one slice lies 120 mm beside the others", flags=("file-dropped", "gap-filled", "uneven"),
      rejected={"no-geometry": 1})  # fmt: skip
def slice_astray(folder: Path) -> None:
    some = images()
    x, y, z = some[14].ImagePositionPatient
    write([*some[:14], tagged(some[14], ImagePositionPatient=[x + 120, y, z]), *some[15:]], folder)


@kind("the vertex was reconstructed around another centre")
def recentred(folder: Path) -> None:
    scan, aside = head(), 10
    hu, origins = scan.hu.copy(), scan.origins_mm.copy()
    hu[18:], origins[18:] = np.roll(hu[18:], -aside, axis=2), origins[18:] + aside * scan.col_step_mm
    write(images(replace(scan, hu=hu, origins_mm=origins)), folder)


@kind("one slice has another matrix", flags=("gap-filled", "uneven"), rejected={"too-few-slices": 1})
def other_matrix(folder: Path) -> None:
    scan = head()
    (small,) = images(replace(scan, hu=scan.hu[12:13, ::2, ::2].copy(), origins_mm=scan.origins_mm[12:13],
                              row_step_mm=scan.row_step_mm * 2, col_step_mm=scan.col_step_mm * 2))  # fmt: skip
    some = images()
    some[12] = tagged(small, SeriesInstanceUID=some[0].SeriesInstanceUID)
    write(some, folder)


def _turned(scan: Scan, signs: tuple[int, int, int]) -> Scan:
    """The same head with rows, columns and slices stored from their other ends."""
    down, right, up = signs
    origins = scan.origins_mm[::up]
    if down < 0:
        origins = origins + scan.row_step_mm * (scan.hu.shape[1] - 1)
    if right < 0:
        origins = origins + scan.col_step_mm * (scan.hu.shape[2] - 1)
    return replace(scan, hu=scan.hu[::up, ::down, ::right].copy(), origins_mm=origins,
                   row_step_mm=scan.row_step_mm * down, col_step_mm=scan.col_step_mm * right)  # fmt: skip


@kind("the patient lay prone")
def prone(folder: Path) -> None:
    write(all_tagged(images(_turned(head(), (-1, -1, 1))), PatientPosition="HFP"), folder)


@kind("the patient lay feet first")
def feet_first(folder: Path) -> None:
    write(all_tagged(images(_turned(head(), (1, -1, -1))), PatientPosition="FFS"), folder)


@kind("coronal slices only")
def coronal(folder: Path) -> None:
    write(images(head(plane="coronal", slices=36, gap_mm=6.0)), folder)


@refused("one slice", "too-few-slices")
def single_slice(folder: Path) -> None:
    write(images()[14:15], folder)


@refused("one position imaged eight times (bolus tracking)", "same-position", 8)
def same_position(folder: Path) -> None:
    image = images()[14]
    write([renamed([image], AcquisitionNumber=n, InstanceNumber=n)[0] for n in range(1, 9)], folder)


@kind("Slice Thickness says 1.25 mm, Spacing Between Slices -3 mm; slices are 5 mm apart", flags=("skipped-tissue",),
      known=False)  # fmt: skip
def lying_spacing(folder: Path) -> None:
    write(all_tagged(images(), SliceThickness="1.25", SpacingBetweenSlices="-3"), folder)


@kind("no Slice Thickness")
def no_thickness(folder: Path) -> None:
    write(all_tagged(images(), SliceThickness=None), folder)


@refused("no Image Orientation", "no-geometry", 30)
def no_orientation(folder: Path) -> None:
    write(all_tagged(images(), ImageOrientationPatient=None), folder)


@refused("no Image Position", "no-geometry", 30)
def no_position(folder: Path) -> None:
    write(all_tagged(images(), ImagePositionPatient=None), folder)


@refused("Pixel Spacing is zero", "no-geometry", 30)
def zero_pixel_spacing(folder: Path) -> None:
    write(all_tagged(images(), PixelSpacing=["0", "0"]), folder)


@refused("rows and columns point the same way", "no-geometry", 30)
def parallel_orientation(folder: Path) -> None:
    write(all_tagged(images(), ImageOrientationPatient=["1", "0", "0", "1", "0", "0"]), folder)


@kind("one position is not a number", flags=("gap-filled", "uneven"), rejected={"no-geometry": 1})
def position_not_a_number(folder: Path) -> None:
    paths = write(images(), folder)
    _overwrite(paths[14], "ImagePositionPatient", b"nan\\nan\\nan")


@kind("one position with a decimal comma", flags=("gap-filled", "uneven"), rejected={"no-geometry": 1})
def position_with_comma(folder: Path) -> None:
    paths = write(images(), folder)
    _overwrite(paths[14], "ImagePositionPatient", b"-12,5\\-12,5\\3,5")


def _overwrite(path: Path, keyword: str, value: bytes) -> None:
    """Replace a text element of a file by bytes that pydicom would not write, padded to the old length."""
    element = dcmread(path)[keyword]
    old = "\\".join(str(part) for part in element.value).encode()
    content = path.read_bytes()
    if content.count(old) != 1 or len(value) > len(old):
        raise ValueError(f"{keyword} of {path} cannot be overwritten by {value!r}")
    path.write_bytes(content.replace(old, value.ljust(len(old))))
