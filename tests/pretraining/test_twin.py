"""Comparison with a twin.

Oracles: the nested loop that the docstring says it equals, closed forms, finite differences (torch.autograd.gradcheck),
and the comparison of re-scans, to which it comes down where there are no twins.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pretraining.memory_cohort import MemoryCohort, heads
from pretraining.test_rescan import CROP, STILL, TINY, Patients
from pretraining.test_rescan import SMALL as RESCAN
from torch import Tensor

from headct import checkpoints, encoders
from headct.failure import Misuse
from headct.pretraining import PretrainSettings, pretrain
from headct.pretraining.feed import Order, batch_of
from headct.pretraining.objectives import Batch, Mixture, Sight
from headct.pretraining.objectives.contrast import between_patients
from headct.pretraining.objectives.rescan import Rescan, RescanSettings
from headct.pretraining.objectives.twin import Twin, TwinSettings, told_apart, with_twins
from headct.pretraining.scans import Scans
from headct.pretraining.settings import from_toml
from headct.pretraining.views import ViewSettings

SMALL = TwinSettings(crop=CROP, hidden=32, outputs=16)


def loop(vectors: np.ndarray, patients: list[int], known: list[bool], temperature: float, twin_weight: float) -> float:
    """The loss as the docstring writes it, with re-scans as anchors too."""
    unit = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    losses = []
    for a, p, t in (unit, unit[[1, 0, 2]]):
        for b in range(len(patients)):

            def s(one: np.ndarray, two: np.ndarray) -> float:
                return math.exp(one @ two / temperature)

            others = [j for j in range(len(patients)) if patients[j] != patients[b]]
            negatives = sum(s(a[b], a[j]) + s(a[b], p[j]) + known[j] * s(a[b], t[j]) for j in others)
            negatives += twin_weight * known[b] * s(a[b], t[b])
            losses.append(-math.log(s(a[b], p[b]) / (s(a[b], p[b]) + negatives)))
    return float(np.mean(losses))


KNOWN = [True, False, True, True]
PATIENTS = [0, 1, 2, 0]


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 4, 6)))
    return vectors, torch.tensor(PATIENTS), torch.tensor(KNOWN)


@pytest.mark.parametrize("twin_weight", [0.0, 1.0, 2.5])
def test_loss_is_the_nested_loop(twin_weight: float) -> None:
    vectors, patients, known = drawn()
    ours = with_twins(vectors, patients, known, twin_weight=twin_weight).losses(0.3).mean().item()
    assert ours == pytest.approx(loop(vectors.numpy(), PATIENTS, KNOWN, 0.3, twin_weight), rel=1e-12)


def test_gradients_are_finite_differences() -> None:
    vectors, patients, known = drawn()
    assert torch.autograd.gradcheck(
        lambda z: with_twins(z, patients, known, twin_weight=2.0).losses(0.3).mean(), vectors.requires_grad_()
    )


def test_order_of_scans_and_who_is_first_do_not_matter() -> None:
    vectors, patients, known = drawn()
    loss = with_twins(vectors, patients, known, twin_weight=2.0).losses(0.1).mean()
    new = [2, 0, 3, 1]
    shuffled = with_twins(vectors[:, new], patients[new], known[new], twin_weight=2.0)
    torch.testing.assert_close(shuffled.losses(0.1).mean(), loss)
    swapped = with_twins(vectors[[1, 0, 2]], patients, known, twin_weight=2.0)
    torch.testing.assert_close(swapped.losses(0.1).mean(), loss)


def test_a_twin_like_the_scan_costs_its_weight_by_hand() -> None:
    """One patient beside an orthogonal one; scan, re-scan and twin are all alike."""
    vectors = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    known = torch.tensor([True, False])
    losses = with_twins(vectors, torch.tensor([1, 2]), known, twin_weight=3.0).losses(0.1)
    far = math.exp(-1 / 0.1)
    expected = [math.log(1 + 3 + 2 * far), math.log(1 + 3 * far)]  # of the second patient there are two vectors
    assert_allclose(losses.numpy(), [*expected, *expected], rtol=1e-9)


def test_without_twins_it_is_the_comparison_of_rescans() -> None:
    vectors, patients, known = drawn()
    none = with_twins(vectors, patients, torch.zeros_like(known), twin_weight=2.0)
    torch.testing.assert_close(none.losses(0.1), between_patients(vectors[:2], patients).losses(0.1))
    vectors.requires_grad_()
    with_twins(vectors, patients, torch.zeros_like(known), twin_weight=2.0).losses(0.1).mean().backward()
    assert vectors.grad[2].abs().max() == 0


def test_the_loss_pulls_to_the_rescan_and_pushes_from_the_twin() -> None:
    vectors = torch.eye(4, dtype=torch.float64)[:3, None].repeat(1, 2, 1)  # scan, re-scan and twin at right angles
    vectors[:, 1] = torch.eye(4, dtype=torch.float64)[3]
    vectors.requires_grad_()
    known = torch.tensor([True, False])
    with_twins(vectors, torch.tensor([1, 2]), known, twin_weight=1.0).losses(0.3)[0].backward()
    down = -vectors.grad[0, 0]
    assert down[1] > 0 > down[2]


def test_told_apart_by_hand() -> None:
    vectors = torch.tensor([[[1.0, 0]] * 3, [[2, 0], [0, 1], [0, 1]], [[0, 1], [3, 0], [3, 0]]])
    assert told_apart(vectors, torch.tensor([True, True, False])).item() == 0.5
    assert told_apart(vectors, torch.tensor([False, False, False])).item() == 0


def objective(settings: TwinSettings = SMALL, views: ViewSettings | None = None) -> Twin:
    torch.manual_seed(0)
    encoder = encoders.build("vit-tiny", channels=1, **TINY)
    return Twin(encoder, settings, Sight(views or ViewSettings(), [(40, 80)])).train()


def batch(scans: int, objective: Twin, patients: int = 3) -> Batch:
    return batch_of(Scans([Patients(patients)]), objective, Order(0, scans, (1.0,)), 0)


def test_a_twin_is_seen_as_the_scan_is() -> None:
    """So they differ by the bleeding alone, 64 of 13824 voxels of 2 mm."""
    made, seen = objective(), []
    made.student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    rows = batch(9, made)
    made(rows, 0, 10)
    scans, _, twins = seen[0]
    having = [scan for scan, row in enumerate(rows.partners["twin"]) if row >= 0]
    assert len(having) == len(twins.image) == 6  # those with a finding and those without, not the re-scans
    differ = (scans.image[having] != twins.image).float().mean(dim=(1, 2, 3, 4))
    assert ((differ > 0) & (differ < 0.05)).all()


def test_all_is_as_if_worked_out_from_the_parts() -> None:
    """Each row reaches its own place, without BatchNorm: the loss from vectors that are made one by one."""
    made, made_z = objective(), []
    rows = batch(6, made)
    hook = made.student.register_forward_hook(lambda module, args, out: made_z.append((args[0], out[1])))
    loss, _ = made(rows, 0, 10)
    hook.remove()
    (scans, positives, twins), z = made_z[0]
    twin_of = {scan: n for n, scan in enumerate(scan for scan, row in enumerate(rows.partners["twin"]) if row >= 0)}
    blank = torch.zeros(z.shape[1])
    vectors = torch.stack(
        [
            torch.stack([z[scan] for scan in range(6)]),
            torch.stack([z[6 + scan] for scan in range(6)]),
            torch.stack([z[12 + twin_of[scan]] if scan in twin_of else blank for scan in range(6)]),
        ]
    )
    vectors[2, [scan not in twin_of for scan in range(6)]] = 1.0  # whatever stands there, it counts for nothing
    patients = [int(scan_id.split("-")[1]) // 3 for scan_id in rows.scan_ids[:6]]
    known = [scan in twin_of for scan in range(6)]
    expected = loop(vectors.detach().double().numpy(), patients, known, 0.1, 1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert len(positives.image) == len(scans.image) == 6
    assert len(twins.image) == len(twin_of)


def test_scans_that_have_no_partner_are_mixed_in() -> None:
    made = objective()
    mixed = Scans([Patients(1), MemoryCohort(heads(6, seed=9), name="real")])
    for step in range(3):
        loss, watched = made(batch_of(mixed, made, Order(0, 3, (1.0, 6.0)), step), step, 10)
        loss.backward()
        assert all(torch.isfinite(value) for value in watched.values())
    assert all(weight.grad is not None for weight in made.student.parameters())


def test_a_cohort_without_twins_is_refused(tmp_path: Path) -> None:
    settings = PretrainSettings(steps=1, encoder_settings=TINY, objectives={"twin": SMALL}, device="cpu")
    with pytest.raises(Misuse, match="no scan has a"):
        pretrain([MemoryCohort(heads(3))], tmp_path / "run", settings)


def test_a_run_learns_the_finding_and_says_that_it_knew(tmp_path: Path) -> None:
    settings = PretrainSettings(
        steps=120,
        batch=6,
        lr=1e-2,
        encoder_settings=TINY,
        objectives={"twin": SMALL},
        views=STILL,
        device="cpu",
    )
    run = pretrain([Patients(4, moved=0, noise_hu=2.0)], tmp_path / "run", settings)
    assert run.history["loss"][-10:].mean() < 0.8 * run.history["loss"][:10].mean()
    assert run.history["told_apart"][-30:].mean() > run.history["told_apart"][:20].mean() + 0.1
    assert checkpoints.load(run.checkpoint).card.objective["uses_findings"] is True
    assert from_toml((tmp_path / "run" / "settings.toml").read_text()) == run.settings


IN_TWO = PretrainSettings(
    steps=4, batch=6, encoder_settings=TINY, objectives={"twin": SMALL, "rescan": RESCAN}, device="cpu"
)
SCRIPT = """
import sys
from pathlib import Path
from pretraining.test_twin import IN_TWO, Patients
from headct.pretraining import pretrain
pretrain([Patients(4)], Path(sys.argv[1]), IN_TWO)
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """Float32 sums in another order, multiplied by Adam in the first steps, where it divides by itself."""
    (tmp_path / "script.py").write_text(SCRIPT)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    subprocess.run([*line, str(tmp_path / "script.py"), str(tmp_path / "two")], env=environment, check=True)
    two = pretrain([Patients(4)], tmp_path / "two", IN_TWO).history
    one = pretrain([Patients(4)], tmp_path / "one", IN_TWO).history
    for name in ("loss", "gradient_norm", "twin/loss", "rescan/loss"):
        assert_allclose(two[name], one[name], rtol=1e-3)


def test_a_mixture_uses_findings_if_one_of_its_parts_does() -> None:
    twin = objective()
    rescan = Rescan(twin.encoder, RescanSettings(crop=CROP), twin.sight)
    assert not Mixture({"rescan": rescan}, {"rescan": 1.0}).uses_findings
    assert Mixture({"rescan": rescan, "twin": twin}, {"rescan": 1.0, "twin": 1.0}).uses_findings
