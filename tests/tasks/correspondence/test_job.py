"""A search through a cohort: rows, files, page; and what a search refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from detection import made

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder, load, save
from headct.cohort import Cohort
from headct.embedding.machine import choose
from headct.encoders import Features
from headct.encoders.anatomy import Maps
from headct.failure import Failure, Misuse
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS
from headct.tasks.correspondence import Box, MapSettings, Search, heads_of, one_head, same_place
from headct.tasks.correspondence.job import check, write
from headct.tasks.correspondence.maps import on_sphere

MACHINE = choose("fp32", "cpu")
POINT = Search(point_mm=np.array([60.0, 100, 80]))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return made.make(tmp_path_factory.mktemp("cohorts") / "night", 4)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PretrainedEncoder:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "model"
    save(folder, encoders.build("conv-tiny"), Card(recipe=recipes["head"], windows=WINDOWS))
    return load(folder)


def first(cohort: Cohort) -> str:
    return next(iter(cohort))


def test_every_other_scan_has_a_row_best_agreement_first(cohort: Cohort, encoder: PretrainedEncoder) -> None:
    found = same_place(first(cohort), cohort, encoder, MACHINE, POINT)
    assert set(found.table["scan_id"]) == set(cohort) - {first(cohort)}
    assert list(found.table.columns) == ["scan_id", "r_mm", "a_mm", "s_mm", "similarity", "forward_backward_mm"]
    assert found.table["forward_backward_mm"].is_monotonic_increasing
    assert found.table["similarity"].between(-1, 1).all()
    assert found.resolution_mm == (16, 16, 16)


def test_the_map_of_a_head_is_its_tokens_in_patient_space(cohort: Cohort, encoder: PretrainedEncoder) -> None:
    head = next(heads_of(cohort, encoder, MACHINE, MapSettings(centred=False)))
    with torch.inference_mode():
        seen = encoder.see(torch.from_numpy(head.array[None]), torch.tensor([[4.0, 4, 4]]))
    assert head.map.grid == seen.grid
    np.testing.assert_allclose(head.map.features.reshape(-1, seen.tokens.shape[-1]), seen.tokens[0], rtol=1e-6)
    lattice = encoder.lattice(head.array.shape)
    np.testing.assert_allclose(head.map.mm_of(np.zeros((1, 3)))[0], np.array(lattice.first) * 4)  # voxels of 4 mm
    centred = next(heads_of(cohort, encoder, MACHINE))
    assert np.abs(centred.map.features.mean(axis=(0, 1, 2))).max() < 1e-5


def test_patches_are_finer_than_tokens(cohort: Cohort, encoder: PretrainedEncoder) -> None:
    head = one_head(first(cohort), encoder, MACHINE, MapSettings(patch_mm=64.0, overlap=0.5), cohort=cohort)
    assert head.map.resolution_mm == (32, 32, 32)
    assert head.map.grid == (5, 6, 5)
    np.testing.assert_allclose(head.map.affine[:3, 3], 7.5 * 4)  # the middle of the first 16 voxels


def test_files_of_a_search(cohort: Cohort, encoder: PretrainedEncoder, tmp_path: Path) -> None:
    found = same_place(first(cohort), cohort, encoder, MACHINE, POINT, heat=tmp_path / "out" / "similarity")
    write(found, cohort, encoder, MACHINE, tmp_path / "out")
    row = found.table.iloc[0]
    heat = nibabel.load(tmp_path / "out" / "similarity" / f"{row['scan_id']}.nii.gz")
    values = heat.get_fdata()
    assert values.shape == made.SHAPE
    assert np.nanmax(values) <= 1.001
    hottest_mm = heat.affine[:3, :3] @ np.unravel_index(np.nanargmax(values), values.shape) + heat.affine[:3, 3]
    assert np.linalg.norm(hottest_mm - row[["r_mm", "a_mm", "s_mm"]].to_numpy(float)) < 1.8 * 16
    html = (tmp_path / "out" / "page.html").read_text()
    assert html.count("spot ring") == 4  # in the query and three scans
    assert "Cells of the feature map are 16 × 16 × 16 mm" in html
    assert "whether it is there or not" in html
    # x = 60 mm is voxel 15 of 48, seen from the feet: its middle lies (48 - 15.5) / 48 from the left
    assert re.search(r'class="query">.*?left:67.71%;top:54.46%', html, re.DOTALL)
    write(found, cohort, encoder, MACHINE, tmp_path / "out")  # again, over its own


def test_a_box_gives_a_box(cohort: Cohort, encoder: PretrainedEncoder, tmp_path: Path) -> None:
    search = Search(box=Box(np.array([40.0, 60, 40]), np.array([80.0, 120, 90])))
    found = same_place(first(cohort), cohort, encoder, MACHINE, search)
    table = found.table
    for axis, low, high in (("r", 40, 80), ("a", 60, 120), ("s", 40, 90)):
        edge = table[f"{axis}_high_mm"] - table[f"{axis}_low_mm"]
        assert edge.between(0.49 * (high - low), 2.01 * (high - low)).all()
        np.testing.assert_allclose(table[f"{axis}_mm"], (table[f"{axis}_high_mm"] + table[f"{axis}_low_mm"]) / 2)
    write(found, cohort, encoder, MACHINE, tmp_path)
    assert (tmp_path / "page.html").read_text().count('class="spot"') == 4


def test_what_a_search_refuses(cohort: Cohort, encoder: PretrainedEncoder, tmp_path: Path) -> None:
    for point, says in (([900.0, 0, 0], "outside the head"), ([np.nan, 0, 0], "not three numbers")):
        with pytest.raises(Misuse, match=says):
            same_place(first(cohort), cohort, encoder, MACHINE, Search(point_mm=np.array(point)))
    with pytest.raises(Misuse, match="one point or one box"):
        Search()
    other = made.make(tmp_path / "other", 2, recipe=recipes["head-fine"])
    with pytest.raises(Misuse, match="the model uses head"):
        same_place(first(other), other, encoder, MACHINE, POINT)
    alone = made.make(tmp_path / "alone", 1)
    with pytest.raises(Misuse, match="holds the query alone"):
        same_place(first(alone), alone, encoder, MACHINE, POINT)
    with pytest.raises(Misuse, match="no scan of that id"):
        same_place("typo", cohort, encoder, MACHINE, POINT)
    with pytest.raises(Misuse, match="is a cohort"):
        same_place(cohort.path, cohort, encoder, MACHINE, POINT)
    (tmp_path / "letter.txt").write_text("dear colleague")
    with pytest.raises(Failure, match=r"no scan in .*letter.txt can be used"):
        same_place(tmp_path / "letter.txt", cohort, encoder, MACHINE, POINT)
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(Misuse, match="headct did not write it"):
        check(tmp_path)
    for settings in ({"patch_mm": -1.0}, {"overlap": 1.0}, {"batch_size": 0}):
        with pytest.raises(Misuse):
            MapSettings(**settings)


def test_an_empty_cohort_is_refused(encoder: PretrainedEncoder, tmp_path: Path, monkeypatch) -> None:
    empty = made.make(tmp_path / "empty", 1)
    monkeypatch.setattr(Cohort, "__len__", lambda self: 0)
    with pytest.raises(Misuse, match="holds no scans"):
        same_place(first(empty), empty, encoder, MACHINE, POINT)
    with pytest.raises(Misuse, match="holds no scans"):
        next(heads_of(empty, encoder, MACHINE))


def test_air_around_a_head_is_outside(cohort: Cohort, encoder: PretrainedEncoder) -> None:
    head = one_head(first(cohort), encoder, MACHINE, cohort=cohort)
    head.array[:20] = -1000
    with pytest.raises(Misuse, match="outside the head"):
        head.expect_inside(np.array([[20.0, 100, 80]]))
    head.expect_inside(np.array([[100.0, 100, 80]]))


def test_features_that_are_no_numbers_are_refused(
    cohort: Cohort, encoder: PretrainedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    see = encoder.see

    def broken(arrays: torch.Tensor, spacing_mm: torch.Tensor):
        seen = see(arrays, spacing_mm)
        return type(seen)(seen.scan, seen.tokens * float("nan"), seen.grid)

    monkeypatch.setattr(encoder, "see", broken)
    with pytest.raises(Failure, match="are not finite"):
        one_head(first(cohort), encoder, MACHINE, cohort=cohort)


@pytest.fixture(scope="module")
def anatomist(tmp_path_factory: pytest.TempPathFactory) -> PretrainedEncoder:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "anatomist"
    save(folder, encoders.build("anatomy-conv"), Card(recipe=recipes["head"], windows=WINDOWS))
    return load(folder)


def test_template_points_find_the_place_that_they_name(
    cohort: Cohort, anatomist: PretrainedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads whose cells name points of a template by an affine map of their own: the answer is its composition."""
    network, calls = anatomist.encoder, iter(range(5))
    scales, shifts = (1.0, 1.0, 1.1, 0.9, 1.05), (0.0, 0.0, 6.0, -9.0, 4.0)  # the query alone, then all in their order
    look = network.look

    def named(x: torch.Tensor, spacing_mm: torch.Tensor) -> tuple[Features, Maps]:
        features, maps = look(x, spacing_mm)
        head, cells, grid = next(calls), network.cells(tuple(x.shape[2:])), maps.places.shape[2:]
        axes = [first + step * torch.arange(n) for first, step, n in zip(cells.first, cells.step, grid, strict=True)]
        mm = 4 * torch.stack(torch.meshgrid(*axes, indexing="ij"))  # voxels of 4 mm, the first at 0
        return features, replace(maps, places=(mm[None] * scales[head] + shifts[head] - 100) / 100)

    monkeypatch.setattr(network, "look", named)
    found = same_place(first(cohort), cohort, anatomist, MACHINE, POINT).table.set_index("scan_id")
    for at, scan_id in enumerate(cohort):
        if scan_id != first(cohort):
            expected = (POINT.point_mm - shifts[at + 1]) / scales[at + 1]
            np.testing.assert_allclose(found.loc[scan_id, ["r_mm", "a_mm", "s_mm"]].to_numpy(float), expected, atol=0.5)


def test_the_page_of_template_points_says_what_agreement_is_worth(
    cohort: Cohort, anatomist: PretrainedEncoder, encoder: PretrainedEncoder, tmp_path: Path
) -> None:
    for name, model in (("template", anatomist), ("tokens", encoder)):
        found = same_place(first(cohort), cohort, model, MACHINE, POINT)
        write(found, cohort, model, MACHINE, tmp_path / name)
        assert ("agrees nearly always" in (tmp_path / name / "page.html").read_text()) == (name == "template")


def test_points_on_the_sphere_are_the_more_alike_the_nearer_they_are() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(2, 50, 3))
    cosine = (on_sphere(p) * on_sphere(q)).sum(axis=1)
    lengths = (1 + (p**2).sum(axis=1)) * (1 + (q**2).sum(axis=1))
    np.testing.assert_allclose(cosine, 1 - 2 * ((p - q) ** 2).sum(axis=1) / lengths)
    np.testing.assert_allclose(np.linalg.norm(on_sphere(p), axis=1), 1)


def test_what_is_compared_fits_the_encoder(anatomist: PretrainedEncoder, encoder: PretrainedEncoder) -> None:
    assert MapSettings().of(anatomist) == "template"
    assert MapSettings(compared="tokens").of(anatomist) == "tokens"
    assert MapSettings().of(encoder) == "tokens"
    assert MapSettings(patch_mm=64.0).of(anatomist) == "patches"
    with pytest.raises(Misuse, match="names no template points"):
        MapSettings(compared="template").of(encoder)
    for settings in ({"compared": "points"}, {"compared": "tokens", "patch_mm": 64.0}):
        with pytest.raises(Misuse):
            MapSettings(**settings)
