"""A scan is near its re-scan, the same patient at another scanner, and far from its twin, who lacks a finding.

The twin is the hardest negative there is: it equals the scan in everything, scanner and pose included, but for one
finding. B scans, E features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headct.encoders import Encoder
from headct.encoders.heads import ProjectionMLP
from headct.pretraining.objectives.contrast import Contrast, Projector, between_patients, own, patients_of
from headct.pretraining.objectives.objective import Batch, Objective, Sight, Watched, spread_of
from headct.pretraining.objectives.rescan import Pair, draw_pair, see_pair
from headct.pretraining.views import Crops, see, sent


@dataclass(frozen=True, kw_only=True)
class TwinSettings:
    """Settings of the comparison with a twin; SimCLR's value stands beside each default that differs."""

    weight: float = 1.0  # beside other objectives
    crop: Crops = field(  # of the whole head
        default_factory=lambda: Crops(views=1, shape=(80, 96, 80), edge_mm=(158.0, 170.0), overhang=0.03)
    )
    hidden: int = 512  # 2048
    outputs: int = 128
    batch_norm: bool = False  # True; in the head
    temperature: float = 0.1
    twin_weight: float = 1.0  # how many other patients the twin counts for


def with_twins(vectors: Tensor, patients: Tensor, known: Tensor, *, twin_weight: float) -> Contrast:
    """Scans and re-scans among other patients, and each beside the twin; `vectors` (3, B, E) are scan, re-scan, twin.

    `known` (B,) says which scans have a twin. Re-scans are anchors too. For the scan a[b] with re-scan p[b] and
    twin t[b], all of unit length, and the other patients j, s = exp(cosine / T), u = twin_weight * known[b]:

        loss[b] = -log(s(a[b], p[b]) / (s(a[b], p[b]) + u * s(a[b], t[b]) + sum(
            s(a[b], a[j]) + s(a[b], p[j]) + known[j] * s(a[b], t[j]) for j in range(B) if patient(j) != patient(b))))
    """
    scans = len(known)
    contrast = between_patients(vectors, patients, torch.stack([torch.ones_like(known), torch.ones_like(known), known]))
    anchors = torch.arange(2 * scans, device=vectors.device)
    its_twin = own(3 * scans) + 2 * scans + anchors % scans
    worth = (known.repeat(2) * twin_weight).to(contrast.weights.dtype)
    return replace(contrast, weights=contrast.weights.scatter(1, its_twin[:, None], worth[:, None]))


def told_apart(vectors: Tensor, known: Tensor) -> Tensor:
    """The share of the scans with a twin that are nearer to their re-scan; `vectors` (3, B, E), `known` (B,)."""
    scan, positive, twin = F.normalize(vectors, dim=2)
    nearer = (scan * (positive - twin)).sum(dim=1) > 0
    return (nearer & known).sum() / known.sum().clamp(min=1)


class Twin(Objective):
    """An encoder with a head for the comparison."""

    partners = ("rescan", "twin")
    uses_findings = True

    def __init__(self, encoder: Encoder, settings: TwinSettings, sight: Sight) -> None:
        super().__init__()
        self.settings, self.sight = settings, sight
        widths = encoder.scan_width, settings.hidden, settings.outputs
        self.student = Projector(encoder, ProjectionMLP(widths, batch_norm=settings.batch_norm))

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> Pair:
        """The twin is seen as the scan is, so that nothing but the finding tells them apart."""
        return draw_pair(rng, self.sight, self.settings.crop, boxes_mm)

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        settings, count = self.settings, len(batch.draws)
        seen = see_pair(batch, batch.draws, settings.crop, self.sight)
        having = [scan for scan, row in enumerate(batch.partners["twin"]) if row >= 0]
        if having:
            rows = np.array([batch.partners["twin"][scan] for scan in having])
            twins, normals = batch.hu[sent(rows, batch.hu.device)], batch.normals_of(rows)
            views = [batch.draws[scan].scan for scan in having]
            seen.append(see(twins, views, settings.crop, batch.spacing_mm, self.sight.windows, normals))
        scans, projections = self.student(seen)
        known = sent(np.array([row >= 0 for row in batch.partners["twin"]]), batch.hu.device)
        vectors = projections.new_zeros(3 * count, projections.shape[1])
        places = np.array([*range(2 * count), *(2 * count + scan for scan in having)])
        vectors = vectors.index_copy(0, sent(places, vectors.device), projections).unflatten(0, (3, -1))
        contrast = with_twins(vectors, patients_of(batch), known, twin_weight=settings.twin_weight)
        air = torch.stack([view.air for view in seen]).mean()
        watched = {"matched": contrast.matched(), "told_apart": told_apart(vectors.detach(), known)}
        # of scans and re-scans: how many have a twin differs from part to part, and what is watched must not
        watched |= {**spread_of(scans[: 2 * count].detach()), "air": air}
        return contrast.losses(settings.temperature).mean(), watched
