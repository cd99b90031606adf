"""Masked autoencoding and self-distillation in one pass (MAE, arXiv 2111.06377; DINO, arXiv 2104.14294).

A student that sees a part of a view rebuilds the rest of it, and its scan vector says what its own average says of
another view that it sees whole; so the scan vector learns too, which rebuilding alone does not ask for.

B scans, V views of each, R = V * B rows (those of the first view first), N patches, K prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headct.encoders import Encoder
from headct.encoders.heads import DinoHead
from headct.pretraining.objectives import dino
from headct.pretraining.objectives.dino import Scorer, dino_loss
from headct.pretraining.objectives.mae import (
    WHOLE,
    DecoderSettings,
    MaskedDraw,
    check_masking,
    decoder_for,
    draw_masked,
    grid_of,
    in_one,
    rebuild,
    rows,
    see_views,
    transformer,
)
from headct.pretraining.objectives.objective import Batch, Centre, Objective, Sight, Watched, follow, teacher_of
from headct.pretraining.schedules import cosine, ramp
from headct.pretraining.views import Crops, Seen


@dataclass(frozen=True, kw_only=True)
class HybridSettings:
    """Settings of the hybrid objective: those of MAE, then those of DINO, which has the reasons for its defaults.

    Nothing like it is published for head CT; beside a default that differs stands the value of the part's own paper.
    """

    weight: float = 1.0  # beside other objectives
    crops: Crops = field(default_factory=lambda: replace(WHOLE, views=2))
    rebuilding: float = 1.0  # weight of MAE's loss, about 0.1 at the start
    distilling: float = 0.1  # weight of DINO's loss, about 5 at the start

    share: float = 0.75  # of the patches is hidden from the student
    air: bool = False  # True: patches of air are hidden and rebuilt like all others
    standardise: bool = False  # True
    decoder: DecoderSettings = field(default_factory=DecoderSettings)

    prototypes: int = 256  # 65536
    hidden: int = 512  # 2048
    bottleneck: int = 128  # 256
    layers: int = 3
    batch_norm: bool = True  # False
    frozen_prototypes: float = 0.1  # share of the steps in which they stay as drawn; the first epoch
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.02, 0.02)  # (0.04, 0.07), at the start and after the warm-up
    temperature_warmup: float = 0.3  # share of the steps
    centre_momentum: float = 0.9
    teacher_momentum: tuple[float, float] = (0.98, 1.0)  # (0.996, 1.0), at the first and the last step

    def __post_init__(self) -> None:
        # each view is compared with another
        check_masking("hybrid", self.crops, self.share, least_views=2)


class Hybrid(Objective):
    """Student with decoder, teacher (a copy of the student at the start) and centre."""

    def __init__(self, encoder: Encoder, settings: HybridSettings, sight: Sight) -> None:
        super().__init__()
        self.settings, self.sight = settings, sight
        self.vit = transformer(encoder, "hybrid")
        self.grid = grid_of(self.vit, settings.crops.shape)
        self.decoder = decoder_for(self.vit, settings.decoder, settings.crops.shape)
        self.head = DinoHead(
            encoder.scan_width,
            prototypes=settings.prototypes,
            hidden=settings.hidden,
            bottleneck=settings.bottleneck,
            layers=settings.layers,
            batch_norm=settings.batch_norm,
        )
        self.teacher = Scorer(teacher_of(self.vit), teacher_of(self.head))
        self.centre = Centre(settings.prototypes, settings.centre_momentum)

    @property
    def encoder(self) -> Encoder:
        """The teacher's, an average over steps that is better than any one of them."""
        return self.teacher.encoder

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> MaskedDraw:
        return draw_masked(rng, self.sight, self.settings.crops, self.grid, boxes_mm)

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        views = see_views(batch, self.settings.crops, self.sight)
        return self.compared(views, rows([draw.noise for draw in batch.draws], batch.hu.device), step, steps)

    def compared(self, views: Sequence[Seen], noise: Tensor, step: int, steps: int) -> tuple[Tensor, Watched]:
        """The loss of these views, whose patches are hidden from the student by noise (R, N), and what to watch.

        rebuilding * L_MAE (`mae.rebuild`) + distilling * L_DINO (`dino.dino_loss`), the latter between the student's
        scores of what it saw of a view and the teacher's of every other view.
        """
        settings, seen = self.settings, in_one(views)
        teacher_t = ramp(step, round(settings.temperature_warmup * steps), *settings.teacher_temperature)
        with torch.no_grad():
            targets = self.teacher(views)[1].float()
        tokens, rebuilding, watched = rebuild(
            self.vit,
            self.decoder,
            seen,
            noise,
            share=settings.share,
            air=settings.air,
            standardise=settings.standardise,
        )
        scans = self.vit.pooled(tokens)
        scores = self.head(scans).float().reshape(targets.shape)
        with torch.autocast(scores.device.type, enabled=False):  # sums over thousands of prototypes need float32
            centre, student_t = self.centre.value, settings.student_temperature
            distilling = dino_loss(scores, targets, centre, student_t=student_t, teacher_t=teacher_t)
        self.centre.note(targets.flatten(0, 1))
        with torch.no_grad():
            by_view = scans.float().reshape(len(views), -1, scans.shape[1])
            watched |= dino.watch(by_view, F.softmax((targets - centre) / teacher_t, dim=2))
        watched |= {"rebuilding": rebuilding.detach(), "distilling": distilling.detach(), "air": seen.air}
        return settings.rebuilding * rebuilding + settings.distilling * distilling, watched

    def restrain(self, step: int, steps: int) -> None:
        """Prototypes stay as drawn at first."""
        if step < self.settings.frozen_prototypes * steps:
            self.head.prototypes.weight.grad = None

    def follow(self, step: int, steps: int) -> None:
        """Move the teacher by a momentum that follows the step of the whole run, and the centre."""
        momentum = cosine(step, steps, *self.settings.teacher_momentum)
        follow(self.teacher.encoder, self.vit, momentum)
        follow(self.teacher.head, self.head, momentum)
        self.centre.move()
