"""Device and precision: what is taken, and that it is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pretraining.memory_cohort import MemoryCohort, heads

from headct.checkpoints import PretrainedEncoder
from headct.checkpoints.exported import Runtime
from headct.embedding import embed, machine
from headct.embedding.machine import choose
from headct.failure import Misuse


@pytest.mark.parametrize(("units", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_what_the_machine_has_units_for(
    monkeypatch: pytest.MonkeyPatch, units: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": units})
    chosen = choose("auto", "cpu")
    assert chosen.precision == precision
    assert str(chosen) == f"cpu in {precision} (the CPU has {'' if units else 'no '}bf16 units)"
    assert choose("fp32", "cpu").precision == "fp32"
    assert str(choose("fp32", "cpu")) == "cpu in fp32 (as set)"
    assert ("fp32 is many times faster" in str(choose("bf16", "cpu"))) is not units


def test_bf16_stays_near_and_is_recorded(model: PretrainedEncoder) -> None:
    cohort = MemoryCohort(heads(4))
    full, half = embed(cohort, model, device="cpu"), embed(cohort, model, precision="bf16", device="cpu")
    assert half.vectors.dtype == np.float32
    assert not np.array_equal(full.vectors, half.vectors)
    cosines = (full.vectors * half.vectors).sum(1) / np.linalg.norm(full.vectors, axis=1)
    assert (cosines / np.linalg.norm(half.vectors, axis=1)).min() > 0.999
    assert (full.model["precision"], half.model["precision"]) == ("fp32", "bf16")


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [
        ("fp8", None, "fp32, bf16"),
        ("fp32", "toaster", "toaster"),
        ("fp32", "cuda:99", "cuda:99"),
        ("auto", "meta", "m"),
    ],
)
def test_what_is_not_there_is_said(precision: str, device: str | None, message: str) -> None:
    with pytest.raises(Misuse, match=message):
        choose(precision, device)


def test_a_graph_keeps_its_own_precision() -> None:
    graph = Runtime(
        kind="openvino",
        precision="int8",
        sha256={},
        shape=(3, 8, 8, 8),
        spacing_mm=None,
        grid=(1, 1, 1),
        cosine=1.0,
        centred=None,
        difference=0.0,
        compared_on=1,
    )
    for precision in (None, "auto", "int8"):
        machine_of_it = choose(precision, graph=graph)
        assert str(machine_of_it) == "cpu in int8 (by openvino)"
        with machine_of_it.arithmetic():
            assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(Misuse, match="computes in int8, not in fp32"):
        choose("fp32", graph=graph)
    onnx = replace(graph, kind="onnx", precision="fp32")
    for precision, remedy in (("bf16", "--to openvino --precision bf16"), ("fp8", "leave out the precision")):
        with pytest.raises(Misuse) as caught:
            choose(precision, graph=onnx)
        assert caught.value.do.endswith(remedy)
    with pytest.raises(Misuse, match="not on cuda"):
        choose(None, "cuda", graph=graph)


def test_the_gpu_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert machine.choose("auto").device.type == "cuda"
    assert str(machine.choose("auto")) == "cuda in bf16 (the GPU has bf16 units)"
