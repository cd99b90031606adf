"""FM-HCT's downstream as published: its steps, its draws of scans and its way to validate.

For those who want to compare with those numbers; nothing here is the default of anything. What it does otherwise than
the rest of this package, each a finding of its own:

- The head stays in training mode while it validates and tests, so that a scan's probability depends on the scans beside
  it, and what is learned of features' spread goes on changing with the test scans (`Published.evaluation_mode`).
- Few-shot scans are drawn with replacement, so of 20 positives 16 draws find about 11 (`Published.replacement`).
- An epoch is 500 draws whatever the number of scans, so "all labels" are 80 steps on at most 5,000 draws.
- The rate of the first step is 0: one of the ten steps of a run with 8 shots.
- Scans are mirrored, and turned upside down and back to front, whatever side a label has (`Published.flips`).
- An offset of up to 0.1 is added after windowing, so air is no longer 0 and values leave 0..1.
- Class weights are worked out, and used by the draw of scans alone; the loss does not know them.
- All weights decay, biases and norms too; head and backbone are clipped each on its own.
- The attentive head divides by the root of its width twice (`AttentiveHead.published_scaling`).
- The documented flag of the linear probe is unknown to the code and passed over, so that all weights are trained:
  `locked` is what was meant.
- The best epoch is that of the highest area under the curve on validation scans, seen through a head in training mode.

Its adapters, which mix up tokens and features, and its crash at a batch of one are not made again. Each finding is
learned alone, of two classes. B scans, C channels.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.checkpoints import PretrainedEncoder
from headct.detection.method import Progress, Scans, Task, quiet
from headct.detection.training.network import copied, inner, inputs, parts, token_width
from headct.embedding.machine import Machine
from headct.encoders import Encoder, ViT3D
from headct.encoders.heads import AttentiveHead, LinearHead
from headct.evaluation.metrics import auroc
from headct.failure import Misuse
from headct.pretraining.published import published_lr, published_optimizer
from headct.pretraining.step import descend, kept_random

HEADS = ("linear", "attentive")
LR_END = 1e-3  # share of the peak that the cosine ends at
WARMUP = 0.1  # share of the steps
DECAY = 0.01
CLIP = 1.0  # of the norm of all gradients of the head, and of all of the backbone
FLIP = 0.1  # of each axis
OFFSET, OFFSET_SHARE = 0.1, 0.5
HEAD_FEATURES = 64  # of each attention head, as in the published size


class PublishedClassifier(nn.Module):
    """An encoder and a head of two classes, as published.

    A linear head sees the class token, an attentive one all tokens, class and registers too. Encoders that are no
    vision transformer have neither: theirs are the scan vector and the tokens of places.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, *, locked: bool = False) -> None:
        super().__init__()
        self.encoder, self.head, self.locked = encoder, head, locked

    def train(self, mode: bool = True) -> Self:
        """As of any module, but a locked encoder is not to change: its BatchNorms stay as they are."""
        super().train(mode)
        self.encoder.train(mode and not self.locked)
        return self

    def snapshot(self) -> PublishedClassifier:
        """A copy of what learns."""
        encoder = self.encoder if self.locked else copy.deepcopy(self.encoder)
        return PublishedClassifier(encoder, copy.deepcopy(self.head), locked=self.locked)

    def forward(self, x: Tensor, spacing_mm: Tensor | None = None) -> Tensor:
        """Logits (B, 2) of x (B, C, X, Y, Z)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.locked):
            seen = self._seen(x, spacing_mm)
        return self.head(seen.float())

    def _seen(self, x: Tensor, spacing_mm: Tensor | None) -> Tensor:
        attentive = isinstance(self.head, AttentiveHead)
        if isinstance(self.encoder, ViT3D):
            tokens, _ = self.encoder.sequence(x, spacing_mm)
            return tokens if attentive else tokens[:, 0]
        features = self.encoder(x, spacing_mm)
        return features.tokens if attentive else features.scan


class PublishedTraining:
    """The steps of one run: an optimiser and a schedule for the head, and one of each for the backbone unless locked.

    The classifier is trained in place, in training mode, in which a published head stays for ever.
    """

    def __init__(self, classifier: PublishedClassifier, *, lr: float, head_lr: float, steps: int, warmup: int) -> None:
        self.classifier = classifier.train()
        self.steps, self.warmup, self.step = steps, warmup, 0
        parts = {"head": (classifier.head, head_lr)}
        if not classifier.locked:
            parts["backbone"] = (classifier.encoder, lr)
        self.peaks = {name: peak for name, (_, peak) in parts.items()}
        self.optimizers = {name: published_optimizer(part) for name, (part, _) in parts.items()}

    def rates(self) -> dict[str, float]:
        """The learning rates of the step that comes next; 0 at the first."""
        return {
            name: published_lr(self.step, self.steps, self.warmup, peak, LR_END * peak)
            for name, peak in self.peaks.items()
        }

    def take(self, x: Tensor, targets: Tensor, spacing_mm: Tensor | None = None) -> tuple[float, Tensor]:
        """One step on x (B, C, X, Y, Z) with targets (B,) of 0 and 1; the loss and logits (B, 2) before it.

        Raises Misuse for a batch of one, whose spread a head in training mode cannot know.
        """
        _check_batch(len(x))
        logits = self.classifier(x, spacing_mm)
        loss = F.cross_entropy(logits, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, lr in self.rates().items():
            descend(self.optimizers[name], lr=lr, decay=DECAY, clip=CLIP)
        self.step += 1
        return float(loss.detach()), logits.detach()


@torch.no_grad()
def published_logits(
    classifier: PublishedClassifier, batches: Iterable[tuple[Tensor, Tensor]], *, evaluation_mode: bool = False
) -> Tensor:
    """Logits (n, 2) of scans in the order of batches (x, spacing_mm).

    As published the head is in training mode: they depend on how scans are shared out among batches, and the head has
    changed afterwards. With `evaluation_mode` neither is so.
    """
    classifier.eval()
    classifier.head.train(not evaluation_mode)
    found = []
    for x, spacing_mm in batches:
        if not evaluation_mode:
            _check_batch(len(x))
        found.append(classifier(x, spacing_mm).float().cpu())
    return torch.cat(found)


def _check_batch(scans: int) -> None:
    if scans < 2:
        raise Misuse(
            "a published head cannot see one scan alone",
            why="in training mode it standardises features over the scans of a batch",
            do="add a scan, or set evaluation_mode",
        )


def published_class_weights(targets: np.ndarray) -> np.ndarray:
    """Weights (2,) float32 of the classes of targets (n,): n by the number of scans that have it."""
    counts = np.bincount(np.asarray(targets, dtype=int), minlength=2)
    return np.asarray(len(targets) / counts, dtype=np.float32)


def published_draws(targets: np.ndarray, draws: int, generator: torch.Generator) -> np.ndarray:
    """The places (draws,) in targets (n,) of one epoch: with replacement, each scan by the weight of its class."""
    weights = torch.from_numpy(published_class_weights(targets))[torch.from_numpy(np.asarray(targets, dtype=int))]
    return torch.multinomial(weights, draws, replacement=True, generator=generator).numpy()


def published_shots(targets: np.ndarray, shots: int, seed: int, *, replacement: bool = True) -> np.ndarray:
    """The places (2 * shots,) in targets (n,) of the few scans that are learned from, class 0 first.

    As published they are drawn with replacement from numpy's global generator; this one is made from the seed and gives
    the same numbers. Which ones pandas takes depends on its version. Without `replacement` no scan comes twice, and a
    class with too few scans gives all of them.
    """
    random = np.random.RandomState(seed)
    drawn = []
    for one in (0, 1):
        places = np.flatnonzero(np.asarray(targets) == one)
        count = shots if replacement else min(shots, len(places))
        drawn.append(places[random.choice(len(places), size=count, replace=replacement)])
    return np.concatenate(drawn)


def published_augmented(x: Tensor, rng: np.random.Generator, *, flips: bool = True) -> Tensor:
    """Scans x (B, C, X, Y, Z), now and then flipped along each axis, left to right as well, and brighter or darker."""
    changed = []
    for image in x:
        axes = [axis for axis in (1, 2, 3) if rng.uniform() < FLIP]
        offset = rng.uniform(-OFFSET, OFFSET) * (rng.uniform() < OFFSET_SHARE)
        changed.append((image.flip(axes) if flips else image) + offset)
    return torch.stack(changed)


@dataclass(frozen=True, kw_only=True)
class Published:
    """FM-HCT's fine-tuning, probes and few shots, a network a finding; the defaults are those of its jobs.

    The last three are as published by default, and switched one by one to see what each of them changes.
    """

    head: str = "linear"  # or attentive
    locked: bool = False  # only the head learns: the linear and the attentive probe
    shots: int | None = None  # scans of each class; None: 500 balanced draws an epoch
    lr: float = 1e-5
    head_lr: float = 1e-3
    epochs: int = 10
    batch: int = 64
    draws: int = 500
    evaluation_mode: bool = False
    replacement: bool = True
    flips: bool = True

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise Misuse(f"head must be one of {', '.join(HEADS)}, got {self.head!r}")
        for name in ("lr", "head_lr", "epochs", "batch", "draws"):
            if getattr(self, name) <= 0:
                raise Misuse(f"{name} must be above zero, got {getattr(self, name)}")
        if self.shots is not None and self.shots < 1:
            raise Misuse(f"shots must be at least 1, got {self.shots}")

    def fit(self, task: Task, progress: Progress = quiet) -> FittedPublished:
        """One run for each finding. Raises Misuse where a finding lacks training scans of either class."""
        begun_s = time.monotonic()
        runs = []
        for column, finding in enumerate(task.findings):
            runs.append(self._run(task, column, finding))
            progress(column + 1, len(task.findings))
        facts = {
            "seconds": round(time.monotonic() - begun_s, 3),
            "steps": [run.steps for run in runs],
            "best_epoch": [run.best_epoch for run in runs],
            "validation_auroc": [run.best for run in runs],
            "distinct_training_scans": [run.distinct for run in runs],
        }
        return FittedPublished(task.encoder, task.findings, self, [run.classifier for run in runs], facts, task.machine)

    def _run(self, task: Task, column: int, finding: str) -> _Run:
        train, targets = _told(task, task.train, column)
        if len(np.unique(targets)) < 2:
            raise Misuse(f"{finding} has no training scans of both classes", do="leave it out, or add labels")
        classifier = self.classifier(task.encoder, task.seed, task.machine)
        generator = torch.Generator().manual_seed(task.seed)
        fixed = None
        if self.shots is not None:
            drawn = published_shots(targets, self.shots, task.seed, replacement=self.replacement)
            fixed = drawn[torch.randperm(len(drawn), generator=generator).numpy()]  # the order of every epoch
        per_epoch = -(-(self.draws if fixed is None else len(fixed)) // self.batch)
        steps = per_epoch * self.epochs
        training = PublishedTraining(
            classifier, lr=self.lr, head_lr=self.head_lr, steps=steps, warmup=int(WARMUP * steps)
        )
        rng = np.random.default_rng((task.seed, column))
        best, best_epoch, kept, used = -1.0, 0, classifier, set[int]()
        for epoch in range(self.epochs):
            places = published_draws(targets, self.draws, generator) if fixed is None else fixed
            used.update(places.tolist())
            for some in parts(places, self.batch):
                x, spacing_mm = inputs(task.encoder, task.scans, train[some], task.machine.device)
                x = published_augmented(x, rng, flips=self.flips)
                with task.machine.arithmetic():
                    training.take(x, torch.from_numpy(targets[some]).to(x.device), spacing_mm)
            found = self._validated(task, classifier, column)
            if found > best:
                best, best_epoch, kept = found, epoch, classifier.snapshot()
        return _Run(kept, steps, best_epoch, best, len(used))

    def _validated(self, task: Task, classifier: PublishedClassifier, column: int) -> float:
        """The area under the curve, which is the mean of those of either class; 0 where there are not both."""
        rows, targets = _told(task, task.validation, column)
        if len(np.unique(targets)) < 2:
            return 0.0
        logits = self.logits(classifier, task.encoder, task.scans, rows, task.machine)
        return float(auroc(targets, logits.softmax(dim=1)[:, 1].numpy()))

    def logits(
        self,
        classifier: PublishedClassifier,
        encoder: PretrainedEncoder,
        scans: Scans,
        rows: np.ndarray,
        machine: Machine,
    ) -> Tensor:
        """Logits (len(rows), 2); the head changes unless `evaluation_mode` is set."""
        batches = _batches(encoder, scans, rows, machine, self.batch)
        with machine.arithmetic():
            return published_logits(classifier, batches, evaluation_mode=self.evaluation_mode)

    def classifier(self, encoder: PretrainedEncoder, seed: int, machine: Machine) -> PublishedClassifier:
        """The network with a new head, whose random start depends on the seed alone."""
        network = inner(encoder) if self.locked else copied(encoder)
        network.to(machine.device)
        with kept_random("cpu"):
            torch.manual_seed(seed)
            head = self.new_head(network)
        return PublishedClassifier(network, head.to(machine.device), locked=self.locked)

    def new_head(self, encoder: Encoder) -> LinearHead | AttentiveHead:
        """A random head of two classes."""
        if self.head == "attentive":
            width = token_width(encoder)
            heads = max(1, width // HEAD_FEATURES)
            return AttentiveHead(width, 2, heads=heads, published_scaling=True)
        return LinearHead(encoder.settings.width if isinstance(encoder, ViT3D) else encoder.scan_width, 2)


@dataclass(frozen=True)
class _Run:
    """What became of one finding."""

    classifier: PublishedClassifier
    steps: int
    best_epoch: int
    best: float  # area under the curve of the validation scans; 0 where these are not of both classes
    distinct: int  # training scans that were drawn at all


@dataclass
class FittedPublished:
    """A network a finding. Unless it was told otherwise, what it says of a scan depends on the scans beside it.

    No detector is made of it, so it is not stored.
    """

    encoder: PretrainedEncoder
    findings: tuple[str, ...]
    how: Published
    classifiers: Sequence[PublishedClassifier]
    facts: Mapping[str, Any]
    machine: Machine

    def scores(self, scans: Scans, rows: np.ndarray) -> np.ndarray:
        """Logits (len(rows), f) float64 of class 1 against class 0, in batches of `Published.batch` in this order.

        As published each scan's depend on the others of its batch. The heads are copied first, so that the next call
        finds what this one found.
        """
        found = []
        for classifier in self.classifiers:
            logits = self.how.logits(classifier.snapshot(), self.encoder, scans, rows, self.machine)
            found.append((logits[:, 1] - logits[:, 0]).double().numpy())
        return np.stack(found, axis=1)


def _told(task: Task, rows: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Those of the rows whose label of a finding is known, and the labels as whole numbers."""
    labels = task.labels[rows, column]
    known = np.isfinite(labels)
    return rows[known], labels[known].astype(np.int64)


def _batches(
    encoder: PretrainedEncoder, scans: Scans, rows: np.ndarray, machine: Machine, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for some in parts(rows, size):
        yield inputs(encoder, scans, some, machine.device)
