"""Changes that are put in: where they lie, what they change, and that no scan's depend on its batch.

Oracles: an egg-shaped head of known cavity, the difference of HU before and after, losses written as loops.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining.memory_cohort import MemoryCohort, heads

from headct import checkpoints, encoders
from headct.encoders.anatomy import CHANGES
from headct.failure import Misuse
from headct.pretraining import PretrainSettings, pretrain
from headct.pretraining.cavity import cavity, depth, enclosed, grown, level_hu, shrunk
from headct.pretraining.objectives import Batch, Sight
from headct.pretraining.objectives.insert import (
    KINDS,
    Insert,
    InsertDraw,
    InsertSettings,
    draw_changes,
    found_loss,
    inserted,
)
from headct.pretraining.views import Crops, View, ViewSettings, draw

MM = 4.0
SHAPE = (32, 40, 32)
CROPS = Crops(views=1, shape=(24, 28, 24), edge_mm=(96.0, 100.0), overhang=0.0)
SMALL = {"inner_settings": {"widths": [2, 4, 6], "blocks": [1, 1, 1]}}
BOX_MM = np.array([[20.0, 20.0, 20.0], [100.0, 130.0, 100.0]])
SIGHT = Sight(ViewSettings(), [(40, 80), (80, 200), (600, 2800)])


def head() -> tuple[torch.Tensor, torch.Tensor]:
    """HU of a head with ventricles, and which voxels lie within its skull."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in axes))
    hu = np.select([distance < 0.25, distance < 0.75, distance < 0.87, distance < 0.95], [8, 32, 900, 40], -1000)
    return torch.from_numpy(hu.astype(np.float32))[None], torch.from_numpy(distance < 0.75)[None]


def view(seed: int = 0) -> View:
    return replace(draw(np.random.default_rng(seed), ViewSettings(), CROPS, BOX_MM), voxel_mm=MM)


def drawn(seed: int, changes: int = 3, kinds: tuple[str, ...] = tuple(KINDS)) -> InsertDraw:
    settings = InsertSettings(changes=(changes, changes), shares=dict.fromkeys(kinds, 1.0))
    return draw_changes(np.random.default_rng(seed), settings, view(seed))


def test_cavity_is_what_the_skull_encloses() -> None:
    hu, within = head()
    found = cavity(hu, MM)
    assert not (found & ~within).any()
    assert (found & within).sum() > 0.95 * within.sum()  # a narrow tip may be lost
    assert level_hu(hu, within).item() == pytest.approx(32)


def test_no_skull_no_cavity_and_no_change() -> None:
    hu = torch.full((1, *SHAPE), 35.0)
    assert not cavity(hu, MM).any()
    after, shares = inserted(hu, cavity(hu, MM), [drawn(0)], MM)
    assert torch.equal(after, hu)
    assert not shares.any()


def test_enclosed_counts_directions_by_loop() -> None:
    bone = torch.rand(1, 4, 5, 3, generator=torch.Generator().manual_seed(0)) > 0.8
    found = enclosed(bone)[0]
    for place in np.ndindex(4, 5, 3):
        count = 0
        for axis in range(3):
            line = bone[0][tuple(slice(None) if one == axis else place[one] for one in range(3))]
            count += bool(line[: place[axis] + 1].any()) + bool(line[place[axis] + 1 :].any())
        assert found[place] == count


def test_depth_and_its_steps_by_loop() -> None:
    mask = torch.rand(1, 6, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.1
    padded = np.pad(mask[0].numpy(), 1)
    fewer, more = shrunk(mask)[0], grown(mask)[0]
    for i, j, k in np.ndindex(6, 6, 6):
        around = padded[i : i + 3, j : j + 3, k : k + 3]
        assert fewer[i, j, k].item() == around.all()
        assert more[i, j, k].item() == around.any()
    assert torch.equal(depth(mask, 3)[0], sum(one[0].short() for one in (mask, shrunk(mask), shrunk(shrunk(mask)))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_lies_within_the_skull_and_its_mask_is_where_hu_changed(kind: str) -> None:
    hu, within = head()
    seen = 0
    for seed in range(4):
        after, shares = inserted(hu, within, [drawn(seed, 1, (kind,))], MM)
        filled = shares[0, CHANGES.index(KINDS[kind].channel)]
        assert shares[0].sum() == filled.sum()  # in one channel alone
        assert torch.equal(after[0] != hu[0], filled > 0)
        assert not (filled > 0)[~within[0]].any()
        if kind == "fluid":
            assert (hu[0][filled > 0] < 10).all()
        if kind == "skull":
            assert (depth(within, 9)[0][filled > 0] * MM <= 24).all()
        seen += int((filled > 0).sum())
    assert seen > 0


def test_strengths_are_those_that_were_drawn() -> None:
    hu, within = head()
    for kind, low, high in (("bright", 32 + 13, 32 + 48), ("dark", 32 - 20, 32 - 6)):
        one = drawn(5, 1, (kind,))
        plain = InsertDraw(one.view, [replace(one.changes[0], texture_hu=0.0, place=0.8)], one.seed)
        after, shares = inserted(hu, within, [plain], MM)
        full = (shares[0].amax(0) == 1) & (hu[0] == 32)
        assert full.any()
        assert after[0][full].min().item() == pytest.approx(after[0][full].max().item(), abs=1e-4)
        assert low <= after[0][full].mean().item() <= high


def test_a_scan_is_changed_alike_in_any_batch() -> None:
    hu, within = head()
    darker = hu - 3
    draws = [drawn(1, 4), drawn(2, 1)]
    both = torch.cat([hu, darker])
    together, shares = inserted(both, torch.cat([within, within]), draws, MM)
    for row in range(2):
        alone, share = inserted(both[row : row + 1], within, [draws[row]], MM)
        assert torch.equal(together[row : row + 1], alone)
        assert torch.equal(shares[row : row + 1], share)


def test_draws_are_decided_by_the_generator() -> None:
    objective = Insert(encoders.build("anatomy-conv", **SMALL), InsertSettings(crops=CROPS), SIGHT)
    one, same, other = (objective.draw(np.random.default_rng(seed), {"scan": BOX_MM}) for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_loss_is_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 2, 5, generator=generator, dtype=torch.float64)
    shares = torch.rand(2, 2, 5, generator=generator, dtype=torch.float64) * (logits > -1)
    shares[1, 0] = 0
    known = torch.tensor([1.0, 1, 0, 1, 1], dtype=torch.float64).expand(2, 1, 5)
    bce, dice = found_loss(logits, shares, positives=9.0, guard=0.15, known=known)
    terms, dices = [], [[], []]
    for b, k in np.ndindex(2, 2):
        p = [1 / (1 + math.exp(-logit)) for logit in logits[b, k].tolist()]
        s, w = shares[b, k].tolist(), known[b, 0].tolist()
        for m in range(5):
            weight = w[m] * (0.15 if s[m] == 0 and p[m] > 0.5 else 1 + 8 * s[m])
            terms.append(-weight * (s[m] * math.log(p[m]) + (1 - s[m]) * math.log(1 - p[m])))
        if sum(one * two for one, two in zip(s, w, strict=True)) > 0:
            overlap = sum(w[m] * p[m] * s[m] for m in range(5))
            sizes = sum(w[m] * (p[m] + s[m]) for m in range(5))
            dices[b].append(1 - (2 * overlap + 1) / (sizes + 1))
    assert bce.item() == pytest.approx(float(np.mean(terms)), rel=1e-12)
    assert [len(of_scan) for of_scan in dices] == [2, 1]
    assert dice.item() == pytest.approx(np.mean([np.mean(of_scan) for of_scan in dices]), rel=1e-12)


def test_losses_of_parts_of_a_batch_add_up_to_it() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, shares = torch.randn(4, 2, 5, generator=generator), torch.rand(4, 2, 5, generator=generator)
    shares[1], shares[2, 0] = 0, 0  # a scan without changes, and one without the first kind
    whole = torch.stack(found_loss(logits, shares, positives=9.0))
    parts = [torch.stack(found_loss(logits[rows], shares[rows], positives=9.0)) for rows in torch.arange(4).split(1)]
    torch.testing.assert_close(torch.stack(parts).mean(dim=0), whole)


def test_a_batch_without_changes_has_a_finite_loss() -> None:
    hu, _ = head()
    settings = InsertSettings(crops=CROPS, changes=(0, 0))
    objective = Insert(encoders.build("anatomy-conv", **SMALL), settings, SIGHT)
    draws = [objective.draw(np.random.default_rng(seed), {"scan": BOX_MM}) for seed in range(2)]
    batch = Batch(("a", "b"), torch.cat([hu, hu]).to(torch.int16), (MM, MM, MM), {}, None, None, draws)
    loss, watched = objective(batch, 0, 1)
    assert math.isfinite(loss.item())
    assert watched["dice"].item() == 0
    assert 0 < watched["air"] < 1


def test_other_encoders_and_settings_are_refused() -> None:
    with pytest.raises(Misuse, match="the objective insert cannot train conv-tiny") as error:
        Insert(encoders.build("conv-tiny"), InsertSettings(), SIGHT)
    assert "--encoder anatomy-conv" in str(error.value)
    for wrong, message in (
        ({"shares": {"bleed": 1.0}}, "no change 'bleed'"),
        ({"shares": {"dark": 0.0}}, "not be negative, nor all of them zero"),
        ({"changes": (3, 1)}, "rising range"),
    ):
        with pytest.raises(Misuse, match=message):
            InsertSettings(**wrong)  # type: ignore[arg-type]


def test_a_short_run_learns_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    settings = PretrainSettings(
        objectives={"insert": InsertSettings(crops=replace(CROPS, shape=(16, 16, 16)))},
        encoder="anatomy-conv",
        encoder_settings=SMALL,
        steps=6,
        batch=2,
        device="cpu",
    )
    run = pretrain([MemoryCohort(heads(4, SHAPE), mm=MM)], tmp_path / "run", settings)
    assert np.isfinite(run.history["loss"]).all()
    encoder = checkpoints.load(run.checkpoint).encoder
    assert encoder.architecture == "anatomy-conv"
    assert encoder.settings.pooling == "anatomy"
