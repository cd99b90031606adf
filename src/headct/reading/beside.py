"""Files that lie beside scans and are none: maps of classes, and the tables and arrays that headct itself writes.

Whoever ingests a folder that headct wrote (`simulate`, `segment predict`) finds them there. That they are no scans is
no fault of theirs, so they have a reason of their own, told by what they hold.
"""

from __future__ import annotations

import numpy as np

FIRST_COLUMNS = (b"scan_id,", b"series_id,landmark,", b"value,name", b"code,sentence,remedy,files")
"""By which our tables begin: labels, volumes and splits; landmarks; classes; rejections."""
TERMS = b'{\n  "simulated": {'
"""By which `simulated.json` begins: which virtual patients lie beside it."""
ARRAYS = ("classes.npy", "deformation.npy")
"""What headct writes where gaps between slices differ, which NIfTI cannot say."""
DEFORMATION = "deformation.nii.gz"
"""Three numbers a voxel, so that it could be no scan either way."""
MOST_CLASSES = 128
"""Different values of a mask, which may name every organ; a picture of 8 bits has nearly all 256."""
LARGEST_CLASS = 255


def ours(name: str, head: bytes) -> str:
    """What a file of this name and beginning is, in words; empty where it is none of ours."""
    if head.startswith(FIRST_COLUMNS):
        return "a table about scans"
    if head.startswith(TERMS):
        return "what headct simulate was asked for"
    if name.rpartition("/")[2] in ARRAYS and head.startswith(b"\x93NUMPY"):
        return "an array about a scan, as headct writes it"
    if name.rpartition("/")[2] == DEFORMATION and head.startswith(b"\x1f\x8b"):
        return "template coordinates of a scan, as headct writes them"
    return ""


def mask_in(values: np.ndarray) -> str:
    """What a volume is that is a mask, a few whole numbers from 0 on, in words; empty where it is none."""
    if not values.size or values.min() != 0 or not values.max() <= LARGEST_CLASS:  # NaN is neither
        return ""
    if values.dtype.kind == "f" and not (values == np.floor(values)).all():
        return ""
    number = np.count_nonzero(np.bincount(values.astype(np.uint8).reshape(-1)))
    if number == 1:  # all zeros: bytes are no way to write densities
        return "a mask without a voxel drawn" if values.dtype == np.uint8 else ""
    return f"a mask: {number} different whole numbers from 0 on" if number <= MOST_CLASSES else ""
