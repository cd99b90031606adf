"""Operations against closed forms, peaks against the vendor's sheets, rates by hand."""

from __future__ import annotations

import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from pretraining.test_loop import SMALL, cohort
from torch import nn

from headct.encoders.vit import Attention
from headct.pretraining import speed
from headct.pretraining.plan import work_of_step
from headct.pretraining.processes import Processes
from headct.pretraining.report import speed as said_of
from headct.pretraining.scans import Scans
from headct.pretraining.speed import Pace, memory_bytes, operations, peak_of, peak_of_name


def test_a_linear_layer_forward_and_backward() -> None:
    layer, x = nn.Linear(32, 48), torch.zeros(10, 32, requires_grad=True)
    once = 2 * 10 * 32 * 48
    assert operations(lambda: layer(x)) == once
    assert operations(lambda: layer(x).sum().backward()) == 3 * once  # by the input and by the weight


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_counted_though_it_is_fused(heads: int) -> None:
    batch, tokens, width = 2, 7, 24
    attention, x = Attention(width, heads, qkv_bias=True), torch.zeros(batch, tokens, width, requires_grad=True)
    projections = 2 * batch * tokens * width * 4 * width
    mixing = 2 * (2 * batch * tokens**2 * width)  # scores, then sums of values
    assert operations(lambda: attention(x).sum().backward()) == 3 * (projections + mixing)


def test_a_step_is_as_much_work_however_it_is_cut_up() -> None:
    scans = Scans([cohort()])
    settings = replace(SMALL, batch=4)
    tokens, flops = work_of_step(settings, scans, Processes("cpu"))
    in_parts = replace(settings, accumulate=2, recompute=True)
    assert work_of_step(in_parts, scans, Processes("cpu")) == (tokens, flops)
    assert flops == 2 * work_of_step(replace(SMALL, batch=2), scans, Processes("cpu"))[1]


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),  # another chip, which is not listed
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_whole_words_of_its_name(name: str, bf16: float | None) -> None:
    assert peak_of_name(name, "bf16") == bf16
    assert bf16 is None or peak_of_name(name, "fp32") < bf16 / 2


def test_a_cpu_has_no_peak() -> None:
    assert peak_of("cpu", "bf16") is None


def test_the_rate_is_that_of_the_steps_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 14.0, 15.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(speed, "peak_of", lambda device, precision: 8e12)
    pace = Pace(2e12, "cpu", "fp32")
    rates = pace.of(20)  # in 4 s
    assert (rates["tflop_s"], rates["mfu"]) == (10.0, 1.25)
    assert pace.of(1)["tflop_s"] == 2.0


def test_memory_holds_what_was_touched() -> None:
    before = memory_bytes("cpu")
    touched = torch.ones(before // 4 + 50_000_000)
    assert memory_bytes("cpu") >= before
    assert memory_bytes("cpu") > touched.nbytes


def test_a_page_adds_times_and_not_rates() -> None:
    history = pd.DataFrame(
        {
            "step_s": [1.0, 3.0],
            "data_s": [0.0, 0.0],
            "tflop_s": [6.0, 2.0],
            "mfu": [0.6, 0.2],
            "memory_gb": [1.0, 1.5],
        }
    )
    said = said_of(history, SMALL)
    assert said["of the model, a process"] == "3 TFLOP/s"  # 12 in 4 s
    assert said["of the device's peak"] == "30.0%"
    assert said["memory at most"] == "1.50 GB"
    assert "of the device's peak" not in said_of(history.drop(columns="mfu"), SMALL)
