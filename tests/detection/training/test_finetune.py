"""Fine-tuning and training from scratch. Oracles: the frozen probe (scikit-learn's), and invariants."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from detection.training.heads import SMALL, task_of
from numpy.testing import assert_allclose

from headct import encoders
from headct.detection.linear import Linear
from headct.detection.method import Task
from headct.detection.training import finetune
from headct.detection.training.augment import Augmentation
from headct.detection.training.finetune import FittedFull, Full, depths, learning, scratch
from headct.detection.training.loop import Schedule, prior_logits, quality
from headct.detection.training.network import Network, ProbeHead, copied
from headct.failure import Misuse
from headct.pretraining.views import ViewSettings

NOTHING_VARIES = Augmentation(
    views=ViewSettings(rotation_deg=0, scale_hu=0, shift_hu=0, noise_hu=0, mirror=0), zoom=0.0
)
FEW = Schedule(steps=6, epochs=0, batch=4, looks=3)


def all_rows(task: Task) -> np.ndarray:
    return np.arange(len(task.scans))


@pytest.mark.parametrize("architecture", ["vit-tiny", "conv-tiny", "slices-tiny"])
def test_it_starts_as_the_frozen_probe(architecture: str) -> None:
    task = task_of(16, architecture=architecture)
    probe = Linear().fit(task)
    still = replace(FEW, steps=1, lr=1e-12)  # one step that changes nothing but the last bits
    fitted = Full(schedule=still).fit(task)
    assert fitted.facts["start"] == "the frozen linear probe"
    rows = all_rows(task)
    assert_allclose(fitted.scores(task.scans, rows), probe.scores(task.scans, rows), atol=2e-4)


def test_a_probe_head_equals_the_probe_where_features_say_nothing_or_too_much() -> None:
    task = task_of(16)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(16, task.encoder.scan_width)).astype(np.float32)
    vectors[:, 3] = 5.0  # never changes
    vectors[-1, 7] = 1e4  # far beyond what the training scans showed

    class Vectors:
        def __len__(self) -> int:
            return 16

        def vectors(self, rows: np.ndarray) -> np.ndarray:
            return vectors[rows]

    probe = Linear().fit(replace(task, scans=Vectors()))
    with torch.no_grad():
        ours = ProbeHead.of_probe(probe)(torch.from_numpy(vectors)).numpy()
    assert_allclose(ours, probe.scores(Vectors(), np.arange(16)), atol=1e-4)


@pytest.mark.parametrize("architecture", ["vit-tiny", "conv-tiny", "slices-tiny"])
def test_from_scratch_it_learns_eight_scans_by_heart(architecture: str) -> None:
    task = task_of(8, validation=0)
    steps = {"vit-tiny": 140}.get(architecture, 60)  # without built-in locality it takes longer
    method = replace(scratch(architecture, steps=steps, lr=3e-3, **SMALL[architecture]), augmentation=NOTHING_VARIES)
    fitted = method.fit(task)
    assert fitted.network.encoder.architecture == architecture
    scores = fitted.scores(task.scans, all_rows(task))
    found = quality(task.labels, scores - prior_logits(task.labels))
    assert found.auroc == 1.0
    assert found.loss < 0.2
    again = FittedFull.restore(
        task.encoder,
        task.findings,
        json.loads(json.dumps(fitted.settings())),
        fitted.tensors(),
        fitted.facts,
        task.machine,
    )
    np.testing.assert_array_equal(again.scores(task.scans, all_rows(task)), scores)


def test_fine_tuned_it_learns_what_the_frozen_probe_cannot() -> None:
    task = task_of(8, validation=0)
    fitted = Full(schedule=Schedule(steps=80), augmentation=NOTHING_VARIES).fit(task)
    scores = fitted.scores(task.scans, all_rows(task))
    found = quality(task.labels, scores - prior_logits(task.labels))
    before = quality(task.labels, Linear().fit(task).scores(task.scans, all_rows(task)) - prior_logits(task.labels))
    assert found.auroc == 1.0
    assert found.loss < 0.5 * before.loss
    restored = FittedFull.restore(
        task.encoder, task.findings, fitted.settings(), fitted.tensors(), fitted.facts, task.machine
    )
    np.testing.assert_array_equal(restored.scores(task.scans, all_rows(task)), scores)


def test_the_end_is_never_worse_on_validation_than_the_frozen_probe() -> None:
    task = task_of(24, validation=8)
    bad = Full(schedule=Schedule(steps=10, epochs=0, lr=1.0, batch=4, looks=5), encoder_share=1.0, first_share=1.0)
    fitted, probe = bad.fit(task), Linear().fit(task)
    rows = task.validation
    labels = task.labels[rows]
    ours, theirs = (quality(labels, one.scores(task.scans, rows)).auroc for one in (fitted, probe))
    assert ours >= theirs


@pytest.mark.parametrize("architecture", ["vit-tiny", "conv-tiny"])
def test_the_encoder_of_the_task_stays_and_the_same_seed_gives_the_same_bits(architecture: str) -> None:
    task = task_of(12, architecture=architecture)
    before = {name: one.clone() for name, one in task.encoder.state_dict().items()}
    first, again = (Full(schedule=FEW).fit(task).tensors() for _ in range(2))
    for name, one in task.encoder.state_dict().items():
        assert torch.equal(one, before[name]), name
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    # with other draws
    task = replace(task, validation=task.validation[:0])
    ends = [Full(schedule=FEW).fit(replace(task, seed=seed)).tensors() for seed in (0, 1)]
    assert not torch.equal(ends[0]["head.linear.weight"], ends[1]["head.linear.weight"])


def test_what_is_learned_does_not_depend_on_the_order_of_findings() -> None:
    task = replace(task_of(12, findings=("ich", "sdh"), validation=0))
    turned = replace(task, findings=("sdh", "ich"), labels=task.labels[:, ::-1])
    method = Full(schedule=FEW)
    rows = all_rows(task)
    ours, theirs = (method.fit(one).scores(task.scans, rows) for one in (task, turned))
    assert_allclose(theirs[:, ::-1], ours, atol=1e-4)
    assert abs(ours[:, 0] - ours[:, 1]).max() > 0.01


def test_unknown_labels_change_no_weight() -> None:
    task = task_of(12, validation=0)
    labels = task.labels.copy()
    labels[4:8, 1] = np.nan
    unknown = replace(task, labels=labels)
    network = Network(copied(task.encoder), ProbeHead.of_probe(Linear().fit(task)))
    examples = finetune.examples_of(unknown, Augmentation())
    (x, spacing_mm), seen = examples(np.arange(4, 8), np.random.default_rng(0))
    assert np.isnan(seen[:, 1]).all()
    loss = finetune_loss(network(x, spacing_mm)[:, 1:], seen[:, 1:])
    loss.backward()
    assert all(w.grad is None or not w.grad.any() for w in network.parameters())


def finetune_loss(logits: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    from headct.detection.training.loop import masked_loss

    return masked_loss(logits, labels, np.ones((2, 1)))


def test_side_labels_follow_mirrored_scans_into_training() -> None:
    """Blood lies on the left where the label says so, in what the network is given as well."""
    findings = ("bleed_left", "bleed_right")
    task = task_of(16, findings=findings, validation=0)
    left = task.labels[:, 1]
    labels = np.stack([left, task.labels[:, 0] - left], axis=1)
    examples = finetune.examples_of(replace(task, labels=labels), Augmentation(views=ViewSettings(mirror=0.5)))
    flips = 0
    for seed in range(3):
        (x, _), seen = examples(np.arange(16), np.random.default_rng(seed))
        blood = (x[:, 0] > 0.75).float().sum(dim=(2, 3))  # (B, X)
        on_left, on_right = blood[:, :8].sum(dim=1), blood[:, 8:].sum(dim=1)
        assert ((on_left > on_right).numpy() == (seen[:, 0] == 1)).all()
        assert ((on_right > on_left).numpy() == (seen[:, 1] == 1)).all()
        flips += (seen != labels).any(axis=1).sum()
    assert flips > 5, "scans were mirrored"


@pytest.mark.parametrize("architecture", ["vit-tiny", "conv-tiny", "slices-tiny", "segresenc"])
def test_depth_rises_from_the_input_to_the_last_layer(architecture: str) -> None:
    settings = SMALL.get(architecture, {"init_filters": 8, "blocks_down": (1, 1)})
    encoder = encoders.build(architecture, **settings)
    found = depths(encoder)
    assert set(found) == set(encoder.parameters())
    names = {name: found[weight] for name, weight in encoder.named_parameters()}
    assert min(names.values()) == 0 < max(names.values()) == 1
    if architecture == "vit-tiny":
        order = ["class_token", "embedding.linear.weight", "blocks.0.attention.qkv.weight", "blocks.0.mlp.2.weight"]
        order += ["blocks.1.attention.qkv.weight", "norm.weight"]
        assert [names[name] for name in order] == sorted({names[name] for name in order})
    if architecture == "conv-tiny":
        assert names["stem.0.weight"] < names["levels.0.0.first.0.weight"] < names["halvings.0.0.weight"]


def test_rates_fall_towards_the_input_and_the_head_has_the_highest() -> None:
    encoder = encoders.build("vit-tiny", **SMALL["vit-tiny"])
    network = Network(encoder, ProbeHead(encoder.scan_width, 2))
    groups = learning(network, encoder_share=0.1, first_share=0.01)
    share = {weight: group.share for group in groups for weight in group.parameters}
    assert set(share) == set(network.parameters())
    assert sum(len(group.parameters) for group in groups) == len(share)
    assert share[network.head.linear.weight] == 1
    assert share[encoder.norm.weight] == pytest.approx(0.1)
    assert share[encoder.class_token] == pytest.approx(0.001)
    decays = {weight for group in groups if group.decays for weight in group.parameters}
    assert encoder.blocks[0].mlp[0].weight in decays
    assert not decays & {encoder.class_token, encoder.norm.weight, network.head.linear.weight, network.head.linear.bias}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(Misuse, match="pretrained, random"):
        Full(initial="imagenet")
    with pytest.raises(Misuse, match="conv-tiny has no weights to start from"):
        Full(architecture="conv-tiny")
    with pytest.raises(Misuse, match="encoder_share"):
        Full(encoder_share=0)
    task = task_of(8)
    fitted = Full(schedule=replace(FEW, steps=1)).fit(task)
    tensors = fitted.tensors()
    del tensors["head.linear.bias"]
    with pytest.raises(RuntimeError, match=r"head\.linear\.bias"):
        FittedFull.restore(task.encoder, task.findings, fitted.settings(), tensors, {}, task.machine)
