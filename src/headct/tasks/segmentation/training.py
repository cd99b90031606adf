"""How a segmenter learns: the loop, read from top to bottom.

What a step uses is a function of the seed and the step, so the same task gives the same bits (on one machine, with the
same number of threads), whether it was killed on the way or not. Which look was best is decided by whole validation
scans, never by random crops of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headct.detection.method import Progress, quiet
from headct.detection.training.loop import Course, decayed
from headct.embedding.machine import Machine
from headct.encoders import Grid, Window, as_input
from headct.failure import Failure, Misuse
from headct.pretraining.interruption import Interruption
from headct.pretraining.runs import RunFolder
from headct.pretraining.schedules import warm_cosine
from headct.pretraining.step import kept_random
from headct.tasks.segmentation.losses import deeply_supervised
from headct.tasks.segmentation.network import SegmentationNetwork
from headct.tasks.segmentation.patches import Augmentation, Example, Kept, cut, draw
from headct.tasks.segmentation.windows import Sliding, joined, slabs

Say = Callable[[str], None]

PATCHES = 21  # what a generator is for, so that no two draw the same numbers
SAVE_EVERY_S = 120.0
"""What is done is saved at least so often, however far looks are apart."""
LAST_STEP = "the last step"
"""What has chosen the step where no patient was kept for validation."""
STATES = 2
"""Saved states that are kept: the last one, and the one before it, should that be damaged."""


class Diverged(Failure):
    """The loss is no number any more; the same task would come to the same step again."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, how fast and how far a network is trained. Raises Misuse where a number makes no sense."""

    steps: int = 1000
    batch: int = 2  # patches a step
    lr: float = 1e-3  # the peak, of the decoder
    encoder_share: float = 0.1  # of that rate, for an encoder that was trained before
    lr_end: float = 0.01  # share of the peak
    warmup: float = 0.05  # share of the steps
    decay: float = 1e-2  # of the weights of layers
    clip: float = 1.0  # norm of all gradients together
    looks: int = 8  # at the validation scans, at most, evenly spread
    apart: int = 25  # steps from one look to the next, at least: a look takes as long as many steps
    looked_at: int = 24  # validation scans, at most

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "lr", "clip", "looks", "apart", "looked_at"):
            if getattr(self, name) <= 0:
                raise Misuse(f"{name} must be above zero, got {getattr(self, name)}")
        for name in ("encoder_share", "lr_end", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise Misuse(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if self.decay < 0:
            raise Misuse(f"decay must not be negative, got {self.decay}")

    @property
    def look_every(self) -> int:
        """Steps from one look to the next; the last step is always looked at."""
        return max(self.apart, self.steps // self.looks)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be learned from which scans: n of them, by their numbers."""

    load: Callable[[int], Example]
    holds: np.ndarray  # (n, K) bool, which classes each scan has; 0 is the background
    train: np.ndarray  # numbers of scans
    validation: np.ndarray
    windows: Sequence[Window]  # of the encoder; none where arrays are scaled
    side: int  # the axis along which left and right lie
    patch: Grid
    sliding: Sliding
    machine: Machine
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass
class _Standing:
    """Where a training stands between two steps: with weights and optimizer, all that the next one depends on."""

    best_step: int
    step: int = 0  # steps taken
    best: float = -math.inf  # of the looks
    kept: dict[str, Tensor] | None = None  # weights of the best look
    history: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # since the last look
    seconds: float = 0.0
    threads: int = field(default_factory=torch.get_num_threads)

    def save(self, run: RunFolder | None, network: nn.Module, optimizer: torch.optim.Optimizer, say: Say) -> None:
        if run is not None:
            state = {**vars(self), "network": network.state_dict(), "optimizer": optimizer.state_dict()}
            run.save_state(self.step, state, STATES, say)


def _restored(
    run: RunFolder | None, network: nn.Module, optimizer: torch.optim.Optimizer, steps: int, say: Say
) -> _Standing:
    """Where the run stands, with weights and optimizer as they were saved; at the start if nothing was."""
    state = None if run is None else run.load_state(say)
    if state is None:
        return _Standing(best_step=steps)
    values: dict[str, Any] = dict(state)
    network.load_state_dict(values.pop("network"))
    optimizer.load_state_dict(values.pop("optimizer"))
    standing = _Standing(**values)
    say(f"goes on after step {standing.step:,} of {steps:,}")
    if standing.threads != torch.get_num_threads():
        say(f"begun with {standing.threads} threads, now {torch.get_num_threads()}: the last bits may differ")
    return standing


def train(
    network: SegmentationNetwork,
    task: Task,
    schedule: Schedule,
    progress: Progress = quiet,
    *,
    run: RunFolder | None = None,
    say: Say = lambda line: None,
) -> Course:
    """Train a network in place and leave it in evaluation mode, with the weights that validation scans liked best.

    Without validation scans the last weights stay. With a `run`, whoever calls again with the same arguments goes on
    from the last state that was saved there. Raises Diverged where the loss is not finite, naming the scans.
    """
    machine, kept_examples = task.machine, Kept(task.load)
    network.to(machine.device)
    optimizer = _optimizer(network, schedule)
    holders = [task.train, *(task.train[task.holds[task.train, c]] for c in range(1, task.holds.shape[1]))]
    looked_at = task.validation[: schedule.looked_at]
    now = _restored(run, network, optimizer, schedule.steps, say)
    begun_s = saved_s = time.monotonic()
    before_s = now.seconds
    with kept_random(str(machine.device)), Interruption() as interruption:
        for step in range(now.step, schedule.steps):
            lr = warm_cosine(
                step, schedule.steps, int(schedule.warmup * schedule.steps), schedule.lr, schedule.lr * schedule.lr_end
            )
            torch.manual_seed(task.seed * 1_000_003 + step)
            rng = np.random.default_rng((task.seed, PATCHES, step))
            drawn = [draw(rng, holders, kept_examples, task.augmentation) for _ in range(schedule.batch)]
            patches = [cut(kept_examples(one.scan), one, task.patch, task.side) for one in drawn]
            x, spacing_mm = voxels_and_channels(
                [image for image, _ in patches], [kept_examples(one.scan) for one in drawn], task
            )
            labels = torch.stack([numbers for _, numbers in patches]).to(machine.device)
            # ------------------------------------------------------------------ the step
            network.train()
            with machine.arithmetic():
                levels = network(x, spacing_mm)
            loss = deeply_supervised(levels, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            _descend(optimizer, lr, schedule.clip)
            # ---------------------------------------------------------------------------
            now.step = step + 1
            now.losses.append(float(loss.detach()))
            if not math.isfinite(now.losses[-1]):
                raise Diverged(
                    f"training diverged at step {now.step}: the loss is {now.losses[-1]}",
                    why=f"the patches were of the scans numbered {', '.join(str(one.scan) for one in drawn)}",
                    do=f"look whether their arrays hold numbers, or take a lower lr than {schedule.lr:g}",
                )
            looks = now.step % schedule.look_every == 0 or now.step == schedule.steps
            if looks:
                _note_look(now, overlap(network, task, looked_at, kept_examples), lr, network)
            now.seconds = before_s + time.monotonic() - begun_s
            if looks or interruption.asked or time.monotonic() - saved_s > SAVE_EVERY_S:
                now.save(run, network, optimizer, say)
                saved_s = time.monotonic()
            if interruption.asked:
                raise KeyboardInterrupt
            progress(now.step, schedule.steps)
    if now.kept is not None:
        network.load_state_dict(now.kept)
    network.eval()
    judged = f"Dice of {len(looked_at)} whole validation scans, mean over classes"
    chosen_by = LAST_STEP if now.kept is None else judged
    return Course(now.best_step, schedule.steps, now.seconds, chosen_by, tuple(now.history))


def _note_look(now: _Standing, found: float, lr: float, network: nn.Module) -> None:
    """Write down what a look found (NaN without validation scans), and keep the weights if none was better."""
    row = {"step": float(now.step), "loss": float(np.mean(now.losses)), "lr": lr}
    now.history.append(row | ({"validation_dice": found} if math.isfinite(found) else {}))
    now.losses = []
    if found > now.best:
        now.best, now.best_step = found, now.step
        now.kept = {name: one.detach().clone() for name, one in network.state_dict().items()}


def overlap(network: SegmentationNetwork, task: Task, scans: np.ndarray, examples: Callable[[int], Example]) -> float:
    """The Dice of each class, over scans that hold it, and the mean of these over classes; NaN without scans."""
    outputs = task.holds.shape[1]
    of_class: list[list[float]] = [[] for _ in range(outputs)]
    for scan in scans.tolist():
        example = examples(scan)
        drawn = joined(look(network, example, task.windows, task.sliding, task.machine))
        for number in range(1, outputs):
            true, found = example.numbers == number, drawn == number
            if true.any():
                of_class[number].append(2 * float((true & found).sum()) / float(true.sum() + found.sum()))
    means = [float(np.mean(some)) for some in of_class if some]
    return float(np.mean(means)) if means else math.nan


@torch.inference_mode()
def look(
    network: SegmentationNetwork,
    example: Example,
    windows: Sequence[Window],
    sliding: Sliding,
    machine: Machine,
    along: int = 0,
) -> Iterator[Tensor]:
    """Logits (K, X, Y, Z) float32 of a whole scan in slabs along an axis, by a network left in evaluation mode."""
    network.eval()
    x = as_input(torch.from_numpy(np.ascontiguousarray(example.array))[None].to(machine.device), windows)
    spacing_mm = torch.from_numpy(example.spacing_mm.astype(np.float32)).to(machine.device)

    def seen(window: Tensor) -> Tensor:
        with machine.arithmetic():
            return network(window, spacing_mm.expand(len(window), -1))

    yield from slabs(seen, x, sliding, along)


def voxels_and_channels(images: Sequence[Tensor], examples: Sequence[Example], task: Task) -> tuple[Tensor, Tensor]:
    """What a network is given of patches (V, x, y, z): channels (B, C, x, y, z) and voxels (B, 3), on the device."""
    arrays = torch.stack(list(images)).to(task.machine.device)
    spacing_mm = np.stack([example.spacing_mm for example in examples]).astype(np.float32)
    x = as_input(arrays[:, 0] if task.windows else arrays, task.windows)
    return x, torch.from_numpy(spacing_mm).to(task.machine.device)


def _optimizer(network: SegmentationNetwork, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW in groups of one rate; an encoder whose statistics are held was trained before, and learns more slowly."""
    decays, of_encoder = decayed(network), set(network.encoder_part.parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for weight in (one for one in network.parameters() if one.requires_grad):
        share = schedule.encoder_share if network.held and weight in of_encoder else 1.0
        groups.setdefault((share, schedule.decay * (weight in decays)), []).append(weight)
    return torch.optim.AdamW(
        [{"params": weights, "share": share, "weight_decay": decay} for (share, decay), weights in groups.items()],
        lr=schedule.lr,
        fused=True,
    )


def _descend(optimizer: torch.optim.Optimizer, lr: float, clip: float) -> None:
    """One step down the gradients, clipped to a common norm, which then are gone."""
    nn.utils.clip_grad_norm_([one for group in optimizer.param_groups for one in group["params"]], clip)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"]
    optimizer.step()
    optimizer.zero_grad()
