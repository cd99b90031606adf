"""Adapters of low rank. Oracles: the closed form W + scale * B A, the frozen probe, and invariants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from detection.training.heads import SMALL, encoder_of, task_of
from detection.training.test_finetune import FEW, NOTHING_VARIES, all_rows
from numpy.testing import assert_allclose

from headct import encoders
from headct.detection.linear import Linear
from headct.detection.training.loop import Schedule, prior_logits, quality
from headct.detection.training.lora import FittedLora, Lora, adapt, merge, remove
from headct.failure import Misuse


@pytest.mark.parametrize("architecture", ["vit-tiny", "conv-tiny", "slices-tiny"])
def test_adapters_equal_their_closed_form_and_merge_and_leave_exactly(architecture: str) -> None:
    encoder = encoder_of(architecture).encoder
    plain = {name: one.clone() for name, one in encoder.state_dict().items()}
    x = torch.rand(2, 3, *encoder.example_shape, generator=torch.Generator().manual_seed(0))
    spacing_mm = torch.ones(2, 3)
    with torch.no_grad():
        before = encoder(x, spacing_mm).scan
        adapters = adapt(encoder, rank=3, scale=1.5)
        assert torch.equal(encoder(x, spacing_mm).scan, before), "they start as nothing"
        for number, adapter in enumerate(adapters.values()):
            adapter.b.normal_(generator=torch.Generator().manual_seed(number))
        adapted = encoder(x, spacing_mm).scan
        assert (adapted - before).abs().max() > 1e-3

        other = encoders.build(architecture, **SMALL[architecture]).eval()
        expected = {name: one.clone() for name, one in plain.items()}
        for name, adapter in adapters.items():
            weight = plain[f"{name}.weight"]
            changed = weight.reshape(len(weight), -1).double() + 1.5 * adapter.b.double() @ adapter.a.double()
            expected[f"{name}.weight"] = changed.reshape(weight.shape).float()
        other.load_state_dict(expected)
        assert_allclose(adapted.numpy(), other(x, spacing_mm).scan.numpy(), atol=2e-5, rtol=1e-4)

        merge(encoder)
        assert torch.equal(encoder(x, spacing_mm).scan, adapted)
        assert encoder.state_dict().keys() == plain.keys()

        encoder.load_state_dict(plain)
        for adapter in adapt(encoder, rank=3, scale=1.5).values():
            adapter.b.normal_()
        remove(encoder)
        assert all(torch.equal(one, plain[name]) for name, one in encoder.state_dict().items())
        assert torch.equal(encoder(x, spacing_mm).scan, before)


def test_only_adapters_learn_and_attention_can_be_had_alone() -> None:
    encoder = encoder_of("vit-tiny").encoder
    adapters = adapt(encoder, rank=2, scale=1.0, layers="attention")
    assert sorted(adapters) == [f"blocks.{i}.attention.{part}" for i in (0, 1) for part in ("out", "qkv")]
    learned = [weight for weight in encoder.parameters() if weight.requires_grad]
    assert len(learned) == 2 * len(adapters)
    stack = adapt(encoder_of("slices-tiny").encoder, rank=2, scale=1.0, layers="attention")
    assert sorted(stack) == ["stack.content", "stack.gate", "stack.score"]
    with pytest.raises(Misuse, match="conv-tiny has no layers of attention"):
        adapt(encoder_of("conv-tiny").encoder, rank=2, scale=1.0, layers="attention")


@pytest.mark.parametrize("architecture", ["vit-tiny", "conv-tiny", "slices-tiny"])
def test_it_starts_as_the_frozen_probe_and_stores_adapters_and_head_alone(architecture: str) -> None:
    task = task_of(16, architecture=architecture)
    probe = Linear().fit(task)
    rows = all_rows(task)
    before = {name: one.clone() for name, one in task.encoder.state_dict().items()}
    still = Lora(schedule=replace(FEW, steps=1, lr=1e-12)).fit(task)
    assert_allclose(still.scores(task.scans, rows), probe.scores(task.scans, rows), atol=2e-4)
    fitted = Lora(schedule=replace(FEW, lr=0.01)).fit(replace(task, validation=task.validation[:0]))
    scores = fitted.scores(task.scans, rows)
    assert abs(scores - probe.scores(task.scans, rows)).max() > 1e-3
    assert {name.split(".")[0] for name in fitted.tensors()} == {"adapters", "head"}
    for name, one in task.encoder.state_dict().items():
        assert torch.equal(one, before[name]), name
    again = FittedLora.restore(
        task.encoder, task.findings, fitted.settings(), fitted.tensors(), fitted.facts, task.machine
    )
    np.testing.assert_array_equal(again.scores(task.scans, rows), scores)
    assert all(torch.equal(one, fitted.tensors()[name]) for name, one in again.tensors().items())
    broken = {name: one for name, one in fitted.tensors().items() if not name.endswith("qkv.a")}
    broken.pop(next(iter(broken)))
    with pytest.raises(RuntimeError, match="Missing key"):
        FittedLora.restore(task.encoder, task.findings, fitted.settings(), broken, {}, task.machine)


def test_it_learns_eight_scans_by_heart() -> None:
    task = task_of(8, validation=0)
    fitted = Lora(schedule=Schedule(steps=80), augmentation=NOTHING_VARIES).fit(task)
    rows = all_rows(task)
    found = quality(task.labels, fitted.scores(task.scans, rows) - prior_logits(task.labels))
    before = quality(task.labels, Linear().fit(task).scores(task.scans, rows) - prior_logits(task.labels))
    assert found.auroc == 1.0
    assert found.loss < 0.5 * before.loss


def test_the_same_seed_gives_the_same_bits() -> None:
    task = replace(task_of(8, validation=0), seed=5)
    first, again, other = (Lora(schedule=FEW).fit(one).tensors() for one in (task, task, replace(task, seed=6)))
    assert all(torch.equal(one, again[name]) for name, one in first.items())
    assert any(not torch.equal(one, other[name]) for name, one in first.items())


def test_settings_without_sense_are_refused() -> None:
    with pytest.raises(Misuse, match="attention, all"):
        Lora(layers="mlp")
    with pytest.raises(Misuse, match="rank"):
        Lora(rank=0)
