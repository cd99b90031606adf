"""CT-FM's search and concept maps: numbers of the published code (fixtures, tolerance 1e-5), and where ours differs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from encoders import ctfm_formula as formula
from numpy.testing import assert_allclose, assert_array_equal

from headct.embedding.inputs import Ready
from headct.embedding.machine import choose
from headct.encoders import SegResEncoder, SegResSettings
from headct.pretraining.published import smoothing
from headct.tasks.correspondence import FeatureMap
from headct.tasks.correspondence.maps import patch_vectors
from headct.tasks.correspondence.matching import similarities
from headct.tasks.correspondence.windows import blended, counts, cut_out, gaussian_weight, starts

EDGES = [16, 16, 16]


class AsPublished:
    """The published call: axes of each patch are turned round and two of them flipped before the encoder."""

    def __init__(self) -> None:
        self.encoder = formula.fill(SegResEncoder(SegResSettings(init_filters=4))).eval()

    def see(self, arrays: torch.Tensor, spacing_mm: torch.Tensor) -> Any:
        return self.encoder(arrays.permute(0, 3, 2, 1).flip(1, 2)[:, None])


@pytest.fixture(scope="module")
def arrays(shared: Path) -> Any:
    return np.load(shared / "fixtures" / "ct-fm" / "tasks.npz")


@pytest.fixture(scope="module")
def about(shared: Path) -> dict[str, Any]:
    manifest = json.loads((shared / "fixtures" / "ct-fm" / "manifest.json").read_text())
    return dict(manifest["files"]["tasks.npz"]["info"])


def volume(shape: tuple[int, int, int], seed: int, middle: tuple[int, int, int]) -> np.ndarray:
    """The fixture's: low noise, and a bright ball of radius 8."""
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    inside = ((places - np.array(middle)) ** 2).sum(axis=-1) < 64
    return (0.2 * formula.volume(shape, seed).numpy() + 0.6 * inside).astype(np.float32)


def vectors(array: np.ndarray, begins: np.ndarray) -> np.ndarray:
    ready = Ready({"scan_id": "fixture"}, array, np.eye(4))
    return patch_vectors(ready, AsPublished(), choose("fp32", "cpu"), begins, EDGES, 0.0, 32)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def seen(about: dict[str, Any]) -> SimpleNamespace:
    """Query vector, target vectors and cosines by our own functions."""
    query, target = volume((40, 44, 48), 4001, (18, 24, 20)), volume((44, 40, 52), 4002, (26, 18, 30))
    begins = starts(target.shape, EDGES, 0.625)
    of_query = vectors(query, np.array([about["semantic_search"]["query_point"]]) - 8)
    of_target = vectors(target, begins)
    grid = counts(target.shape, EDGES, 0.625)
    mapped = FeatureMap(of_target.reshape(*grid, -1), np.eye(4), np.ones(grid, bool))
    return SimpleNamespace(
        query=of_query, target=of_target, begins=begins, cosines=similarities(mapped, of_query).reshape(-1)
    )


def test_patches_vectors_and_cosines_are_the_published_ones(
    seen: SimpleNamespace, arrays: Any, about: dict[str, Any]
) -> None:
    assert_array_equal(seen.begins, arrays["semantic/target_patch_starts"])
    assert_allclose(seen.query, arrays["semantic/query_embedding"], atol=1e-5)
    assert_allclose(seen.target, arrays["semantic/target_patch_embeddings"], atol=1e-5)
    assert_allclose(seen.cosines, arrays["semantic/cosine"], atol=1e-5)
    best = seen.begins[seen.cosines.argmax()] + 8
    assert best.tolist() == about["semantic_search"]["best_location"]
    apart = np.linalg.norm(best - about["semantic_search"]["target_centroid"])
    assert apart == pytest.approx(about["semantic_search"]["distance_voxels"])


def test_the_published_heat_map_follows_from_ours_when_later_patches_overwrite(
    seen: SimpleNamespace, arrays: Any
) -> None:
    heat = np.zeros((44, 40, 52))
    for value, (x, y, z) in zip(seen.cosines, seen.begins, strict=True):
        heat[x : x + 16, y : y + 16, z : z + 16] = value
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    smooth = [smoothing(5, size) for size in heat.shape]  # integrated over voxels, as theirs is
    heat = np.einsum("xyz,ax,by,cz->abc", heat, *smooth, optimize=True)
    assert_allclose(heat[::4, ::4, ::4], arrays["semantic/heatmap_stride4"], atol=1e-5)
    mean, _ = blended(seen.cosines, seen.begins, EDGES, (44, 40, 52))
    assert seen.cosines.min() <= mean.min() < mean.max() <= seen.cosines.max()


def test_inside_as_published_asks_for_one_coordinate_alone(about: dict[str, Any]) -> None:
    """`point in coordinates` of numpy is true where any number is that of any voxel on its axis: hits far outside."""
    places = np.stack(np.meshgrid(*map(np.arange, (44, 40, 52)), indexing="ij"), axis=-1)
    label = ((places - np.array([26, 18, 30])) ** 2).sum(axis=-1) < 64
    for case in about["inside_label_test"]:
        assert bool(label[tuple(case["point"])]) == case["truth"]
        assert (np.array(case["point"]) in np.argwhere(label)) == case["published"]


@pytest.mark.parametrize("case", range(3))
def test_a_patch_stays_around_its_point_where_the_published_one_slides(case: int, about: dict[str, Any]) -> None:
    """Ours is filled beyond the border, so that the point is its middle; theirs shows other planes there."""
    one = about["semantic_border_patch"]["cases"][case]
    array, point = np.ones((40, 44, 48), np.float32), np.array(one["query_point"])
    array[tuple(point)] = 9
    patch = cut_out(array, (point - 8).tolist(), EDGES, 0.0)
    assert patch[8, 8, 8] == 9
    planes = [np.flatnonzero(patch.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    ours = [[int(found[0]), int(found[-1])] for found in planes]
    assert ours == [[max(0, 8 - p), min(15, size + 7 - p)] for p, size in zip(point.tolist(), array.shape, strict=True)]
    assert ours != one["first_and_last_nonzero_plane_per_axis"]


def test_window_starts_are_the_published_ones(about: dict[str, Any]) -> None:
    for case, published in about["sliding_window_positions"].items():
        shape, patch, overlap = (eval(part) for part in case.split("|"))  # tuples and a number of the manifest
        begins = starts(shape, patch, overlap)
        assert len(begins) == published["n"] == np.prod(counts(shape, patch, overlap))
        assert [np.unique(begins[:, axis]).tolist() for axis in range(3)] == published["axis_starts"]


def test_concept_weights_are_the_published_ones(arrays: Any, about: dict[str, Any]) -> None:
    weight = gaussian_weight((24, 64, 64))
    assert_allclose(weight[::8, ::8, ::8], arrays["concept/gaussian_weight_24_64_64_stride8"], atol=1e-6)
    assert weight.sum() == pytest.approx(about["concept_weight"]["sum"], rel=1e-6)
    assert weight[0, 0, 0] == pytest.approx(about["concept_weight"]["corner"], rel=1e-6)


def test_a_blended_map_is_divided_by_its_weights_as_the_published_one_is_not(
    arrays: Any, about: dict[str, Any]
) -> None:
    shape = tuple(about["concept_accumulation"]["volume"])
    begins = starts(shape, (24, 64, 64), 0.75)
    mean, weights = blended(np.ones(len(begins)), begins, (24, 64, 64), shape)
    assert_allclose(weights[::5, ::5, ::5], arrays["concept/accumulated_weight_stride5"], atol=1e-5)
    assert_allclose([weights.min(), weights.max()], [about["concept_accumulation"][end] for end in ("min", "max")])
    assert_allclose(mean, 1, rtol=1e-12)
