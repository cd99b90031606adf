"""One scan and one checkpoint have one vector: on any threads, compiled or not, in any batch, from any format.

Oracle: the vector that the encoder gives of the scan in memory, alone, on one thread, eagerly. Vectors are normalised
features of size 1.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from headct import checkpoints, encoders
from headct.checkpoints import PretrainedEncoder
from headct.cohort.ingest import ingest
from headct.embedding import embed
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS
from headct.scan import Scan
from headct.virtual.phantom import Phantom
from headct.writing import TRANSFER_SYNTAXES, write_dicom, write_nifti

SAME = 1e-5

SMALL = {
    "vit-tiny": {"depth": 2, "width": 24, "heads": 2, "mlp_width": 32, "patch": (12, 14, 12), "grid": (8, 8, 8)},
    "slices-tiny": {"widths": (8, 16, 32), "blocks": (1, 1, 1)},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=SMALL)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PretrainedEncoder:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("golden") / "checkpoint"
    encoder = encoders.build(request.param, **SMALL[request.param])
    checkpoints.save(folder, encoder, checkpoints.Card(recipe=recipes["head"], windows=WINDOWS))
    return checkpoints.load(folder)


@pytest.fixture(scope="module")
def scan() -> Scan:
    """Tilted, so that its geometry is put to the test too."""
    return Phantom(3).scan(slices=26, gap_mm=7.0, rows=96, cols=96, pixel_mm=2.4, tilt_deg=11.0, noise_hu=2.0)


@pytest.fixture(scope="module")
def golden(model: PretrainedEncoder, scan: Scan) -> np.ndarray:
    (vector,) = embed(scan, model, batch_size=1).vectors
    assert vector.std() > 0.1, "a vector that says nothing proves nothing"
    return vector


def test_two_threads(model: PretrainedEncoder, scan: Scan, golden: np.ndarray) -> None:
    torch.set_num_threads(2)
    try:
        (vector,) = embed(scan, model).vectors
    finally:
        torch.set_num_threads(1)
    np.testing.assert_allclose(vector, golden, atol=SAME)


def test_among_eight(model: PretrainedEncoder, scan: Scan, golden: np.ndarray) -> None:
    others = [Phantom(seed).scan(slices=26, gap_mm=7.0, rows=64, cols=64, pixel_mm=3.6) for seed in (4, 5)]
    batch = [others[0], scan, others[1], scan, others[0], others[1], scan, others[0]]
    vectors = embed(batch, model, batch_size=8).vectors
    for place in (1, 3, 6):
        np.testing.assert_allclose(vectors[place], golden, atol=SAME)
    assert np.abs(vectors[0] - golden).max() > 100 * SAME


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.skipif(shutil.which("cc") is None, reason="torch.compile needs a C compiler")
def test_compiled(model: PretrainedEncoder, scan: Scan, golden: np.ndarray) -> None:
    compiled = PretrainedEncoder(model.encoder, model.card, model.sha256).eval()
    compiled.see = torch.compile(model.see)  # type: ignore[method-assign]
    (vector,) = embed(scan, compiled).vectors
    np.testing.assert_allclose(vector, golden, atol=SAME)


def _nifti(scan: Scan, folder: Path) -> None:
    write_nifti(scan, folder / "scan.nii.gz")


def _cohort(scan: Scan, folder: Path) -> None:
    write_dicom(scan, folder.parent / "source")
    ingest([folder.parent / "source"], folder, workers=1)


FORMATS: dict[str, Callable[[Scan, Path], object]] = {
    **{
        name: lambda scan, folder, name=name: write_dicom(scan, folder, transfer_syntax=name)
        for name in TRANSFER_SYNTAXES
    },
    "nifti": _nifti,
    "cohort": _cohort,
}


@pytest.mark.parametrize("format_name", FORMATS)
def test_after_a_round_trip(
    model: PretrainedEncoder, scan: Scan, golden: np.ndarray, tmp_path: Path, format_name: str
) -> None:
    FORMATS[format_name](scan, tmp_path / "scans")
    (vector,) = embed(tmp_path / "scans", model).vectors
    np.testing.assert_allclose(vector, golden, atol=SAME)


def test_a_checkpoint_that_was_saved_again(
    model: PretrainedEncoder, scan: Scan, golden: np.ndarray, tmp_path: Path
) -> None:
    checkpoints.save(tmp_path / "copy", model.encoder, model.card)
    (vector,) = embed(scan, tmp_path / "copy").vectors
    np.testing.assert_allclose(vector, golden, atol=SAME)
