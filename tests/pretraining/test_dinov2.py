"""The DINOv2 objective.

Oracles: nested loops in float64 as the docstrings write them (1e-10: the same numbers in another order), finite
differences, and closed forms. Processes are compared with one that has all the samples.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.testing import assert_allclose, assert_array_equal
from pretraining.memory_cohort import MemoryCohort, heads

from headct import encoders
from headct.encoders.vit import Masked, cut
from headct.failure import Misuse
from headct.pretraining import PretrainSettings, pretrain
from headct.pretraining.objectives import OBJECTIVES, Batch, Sight
from headct.pretraining.objectives.dinov2 import (
    Dinov2,
    Dinov2Settings,
    draw_masked_blocks,
    koleo,
    near_head,
    patch_loss,
    sinkhorn,
)
from headct.pretraining.objectives.mae import in_one
from headct.pretraining.views import Crops, Seen, ViewSettings
from headct.pretraining.views import draw as draw_view

# ---------------------------------------------------------------------------------------------------------- Sinkhorn


def sinkhorn_loop(scores: np.ndarray, temperature: float, rounds: int) -> np.ndarray:
    """Sinkhorn-Knopp as the docstring writes it, number by number."""
    samples, prototypes = scores.shape
    q = np.exp(scores / temperature)
    for _ in range(rounds):
        for k in range(prototypes):
            q[:, k] = q[:, k] / sum(q[n, k] for n in range(samples)) / prototypes
        for n in range(samples):
            q[n] = q[n] / sum(q[n, k] for k in range(prototypes)) / samples
    return q * samples


def some_scores(samples: int, prototypes: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (samples, prototypes)))


@pytest.mark.parametrize("rounds", [1, 3, 7])
def test_sinkhorn_is_the_nested_loop(rounds: int) -> None:
    scores = some_scores(9, 5)
    assert_allclose(sinkhorn(scores, 0.2, rounds), sinkhorn_loop(scores.numpy(), 0.2, rounds), rtol=1e-10)


def test_sinkhorn_gives_each_sample_one_and_each_prototype_the_same() -> None:
    q = sinkhorn(some_scores(24, 6), 0.3, 200)
    assert_allclose(q.sum(dim=1), 1.0, rtol=1e-12)
    assert_allclose(q.sum(dim=0), 24 / 6, rtol=1e-9)


def test_sinkhorn_is_finite_at_the_lowest_temperature_in_float32() -> None:
    scores = torch.tensor([[1.0, -1.0, -1.0], [1.0, 1.0, -1.0], [1.0, -1.0, -1.0]])  # none likes the third
    q = sinkhorn(scores, 0.01, 3)
    assert torch.isfinite(q).all()
    assert_allclose(q.sum(dim=1), 1.0, rtol=1e-6)


def test_samples_that_do_not_count_take_nothing() -> None:
    scores = some_scores(10, 4)
    counted = torch.arange(10) % 3 > 0
    q = sinkhorn(scores, 0.2, 3, counted)
    assert_allclose(q[counted], sinkhorn(scores[counted], 0.2, 3), rtol=1e-12)
    assert torch.isfinite(sinkhorn(scores, 0.2, 3, torch.zeros(10, dtype=torch.bool))).all()
    assert sinkhorn(scores[:0], 0.2, 3, counted[:0]).shape == (0, 4)


def _share_of_sinkhorn(rank: int, address: str, counts: list[int], folder: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=len(counts))
    first = sum(counts[:rank])
    mine = some_scores(sum(counts), 5)[first : first + counts[rank]]
    torch.save(sinkhorn(mine, 0.2, 3, torch.ones(len(mine), dtype=torch.bool)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("counts", [[4, 5], [9, 0]])
def test_processes_share_sinkhorn(tmp_path: Path, counts: list[int]) -> None:
    address = f"file://{tmp_path}/meeting"
    mp.spawn(_share_of_sinkhorn, (address, counts, str(tmp_path)), nprocs=2)
    together = torch.cat([torch.load(tmp_path / f"{rank}.pt") for rank in range(2)])
    assert_allclose(together, sinkhorn(some_scores(9, 5), 0.2, 3), rtol=1e-12)


# ------------------------------------------------------------------------------------------------- KoLeo and patches


def test_koleo_is_the_brute_force() -> None:
    vectors = torch.from_numpy(np.random.default_rng(1).normal(size=(7, 5)))
    unit = [v / np.sqrt((v**2).sum()) for v in vectors.numpy()]
    nearest = [min(np.sqrt(((a - b) ** 2).sum()) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    assert koleo(vectors).item() == pytest.approx(-np.mean(np.log(nearest)), rel=1e-6)


def test_koleo_survives_equal_scans_and_one_scan() -> None:
    same = torch.ones(3, 4, requires_grad=True)
    loss = koleo(same)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(same.grad).all()
    assert koleo(torch.ones(1, 4)).item() == 0


def test_koleo_gradient_equals_finite_differences() -> None:
    vectors = torch.from_numpy(np.random.default_rng(2).normal(size=(4, 3))).requires_grad_()
    assert torch.autograd.gradcheck(koleo, vectors)


def patch_loop(scores: np.ndarray, p: np.ndarray, row: list[int], counted: list[bool], student_t: float) -> float:
    of_rows = []
    for r in sorted(set(row)):
        losses = []
        for m in range(len(row)):
            if row[m] == r and counted[m]:
                q = np.exp(scores[m] / student_t) / np.exp(scores[m] / student_t).sum()
                losses.append(-sum(p[m, k] * math.log(q[k]) for k in range(len(q))))
        if losses:
            of_rows.append(np.mean(losses))
    return float(sum(of_rows)) / 4


def test_patch_loss_is_the_nested_loop_and_so_are_its_gradients() -> None:
    scores, targets = some_scores(8, 5), sinkhorn(some_scores(8, 5, seed=1), 0.1)
    row, counted = [0, 0, 0, 2, 2, 3, 5, 5], [True, False, True, True, True, False, True, False]
    arguments = (torch.tensor(row), torch.tensor(counted), 6)
    loss = patch_loss(scores, targets, *arguments, student_t=0.3, masked=4)
    assert loss.item() == pytest.approx(patch_loop(scores.numpy(), targets.numpy(), row, counted, 0.3), rel=1e-10)
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: patch_loss(s, targets, *arguments, student_t=0.3, masked=4), scores)


def test_no_patch_costs_nothing() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert patch_loss(torch.zeros(0, 4), torch.zeros(0, 4), none, none.bool(), 4, student_t=0.1, masked=0).item() == 0


# ------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_blocks_mask_exactly_their_share_of_what_is_allowed(share: float) -> None:
    rng = np.random.default_rng(0)
    allowed = np.zeros((6, 7, 6), dtype=bool)
    allowed[1:5, 1:6, :5] = True
    kept = allowed.copy()
    for _ in range(50):
        masked = draw_masked_blocks(rng, allowed, share)
        assert masked.sum() == round(share * allowed.sum())
        assert not (masked & ~allowed).any()
    assert_array_equal(allowed, kept)


def test_masked_patches_lie_together() -> None:
    rng = np.random.default_rng(0)
    allowed = np.ones((8, 8, 8), dtype=bool)

    def neighbours(masked: np.ndarray) -> float:
        return float(np.mean([(masked & np.roll(masked, 1, axis)).sum() for axis in range(3)]) / masked.sum())

    blocks = np.mean([neighbours(draw_masked_blocks(rng, allowed, 0.25)) for _ in range(30)])
    scattered = np.mean([neighbours(rng.permuted(np.arange(512) < 128).reshape(8, 8, 8)) for _ in range(30)])
    assert scattered == pytest.approx(0.25, abs=0.05)
    assert blocks > 2 * scattered


def test_patches_near_the_head_are_those_with_a_voxel_in_its_box() -> None:
    vit = encoders.build("vit-tiny", channels=1, **ENCODER)
    box_mm = np.array([[10.0, 18.0, 3.0], [35.0, 30.0, 17.0]])
    for seed in range(20):
        crops = Crops(views=1, shape=(12, 12, 10), edge_mm=(20.0, 60.0), overhang=0.4)
        settings = ViewSettings(rotation_deg=0.0, mirror=0.5)
        view = draw_view(np.random.default_rng(seed), settings, crops, box_mm)
        fine = np.arange(-0.5 + 0.005, 11.5, 0.01)  # voxels, so finely that no patch is missed
        inside = []
        for axis, voxels in enumerate(crops.shape):
            offset = fine - (voxels - 1) / 2
            place_mm = view.centre_mm[axis] + view.voxel_mm * (-offset if view.mirrored and axis == 0 else offset)
            within = (place_mm > box_mm[0, axis]) & (place_mm < box_mm[1, axis])
            inside.append([within[(fine > 4 * n - 0.5) & (fine < 4 * n + 3.5)].any() for n in range(3)])
        expected = np.einsum("i,j,k->ijk", *np.array(inside))
        assert_array_equal(near_head(vit, view, crops.shape, box_mm), expected)


def test_masks_at_the_edges() -> None:
    rng = np.random.default_rng(0)
    assert not draw_masked_blocks(rng, np.zeros((2, 2, 2), dtype=bool), 0.5).any()
    assert draw_masked_blocks(rng, np.ones((1, 1, 2), dtype=bool), 0.1).sum() == 1


# --------------------------------------------------------------------------------------------------------- objective

SMALL = {
    "global_crops": Crops(views=2, shape=(12, 12, 12), edge_mm=(48.0, 52.0), overhang=0.0),
    "local_crops": Crops(views=1, shape=(8, 8, 8), edge_mm=(16.0, 24.0), overhang=0.0),
    "prototypes": 6,
    "patch_prototypes": 8,
    "hidden": 8,
    "bottleneck": 4,
    "frozen_prototypes": 0.0,
}
ENCODER = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 16, "patch": (4, 4, 4), "grid": (3, 3, 3)}


def objective(encoder: dict[str, object] | None = None, **settings: object) -> Dinov2:
    torch.manual_seed(0)
    vit = encoders.build("vit-tiny", **{"channels": 1, **ENCODER, **(encoder or {})})
    return Dinov2(vit, Dinov2Settings(**{**SMALL, **settings}), Sight(ViewSettings(), [(40, 80)])).train()


def some_rows(scans: int = 3) -> tuple[Seen, Seen, np.ndarray]:
    """Global and local views of the scans, with air at one end, and masks of half of the global ones."""
    generator = torch.Generator().manual_seed(1)
    large, small = (
        torch.rand(rows, 1, edge, edge, edge, generator=generator) + 0.1 for rows, edge in ((2 * scans, 12), (scans, 8))
    )
    large[..., 8:] = 0.0
    masked = np.random.default_rng(0).random((2, scans, 27)) < 0.4
    masked[1] = False
    return *(Seen(image, torch.full((len(image), 3), 4.0), torch.zeros(())) for image in (large, small)), masked


def test_masked_voxels_do_not_reach_the_student() -> None:
    dino = objective()
    large, _, masked = some_rows()
    where = torch.from_numpy(masked.reshape(6, 27))
    boxes = where.reshape(6, 1, 3, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    changed = torch.where(boxes, torch.rand_like(large.image), large.image)
    replaced = Masked(where, dino.mask_token)
    before, after = (dino.student.encoder(image, None, replaced) for image in (large.image, changed))
    assert not torch.equal(large.image, changed)
    assert torch.equal(before.scan, after.scan)
    assert torch.equal(before.tokens, after.tokens)
    plain = dino.student.encoder(large.image)
    assert torch.equal(plain.scan[3:], before.scan[3:])  # views without masks are as they are
    assert not torch.allclose(plain.scan[:3], before.scan[:3])


def test_a_mask_is_the_token_at_its_place() -> None:
    dino = objective()
    vit = dino.student.encoder
    with torch.no_grad():
        dino.mask_token.normal_()
        image = torch.rand(1, 1, 12, 12, 12)
        where = torch.zeros(1, 27, dtype=torch.bool)
        where[0, 5] = True
        embedded = vit.embedding(cut(image, (4, 4, 4))[0])
        embedded[0, 5] = dino.mask_token
        tokens = vit.positions(embedded, (3, 3, 3))
        tokens = torch.cat([vit.class_token, vit.register_tokens, tokens], dim=1)
        expected = vit.norm(vit.blocks[0](tokens))
        found = vit(image, None, Masked(where, dino.mask_token))
    torch.testing.assert_close(found.tokens, expected[:, 1 + vit.settings.registers :])
    torch.testing.assert_close(found.scan, expected[:, 0])


def test_air_is_neither_masked_nor_scored() -> None:
    """What the teacher makes of air, and whether air was drawn, changes nothing."""
    large, small, masked = some_rows()
    without_air = masked & (np.arange(27) % 3 < 2)  # the third axis runs fastest, and its last cell is air
    assert (masked != without_air).any()
    losses = [objective().compared(large, small, one, 0, 10)[0] for one in (masked, without_air)]
    torch.testing.assert_close(*losses)


def test_the_loss_is_the_sum_of_its_parts_whatever_the_order_of_scans() -> None:
    large, small, masked = some_rows(4)
    dino = objective(patches=0.7, koleo=0.3)
    loss, watched = dino.compared(large, small, masked, 0, 10)
    torch.testing.assert_close(loss, watched["dino"] + 0.7 * watched["ibot"] + 0.3 * watched["koleo"])
    turn = torch.tensor([2, 0, 3, 1])
    rows = torch.cat([turn, turn + 4])
    turned = Seen(large.image[rows], large.spacing_mm, large.air), replace(small, image=small.image[turn])
    again, watched_again = dino.compared(*turned, masked[:, turn], 0, 10)
    torch.testing.assert_close(loss, again)
    assert watched.keys() == watched_again.keys()
    assert all(value.ndim == 0 for value in watched.values())


def test_gradients_equal_finite_differences() -> None:
    """Of a direction through all weights, in float64.

    Central, with a step of 1e-8: heads start with small weights, so the loss is steep and bends.
    """
    dino = objective().double()
    large, small, masked = some_rows()
    large, small = (Seen(one.image.double(), one.spacing_mm, one.air) for one in (large, small))
    loss, _ = _in_double(dino, large, small, masked)
    loss.backward()
    weights = [weight for weight in dino.parameters() if weight.requires_grad]
    assert all(weight.grad is not None for weight in weights)
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(weight.shape, generator=generator, dtype=torch.float64) for weight in weights]
    expected = sum((weight.grad * way).sum() for weight, way in zip(weights, direction, strict=True))
    values = []
    for step in (1e-8, -2e-8):
        with torch.no_grad():
            for weight, way in zip(weights, direction, strict=True):
                weight.add_(way, alpha=step)
            values.append(_in_double(dino, large, small, masked)[0])
    torch.testing.assert_close((values[0] - values[1]) / 2e-8, expected, rtol=1e-4, atol=1e-6)


def _in_double(dino: Dinov2, *rows: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss without its rounding to float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return dino.compared(*rows, 0, 10)  # type: ignore[arg-type]


def test_mean_centring_moves_both_centres() -> None:
    large, small, masked = some_rows()
    dino = objective(centring="mean", centre_momentum=0.5)
    with torch.no_grad():
        expected = 0.5 * dino.teacher.head(dino.teacher.encoder(large.image).scan).mean(dim=0)
        dino.compared(large, small, masked, 0, 10)
        dino.follow(0, 10)
    torch.testing.assert_close(dino.centre.value, expected)
    assert dino.patch_centre.value.abs().sum() > 0


def test_parts_of_a_batch_add_up_to_it() -> None:
    """With a running mean; Sinkhorn-Knopp and KoLeo compare the scans of a batch. One scan has no masked tissue."""
    large, small, masked = some_rows(4)
    masked[0, 1] = np.arange(27) % 3 == 2  # air alone
    dino = objective(centring="mean", batch_norm=False, koleo=0.0)

    def of(scans: list[int]) -> torch.Tensor:
        rows = [*scans, *(4 + scan for scan in scans)]
        some = [
            Seen(one.image[which], one.spacing_mm[which], one.air) for one, which in ((large, rows), (small, scans))
        ]
        return dino.compared(*some, masked[:, scans], 0, 10)[0]

    torch.testing.assert_close((of([0, 1]) + of([2, 3])) / 2, of([0, 1, 2, 3]))


def test_teacher_takes_no_gradient_and_heads_are_untied() -> None:
    dino = objective()
    loss, _ = dino.compared(*some_rows(), 0, 10)
    loss.backward()
    assert all(weight.grad is None for weight in dino.teacher.parameters())
    assert all(weight.grad is not None for weight in dino.student.parameters())
    assert dino.mask_token.grad is not None
    assert not set(map(id, dino.student.head.parameters())) & set(map(id, dino.student.patch_head.parameters()))
    assert "mask_token" not in dict(dino.encoder.named_parameters())
    objective(frozen_prototypes=0.5).restrain(0, 10)  # without gradients there is nothing to drop
    dino.settings = replace(dino.settings, frozen_prototypes=0.5)
    dino.restrain(4, 10)
    assert dino.student.head.prototypes.weight.grad is None
    assert dino.student.patch_head.prototypes.weight.grad is None


def test_a_draw_masks_half_of_the_views_on_the_head() -> None:
    dino = objective({"patch": (2, 2, 2), "grid": (6, 6, 6)})
    box_mm = np.array([[2.0, 2.0, 2.0], [44.0, 52.0, 44.0]])
    for seed in range(20):
        draw = dino.draw(np.random.default_rng(seed), {"scan": box_mm})
        again = dino.draw(np.random.default_rng(seed), {"scan": box_mm})
        assert_array_equal(draw.masked, again.masked)
        assert draw.masked.shape == (2, 216)
        assert sorted((draw.masked.sum(axis=1) > 0).tolist()) == [False, True]
        assert 0.05 < draw.masked.sum() / 216 <= 0.5


def test_a_scan_is_treated_alike_in_any_batch() -> None:
    dino = objective()
    hu = torch.from_numpy(np.stack(heads(3)))
    draws = [dino.draw(np.random.default_rng(n), {"scan": np.array([[4.0] * 3, [44.0] * 3])}) for n in range(3)]
    seen = {}

    def note(large: Seen, small: Seen | None, masked: np.ndarray, *_: int) -> tuple[torch.Tensor, dict]:
        seen[len(seen)] = large.image, masked
        return torch.zeros(()), {}

    dino.compared = note  # type: ignore[method-assign]
    for rows in ([0, 1, 2], [1]):
        dino(Batch(("",), hu[rows], (2.0, 2.0, 2.0), {}, None, None, [draws[row] for row in rows]), 0, 10)
    torch.testing.assert_close(seen[0][0][[1, 4]], seen[1][0], atol=1e-5, rtol=1e-5)
    assert_array_equal(seen[0][1][:, [1]], seen[1][1])


def test_views_become_rows_view_by_view() -> None:
    views = [Seen(torch.full((3, 1, 2, 2, 2), float(n)), torch.ones(3, 3), torch.zeros(())) for n in range(2)]
    assert in_one(views).image[:, 0, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("settings", [{}, {"centring": "mean", "batch_norm": True}])
def test_a_short_run(tmp_path: Path, precision: str, settings: dict[str, object]) -> None:
    run = pretrain(
        [MemoryCohort(heads(5))],
        tmp_path / "run",
        PretrainSettings(
            steps=3,
            batch=3,
            precision=precision,
            encoder_settings={**ENCODER, "drop_air": True, "positions": "rotary-mm", "heads": 4, "pooling": "mean"},
            objectives={"dinov2": Dinov2Settings(**{**SMALL, **settings})},
            device="cpu",
        ),
    )
    assert np.isfinite(run.history[["loss", "dino", "ibot", "koleo", "entropy", "patch_entropy"]]).all().all()
    assert (run.history["masked"] > 0).all()


# ------------------------------------------------------------------------------------------------------------ misuse


def test_only_a_transformer_can_be_trained() -> None:
    with pytest.raises(Misuse, match="dinov2 cannot train"):
        OBJECTIVES["dinov2"].make(encoders.build("segresenc"), Dinov2Settings(), Sight(ViewSettings(), [(40, 80)]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"centring": "none"}, "sinkhorn, mean"),
        ({"masked_share": (0.0, 0.5)}, "rising range"),
        ({"global_crops": replace(SMALL["global_crops"], views=1)}, "at least 2 global views"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(Misuse, match=said):
        Dinov2Settings(**settings)  # type: ignore[arg-type]
