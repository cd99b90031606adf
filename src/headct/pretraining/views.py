"""Views of a head: first drawn, as a few numbers in mm and HU, then applied, deterministically and in batches.

Lengths are measured from the corner voxel of the prepared array along its axes (X, Y, Z; RAS). Left and right are never
exchanged. V views, B scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headct.encoders import Grid, Window, apply_windows
from headct.failure import Misuse
from headct.scan import AIR_HU

TISSUE_HU = -300
"""Above this lies the patient (skin, fat, brain, bone), below it air, hair and pillows."""


@dataclass(frozen=True, kw_only=True)
class Crops:
    """One kind of view. Its voxels are cubes, so no head is stretched."""

    views: int
    shape: tuple[int, int, int]  # voxels
    edge_mm: tuple[float, float]  # of the crop along its first axis; drawn log-uniformly
    overhang: float  # share of an edge that may lie outside the head

    def __post_init__(self) -> None:
        if self.views < 0 or min(self.shape) < 2 or not 0 < self.edge_mm[0] <= self.edge_mm[1]:
            raise Misuse(f"crops need edges of at least 2 voxels and a rising range of mm, got {self}")


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """What views may be like. Ranges are symmetric around nothing changed.

    Scale and pose differ little by default: among a few thousand scans or fewer they would hide which head it is.
    """

    global_crops: Crops = field(
        default_factory=lambda: Crops(views=2, shape=(80, 96, 80), edge_mm=(158.0, 170.0), overhang=0.03)
    )
    local_crops: Crops = field(
        default_factory=lambda: Crops(views=4, shape=(48, 48, 48), edge_mm=(80.0, 100.0), overhang=0.0)
    )
    rotation_deg: float = 4.0  # about each axis, up to
    scale_hu: float = 0.03  # share by which HU are stretched around water, up to
    shift_hu: float = 3.0  # up to
    noise_hu: float = 4.0  # standard deviation of white noise, up to


@dataclass(frozen=True)
class View:
    """The numbers of one view of one scan."""

    centre_mm: tuple[float, float, float]
    voxel_mm: float
    angles_deg: tuple[float, float, float]  # about x, then y, then z
    scale_hu: float
    shift_hu: float
    noise_hu: float
    noise_seed: int


@dataclass(frozen=True)
class Views:
    """What an objective is given: tensors (B, C, X, Y, Z), one for each view."""

    global_views: list[Tensor]
    local_views: list[Tensor]
    air: float  # share of the global views that is neither patient nor table


def head_box(hu: np.ndarray) -> np.ndarray:
    """First and last voxel (2, 3) of the patient along each axis of hu (X, Y, Z).

    The outermost 1 % of the tissue on either side is left out, so specks do not stretch the box. All of the array
    where there is no tissue.
    """
    tissue = hu > TISSUE_HU
    box = np.array([[0, 0, 0], [n - 1 for n in hu.shape]])
    if tissue.any():
        for axis in range(3):
            below = np.cumsum(tissue.sum(axis=tuple({0, 1, 2} - {axis})))
            box[:, axis] = np.searchsorted(below, [0.01 * below[-1], 0.99 * below[-1]])
    return box


def draw(generator: np.random.Generator, settings: ViewSettings, crops: Crops, box_mm: np.ndarray) -> View:
    """One view whose crop lies on the head, given the head's box (2, 3) in mm.

    A crop smaller than the head stays inside it but for its overhang; a larger one keeps the head inside.
    """
    edge_mm = np.exp(generator.uniform(*np.log(crops.edge_mm)))
    voxel_mm = edge_mm / crops.shape[0]
    reach_mm = voxel_mm * np.array(crops.shape) * (0.5 - crops.overhang)
    ends_mm = np.sort([box_mm[0] + reach_mm, box_mm[1] - reach_mm], axis=0)
    return View(
        centre_mm=tuple(generator.uniform(*ends_mm).tolist()),
        voxel_mm=float(voxel_mm),
        angles_deg=tuple(generator.uniform(-settings.rotation_deg, settings.rotation_deg, 3).tolist()),
        scale_hu=1 + float(generator.uniform(-settings.scale_hu, settings.scale_hu)),
        shift_hu=float(generator.uniform(-settings.shift_hu, settings.shift_hu)),
        noise_hu=float(generator.uniform(0, settings.noise_hu)),
        noise_seed=int(generator.integers(2**62)),
    )


def draw_all(
    generator: np.random.Generator, settings: ViewSettings, boxes_mm: Sequence[np.ndarray]
) -> tuple[list[list[View]], list[list[View]]]:
    """Global and local views of a batch, [view][scan], from the box (2, 3) of each scan's head in mm."""
    global_draws, local_draws = (
        [[draw(generator, settings, crops, box) for box in boxes_mm] for _ in range(crops.views)]
        for crops in (settings.global_crops, settings.local_crops)
    )
    return global_draws, local_draws


def crop(hu: Tensor, views: Sequence[View], crops: Crops, spacing_mm: Sequence[float]) -> Tensor:
    """HU (B, x, y, z) float32 of one view of each scan, from hu (B, X, Y, Z); outside the array lies air.

    One trilinear interpolation. Where even the smallest crop is coarser than the array, voxels are averaged first.
    """
    factors = [max(1, int(crops.edge_mm[0] / crops.shape[0] / mm)) for mm in spacing_mm]
    above_air = hu.to(torch.float32)[:, None] - AIR_HU  # so that zeros outside are air
    if max(factors) > 1:
        above_air = F.avg_pool3d(above_air, factors)
    places = torch.stack([_voxels(view, crops.shape, spacing_mm, factors) for view in views]).to(hu.device)
    last = torch.tensor([n - 1 for n in above_air.shape[2:]], dtype=torch.float32, device=hu.device)
    to_unit = (2 * places / last - 1).flip(-1)  # grid_sample counts axes from the last
    return F.grid_sample(above_air, to_unit, align_corners=True)[:, 0] + AIR_HU


def _voxels(view: View, shape: Grid, spacing_mm: Sequence[float], factors: Sequence[int]) -> Tensor:
    """Where the voxels of a view lie, (x, y, z, 3), counted in voxels of the array averaged by `factors`."""
    turn = _rotation(view.angles_deg)
    offsets_mm = [(np.arange(n) - (n - 1) / 2) * view.voxel_mm for n in shape]
    spacing, factor = np.asarray(spacing_mm), np.asarray(factors)
    origin = (np.array(view.centre_mm) / spacing - (factor - 1) / 2) / factor
    steps = [np.outer(offset, turn[:, axis] / spacing / factor) for axis, offset in enumerate(offsets_mm)]
    along_x, along_y, along_z = (torch.from_numpy(step.astype(np.float32)) for step in steps)
    start = torch.from_numpy(origin.astype(np.float32))
    return start + along_x[:, None, None] + along_y[None, :, None] + along_z[None, None, :]


def _rotation(angles_deg: Sequence[float]) -> np.ndarray:
    """The matrix (3, 3) that turns about x, then y, then z."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(angles_deg)):
        one = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        one[first, first] = one[second, second] = np.cos(angle)
        one[second, first], one[first, second] = np.sin(angle), -np.sin(angle)
        turn = one @ turn
    return turn


def jitter(hu: Tensor, views: Sequence[View]) -> Tensor:
    """HU (B, x, y, z) as another scanner might have measured them: scale, shift and noise of each view."""
    changed = hu.clone()
    for one, view in zip(changed, views, strict=True):
        noise = torch.Generator(hu.device).manual_seed(view.noise_seed)
        one.mul_(view.scale_hu).add_(view.shift_hu)  # water is what scanners are calibrated to, so it stays
        one.add_(torch.randn(one.shape, generator=noise, device=hu.device), alpha=view.noise_hu)
    return changed


def make(
    hu: Tensor,
    draws: tuple[list[list[View]], list[list[View]]],
    settings: ViewSettings,
    spacing_mm: Sequence[float],
    windows: Sequence[Window],
) -> Views:
    """Windowed views of a batch hu (B, X, Y, Z), as drawn by `draw_all`."""
    hu = hu.to(torch.float32)  # once for all views
    made: list[list[Tensor]] = []
    air = 0.0
    for crops, views in zip((settings.global_crops, settings.local_crops), draws, strict=True):
        cropped = [crop(hu, one, crops, spacing_mm) for one in views]
        if crops is settings.global_crops:
            air = float(torch.stack([(one < TISSUE_HU).float().mean() for one in cropped]).mean())
        made.append([apply_windows(jitter(one, view), windows) for one, view in zip(cropped, views, strict=True)])
    return Views(global_views=made[0], local_views=made[1], air=air)
