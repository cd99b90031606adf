"""Predict what a teacher sees in hidden blocks, not their voxels (I-JEPA, arXiv 2301.08243; V-JEPA 2, arXiv 2506.09985;
for head CT and MRI NeuroVFM, arXiv 2511.18640).

B scans, V views of each, R = V * B rows (those of the first view first), N patches, K context patches, M target blocks
of P patches, Q = M * P, W width, T = 1 + registers + patches tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headct.encoders import Encoder, Grid, ViT3D
from headct.encoders.heads import Predictor
from headct.encoders.mae import mean_over
from headct.encoders.positions import cells
from headct.encoders.vit import cut
from headct.failure import Misuse
from headct.pretraining.objectives.mae import (
    WHOLE,
    MaskedDraw,
    check_masking,
    draw_masked,
    grid_of,
    in_one,
    is_tissue,
    patch_places_mm,
    rows,
    see_views,
    transformer,
)
from headct.pretraining.objectives.objective import Batch, Objective, Sight, Watched, follow, spread_of, teacher_of
from headct.pretraining.schedules import cosine
from headct.pretraining.views import Crops, Seen, View

ERRORS = {"smooth-l1": F.smooth_l1_loss, "l1": F.l1_loss, "l2": F.mse_loss}


@dataclass(frozen=True, kw_only=True)
class JepaSettings:
    """Settings of the JEPA objective; I-JEPA's value stands beside each default that differs."""

    weight: float = 1.0  # beside other objectives
    crops: Crops = WHOLE
    blocks: int = 4
    # edges of a target block as shares of the grid's mean edge, in a drawn order; 2 x 3 x 4 of 6 x 7 x 6 patches, which
    # is a tenth of them. 0.15 to 0.2 of a picture, with edges at a ratio of up to 1.5
    block: tuple[float, float, float] = (0.35, 0.5, 0.65)
    tissue: float = 0.75  # of a block lies on the head at least, if it can; not asked for
    context: float = 0.25  # share of all patches that the student sees; 0.85 to 1, less those of the targets
    error: str = "smooth-l1"  # "l2" in I-JEPA's paper, "l1" in V-JEPA 2
    predictor_width: int = 192  # 384
    predictor_depth: int = 4  # 6 to 16, growing with the encoder
    predictor_heads: int = 6  # 12
    teacher_momentum: tuple[float, float] = (0.996, 1.0)  # at the first and the last step

    def __post_init__(self) -> None:
        check_masking("jepa", self.crops, 1 - self.context)
        if self.error not in ERRORS:
            raise Misuse(f"error must be one of {', '.join(ERRORS)}, got {self.error!r}")
        if self.blocks < 1 or not all(0 < share <= 1 for share in self.block):
            raise Misuse(f"jepa needs a target block with edges above 0 and up to 1, got {self.blocks} of {self.block}")


@dataclass(frozen=True)
class JepaDraw(MaskedDraw):
    """The views of one scan, the noise that chooses among context patches, and the patches to predict."""

    targets: np.ndarray  # (V, Q), numbers of patches; blocks may overlap


def block_edges(grid: Grid, shares: tuple[float, float, float]) -> Grid:
    """Edges of a block in patches, such that it fits into the grid whichever way it lies."""
    mean = math.prod(grid) ** (1 / 3)
    first, second, third = (min(max(1, round(share * mean)), *grid) for share in shares)
    return first, second, third


def on_head(vit: ViT3D, view: View, shape: Grid, box_mm: np.ndarray) -> np.ndarray:
    """Which patches of a view (nx, ny, nz) have their centre in the ellipsoid that fills the head's box (2, 3).

    The few degrees by which a view is turned are left out.
    """
    middle_mm, half_mm = box_mm.mean(axis=0), np.maximum(np.diff(box_mm, axis=0)[0] / 2, 1e-6)
    places_mm = patch_places_mm(vit, view, shape)
    x, y, z = (
        ((place - middle) / half) ** 2 for place, middle, half in zip(places_mm, middle_mm, half_mm, strict=True)
    )
    return np.asarray(x[:, None, None] + y[:, None] + z <= 1)


def draw_block(rng: np.random.Generator, allowed: np.ndarray, edges: Grid, least: float) -> np.ndarray:
    """Numbers (P,) of the patches of a block, at any place where the least share of it is allowed (nx, ny, nz).

    Its edges take a drawn order. Where no place has that share, those with the largest are taken.
    """
    block = tuple(int(edge) for edge in rng.permutation(edges))
    shares = np.lib.stride_tricks.sliding_window_view(allowed, block).mean(axis=(3, 4, 5))
    corners = np.argwhere(shares >= min(least, shares.max()))
    places = corners[rng.integers(len(corners))] + np.indices(block).reshape(3, -1).T
    return np.ravel_multi_index(tuple(places.T), allowed.shape)


def context_of(noise: Tensor, tissue: Tensor, targets: Tensor, count: int) -> Tensor:
    """Numbers (R, count) of the patches that the student sees, by noise, tissue (R, N) and targets (R, Q).

    Those of least noise among tissue that is no target; air only where there is too little of it.
    """
    is_target = torch.zeros_like(tissue).scatter_(1, targets, True)
    return (noise + 1.0 * ~tissue + 2.0 * is_target).argsort(dim=1)[:, :count]  # noise lies in 0..1


def of_patches(values: Tensor, numbers: Tensor) -> Tensor:
    """Values (R, Q, W) of the patches of these numbers (R, Q), from those of all (R, N, W)."""
    return values.take_along_dim(numbers[..., None], dim=1)


class Jepa(Objective):
    """Student, teacher (a copy of the student at the start) and predictor.

    The student's class token is handed to the predictor, in which it has no place: the published networks have none,
    and it would not be trained otherwise.
    """

    def __init__(self, encoder: Encoder, settings: JepaSettings, sight: Sight) -> None:
        super().__init__()
        self.settings, self.sight = settings, sight
        self.student = transformer(encoder, "jepa")
        self.teacher = teacher_of(self.student)
        self.predictor = Predictor(
            self.student.settings.width,
            inner=settings.predictor_width,
            depth=settings.predictor_depth,
            heads=settings.predictor_heads,
        )
        self.grid = grid_of(self.student, settings.crops.shape)
        self.edges = block_edges(self.grid, settings.block)
        patches, targets = math.prod(self.grid), settings.blocks * math.prod(self.edges)
        self.seen_patches = round(settings.context * patches)
        if not 0 < self.seen_patches <= patches - targets:
            raise Misuse(
                f"jepa sees {self.seen_patches} and predicts up to {targets} of {patches} patches",
                why="what is predicted must not be seen",
                do="take fewer or smaller blocks, less context, larger crops or smaller patches",
            )

    @property
    def encoder(self) -> Encoder:
        """The teacher, an average over steps that is better than any one of them."""
        return self.teacher

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> JepaDraw:
        settings = self.settings
        drawn = draw_masked(rng, self.sight, settings.crops, self.grid, boxes_mm)
        targets = []
        for view in drawn.views:
            allowed = on_head(self.student, view, settings.crops.shape, boxes_mm["scan"])
            blocks = [draw_block(rng, allowed, self.edges, settings.tissue) for _ in range(settings.blocks)]
            targets.append(np.concatenate(blocks))
        return JepaDraw(drawn.views, drawn.noise, np.stack(targets))

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        seen = in_one(see_views(batch, self.settings.crops, self.sight))
        device = seen.image.device
        noise, targets = (rows([getattr(draw, name) for draw in batch.draws], device) for name in ("noise", "targets"))
        return self.predicted(seen, noise, targets)

    def predicted(self, seen: Seen, noise: Tensor, targets: Tensor) -> tuple[Tensor, Watched]:
        """The loss of these rows for noise (R, N) and target patches (R, Q), and what monitors watch.

        With s the teacher's layer-normalised tokens, p the predictions and e the error of a pair of numbers, the loss
        is the mean over rows of sum(mean(e(p_q, s_q)) for q in tissue) / |tissue|, over the targets that are tissue:
        section 3 of arXiv 2301.08243, with all blocks predicted in one pass as in V-JEPA 2.
        """
        tissue = is_tissue(cut(seen.image, self.student.settings.patch)[0])
        keep = context_of(noise, tissue, targets, self.seen_patches)
        places = cells(self.grid, device=targets.device)
        tokens, _ = self.student.sequence(seen.image, seen.spacing_mm, keep=keep)
        predicted = self.predictor(self.student.without_registers(tokens), places[keep], places[targets])
        with torch.no_grad():
            scans, latents = self.latents(seen)
            wanted, scored = of_patches(latents, targets), tissue.gather(1, targets)
        errors = ERRORS[self.settings.error](predicted, wanted, reduction="none").mean(dim=2)
        return mean_over(errors, scored), {**watch(scans, wanted, scored), "air": seen.air}

    def latents(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """The teacher's scan vectors (R, F), and tokens of all patches (R, N, W) with mean 0 and deviation 1 each."""
        features = self.teacher(seen.image, seen.spacing_mm)
        return features.scan, F.layer_norm(features.tokens, features.tokens.shape[-1:])

    def follow(self, step: int, steps: int) -> None:
        """Move the teacher by a momentum that follows the step of the whole run."""
        follow(self.teacher, self.student, cosine(step, steps, *self.settings.teacher_momentum))


@torch.no_grad()
def watch(scans: Tensor, wanted: Tensor, scored: Tensor) -> Watched:
    """What tells a collapse, from scan vectors (R, F), target latents (R, Q, W), and which are scored (R, Q).

    - `target_spread`: standard deviation over all scored targets, mean over features; 0 says that all are the same.
    - `rank`: effective dimensions of the scored targets, (sum l)^2 / sum l^2 for eigenvalues l of their covariance.
    - `spread`, `dimensions`: of the teacher's scan vectors; near 0 every scan gets the same one, near 1 they differ
      along one line only.
    - `scored`: share of the targets that is tissue.
    """
    weights = scored.float().flatten()[:, None]
    values = wanted.float().flatten(0, 1)
    total = weights.sum().clamp(min=1)
    deviations = (values - (weights * values).sum(dim=0) / total) * weights
    variances = deviations.square().sum(dim=0) / total
    covariance = deviations.T @ deviations / total
    return {
        "target_spread": variances.sqrt().mean(),
        "rank": variances.sum().square() / covariance.square().sum().clamp(min=1e-12),
        **spread_of(scans.float()),
        "scored": scored.float().mean(),
    }
