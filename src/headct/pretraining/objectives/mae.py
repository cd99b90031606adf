"""Masked autoencoding (MAE, arXiv 2111.06377; FM-HCT's second objective, arXiv 2502.02779): rebuild hidden patches.

B scans, V views of each, R = V * B rows (those of the first view first), N patches, K kept ones, T = 1 + registers + K
tokens, W width, P numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from headct.encoders import Encoder, Grid, ViT3D
from headct.encoders.mae import Hiding, MaskedDecoder, hide, hide_tissue, mean_over, rebuilding_loss, standardised
from headct.encoders.vit import cut
from headct.failure import Misuse
from headct.pretraining.objectives.objective import Batch, Objective, Sight, Watched
from headct.pretraining.views import Crops, Seen, View, draw_views, see, sent

WHOLE = Crops(views=1, shape=(96, 112, 96), edge_mm=(186.0, 198.0), overhang=0.03)
"""The whole head at about 2 mm, as it is looked at after pre-training."""


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """Settings of the decoder, which is thrown away afterwards; FM-HCT's value stands beside each that differs.

    Its norms and biases are as FM-HCT has them, its positions as the encoder's: learned, or else sine and cosine.
    """

    width: int = 192  # 768
    depth: int = 4  # 8
    heads: int = 6  # 16
    mlp_width: int = 768  # 3072


@dataclass(frozen=True, kw_only=True)
class MaeSettings:
    """Settings of the MAE objective; FM-HCT's value stands beside each default that differs."""

    weight: float = 1.0  # beside other objectives
    crops: Crops = WHOLE
    share: float = 0.75  # of the patches is hidden
    air: bool = False  # True: patches of air are hidden and rebuilt like all others
    standardise: bool = False  # True in arXiv 2111.06377, but then how dense a patch is need not be known
    decoder: DecoderSettings = field(default_factory=DecoderSettings)

    def __post_init__(self) -> None:
        check_masking("mae", self.crops, self.share)


def check_masking(objective: str, crops: Crops, share: float, *, least_views: int = 1) -> None:
    """Raises Misuse where there would be no views, or nothing hidden or seen of them."""
    if crops.views < least_views:
        raise Misuse(f"{objective} needs at least {least_views} for crops.views, got {crops.views}")
    if not 0 < share < 1:
        raise Misuse(f"{objective} must hide a share of the patches between 0 and 1, got {share:g}")


def transformer(encoder: Encoder, objective: str) -> ViT3D:
    """The encoder, if patches can be left out of it. Raises Misuse for any other."""
    if isinstance(encoder, ViT3D):
        return encoder
    raise Misuse(
        f"{objective} cannot train the encoder {encoder.architecture or type(encoder).__name__}",
        why="it hides patches, and only a vision transformer can leave them out",
        do="take vit-tiny, vit-small, vit-base or vit-large, or another objective",
    )


def grid_of(vit: ViT3D, shape: Grid) -> Grid:
    """The grid of the patches of a view of this shape."""
    nx, ny, nz = (-(-voxels // edge) for voxels, edge in zip(shape, vit.settings.patch, strict=True))
    return nx, ny, nz


def patch_places_mm(vit: ViT3D, view: View, shape: Grid) -> list[np.ndarray]:
    """Where along each axis of the array the patches of a view are centred; its few degrees of turn are left out."""
    lattice, places_mm = vit.lattice(shape), []
    for axis, patches in enumerate(grid_of(vit, shape)):
        voxels = lattice.first[axis] + lattice.step[axis] * np.arange(patches) - (shape[axis] - 1) / 2
        side = -1 if view.mirrored and axis == 0 else 1
        places_mm.append(view.centre_mm[axis] + side * voxels * view.voxel_mm)
    return places_mm


def is_tissue(patches: Tensor) -> Tensor:
    """Which patches (R, N, P) are no air, (R, N): those that are not zero in every window."""
    return (patches != 0).any(dim=2)


def decoder_for(vit: ViT3D, settings: DecoderSettings, shape: Grid) -> MaskedDecoder:
    """A decoder of views of this shape."""
    voxels = np.prod(vit.settings.patch)
    return MaskedDecoder(
        vit.settings.width,
        int(vit.channels * voxels),
        grid_of(vit, shape),
        width=settings.width,
        depth=settings.depth,
        heads=settings.heads,
        mlp_width=settings.mlp_width,
        bias=vit.settings.qkv_bias,
        positions="learned" if vit.settings.positions == "learned" else "sincos",
    )


@dataclass(frozen=True)
class MaskedDraw:
    """The views of one scan, and noise that says which patches of each are hidden."""

    views: list[View]
    noise: np.ndarray  # (V, N), float32 in 0..1


def draw_masked(
    rng: np.random.Generator, sight: Sight, crops: Crops, grid: Grid, boxes_mm: Mapping[str, np.ndarray]
) -> MaskedDraw:
    """Views of a scan, and noise for each of their patches."""
    views = draw_views(rng, sight.views, crops, boxes_mm["scan"])
    return MaskedDraw(views, rng.random((crops.views, int(np.prod(grid))), dtype=np.float32))


@torch.no_grad()
def see_views(batch: Batch, crops: Crops, sight: Sight) -> list[Seen]:
    """One entry a view."""
    hu, normals = batch.scans.to(torch.float32), batch.normals_of()  # once for all views
    return [
        see(hu, [draw.views[number] for draw in batch.draws], crops, batch.spacing_mm, sight.windows, normals)
        for number in range(crops.views)
    ]


def in_one(views: Sequence[Seen]) -> Seen:
    """All views as the rows of one batch (R, C, x, y, z)."""
    return Seen(
        torch.cat([view.image for view in views]),
        torch.cat([view.spacing_mm for view in views]),
        torch.stack([view.air for view in views]).mean(),
    )


def rows(of_scans: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Arrays (V, n) of B scans as the rows (R, n) to which they belong."""
    stacked = np.stack(of_scans, axis=1)
    return sent(stacked.reshape(-1, stacked.shape[2]), device)


def rebuild(
    vit: ViT3D, decoder: MaskedDecoder, seen: Seen, noise: Tensor, *, share: float, air: bool, standardise: bool
) -> tuple[Tensor, Tensor, Watched]:
    """Hide patches by noise (R, N) and rebuild them: the tokens (R, T, W) of the others, the loss, what to watch.

    With x the patches, y what the decoder makes of those that are kept, and M the hidden ones of a row, the loss is
    the mean over rows of sum(|y_n - x_n|^2 / P for n in M) / |M|: section 3 of arXiv 2111.06377.
    """
    patches, grid = cut(seen.image, vit.settings.patch)
    hiding = hide(noise, share) if air else hide_tissue(noise, share, is_tissue(patches))
    tokens, _ = vit.sequence(seen.image, seen.spacing_mm, keep=hiding.keep)
    rebuilt = decoder(vit.without_registers(tokens), hiding, grid)
    loss = rebuilding_loss(rebuilt, patches, hiding.hidden, standardise=standardise)
    return tokens, loss, watch(loss, standardised(patches) if standardise else patches, hiding)


@torch.no_grad()
def watch(loss: Tensor, targets: Tensor, hiding: Hiding) -> Watched:
    """What tells progress, from the loss and its targets (R, N, P).

    - `explained`: share of the variance of a scan's hidden voxels that was rebuilt; 0 is worth no more than one value
      for all of them, and 1 is perfect.
    - `hidden`: share of all patches that was hidden, and so scored.
    """
    counted = hiding.hidden
    mean = (targets.mean(dim=2) * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    variance = mean_over((targets - mean[:, None, None]).square().mean(dim=2), counted)
    return {"explained": 1 - loss / variance.clamp(min=1e-6), "hidden": counted.float().mean()}


class Mae(Objective):
    """A vision transformer that sees a quarter of the patches, and a decoder that rebuilds the others."""

    def __init__(self, encoder: Encoder, settings: MaeSettings, sight: Sight) -> None:
        super().__init__()
        self.settings, self.sight = settings, sight
        self.vit = transformer(encoder, "mae")
        self.grid = grid_of(self.vit, settings.crops.shape)
        self.decoder = decoder_for(self.vit, settings.decoder, settings.crops.shape)

    @property
    def encoder(self) -> Encoder:
        return self.vit

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> MaskedDraw:
        return draw_masked(rng, self.sight, self.settings.crops, self.grid, boxes_mm)

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        seen = in_one(see_views(batch, self.settings.crops, self.sight))
        return self.rebuilt(seen, rows([draw.noise for draw in batch.draws], seen.image.device))

    def rebuilt(self, seen: Seen, noise: Tensor) -> tuple[Tensor, Watched]:
        """The loss of these rows when patches are hidden by noise (R, N), and what monitors watch."""
        settings = self.settings
        _, loss, watched = rebuild(
            self.vit,
            self.decoder,
            seen,
            noise,
            share=settings.share,
            air=settings.air,
            standardise=settings.standardise,
        )
        return loss, {**watched, "air": seen.air}
