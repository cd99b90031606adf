"""The training loop, read from top to bottom.

Everything a step uses is a function of the settings, the step and the saved state, so a run that was killed and goes on
gives the same bits as one that was not (on one machine, with the same number of threads and processes).
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from headct import encoders
from headct.encoders.vit import Block
from headct.failure import Misuse
from headct.pretraining.feed import Order, batch_of, batches, moved
from headct.pretraining.interruption import Interruption
from headct.pretraining.monitors import Monitors
from headct.pretraining.objectives import Batch, Mixture, Objective, Sight, Watched, mixture
from headct.pretraining.processes import Processes, joined
from headct.pretraining.runs import RunFolder, write_checkpoint
from headct.pretraining.scans import Scans
from headct.pretraining.schedules import cosine, warm_cosine
from headct.pretraining.settings import PretrainSettings

if TYPE_CHECKING:
    import pandas as pd

    from headct.cohort import Cohort

Say = Callable[[str], None]

SAY_EVERY_S = 5.0
SAVE_EVERY_S = 300.0
"""A state is saved at least so often, however slow the steps are."""
LOOK_EVERY = 20
"""Steps between two looks at the numbers of a GPU, for each look waits for it; a CPU is looked at every step."""


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    checkpoint: Path
    history: pd.DataFrame  # step, loss, lr, ..., a row per step
    settings: PretrainSettings  # resolved
    stopped: str = ""  # why a monitor stopped it, if one did


def pretrain(
    cohorts: Sequence[Path | Cohort], out: Path, settings: PretrainSettings, progress: Say | None = None
) -> Run:
    """Train an encoder on unlabelled scans and write its checkpoint; called again, go on where it stopped.

    Under `torchrun` every process calls it alike. `progress` is given lines of text. Raises Misuse where cohorts or
    settings do not fit, Failure where the run diverges.
    """
    with joined(settings.device) as processes, torch.random.fork_rng():
        say = progress if progress and processes.first else lambda line: None
        return _pretrain(Scans(cohorts), RunFolder(Path(out)), settings, processes, say)


def _pretrain(scans: Scans, run: RunFolder, settings: PretrainSettings, processes: Processes, say: Say) -> Run:
    begun = run.begun_with(settings)
    objective = new_objective(begun or settings, processes.device)
    scans.check(objective.partners, objective.truth)
    settings = begun or replace(settings, steps=_steps(settings, objective, scans, processes, say))
    processes.wait()  # until all have looked whether the run was begun
    if processes.first and begun is None:
        run.begin(settings)
    steps = settings.steps or 0
    optimizer = new_optimizer(objective)
    monitors = Monitors(warm=int(settings.warmup * steps))
    start = _restore(run, objective, optimizer, monitors, scans, say)
    if processes.first:
        run.keep_history_before(start)
    say(_plan(settings, objective, scans, processes, start))

    model = _spread(objective, processes)
    feed = feed_of(scans, objective, settings, processes, range(start, steps))
    stopped, begun_s, said_s = "", time.monotonic(), 0.0
    saved_s = begun_s
    look_every = LOOK_EVERY if processes.device.startswith("cuda") else 1
    log = _Log(run, monitors, processes, order_of(scans, settings, processes), scans)
    with contextlib.closing(feed), log, Interruption() as interruption:
        for step in range(start, steps):
            step_s = time.monotonic()
            lr = warm_cosine(step, steps, int(settings.warmup * steps), settings.lr, settings.lr_end)
            decay = cosine(step, steps, *settings.decay)
            torch.manual_seed((settings.seed * 1_000_003 + step) * processes.ranks + processes.rank)
            # ------------------------------------------------------------------ the step
            wait_s, parts = 0.0, []
            for part in range(settings.accumulate):
                wait_began_s = time.monotonic()
                batch = next(feed)
                wait_s += time.monotonic() - wait_began_s
                with _together(model, last=part + 1 == settings.accumulate), autocast(settings, processes.device):
                    loss, watched = model(batch, step, steps)
                    (loss / settings.accumulate).backward()
                parts.append({"loss": loss.detach(), **watched})
            objective.restrain(step, steps)
            norm = descend(optimizer, lr=lr, decay=decay, clip=settings.clip)
            objective.follow(step, steps)
            # ---------------------------------------------------------------------------
            log.note(step, {**_mean(parts), "gradient_norm": norm}, lr=lr, decay=decay)
            log.timed(step_s=time.monotonic() - step_s, data_s=wait_s)
            now_s = time.monotonic()
            asked = processes.any(interruption.asked) if processes.ranks > 1 else interruption.asked
            due = (step + 1) % settings.save_every == 0 or processes.agreed(now_s - saved_s) > SAVE_EVERY_S
            if due or asked or step + 1 == steps or (step + 1) % look_every == 0:
                stopped = log.look()
                if stopped:
                    break
            if due or asked or step + 1 == steps:
                if processes.first:
                    run.save_state(step + 1, _state(objective, optimizer, monitors, scans), settings.keep, say)
                saved_s = now_s
            if asked:
                interruption.obey()
            if log.latest and (now_s - said_s > SAY_EVERY_S or step + 1 == steps):
                said_s = now_s
                say(_line(step, start, steps, log.latest, now_s - begun_s, settings.batch))
    if stopped:
        say(stopped)
    if processes.first and (start < steps or not run.checkpoint.exists()):
        write_checkpoint(run, objective, settings, scans, stopped)
    processes.wait()
    return Run(run.checkpoint, run.history(), settings, stopped)


def new_objective(settings: PretrainSettings, device: str = "cpu") -> Mixture:
    """The objectives around a new encoder, on the device; their random start depends on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        encoder = encoders.build(settings.encoder, **{"channels": len(settings.windows), **settings.encoder_settings})
        objective = mixture(encoder, settings.objectives, Sight(settings.views, list(settings.windows.values())))
    objective.to(device).train()
    if settings.recompute:
        for block in objective.modules():
            if isinstance(block, Block):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    if settings.compile:
        for module in objective.modules():
            if isinstance(module, encoders.Encoder):
                module.compile()  # in place, so that names of weights stay as they are
    return objective


def new_optimizer(objective: nn.Module) -> torch.optim.AdamW:
    """AdamW in two groups: weights of linear and convolutional layers decay; biases, norms and tokens do not."""
    trained = {name: weight for name, weight in objective.named_parameters() if weight.requires_grad}
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    weights = {f"{name}.weight" for name, module in objective.named_modules() if isinstance(module, layers)}
    decayed = [weight for name, weight in trained.items() if name in weights]
    free = [weight for name, weight in trained.items() if name not in weights]
    groups = [{"params": decayed, "decays": True}, {"params": free, "decays": False}]
    return torch.optim.AdamW(groups, fused=True)


def descend(optimizer: torch.optim.Optimizer, *, lr: float, decay: float, clip: float) -> Tensor:
    """One step down the gradients, clipped to a common norm, which then are gone; returns the norm before clipping.

    Gradients that are not finite change nothing; the device is not waited for to find out.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = nn.utils.clip_grad_norm_(weights, clip, foreach=True)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr, decay if group["decays"] else 0.0
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]  # fused kernels then skip
    optimizer.step()
    optimizer.zero_grad()
    return norm


def autocast(settings: PretrainSettings, device: str) -> torch.autocast:
    """Mixed precision, as the settings say."""
    return torch.autocast(device.split(":")[0], torch.bfloat16, enabled=settings.precision == "bf16")


def order_of(scans: Scans, settings: PretrainSettings, processes: Processes) -> Order:
    """Which scans this process sees in each part of a step. Raises Misuse where a batch cannot be shared out."""
    parts = settings.accumulate * processes.ranks
    if settings.batch % parts:
        raise Misuse(
            f"a batch of {settings.batch} scans has no {parts} equal parts",
            why=f"{processes.ranks} processes take it in {settings.accumulate} steps each",
            do=f"take a multiple of {parts}",
        )
    names = [cohort.path.name for cohort in scans.cohorts]
    unknown = sorted(set(settings.shares) - set(names))
    if unknown:
        raise Misuse(f"shares name {unknown[0]!r}, which is no cohort of this run", do=f"name {', '.join(names)}")
    shares = [settings.shares.get(name, float(size)) for name, size in zip(names, scans.sizes, strict=True)]
    return Order(settings.seed, settings.batch, tuple(shares), processes.rank, processes.ranks, settings.accumulate)


def feed_of(
    scans: Scans, objective: Objective, settings: PretrainSettings, processes: Processes, steps: range
) -> Generator[Batch]:
    """The batches of the steps, on the device."""
    order = order_of(scans, settings, processes)
    return batches(scans, objective, order, steps, workers=settings.workers, device=processes.device)


def _spread(objective: Mixture, processes: Processes) -> nn.Module:
    """The objective, with gradients averaged over all processes."""
    if processes.ranks == 1:
        return objective
    if processes.device.startswith("cuda"):
        nn.SyncBatchNorm.convert_sync_batchnorm(objective)  # type: ignore[no-untyped-call]
    # scans without truth or partner leave weights of some objectives without a gradient
    unused = bool(objective.truth or objective.partners)
    return DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=unused)


def _mean(parts: Sequence[Watched]) -> Watched:
    return {name: torch.stack([part[name].float() for part in parts]).mean() for name in parts[0]}


def _together(model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Gradients are averaged over processes once a step, after its last part."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()


def _steps(settings: PretrainSettings, objective: Mixture, scans: Scans, processes: Processes, say: Say) -> int:
    if settings.steps is not None:
        return settings.steps
    if settings.epochs is not None:
        return max(1, round(settings.epochs * len(scans) / settings.batch))
    return round(processes.agreed(_steps_that_fit(settings, objective, scans, processes, say)))


def _steps_that_fit(
    settings: PretrainSettings, objective: Mixture, scans: Scans, processes: Processes, say: Say, measured: int = 5
) -> int:
    """How many steps fit into the budget, from a few that are measured on a copy and thrown away."""
    assert settings.budget_s is not None, "settings hold steps, epochs or a budget"
    begun_s = time.monotonic()
    trial = copy.deepcopy(objective)
    optimizer = new_optimizer(trial)
    order = order_of(scans, settings, processes)
    taken_s = []
    for step in range(1 + measured):
        step_begun_s = time.monotonic()
        for part in range(settings.accumulate):
            batch = moved(batch_of(scans, trial, order, step, part), processes.device)
            with autocast(settings, processes.device):
                loss, _ = trial(batch, step, 1000)
            loss.backward()
        float(descend(optimizer, lr=settings.lr, decay=0.0, clip=settings.clip))  # waits for the device
        taken_s.append(time.monotonic() - step_begun_s)
    step_s = statistics.median(taken_s[1:])  # the first one pays for allocations, others for what else is running
    steps = max(1, int((settings.budget_s - (time.monotonic() - begun_s)) / step_s))
    say(f"a step takes {step_s:.2f} s: {steps} steps fit into {settings.budget_s:.0f} s")
    return steps


class _Log:
    """The numbers of the steps: kept on the device until they are looked at, then written down and monitored."""

    def __init__(self, run: RunFolder, monitors: Monitors, processes: Processes, order: Order, scans: Scans) -> None:
        self.run, self.monitors, self.processes, self.order, self.scans = run, monitors, processes, order, scans
        self.latest: dict[str, float] = {}
        self._waiting: list[tuple[dict[str, Any], list[str], Tensor]] = []

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *error: object) -> None:
        self.run.close_history()

    def note(self, step: int, watched: dict[str, Tensor], **values: float) -> None:
        """Keep the numbers of a step."""
        stacked = torch.stack([value.detach().float() for value in watched.values()])
        self._waiting.append(({"step": step, **values}, list(watched), stacked))

    def timed(self, **values: float) -> None:
        """Add how long the step took."""
        self._waiting[-1][0].update(values)

    def look(self) -> str:
        """Write down what was kept; why the run should stop, or an empty string. Raises Failure if it diverged.

        Numbers are means over all processes, so that all of them stop at the same step.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return ""
        numbers = self.processes.mean(torch.stack([stacked for _, _, stacked in waiting])).tolist()
        for (row, names, _), of_step in zip(waiting, numbers, strict=True):
            values = dict(zip(names, of_step, strict=True))
            stopped = self.monitors.see(row["step"], values, partial(self._scan_ids, row["step"]))
            self.latest = values
            if self.processes.first:
                self.run.add_to_history({**row, **values})
            if stopped:
                return stopped
        return ""

    def _scan_ids(self, step: int) -> list[str]:
        """Those of all processes; where the run diverged, they are also kept beside it."""
        ids = self.order.scan_ids(self.scans, step)
        if self.processes.first:
            self.run.keep_broken(step, ids)
        return ids


def _state(objective: nn.Module, optimizer: torch.optim.Optimizer, monitors: Monitors, scans: Scans) -> dict[str, Any]:
    return {
        "objective": objective.state_dict(),
        "optimizer": optimizer.state_dict(),
        "monitors": dict(monitors.seen),
        "scans": scans.provenance,
        "threads": torch.get_num_threads(),
    }


def _restore(
    run: RunFolder,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    monitors: Monitors,
    scans: Scans,
    say: Say,
) -> int:
    """Fill everything from the saved state, if there is one; returns the step to take next."""
    state = run.load_state(say)
    if state is None:
        return 0
    if state["scans"] != scans.provenance:
        raise Misuse(
            f"{run.path} was begun on other scans",
            why="a run that goes on with other data is neither of the two",
            do="give the cohorts it was begun with, in the same order, or name another folder",
        )
    if state["threads"] != torch.get_num_threads():
        say(f"begun with {state['threads']} threads, now {torch.get_num_threads()}: the last bits may differ")
    objective.load_state_dict(state["objective"])
    optimizer.load_state_dict(state["optimizer"])
    monitors.seen = dict(state["monitors"])
    return int(state["step"])


def _plan(settings: PretrainSettings, objective: Objective, scans: Scans, processes: Processes, start: int) -> str:
    weights = sum(weight.numel() for weight in objective.encoder.parameters())
    steps = settings.steps or 0
    several = f", {processes.ranks} processes" if processes.ranks > 1 else ""
    return (
        f"{'+'.join(settings.objectives)}: {settings.encoder} ({weights / 1e6:.1f} M weights) on {len(scans)} scans, "
        f"{steps} steps of {settings.batch}, {steps * settings.batch / len(scans):.1f} epochs, {settings.precision} on "
        f"{processes.device}{several}" + (f", from step {start}" if start else "")
    )


def _line(step: int, start: int, steps: int, values: dict[str, float], passed_s: float, batch: int) -> str:
    done = step + 1 - start
    left_s = passed_s / done * (steps - step - 1)
    shown = [(name, value) for name, value in values.items() if name not in ("loss", "gradient_norm", "air")][:5]
    watched = " ".join(f"{name} {value:.3f}" for name, value in shown)
    return (
        f"step {step + 1}/{steps} ({(step + 1) / steps:.0%}) loss {values['loss']:.4f} {watched} "
        f"{done * batch / passed_s:.1f} scans/s, {left_s:.0f} s left"
    )
