"""Oracle: painted blocks, whose place is known; scores that are counted by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headct import encoders
from headct.checkpoints import Card, load, save
from headct.detection import Detector
from headct.detection.linear import FittedLinear
from headct.detection.ood import Familiar
from headct.detection.reasons import Met
from headct.detection.scaling import Scaling
from headct.embedding.machine import choose
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS
from headct.tasks.explanation.evening import evened_slab
from headct.tasks.explanation.judging import can_look
from headct.tasks.explanation.slabs import driving_slices

MACHINE = choose("fp32", "cpu")
SHAPE, SPACING_MM = (32, 32, 32), (4.0, 4.0, 4.0)


@dataclass(frozen=True)
class Bright:
    """A finding whose score is the number of voxels between 55 and 100 HU."""

    def scores(self, scans, rows):
        arrays = scans.arrays(rows)
        return ((arrays > 55) & (arrays < 100)).sum(axis=(1, 2, 3), dtype=float)[:, None] / 100

    findings = ("iph",)
    method = "full"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("slices") / "model"
    save(folder, encoders.build("conv-tiny"), Card(recipe=recipes["head"], windows=WINDOWS))
    encoder = load(folder)
    vectors = np.random.default_rng(0).normal(size=(20, encoder.scan_width))
    linear = FittedLinear(("iph",), Scaling.of(vectors), np.zeros((1, encoder.scan_width)), np.zeros(1), {})
    return Detector(encoder, linear, (), ({},), Familiar.of(vectors, vectors, 0), Met(None, (), False, (), None))


def head(bleeding: slice) -> np.ndarray:
    """Brain of 30 HU in a skull, with a bleeding of 70 HU in some slices, and air above."""
    hu = np.full(SHAPE, 30, dtype=np.int16)
    hu[:2] = hu[-2:] = 1200
    hu[12:20, 12:20, bleeding] = 70
    hu[:, :, 28:] = -1000
    return hu


def test_the_slices_of_the_bleeding_drive_the_answer(detector: Detector) -> None:
    seen = driving_slices(replace(detector, fitted=Bright()), head(slice(8, 14)), SPACING_MM, MACHINE)["iph"]
    assert [8 <= one.index < 14 for one in seen] == [True] * len(seen)
    assert sum(one.weight for one in seen) == pytest.approx(1)  # three slabs of two slices, and nothing else


def test_where_nothing_lowers_the_score_no_slice_is_named(detector: Detector) -> None:
    assert driving_slices(detector, head(slice(8, 14)), SPACING_MM, MACHINE) == {"iph": []}  # weights of zero
    air = np.full(SHAPE, -1000, dtype=np.int16)
    assert driving_slices(replace(detector, fitted=Bright()), air, SPACING_MM, MACHINE) == {"iph": []}


def test_evening_out_takes_soft_tissue_and_keeps_the_rest() -> None:
    before = head(slice(8, 14))
    before[0, 5, 10] = 700  # a hole in the skull
    kept = before.copy()
    after = evened_slab(before, slice(10, 12))
    np.testing.assert_array_equal(before, kept)
    np.testing.assert_array_equal(after[:, :, :10], before[:, :, :10])
    np.testing.assert_array_equal(after[:, :, 12:], before[:, :, 12:])
    assert set(np.unique(after[:, :, 10:12])) == {30, 1200}


def test_published_recipes_have_no_slices_in_hu(detector: Detector, tmp_path: Path) -> None:
    assert can_look(detector)
    save(tmp_path / "m", encoders.build("conv-tiny", channels=3), Card(recipe=recipes["fm-hct"], windows={}))
    assert not can_look(replace(detector, encoder=load(tmp_path / "m")))
