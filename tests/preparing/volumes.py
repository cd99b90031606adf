"""Scans from volumes with one matrix, as NIfTI files hold them, and the same scans stored in another order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom

from headct.scan import Scan


def scan_of(volume: np.ndarray, affine: np.ndarray) -> Scan:
    """A volume (I, J, K) with its affine to RAS mm: slices along K, rows along J, columns along I."""
    affine = np.asarray(affine, dtype=np.float64)
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    gap = abs(affine[:3, 2] @ normal) / np.linalg.norm(normal)
    return Scan(
        hu=np.ascontiguousarray(volume.transpose(2, 1, 0), dtype=np.int16),
        origins_mm=affine[:3, 3] + np.arange(volume.shape[2])[:, None] * affine[:3, 2],
        row_step_mm=affine[:3, 1],
        col_step_mm=affine[:3, 0],
        thickness_mm=float(gap),
    )


def flipped(scan: Scan, *, slices: bool, rows: bool, cols: bool) -> Scan:
    """The same scan with axes stored backwards."""
    if rows:
        last = scan.origins_mm + (scan.hu.shape[1] - 1) * scan.row_step_mm
        scan = replace(scan, hu=scan.hu[:, ::-1], origins_mm=last, row_step_mm=-scan.row_step_mm)
    if cols:
        last = scan.origins_mm + (scan.hu.shape[2] - 1) * scan.col_step_mm
        scan = replace(scan, hu=scan.hu[:, :, ::-1], origins_mm=last, col_step_mm=-scan.col_step_mm)
    if slices:
        scan = replace(scan, hu=scan.hu[::-1], origins_mm=scan.origins_mm[::-1])
    return replace(scan, hu=np.ascontiguousarray(scan.hu))


def permuted(scan: Scan, order: tuple[int, int, int]) -> Scan:
    """The same evenly spaced scan with its axes (slices, rows, cols) stored in another order."""
    affine = scan.affine()[:, [*order, 3]]  # columns in the new order of (slices, rows, cols)
    return scan_of(scan.hu.transpose(order).transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])


def part(scan: Scan, first: int, last: int) -> Scan:
    """Only these slices."""
    return replace(scan, hu=scan.hu[first:last], origins_mm=scan.origins_mm[first:last])


def scan_of_dicom(folder: Path) -> Scan:
    """One plain CT series whose stored values need no repair but air for padding; not how the product reads files."""
    images = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    to_ras = np.array([-1.0, -1.0, 1.0])
    along_row, along_col = np.array(images[0].ImageOrientationPatient, dtype=float).reshape(2, 3) * to_ras
    normal = np.cross(along_row, along_col)
    images.sort(key=lambda image: np.array(image.ImagePositionPatient, dtype=float) * to_ras @ normal)
    slope, intercept = float(images[0].RescaleSlope), float(images[0].RescaleIntercept)
    hu = np.stack([image.pixel_array * slope + intercept for image in images])
    row_mm, col_mm = (float(mm) for mm in images[0].PixelSpacing)
    return Scan(
        hu=np.rint(np.where(hu < -1024, -1000, hu)).astype(np.int16),
        origins_mm=np.array([np.array(image.ImagePositionPatient, dtype=float) * to_ras for image in images]),
        row_step_mm=along_col * row_mm,
        col_step_mm=along_row * col_mm,
        thickness_mm=float(images[0].get("SliceThickness", np.nan)),
    )
