"""Two scans of one virtual patient at different scanners are told from those of other patients, or foretell each other.

What they share is the patient; what they do not is the scanner and the pose. B scans, 2 views of each (the second one
of the re-scan), E features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headct.encoders import Encoder
from headct.encoders.heads import ProjectionMLP
from headct.failure import Misuse
from headct.pretraining.objectives.contrast import Projector, between_patients, partner_rows, patients_of
from headct.pretraining.objectives.objective import (
    Batch,
    Objective,
    Sight,
    Watched,
    follow,
    spread,
    spread_of,
    teacher_of,
)
from headct.pretraining.schedules import cosine
from headct.pretraining.views import Crops, Seen, View, draw, see, sent

FORMS = ("contrast", "distill")


@dataclass(frozen=True, kw_only=True)
class RescanSettings:
    """Settings of the comparison with a re-scan; SimCLR's or BYOL's value stands beside each default that differs."""

    weight: float = 1.0  # beside other objectives
    form: str = "contrast"  # with other patients (arXiv 2002.05709); or distill, without (BYOL, arXiv 2006.07733)
    crop: Crops = field(  # of the whole head: the two scans are posed differently
        default_factory=lambda: Crops(views=1, shape=(80, 96, 80), edge_mm=(158.0, 170.0), overhang=0.03)
    )
    hidden: int = 512  # SimCLR 2048, BYOL 4096
    outputs: int = 128  # BYOL 256
    batch_norm: bool = False  # True; in the head. Those of distill always have it, else all vectors become one
    temperature: float = 0.1  # of contrast
    teacher_momentum: tuple[float, float] = (0.98, 1.0)  # (0.996, 1), of distill at the first and the last step

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise Misuse(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")


def distill_loss(foretold: Tensor, targets: Tensor) -> Tensor:
    """Mean of 2 - 2 cos over rows (N, E), BYOL's equation 2 (arXiv 2006.07733); targets get no gradient."""
    with torch.autocast(foretold.device.type, enabled=False):
        return (2 - 2 * F.cosine_similarity(foretold, targets.detach(), dim=1)).mean()


@dataclass(frozen=True)
class Pair:
    """A view of a scan, and one of its re-scan, or a second one of the scan where it has none."""

    scan: View
    positive: View


def draw_pair(rng: np.random.Generator, sight: Sight, crop: Crops, boxes_mm: Mapping[str, np.ndarray]) -> Pair:
    """The views of a scan and its re-scan, each on the box of its own head."""
    scan_mm = boxes_mm["scan"]
    return Pair(draw(rng, sight.views, crop, scan_mm), draw(rng, sight.views, crop, boxes_mm.get("rescan", scan_mm)))


@torch.no_grad()
def see_pair(batch: Batch, pairs: Sequence[Pair], crop: Crops, sight: Sight) -> list[Seen]:
    """Scans and positives as an encoder is given them."""
    spacing_mm, windows = batch.spacing_mm, sight.windows
    scans = see(batch.scans, [pair.scan for pair in pairs], crop, spacing_mm, windows, batch.normals_of())
    rows = partner_rows(batch, "rescan")
    others, normals = batch.hu[sent(rows, batch.hu.device)], batch.normals_of(rows)
    return [scans, see(others, [pair.positive for pair in pairs], crop, spacing_mm, windows, normals)]


class Rescan(Objective):
    """An encoder with a head; to foretell, also a predictor and a teacher that follows the encoder and its head."""

    partners = ("rescan",)

    def __init__(self, encoder: Encoder, settings: RescanSettings, sight: Sight) -> None:
        super().__init__()
        self.settings, self.sight = settings, sight
        widths = encoder.scan_width, settings.hidden, settings.outputs
        distill = settings.form == "distill"
        self.student = Projector(encoder, ProjectionMLP(widths, batch_norm=settings.batch_norm or distill))
        self.predictor: ProjectionMLP | None = None
        self.teacher: Projector | None = None
        if distill:
            again = settings.outputs, settings.hidden, settings.outputs
            self.predictor = ProjectionMLP(again, batch_norm=True)
            self.teacher = teacher_of(self.student)

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> Pair:
        return draw_pair(rng, self.sight, self.settings.crop, boxes_mm)

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        seen = see_pair(batch, batch.draws, self.settings.crop, self.sight)
        scans, projections = self.student(seen)
        if self.teacher is not None:
            loss, watched = self._foretold(seen, projections)
        else:
            contrast = between_patients(projections.unflatten(0, (2, -1)), patients_of(batch))
            loss, watched = contrast.losses(self.settings.temperature).mean(), {"matched": contrast.matched()}
        first, second = projections.detach().chunk(2)
        watched["cosine"] = F.cosine_similarity(first, second).mean()
        watched |= spread_of(scans.detach())
        watched["air"] = torch.stack([view.air for view in seen]).mean()
        return loss, watched

    def _foretold(self, seen: Sequence[Seen], projections: Tensor) -> tuple[Tensor, Watched]:
        """Each view foretells what the teacher says of the other one."""
        assert self.teacher is not None
        assert self.predictor is not None
        with torch.no_grad():
            targets = self.teacher(seen)[1]
        loss = distill_loss(self.predictor(projections).float(), torch.cat(targets.chunk(2)[::-1]))
        return loss, {"target_spread": spread(targets)}

    def follow(self, step: int, steps: int) -> None:
        """Move the teacher, if there is one."""
        if self.teacher is not None:
            follow(self.teacher, self.student, cosine(step, steps, *self.settings.teacher_momentum))
