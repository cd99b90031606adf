"""A small checkpoint, shared by the tests of embedding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder, load, save
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS
from headct.scan import Scan
from headct.virtual.phantom import Phantom
from headct.writing import write_dicom


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape = {"depth": 2, "width": 24, "heads": 2, "mlp_width": 32, "patch": (12, 14, 12), "grid": (8, 8, 8)}
    folder = tmp_path_factory.mktemp("models") / "checkpoint"
    save(
        folder, encoders.build("vit-tiny", **shape, pooling="class+mean"), Card(recipe=recipes["head"], windows=WINDOWS)
    )
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PretrainedEncoder:
    return load(checkpoint)


@pytest.fixture(scope="module")
def scans() -> list[Scan]:
    """Two heads of different shape, coarse but whole."""
    return [Phantom(seed).scan(slices=26, gap_mm=7.0, rows=96, cols=96, pixel_mm=2.4, noise_hu=2.0) for seed in (1, 2)]


@pytest.fixture(scope="module")
def files(scans: list[Scan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scans as DICOM, and a file that is none."""
    folder = tmp_path_factory.mktemp("data") / "input"
    for index, scan in enumerate(scans):
        write_dicom(scan, folder / f"patient-{index}")
    (folder / "letter.txt").write_text("dear colleague")
    return folder
