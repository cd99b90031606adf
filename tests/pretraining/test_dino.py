"""The DINO objective.

Oracles: the published loss (fixture `dino_loss.npz`, tolerances of its manifest), the nested loop that the docstring
says it equals, and closed forms. The loop sums the same float64 numbers in another order: 1e-12.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders.published import uniform
from numpy.testing import assert_allclose

from headct import encoders
from headct.failure import Misuse
from headct.pretraining.objectives import OBJECTIVES, Sight, mixture
from headct.pretraining.objectives.dino import Dino, DinoSettings, between_views, dino_loss, watch
from headct.pretraining.objectives.insert import InsertSettings
from headct.pretraining.objectives.objective import Centre, follow, spread, teacher_of
from headct.pretraining.objectives.simclr import SimclrSettings
from headct.pretraining.schedules import cosine, ramp
from headct.pretraining.views import Seen, ViewSettings


def loop(student: np.ndarray, teacher: np.ndarray, centre: np.ndarray, student_t: float, teacher_t: float) -> float:
    """The loss as the docstring writes it."""

    def softmax(scores: np.ndarray) -> np.ndarray:
        return np.exp(scores) / np.exp(scores).sum()

    terms = []
    for a in range(len(teacher)):
        for v in range(len(student)):
            if a == v:
                continue
            for b in range(student.shape[1]):
                p = softmax((teacher[a, b] - centre) / teacher_t)
                q = softmax(student[v, b] / student_t)
                terms.append(-sum(p[k] * math.log(q[k]) for k in range(len(p))))
    return float(np.mean(terms))


@pytest.mark.parametrize(("global_views", "views"), [(2, 2), (2, 5), (1, 3)])
def test_loss_is_the_nested_loop(global_views: int, views: int) -> None:
    generator = np.random.default_rng(3)
    student, teacher = generator.normal(size=(views, 3, 7)), generator.normal(size=(global_views, 3, 7))
    centre = generator.normal(size=7)
    ours = dino_loss(*map(torch.from_numpy, (student, teacher, centre)), student_t=0.3, teacher_t=0.2)
    assert ours.item() == pytest.approx(loop(student, teacher, centre, 0.3, 0.2), rel=1e-12)


def test_loss_centre_and_gradients_equal_the_published_ones(shared: Path) -> None:
    published = np.load(shared / "fixtures" / "fm-hct" / "dino_loss.npz")
    centre = Centre(16, 0.9)
    for step in range(5):
        student, teacher = (
            torch.from_numpy((0.5 * (2 * uniform(f"{name}{step}", (views * 3, 16)) - 1)).astype(np.float32))
            for name, views in (("s", 4), ("t", 2))
        )
        student.requires_grad_()
        scores = student.reshape(4, 3, 16), teacher.reshape(2, 3, 16)
        teacher_t = ramp(step, 3, 0.04, 0.07)
        assert teacher_t == pytest.approx(published["loss/temp_schedule"][step], rel=1e-12)
        loss = dino_loss(*scores, centre.value, student_t=0.1, teacher_t=teacher_t)
        loss.backward()
        centre.note(scores[1].flatten(0, 1))
        centre.move()
        assert loss.item() == pytest.approx(published["loss/values"][step], rel=1e-5)
        assert_allclose(centre.value.numpy(), published["loss/centers"][step, 0], atol=1e-6)
        assert_allclose(student.grad.numpy(), published["loss/student_grads"][step], atol=1e-6, rtol=1e-4)


def test_equal_scores_cost_the_logarithm_of_the_number_of_prototypes() -> None:
    zeros = torch.zeros(2, 3, 16)
    assert dino_loss(zeros, zeros, zeros[0, 0], student_t=0.1, teacher_t=0.04).item() == pytest.approx(math.log(16))


def test_no_gradient_flows_through_the_teacher() -> None:
    teacher = torch.randn(2, 3, 4, requires_grad=True)
    student = torch.randn(2, 3, 4, requires_grad=True)
    dino_loss(student, teacher, torch.zeros(4), student_t=0.1, teacher_t=0.04).backward()
    assert teacher.grad is None
    assert student.grad is not None


def objective(**settings: object) -> Dino:
    torch.manual_seed(0)
    encoder = encoders.build("vit-tiny", depth=1, width=12, heads=2, mlp_width=16, patch=(4, 4, 4), grid=(2, 2, 2))
    small = {"prototypes": 8, "hidden": 8, "bottleneck": 4, "frozen_prototypes": 0.0}
    return Dino(encoder, DinoSettings(**{**small, **settings}), Sight(ViewSettings(), [(40, 80)])).train()


def some_views(scans: int = 3) -> tuple[list[Seen], list[Seen]]:
    """Global and local views."""
    torch.manual_seed(1)
    large, small = [torch.rand(scans, 3, 8, 8, 8) for _ in range(2)], [torch.rand(scans, 3, 4, 4, 4)]
    spacing_mm, air = torch.full((scans, 3), 2.0), torch.zeros(())
    return tuple([Seen(image, spacing_mm, air) for image in images] for images in (large, small))  # type: ignore[return-value]


def test_teacher_starts_as_the_student_and_takes_no_gradient() -> None:
    dino = objective()
    for mine, theirs in zip(dino.teacher.parameters(), dino.student.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine is not theirs
        assert not mine.requires_grad
    loss, _ = dino.compared(*some_views(), 0, 10)
    loss.backward()
    assert all(weight.grad is None for weight in dino.teacher.parameters())
    assert all(weight.grad is not None for weight in dino.student.parameters())


def test_teacher_follows_by_the_momentum_of_the_global_step() -> None:
    dino = objective(teacher_momentum=(0.9, 1.0))
    before = [weight.clone() for weight in dino.teacher.parameters()]
    with torch.no_grad():
        for weight in dino.student.parameters():
            weight.add_(1.0)
    dino.follow(700, 1000)
    momentum = cosine(700, 1000, 0.9, 1.0)
    for old, new in zip(before, dino.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + (1 - momentum), atol=1e-6, rtol=1e-6)


def test_the_centre_moves_once_a_step_after_the_loss_has_used_it() -> None:
    dino = objective(centre_momentum=0.5, batch_norm=False)
    global_views, local_views = some_views()
    with torch.no_grad():
        scores = dino.teacher(global_views)[1]
        student = torch.cat([dino.student(global_views)[1], dino.student(local_views)[1]])
        loss, _ = dino.compared(global_views, local_views, 0, 10)
        again, _ = dino.compared(global_views, local_views, 0, 10)  # another part of the step
    expected = dino_loss(student, scores, torch.zeros(8), student_t=0.1, teacher_t=0.02)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(again, loss)
    assert not dino.centre.value.any()
    dino.follow(0, 10)
    torch.testing.assert_close(dino.centre.value, 0.5 * scores.mean(dim=(0, 1)))
    dino.follow(0, 10)
    torch.testing.assert_close(dino.centre.value, 0.5 * scores.mean(dim=(0, 1)))  # nothing new was seen


def test_a_centre_moves_to_the_mean_of_all_that_counts_however_it_is_shared_out() -> None:
    scores = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
    counted = torch.tensor([True, False, True, True, True, False, False])
    centres = []
    for parts in ([7], [2, 5], [1, 4, 2]):
        centres.append(Centre(4, 0.25))
        for some, which in zip(scores.split(parts), counted.split(parts), strict=True):
            centres[-1].note(some, which)
        centres[-1].move()
    for centre in centres:
        torch.testing.assert_close(centre.value, 0.75 * scores[counted].mean(dim=0))
    assert list(centres[0].state_dict()) == ["value"]


def test_scores_do_not_mix_views_and_scans() -> None:
    dino = objective(batch_norm=False)
    views, _ = some_views()
    with torch.no_grad():
        together = dino.student(views)[1]
        for view in range(2):
            for scan in range(3):
                one = Seen(views[view].image[scan : scan + 1], views[view].spacing_mm[:1], views[view].air)
                alone = dino.student([one])[1][0, 0]
                torch.testing.assert_close(together[view, scan], alone, atol=1e-5, rtol=1e-5)


def test_frozen_prototypes_learn_only_after_their_share_of_the_steps() -> None:
    dino = objective(frozen_prototypes=0.5)
    moved = []
    for step in (0, 4, 5, 9):
        dino.zero_grad()
        loss, _ = dino.compared(*some_views(), step, 10)
        loss.backward()
        dino.restrain(step, 10)
        moved.append(dino.student.head.prototypes.weight.grad is not None)
    assert moved == [False, False, True, True]


def test_watch_tells_collapsed_from_healthy() -> None:
    generator = torch.Generator().manual_seed(0)
    same = torch.ones(2, 64, 32)
    isotropic = torch.randn(2, 64, 32, generator=generator)
    uniform_targets = torch.full((2, 64, 8), 1 / 8)
    one_prototype = torch.nn.functional.one_hot(torch.zeros(2, 64, dtype=torch.int64), 8).float()
    each_its_own = torch.nn.functional.one_hot(torch.arange(128).reshape(2, 64) % 8, 8).float()
    assert watch(same, uniform_targets)["spread"].item() == pytest.approx(0, abs=1e-6)
    assert watch(isotropic, uniform_targets)["spread"].item() == pytest.approx(1, abs=0.05)
    assert watch(same, uniform_targets)["entropy"].item() == pytest.approx(1)
    assert watch(same, one_prototype)["used"].item() == pytest.approx(0)
    assert watch(same, each_its_own)["used"].item() == pytest.approx(1)
    assert watch(same, each_its_own)["entropy"].item() == pytest.approx(0)


def test_targets_may_come_from_elsewhere() -> None:
    """Given the softmax of centred scores, it is the loss of those scores."""
    generator = torch.Generator().manual_seed(4)
    student, teacher = (torch.randn(views, 3, 7, generator=generator) for views in (4, 2))
    centre = torch.randn(7, generator=generator)
    targets = ((teacher - centre) / 0.2).softmax(dim=2).requires_grad_()
    loss = between_views(student.requires_grad_(), targets, student_t=0.3)
    torch.testing.assert_close(loss, dino_loss(student, teacher, centre, student_t=0.3, teacher_t=0.2))
    loss.backward()
    assert targets.grad is None


def test_few_targets_are_no_sign_of_a_collapse() -> None:
    """Of one scan all vectors and all prototypes are the same; deviations of one value would be no number, and warn."""
    sharp = torch.nn.functional.one_hot(torch.zeros(2, 1, dtype=torch.int64), 8).float()
    watched = watch(torch.randn(2, 1, 32), sharp)
    assert watched["spread"] == 1
    assert "used" not in watched
    assert "used" in watch(torch.randn(2, 3, 32), sharp.expand(2, 3, 8))
    assert spread(torch.randn(2, 1, 32, device="meta")).device.type == "meta"  # on the device of the vectors


def test_the_teachers_batch_norm_knows_what_the_teacher_saw() -> None:
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4, momentum=1.0))
    teacher = teacher_of(student)
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1.0)
    large, small = torch.randn(16, 3), 3 + torch.randn(16, 3)
    teacher(large)
    student(small)
    seen = teacher[0](large).detach()
    follow(teacher, student, 0.9)
    torch.testing.assert_close(teacher[1].running_mean, seen.mean(dim=0))
    torch.testing.assert_close(teacher[1].running_var, seen.var(dim=0))


def test_other_buffers_are_copied() -> None:
    student = torch.nn.Linear(2, 2)
    student.register_buffer("places", torch.zeros(3))
    teacher = teacher_of(student)
    student.places += 1
    follow(teacher, student, 0.9)
    assert torch.equal(teacher.places, torch.ones(3))


def test_the_teacher_drops_no_path() -> None:
    torch.manual_seed(0)
    encoder = encoders.build(
        "vit-tiny", depth=2, width=12, heads=2, mlp_width=16, patch=(4, 4, 4), grid=(2, 2, 2), drop_path=0.9
    )
    teacher, x = teacher_of(encoder).train(), torch.rand(8, 3, 8, 8, 8)
    assert torch.equal(teacher(x).scan, teacher(x).scan)
    assert not torch.equal(encoder.train()(x).scan, encoder(x).scan)


def test_what_an_objective_draws_does_not_depend_on_the_others() -> None:
    encoder = encoders.build("vit-tiny", depth=1, width=12, heads=2, mlp_width=16)
    sight = Sight(ViewSettings(), [(40, 80)])
    settings = {"dino": DinoSettings(prototypes=8), "simclr": SimclrSettings()}
    box_mm = {"scan": np.array([[4.0] * 3, [160.0] * 3])}
    draws = [
        mixture(encoder, {name: settings[name] for name in names}, sight).draw(np.random.default_rng(3), box_mm)
        for names in (["dino"], ["dino", "simclr"], ["simclr", "dino"])
    ]
    assert draws[0]["dino"] == draws[1]["dino"] == draws[2]["dino"]
    assert_allclose(draws[1]["simclr"].overlaps, draws[2]["simclr"].overlaps)
    assert draws[1]["dino"].local_views[0].noise_seed != draws[1]["simclr"].views[0][0].noise_seed


@pytest.mark.parametrize("name", ["dino", "simclr"])
def test_maps_that_nothing_trains_are_refused(name: str) -> None:
    """Else weights stay without a gradient, for which several processes would wait for ever."""
    small = {"inner_settings": {"widths": [2, 4, 6], "blocks": [1, 1, 1]}}
    sight = Sight(ViewSettings(), [(40, 80)])
    kind = OBJECTIVES[name].settings()
    encoder = encoders.build("anatomy-conv", pooling="inner", **small)
    with pytest.raises(Misuse, match=f"{name} would leave the maps of anatomy-conv untrained") as error:
        mixture(encoder, {name: kind}, sight)
    assert "conv-tiny" in str(error.value)
    mixture(encoder, {name: kind, "insert": InsertSettings()}, sight)
    mixture(encoders.build("anatomy-conv", **small), {name: kind}, sight)
