"""The training loop, read from top to bottom.

Everything a step uses is a function of the settings, the step and the saved state, so a run that was killed and goes on
gives the same bits as one that was not (on one machine, with the same number of threads and processes).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from headct import checkpoints, encoders
from headct.embedding.machine import slow_in
from headct.failure import Misuse
from headct.pretraining import auto
from headct.pretraining.feed import Order
from headct.pretraining.interruption import Interruption
from headct.pretraining.monitors import Monitors
from headct.pretraining.objectives import Mixture, Objective, Watched
from headct.pretraining.plan import Plan, made_to_fit, plan, seconds_a_step, work_of_step
from headct.pretraining.probe import probe_of
from headct.pretraining.processes import Processes, joined
from headct.pretraining.report import page_of
from headct.pretraining.runs import HOW, RunFolder, write_checkpoint
from headct.pretraining.scans import Scans
from headct.pretraining.schedules import cosine, warm_cosine
from headct.pretraining.settings import PretrainSettings, literal, to_pairs
from headct.pretraining.sharding import gradients_summed, load_optimizer, load_weights, sharded, whole
from headct.pretraining.speed import Pace
from headct.pretraining.step import autocast, descend, feed_of, kept_random, new_objective, new_optimizer, order_of
from headct.pretraining.tracking import Trackers, check_installed
from headct.reporting.words import count

if TYPE_CHECKING:
    import pandas as pd

    from headct.cohort import Cohort

Say = Callable[[str], None]

BUFFERS_APART: Mapping[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}  # fmt: skip
"""Each process keeps the statistics of its own part of the batch; PyTorch 2.13 has another name for it."""

SAY_EVERY_S = 5.0
SAVE_EVERY_S = 300.0
"""A state is saved at least so often, however slow the steps are."""
LOOK_EVERY = 20
"""Steps between two looks at the numbers of a GPU and at requests to stop, for each look waits for the device; a CPU is
looked at every step."""


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
    with joined(settings.device) as processes, kept_random(processes.device):
        say = progress if progress and processes.first else lambda line: None
        return _pretrain(Scans(cohorts), RunFolder(Path(out)), settings, processes, say)


def _pretrain(scans: Scans, run: RunFolder, settings: PretrainSettings, processes: Processes, say: Say) -> Run:
    check_installed(settings.track)
    begun = run.begun_with(settings)
    origin = checkpoints.load(settings.continue_from) if settings.continue_from and not run.has_state else None
    if begun is None:
        if origin is not None:
            settings = _taken_over(settings, origin, say)
        settings = _planned(settings, scans, processes, say)
    else:
        settings = replace(begun, **{name: getattr(settings, name) for name in HOW})
        if settings.memory_gb is not None:
            settings, reason = made_to_fit(settings, scans, processes)
            say(reason)
    objective = new_objective(settings, processes.device, origin.encoder if origin else None)
    scans.check(objective.partners, objective.truth)
    if settings.shard and processes.ranks > 1:
        sharded(objective, processes)
    processes.wait()  # until all have looked whether the run was begun
    if processes.first and begun is None:
        run.begin(settings)
    steps = settings.steps or 0
    optimizer = new_optimizer(objective)
    monitors = Monitors(warm=int(settings.warmup * steps))
    start, flops = _restore(run, objective, optimizer, monitors, scans, processes, say, begun=begun is not None)
    if processes.first:
        run.keep_history_before(start)
    say(_begins(settings, objective, scans, processes, start))
    if slow := slow_in(settings.precision, torch.device(processes.device)):
        say(f"{slow} (--precision fp32, in a new run)")
    if processes.ranks > 1 and not processes.device.startswith("cuda") and _has_batch_norm(objective):
        say("BatchNorm takes its statistics from the scans of each process: losses are not those of one process alone")
    if flops is None and start < steps:
        flops = work_of_step(settings, scans, processes)[1]

    model = _spread(objective, processes)
    feed = feed_of(scans, objective, settings, processes, range(start, steps))
    stopped, begun_s, said_s = "", time.monotonic(), 0.0
    saved_s = last_s = begun_s
    windows = list(settings.windows.values())
    probe = probe_of(settings.probe, scans, windows, settings.seed) if settings.probe and processes.first else None
    look_every = LOOK_EVERY if processes.device.startswith("cuda") else 1
    pace = Pace((flops or 0.0) / processes.ranks, processes.device, settings.precision)
    followed = processes.first and start < steps
    trackers = Trackers(run.path, settings.track, to_pairs(settings), start, say) if followed else None
    log = _Log(run, monitors, processes, order_of(scans, settings, processes), scans, pace, trackers, say)
    with contextlib.closing(feed), log, Interruption() as interruption:
        for step in range(start, steps):
            lr = warm_cosine(step, steps, int(settings.warmup * steps), settings.lr, settings.lr_end)
            decay = cosine(step, steps, *settings.decay)
            torch.manual_seed(((settings.seed * 1_000_003 + step) * processes.ranks + processes.rank) % 2**63)
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
            now_s = time.monotonic()
            log.timed(step_s=now_s - last_s, data_s=wait_s)  # from step to step: a GPU works while nobody looks
            last_s = now_s
            if probe is not None and (step + 1) % probe.every == 0:
                log.timed(**probe.look(objective.encoder, processes.device))
                last_s = time.monotonic()
            last = step + 1 == steps
            due = (step + 1) % settings.save_every == 0
            if not (due or last or (step + 1) % look_every == 0):
                continue
            if stopped := log.look():
                break
            asked = processes.any(interruption.asked)
            if due or last or asked or processes.agreed(now_s - saved_s) > SAVE_EVERY_S:
                state = _state(objective, optimizer, monitors, scans, flops, processes)
                if processes.first:
                    run.save_state(step + 1, state, settings.keep, say)
                saved_s = last_s = time.monotonic()
            if asked:  # in any process: the others would wait for it for ever
                raise KeyboardInterrupt
            if log.latest and (now_s - said_s > SAY_EVERY_S or last):
                said_s = now_s
                say(_line(step, start, steps, log.latest, now_s - begun_s, settings.batch))
    if stopped:
        say(stopped)
    if start == steps:
        say("all steps were taken before")
    if start < steps or processes.agreed(run.checkpoint.exists()) == 0:
        weights = whole(objective.encoder.state_dict(), processes)
        if processes.first:
            _finish(run, objective, weights, settings, scans, stopped, say)
    processes.wait()
    return Run(run.checkpoint, run.history(), settings, stopped)


def _finish(
    run: RunFolder,
    objective: Mixture,
    weights: Mapping[str, Tensor],
    settings: PretrainSettings,
    scans: Scans,
    stopped: str,
    say: Say,
) -> None:
    """What is left behind for people, then the checkpoint, by which a run is known to have ended."""
    history = run.history()
    if len(history):
        run.write_history(history)
        uses_findings = objective.uses_findings or settings.origin_uses_findings
        page = page_of(history, settings, scans.provenance, stopped, uses_findings=uses_findings)
        page.write(run.path / "report.html")
    else:
        say("no numbers of any step could be written down, so there is no page of them")
    write_checkpoint(run, objective, weights, settings, scans, stopped)


def _spread(objective: Mixture, processes: Processes) -> nn.Module:
    """The objective, with gradients averaged over all processes."""
    if processes.ranks == 1 or gradients_summed(objective, now=True):
        return objective
    if processes.device.startswith("cuda"):
        nn.SyncBatchNorm.convert_sync_batchnorm(objective)  # type: ignore[no-untyped-call]
    # scans without truth or partner leave weights of some objectives without a gradient
    unused = bool(objective.truth or objective.partners)
    return DistributedDataParallel(objective, **BUFFERS_APART, find_unused_parameters=unused)


def _has_batch_norm(objective: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d) for module in objective.modules())


def _mean(parts: Sequence[Watched]) -> Watched:
    return {name: torch.stack([part[name].float() for part in parts]).mean() for name in parts[0]}


def _together(model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Gradients are averaged over processes once a step, after its last part."""
    if gradients_summed(model, now=last):
        return contextlib.nullcontext()
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()


def plan_of(cohorts: Sequence[Path | Cohort], settings: PretrainSettings, progress: Say | None = None) -> Plan:
    """What a run would take, measured on this machine; nothing is written."""
    with joined(settings.device) as processes, kept_random(processes.device):
        scans = Scans(cohorts)
        if settings.continue_from:
            settings = _taken_over(settings, checkpoints.load(settings.continue_from), lambda line: None)
        settings = _planned(settings, scans, processes, progress or (lambda line: None))
        return plan(settings, scans, processes)


def _taken_over(settings: PretrainSettings, origin: checkpoints.PretrainedEncoder, say: Say) -> PretrainSettings:
    """The settings with the encoder of the model that the run goes on from, and what that has been shown."""
    windows = origin.card.windows or settings.windows
    if len(windows) != origin.channels:
        raise Misuse(
            f"{origin.source} takes {origin.channels} channels, the run has {len(windows)} windows",
            do="set windows in a settings file, one for each channel",
        )
    say(f"goes on from {origin.source}: {origin.architecture}, windows {', '.join(windows)}")
    if not origin.card.windows:
        say("its windows are part of its recipe; those of this run are taken to be the same")
    of_encoder = json.loads(json.dumps(asdict(origin.settings)))  # as the settings file gives it back
    return replace(
        settings,
        encoder=origin.architecture,
        encoder_settings=of_encoder,
        windows=dict(windows),
        origin_uses_findings=bool(origin.card.objective.get("uses_findings", False)),
    )


def _planned(settings: PretrainSettings, scans: Scans, processes: Processes, say: Say) -> PretrainSettings:
    """The settings with everything decided: what is "auto", how a step fits into the memory, how many steps."""
    facts = _facts(settings, scans, processes) if settings.auto else None
    settings = _decided(settings, facts, say, length_known=False)
    if settings.memory_gb is not None:
        say(f"measuring the memory of a few scans, to see how many at a time fit into {settings.memory_gb:g} GB")
        settings, reason = made_to_fit(settings, scans, processes)
        say(reason)
    settings = replace(settings, steps=_steps(settings, scans, processes, say))
    return _decided(settings, facts, say, length_known=True)


def _decided(settings: PretrainSettings, facts: auto.Facts | None, say: Say, *, length_known: bool) -> PretrainSettings:
    """The settings with what is "auto" replaced; some of it can be told only when the length is known."""
    if facts is None:
        return settings
    settings, choices = auto.resolved(settings, facts, length_known=length_known)
    for choice in choices:
        say(f"{choice.name} = {literal(choice.value)}: {choice.reason}")
    return settings


def _facts(settings: PretrainSettings, scans: Scans, processes: Processes) -> auto.Facts:
    with torch.device("meta"):
        encoder = encoders.build(settings.encoder, **settings.encoder_settings)
    weights = sum(weight.numel() for weight in encoder.parameters())
    return auto.Facts(len(scans), weights, processes.device.startswith("cuda"), processes.ranks)


def _steps(settings: PretrainSettings, scans: Scans, processes: Processes, say: Say) -> int:
    if settings.steps is not None:
        return settings.steps
    if settings.budget_s is None:
        assert settings.epochs is not None, "settings hold steps, epochs or a budget"
        return max(1, round(settings.epochs * len(scans) / settings.batch))
    say(f"measuring a few steps, to see how many fit into {settings.budget_s:g} s")
    begun_s = time.monotonic()
    step_s = seconds_a_step(settings, scans, processes, measured=5)
    fits = int((settings.budget_s - (time.monotonic() - begun_s)) / step_s)
    steps = round(processes.agreed(max(1, fits)))
    if fits < 1:
        say(f"a step takes {step_s:.2f} s: none fits into {settings.budget_s:g} s after measuring, one is taken")
    else:
        say(f"a step takes {step_s:.2f} s: {steps} steps fit into {settings.budget_s:g} s")
    return steps


class _Log:
    """The numbers of the steps: kept on the device until they are looked at, then written down and monitored."""

    def __init__(
        self,
        run: RunFolder,
        monitors: Monitors,
        processes: Processes,
        order: Order,
        scans: Scans,
        pace: Pace,
        trackers: Trackers | None,
        say: Say,
    ) -> None:
        self.say = say
        self.run, self.monitors, self.processes, self.order, self.scans = run, monitors, processes, order, scans
        self.pace, self.trackers = pace, trackers
        self.latest: dict[str, float] = {}
        self._waiting: list[tuple[dict[str, Any], list[str], Tensor]] = []

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *error: object) -> None:
        self.run.close_history()
        if self.trackers is not None:
            self.trackers.close()

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
        rates = self.pace.of(len(waiting))  # the device has come to the end of these steps
        for (row, names, _), of_step in zip(waiting, numbers, strict=True):
            values = dict(zip(names, of_step, strict=True))
            stopped = self.monitors.see(row["step"], values, partial(self._scan_ids, row["step"]))
            self.latest = values
            if self.trackers is not None:
                written = {**row, **values, **rates}
                self.run.add_to_history(written, self.say)
                self.trackers.note(row["step"], {name: value for name, value in written.items() if name != "step"})
            if stopped:
                return stopped
        return ""

    def _scan_ids(self, step: int) -> list[str]:
        """Those of all processes; the run has diverged, so they are also kept beside it."""
        cases = self.order.cases(self.scans, step)
        if self.processes.first:
            hu = [self.scans.load(case.cohort, case.scan_id).hu for case in cases]
            self.run.keep_broken(step, [case.scan_id for case in cases], np.stack(hu))
        return [case.scan_id for case in cases]


def _state(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    monitors: Monitors,
    scans: Scans,
    flops: float | None,
    processes: Processes,
) -> dict[str, Any]:
    """All that the next step depends on; every process must ask for it, for each may have a share of the weights."""
    return {
        "objective": whole(objective.state_dict(), processes),
        "optimizer": whole(optimizer.state_dict(), processes),
        "flops": flops,
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
    processes: Processes,
    say: Say,
    *,
    begun: bool,
) -> tuple[int, float | None]:
    """Fill everything from the saved state, if there is one; returns the step to take next, and what one works.

    The first process chooses the state; another one that cannot read it fails.
    """
    state = run.load_state(say) if processes.first else None
    step = round(processes.agreed(-1 if state is None else state["step"]))
    if step < 0:
        if begun:
            say("no state was saved before the run was stopped: it begins anew")
        return 0, None
    if state is None:
        state = run.state_of(step)
    if state["scans"] != scans.provenance:
        raise Misuse(
            f"{run.path} was begun on other scans",
            why="a run that goes on with other data is neither of the two",
            do="give the cohorts it was begun with, in the same order, or name another folder",
        )
    if state["threads"] != torch.get_num_threads():
        say(f"begun with {state['threads']} threads, now {torch.get_num_threads()}: the last bits may differ")
    load_weights(objective, state["objective"])
    load_optimizer(optimizer, state["optimizer"])
    monitors.seen = dict(state["monitors"])
    return int(state["step"]), state.get("flops")


def _begins(settings: PretrainSettings, objective: Objective, scans: Scans, processes: Processes, start: int) -> str:
    weights = sum(weight.numel() for weight in objective.encoder.parameters())
    steps = settings.steps or 0
    length = f"{count(steps, 'step')} of {settings.batch}, {steps * settings.batch / len(scans):.1f} epochs"
    several = f", {processes.ranks} processes" if processes.ranks > 1 else ""
    return (
        f"{'+'.join(settings.objectives)}: {settings.encoder} ({weights / 1e6:.1f} M weights) on {len(scans)} scans, "
        f"{length}, {settings.precision} on {processes.device}{several}" + (f", from step {start}" if start else "")
    )


def _line(step: int, start: int, steps: int, values: dict[str, float], passed_s: float, batch: int) -> str:
    done = step + 1 - start
    left_s = passed_s / done * (steps - step - 1)
    shown = [(name, value) for name, value in values.items() if name not in ("loss", "gradient_norm", "air")][:5]
    watched = " ".join(f"{name} {value:.3f}" for name, value in shown)
    return (
        f"{step + 1} of {count(steps, 'step')} ({(step + 1) / steps:.0%}) loss {values['loss']:.4f} {watched} "
        f"{done * batch / passed_s:.1f} scans/s, {left_s:.0f} s left"
    )
