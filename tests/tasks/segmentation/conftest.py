"""A segmenter that was trained once, for all files of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tasks.segmentation import drawn

from headct.cohort import Cohort
from headct.embedding.machine import choose
from headct.tasks.segmentation import fit, gathered


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cohort` of 8 patients with masks, `other` of 5 that nobody has learned from, `model`, and `segmenter`."""
    folder = tmp_path_factory.mktemp("segmentation")
    cohort = drawn.make(folder / "cohort", 8)
    drawn.make(folder / "other", 5, seed=3)
    encoder = drawn.model(folder / "model")
    fit(gathered([cohort], [], ""), encoder, choose("fp32", "cpu"), drawn.QUICK).save(folder / "segmenter")
    return folder


@pytest.fixture
def cohort(place: Path) -> Cohort:
    return Cohort(place / "cohort")
