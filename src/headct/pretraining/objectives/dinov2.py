"""DINO on scan vectors, iBOT on masked patches, and KoLeo (DINOv2, arXiv 2304.07193; iBOT, arXiv 2111.07832).

B scans, G global views, R = G * B rows (those of the first view first), N patches, M masked ones of all rows, W width,
F features of a scan vector, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from headct.encoders import Encoder, Grid, ViT3D
from headct.encoders.heads import DinoHead
from headct.encoders.vit import Masked, cut
from headct.failure import Misuse
from headct.pretraining.objectives.dino import DinoDraw, between_views, see_both, watch
from headct.pretraining.objectives.mae import in_one, is_tissue, patch_places_mm, transformer
from headct.pretraining.objectives.objective import Batch, Centre, Objective, Sight, Watched, follow, teacher_of
from headct.pretraining.schedules import cosine, ramp
from headct.pretraining.views import Crops, Seen, View, draw_views, sent

CENTRINGS = ("sinkhorn", "mean")


@dataclass(frozen=True, kw_only=True)
class Dinov2Settings:
    """Settings of the DINOv2 objective; the published value (ViT-L) stands beside each default
    that differs.

    Sinkhorn-Knopp makes all prototypes equally wanted in each step, so there should be about as many as there are
    global views in a step: with far more, each target is spread over many, and teaches little. As in `DinoSettings`, a
    low teacher temperature and BatchNorm keep targets from becoming uniform. After 120 steps of 16 simple virtual heads
    their entropy was 0.56 of that of uniform ones; 0.83 without BatchNorm, 0.93 with published temperatures, 0.997 with
    both as published.
    """

    weight: float = 1.0  # beside other objectives
    global_crops: Crops = field(
        default_factory=lambda: Crops(views=2, shape=(80, 96, 80), edge_mm=(158.0, 170.0), overhang=0.03)
    )
    local_crops: Crops = field(  # 8 views
        default_factory=lambda: Crops(views=4, shape=(48, 48, 48), edge_mm=(80.0, 100.0), overhang=0.0)
    )
    prototypes: int = 64  # 131072
    patch_prototypes: int = 256  # 131072
    hidden: int = 512  # 2048
    bottleneck: int = 128  # 384, of patches 256
    layers: int = 3
    batch_norm: bool = True  # False; in the head for scan vectors alone, for among patches air would count
    frozen_prototypes: float = 0.1  # share of the steps in which they stay as drawn; the first epoch
    patches: float = 1.0  # weight of the loss of patches
    koleo: float = 0.1  # weight of the loss that keeps scan vectors apart
    masked_views: float = 0.5  # share of a scan's global views, of which patches are masked
    masked_share: tuple[float, float] = (0.1, 0.5)  # of the patches of the head in such a view
    centring: str = "sinkhorn"  # or "mean", a running mean as in DINO, which collapses with few scans a step
    sinkhorn_rounds: int = 3
    centre_momentum: float = 0.9  # of "mean"
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.02, 0.02)  # (0.04, 0.07), at the start and after the warm-up
    temperature_warmup: float = 0.3  # share of the steps
    teacher_momentum: tuple[float, float] = (0.98, 1.0)  # (0.994, 1.0), at the first and the last step

    def __post_init__(self) -> None:
        if self.centring not in CENTRINGS:
            raise Misuse(f"centring must be one of {', '.join(CENTRINGS)}, got {self.centring!r}")
        low, high = self.masked_share
        if not 0 < low <= high < 1:
            raise Misuse(f"masked_share must be a rising range within 0 and 1, got {self.masked_share}")
        if self.global_crops.views < 2:
            raise Misuse(
                f"dinov2 needs at least 2 global views, got {self.global_crops.views}",
                why="a view is compared with other views of its scan",
                do="set global_crops.views to 2",
            )

    def masked_of(self, views: int) -> int:
        """In how many of so many global views of a scan patches are masked."""
        return round(self.masked_views * views)


@dataclass(frozen=True)
class Dinov2Draw(DinoDraw):
    """The views of one scan, and which patches of the global ones are masked."""

    masked: np.ndarray  # (G, N), bool


def near_head(vit: ViT3D, view: View, shape: Grid, box_mm: np.ndarray) -> np.ndarray:
    """Which patches of a view (nx, ny, nz) reach into the head's box (2, 3).

    The few degrees by which a view is turned are left out; what is air all the same is known when it is looked at.
    """
    near = []
    for axis, place_mm in enumerate(patch_places_mm(vit, view, shape)):
        reach_mm = vit.settings.patch[axis] / 2 * view.voxel_mm
        near.append((place_mm + reach_mm > box_mm[0, axis]) & (place_mm - reach_mm < box_mm[1, axis]))
    return near[0][:, None, None] & near[1][:, None] & near[2]


def draw_masked_blocks(rng: np.random.Generator, allowed: np.ndarray, share: float) -> np.ndarray:
    """A share of the allowed patches (nx, ny, nz), bool, in blocks of drawn edges up to half of those of the grid.

    Each block lies around a patch that is allowed and not masked yet; of the last one only as much is taken as is
    still wanted. At least one patch is masked, unless none is allowed.
    """
    masked = np.zeros_like(allowed)
    left = max(1, round(share * int(allowed.sum()))) if allowed.any() else 0
    while left:
        open_ = allowed & ~masked
        places = np.argwhere(open_)
        edges = rng.integers(1, np.maximum(2, np.array(allowed.shape) // 2), endpoint=True)
        low = np.maximum(places[rng.integers(len(places))] - edges // 2, 0)
        block = np.zeros_like(allowed)
        block[tuple(slice(first, first + edge) for first, edge in zip(low, edges, strict=True))] = True
        taken = np.flatnonzero(block & open_)[:left]
        masked.flat[taken] = True
        left -= len(taken)
    return masked


def sinkhorn(scores: Tensor, temperature: float, rounds: int = 3, counted: Tensor | None = None) -> Tensor:
    """Probabilities (N, K) of scores (N, K), of which each prototype gets as much as any other (arXiv 2006.09882).

    Sums over samples go over all processes. Samples that are not `counted`, (N,), get probabilities, but take nothing
    from the prototypes. With Q = exp(scores / temperature), section 3.1 and appendix A, where N counts samples:

        for _ in range(rounds):
            Q = Q / sum(Q[n] for n in range(N)) / K                                          # prototypes: 1 / K each
            Q = Q / sum(Q[:, k] for k in range(K)) / N                                       # samples: 1 / N each
        return Q * N
    """
    log_q = scores / temperature  # logarithms, for exp(1 / 0.02) twice is beyond float32's largest number
    for _ in range(rounds):
        log_q = log_q - _log_of_sum(log_q, counted)
        log_q = F.log_softmax(log_q, dim=1)
    return log_q.exp()


def _log_of_sum(log_q: Tensor, counted: Tensor | None) -> Tensor:
    """log(sum(exp(log_q))) over the counted samples of all processes, (K,); finite even where there are none."""
    if counted is not None:
        log_q = log_q.masked_fill(~counted[:, None], -1e4)
    elsewhere = dist.is_available() and dist.is_initialized()
    largest = log_q.amax(dim=0) if len(log_q) else log_q.new_full(log_q.shape[1:], -1e4)
    if elsewhere:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    total = (log_q - largest).exp().sum(dim=0)
    if elsewhere:
        dist.all_reduce(total)
    return largest + total.log()


def koleo(vectors: Tensor) -> Tensor:
    """How near scans lie to their nearest neighbour on the unit sphere, from vectors (B, F): section 4, 1806.03198.

        loss = -mean(log(min(|x[i] - x[j]| for j in range(B) if j != i)) for i in range(B)),   x = v / |v|

    Neighbours are looked for among the scans of this process, as published. 0 for one scan.
    """
    points = F.normalize(vectors, dim=1)
    if len(points) < 2:
        return points.sum() * 0.0
    with torch.no_grad():
        nearest = (points @ points.T).fill_diagonal_(-2.0).argmax(dim=1)
    return -(F.pairwise_distance(points, points[nearest], eps=1e-8) + 1e-8).log().mean()


def patch_loss(
    student: Tensor, targets: Tensor, row: Tensor, counted: Tensor, rows: int, *, student_t: float, masked: int
) -> Tensor:
    """Cross-entropy of masked patches, equation 2 of arXiv 2111.07832, each row with a counted patch weighing the same.

    It is divided by how many rows are `masked` by the settings, so that parts of a batch add up to the whole.

    `student` (M, K) are scores and `targets` (M, K) the teacher's probabilities p; patch m is one of `row[m]`, and
    scored where `counted[m]`. With q = softmax(student / student_t):

        of_row[r] = mean(-sum(p[m] * log(q[m])) for m in range(M) if row[m] == r and counted[m])
        loss = sum(of_row[r] for r in range(rows) if there is any such m) / masked
    """
    losses = -(targets * F.log_softmax(student / student_t, dim=1)).sum(dim=1) * counted
    numbers = losses.new_zeros(rows).index_add(0, row, counted.to(losses.dtype))
    of_rows = losses.new_zeros(rows).index_add(0, row, losses) / numbers.clamp(min=1)
    return of_rows.sum() / max(masked, 1)


class Scorers(nn.Module):
    """An encoder with a head for scan vectors and one for patches, which share no weights (section 4)."""

    def __init__(self, encoder: ViT3D, settings: Dinov2Settings) -> None:
        super().__init__()
        self.encoder = encoder
        shape: dict[str, Any] = {
            "hidden": settings.hidden,
            "bottleneck": settings.bottleneck,
            "layers": settings.layers,
        }
        self.head = DinoHead(
            encoder.scan_width, prototypes=settings.prototypes, batch_norm=settings.batch_norm, **shape
        )
        self.patch_head = DinoHead(encoder.settings.width, prototypes=settings.patch_prototypes, **shape)


@dataclass(frozen=True)
class Picked:
    """The patches to be scored, of those of all rows."""

    numbers: Tensor  # (M,), counted through all rows
    row: Tensor  # (M,)
    counted: Tensor  # (M,), False for air

    def of(self, tokens: Tensor) -> Tensor:
        """Their tokens (M, W), of all tokens (R, N, W)."""
        return tokens.flatten(0, 1)[self.numbers]


class Dinov2(Objective):
    """Student, teacher (a copy of the student at the start), and the token that stands for what is masked."""

    def __init__(self, encoder: Encoder, settings: Dinov2Settings, sight: Sight) -> None:
        super().__init__()
        self.settings, self.sight = settings, sight
        vit = transformer(encoder, "dinov2")
        self.student = Scorers(vit, settings)
        self.teacher = teacher_of(self.student)
        self.mask_token = nn.Parameter(torch.zeros(vit.settings.width))  # as published
        self.centre = Centre(settings.prototypes, settings.centre_momentum)
        self.patch_centre = Centre(settings.patch_prototypes, settings.centre_momentum)

    @property
    def encoder(self) -> Encoder:
        """The teacher's, an average over steps that is better than any one of them."""
        return self.teacher.encoder

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> Dinov2Draw:
        settings, box_mm = self.settings, boxes_mm["scan"]
        global_views = draw_views(rng, self.sight.views, settings.global_crops, box_mm)
        local_views = draw_views(rng, self.sight.views, settings.local_crops, box_mm)
        heads = [near_head(self.student.encoder, view, settings.global_crops.shape, box_mm) for view in global_views]
        masked = np.zeros_like(heads)
        for number in rng.permutation(len(heads))[: settings.masked_of(len(heads))]:
            masked[number] = draw_masked_blocks(rng, heads[number], rng.uniform(*settings.masked_share))
        return Dinov2Draw(global_views, local_views, masked.reshape(len(heads), -1))

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        crops, local_crops = self.settings.global_crops, self.settings.local_crops
        with torch.no_grad():
            large, small = see_both(batch, crops, local_crops, self.sight.windows)
        masked = np.stack([draw.masked for draw in batch.draws], axis=1)  # (G, B, N)
        return self.compared(in_one(large), in_one(small) if small else None, masked, step, steps)

    def compared(
        self, large: Seen, small: Seen | None, masked: np.ndarray, step: int, steps: int
    ) -> tuple[Tensor, Watched]:
        """The loss of the rows of global and local views, of which patches (G, B, N) are masked; what to watch."""
        settings = self.settings
        views, scans, _ = masked.shape
        tissue = is_tissue(cut(large.image, self.student.encoder.settings.patch)[0])
        picked = self._picked(masked, tissue)
        teacher_t = ramp(step, round(settings.temperature_warmup * steps), *settings.teacher_temperature)
        with torch.no_grad():
            seen = self.teacher.encoder(large.image, large.spacing_mm)
            targets = self._targets(self.teacher.head(seen.scan), self.centre, teacher_t)
            of_patches = self.teacher.patch_head(picked.of(seen.tokens))
            patch_targets = self._targets(of_patches, self.patch_centre, teacher_t, picked.counted)

        hidden = sent(masked.reshape(views * scans, -1), tissue.device) & tissue
        seen = self.student.encoder(large.image, large.spacing_mm, Masked(hidden, self.mask_token))
        scores = self.student.head(seen.scan)
        if small is not None:
            local = self.student.encoder(small.image, small.spacing_mm).scan
            scores = torch.cat([scores, self.student.head(local)])
        patch_scores = self.student.patch_head(picked.of(seen.tokens)).float()
        vectors, targets = (values.reshape(views, scans, -1) for values in (seen.scan.float(), targets))
        scores = scores.float().reshape(-1, scans, settings.prototypes)

        with torch.autocast(scores.device.type, enabled=False):  # sums over thousands of prototypes need float32
            student_t = settings.student_temperature
            parts = {
                "dino": between_views(scores, targets, student_t=student_t),
                "ibot": patch_loss(
                    patch_scores,
                    patch_targets,
                    picked.row,
                    picked.counted,
                    len(hidden),
                    student_t=student_t,
                    masked=scans * settings.masked_of(views),
                ),
                "koleo": torch.stack([koleo(of_view) for of_view in vectors]).sum(),
            }
            loss = parts["dino"] + settings.patches * parts["ibot"] + settings.koleo * parts["koleo"]
        with torch.no_grad():
            watched = {
                **watch(vectors, targets),
                **{name: part.detach() for name, part in parts.items()},
                "patch_entropy": _entropy(patch_targets, picked.counted),
                "masked": hidden.sum() / tissue.sum().clamp(min=1),
                "air": large.air,
            }
        return loss, watched

    def _picked(self, masked: np.ndarray, tissue: Tensor) -> Picked:
        """Which patches are scored; how many is known from the draws, so the device is not asked."""
        drawn = np.flatnonzero(masked)
        numbers, row = sent(np.stack([drawn, drawn // masked.shape[2]]), tissue.device)
        return Picked(numbers, row, tissue.flatten()[numbers])

    def _targets(self, scores: Tensor, centre: Centre, teacher_t: float, counted: Tensor | None = None) -> Tensor:
        """Probabilities (n, K) of the teacher's scores (n, K)."""
        scores = scores.float()
        with torch.autocast(scores.device.type, enabled=False):
            if self.settings.centring == "sinkhorn":
                return sinkhorn(scores, teacher_t, self.settings.sinkhorn_rounds, counted)
            centre.note(scores, counted)
            return F.softmax((scores - centre.value) / teacher_t, dim=1)

    def restrain(self, step: int, steps: int) -> None:
        """Prototypes stay as drawn at first."""
        if step < self.settings.frozen_prototypes * steps:
            for head in (self.student.head, self.student.patch_head):
                head.prototypes.weight.grad = None

    def follow(self, step: int, steps: int) -> None:
        """Move the teacher by a momentum that follows the step of the whole run, and the centres."""
        follow(self.teacher, self.student, cosine(step, steps, *self.settings.teacher_momentum))
        self.centre.move()
        self.patch_centre.move()


def _entropy(targets: Tensor, counted: Tensor) -> Tensor:
    """Mean entropy of counted targets (M, K), as a share of ln K."""
    entropies = torch.special.entr(targets).sum(dim=1) / math.log(targets.shape[1])
    return (entropies * counted).sum() / counted.sum().clamp(min=1)
