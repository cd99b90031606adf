"""What a run will take before it begins: arithmetic, memory, time; and how a step is made to fit into a memory."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

from headct.embedding.machine import slow_in
from headct.encoders import Encoder, Features, build
from headct.encoders.anatomy import AnatomyEncoder
from headct.failure import Misuse
from headct.pretraining.feed import batch_of, moved
from headct.pretraining.memory import peak_bytes
from headct.pretraining.objectives import Batch, Mixture
from headct.pretraining.processes import Processes
from headct.pretraining.scans import Scans
from headct.pretraining.settings import PretrainSettings
from headct.pretraining.sharding import bytes_saved, expect_shardable
from headct.pretraining.speed import operations, peak_of
from headct.pretraining.step import autocast, descend, feed_of, kept_random, new_objective, new_optimizer, order_of
from headct.reporting.words import count

SMALL, LARGE = 2, 4
"""Scans on which memory is measured; it grows in proportion from one to the other."""

KEPT_BACK = 0.1
"""Share of a memory that is left to the device's own needs and to gaps between tensors."""


@dataclass(frozen=True)
class Plan:
    """What a run takes, measured on this machine."""

    settings: PretrainSettings
    scans: int
    processes: int
    device: str
    weights: int
    tokens: int  # of a step, that go through the encoder, student and teacher
    flops: float  # of a step
    memory_bytes: int  # of a process, at most
    step_s: float

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.step_s * (self.settings.steps or 0)

    def lines(self) -> list[str]:
        """In words, one thing a line."""
        settings = self.settings
        steps, batch = settings.steps or 0, settings.batch
        on_gpu = self.device.startswith("cuda")
        each = ""
        if settings.accumulate * self.processes > 1:
            part = batch // settings.accumulate // self.processes
            where = ", in each process" if self.processes > 1 else ", in"
            each = f"{where} {count(settings.accumulate, 'part')} of {count(part, 'scan')}"
        beside = "" if on_gpu else ", and beside them Python and the scans that are read ahead"
        recomputed = ", activations worked out twice" if settings.recompute else ""
        lines = [
            f"{'+'.join(settings.objectives)} with {settings.encoder} ({self.weights / 1e6:.1f} M weights)",
            f"{steps} steps of {batch} scans{each}: {steps * batch / self.scans:.1f} passes over {self.scans} scans",
            f"{self.tokens:,} tokens and {self.flops / 1e12:.2f} TFLOP a step",
            f"{self.memory_bytes / 1e9:.2f} GB of tensors at most, in each process{recomputed}{beside}",
            f"{self.step_s:.2f} s a step, {batch / self.step_s:.1f} scans/s: {duration(self.seconds)} in all",
        ]
        if settings.shard and self.processes > 1:
            lines.append(f"in shards over {self.processes} processes: what they save is reckoned, not measured")
        elif settings.shard:
            lines.append("shard changes nothing in one process: plan it under torchrun, as the run will be started")
        if on_gpu:
            lines.append(f"{self.seconds * self.processes / 3600:.1f} GPU-hours")
        if slow := slow_in(settings.precision, torch.device(self.device)):
            lines.append(slow)
        if (peak := peak_of(self.device, settings.precision)) is not None:
            share = self.flops / self.processes / self.step_s / peak
            lines.append(f"{share:.0%} of the device's peak in {settings.precision}")
        return lines


def duration(seconds: float) -> str:
    """In the largest unit that leaves a number above one."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def made_to_fit(settings: PretrainSettings, scans: Scans, processes: Processes) -> tuple[PretrainSettings, str]:
    """The settings in as few parts a step as fit into `memory_gb`, and how that came about.

    Raises Misuse where not even the smallest part does.
    """
    assert settings.memory_gb is not None, "called where a memory is given"
    order_of(scans, replace(settings, accumulate=1), processes)
    limit = settings.memory_gb * 1e9 * (1 - KEPT_BACK)
    least = float("inf")
    for recompute in dict.fromkeys([settings.recompute, True]):
        trial = replace(settings, recompute=recompute)
        growth = growth_of(trial, scans, processes)
        for part in _parts(settings.batch // processes.ranks):
            accumulate = settings.batch // processes.ranks // part
            needed = growth(part) + _gradients_kept(trial, processes, accumulate)
            least = min(least, needed)
            if needed <= limit:
                reason = f"{part} scans at a time take {needed / 1e9:.2f} of {settings.memory_gb:g} GB"
                twice = ", activations worked out twice" if recompute else ""
                return replace(trial, accumulate=accumulate), f"accumulate = {accumulate}: {reason}{twice}"
    raise Misuse(
        f"a step does not fit into {settings.memory_gb:g} GB, of which a tenth is kept back",
        why=f"the smallest part of it takes {least / 1e9:.2f} GB",
        do="take a smaller encoder or smaller crops, or give more memory",
    )


def _parts(scans: int) -> list[int]:
    """Sizes of a part, the largest first; two scans at least, for they are compared."""
    return [part for part in range(scans, 0, -1) if scans % part == 0 and part >= min(2, scans)]


def _gradients_kept(settings: PretrainSettings, processes: Processes, accumulate: int) -> int:
    """Bytes of gradients that lie there twice: between the parts of a step, or as what processes send each other.

    In shards they are sent block by block, but between the parts of a step all of them are whole.
    """
    if accumulate == 1 and (processes.ranks == 1 or settings.shard):
        return 0
    with torch.device("meta"):
        encoder = build(settings.encoder, **settings.encoder_settings)
    return sum(4 * weight.numel() for weight in encoder.parameters())


def growth_of(settings: PretrainSettings, scans: Scans, processes: Processes) -> Callable[[int], float]:
    """How many bytes a process holds at most, for any number of scans at a time; the same in all processes.

    Measured as if nothing were sharded, less what shards save. Raises Misuse where it cannot be sharded as asked.
    """
    small, large = (processes.most(_bytes(settings, scans, processes, number)) for number in (SMALL, LARGE))
    a_scan = (large - small) / (LARGE - SMALL)
    return lambda number: small + (number - SMALL) * a_scan


def _bytes(settings: PretrainSettings, scans: Scans, processes: Processes, number: int) -> int:
    gc.collect()  # blocks that work their activations out twice refer to themselves
    held = torch.cuda.memory_allocated(processes.device) if processes.device.startswith("cuda") else 0
    objective = new_objective(settings, processes.device)
    saved = 0
    if settings.shard and processes.ranks > 1:
        expect_shardable(objective)
        saved = bytes_saved(objective, processes.ranks)
    optimizer = new_optimizer(objective)
    batch = _batch(settings, scans, processes, objective, number)

    def step() -> None:
        _step(settings, objective, optimizer, [batch], processes.device)

    try:
        step()  # with which the optimiser's two numbers of each weight come, that lie there during the next
        kept = [value for of_one in optimizer.state.values() for value in of_one.values() if isinstance(value, Tensor)]
        return peak_bytes(step, objective, kept, processes.device) - held - saved
    except torch.OutOfMemoryError as error:
        raise Misuse(
            f"{number} scans at a time do not fit into the memory of the device",
            do="take a smaller encoder or smaller crops, or a larger device",
        ) from error


def _batch(settings: PretrainSettings, scans: Scans, processes: Processes, objective: Mixture, number: int) -> Batch:
    order = order_of(scans, replace(settings, batch=number, accumulate=1), Processes("cpu"))
    return moved(batch_of(scans, objective, order, 0), processes.device)


def _step(
    settings: PretrainSettings,
    objective: Mixture,
    optimizer: torch.optim.Optimizer,
    parts: Iterable[Batch],
    device: str,
) -> None:
    for batch in parts:
        with autocast(settings, device):
            loss, _ = objective(batch, 0, 1000)
        loss.backward()
    descend(optimizer, lr=settings.lr, decay=0.0, clip=settings.clip)
    objective.follow(0, 1000)
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def plan(settings: PretrainSettings, scans: Scans, processes: Processes, measured: int = 3) -> Plan:
    """The plan of a run whose settings are resolved. Nothing that is trained here is kept."""
    order_of(scans, settings, processes)
    part = settings.batch // settings.accumulate // processes.ranks
    memory_bytes = growth_of(settings, scans, processes)(part)
    memory_bytes += _gradients_kept(settings, processes, settings.accumulate)
    tokens, flops = work_of_step(settings, scans, processes)
    with torch.device("meta"):
        encoder = build(settings.encoder, **settings.encoder_settings)
    return Plan(
        settings=settings,
        scans=len(scans),
        processes=processes.ranks,
        device=processes.device,
        weights=sum(weight.numel() for weight in encoder.parameters()),
        tokens=tokens,
        flops=flops,
        memory_bytes=round(memory_bytes),
        step_s=seconds_a_step(settings, scans, processes, measured),
    )


def seconds_a_step(settings: PretrainSettings, scans: Scans, processes: Processes, measured: int) -> float:
    """The median of a few steps that are thrown away, their scans read ahead as in the loop.

    The first pays for allocations and does not count.
    """
    trial = new_objective(settings, processes.device)
    optimizer = new_optimizer(trial)
    taken_s = []
    with contextlib.closing(feed_of(scans, trial, settings, processes, range(1 + measured))) as feed:
        for _ in range(1 + measured):
            begun_s = time.monotonic()
            _step(settings, trial, optimizer, islice(feed, settings.accumulate), processes.device)
            taken_s.append(time.monotonic() - begun_s)
    return statistics.median(taken_s[1:])


def work_of_step(settings: PretrainSettings, scans: Scans, processes: Processes) -> tuple[int, float]:
    """Tokens and operations of a whole step of all processes, counted once on two scans that are then forgotten.

    What `recompute` works out twice counts once.
    """
    plain = replace(settings, compile=False, recompute=False)
    part = settings.batch // settings.accumulate // processes.ranks
    with kept_random(processes.device):
        objective = new_objective(plain, processes.device)
        batch = _batch(plain, scans, processes, objective, min(SMALL, part))
        tokens, flops = arithmetic(plain, objective, batch, processes.device)
    times = settings.batch / len(batch.draws)
    return round(tokens * times), flops * times


def arithmetic(settings: PretrainSettings, objective: Mixture, batch: Batch, device: str) -> tuple[int, float]:
    """Tokens that go through encoders, and operations, in one step on a batch; multiplied and added counts two."""
    tokens = 0

    def count(module: nn.Module, args: tuple[Tensor, ...], result: object) -> None:
        nonlocal tokens
        seen = result.tokens if isinstance(result, Features) else result
        if isinstance(seen, Tensor):
            tokens += seen.shape[0] * seen.shape[1]

    hooks = [module.register_forward_hook(count) for module in _counted(objective)]

    def once() -> None:
        with autocast(settings, device):
            loss, _ = objective(batch, 0, 1000)
        loss.backward()

    flops = operations(once)
    for hook in hooks:
        hook.remove()
    return tokens, flops


def _counted(objective: Mixture) -> list[nn.Module]:
    """The first block of each transformer, which sees all of its tokens; other encoders themselves."""
    found: dict[int, nn.Module] = {}
    for module in objective.modules():
        if isinstance(module, Encoder) and not isinstance(module, AnatomyEncoder):  # its inner encoder counts
            blocks = getattr(module, "blocks", None)
            first = blocks[0] if isinstance(blocks, nn.ModuleList) else module
            found[id(first)] = first
    return list(found.values())
