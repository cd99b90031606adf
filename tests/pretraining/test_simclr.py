"""Contrast within a scan.

Oracles: the published loss (fixture `losses_and_schedules.npz`, 1e-5 for values and gradients, as its manifest says),
the nested loop that the docstring says it equals, closed forms, and finite differences (torch.autograd.gradcheck).
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pretraining.ct_fm import PUBLISHED, apart, published_loss
from pretraining.memory_cohort import MemoryCohort, heads
from torch import Tensor

from headct import checkpoints, encoders
from headct.encoders import Encoder
from headct.failure import Misuse
from headct.pretraining import PretrainSettings, pretrain, to_toml
from headct.pretraining.feed import Order, batch_of
from headct.pretraining.objectives import Batch, Sight
from headct.pretraining.objectives.simclr import (
    Simclr,
    SimclrSettings,
    box_of,
    intra_sample,
    overlaps_of,
    variance_loss,
)
from headct.pretraining.scans import Scans
from headct.pretraining.settings import from_toml
from headct.pretraining.views import Crops, View, ViewSettings, crop

TINY = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": [4, 4, 4], "grid": [2, 2, 2]}
SMALL = SimclrSettings(crops=Crops(views=4, shape=(8, 8, 8), edge_mm=(16.0, 20.0), overhang=0.0), hidden=16, outputs=8)


def loop(views: np.ndarray, overlaps: np.ndarray, temperature: float) -> float:
    """The loss as the docstring writes it: first views alone are anchors."""
    crops, _, scans, _ = views.shape
    unit = views / np.linalg.norm(views, axis=3, keepdims=True)
    a, p, w, t = unit[:, 0], unit[:, 1], 1 - overlaps, temperature
    losses = []
    for b in range(scans):
        for i in range(crops):
            positive = math.exp(a[i, b] @ p[i, b] / t)
            negatives = sum(
                w[b, i, j] * (math.exp(a[i, b] @ a[j, b] / t) + math.exp(a[i, b] @ p[j, b] / t))
                for j in range(crops)
                if j != i
            )
            losses.append(-math.log(positive / (positive + negatives)))
    return float(np.mean(losses))


def drawn(crops: int = 4, scans: int = 3, features: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors, and overlaps among which are crops that are apart and crops that are one."""
    generator = np.random.default_rng(seed)
    views = generator.normal(size=(crops, 2, scans, features))
    overlaps = generator.uniform(size=(scans, crops, crops))
    overlaps = (overlaps + overlaps.transpose(0, 2, 1)) / 2
    overlaps[:, 0, 1] = overlaps[:, 1, 0] = 0
    overlaps[:, 2, 3] = overlaps[:, 3, 2] = 1
    overlaps[:, range(crops), range(crops)] = 1
    return torch.from_numpy(views), torch.from_numpy(overlaps)


@pytest.mark.parametrize("case", PUBLISHED)
def test_loss_and_gradients_equal_the_published_ones(shared: Path, case: str) -> None:
    folder = shared / "fixtures" / "ct-fm"
    arrays = np.load(folder / "losses_and_schedules.npz")
    info = json.loads((folder / "manifest.json").read_text())["files"]["losses_and_schedules.npz"]["info"]
    views, loss = published_loss(case, arrays)
    assert loss.item() == pytest.approx(info[f"intrasample_ntxent/{case}"]["value"], abs=1e-5)
    gradients = f"intrasample_ntxent/{case}/grad0"
    if gradients in arrays:
        assert_allclose(views.grad.numpy(), arrays[gradients], atol=1e-5)
    assert np.array_equal(views.detach().numpy(), arrays[PUBLISHED[case][0]].astype(np.float32))  # not overwritten


def test_settings_of_the_published_run_give_its_loss(shared: Path) -> None:
    arrays = np.load(shared / "fixtures" / "ct-fm" / "losses_and_schedules.npz")
    published = replace(SMALL, symmetric=False, overlapping_negatives=True, variance_weight=0.3)
    views, overlaps = torch.from_numpy(arrays["emb_5crops_3scans_8d"]), torch.full((3, 5, 5), 0.7)
    assert objective(published).compared(views, overlaps)[0].item() == pytest.approx(0.329004, abs=1e-5)


def test_loss_is_the_nested_loop() -> None:
    views, overlaps = drawn()
    ours = intra_sample(views, overlaps, symmetric=False).losses(0.3).mean()
    assert ours.item() == pytest.approx(loop(views.numpy(), overlaps.numpy(), 0.3), rel=1e-12)
    both = (loop(views.numpy(), overlaps.numpy(), 0.3) + loop(views.flip(1).numpy(), overlaps.numpy(), 0.3)) / 2
    assert intra_sample(views, overlaps).losses(0.3).mean().item() == pytest.approx(both, rel=1e-12)


def test_orthogonal_crops_by_hand() -> None:
    """Two crops, each of whose views agree: a cosine of 1 with the positive, of 0 with the two negatives."""
    views = torch.eye(2, dtype=torch.float64)[:, None, None, :].expand(2, 2, 1, 2)
    expected = math.log(1 + 2 * math.exp(-1 / 0.1))
    assert intra_sample(views, apart(views)).losses(0.1).mean().item() == pytest.approx(expected, rel=1e-9)


def test_gradients_are_finite_differences() -> None:
    views, overlaps = drawn(scans=2)
    assert torch.autograd.gradcheck(
        lambda z: intra_sample(z, overlaps).losses(0.3).mean() + variance_loss(z), views.requires_grad_()
    )


def test_order_of_crops_and_scans_does_not_matter() -> None:
    views, overlaps = drawn()
    loss = intra_sample(views, overlaps).losses(0.1).mean()
    crops, scans = [2, 0, 3, 1], [1, 2, 0]
    again = intra_sample(views[crops][:, :, scans], overlaps[scans][:, crops][:, :, crops]).losses(0.1).mean()
    torch.testing.assert_close(again, loss)


def test_crops_of_one_place_are_no_negatives_of_each_other() -> None:
    views, _ = drawn(crops=4)
    twice = torch.cat([views, views])  # each place is seen by two crops
    overlaps = torch.eye(4, dtype=views.dtype).repeat(2, 2).expand(3, -1, -1)
    contrast = intra_sample(twice, overlaps)
    assert contrast.weights.sum(dim=2).unique().tolist() == [12.0]  # 3 other places, 2 crops of each, 2 views of each
    one_place = twice[[0, 4]]
    one = intra_sample(one_place, torch.ones(3, 2, 2, dtype=views.dtype))
    assert one.losses(0.1).abs().max().item() == 0  # where the published loss rises above log 2, and cannot fall
    assert intra_sample(one_place, apart(one_place)).losses(0.1).min().item() > math.log(2)


def test_matched_counts_the_nearest() -> None:
    views = torch.eye(4)[:, None, None, :].repeat(1, 2, 1, 1)
    assert intra_sample(views, apart(views)).matched().item() == 1
    views[0, 1], views[1, 1] = views[1, 0].clone(), views[0, 0].clone()  # two of four crops are mistaken for each other
    assert intra_sample(views, apart(views)).matched().item() == 0.5
    assert intra_sample(torch.ones(4, 2, 1, 4), apart(views)).matched().item() == 0


def test_overlaps_by_hand() -> None:
    unit = np.array([[0.0, 0, 0], [1, 1, 1]])
    moved = [np.add(unit, by) for by in ([0, 0, 0], [0.5, 0, 0], [0.5, 0.5, 0], [1, 0, 0])]
    boxes = np.stack([*moved, 2 * unit])
    expected = [1, 0.5 / 1.5, 0.25 / 1.75, 0, 1 / 8]
    overlaps = overlaps_of(boxes)
    assert_allclose(overlaps[0], expected, rtol=1e-12)
    assert_allclose(overlaps, overlaps.T)
    assert_allclose(np.diag(overlaps), 1)


def test_overlaps_of_published_crops(shared: Path) -> None:
    """In heads two crops share half of their volume; Monte Carlo, 0.01 as the manifest says."""
    info = json.loads((shared / "fixtures" / "ct-fm" / "manifest.json").read_text())["files"]["tasks.npz"]["info"]
    size, generator = np.array([32, 128, 128]), np.random.default_rng(0)
    for name, published in info["crop_overlap"].items():
        if name == "note":
            continue
        room = np.maximum(np.array(published["volume"]) - size, 0)
        starts = generator.integers(0, room + 1, size=(200, 15, 3))
        of_pairs = [overlaps_of(np.stack([start, start + size], axis=1))[np.triu_indices(15, 1)] for start in starts]
        assert np.mean(of_pairs) == pytest.approx(published["mean_iou"], abs=0.01)
        assert np.mean(np.array(of_pairs) > 0.5) == pytest.approx(published["fraction_pairs_iou_over_half"], abs=0.02)


def test_a_view_covers_what_the_published_resized_crop_covers(shared: Path) -> None:
    """Inside: at the border theirs repeats the crop's last voxels, ours looks at what lies there."""
    arrays = np.load(shared / "fixtures" / "ct-fm" / "tasks.npz")
    image, shape, roi, start = arrays["aug/input"], (16, 20, 24), np.array([8, 10, 12]), np.array([3, 6, 6])
    view = View(tuple(start + (roi - 1) / 2), 0.5, (0, 0, 0), False, 1, 0, 0, 0, 0, 0, 0, 0, 1)  # type: ignore[arg-type]
    crops = Crops(views=1, shape=shape, edge_mm=(8.0, 8.0), overhang=0.0)
    ours = crop(torch.from_numpy(image), [view], crops, (1.0, 1.0, 1.0), outside=0.0)[0].numpy()
    theirs = arrays["aug/resized_crop_scale0.5"][0]
    assert_allclose(ours[1:-1, 1:-1, 1:-1], theirs[1:-1, 1:-1, 1:-1], atol=1e-5)


def test_crops_lie_on_the_head_and_views_within_their_crop() -> None:
    box_mm = np.array([[10.0, 20.0, 5.0], [160.0, 210.0, 155.0]])
    made = objective(SimclrSettings(view_edge=(0.5, 0.9)))
    draw, again = (made.draw(np.random.default_rng(3), {"scan": box_mm}) for _ in range(2))
    assert draw.views == again.views
    assert draw.overlaps.shape == (8, 8)
    assert 0 < (draw.overlaps.sum() - 8) / 56 < 0.3
    edges_mm = [view.voxel_mm * 48 for views in draw.views for view in views]
    assert 0.5 * 56 <= min(edges_mm) < max(edges_mm) <= 0.9 * 72
    for views in draw.views:
        boxes = np.stack([box_of(view, made.settings.crops) for view in views])
        assert (boxes >= box_mm[0] - 1e-9).all()
        assert (boxes <= box_mm[1] + 1e-9).all()
        assert (np.ptp(np.concatenate(boxes), axis=0) <= 72 + 1e-9).all()  # both lie in one crop


def objective(settings: SimclrSettings = SMALL, encoder: Encoder | None = None) -> Simclr:
    torch.manual_seed(0)
    encoder = encoder or encoders.build("vit-tiny", channels=1, **TINY)
    return Simclr(encoder, settings, Sight(ViewSettings(), [(40, 80)])).train()


ENCODERS = {
    "vit-tiny": {"channels": 1, **TINY},
    "segresenc": {"channels": 1, "init_filters": 4, "blocks_down": (1, 1)},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_scan_costs_the_same_in_any_batch(name: str) -> None:
    """With the statistics of BatchNorm at rest; so the loss of a batch is the mean over its scans."""
    made = objective(encoder=encoders.build(name, **ENCODERS[name])).eval()
    batch = batch_of(Scans([MemoryCohort(heads(3))]), made, Order(0, 3, (1.0,)), 0)
    with torch.no_grad():
        together, watched = made(batch, 0, 10)
        alone = [made(replace_scans(batch, scan), 0, 10)[0] for scan in range(3)]
    torch.testing.assert_close(together, torch.stack(alone).mean())
    assert set(watched) == {"matched", "spread", "dimensions", "overlap", "air"}


def replace_scans(batch: Batch, scan: int) -> Batch:
    row = slice(scan, scan + 1)
    return replace(batch, scan_ids=batch.scan_ids[row], hu=batch.hu[row], draws=batch.draws[row])


@pytest.mark.parametrize("name", ENCODERS)
def test_crops_of_a_batch_are_learned(name: str) -> None:
    """Always the same batch: the losses of others differ by more than a short run gains."""
    torch.manual_seed(0)
    made = objective(encoder=encoders.build(name, **ENCODERS[name]))
    batch = batch_of(Scans([MemoryCohort(heads(4))]), made, Order(0, 4, (1.0,)), 0)
    optimizer, losses = torch.optim.Adam(made.parameters(), lr=1e-3), []
    for step in range(40):
        loss, _ = made(batch, step, 40)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_run_leaves_a_checkpoint(tmp_path: Path, name: str) -> None:
    settings = PretrainSettings(
        steps=3,
        batch=4,
        encoder=name,
        encoder_settings={**ENCODERS[name], "channels": 3},
        objectives={"simclr": SMALL},
        device="cpu",
    )
    run = pretrain([MemoryCohort(heads(6))], tmp_path / "run", settings)
    assert np.isfinite(run.history["loss"]).all()
    card = checkpoints.load(run.checkpoint).card
    assert card.objective["name"] == "simclr"
    assert card.objective["uses_findings"] is False


def test_settings_are_read_again_and_what_cannot_be_is_refused() -> None:
    settings = PretrainSettings(steps=1, objectives={"simclr": replace(SMALL, view_edge=(0.4, 0.9))})
    assert from_toml(to_toml(settings)) == settings
    with pytest.raises(Misuse, match=r"crops\.views must be 2 or more"):
        replace(SMALL, crops=replace(SMALL.crops, views=1))
    with pytest.raises(Misuse, match="view_edge must rise"):
        replace(SMALL, view_edge=(0.5, 1.5))


@pytest.mark.slow
def test_a_whole_run_learns_which_views_are_of_one_place(tmp_path: Path) -> None:
    """Of the 7 other views of its scan one is right, so chance is 1/7; the untrained network does better than that."""
    settings = PretrainSettings(
        steps=60,
        batch=8,
        lr=3e-3,
        encoder_settings=TINY,
        objectives={"simclr": SMALL},
        save_every=1000,
        device="cpu",
    )
    run = pretrain([MemoryCohort(heads(16))], tmp_path / "run", settings)
    matched, loss = run.history["matched"], run.history["loss"]
    first, last = matched[:5].mean(), matched[-10:].mean()
    assert last > max(2.5 / 7, first + 0.1)
    assert loss[-10:].mean() < loss[:5].mean() - 0.25
    assert not run.stopped
