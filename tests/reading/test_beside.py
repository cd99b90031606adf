"""What lies beside scans: masks of few classes, against pictures and densities; tables by their first line."""

from __future__ import annotations

import numpy as np
import pytest

from headct.reading.beside import classes_in, ours


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([0, 1, 1, 12], 3),
        ([0.0, 1.0, 2.0], 3),
        ([0, 255], 2),
        ([0, 0, 0], 0),  # an empty mask cannot be told from a volume of one value
        ([0.0, 0.5, 1.0], 0),
        ([1, 2, 3], 0),
        ([-1000, 0, 40], 0),
        ([0, 256], 0),
        ([0.0, np.nan, 1.0], 0),
        (range(256), 0),
    ],
)
def test_a_mask_has_a_few_whole_numbers_from_0_on(values, classes):
    assert classes_in(np.array(values).reshape(1, 1, -1)) == classes


@pytest.mark.parametrize(
    ("name", "head", "is_ours"),
    [
        ("in/labels.csv", b"scan_id,patient_id,ich\n", True),
        ("in/landmarks.csv", b"series_id,landmark,x_mm,y_mm,z_mm\n", True),
        ("in/masks/classes.csv", b"value,name\n", True),
        ("in/classes.npy", b"\x93NUMPY\x01\x00", True),
        ("in/mine.npy", b"\x93NUMPY\x01\x00", False),  # which may be meant as a scan
        ("in/notes.csv", b"who,what\n", False),
        ("in/classes.npy", b"text", False),
    ],
)
def test_tables_and_arrays_of_ours_are_told_by_what_they_hold(name, head, is_ours):
    assert bool(ours(name, head)) == is_ours
