"""Files that lie beside scans and are none: maps of classes, and the tables and arrays that headct itself writes.

Whoever ingests a folder that headct wrote (`simulate`, `segment predict`) finds them there. That they are no scans is
no fault of theirs, so they have a reason of their own, told by what they hold.
"""

from __future__ import annotations

import numpy as np

FIRST_COLUMNS = (b"scan_id,", b"series_id,landmark,", b"value,name")
"""By which our tables begin: labels, volumes and splits; landmarks; classes."""
ARRAYS = ("classes.npy", "deformation.npy")
"""What headct writes where gaps between slices differ, which NIfTI cannot say."""
MOST_CLASSES = 32
"""Different values of a mask; a picture of 8 bits has hundreds."""
LARGEST_CLASS = 255


def ours(name: str, head: bytes) -> str:
    """What a file of this name and beginning is, in words; empty where it is none of ours."""
    if head.startswith(FIRST_COLUMNS):
        return "a table about scans, as headct writes it"
    if name.rpartition("/")[2] in ARRAYS and head.startswith(b"\x93NUMPY"):
        return "an array about a scan, as headct writes it"
    return ""


def classes_in(values: np.ndarray) -> int:
    """How many classes a volume holds that is a mask: a few whole numbers from 0 on. 0 where it is none."""
    low, high = values.min(), values.max()
    if low != 0 or not 0 < high <= LARGEST_CLASS:  # NaN is neither
        return 0
    counted = np.bincount(values.astype(np.uint8).reshape(-1))
    if values.dtype.kind == "f" and not (values == np.floor(values)).all():
        return 0
    number = int((counted > 0).sum())
    return number if number <= MOST_CLASSES else 0
