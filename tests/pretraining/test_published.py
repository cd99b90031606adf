"""FM-HCT as published: its views, its schedules, and whole steps of its training.

Oracles: the published code's numbers (`augment.npz`, `schedules.npz`, `dino_train.npz`; tolerances of their manifest),
PyTorch's adaptive pooling on the padded cube, and closed forms.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encoders.published import cases, volume
from numpy.testing import assert_allclose
from pretraining.fm_hct import TOLERANCES, filled, pairs, published_dino, recorded, steps_of
from pretraining.memory_cohort import MemoryCohort, heads

from headct.encoders.windowing import apply_windows
from headct.failure import Misuse
from headct.pretraining import PretrainSettings, pretrain
from headct.pretraining.objectives.dino import DinoSettings
from headct.pretraining.published import (
    PADDED,
    SCAN,
    PublishedView,
    area,
    bent,
    draw_global,
    draw_local,
    published_clip,
    published_lr,
    published_momentum,
    published_optimizer,
    published_temperature,
    see_published,
    smoothing,
)
from headct.pretraining.schedules import cosine, ramp
from headct.pretraining.views import Crops


@pytest.fixture(scope="module")
def fixtures(shared: Path) -> Path:
    return shared / "fixtures" / "fm-hct"


# ------------------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
def test_views_equal_the_published_ones(fixtures: Path, dtype: torch.dtype, tolerance: float) -> None:
    published = np.load(fixtures / "augment.npz")
    image = volume("aug", [3, SCAN, SCAN, SCAN]).half().to(dtype)
    for name, case in cases(fixtures, "augment.npz").items():
        ours = filled(image, recorded(name, case), (16, 16, 16))
        assert_allclose(ours.float().numpy(), published[name], atol=tolerance, rtol=0, err_msg=name)


def test_each_operator_equals_the_published_one(fixtures: Path) -> None:
    published = np.load(fixtures / "augment.npz")
    image = volume("op", [2, 9, 10, 11]).double()
    for shape in ((6, 6, 6), (12, 13, 5)):
        matrices = [torch.from_numpy(area(n, m)) for n, m in zip(image.shape[1:], shape, strict=True)]
        ours = torch.einsum("ia,jb,kc,nabc->nijk", *matrices, image)
        theirs = published["op/area_9_10_11_to_{}_{}_{}".format(*shape)]
        assert_allclose(ours.numpy(), theirs, atol=1e-5, rtol=0)
    bells = [torch.from_numpy(smoothing(s, n)) for s, n in zip((0.5, 0.8, 1.0), image.shape[1:], strict=True)]
    ours = torch.einsum("ia,jb,kc,nabc->nijk", *bells, image)
    assert_allclose(ours.numpy(), published["op/gauss_0.5_0.8_1.0"], atol=1e-5, rtol=0)
    assert_allclose(bent(image, 0.4).numpy(), published["op/gamma_0.4"], atol=1e-5, rtol=0)


def slowly(image: torch.Tensor, view: PublishedView, shape: tuple[int, int, int]) -> torch.Tensor:
    """A view through the padded cube: pad, crop, pool, flip, add."""
    if image.shape[1:] != (SCAN, SCAN, SCAN):
        image = F.adaptive_avg_pool3d(image, SCAN)
    cube = F.pad(image, [(PADDED - SCAN) // 2] * 6)
    crop = cube[(slice(None), *(slice(a, a + n) for a, n in zip(view.start, view.edges, strict=True)))]
    seen = F.adaptive_avg_pool3d(crop, shape)
    return seen.flip([1 + axis for axis in range(3) if view.flipped[axis]]) + view.offset


def test_drawn_views_equal_those_through_the_padded_cube() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((2, 20, 33, 24), dtype=np.float32))
    for number in (0, 1, 1, 2, 2):
        view = draw_global(rng, number) if number < 2 else draw_local(rng)
        view = replace(view, sigma=None, gamma=None)
        torch.testing.assert_close(filled(image, view, (14, 9, 12)), slowly(image, view, (14, 9, 12)))


def test_a_smoothed_view_is_smoothed_after_flips_and_offset() -> None:
    image = torch.rand(1, SCAN, SCAN, SCAN, generator=torch.Generator().manual_seed(0))
    view = PublishedView((20, 0, 64), (150, 224, 96), (True, False, True), 0.15, sigma=(0.5, 0.7, 1.0))
    plain = slowly(image, view, (12, 12, 12)).double()
    bells = [torch.from_numpy(smoothing(sigma, 12)) for sigma in view.sigma or ()]
    expected = torch.einsum("ia,jb,kc,nabc->nijk", *bells, plain)
    torch.testing.assert_close(filled(image, view, (12, 12, 12)).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "sigma"), [("sigma0.9", (0.9, 0.9, 0.9)), ("sigma_0.5_1.0_1.5", (0.5, 1.0, 1.5))])
def test_smoothing_is_the_other_published_one_too(shared: Path, name: str, sigma: tuple[float, float, float]) -> None:
    """CT-FM smooths its views by the same kernel, with another sigma along each axis."""
    arrays = np.load(shared / "fixtures" / "ct-fm" / "tasks.npz")
    seen = arrays["aug/input"][0].astype(float)
    for axis, one in enumerate(sigma):
        seen = np.moveaxis(np.tensordot(smoothing(one, seen.shape[axis]), seen, axes=(1, axis)), 0, axis)
    assert_allclose(seen, arrays[f"aug/gaussian_smooth_{name}"][0], atol=1e-6)


def test_draws_have_the_published_ranges_and_shares() -> None:
    rng = np.random.default_rng(1)
    first = [draw_global(rng, 0) for _ in range(4000)]
    second = [draw_global(rng, 1) for _ in range(4000)]
    local = [draw_local(rng) for _ in range(4000)]
    for views, low, high, lowest in ((first + second, 112, 224, 0), (local, 64, 112, 16)):
        edges, start = np.array([view.edges for view in views]), np.array([view.start for view in views])
        assert (edges.min(), edges.max()) == (low, high)
        assert start.min() == lowest
        assert (start + edges).max() == PADDED - lowest
        assert edges.mean() == pytest.approx((low + high) / 2, rel=0.01)
    assert np.mean([view.flipped for view in first]) == pytest.approx(0.2, abs=0.02)
    offsets = np.array([view.offset for view in first])
    assert (offsets != 0).mean() == pytest.approx(0.5, abs=0.03)
    assert abs(offsets).max() == pytest.approx(0.2, abs=0.002)
    assert np.mean([view.sigma is not None for view in first]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([view.gamma is not None for view in second]) == pytest.approx(0.2, abs=0.03)
    assert all(view.gamma is None for view in first + local)
    assert all(view.sigma is None for view in second + local)
    gammas = [view.gamma for view in second if view.gamma is not None]
    assert (min(gammas), max(gammas)) == (pytest.approx(0.2, abs=0.02), pytest.approx(1.0, abs=0.02))


def test_seen_says_where_it_looked() -> None:
    rng = np.random.default_rng(2)
    hu = torch.full((2, 16, 24, 16), 40, dtype=torch.int16)
    draws = [[draw_global(rng, 0), draw_local(rng)] for _ in range(2)]
    windows = [(40.0, 80.0), (600.0, 2800.0)]
    seen = see_published(hu, draws, (8, 8, 8), (6.0, 8.0, 6.0), windows)
    for number, one in enumerate(seen):
        for scan in range(2):
            view = draws[scan][number]
            alone = filled(apply_windows(hu[scan : scan + 1], windows)[0], view, (8, 8, 8))
            torch.testing.assert_close(one.image[scan], alone)  # whatever the batch
            expected_mm = [view.edges[0] * 1.0 / 8, view.edges[1] * 2.0 / 8, view.edges[2] * 1.0 / 8]
            torch.testing.assert_close(one.spacing_mm[scan], torch.tensor(expected_mm))
        plain = [replace(draws[scan][number], offset=0.0, sigma=None, gamma=None) for scan in range(2)]
        share = torch.stack([filled(torch.ones(1, 16, 24, 16), view, (8, 8, 8)).mean() for view in plain]).mean()
        torch.testing.assert_close(1 - one.air, share, atol=0.02, rtol=0)


def test_dino_trains_on_published_views(tmp_path: Path) -> None:
    small = Crops(views=2, shape=(12, 12, 12), edge_mm=(1.0, 1.0), overhang=0.0)
    dino = replace(
        DinoSettings.published(), global_crops=small, local_crops=small, prototypes=16, hidden=16, bottleneck=8
    )
    for precision in ("fp32", "bf16"):
        settings = PretrainSettings(
            steps=2,
            batch=2,
            precision=precision,
            encoder_settings={"depth": 1, "width": 24, "heads": 2, "patch": [4, 4, 4], "grid": [3, 3, 3]},
            objectives={"dino": dino},
            device="cpu",
        )
        run = pretrain([MemoryCohort(heads(3))], tmp_path / precision, settings)
        assert np.isfinite(run.history["loss"]).all()
        assert 0.5 < run.history["air"].iloc[0] < 1


def test_published_views_want_two_global_ones() -> None:
    with pytest.raises(Misuse, match="2 global ones"):
        DinoSettings(published_views=True, global_crops=replace(DinoSettings().global_crops, views=3))


# --------------------------------------------------------------------------------------------------------- schedules


def test_schedules_equal_the_published_ones(fixtures: Path) -> None:
    published = np.load(fixtures / "schedules.npz")

    def same(ours: list[float], name: str) -> None:
        assert_allclose(ours, published[name], rtol=1e-9, atol=1e-12, err_msg=name)

    for shape in ("cosine", "poly"):
        small = [published_lr(step, 20, 3, 1e-3, 1e-6, shape) for step in range(26)]
        same(small, f"small_lr_{shape}_w3_t20_base1e-3_end1e-6")
    same([published_lr(step, 20, 3, 1e-3, 1e-6, "constant") for step in range(26)], "small_lr_const_w3")
    for shape, name in (("cosine", "cosine"), ("poly", "poly2")):
        steps = published["full_lr_idx"].tolist()
        full = [published_lr(step, 282600, 28260, 5e-4, 5e-7, shape) for step in steps]
        same(full, f"full_lr_{name}_base5e-4")
    for start, name in ((0.994, "994"), (0.999, "999")):
        same([published_momentum(i, 200, 1413, start) for i in published["full_idx"].tolist()], f"full_momentum_{name}")
    same([published_momentum(index, 5, 7, 0.994) for index in range(35)], "momentum_small_994_1_e5_n7")
    warm = [ramp(step, 7, 0.9, 0.994) for step in range(7)] + [cosine(step, 28, 0.994, 1.0) for step in range(28)]
    same(warm, "momentum_small_warm1")
    for end, name in ((0.07, "0.07"), (0.04, "0.04")):
        same([published_temperature(epoch, 0.04, end) for epoch in range(200)], f"teacher_temp_0.04_{name}_w30_n200")


def test_a_shape_without_a_name_is_refused() -> None:
    with pytest.raises(Misuse, match="cosine, poly, constant"):
        published_lr(5, 20, 3, 1e-3, 1e-6, "linear")


# ------------------------------------------------------------------------------------------------------- whole steps


@pytest.mark.parametrize("name", ["main", "clip_small", "zero_registers"])
def test_whole_steps_equal_the_published_ones(fixtures: Path, name: str) -> None:
    case, published = cases(fixtures, "dino_train.npz")[name], np.load(fixtures / "dino_train.npz")
    dino = published_dino(case)
    for step, found in enumerate(steps_of(dino, case)):
        for key, ours, theirs in pairs(found, published, name, step, case):
            tolerance = {"rtol": 0, **TOLERANCES.get(key, {"atol": 5e-5})}
            assert_allclose(ours, theirs, err_msg=f"{name}/{key}, step {step}", **tolerance)
    assert step == case["steps_per_epoch"] * case["epochs"] - 1
    if case["zero_tokens"]:  # the defect: registers that start equal stay equal
        registers = dino.student.encoder.register_tokens[0]
        assert torch.equal(registers, registers[:1].expand_as(registers))


def test_each_gradient_is_clipped_on_its_own() -> None:
    weights = [torch.nn.Parameter(torch.zeros(3)) for _ in range(3)]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([0.1, 0.0, 0.0])
    published_clip(weights, 1.0)
    torch.testing.assert_close(weights[0].grad, torch.tensor([0.6, 0.8, 0.0]), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(weights[1].grad, torch.tensor([0.1, 0.0, 0.0]))
    assert weights[2].grad is None


def test_all_weights_decay_in_one_group() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    (group,) = published_optimizer(module).param_groups
    assert len(group["params"]) == 4
    assert group["decays"]
