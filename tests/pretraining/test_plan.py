"""The plan: memory measured anew at another batch, operations against the formula, tokens by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretraining.test_loop import SMALL, cohort
from torch import nn

from headct.encoders.vit import Block
from headct.failure import Misuse
from headct.pretraining import plan_of, pretrain
from headct.pretraining.memory import LiveBytes, peak_bytes
from headct.pretraining.objectives.twin import TwinSettings
from headct.pretraining.plan import _bytes, duration, growth_of, made_to_fit
from headct.pretraining.processes import Processes
from headct.pretraining.scans import Scans
from headct.pretraining.sharding import bytes_saved
from headct.pretraining.step import new_objective

ALONE = Processes("cpu")


def test_live_bytes_are_those_of_tensors_that_are_alive() -> None:
    with LiveBytes() as live:
        first = torch.zeros(1000)  # 4,000 bytes
        second = first + 1
        assert live.now == 8000
        view = second[:10]  # the same memory
        assert live.now == 8000
        del second, view
        assert live.now == 4000
        third = first * 2
    assert live.peak == 8000
    assert third.sum() == 0


def test_a_peak_holds_weights_gradients_and_activations() -> None:
    layer = nn.Linear(100, 100, bias=False)
    x = torch.zeros(50, 100)
    # weights, their gradient, and the output with its gradient; the input lay there before
    peak = peak_bytes(lambda: torch.autograd.backward(layer(x), torch.ones(50, 100)), layer, [], "cpu")
    assert peak == pytest.approx(4 * (10_000 + 10_000 + 5_000 + 5_000), rel=0.05)


def test_moments_count_once_beside_weights_and_gradients() -> None:
    layer = nn.Linear(1000, 1000, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)

    def step() -> None:
        layer(torch.ones(1, 1000)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    moments = [value for of_one in optimizer.state.values() for value in of_one.values()]
    assert peak_bytes(step, layer, moments, "cpu") == pytest.approx(16 * 1_000_000, rel=0.02)


def test_memory_grows_in_proportion_to_scans() -> None:
    scans = Scans([cohort()])
    growth = growth_of(SMALL, scans, ALONE)
    assert growth(12) == pytest.approx(_bytes(SMALL, scans, ALONE, 12), rel=0.15)


def test_a_step_is_cut_into_parts_until_it_fits() -> None:
    scans = Scans([cohort()])
    settings = replace(SMALL, batch=12)
    growth = growth_of(settings, scans, ALONE)
    roomy, _ = made_to_fit(replace(settings, memory_gb=1.3 * growth(12) / 1e9), scans, ALONE)
    assert (roomy.accumulate, roomy.recompute) == (1, False)
    tight, reason = made_to_fit(replace(settings, memory_gb=1.3 * growth(4) / 1e9), scans, ALONE)
    assert tight.accumulate in (2, 3)
    assert reason.startswith(f"accumulate = {tight.accumulate}: ")
    with pytest.raises(Misuse, match="a step does not fit into 1e-06 GB"):
        made_to_fit(replace(settings, memory_gb=1e-6), scans, ALONE)


def test_activations_that_are_worked_out_twice_take_less_and_change_nothing(tmp_path: Path) -> None:
    deep = replace(SMALL, batch=4, steps=2, encoder_settings={**SMALL.encoder_settings, "depth": 8})
    scans = Scans([cohort()])
    assert growth_of(replace(deep, recompute=True), scans, ALONE)(8) < 0.8 * growth_of(deep, scans, ALONE)(8)
    plain = pretrain([cohort()], tmp_path / "plain", deep)
    twice = pretrain([cohort()], tmp_path / "twice", replace(deep, recompute=True))
    assert twice.history["loss"].tolist() == pytest.approx(plain.history["loss"].tolist(), rel=1e-5)


class Toy(nn.Module):
    """Four blocks of which two are trained, and a layer in none."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(16, 2, 32) for _ in range(4))
        self.blocks[2:].requires_grad_(False)
        self.head = nn.Linear(16, 10, bias=False)


def test_shards_save_what_a_process_does_not_keep() -> None:
    """Oracle: the definition, with numbers of weights from PyTorch's own count of each part."""
    toy = Toy()
    block, head = (sum(one.numel() for one in part.parameters()) for part in (toy.blocks[0], toy.head))
    for ranks in (2, 8):
        weights, gradients, moments = 4 * block + head, 2 * block + head, 2 * (2 * block + head)
        whole = 4 * (weights + gradients + moments)
        share = whole / ranks
        for_a_time = 4 * (head + head + 2 * block + block)  # loose weights and gradients; two blocks, gradients of one
        assert bytes_saved(toy, ranks) == pytest.approx(whole - share - for_a_time, abs=1)
    assert bytes_saved(toy, 1) == 0
    assert bytes_saved(nn.Linear(4, 4), 2) == pytest.approx(4 * 20 * 4 / 2 - 2 * 4 * 20, abs=1)


def test_a_plan_of_shards_is_smaller_and_says_so_and_one_that_cannot_be_is_refused() -> None:
    scans, two = Scans([cohort()]), Processes("cpu", 0, 2)
    dino = replace(SMALL.objectives["dino"], batch_norm=False)
    deep = replace(SMALL, encoder_settings={**SMALL.encoder_settings, "depth": 8}, objectives={"dino": dino})
    in_shards = replace(deep, shard=True)
    saved = bytes_saved(new_objective(deep), 2)
    assert saved > 0
    assert _bytes(deep, scans, two, 2) - _bytes(in_shards, scans, two, 2) == pytest.approx(saved, rel=0.05)
    assert _bytes(in_shards, scans, ALONE, 2) == pytest.approx(_bytes(deep, scans, ALONE, 2), rel=0.01)
    with pytest.raises(Misuse, match="twin cannot be sharded"):
        _bytes(replace(in_shards, objectives={"twin": TwinSettings()}), scans, two, 2)
    plan = plan_of([cohort()], in_shards)
    assert "shard changes nothing in one process: plan it under torchrun, as the run will be started" in plan.lines()
    assert any(line.startswith("in shards over 2 processes") for line in replace(plan, processes=2).lines())


def test_a_plan_counts_tokens_and_operations() -> None:
    plan = plan_of([cohort()], replace(SMALL, batch=4))
    # 27 patches, a class token and 4 registers of 2 views, twice (student and teacher); 8 + 5 of the local view, once
    assert plan.tokens == 4 * (2 * 2 * (27 + 5) + (8 + 5))
    width, mlp, depth = 24, 32, 1
    of_token = 2 * (4 * width**2 + 2 * width * mlp) * depth  # projections alone: the rest is small here
    student, teacher = 4 * (2 * 32 + 13), 4 * 2 * 32
    assert plan.flops > of_token * (3 * student + teacher)
    assert plan.flops < 2.5 * of_token * (3 * student + teacher)
    assert plan.step_s > 0
    text = "\n".join(plan.lines())
    assert "10 steps of 4 scans" in text
    assert "8.0 passes over 5 scans" in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(50, "50 s"), (600, "10.0 min"), (9000, "2.5 h"), (864000, "10.0 days")]
)
def test_durations_have_fitting_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize("units", [True, False])
def test_bf16_without_units_for_it_is_said_to_be_slow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, units: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": units})
    half = replace(SMALL, batch=2, steps=1, precision="bf16")
    said: list[str] = []
    pretrain([cohort()], tmp_path / "run", half, progress=said.append)
    planned = "\n".join(plan_of([cohort()], half).lines())
    for text in ("\n".join(said), planned):
        assert ("no bf16 units, so fp32 is many times faster" in text) is not units
