"""What lies beside scans: masks of few classes, against pictures and densities; tables by their first line."""

from __future__ import annotations

import numpy as np
import pytest

from headct.reading.beside import mask_in, ours


@pytest.mark.parametrize(
    ("values", "is_mask"),
    [
        ([0, 1, 1, 12], True),
        ([0.0, 1.0, 2.0], True),
        ([0, 255], True),
        (range(119), True),  # every organ, and what is none
        ([0, 0, 0], False),  # nothing says that it is no volume of one density
        ([], False),
        ([0.0, 0.5, 1.0], False),
        ([1, 2, 3], False),
        ([-1000, 0, 40], False),
        ([0, 256], False),
        ([0.0, np.nan, 1.0], False),
        (range(256), False),
    ],
)
def test_a_mask_has_a_few_whole_numbers_from_0_on(values, is_mask):
    assert bool(mask_in(np.array(values).reshape(1, 1, -1))) == is_mask


def test_a_mask_in_bytes_may_be_empty():
    assert "without" in mask_in(np.zeros((2, 2, 2), np.uint8))


@pytest.mark.parametrize(
    ("name", "head", "is_ours"),
    [
        ("in/labels.csv", b"scan_id,patient_id,ich\n", True),
        ("in/landmarks.csv", b"series_id,landmark,x_mm,y_mm,z_mm\n", True),
        ("in/masks/classes.csv", b"value,name\n", True),
        ("in/rejections.csv", b"code,sentence,remedy,files\n", True),
        ("in/simulated.json", b'{\n  "simulated": {\n    "simulation": {', True),
        ("in/classes.npy", b"\x93NUMPY\x01\x00", True),
        ("in/mine.npy", b"\x93NUMPY\x01\x00", False),  # which may be meant as a scan
        ("in/notes.csv", b"who,what\n", False),
        ("in/classes.npy", b"text", False),
    ],
)
def test_tables_and_arrays_of_ours_are_told_by_what_they_hold(name, head, is_ours):
    assert bool(ours(name, head)) == is_ours
