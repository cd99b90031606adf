"""A virtual patient's study as a hospital's archive would send it: tags, padding, extra series and all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from headct.scan import Scan
from headct.virtual import clutter
from headct.virtual.acquisition import Acquisition, take
from headct.virtual.simulated import Simulated
from headct.virtual.sites import SITES
from headct.virtual.streams import stream
from headct.writing.dicom import TRANSFER_SYNTAXES, images_of, save

HEAD_SERIES = "series-1"
"""The folder of the head's images; others of the study lie beside it."""

PROFILES = ("quirks", "clean")
"""With each vendor's padding, transfer syntax and extra series; or nothing but conforming images."""


def write_study(simulated: Simulated, folder: Path, profile: str) -> None:
    """Write one scan as DICOM series into `folder`, with a segmentation where there is a finding to mark.

    `series-1` is the head; with quirks there may be a second kernel, a localizer and a dose page beside it.
    Raises ValueError for another profile.
    """
    if profile not in PROFILES:
        raise ValueError(f"a profile is one of {', '.join(PROFILES)}, got {profile!r}")
    from headct.writing.segmentation import SEGMENTS, write_segmentation  # needs highdicom, which cohorts do without

    quirks = profile == "quirks"
    paths = write_series(simulated, simulated.scan, folder / HEAD_SERIES, quirks=quirks)
    masks = {name: mask for name, mask in simulated.masks.items() if name in SEGMENTS and mask.any()}
    if masks:
        write_segmentation(masks, paths, folder / "segmentation.dcm", description="virtual truth")
    if quirks:
        _write_extras(simulated, folder)


def write_series(
    simulated: Simulated,
    scan: Scan,
    folder: Path,
    *,
    description: str = "HEAD ROUTINE",
    number: int = 2,
    quirks: bool = True,
) -> list[Path]:
    """Write a scan as the scanner of `simulated` stores it, 0001.dcm and on; gives the paths in the scan's order."""
    protocol = simulated.visit.protocol
    padded = quirks and protocol.padding_hu is not None
    intercept = protocol.intercept_hu if quirks else -1024
    if padded:
        scan = _padded(scan, int(protocol.padding_hu or 0))
    images = images_of(scan, intercept_hu=intercept, description=description, series_number=number)
    syntax = TRANSFER_SYNTAXES[protocol.transfer_syntax if quirks else "explicit-little"]
    thickness_mm = simulated.visit.slices_mm[1]
    each_mm = thickness_mm if len(thickness_mm) == len(images) else [scan.thickness_mm] * len(images)
    paths = []
    for index, (image, image_mm) in enumerate(zip(images, each_mm, strict=True), start=1):
        image.SliceThickness = f"{image_mm:g}"  # of each image its own, as consoles write it
        if padded:
            image.PixelPaddingValue = int(protocol.padding_hu or 0) - intercept
        _describe(image, simulated)
        path = folder / f"{index:04d}.dcm"
        save(image, path, syntax)
        paths.append(path)
    return paths


def _padded(scan: Scan, padding_hu: int) -> Scan:
    """The scan with a fill beyond the circle of reconstruction, as some vendors store it."""
    axis = np.linspace(-1, 1, scan.hu.shape[1])
    outside = axis[:, None] ** 2 + axis**2 > 1
    return replace(scan, hu=np.where(outside, np.int16(padding_hu), scan.hu))


def _describe(image: Dataset, simulated: Simulated) -> None:
    """What consoles write about the examination; the same for every patient of a protocol, so that it tells nothing."""
    image.BodyPartExamined = "HEAD"
    del image.Laterality  # has no place beside a body part that is not paired
    image.StudyDescription = "CT HEAD WITHOUT CONTRAST"
    image.ProtocolName = f"HEAD {simulated.visit.protocol.thickness_mm:g} MM"


def _write_extras(simulated: Simulated, folder: Path) -> None:
    """A second series, a localizer and a dose page, as often as this site has them; a twin's visit has the same."""
    visit = simulated.visit
    site, rng = SITES[visit.site], stream(simulated.patient.seed, f"archive/{visit.site}/{visit.noise_seed}")
    localizer, capture, copy = rng.uniform(0, 1, 3)
    if copy < site.thin_copy:
        scan = take(simulated.patient, sharper(visit)).scan
        header = replace(simulated.header("bone"), kernel=visit.protocol.bone_kernel)
        write_series(simulated, replace(scan, header=header), folder / "series-2", description="HEAD BONE", number=3)
    if localizer < site.localizer:
        clutter.write_localizer(side_view(simulated), folder / "localizer")
    if capture < site.capture:
        clutter.write_capture(folder / "dose.dcm", study_id=simulated.study_id, patient_id=simulated.patient_id)


def sharper(visit: Acquisition) -> Acquisition:
    """The same measurements with a kernel for bone: finer detail and finer, stronger noise."""
    return replace(
        visit,
        blur_mm=0.6 * visit.blur_mm,
        sharpening=visit.sharpening + 0.5,
        noise_blur_mm=0.0,
        noise_hu=2.2 * visit.noise_hu,
    )


def side_view(simulated: Simulated) -> Scan:
    """The scan summed from side to side, in one thick sagittal slice."""
    scan = simulated.scan
    view = scan.hu.astype(np.float32).mean(axis=2)  # (slices, rows)
    rows_mm = float(np.median(scan.gaps_mm))
    size = int(scan.hu.shape[1])
    repeats = max(1, round(rows_mm / scan.pixel_mm[0]))
    tall = np.repeat(view[::-1], repeats, axis=0)[: 2 * size]
    return Scan(
        hu=tall[None].astype(np.int16),
        origins_mm=np.array([[0.0, scan.origins_mm[-1, 1], scan.origins_mm[-1, 2]]]),
        row_step_mm=np.array([0.0, 0.0, -scan.pixel_mm[0]]),
        col_step_mm=np.array([0.0, -scan.pixel_mm[0], 0.0]),
        thickness_mm=160.0,
        header=simulated.header("localizer"),
    )
