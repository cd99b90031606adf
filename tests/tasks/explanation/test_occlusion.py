"""Oracles: CT-FM's saliency (fixtures, tolerance 2e-5), MONAI's OcclusionSensitivity at another size, painted heads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders import ctfm_formula as formula
from monai.visualize import OcclusionSensitivity
from numpy.testing import assert_allclose
from tasks.explanation import painted

from headct.encoders import SegResEncoder, SegResSettings
from headct.failure import Failure, Misuse
from headct.tasks.explanation.evening import evened_head
from headct.tasks.explanation.judging import Judge
from headct.tasks.explanation.occlusion import Boxes, hidden, losses, occlusion, spread


@pytest.fixture(scope="module")
def arrays(shared: Path) -> Any:
    return np.load(shared / "fixtures" / "ct-fm" / "tasks.npz")


def test_saliency_is_the_published_one(arrays: Any, shared: Path) -> None:
    manifest = json.loads((shared / "fixtures" / "ct-fm" / "manifest.json").read_text())
    about = manifest["files"]["tasks.npz"]["info"]["saliency"]
    encoder = formula.fill(SegResEncoder(SegResSettings(init_filters=4))).eval()
    image = 0.3 * formula.volume((24, 32, 28), 4003).numpy()
    image[8:16, 10:20, 6:16] += 0.6

    def averaged(kind: str) -> np.ndarray:
        boxes = Boxes(edge=(10, 10, 10), overlap=about["overlap"], kind=kind)
        begins = boxes.begins(image.shape)
        assert [sorted({begin[axis] for begin in begins}) for axis in (0, 2)] == [[0, 7, 14], [0, 7, 14, 18]]
        hiding = torch.from_numpy(np.stack([hidden(image, 0.0, begin, boxes) for begin in begins]))
        with torch.no_grad():
            said = torch.cat([encoder(some[:, None]).scan for some in hiding.split(12)])
        return spread(said.numpy(), begins, boxes, image.shape)

    def distances(maps: np.ndarray) -> np.ndarray:
        base = arrays["saliency/base_embedding"][0]
        cosine = np.einsum("f,fxyz->xyz", base, maps) / np.linalg.norm(base) / np.linalg.norm(maps, axis=0)
        return 1 - cosine

    maps = averaged("gaussian")
    assert_allclose(maps[0], arrays["saliency/occ_map_channel0"], atol=2e-5)
    assert maps.shape == tuple(arrays["saliency/occ_map_shape"])[1:]
    assert_allclose(distances(maps), arrays["saliency/distance_map"], atol=2e-5)
    assert distances(maps)[tuple(about["peak"])] == pytest.approx(distances(maps).max(), abs=2e-5)  # on a plateau
    for kind in ("mean_patch", "mean_img"):
        theirs = arrays[f"saliency/distance_map_{kind}_stride2"]
        assert_allclose(distances(averaged(kind))[::2, ::2, ::2], theirs, atol=2e-5)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # MONAI's own
@pytest.mark.parametrize("kind", ["gaussian", "mean_img", "mean_patch"])
def test_maps_are_those_of_a_second_library(kind: str) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 3, 3), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten()
    ).eval()
    image = torch.rand(1, 1, 9, 13, 11)
    theirs, _ = OcclusionSensitivity(
        network, mask_size=(4, 5, 3), mode=kind, overlap=0.25, activate=False, verbose=False
    )(image)
    boxes = Boxes(edge=(4, 5, 3), kind=kind)
    begins = boxes.begins((9, 13, 11))
    with torch.no_grad():
        said = network(
            torch.from_numpy(np.stack([hidden(image[0, 0].numpy(), 0.0, one, boxes) for one in begins]))[:, None]
        )
    assert_allclose(spread(said.numpy(), begins, boxes, (9, 13, 11)), theirs[0], atol=1e-5)


@dataclass(frozen=True)
class Counting:
    """A score that is the number of voxels between 55 and 100 HU, in hundreds."""

    findings = ("iph",)
    method = "full"

    def scores(self, scans: Any, rows: np.ndarray) -> np.ndarray:
        arrays = scans.arrays(rows)
        return ((arrays > 55) & (arrays < 100)).sum(axis=(1, 2, 3), dtype=float)[:, None] / 100


def judge_of(fitted: Any, folder: Path) -> Judge:
    encoder = painted.encoder_of(folder / "model")
    return Judge(
        painted.detector_of(encoder, fitted, np.eye(encoder.scan_width)[:8]), painted.SPACING_MM, painted.MACHINE
    )


def test_what_is_hidden_is_the_bleeding_and_no_air(tmp_path: Path) -> None:
    judge, hu = judge_of(Counting(), tmp_path), painted.head(0, bleeding=True)
    even = evened_head(hu, painted.SPACING_MM)
    boxes = Boxes(edge=(8, 8, 8), overlap=0.0)
    found = occlusion(judge, hu, even, boxes)[0]
    assert found[painted.BLEEDING].mean() > 10 * abs(found[~painted.lesion()]).mean()
    assert (found[:, :, 28:] <= found.max() / 3).all()
    assert abs(found[0, 0, 0]) <= 0.01  # a corner of skull: where it fades into tissue a voxel may look like blood
    inside = hidden(hu, even.astype(np.float32), (16, 8, 8), boxes)
    assert inside[20, 12, 12] == pytest.approx(even[20, 12, 12], abs=3)  # next to the middle, where nothing is kept
    assert (inside[:, :, 28:] == hu[:, :, 28:]).all()


def test_losses_of_some_boxes_are_the_map_in_their_middles(tmp_path: Path) -> None:
    """So a map can be compared with what random weights say of some boxes alone."""
    judge, hu = judge_of(Counting(), tmp_path), painted.head(0, bleeding=True)
    even, boxes = evened_head(hu, painted.SPACING_MM), Boxes(edge=(8, 8, 8))
    begins = np.array(boxes.that_hide(hu, even))
    assert {z for *_, z in Boxes(edge=(4, 4, 4), overlap=0.0).that_hide(hu, even)} == set(range(0, 28, 4))  # then air
    lost = losses(judge, hu, even, begins[1::5].tolist(), boxes)
    x, y, z = (begins[1::5] + 4).T
    assert lost.max() > 0.1  # some of them hide the bleeding
    assert_allclose(occlusion(judge, hu, even, boxes)[0][x, y, z], lost[:, 0], atol=0.01)


@dataclass(frozen=True)
class Broken(Counting):
    def scores(self, scans: Any, rows: np.ndarray) -> np.ndarray:
        return np.full((len(rows), 1), np.nan)


def test_scores_that_are_no_numbers_are_a_failure(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="not finite"):
        judge_of(Broken(), tmp_path)([painted.head(0, bleeding=True)])


def test_impossible_boxes_are_named() -> None:
    with pytest.raises(Misuse, match="at least 1 voxel"):
        Boxes(edge=(0, 1, 1))
    with pytest.raises(Misuse, match="from 0 to below 1"):
        Boxes(edge=(1, 1, 1), overlap=1.0)
    with pytest.raises(Misuse, match="called 'magic'"):
        Boxes(edge=(1, 1, 1), kind="magic")
    with pytest.raises(Misuse, match="does not fit into 4"):
        Boxes(edge=(5, 1, 1)).begins((4, 4, 4))
