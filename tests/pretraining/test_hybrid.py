"""The hybrid objective.

Oracles: the two objectives it is made of, each worked out alone from the same numbers; central differences in float64,
of which a step of 1e-6 leaves an error near 1e-9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders.published import uniform
from pretraining import masked
from pretraining.masked import CUBE, SIGHT, check_gradients, row, some_rows, tiny

from headct import checkpoints, encoders
from headct.encoders.mae import hide_tissue
from headct.encoders.vit import cut
from headct.failure import Misuse
from headct.pretraining.objectives.dino import dino_loss
from headct.pretraining.objectives.hybrid import Hybrid, HybridSettings
from headct.pretraining.objectives.mae import DecoderSettings, Mae, MaeSettings, in_one, is_tissue
from headct.pretraining.schedules import cosine
from headct.pretraining.views import Seen

DECODER = DecoderSettings(width=12, depth=1, heads=2, mlp_width=16)
SMALL = HybridSettings(
    crops=replace(CUBE, views=2),
    share=0.7,
    decoder=DECODER,
    prototypes=8,
    hidden=8,
    bottleneck=4,
    batch_norm=False,
    frozen_prototypes=0.0,
    student_temperature=0.2,
)


def objective(pooling: str = "class", **settings: object) -> Hybrid:
    hybrid = Hybrid(tiny(pooling=pooling), replace(SMALL, **settings), SIGHT).train()
    torch.manual_seed(6)
    with torch.no_grad():  # a head, a teacher and a centre that have moved
        for weight in [*hybrid.head.parameters(), *hybrid.teacher.parameters()]:
            weight.add_(0.2 * torch.randn_like(weight))
        hybrid.centre.value.normal_(std=0.1)
    return hybrid


def two_views(scans: int = 3, dtype: torch.dtype = torch.float32) -> tuple[list[Seen], torch.Tensor]:
    """Two views of each scan, and noise for the rows."""
    both = some_rows(2 * scans)
    both = replace(both, image=both.image.to(dtype))
    views = [row(both, *range(scans)), row(both, *range(scans, 2 * scans))]
    return views, torch.from_numpy(uniform("noise", (2 * scans, 27)).astype(np.float32))


@pytest.mark.parametrize("pooling", ["class", "mean", "class+mean"])
def test_the_loss_is_that_of_both_parts(pooling: str) -> None:
    hybrid, (views, noise) = objective(pooling, rebuilding=2.0, distilling=0.3), two_views()
    mae = Mae(hybrid.vit, MaeSettings(crops=CUBE, share=0.7, decoder=DECODER), SIGHT)
    mae.decoder = hybrid.decoder
    centre = hybrid.centre.value.clone()
    with torch.no_grad():
        rebuilding, _ = mae.rebuilt(in_one(views), noise)
        targets = torch.stack([hybrid.teacher.head(hybrid.teacher.encoder(v.image).scan) for v in views])
        scores = []
        for view, of_view in zip(views, noise.chunk(2), strict=True):
            hiding = hide_tissue(of_view, 0.7, is_tissue(cut(view.image, (4, 4, 4))[0]))
            tokens, _ = hybrid.vit.sequence(view.image, keep=hiding.keep)
            parts = {"class": tokens[:, 0], "mean": tokens[:, 5:].mean(dim=1)}
            scores.append(hybrid.head(torch.cat([parts[part] for part in pooling.split("+")], dim=1)))
        loss, watched = hybrid.compared(views, noise, 0, 10)
    distilling = dino_loss(torch.stack(scores), targets, centre, student_t=0.2, teacher_t=0.02)
    assert loss.item() == pytest.approx(2.0 * rebuilding.item() + 0.3 * distilling.item(), rel=1e-5)
    assert watched["rebuilding"].item() == pytest.approx(rebuilding.item(), rel=1e-5)
    assert watched["distilling"].item() == pytest.approx(distilling.item(), rel=1e-5)
    hybrid.follow(0, 10)
    torch.testing.assert_close(hybrid.centre.value, 0.9 * centre + 0.1 * targets.mean(dim=(0, 1)))


def test_gradients_equal_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # scores are float32 at least, here more
    hybrid, (views, noise) = objective().double(), two_views(dtype=torch.float64)

    check_gradients(hybrid, lambda: hybrid.compared(views, noise, 0, 10)[0])
    assert all(weight.grad is None for weight in hybrid.teacher.parameters())


def test_the_student_is_shown_only_what_is_kept_and_the_teacher_all() -> None:
    hybrid, (views, noise) = objective(), two_views()
    student, teacher = [], []
    hybrid.head.register_forward_pre_hook(lambda _, inputs: student.append(inputs[0]))
    hybrid.teacher.head.register_forward_pre_hook(lambda _, inputs: teacher.append(inputs[0]))
    others = [replace(view, image=view.image.clone()) for view in views]
    for view, of_view in zip(others, noise.chunk(2), strict=True):
        hidden = hide_tissue(of_view, 0.7, is_tissue(cut(view.image, (4, 4, 4))[0])).hidden
        for scan, number in hidden.nonzero().tolist():
            masked.fill(view.image[scan], number, 0.7)
    with torch.no_grad():
        for seen in (views, others):
            hybrid.compared(seen, noise, 0, 10)
    assert torch.equal(student[0], student[1])
    assert (teacher[0] - teacher[1]).abs().amax(dim=1).min() > 1e-3


def test_the_loss_of_a_batch_is_the_mean_of_its_scans_in_any_order() -> None:
    """Without BatchNorm, which compares the scans of a batch."""
    hybrid, (views, noise) = objective(), two_views(4)

    def of(scans: Sequence[int]) -> torch.Tensor:
        some = [row(view, *scans) for view in views]
        with torch.no_grad():
            return hybrid.compared(some, torch.cat([part[list(scans)] for part in noise.chunk(2)]), 0, 10)[0]

    torch.testing.assert_close(of([0, 1, 2, 3]), (of([0, 2]) + of([3, 1])) / 2)
    torch.testing.assert_close(of([2, 0, 3, 1]), of([0, 1, 2, 3]))


def test_the_teacher_follows_by_the_momentum_of_the_step() -> None:
    hybrid = Hybrid(tiny(), replace(SMALL, batch_norm=True, teacher_momentum=(0.9, 1.0)), SIGHT)
    student = [*hybrid.vit.parameters(), *hybrid.head.parameters()]
    before = [weight.clone() for weight in hybrid.teacher.parameters()]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(before, student, strict=True))
    with torch.no_grad():
        for weight in student:
            weight.add_(1.0)
    hybrid.follow(300, 1000)
    gained = 1 - cosine(300, 1000, 0.9, 1.0)
    for old, new in zip(before, hybrid.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + gained, atol=1e-6, rtol=1e-6)
    assert hybrid.encoder is hybrid.teacher.encoder


def test_frozen_prototypes_learn_only_after_their_share_of_the_steps() -> None:
    hybrid, (views, noise) = objective(frozen_prototypes=0.5), two_views()
    moved = []
    for step in (0, 4, 5):
        hybrid.zero_grad()
        hybrid.compared(views, noise, step, 10)[0].backward()
        hybrid.restrain(step, 10)
        moved.append(hybrid.head.prototypes.weight.grad is not None)
    assert moved == [False, False, True]


def test_a_single_view_is_refused_and_so_is_an_encoder_without_patches() -> None:
    with pytest.raises(Misuse, match=r"hybrid needs at least 2 for crops.views, got 1"):
        replace(SMALL, crops=CUBE)
    with pytest.raises(Misuse, match="hybrid cannot train the encoder slices-tiny"):
        Hybrid(encoders.build("slices-tiny"), SMALL, SIGHT)


def test_a_step_never_waits_for_the_device() -> None:
    hybrid, (views, noise) = objective(), two_views()
    masked.never_waits(lambda: hybrid.compared(views, noise, 0, 10))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_both_and_leaves_a_checkpoint(tmp_path: Path, precision: str) -> None:
    run = masked.run(tmp_path, "hybrid", replace(SMALL, batch_norm=True), precision=precision)
    assert run.history["rebuilding"][-5:].mean() < 0.5 * run.history["rebuilding"][:3].mean()
    assert run.history["loss"][-5:].mean() < run.history["loss"][:3].mean()
    assert {"distilling", "entropy", "used", "spread", "explained"} <= set(run.history.columns)
    assert checkpoints.load(run.checkpoint).card.objective["hybrid"]["prototypes"] == 8
