"""The training loop, read from top to bottom.

Everything a step uses is a function of the settings, the step and the saved state, so a run that was killed and goes on
gives the same bits as one that was not (on one machine, with the same number of threads).
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headct import checkpoints, encoders
from headct.failure import Misuse
from headct.pretraining import views as views_of
from headct.pretraining.interruption import Interruption
from headct.pretraining.monitors import Monitors
from headct.pretraining.objectives import OBJECTIVES, Objective
from headct.pretraining.runs import RunFolder
from headct.pretraining.scans import Batch, Scans
from headct.pretraining.schedules import cosine, warm_cosine
from headct.pretraining.settings import PretrainSettings

if TYPE_CHECKING:
    import pandas as pd

    from headct.cohort import Cohort

Say = Callable[[str], None]

SAY_EVERY_S = 5.0
SAVE_EVERY_S = 300.0
"""A state is saved at least so often, however slow the steps are."""


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

    `progress` is given lines of text. Raises Misuse where cohorts or settings do not fit, Failure where the run
    diverges.
    """
    say = progress or (lambda line: None)
    scans, run = Scans(cohorts), RunFolder(Path(out))
    begun = run.begun_with(settings)
    settings = begun or replace(settings, device=_device(settings.device))
    objective = new_objective(settings)
    if begun is None:
        steps = settings.steps or _steps_that_fit(settings, objective, scans, say)
        settings = replace(settings, steps=steps)
        run.begin(settings)
    steps = _steps(settings)
    optimizer = new_optimizer(objective)
    monitors = Monitors(warm=int(settings.warmup * steps))
    start = _restore(run, objective, optimizer, monitors, scans, say)
    run.keep_history_before(start)
    say(_plan(settings, objective, scans, start))

    stopped, begun_s, said_s = "", time.monotonic(), 0.0
    saved_s = begun_s
    with run.history_file.open("a", encoding="utf-8") as history, Interruption() as interruption:
        for step in range(start, steps):
            step_s = time.monotonic()
            batch = scans.batch(settings.seed, step, settings.batch, settings.views)
            views = make_views(batch, settings, scans)
            data_s = time.monotonic() - step_s
            lr = warm_cosine(step, steps, int(settings.warmup * steps), settings.lr, settings.lr_end)
            decay = cosine(step, steps, *settings.decay)
            # ------------------------------------------------------------------ the step
            with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bf16"):
                loss, watched = objective(views, step, steps)
            loss.backward()
            norm = descend(optimizer, lr=lr, decay=decay, clip=settings.clip)
            objective.follow(step, steps)
            # ---------------------------------------------------------------------------
            watched = {"loss": loss.detach(), "gradient_norm": norm, **watched}
            values = dict(zip(watched, torch.stack([v.float() for v in watched.values()]).tolist(), strict=True))
            stopped = monitors.see(step, values, batch.scan_ids)
            now_s = time.monotonic()
            row = {"step": step, **values, "lr": lr, "decay": decay, "air": views.air}
            history.write(json.dumps({**row, "step_s": now_s - step_s, "data_s": data_s}) + "\n")
            history.flush()
            if stopped:
                break
            due = (step + 1) % settings.save_every == 0 or now_s - saved_s > SAVE_EVERY_S
            if due or step + 1 == steps or interruption.asked:
                run.save_state(_state(step + 1, objective, optimizer, monitors, scans))
                saved_s = now_s
            interruption.obey()
            if now_s - said_s > SAY_EVERY_S or step + 1 == steps:
                said_s = now_s
                say(_line(step, start, steps, values, now_s - begun_s, settings.batch))
    if stopped:
        say(stopped)
    if start < steps or not run.checkpoint.exists():
        _write_checkpoint(run, objective, settings, scans, stopped)
    return Run(run.checkpoint, run.history(), settings, stopped)


def new_objective(settings: PretrainSettings) -> Any:
    """The objective around a new encoder, on the device; its random start depends on the seed alone."""
    kind = next(kind for kind in OBJECTIVES.values() if type(settings.objective) is kind.settings)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        encoder = encoders.build(settings.encoder, **{"channels": len(settings.windows), **settings.encoder_settings})
        return kind.make(encoder, settings.objective).to(settings.device).train()


def new_optimizer(objective: nn.Module) -> torch.optim.AdamW:
    """AdamW in two groups: weights of linear layers decay; biases, norms, tokens and positions do not."""
    trained = {name: weight for name, weight in objective.named_parameters() if weight.requires_grad}
    linear = {f"{name}.weight" for name, module in objective.named_modules() if isinstance(module, nn.Linear)}
    decayed = [weight for name, weight in trained.items() if name in linear]
    free = [weight for name, weight in trained.items() if name not in linear]
    groups = [{"params": decayed, "decays": True}, {"params": free, "decays": False}]
    return torch.optim.AdamW(groups, fused=True)


def descend(optimizer: torch.optim.Optimizer, *, lr: float, decay: float, clip: float) -> Tensor:
    """One step down the gradients, clipped to a common norm, which then are gone; returns the norm before clipping.

    Gradients that are not finite change nothing.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = nn.utils.clip_grad_norm_(weights, clip)
    if torch.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, decay if group["decays"] else 0.0
        optimizer.step()
    optimizer.zero_grad()
    return norm


def make_views(batch: Batch, settings: PretrainSettings, scans: Scans) -> views_of.Views:
    """The views of a batch, on the device."""
    hu = torch.from_numpy(batch.hu).to(settings.device)
    windows = list(settings.windows.values())
    return views_of.make(hu, batch.draws, settings.views, scans.spacing_mm, windows)


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise Misuse("PyTorch sees no GPU", do="run `headct doctor`, or set device to auto")
    return wanted


def _steps(settings: PretrainSettings) -> int:
    assert settings.steps is not None, "settings are resolved before the loop"
    return settings.steps


def _steps_that_fit(settings: PretrainSettings, objective: nn.Module, scans: Scans, say: Say, measured: int = 5) -> int:
    """How many steps fit into the budget, from a few that are measured on a copy and thrown away."""
    assert settings.budget_s is not None, "settings hold steps or a budget"
    begun_s = time.monotonic()
    trial = copy.deepcopy(objective)
    optimizer = new_optimizer(trial)
    taken_s = []
    for step in range(1 + measured):
        step_begun_s = time.monotonic()
        views = make_views(scans.batch(settings.seed, step, settings.batch, settings.views), settings, scans)
        with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss, _ = trial(views, step, 1000)
        loss.backward()
        float(descend(optimizer, lr=settings.lr, decay=0.0, clip=settings.clip))  # waits for the device
        taken_s.append(time.monotonic() - step_begun_s)
    step_s = statistics.median(taken_s[1:])  # the first one pays for allocations, others for what else is running
    steps = max(1, int((settings.budget_s - (time.monotonic() - begun_s)) / step_s))
    say(f"a step takes {step_s:.2f} s: {steps} steps fit into {settings.budget_s:.0f} s")
    return steps


def _state(
    step: int, objective: nn.Module, optimizer: torch.optim.Optimizer, monitors: Monitors, scans: Scans
) -> dict[str, Any]:
    return {
        "step": step,
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
    state = run.load_state()
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


def _plan(settings: PretrainSettings, objective: Objective, scans: Scans, start: int) -> str:
    weights = sum(weight.numel() for weight in objective.encoder.parameters())
    steps = _steps(settings)
    return (
        f"{settings.encoder} ({weights / 1e6:.1f} M weights) on {len(scans)} scans: {steps} steps of {settings.batch}, "
        f"{steps * settings.batch / len(scans):.1f} epochs, {settings.precision} on {settings.device}"
        + (f", from step {start}" if start else "")
    )


def _line(step: int, start: int, steps: int, values: dict[str, float], passed_s: float, batch: int) -> str:
    done = step + 1 - start
    left_s = passed_s / done * (steps - step - 1)
    watched = " ".join(f"{name} {values[name]:.3f}" for name in ("entropy", "used", "spread") if name in values)
    return (
        f"step {step + 1}/{steps} ({(step + 1) / steps:.0%}) loss {values['loss']:.4f} {watched} "
        f"{done * batch / passed_s:.1f} scans/s, {left_s:.0f} s left"
    )


def _write_checkpoint(
    run: RunFolder, objective: Objective, settings: PretrainSettings, scans: Scans, stopped: str
) -> None:
    name = next(name for name, kind in OBJECTIVES.items() if type(settings.objective) is kind.settings)
    card = checkpoints.Card(
        recipe=scans.recipe,
        windows=dict(settings.windows),
        objective={
            "name": name,
            **asdict(settings.objective),
            "steps": settings.steps,
            "batch": settings.batch,
            "seed": settings.seed,
            "stopped": stopped,
        },
        data=scans.provenance,
        licence=settings.licence,
    )
    checkpoints.save(run.checkpoint, copy.deepcopy(objective.encoder).cpu().eval(), card, replace_existing=True)
