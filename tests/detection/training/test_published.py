"""FM-HCT's downstream as published.

Oracles: the published code's numbers (`downstream.npz`; tolerances of its manifest), scikit-learn's metrics, and what
each defect is said to do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detection.training.heads import task_of
from encoders.published import ATTENTIVE_HEAD, LINEAR_HEAD, VIT, cases, published_name, vit, volume, weight
from numpy.testing import assert_allclose
from sklearn.metrics import recall_score, roc_auc_score

from headct.detection.training.published import (
    Published,
    PublishedClassifier,
    PublishedTraining,
    published_augmented,
    published_class_weights,
    published_draws,
    published_logits,
    published_shots,
)
from headct.encoders.heads import AttentiveHead, LinearHead
from headct.failure import Misuse

PARAMS = {
    "img_size": 24,
    "patch_size": 12,
    "in_chans": 3,
    "hidden_size": 48,
    "mlp_dim": 96,
    "num_layers": 2,
    "num_heads": 4,
    "pos_embed": "sincos",
    "qkv_bias": True,
}


@pytest.fixture(scope="module")
def fixtures(shared: Path) -> Path:
    return shared / "fixtures" / "fm-hct"


def classifier(kind: str, *, locked: bool) -> PublishedClassifier:
    """The fixture's network: its sines and cosines are trained like any weight."""
    encoder = vit(PARAMS | {"pos_embed": "learnable"})
    head = LinearHead(48, 2) if kind == "linear" else AttentiveHead(48, 2, heads=4, published_scaling=True)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if parameter.numel():
                parameter.copy_(weight("vit." + published_name(name, VIT), tuple(parameter.shape)))
        encoder.positions.table.copy_(vit(PARAMS).positions.table)
        names = LINEAR_HEAD if kind == "linear" else ATTENTIVE_HEAD
        for name, parameter in head.named_parameters():
            parameter.copy_(weight("clf." + published_name(name, names), tuple(parameter.shape)))
    return PublishedClassifier(encoder, head, locked=locked)


def gradient_norms(training: PublishedTraining, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """What each optimiser is given at its steps, after clipping."""
    norms: dict[str, list[float]] = {name: [] for name in training.optimizers}
    for name, optimizer in training.optimizers.items():
        step = optimizer.step

        def noted(name: str = name, optimizer: torch.optim.Optimizer = optimizer, step: object = step) -> None:
            grads = [w.grad.norm() for group in optimizer.param_groups for w in group["params"] if w.grad is not None]
            norms[name].append(float(torch.stack(grads).norm()))
            step()

        monkeypatch.setattr(optimizer, "step", noted)
    return norms


@pytest.mark.parametrize("case", ["finetune_linear", "probe_linear", "finetune_attentive"])
def test_whole_runs_equal_the_published_ones(fixtures: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    about, stored = cases(fixtures, "downstream.npz")[case], np.load(fixtures / "downstream.npz")
    network = classifier(about["classifier"], locked=about["locked_backbone"])
    training = PublishedTraining(
        network,
        lr=about["base_lr"],
        head_lr=about["classifier_lr"],
        steps=about["total_steps"],
        warmup=about["warmup_steps"],
    )
    clipped = gradient_norms(training, monkeypatch)
    losses, rates, seen = [], [], []
    for step, targets in enumerate(about["train_targets"]):
        rates.append(training.rates())
        loss, logits = training.take(volume(f"ft{step}", [6, 3, 24, 24, 24]), torch.tensor(targets))
        losses.append(loss)
        seen.append(logits.softmax(dim=1).numpy())

    def same(ours: object, key: str, **tolerance: float) -> None:
        assert_allclose(ours, stored[f"{case}/{key}"], err_msg=key, **tolerance)

    tensors = {"atol": 5e-5, "rtol": 0}
    same(losses, "train_loss", **tensors)
    same([rate["head"] for rate in rates], "lr_classifier", rtol=1e-9)
    same([rate["backbone"] for rate in rates if "backbone" in rate], "lr_model", rtol=1e-9)
    same(clipped["head"], "clf_grad_norm_after_clip", **tensors)
    same(clipped.get("backbone", []), "model_grad_norm_after_clip", **tensors)
    with torch.no_grad():
        same(network.head.linear.weight, "classifier_weight_after", **tensors)
        same(network.encoder.blocks[0].attention.qkv.weight[:4], "vit_qkv0_rows0_3_after", **tensors)
        same(network.encoder.class_token, "vit_cls_after", **tensors)
    means = {"atol": 2e-4 if case == "finetune_linear" else 5e-5, "rtol": 0}
    if about["classifier"] == "linear":
        same(network.head.norm.running_mean, "bn_mean_after_train", **means)
        same(network.head.norm.running_var, "bn_var_after_train", **tensors)
    targets, seen = np.concatenate(about["train_targets"]), np.concatenate(seen)
    same([roc_auc_score(targets == one, seen[:, one]) for one in (0, 1)], "train_auroc_per_class", atol=1e-6)
    recalls = recall_score(targets, seen.argmax(axis=1), average=None)
    same(recalls, "train_acc_per_class", atol=1e-6)

    batches = [(volume("val0", [5, 3, 24, 24, 24]), torch.ones(5, 3)), (volume("val1", [3, 3, 24, 24, 24]), None)]
    probabilities = published_logits(network, batches).softmax(dim=1)[:, 1].numpy()
    same(probabilities, "val_probs_published_head_in_train_mode", atol=2e-4, rtol=0)
    same(about["val_targets"], "val_targets")
    assert roc_auc_score(about["val_targets"], probabilities) == pytest.approx(stored[f"{case}/val_auroc_per_class"][1])
    if about["classifier"] == "linear":
        same(network.head.norm.running_mean, "bn_mean_after_val", **means)


def test_a_published_head_sees_the_batch_and_one_in_evaluation_mode_does_not() -> None:
    network = classifier("linear", locked=True)
    scans = volume("val0", [5, 3, 24, 24, 24])
    whole = [(scans, torch.ones(5, 3))]
    halves = [(scans[:2], torch.ones(2, 3)), (scans[2:], torch.ones(3, 3))]
    before = network.head.norm.running_mean.clone()
    quiet = [published_logits(network, some, evaluation_mode=True) for some in (whole, halves)]
    torch.testing.assert_close(*quiet)
    assert torch.equal(network.head.norm.running_mean, before)
    loud = [published_logits(network, some) for some in (whole, halves)]
    assert (loud[0] - loud[1]).abs().max() > 0.1
    assert not torch.equal(network.head.norm.running_mean, before)
    with pytest.raises(Misuse, match="one scan alone"):
        published_logits(network, [(scans[:1], torch.ones(1, 3))])
    with pytest.raises(Misuse, match="one scan alone"):
        PublishedTraining(network, lr=1e-4, head_lr=1e-2, steps=4, warmup=1).take(scans[:1], torch.ones(1, dtype=int))


def test_few_shots_equal_the_published_draw(fixtures: Path) -> None:
    stored = np.load(fixtures / "downstream.npz")
    targets = (np.arange(50) % 5 == 0).astype(int)
    drawn = published_shots(targets, 8, seed=42)
    np.testing.assert_array_equal(drawn, stored["fewshot/seed42_k8_rows"])
    assert len(set(drawn[8:])) < 8, "positives come twice, as published"
    apart = published_shots(targets, 8, seed=42, replacement=False)
    assert len(set(apart)) == 16
    np.testing.assert_array_equal(targets[apart], [0] * 8 + [1] * 8)
    few = published_shots(np.array([0] * 9 + [1] * 3), 8, seed=42, replacement=False)
    assert sorted(few[8:]) == [9, 10, 11]


def test_class_weights_equal_the_published_ones_and_balance_the_draw(fixtures: Path) -> None:
    targets = np.array([1] * 10 + [0] * 40)
    stored = np.load(fixtures / "downstream.npz")["sampler/class_weights_10pos_40neg"]
    np.testing.assert_array_equal(published_class_weights(targets), stored)
    drawn = published_draws(targets, 20_000, torch.Generator().manual_seed(0))
    assert targets[drawn].mean() == pytest.approx(0.5, abs=0.02)  # 0.0035 is one standard deviation


def test_scans_are_flipped_along_every_axis_and_brightened() -> None:
    x = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(1, 1, 2, 3, 4).repeat(4000, 1, 1, 1, 1)
    changed = published_augmented(x, np.random.default_rng(0))
    offsets = changed.mean(dim=(1, 2, 3, 4)) - x[0].mean()
    assert offsets.abs().max() == pytest.approx(0.1, abs=0.002)
    assert (offsets.abs() > 1e-5).float().mean() == pytest.approx(0.5, abs=0.03)
    for axis, step in ((2, 12), (3, 4), (4, 1)):
        one = changed.select(axis, 1).flatten(1)[:, 0] - changed.select(axis, 0).flatten(1)[:, 0]
        assert (one.round() == -step).float().mean() == pytest.approx(0.1, abs=0.02)
    unflipped = published_augmented(x, np.random.default_rng(0), flips=False)
    torch.testing.assert_close(unflipped - x, offsets[:, None, None, None, None].expand_as(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"locked": True, "head": "attentive", "shots": 3}, {"evaluation_mode": True}])
def test_a_run_for_each_finding_can_be_had_again(settings: dict[str, object]) -> None:
    task = task_of(12, architecture="vit-tiny")
    method = Published(epochs=2, draws=8, batch=4, lr=1e-4, **settings)
    before = {name: tensor.clone() for name, tensor in task.encoder.state_dict().items()}
    fitted = method.fit(task)
    for name, tensor in task.encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), f"the task's encoder changed: {name}"
    assert fitted.facts["steps"] == [4, 4]
    rows = np.arange(len(task.scans))
    scores = fitted.scores(task.scans, rows)
    assert scores.shape == (12, 2)
    np.testing.assert_array_equal(fitted.scores(task.scans, rows), scores)
    np.testing.assert_array_equal(method.fit(task).scores(task.scans, rows), scores)
    turned = fitted.scores(task.scans, rows[::-1])[::-1]
    if settings.get("evaluation_mode"):
        assert_allclose(turned, scores, atol=1e-5)
    else:
        assert abs(fitted.scores(task.scans, np.roll(rows, 2)) - np.roll(scores, 2, axis=0)).max() > 1e-3


def test_what_is_not_published_is_refused() -> None:
    with pytest.raises(Misuse, match="linear, attentive"):
        Published(head="mlp")
    with pytest.raises(Misuse, match="epochs"):
        Published(epochs=0)
    with pytest.raises(Misuse, match="shots"):
        Published(shots=0)
    task = task_of(8, architecture="vit-tiny", labels=np.ones((8, 2)))
    with pytest.raises(Misuse, match="ich has no training scans of both classes"):
        Published().fit(task)
