"""The loop of all trained methods, read from top to bottom.

What a step uses is a function of the task's seed and the step, so the same task gives the same bits (on one machine,
with the same number of threads). B scans of a batch, n scans, f findings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.detection.method import Progress, Task, expect_both
from headct.detection.training.network import logits
from headct.evaluation.metrics import auroc
from headct.failure import Failure, Misuse
from headct.pretraining.scans import order
from headct.pretraining.schedules import warm_cosine
from headct.pretraining.step import kept_random

Inputs = tuple[Tensor, ...]
Given = Callable[[np.ndarray], Inputs]
"""The input of the network for rows, as they are scored."""
Examples = Callable[[np.ndarray, np.random.Generator], tuple[Inputs, np.ndarray]]
"""The input of the network for rows that are learned from, which the generator may vary, and its labels (B, f)."""

AUGMENT, LOOK = 11, 12  # what a generator is for, so that no two draw the same numbers


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, how fast and how far a network is trained. Raises Misuse where a number makes no sense."""

    steps: int = 200  # or more, so that
    epochs: float = 5.0  # each training scan comes at least so often: a fixed number of steps would not see a large set
    batch: int = 8  # scans a step; all of them where there are fewer
    lr: float = 1e-3  # the peak, of weights whose share is 1
    lr_end: float = 0.01  # share of the peak
    warmup: float = 0.1  # share of the steps
    decay: float = 0.05  # of the weights that decay
    clip: float = 1.0  # norm of all gradients together
    looks: int = 20  # at the validation scans, evenly spread
    looked_at: int = 400  # validation scans, at most, drawn by the seed
    patience: int = 10  # looks without a better one, after which training ends

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "lr", "clip", "looks", "looked_at", "patience"):
            if getattr(self, name) <= 0:
                raise Misuse(f"{name} must be above zero, got {getattr(self, name)}")
        for name in ("lr_end", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise Misuse(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if self.epochs < 0 or self.decay < 0:
            raise Misuse(f"epochs and decay must not be negative, got {self.epochs} and {self.decay}")

    def length(self, scans: int) -> int:
        """Steps for so many training scans."""
        return max(self.steps, math.ceil(self.epochs * scans / min(self.batch, scans)))


@dataclass(frozen=True)
class Weights:
    """Weights of a network that learn at the same rate."""

    parameters: Sequence[nn.Parameter]
    share: float = 1.0  # of the schedule's rate
    decays: bool = False


@dataclass(frozen=True)
class Quality:
    """What a look at the validation scans found; NaN where they do not tell."""

    auroc: float  # mean over findings of which they have both labels
    loss: float

    def beats(self, other: Quality) -> bool:
        """By the area under the curve, and by the loss where that is the same or unknown."""
        if self.auroc != other.auroc and not math.isnan(self.auroc):
            return self.auroc > other.auroc
        return self.loss < other.loss


@dataclass(frozen=True)
class Course:
    """How a training went. The network has the weights of the best look."""

    best_step: int  # steps taken by then; 0 is the start
    steps: int  # taken in all
    seconds: float
    chosen_by: str  # what decided which look was the best
    history: tuple[Mapping[str, float], ...]  # a row a look

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "steps": self.steps,
            "best_step": self.best_step,
            "seconds": round(self.seconds, 3),
            "chosen_by": self.chosen_by,
            "history": [dict(row) for row in self.history],
        }


def class_weights(labels: np.ndarray) -> np.ndarray:
    """Weights (2, f) of the labels 0 and 1 of each finding, from the labels (n, f) that are learned from.

    Over all n scans either class of each finding weighs n / 2, however rare it is and however many labels are unknown.
    Findings without both labels weigh nothing: nothing tells their classes apart.
    """
    counts = np.stack([(labels == value).sum(axis=0) for value in (0, 1)])
    taught = (counts > 0).all(axis=0)
    return np.where(taught, len(labels) / (2 * np.maximum(counts, 1)), 0.0)


def masked_loss(logits: Tensor, labels: np.ndarray, weights: np.ndarray) -> Tensor:
    """Cross-entropy of logits (B, f) and labels (B, f) of 1, 0 and NaN, the mean over scans and taught findings.

    With y the labels, w the weights of their classes, 0 where unknown, and g findings that have any weight,

        sum over b, i of w[b, i] * (softplus(logits[b, i]) - y[b, i] * logits[b, i])  /  (B * g)
    """
    known = np.isfinite(labels)
    weight = np.where(known, np.where(labels == 1, weights[1], weights[0]), 0.0).astype(np.float32)
    target = np.where(known, labels, 0.0).astype(np.float32)
    each = F.binary_cross_entropy_with_logits(
        logits.float(),
        torch.from_numpy(target).to(logits.device),
        weight=torch.from_numpy(weight).to(logits.device),
        reduction="sum",
    )
    return each / (len(labels) * max(1, int((weights > 0).any(axis=0).sum())))


def prior_logits(labels: np.ndarray) -> np.ndarray:
    """Logits (f,) of the shares of known labels (n, f) that are 1.

    Learning sees logits without them, since either class weighs the same there, and whoever reads scores sees them with
    them, so that logits mean the share of positives that was seen.
    """
    positive, negative = ((labels == value).sum(axis=0) for value in (1, 0))
    return np.log(positive) - np.log(negative)


def taught(task: Task) -> np.ndarray:
    """The training rows with labels. Raises Misuse where a finding is not both there and not there among them."""
    rows = task.known(task.train)
    expect_both(task.labels[rows], task.findings)
    return rows


def train(
    network: nn.Module,
    weights: Sequence[Weights],
    examples: Examples,
    given: Given,
    task: Task,
    schedule: Schedule,
    progress: Progress,
    *,
    training_mode: bool = False,
) -> Course:
    """Train a network in place and leave it in evaluation mode with the weights that validation scans liked best.

    The start counts as well, so that they never like the end less. Without validation scans the last weights stay. Only
    in `training_mode` do BatchNorms take their statistics from a batch. Raises Failure where the loss is not finite.
    """
    rows = taught(task)
    validation = _some(task.known(task.validation), schedule.looked_at, task.seed)
    steps = schedule.length(len(rows))
    look_every = max(1, steps // schedule.looks)
    balance, prior = class_weights(task.labels[rows]), prior_logits(task.labels[rows])
    shift = torch.from_numpy(prior.astype(np.float32)).to(task.machine.device)
    batch = min(schedule.batch, len(rows))
    optimizer = _optimizer(weights, schedule)
    device = str(task.machine.device)
    begun_s, history, losses, waited = time.monotonic(), [], [], 0
    best = _look(network, given, task, validation, prior)
    blind = math.isnan(best.loss)  # labels do not change, so then no look will tell
    kept, best_step = _copy(network), 0
    history.append(_row(0, best))
    with kept_random(device):
        for step in range(steps):
            lr = warm_cosine(step, steps, int(schedule.warmup * steps), schedule.lr, schedule.lr * schedule.lr_end)
            torch.manual_seed(task.seed * 1_000_003 + step)
            rng = np.random.default_rng((task.seed, AUGMENT, step))
            places = order(task.seed, [len(rows)], [1.0], range(step * batch, (step + 1) * batch))
            # ------------------------------------------------------------------ the step
            network.train(training_mode)
            x, labels = examples(rows[places], rng)
            with task.machine.arithmetic():
                loss = masked_loss(network(*x).float() - shift, labels, balance)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = _descend(optimizer, lr, schedule.clip)
            # ---------------------------------------------------------------------------
            losses.append(torch.stack([loss.detach(), norm]))
            done = step + 1
            progress(done, steps)
            if done % look_every and done < steps:
                continue
            (mean_loss, mean_norm), losses = torch.stack(losses).mean(dim=0).tolist(), []
            if not math.isfinite(mean_loss + mean_norm):
                raise Failure(
                    f"training diverged before step {done}",
                    why=f"the loss is {mean_loss}, the norm of its gradient {mean_norm}",
                    do=f"take a lower lr than {schedule.lr:g}, or fp32",
                )
            found = _look(network, given, task, validation, prior)
            history.append(_row(done, found, loss=mean_loss, gradient_norm=mean_norm, lr=lr))
            if blind or found.beats(best):
                best, best_step, kept, waited = found, done, _copy(network), 0
            elif (waited := waited + 1) >= schedule.patience:
                break
    network.load_state_dict(kept)
    network.eval()
    chosen_by = "the last step" if blind else "loss" if math.isnan(best.auroc) else "auroc, then loss"
    return Course(best_step, done, time.monotonic() - begun_s, chosen_by, tuple(history))


def _some(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng((seed, LOOK)).permutation(rows)[:most])


def decayed(module: nn.Module) -> set[Tensor]:
    """The weights of linear and convolutional layers; biases, norms and tokens are none of them."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    return {part.weight for part in module.modules() if isinstance(part, layers)}


def _optimizer(weights: Sequence[Weights], schedule: Schedule) -> torch.optim.AdamW:
    groups = [
        {"params": list(some.parameters), "share": some.share, "weight_decay": schedule.decay * some.decays}
        for some in weights
        if some.parameters
    ]
    return torch.optim.AdamW(groups, lr=schedule.lr, fused=True)


def _descend(optimizer: torch.optim.Optimizer, lr: float, clip: float) -> Tensor:
    """One step down the gradients, clipped to a common norm, which then are gone; returns the norm before clipping."""
    norm = nn.utils.clip_grad_norm_([one for group in optimizer.param_groups for one in group["params"]], clip)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"]
    optimizer.step()
    optimizer.zero_grad()
    return norm.detach()


def _look(network: nn.Module, given: Given, task: Task, rows: np.ndarray, prior: np.ndarray) -> Quality:
    if not len(rows):
        return Quality(math.nan, math.nan)
    labels = task.labels[rows]
    return quality(labels, logits(network, given, rows, task.machine, labels.shape[1]) - prior)


def quality(labels: np.ndarray, scores: np.ndarray) -> Quality:
    """Of logits (n, f) and labels (n, f): of findings alone of which both labels are there."""
    weights = class_weights(labels)
    told = np.flatnonzero(weights.any(axis=0))
    if not len(told):
        return Quality(math.nan, math.nan)
    known = np.isfinite(labels)
    areas = [auroc(labels[known[:, i], i], scores[known[:, i], i]) for i in told]
    return Quality(float(np.mean(areas)), float(masked_loss(torch.from_numpy(scores), labels, weights)))


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _row(step: int, found: Quality, **values: float) -> dict[str, float]:
    seen = {"validation_auroc": found.auroc, "validation_loss": found.loss}
    return {"step": step, **values, **{name: value for name, value in seen.items() if math.isfinite(value)}}
