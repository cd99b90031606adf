"""Trained methods by name, stored and found again. Oracles: safetensors, JSON, and the scores from before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection.training.heads import task_of
from detection.training.test_finetune import FEW
from numpy.testing import assert_allclose
from safetensors.torch import load_file, save_file

from headct.detection import methods
from headct.detection.training.finetune import scratch
from headct.embedding.machine import Machine
from headct.failure import Misuse

TRAINED = ("attentive", "lora", "full")
BF16 = Machine(torch.device("cpu"), "bf16", "for tests")


def stored(fitted: Any, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    save_file(fitted.tensors(), folder / "tensors.safetensors")
    text = json.dumps([fitted.settings(), dict(fitted.facts)], allow_nan=False)
    settings, facts = json.loads(text)
    return settings, load_file(folder / "tensors.safetensors"), facts


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("architecture", ["vit-tiny", "conv-tiny"])
def test_what_was_stored_scores_as_before(name: str, architecture: str, tmp_path: Path) -> None:
    task = task_of(12, architecture=architecture)
    fitted = replace(methods.method(name), schedule=FEW).fit(task)
    assert methods.fitted(name) is type(fitted)
    assert type(fitted).method == name
    settings, tensors, facts = stored(fitted, tmp_path)
    again = type(fitted).restore(task.encoder, task.findings, settings, tensors, facts, task.machine)
    rows = np.array([3, 0, 11])
    np.testing.assert_array_equal(again.scores(task.scans, rows), fitted.scores(task.scans, rows))
    assert again.scores(task.scans, rows).dtype == np.float64
    with pytest.raises((KeyError, RuntimeError, ValueError)):
        type(fitted).restore(task.encoder, task.findings[:1], settings, tensors, facts, task.machine)


def test_a_baseline_is_stored_as_well(tmp_path: Path) -> None:
    task = task_of(12)
    fitted = replace(scratch("conv-tiny", widths=[4, 8], blocks=[1, 1]), schedule=FEW).fit(task)
    settings, tensors, facts = stored(fitted, tmp_path)
    again = type(fitted).restore(task.encoder, task.findings, settings, tensors, facts, task.machine)
    rows = np.arange(8)
    np.testing.assert_array_equal(again.scores(task.scans, rows), fitted.scores(task.scans, rows))


@pytest.mark.parametrize("name", list(methods.SCRATCH))
def test_what_learns_from_scratch_can_be_named(name: str) -> None:
    task = replace(task_of(12), seed=7)
    method = methods.method(name)
    assert methods.entry(name) is methods.METHODS["full"]
    network = method._start(task)[0]
    assert network.encoder.architecture == (methods.SCRATCH[name] or task.encoder.architecture)
    weights = [torch.cat([w.flatten() for w in one.parameters()]) for one in (network.encoder, task.encoder.encoder)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("name", TRAINED)
def test_half_precision_is_near(name: str) -> None:
    task = task_of(12, validation=0)
    method = replace(methods.method(name), schedule=replace(FEW, steps=2))
    rows = np.arange(12)
    full, half = (method.fit(replace(task, machine=one)).scores(task.scans, rows) for one in (task.machine, BF16))
    assert np.isfinite(half).all()
    assert_allclose(half, full, atol=0.5 * np.ptp(full) + 0.05)


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_graph_is_not_trained(name: str) -> None:
    task = task_of(12)
    task.encoder.encoder.runtime = object()
    with pytest.raises(Misuse, match="exported graph, which cannot be trained"):
        methods.method(name).fit(task)
