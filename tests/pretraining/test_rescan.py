"""Comparison with a re-scan.

Oracles: the published NT-Xent across scans (fixture `losses_and_schedules.npz`, 1e-5 for values and gradients, as its
manifest says), nested loops, closed forms, finite differences (torch.autograd.gradcheck), and one process for two.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from numpy.testing import assert_allclose
from pretraining.memory_cohort import MemoryCohort, heads
from torch import Tensor

from headct import checkpoints, encoders
from headct.failure import Misuse
from headct.pretraining import PretrainSettings, pretrain
from headct.pretraining.feed import Order, batch_of
from headct.pretraining.objectives import Batch, Sight
from headct.pretraining.objectives.contrast import between_patients, patients_of
from headct.pretraining.objectives.objective import dimensions, spread, spread_of
from headct.pretraining.objectives.rescan import Pair, Rescan, RescanSettings, distill_loss
from headct.pretraining.scans import Scans
from headct.pretraining.schedules import cosine
from headct.pretraining.settings import from_toml
from headct.pretraining.views import Crops, ViewSettings

TINY = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": [4, 4, 4], "grid": [3, 3, 3]}
CROP = Crops(views=1, shape=(12, 12, 12), edge_mm=(44.0, 48.0), overhang=0.05)
SMALL = RescanSettings(crop=CROP, hidden=32, outputs=16)
STILL = ViewSettings(rotation_deg=0.0, scale_hu=0.0, shift_hu=0.0, noise_hu=0.0)


class Patients(MemoryCohort):
    """Each patient three times: with a bleeding, without it, and with it again, perhaps moved, and noisier."""

    def __init__(self, count: int, *, moved: int = 1, noise_hu: float = 8.0) -> None:
        generator, arrays = np.random.default_rng(5), []
        for head in heads(count):
            bleeding, place = head.copy(), generator.integers(9, 13, size=3)
            bleeding[tuple(slice(at, at + 4) for at in place)] = 70
            again = np.roll(bleeding, moved, axis=1) + generator.normal(0, noise_hu, head.shape)
            arrays += [bleeding, head, again.astype(np.int16)]
        super().__init__(arrays, name="patients")
        self.about = {**self.about, "simulated": {"simulation": {"twin": "iph", "rescan": "site-b"}}}

    @property
    def scans(self) -> pd.DataFrame:  # type: ignore[override]
        table = super().scans
        return table.assign(patient_id=[f"patient {number // 3}" for number in range(len(table))])


def loop(scans: np.ndarray, positives: np.ndarray, patients: list[str], temperature: float) -> float:
    """NT-Xent where vectors of one's own patient are no negatives; each of a pair is an anchor."""
    vectors = np.concatenate([scans, positives])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    owners, count, losses = [*patients, *patients], len(scans), []
    for n in range(2 * count):
        positive = math.exp(vectors[n] @ vectors[(n + count) % (2 * count)] / temperature)
        negatives = sum(
            math.exp(vectors[n] @ vectors[m] / temperature) for m in range(2 * count) if owners[m] != owners[n]
        )
        losses.append(-math.log(positive / (positive + negatives)))
    return float(np.mean(losses))


def drawn(scans: int = 5, features: int = 6) -> tuple[Tensor, Tensor, list[str]]:
    """Vectors of scans and positives, the numbers of their patients, and the names of these; two are of one patient."""
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(2, scans, features)))
    patients = torch.tensor([*range(scans - 1), 0])
    return vectors, patients, [*(str(number) for number in range(scans - 1)), "0"]


def test_loss_and_gradients_equal_the_published_ones(shared: Path) -> None:
    folder = shared / "fixtures" / "ct-fm"
    arrays = np.load(folder / "losses_and_schedules.npz")
    info = json.loads((folder / "manifest.json").read_text())["files"]["losses_and_schedules.npz"]["info"]
    vectors = torch.from_numpy(np.stack([arrays["pair_a"], arrays["pair_b"]])).requires_grad_()
    loss = between_patients(vectors, torch.arange(6)).losses(0.1).mean()
    loss.backward()
    assert loss.item() == pytest.approx(info["ntxent_cross_sample/T0.1"]["value"], abs=1e-5)
    for number in range(2):
        assert_allclose(vectors.grad[number].numpy(), arrays[f"ntxent_cross_sample/T0.1/grad{number}"], atol=1e-5)


def test_loss_is_the_nested_loop() -> None:
    vectors, patients, names = drawn()
    ours = between_patients(vectors, patients).losses(0.3).mean().item()
    assert ours == pytest.approx(loop(*vectors.numpy(), names, 0.3), rel=1e-12)


def test_gradients_are_finite_differences() -> None:
    vectors, patients, _ = drawn()
    assert torch.autograd.gradcheck(
        lambda z: between_patients(z, patients).losses(0.3).mean(), vectors.requires_grad_()
    )


def test_order_of_scans_and_who_is_first_do_not_matter() -> None:
    vectors, patients, _ = drawn()
    loss = between_patients(vectors, patients).losses(0.1).mean()
    shuffled = [3, 0, 4, 1, 2]
    torch.testing.assert_close(between_patients(vectors[:, shuffled], patients[shuffled]).losses(0.1).mean(), loss)
    torch.testing.assert_close(between_patients(vectors.flip(0), patients).losses(0.1).mean(), loss)


def test_two_orthogonal_patients_by_hand() -> None:
    vectors = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    loss = between_patients(vectors, torch.tensor([1, 2])).losses(0.1)
    assert_allclose(loss.numpy(), math.log(1 + 2 * math.exp(-1 / 0.1)), rtol=1e-9)
    same = between_patients(vectors, torch.tensor([1, 1])).losses(0.1)
    assert_allclose(same.numpy(), 0, atol=1e-12)  # a patient is no negative of themselves


def batch(scans: int, objective: Rescan, patients: int = 3) -> Batch:
    return batch_of(Scans([Patients(patients)]), objective, Order(0, scans, (1.0,)), 0)


def objective(settings: RescanSettings = SMALL, views: ViewSettings | None = None) -> Rescan:
    torch.manual_seed(0)
    encoder = encoders.build("vit-tiny", channels=1, **TINY)
    return Rescan(encoder, settings, Sight(views or ViewSettings(), [(40, 80)])).train()


def test_scans_of_a_patient_are_known_by_the_patient() -> None:
    """Re-scans, twins, whether the objective asks for them or not, and whatever else a hospital has of someone."""
    rows = batch(9, objective())
    numbers = patients_of(rows)
    owners = [int(scan_id.split("-")[1]) // 3 for scan_id in rows.scan_ids[:9]]
    assert numbers.shape == (9,)
    assert (numbers[:, None] == numbers).tolist() == [[one == other for other in owners] for one in owners]


def test_one_scan_at_a_time_is_refused() -> None:
    with pytest.raises(Misuse, match="one scan at a time cannot be compared"):
        patients_of(batch(1, objective()))


def test_the_positive_is_the_rescan_or_the_scan_itself() -> None:
    made, seen = objective(views=STILL), []
    made.student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    rows = batch(9, made)
    made(replace(rows, draws=[Pair(draw.scan, draw.scan) for draw in rows.draws]), 0, 10)  # both seen alike
    scans, positives = seen[0]
    for scan, row in enumerate(rows.partners["rescan"]):
        assert torch.equal(scans.image[scan], positives.image[scan]) is (row < 0)
    assert sorted(np.sign(rows.partners["rescan"]).tolist()) == [-1] * 3 + [1] * 6


@pytest.mark.parametrize("form", ["contrast", "distill"])
def test_scans_that_have_no_partner_are_mixed_in(form: str) -> None:
    made = objective(replace(SMALL, form=form))
    mixed = Scans([Patients(2), MemoryCohort(heads(4, seed=9), name="real")])
    loss, watched = made(batch_of(mixed, made, Order(0, 10, (6.0, 4.0)), 0), 0, 10)
    loss.backward()
    assert all(weight.grad is not None for weight in made.student.parameters())
    assert all(torch.isfinite(value) for value in watched.values())


def test_without_batch_norm_projections_do_not_depend_on_the_batch() -> None:
    made, seen = objective(), []
    made.student.register_forward_hook(lambda module, args, out: seen.append(out[1].detach()))
    few, many = batch(4, made), batch(8, made)
    assert many.scan_ids[:4] == few.scan_ids[:4]
    made(few, 0, 10)
    made(many, 0, 10)
    for few_z, many_z in zip(seen[0].chunk(2), seen[1].chunk(2), strict=True):
        torch.testing.assert_close(few_z, many_z[:4], atol=1e-5, rtol=1e-5)


def test_distill_by_hand_and_without_gradient_of_the_teacher() -> None:
    foretold = torch.tensor([[1.0, 0], [1, 0], [2, 0]], requires_grad=True)
    targets = torch.tensor([[3.0, 0], [0, 1], [-1, 0]], requires_grad=True)
    loss = distill_loss(foretold, targets)
    assert loss.item() == pytest.approx((0 + 2 + 4) / 3)
    loss.backward()
    assert targets.grad is None


def test_each_view_foretells_the_other() -> None:
    """From the parts: BYOL's loss in both directions."""
    made = objective(replace(SMALL, form="distill"))
    seen: list[Tensor] = []
    made.student.register_forward_hook(lambda module, args, out: seen.append(out[1]))
    loss, _ = made(batch(4, made), 0, 10)
    foretold = made.predictor(seen[0]).chunk(2)
    first, second = seen[0].chunk(2)  # a teacher that has just begun says what the student says
    expected = (distill_loss(foretold[0], second) + distill_loss(foretold[1], first)) / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(weight.grad is None for weight in made.teacher.parameters())
    with torch.no_grad():
        for weight in made.student.parameters():
            weight.add_(1.0)
    before = [weight.clone() for weight in made.teacher.parameters()]
    made.follow(7, 10)
    for old, new in zip(before, made.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 1 - cosine(7, 10, 0.98, 1.0), atol=1e-6, rtol=1e-6)


THE_OTHER = """
import sys
import torch
from pretraining.test_rescan import in_group

torch.save(in_group(1, sys.argv[1]), sys.argv[2])
"""


def in_group(rank: int, store: str) -> tuple[Tensor, Tensor]:
    """The part of one of two processes."""
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        return shared_out(rank, 2)
    finally:
        dist.destroy_process_group()


def shared_out(rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of a linear map, of every `ranks`-th scan from `rank` on."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    patients = torch.tensor([0, 2, 3, 4, 5, 0])  # first and last in different processes
    known = torch.tensor([[True] * 6, [True] * 6, [True, False, True, True, False, True]])
    mine = slice(rank, None, ranks)
    contrast = between_patients(inputs[:, mine] @ weight, patients[mine], known[:, mine])
    loss = contrast.losses(0.3).mean()
    loss.backward()
    return loss.detach(), weight.grad


def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    """Processes average their losses and gradients, as DistributedDataParallel does; float64."""
    store, out = str(tmp_path / "store"), str(tmp_path / "out.pt")
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    other = subprocess.Popen([sys.executable, "-c", THE_OTHER, store, out], env=environment)
    here = in_group(0, store)
    assert other.wait(timeout=60) == 0
    parts = [here, torch.load(out)]
    for whole, *shared in zip(shared_out(0, 1), *parts, strict=True):
        torch.testing.assert_close(torch.stack(shared).mean(dim=0), whole, rtol=1e-10, atol=1e-12)
    assert not torch.equal(parts[0][1], parts[1][1])


@pytest.mark.parametrize("form", ["contrast", "distill"])
def test_a_run_brings_scans_and_rescans_together(tmp_path: Path, form: str) -> None:
    settings = PretrainSettings(
        steps=50,
        batch=6,
        lr=3e-3,
        encoder_settings=TINY,
        objectives={"rescan": replace(SMALL, form=form)},
        device="cpu",
    )
    run = pretrain([Patients(4)], tmp_path / "run", settings)
    assert run.history["loss"][-15:].mean() < 0.8 * run.history["loss"][:3].mean()
    assert run.history["spread"].iloc[-1] > 0.01
    card = checkpoints.load(run.checkpoint).card
    assert card.objective["rescan"]["form"] == form
    assert card.objective["uses_findings"] is False
    assert from_toml((tmp_path / "run" / "settings.toml").read_text()) == run.settings


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(Misuse, match="form must be one of contrast, distill"):
        RescanSettings(form="triplet")


def test_dimensions_are_those_in_which_vectors_differ() -> None:
    line = torch.stack([torch.ones(16), torch.linspace(0.9, 1.1, 16), torch.zeros(16)], dim=1)
    assert dimensions(line).item() == pytest.approx(1, abs=0.01)
    corners = torch.eye(9)  # on a sphere, in eight dimensions around their middle
    assert dimensions(corners).item() == pytest.approx(8, abs=1e-4)
    assert dimensions(torch.ones(16, 3)).item() < 1.02
    assert spread_of(line).keys() == {"spread", "dimensions"}
    assert spread_of(line[:4]).keys() == {"spread"}, "too few to tell"


def test_spread_tells_collapsed_from_healthy() -> None:
    assert spread(torch.ones(64, 32)).item() == pytest.approx(0, abs=1e-6)
    assert spread(torch.randn(64, 32, generator=torch.Generator().manual_seed(0))).item() == pytest.approx(1, abs=0.05)
