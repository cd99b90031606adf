"""Self-distillation without labels (DINO, arXiv 2104.14294): a student learns what its own average says of other views.

G global views, V views in all (global ones first), B scans, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.encoders import Encoder, Window
from headct.encoders.heads import DinoHead
from headct.failure import Misuse
from headct.pretraining.objectives.objective import (
    Batch,
    Centre,
    Objective,
    Sight,
    Watched,
    follow,
    spread_of,
    teacher_of,
)
from headct.pretraining.published import PublishedView, draw_global, draw_local, see_published
from headct.pretraining.schedules import cosine, ramp
from headct.pretraining.views import Crops, Seen, View, draw_views, see


@dataclass(frozen=True, kw_only=True)
class DinoSettings:
    """Settings of the DINO objective; the published value (FM-HCT) stands beside each default that differs.

    The defaults are for tens to thousands of scans and batches of 4 to 32, where the published values end in uniform
    targets within about 150 steps. While targets are nearly uniform, what two views share grows only if its share of
    the variance of scores exceeds teacher over student temperature: hence the low teacher temperature, and views
    (`ViewSettings`) that differ little in scale and pose.
    """

    weight: float = 1.0  # beside other objectives
    global_crops: Crops = field(
        default_factory=lambda: Crops(views=2, shape=(80, 96, 80), edge_mm=(158.0, 170.0), overhang=0.03)
    )
    local_crops: Crops = field(
        default_factory=lambda: Crops(views=4, shape=(48, 48, 48), edge_mm=(80.0, 100.0), overhang=0.0)
    )
    prototypes: int = 256  # 65536
    hidden: int = 512  # 2048
    bottleneck: int = 128  # 256
    layers: int = 3
    batch_norm: bool = True  # False
    frozen_prototypes: float = 0.1  # share of the steps in which they stay as drawn; the first epoch
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.02, 0.02)  # (0.04, 0.04), at the start and after the warm-up
    temperature_warmup: float = 0.3  # share of the steps
    centre_momentum: float = 0.9
    teacher_momentum: tuple[float, float] = (0.98, 1.0)  # (0.994, 1.0), at the first and the last step
    # True: FM-HCT's own views, of `global_crops.shape` all of them; millimetres and overhang of crops, and the views of
    # the run, are then not used
    published_views: bool = False  # True

    def __post_init__(self) -> None:
        if self.published_views and self.global_crops.views != 2:
            raise Misuse(
                f"published views have 2 global ones, got {self.global_crops.views}",
                why="the first may be smoothed, the second may get a gamma",
                do="set global_crops.views to 2, or published_views to false",
            )
        if self.global_crops.views < 1 or self.global_crops.views + self.local_crops.views < 2:
            raise Misuse(
                f"dino compares views, got {self.global_crops.views} global and {self.local_crops.views} local ones",
                do="set global_crops.views to 2",
            )

    @classmethod
    def published(cls) -> DinoSettings:
        """FM-HCT's, as far as they are settings; the rest is in `headct.pretraining.published`."""
        cube, edge_mm = (96, 96, 96), (1.0, 1.0)  # of which only the cube is used
        return cls(
            global_crops=Crops(views=2, shape=cube, edge_mm=edge_mm, overhang=0.0),
            local_crops=Crops(views=2, shape=cube, edge_mm=edge_mm, overhang=0.0),
            prototypes=65536,
            hidden=2048,
            bottleneck=256,
            batch_norm=False,
            frozen_prototypes=1 / 200,  # the first of 200 epochs
            teacher_temperature=(0.04, 0.04),
            teacher_momentum=(0.994, 1.0),
            published_views=True,
        )


def dino_loss(student: Tensor, teacher: Tensor, centre: Tensor, *, student_t: float, teacher_t: float) -> Tensor:
    """Mean cross-entropy of student views against teacher views of the same scan, never of a view against itself.

    `student` (V, B, K) and `teacher` (G, B, K) are scores, `centre` (K,). With p_a = softmax((teacher_a - centre) /
    teacher_t) and q_v = softmax(student_v / student_t), equation 1 and section 3.1 of arXiv 2104.14294:

        pairs = [(a, v) for a in range(G) for v in range(V) if a != v]
        loss = mean(-sum(p[a, b, k] * log(q[v, b, k]) for k in range(K)) for a, v in pairs for b in range(B))
    """
    return between_views(student, F.softmax((teacher - centre) / teacher_t, dim=2), student_t=student_t)


def between_views(student: Tensor, targets: Tensor, *, student_t: float) -> Tensor:
    """The same, given the teacher's probabilities p, (G, B, K)."""
    targets = targets.detach()
    log_q = F.log_softmax(student / student_t, dim=2)
    cross_entropy = -torch.einsum("abk,vbk->av", targets, log_q) / student.shape[1]
    views, global_views = len(student), len(targets)
    cross_entropy = cross_entropy.masked_fill(
        torch.eye(global_views, views, dtype=torch.bool, device=student.device), 0.0
    )
    return cross_entropy.sum() / (global_views * (views - 1))


class Scorer(nn.Module):
    """An encoder with its head: windowed views to scan vectors and prototype scores."""

    def __init__(self, encoder: Encoder, head: DinoHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, views: Sequence[Seen]) -> tuple[Tensor, Tensor]:
        """Scan vectors (V, B, F) and scores (V, B, K) of views that share a shape.

        Global and local views are scored apart, so that a BatchNorm sees the student's global views as it sees the
        teacher's.
        """
        image, spacing_mm = torch.cat([view.image for view in views]), torch.cat([view.spacing_mm for view in views])
        scans = self.encoder(image, spacing_mm).scan
        scores = self.head(scans)
        return scans.reshape(len(views), -1, scans.shape[1]), scores.reshape(len(views), -1, scores.shape[1])


@dataclass(frozen=True)
class DinoDraw:
    """The views of one scan."""

    global_views: Sequence[View | PublishedView]
    local_views: Sequence[View | PublishedView]


def see_both(
    batch: Batch, global_crops: Crops, local_crops: Crops, windows: Sequence[Window]
) -> tuple[list[Seen], list[Seen]]:
    """The global and the local views of draws that have both, one entry a view."""
    hu, normals = batch.scans.to(torch.float32), batch.normals_of()  # once for all views

    def seen(crops: Crops, draws: Sequence[Sequence[View]]) -> list[Seen]:
        return [
            see(hu, [views[number] for views in draws], crops, batch.spacing_mm, windows, normals)
            for number in range(crops.views)
        ]

    return (
        seen(global_crops, [draw.global_views for draw in batch.draws]),
        seen(local_crops, [draw.local_views for draw in batch.draws]),
    )


def _precision(device: torch.device) -> torch.dtype:
    """In which the encoder will take its input."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


class Dino(Objective):
    """Student, teacher (a copy of the student at the start) and centre."""

    def __init__(self, encoder: Encoder, settings: DinoSettings, sight: Sight) -> None:
        super().__init__()
        self.settings, self.sight = settings, sight
        head = DinoHead(
            encoder.scan_width,
            prototypes=settings.prototypes,
            hidden=settings.hidden,
            bottleneck=settings.bottleneck,
            layers=settings.layers,
            batch_norm=settings.batch_norm,
        )
        self.student = Scorer(encoder, head)
        self.teacher = teacher_of(self.student)
        self.centre = Centre(settings.prototypes, settings.centre_momentum)

    @property
    def encoder(self) -> Encoder:
        """The teacher's, an average over steps that is better than any one of them."""
        return self.teacher.encoder

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> DinoDraw:
        settings, views = self.settings, self.sight.views
        if settings.published_views:
            local_views = range(settings.local_crops.views)
            return DinoDraw([draw_global(rng, 0), draw_global(rng, 1)], [draw_local(rng) for _ in local_views])
        return DinoDraw(
            draw_views(rng, views, settings.global_crops, boxes_mm["scan"]),
            draw_views(rng, views, settings.local_crops, boxes_mm["scan"]),
        )

    @torch.no_grad()
    def _seen(self, batch: Batch) -> tuple[list[Seen], list[Seen]]:
        """Global and local views, one entry a view."""
        if self.settings.published_views:
            draws = [[*draw.global_views, *draw.local_views] for draw in batch.draws]
            shape, windows = self.settings.global_crops.shape, self.sight.windows
            seen = see_published(batch.scans, draws, shape, batch.spacing_mm, windows, _precision(batch.hu.device))
            return seen[:2], seen[2:]
        return see_both(batch, self.settings.global_crops, self.settings.local_crops, self.sight.windows)

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        return self.compared(*self._seen(batch), step, steps)

    def compared(
        self, global_views: Sequence[Seen], local_views: Sequence[Seen], step: int, steps: int
    ) -> tuple[Tensor, Watched]:
        """The loss of these views, and what monitors watch; the centre moves after the step."""
        settings = self.settings
        with torch.no_grad():
            targets = self.teacher(global_views)[1].float()
        scans, scores = self.student(global_views)
        if local_views:
            scores = torch.cat([scores, self.student(local_views)[1]])
        scores = scores.float()
        warmup = round(settings.temperature_warmup * steps)
        teacher_t = ramp(step, warmup, *settings.teacher_temperature)
        with torch.autocast(scores.device.type, enabled=False):  # sums over thousands of prototypes need float32
            centre, student_t = self.centre.value, settings.student_temperature
            loss = dino_loss(scores, targets, centre, student_t=student_t, teacher_t=teacher_t)
        self.centre.note(targets.flatten(0, 1))
        with torch.no_grad():
            watched = watch(scans.float(), F.softmax((targets - centre) / teacher_t, dim=2))
        return loss, {**watched, "air": torch.stack([view.air for view in global_views]).mean()}

    def restrain(self, step: int, steps: int) -> None:
        """Prototypes stay as drawn at first."""
        if step < self.settings.frozen_prototypes * steps:
            self.student.head.prototypes.weight.grad = None

    def follow(self, step: int, steps: int) -> None:
        """Move the teacher by a momentum that follows the step of the whole run, not the place within an epoch."""
        follow(self.teacher, self.student, cosine(step, steps, *self.settings.teacher_momentum))
        self.centre.move()


LEAST_TARGETS = 6
"""Of fewer it means nothing that all name the same prototype; of one scan they always do."""


def watch(scans: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What tells a collapse, from scan vectors (G, B, F) and teacher probabilities (G, B, K).

    - `entropy`: mean entropy of a target as a share of ln K; 1 says that targets are uniform and teach nothing.
    - `used`: entropy of the mean target as a share of ln K; 0 says that every scan gets the same prototype. Left out
      of batches that are too small for it.
    - `spread`, `dimensions`: of the vectors of each view; near 0 every scan gets the same one, near 1 they differ along
      one line only.
    """
    views, batch, prototypes = targets.shape
    watched = {"entropy": torch.special.entr(targets).sum(dim=2).mean() / math.log(prototypes), **spread_of(scans)}
    if views * batch >= LEAST_TARGETS:
        watched["used"] = torch.special.entr(targets.mean(dim=(0, 1))).sum() / math.log(prototypes)
    return watched
