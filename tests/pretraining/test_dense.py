"""Tissues and template coordinates from the truth of virtual patients, without a word about findings.

Oracles: closed forms (a template that is the coordinate itself, crops that are shifts), losses written as loops.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining.test_insert import BOX_MM, CROPS, MM, SHAPE, SIGHT, SMALL, head, view

from headct import checkpoints, encoders
from headct.encoders.anatomy import CHANGES, TISSUES
from headct.failure import Misuse
from headct.pretraining import PretrainSettings, pretrain
from headct.pretraining.objectives import Batch, mixture
from headct.pretraining.objectives.dense import (
    Dense,
    DenseInsert,
    DenseInsertSettings,
    DenseSettings,
    place_loss,
    tissue_loss,
    true_changes,
    true_places,
    true_tissues,
)
from headct.pretraining.objectives.insert import InsertSettings
from headct.pretraining.objectives.objective import TEMPLATE_BLOCK, UNKNOWN_CLASS
from headct.virtual.job import Job, run
from headct.virtual.simulated import Simulation
from headct.virtual.truth import CLASSES


def classes_of(hu: torch.Tensor) -> torch.Tensor:
    """Of the egg-shaped head: brain, ventricles and skull."""
    tissue = torch.where(hu == 32, 1, torch.where(hu == 8, 2, torch.where(hu == 900, 3, 0)))
    return tissue.to(torch.uint8)


def template(shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """Of each block the mean place of its voxels, in mm from the corner, (1, x, y, z, 3)."""
    axes = np.meshgrid(*(np.arange(n // TEMPLATE_BLOCK) * TEMPLATE_BLOCK + 1.5 for n in shape), indexing="ij")
    return torch.from_numpy(MM * np.stack(axes, axis=-1).astype(np.float32))[None]


def batch(objective: Dense | DenseInsert, classes: torch.Tensor | None = None) -> Batch:
    hu, _ = head()
    classes = classes_of(hu) if classes is None else classes
    draws = [objective.draw(np.random.default_rng(7), {"scan": BOX_MM})]
    return Batch(("a",), hu.to(torch.int16), (MM, MM, MM), {}, classes, template(), draws)


def dense(**settings: object) -> Dense:
    torch.manual_seed(0)
    return Dense(encoders.build("anatomy-conv", **SMALL), DenseSettings(crops=CROPS, **settings), SIGHT)


def test_every_voxel_of_a_known_head_has_one_tissue() -> None:
    hu, within = head()
    tissues = true_tissues(classes_of(hu), hu, within)
    assert torch.equal(tissues.sum(dim=1), torch.ones_like(hu))
    found = {name: hu[tissues[:, index] > 0].unique().tolist() for index, name in enumerate(TISSUES)}
    assert found == {"air": [-1000], "outside": [40], "skull": [900], "fluid": [], "ventricles": [8], "brain": [32]}
    folds = true_tissues(torch.zeros_like(hu), hu, within)[:, TISSUES.index("fluid")]
    assert torch.equal(folds > 0, within)  # what lies within the skull and has no class


def test_of_findings_and_of_what_is_unknown_no_tissue_is_told() -> None:
    hu, within = head()
    lesions = [name for name in CLASSES if name not in ("brain", "ventricles", "skull")]
    for value in (*(CLASSES.index(name) + 1 for name in lesions), UNKNOWN_CLASS):
        classes = torch.full_like(hu, value)
        assert not true_tissues(classes, hu, within).any()


def test_without_findings_the_loss_does_not_know_which_one_it_is() -> None:
    objective = dense().eval()
    assert not objective.uses_findings
    losses = []
    for name in ("iph", "infarct", "tumor"):
        classes = classes_of(head()[0])
        classes[0, 12:18, 14:22, 18:24] = CLASSES.index(name) + 1
        losses.append(objective(batch(objective, classes), 0, 1)[0].item())
    assert losses[0] == losses[1] == losses[2]


def test_with_findings_they_are_told_and_the_run_says_so() -> None:
    objective = dense(findings=True).eval()
    assert objective.uses_findings
    classes = classes_of(head()[0])
    before = objective(batch(objective, classes), 0, 1)[1]["findings_dice"].item()
    classes[0, 12:18, 14:22, 18:24] = CLASSES.index("iph") + 1
    assert objective(batch(objective, classes), 0, 1)[1]["findings_dice"].item() > before == 0


def test_changes_that_findings_are() -> None:
    values = [0, *range(1, len(CLASSES) + 1), UNKNOWN_CLASS]
    changes, known = true_changes(torch.tensor(values).reshape(1, 1, 1, -1))
    names = ["", *CLASSES, "unknown"]
    assert {names[n] for n in range(len(values)) if not known[0, 0, 0, 0, n]} == {"tumor", "fracture", "unknown"}
    told = {
        names[n]: CHANGES[int(changes[0, :, 0, 0, n].argmax())]
        for n in range(len(values))
        if changes[0, :, 0, 0, n].any()
    }
    assert told == {
        "iph": "bright",
        "edema": "dark",
        "infarct": "dark",
        "ivh": "fluid",
        "sah": "fluid",
        "sdh": "skull",
        "edh": "skull",
    }


@pytest.mark.parametrize("mirrored", [False, True])
def test_places_are_those_of_the_crop(mirrored: bool) -> None:
    plain = replace(view(), angles_deg=(0.0, 0.0, 0.0), mirrored=mirrored, centre_mm=(62.0, 78.0, 62.0))
    places_mm, placed = true_places(template(), [plain], CROPS, (MM, MM, MM))
    assert placed.all()
    offsets = [(np.arange(n) - (n - 1) / 2) * MM for n in CROPS.shape]
    sign = -1 if mirrored else 1
    for axis in range(3):
        expected = plain.centre_mm[axis] + (sign if axis == 0 else 1) * offsets[axis]
        expected = expected.reshape(-1, 2).mean(axis=1).repeat(2) * (sign if axis == 0 else 1)
        along = places_mm[0, axis].movedim(axis, 0)[:, 3, 5].numpy()
        np.testing.assert_allclose(along, expected, atol=1e-3)


def test_what_is_not_known_of_the_template_is_not_asked() -> None:
    blocks = template()
    blocks[:, :4] = np.nan
    places_mm, placed = true_places(blocks, [replace(view(), angles_deg=(0.0, 0.0, 0.0))], CROPS, (MM, MM, MM))
    assert not places_mm.isnan().any()
    assert 0 < placed.mean() < 1
    assert not places_mm[:, :, :].masked_select(placed.expand_as(places_mm) == 0).any()


def test_losses_are_the_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, raw = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    shares, weights = raw.softmax(dim=1), torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    shares[0, :, 2] = 0  # nothing is known of this cell
    placed = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0]], dtype=torch.float64)[:, None]
    of_tissues, of_places = [], []
    for b in range(2):
        above = below = 0.0
        for t, m in np.ndindex(3, 4):
            log_p = logits[b, t, m] - math.log(sum(math.exp(logits[b, n, m]) for n in range(3)))
            above -= (weights[t] * shares[b, t, m] * log_p).item()
            below += (weights[t] * shares[b, t, m]).item()
        of_tissues.append(above / below)
        errors = [abs(logits[b, d, m].item() - raw[b, d, m].item()) for d, m in np.ndindex(3, 4) if placed[b, 0, m]]
        of_places.append(np.mean(errors))
    assert tissue_loss(logits, shares, weights).item() == pytest.approx(np.mean(of_tissues), rel=1e-12)
    assert place_loss(logits, 100 * raw, placed).item() == pytest.approx(np.mean(of_places), rel=1e-12)


def test_losses_of_parts_of_a_batch_add_up_to_it() -> None:
    """Also where nothing is known of some scans."""
    generator = torch.Generator().manual_seed(3)
    logits, raw = (torch.randn(4, 3, 5, generator=generator) for _ in range(2))
    known = torch.tensor([1.0, 0, 1, 1])[:, None, None] * (raw[:, :1] > 0)
    shares, weights = raw.softmax(dim=1) * known, torch.tensor([1.0, 3.0, 0.5])
    for parts in (torch.arange(4).split(2), torch.arange(4).split(1)):
        tissue = [tissue_loss(logits[part], shares[part], weights) for part in parts]
        places = [place_loss(logits[part], 100 * raw[part], known[part]) for part in parts]
        torch.testing.assert_close(torch.stack(tissue).mean(), tissue_loss(logits, shares, weights))
        torch.testing.assert_close(torch.stack(places).mean(), place_loss(logits, 100 * raw, known))


def test_nothing_known_at_all_gives_no_loss() -> None:
    objective = dense()
    empty = replace(
        batch(objective),
        classes=torch.full((1, *SHAPE), UNKNOWN_CLASS, dtype=torch.uint8),
        template_mm=template() * np.nan,
    )
    loss, _ = objective(empty, 0, 1)
    assert loss.item() == 0
    loss.backward()


def test_both_share_the_heads_of_one_encoder() -> None:
    encoder = encoders.build("anatomy-conv", **SMALL)
    settings = {"dense": DenseSettings(crops=CROPS), "insert": InsertSettings(crops=CROPS)}
    both = mixture(encoder, settings, SIGHT)
    assert both.encoder is encoder
    assert all(part.trained is encoder for part in both.parts.values())
    assert not both.uses_findings
    with pytest.raises(Misuse, match="the objective dense cannot train vit-tiny"):
        Dense(encoders.build("vit-tiny", depth=1), DenseSettings(), SIGHT)


def test_one_pass_sums_the_losses_of_both() -> None:
    torch.manual_seed(0)
    whole = replace(CROPS, shape=SHAPE, edge_mm=(128.0, 130.0))  # nothing is put in where no skull encloses it
    insert = InsertSettings(crops=whole, changes=(2, 2), weight=2.0)
    settings = DenseInsertSettings(dense=DenseSettings(weight=0.5), insert=insert)
    objective = DenseInsert(encoders.build("anatomy-conv", **SMALL), settings, SIGHT).eval()
    loss, watched = objective(batch(objective), 0, 1)
    of_dense = 0.3 * watched["tissue"] + 1.5 * watched["places_mm"] / 100
    of_insert = 2 * watched["bce"] + 1.5 * watched["dice"] + 0.3 * watched["presence"]
    assert loss.item() == pytest.approx((0.5 * of_dense + 2 * of_insert).item(), rel=1e-5)
    assert watched["dice"].item() > 0
    assert 0 < watched["air"] < 1
    loss.backward()
    assert all(weight.grad is not None for weight in objective.parameters())


def test_a_short_run_on_virtual_patients(tmp_path: Path) -> None:
    job = Job(simulation=Simulation(seed=1), patients=2, masks=True, deformation=True)
    run(job, tmp_path / "cohort", workers=1, progress=lambda what, done, total: None)
    settings = PretrainSettings(
        objectives={"dense": DenseSettings(crops=CROPS), "insert": InsertSettings(crops=CROPS)},
        encoder="anatomy-conv",
        encoder_settings=SMALL,
        steps=2,
        batch=2,
        device="cpu",
    )
    ended = pretrain([tmp_path / "cohort"], tmp_path / "run", settings)
    assert np.isfinite(ended.history["loss"]).all()
    loaded = checkpoints.load(ended.checkpoint)
    assert loaded.card.objective["uses_findings"] is False
    x = torch.rand(1, 3, 24, 28, 24)
    with torch.no_grad():
        assert loaded.encoder(x).scan.shape == (1, loaded.encoder.scan_width)
