"""How a segmenter learns: the loop, read from top to bottom.

What a step uses is a function of the seed and the step, so the same task gives the same bits (on one machine, with the
same number of threads). Which look was best is decided by whole validation scans, never by random crops of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from headct.detection.method import Progress, quiet
from headct.detection.training.loop import Course, decayed
from headct.embedding.machine import Machine
from headct.encoders import Grid, Window, as_input
from headct.failure import Failure, Misuse
from headct.pretraining.schedules import warm_cosine
from headct.pretraining.step import kept_random
from headct.tasks.segmentation.losses import deeply_supervised
from headct.tasks.segmentation.network import SegmentationNetwork
from headct.tasks.segmentation.patches import Augmentation, Example, Kept, cut, draw
from headct.tasks.segmentation.windows import Sliding, slide

PATCHES = 21  # what a generator is for, so that no two draw the same numbers


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
    looks: int = 8  # at the validation scans, evenly spread
    looked_at: int = 24  # validation scans, at most

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "lr", "clip", "looks", "looked_at"):
            if getattr(self, name) <= 0:
                raise Misuse(f"{name} must be above zero, got {getattr(self, name)}")
        for name in ("encoder_share", "lr_end", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise Misuse(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if self.decay < 0:
            raise Misuse(f"decay must not be negative, got {self.decay}")


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


def train(network: SegmentationNetwork, task: Task, schedule: Schedule, progress: Progress = quiet) -> Course:
    """Train a network in place and leave it in evaluation mode, with the weights that validation scans liked best.

    Without validation scans the last weights stay. Raises Failure where the loss is not finite, naming the scans.
    """
    machine, kept_examples = task.machine, Kept(task.load)
    network.to(machine.device)
    optimizer = _optimizer(network, schedule)
    holders = [task.train, *(task.train[task.holds[task.train, c]] for c in range(1, task.holds.shape[1]))]
    looked_at = task.validation[: schedule.looked_at]
    look_every = max(1, schedule.steps // schedule.looks)
    begun_s, history, losses = time.monotonic(), [], []
    best, best_step, kept = -math.inf, schedule.steps, None
    with kept_random(str(machine.device)):
        for step in range(schedule.steps):
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
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise Failure(
                    f"training diverged at step {step + 1}: the loss is {losses[-1]}",
                    why=f"the patches were of the scans numbered {', '.join(str(one.scan) for one in drawn)}",
                    do=f"look whether their arrays hold numbers, or take a lower lr than {schedule.lr:g}",
                )
            done = step + 1
            progress(done, schedule.steps)
            if done % look_every and done < schedule.steps:
                continue
            found = overlap(network, task, looked_at, kept_examples)
            row = {"step": float(done), "loss": float(np.mean(losses)), "lr": lr}
            history.append(row | ({"validation_dice": found} if math.isfinite(found) else {}))
            losses = []
            if found > best:
                best, best_step = found, done
                kept = {name: one.detach().clone() for name, one in network.state_dict().items()}
    if kept is not None:
        network.load_state_dict(kept)
    network.eval()
    judged = f"Dice of {len(looked_at)} whole validation scans, mean over classes"
    chosen_by = "the last step" if kept is None else judged
    return Course(best_step, schedule.steps, time.monotonic() - begun_s, chosen_by, tuple(history))


def overlap(network: SegmentationNetwork, task: Task, scans: np.ndarray, examples: Callable[[int], Example]) -> float:
    """The Dice of each class, over scans that hold it, and the mean of these over classes; NaN without scans."""
    outputs = task.holds.shape[1]
    of_class: list[list[float]] = [[] for _ in range(outputs)]
    for scan in scans.tolist():
        example = examples(scan)
        drawn = look(network, example, task.windows, task.sliding, task.machine).argmax(dim=0).cpu().numpy()
        for number in range(1, outputs):
            true, found = example.numbers == number, drawn == number
            if true.any():
                of_class[number].append(2 * float((true & found).sum()) / float(true.sum() + found.sum()))
    means = [float(np.mean(some)) for some in of_class if some]
    return float(np.mean(means)) if means else math.nan


@torch.inference_mode()
def look(
    network: SegmentationNetwork, example: Example, windows: Sequence[Window], sliding: Sliding, machine: Machine
) -> Tensor:
    """Logits (K, X, Y, Z) float32 of a whole scan, by a network that is left in evaluation mode."""
    network.eval()
    x = as_input(torch.from_numpy(np.ascontiguousarray(example.array))[None].to(machine.device), windows)
    spacing_mm = torch.from_numpy(example.spacing_mm.astype(np.float32)).to(machine.device)

    def seen(window: Tensor) -> Tensor:
        with machine.arithmetic():
            return network(window, spacing_mm.expand(len(window), -1))

    return slide(seen, x, sliding)


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
