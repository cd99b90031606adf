"""The JEPA objective.

Oracles: the sum that the docstring states, written as loops; geometry of a sphere by hand; central differences in
float64, of which a step of 1e-6 leaves an error near 1e-9; closed forms of what is watched.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encoders.published import uniform
from pretraining import masked
from pretraining.masked import CUBE, SIGHT, check_gradients, row, some_rows, tiny
from pretraining.memory_cohort import heads

from headct import checkpoints, encoders
from headct.encoders import ViT3D, ViTSettings
from headct.encoders.vit import cut
from headct.failure import Misuse
from headct.pretraining.objectives import Batch
from headct.pretraining.objectives.jepa import (
    Jepa,
    JepaSettings,
    block_edges,
    context_of,
    draw_block,
    on_head,
    watch,
)
from headct.pretraining.objectives.mae import is_tissue
from headct.pretraining.schedules import cosine
from headct.pretraining.views import Seen, View

SMALL = JepaSettings(
    crops=CUBE, blocks=2, context=0.3, predictor_width=12, predictor_depth=1, predictor_heads=2, tissue=0.5
)
BOX_MM = np.array([[3.0, 4, 3], [43.0, 50, 43]])


def objective(**settings: object) -> Jepa:
    return Jepa(tiny(), replace(SMALL, **settings), SIGHT).train()


def drawn(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (rows, 27), and two blocks (rows, 8) that overlap in one patch."""
    blocks = [0, 1, 3, 4, 4, 5, 7, 8]
    targets = torch.tensor([[number + 9 * (scan % 3) for number in blocks] for scan in range(rows)])
    return torch.from_numpy(uniform("noise", (rows, 27)).astype(np.float32)), targets


def other_teacher(jepa: Jepa) -> Jepa:
    """A teacher that has moved away from the student."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in jepa.teacher.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return jepa


@pytest.mark.parametrize("error", ["smooth-l1", "l1", "l2"])
def test_the_loss_is_the_loop_over_targets_that_are_tissue(error: str) -> None:
    jepa, seen = other_teacher(objective(error=error)), some_rows()
    noise, targets = drawn(3)
    given = []
    jepa.predictor.register_forward_hook(lambda _, inputs, output: given.append(output.detach()))
    with torch.no_grad():
        loss, watched = jepa.predicted(seen, noise, targets)
        tokens = jepa.teacher(seen.image, seen.spacing_mm).tokens
    tissue = is_tissue(cut(seen.image, (4, 4, 4))[0])
    of_scans, scored = [], 0
    for scan in range(3):
        errors = []
        for place, number in enumerate(targets[scan].tolist()):
            if not tissue[scan, number]:
                continue
            token = tokens[scan, number].double()
            wanted = (token - token.mean()) / (token.var(unbiased=False) + 1e-5).sqrt()
            gap = (given[0][scan, place].double() - wanted).abs()
            smooth = torch.where(gap < 1, 0.5 * gap**2, gap - 0.5)
            errors.append({"smooth-l1": smooth, "l1": gap, "l2": gap**2}[error].mean().item())
        of_scans.append(sum(errors) / len(errors) if errors else 0.0)
        scored += len(errors)
    assert 0 < scored < 24
    assert loss.item() == pytest.approx(sum(of_scans) / 3, rel=1e-5)
    assert watched["scored"].item() == pytest.approx(scored / 24)


def test_gradients_equal_differences() -> None:
    jepa, seen = other_teacher(objective(error="l2")).double(), some_rows()
    seen = replace(seen, image=seen.image.double())
    noise, targets = drawn(3)
    check_gradients(jepa, lambda: jepa.predicted(seen, noise, targets)[0])
    assert all(weight.grad is None for weight in jepa.teacher.parameters())
    assert all(weight.grad is not None for weight in jepa.student.parameters())


def test_what_is_to_be_predicted_does_not_reach_the_student() -> None:
    jepa, seen = objective(), some_rows()
    noise, targets = drawn(3)
    given = []
    jepa.predictor.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    other = replace(seen, image=seen.image.clone())
    for scan in range(3):
        for number in targets[scan].tolist():
            if is_tissue(cut(seen.image, (4, 4, 4))[0])[scan, number]:
                masked.fill(other.image[scan], number, 0.7)
    with torch.no_grad():
        before, after = jepa.predicted(seen, noise, targets)[0], jepa.predicted(other, noise, targets)[0]
    assert given[0].shape == (3, 1 + round(0.3 * 27), 12)
    assert torch.equal(given[0], given[1])
    assert before != after, "but the teacher sees it"


def test_the_loss_of_a_batch_is_the_mean_of_its_scans_in_any_order() -> None:
    jepa = other_teacher(objective())
    noise, targets = drawn(4)
    many, few = some_rows(4, air=3), some_rows(4, air=20)
    seen = replace(many, image=torch.cat([many.image[:2], few.image[2:]]))
    with torch.no_grad():
        alone = [jepa.predicted(row(seen, scan), noise[[scan]], targets[[scan]])[0] for scan in range(4)]
        together, _ = jepa.predicted(seen, noise, targets)
        shuffled, _ = jepa.predicted(row(seen, 2, 0, 3, 1), noise[[2, 0, 3, 1]], targets[[2, 0, 3, 1]])
    torch.testing.assert_close(together, torch.stack(alone).mean())
    torch.testing.assert_close(shuffled, together)


@pytest.mark.parametrize("air", [0, 26, 27])
def test_scans_with_any_amount_of_tissue_have_a_loss(air: int) -> None:
    jepa = objective()
    loss, watched = jepa.predicted(some_rows(air=air), *drawn(3))
    loss.backward()
    assert all(torch.isfinite(value) for value in (loss, *watched.values()))


def test_context_is_tissue_before_air_and_never_a_target() -> None:
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7, 0.2]])
    tissue = torch.tensor([[True, False, True, True, True, False]])
    targets = torch.tensor([[3, 3]])
    assert context_of(noise, tissue, targets, 3).tolist() == [[2, 4, 0]]
    assert context_of(noise, tissue, targets, 5).tolist() == [[2, 4, 0, 1, 5]]


@pytest.mark.parametrize(
    ("grid", "edges"),
    [((6, 7, 6), (2, 3, 4)), ((12, 14, 12), (4, 6, 8)), ((2, 9, 9), (2, 2, 2)), ((1, 1, 1), (1, 1, 1))],
)
def test_blocks_are_a_share_of_the_grid_and_fit_into_it(
    grid: tuple[int, int, int], edges: tuple[int, int, int]
) -> None:
    assert block_edges(grid, JepaSettings().block) == edges


def test_blocks_lie_in_every_direction_on_what_is_allowed() -> None:
    allowed = np.zeros((6, 7, 6), dtype=bool)
    allowed[1:5, 1:6, 1:5] = True
    rng, seen, ways = np.random.default_rng(0), np.zeros((6, 7, 6), dtype=int), set()
    for _ in range(200):
        numbers = draw_block(rng, allowed, (2, 3, 4), 1.0)
        places = np.stack(np.unravel_index(numbers, allowed.shape))
        extent = np.ptp(places, axis=1) + 1
        assert len(set(numbers.tolist())) == 24 == extent.prod(), "a full block"
        ways.add(tuple(extent.tolist()))
        np.add.at(seen, tuple(places), 1)
    assert len(ways) == 6
    assert np.array_equal(seen > 0, allowed)


def test_where_no_place_has_enough_the_best_one_is_taken() -> None:
    allowed = np.zeros((3, 3, 3), dtype=bool)
    allowed[1, 1, 1] = allowed[2, 2, 2] = True
    for seed in range(5):
        numbers = draw_block(np.random.default_rng(seed), allowed, (2, 2, 2), 0.9)
        assert {13, 26} <= set(numbers.tolist())
    assert len(draw_block(np.random.default_rng(0), np.zeros((3, 3, 3), dtype=bool), (2, 2, 2), 0.9)) == 8


def a_view(**numbers: object) -> View:
    plain = {"centre_mm": (30.0, 30.0, 30.0), "voxel_mm": 1.0, "angles_deg": (0.0,) * 3, "mirrored": False}
    plain |= {"scale_hu": 1.0, "shift_hu": 0.0, "noise_hu": 0.0, "noise_seed": 0, "soft_mm": 0.0, "sharp": 0.0}
    return View(**{**plain, "slice_mm": 0.0, "level": 0.0, "width": 1.0, **numbers})  # type: ignore[arg-type]


def test_the_head_is_found_in_a_view_wherever_it_looks() -> None:
    """By hand: a head of 20 mm around (10, 30, 30), seen in 60 mm around (30, 30, 30) by patches of 4 mm."""
    vit = ViT3D(ViTSettings(width=12, depth=1, heads=2, mlp_width=12, patch=(4, 4, 4)))
    box_mm = np.array([[0.0, 20, 20], [20.0, 40, 40]])
    expected = np.zeros((15, 15, 15), dtype=bool)
    for i, j, k in np.ndindex(15, 15, 15):
        place_mm = 30 + 4 * (np.array([i, j, k]) - 7)  # the middle patch is centred where the view is
        expected[i, j, k] = np.linalg.norm(place_mm - [10, 30, 30]) <= 10
    assert expected.sum() > 50
    assert np.array_equal(on_head(vit, a_view(), (60, 60, 60), box_mm), expected)
    assert np.array_equal(on_head(vit, a_view(mirrored=True), (60, 60, 60), box_mm), expected[::-1])
    coarse = on_head(vit, a_view(voxel_mm=2.0, centre_mm=(10.0, 30.0, 30.0)), (12, 12, 12), box_mm)
    assert coarse.sum() == 7, "the patch in the middle, and its neighbours 8 mm away"


def test_blocks_of_a_real_draw_hold_tissue_above_all() -> None:
    jepa = Jepa(tiny(patch=(2, 2, 2), grid=(6, 6, 6)), replace(SMALL, tissue=0.75), SIGHT)
    hu = torch.from_numpy(np.stack(heads(8, (28, 28, 28))))
    box_mm = np.array([[4.0, 4, 4], [50.0, 50, 50]])
    draws = [jepa.draw(np.random.default_rng(seed), {"scan": box_mm}) for seed in range(8)]
    _, watched = jepa(Batch(tuple("abcdefgh"), hu, (2.0, 2.0, 2.0), {}, None, None, draws), 0, 10)
    assert watched["scored"] > 0.85


def test_a_draw_depends_on_its_generator_alone() -> None:
    jepa = objective(crops=replace(CUBE, views=2))
    one, again, other = (jepa.draw(np.random.default_rng(seed), {"scan": BOX_MM}) for seed in (3, 3, 4))
    assert one.targets.shape == (2, 8)
    assert np.array_equal(one.targets, again.targets)
    assert np.array_equal(one.noise, again.noise)
    assert one.views == again.views
    assert not np.array_equal(one.noise, other.noise)
    hu = torch.from_numpy(np.stack(heads(2)))
    given = []
    jepa.predicted = lambda *rows: given.append(rows)  # type: ignore[method-assign]
    jepa(Batch(("a", "b"), hu, (2.0, 2.0, 2.0), {}, None, None, [one, other]), 0, 10)
    np.testing.assert_array_equal(given[0][2][2].numpy(), one.targets[1])  # views one after the other


def test_the_teacher_follows_by_the_momentum_of_the_step() -> None:
    jepa = objective(teacher_momentum=(0.9, 1.0))
    before = [weight.clone() for weight in jepa.teacher.parameters()]
    for mine, theirs in zip(jepa.teacher.parameters(), jepa.student.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert not mine.requires_grad
    with torch.no_grad():
        for weight in jepa.student.parameters():
            weight.add_(1.0)
    jepa.follow(300, 1000)
    gained = 1 - cosine(300, 1000, 0.9, 1.0)
    for old, new in zip(before, jepa.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + gained, atol=1e-6, rtol=1e-6)
    assert jepa.encoder is jepa.teacher


def test_watch_tells_collapsed_from_healthy() -> None:
    generator = torch.Generator().manual_seed(0)
    scored = torch.rand(64, 10, generator=generator) < 0.7
    same = torch.ones(64, 10, 16)
    line = torch.randn(64, 10, 1, generator=generator) * torch.ones(16)
    isotropic = F.layer_norm(torch.randn(64, 10, 16, generator=generator), (16,))
    scans = torch.randn(64, 16, generator=generator)
    assert watch(scans, same, scored)["target_spread"].item() == pytest.approx(0, abs=1e-6)
    assert watch(scans, line, scored)["rank"].item() == pytest.approx(1, abs=1e-4)
    healthy = watch(scans, isotropic, scored)
    assert healthy["target_spread"].item() == pytest.approx(1, abs=0.02)
    assert healthy["rank"].item() == pytest.approx(15, abs=1), "layer norm takes one dimension"
    assert healthy["scored"].item() == pytest.approx(scored.float().mean().item())
    broken = isotropic.clone()
    broken[~scored] = 1e6
    assert watch(scans, broken, scored) == healthy, "what is not scored does not count"
    assert watch(torch.ones(64, 16), isotropic, scored)["spread"].item() == pytest.approx(0, abs=1e-6)
    assert watch(scans[:1], isotropic[:1], scored[:1])["spread"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"error": "l3"}, "error must be one of smooth-l1, l1, l2, got 'l3'"),
        ({"blocks": 0}, "needs a target block"),
        ({"block": (0.5, 0.5, 1.5)}, "needs a target block"),
        ({"blocks": 5}, "sees 8 and predicts up to 20 of 27 patches\n  why: .*\n  do:  take fewer or smaller blocks"),
        ({"context": 0.01}, "sees 0 and predicts"),
        ({"context": 0.0}, "must hide a share of the patches between 0 and 1, got 1"),
        ({"crops": replace(CUBE, views=0)}, "needs at least 1 for crops.views, got 0"),
    ],
)
def test_settings_that_leave_nothing_to_see_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(Misuse, match=message):
        objective(**settings)


def test_an_encoder_without_patches_is_refused() -> None:
    with pytest.raises(Misuse, match="jepa cannot train the encoder slices-tiny"):
        Jepa(encoders.build("slices-tiny"), SMALL, SIGHT)


def test_the_defaults_fit_every_transformer() -> None:
    jepa = Jepa(encoders.build("vit-tiny", depth=1), JepaSettings(), SIGHT)
    assert jepa.grid == (6, 7, 6)
    assert jepa.seen_patches == 63
    assert math.prod(jepa.edges) * 4 == 96


def test_a_step_never_waits_for_the_device() -> None:
    jepa, (_, targets) = objective(), drawn(3)
    masked.never_waits(lambda: jepa.predicted(some_rows(), torch.rand(3, 27), targets))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_to_predict_and_leaves_a_checkpoint(tmp_path: Path, precision: str) -> None:
    run = masked.run(tmp_path, "jepa", SMALL, precision=precision)
    assert run.history["loss"][-5:].mean() < 0.8 * run.history["loss"][:3].mean()
    assert run.stopped == ""
    assert checkpoints.load(run.checkpoint).card.objective["jepa"]["blocks"] == 2


def test_the_spacing_of_the_view_reaches_both_encoders() -> None:
    jepa = Jepa(tiny(positions="rotary-mm", width=24), SMALL, SIGHT)
    seen = some_rows()
    wider = Seen(seen.image, 2 * seen.spacing_mm, seen.air)
    noise, targets = drawn(3)
    given = []
    jepa.predictor.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.no_grad():
        for one in (seen, wider):
            jepa.predicted(one, noise, targets)
            given.append(jepa.latents(one)[1])
    assert not torch.allclose(given[0], given[2])
    assert not torch.allclose(given[1], given[3])
