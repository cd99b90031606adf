"""Contrast within a scan (CT-FM, arXiv 2501.09001): two views of a crop agree, other crops of the same scan do not.

Which head it is cannot help, for positives and negatives come from one. B scans, C crops, 2 views each, E features.
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
from headct.failure import Misuse
from headct.pretraining.objectives.contrast import Contrast, Projector, cosines
from headct.pretraining.objectives.objective import Batch, Objective, Sight, Watched, spread_of
from headct.pretraining.views import Crops, View, draw, see, sent


@dataclass(frozen=True, kw_only=True)
class SimclrSettings:
    """Settings of contrast within a scan; CT-FM's value stands beside each default that differs.

    CT-FM flips top and bottom of its views and shifts their histogram, which moves water; neither is done here.
    """

    weight: float = 1.0  # beside other objectives
    # 15 crops of 96 x 128 x 128 mm: in a head two of them share half of their volume
    crops: Crops = field(default_factory=lambda: Crops(views=8, shape=(48, 48, 48), edge_mm=(56.0, 72.0), overhang=0.0))
    view_edge: tuple[float, float] = (0.5, 1.0)  # (0.33, 1); of a view, as a share of its crop's
    temperature: float = 0.1
    hidden: int = 256
    outputs: int = 128
    batch_norm: bool = False  # in the head
    symmetric: bool = True  # False: first views alone are anchors
    overlapping_negatives: bool = False  # True; else a negative weighs 1 - IoU of the two crops
    first_crop_only: bool = False  # as anchor
    variance_weight: float = 0.0  # share of the loss that keeps each feature spread out

    def __post_init__(self) -> None:
        if self.crops.views < 2:
            raise Misuse(
                f"a crop is compared with others of its scan, so crops.views must be 2 or more, got {self.crops}"
            )
        if not 0 < self.view_edge[0] <= self.view_edge[1] <= 1:
            raise Misuse(f"view_edge must rise within 0..1, got {self.view_edge}")


def intra_sample(views: Tensor, overlaps: Tensor, *, symmetric: bool = True, first_crop_only: bool = False) -> Contrast:
    """Each view of a crop beside all views of all crops of its scan, from `views` (C, 2, B, E).

    `overlaps` (B, C, C) is the IoU of crops, by which negatives lose weight; the identity matrix gives CT-FM's loss.
    Anchors and candidates of a scan are in the order view, crop: with a = views[:, 0], p = views[:, 1] of unit length,
    w = 1 - overlaps, T the temperature, and without `symmetric`,

        loss[b, i] = -log(exp(a[i, b] @ p[i, b] / T) / (exp(a[i, b] @ p[i, b] / T) + sum(
            w[b, i, j] * (exp(a[i, b] @ a[j, b] / T) + exp(a[i, b] @ p[j, b] / T)) for j in range(C) if j != i)))
    """
    crops = len(views)
    candidates = views.permute(2, 1, 0, 3).flatten(1, 2)  # (B, 2 C, E)
    anchors = torch.arange((2 if symmetric else 1) * crops, device=views.device)
    if first_crop_only:
        anchors = anchors[anchors % crops == 0]
    weights = (1 - overlaps).repeat(1, 2, 2)  # a crop overlaps with itself in full, so no anchor is its own negative
    return Contrast(
        cosines=cosines(candidates[:, anchors], candidates),
        positives=(anchors + crops) % (2 * crops),
        weights=weights[:, anchors],
    )


def variance_loss(views: Tensor) -> Tensor:
    """How far each feature of the unit vectors of `views` (C, 2, B, E) falls short of a standard deviation of 1.

    mean(relu(1 - sqrt(var + 1e-8))) over features, var over the crops of all scans, as in VICReg (arXiv 2105.04906).
    """
    points = F.normalize(views, dim=-1).transpose(0, 1).flatten(1, 2)  # (2, C B, E)
    return F.relu(1 - (points.var(dim=1) + 1e-8).sqrt()).mean()


def overlaps_of(boxes_mm: np.ndarray) -> np.ndarray:
    """IoU (C, C) of boxes (C, 2, 3), each given by its lowest and its highest corner."""
    low, high = boxes_mm[:, 0], boxes_mm[:, 1]
    shared_mm = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    both = shared_mm.clip(min=0).prod(axis=2)
    volumes = (high - low).prod(axis=1)
    return np.asarray(both / (volumes[:, None] + volumes - both))


def box_of(view: View, crops: Crops) -> np.ndarray:
    """The corners (2, 3) in mm of what a view covers, were it not turned."""
    half_mm = view.voxel_mm * np.array(crops.shape) / 2
    return np.array([view.centre_mm - half_mm, view.centre_mm + half_mm])


@dataclass(frozen=True)
class SimclrDraw:
    """The views [crop][view] of one scan, and the IoU of its crops."""

    views: list[list[View]]
    overlaps: np.ndarray  # (C, C)


class Simclr(Objective):
    """An encoder with a head for the comparison."""

    def __init__(self, encoder: Encoder, settings: SimclrSettings, sight: Sight) -> None:
        super().__init__()
        self.settings, self.sight = settings, sight
        widths = encoder.scan_width, settings.hidden, settings.outputs
        self.student = Projector(encoder, ProjectionMLP(widths, batch_norm=settings.batch_norm))

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> SimclrDraw:
        """Crops of the head, then two views of each crop that do not leave it."""
        crops, low, high = self.settings.crops, *self.settings.view_edge
        views, boxes = [], []
        for _ in range(crops.views):
            crop = draw(rng, self.sight.views, crops, boxes_mm["scan"])
            edge_mm = crop.voxel_mm * crops.shape[0]
            within = replace(crops, edge_mm=(low * edge_mm, high * edge_mm), overhang=0.0)
            boxes.append(box_of(crop, crops))
            views.append([draw(rng, self.sight.views, within, boxes[-1]) for _ in range(2)])
        return SimclrDraw(views, overlaps_of(np.stack(boxes)))

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        settings, count = self.settings, self.settings.crops.views
        low, high = settings.crops.edge_mm
        crops = replace(settings.crops, edge_mm=(low * settings.view_edge[0], high))  # what a view may cover
        hu, normals = batch.scans.to(torch.float32), batch.normals_of()  # once for all views
        views = [[drawn.views[crop][view] for drawn in batch.draws] for crop in range(count) for view in range(2)]
        with torch.no_grad():
            seen = [see(hu, one, crops, batch.spacing_mm, self.sight.windows, normals) for one in views]
            overlaps = sent(np.stack([drawn.overlaps for drawn in batch.draws]).astype(np.float32), hu.device)
        scans, projections = self.student(seen)
        loss, watched = self.compared(projections.reshape(count, 2, len(hu), -1), overlaps)
        air = torch.stack([view.air for view in seen]).mean()
        return loss, {**watched, **spread_of(scans.detach()), "overlap": _mean_pair(overlaps), "air": air}

    def compared(self, views: Tensor, overlaps: Tensor) -> tuple[Tensor, Watched]:
        """The loss of projections (C, 2, B, E) of crops that overlap by (B, C, C), and the share that is matched."""
        settings = self.settings
        if settings.overlapping_negatives:
            overlaps = torch.eye(len(views), dtype=overlaps.dtype, device=overlaps.device).expand_as(overlaps)
        contrast = intra_sample(views, overlaps, symmetric=settings.symmetric, first_crop_only=settings.first_crop_only)
        loss = contrast.losses(settings.temperature).mean()
        if settings.variance_weight:
            share = settings.variance_weight
            loss = (1 - share) * loss + share * variance_loss(views)
        return loss, {"matched": contrast.matched()}


def _mean_pair(overlaps: Tensor) -> Tensor:
    """The mean IoU of two different crops."""
    crops = overlaps.shape[1]
    return (overlaps.sum(dim=(1, 2)) - crops).mean() / (crops * (crops - 1))
