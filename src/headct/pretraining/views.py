"""Views of a head: first drawn, as a few numbers in mm and HU, then applied, deterministically and in batches.

Lengths are measured from the corner voxel of the prepared array along its axes (X, Y, Z; RAS). Left and right are only
exchanged where `mirror` says so; top and bottom, front and back never. V views, B scans, C windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headct.encoders import Grid, Window
from headct.failure import Misuse
from headct.scan import AIR_HU

TISSUE_HU = -300
"""Above this lies the patient (skin, fat, brain, bone), below it air, hair and pillows."""

SHARP_MM = 1.5
"""Sigma of the blur whose difference to the image a sharp kernel adds."""


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
    """How the views of a scan may differ in pose, and as pictures of other scanners would. 0 changes nothing.

    Scale and pose differ little by default: among a few thousand scans or fewer they would hide which head it is.
    """

    rotation_deg: float = 4.0  # about each axis, up to
    mirror: float = 0.0  # share that is mirrored left to right; labels that have a side forbid it
    scale_hu: float = 0.03  # share by which HU are stretched around water, up to
    shift_hu: float = 3.0  # up to
    noise_hu: float = 4.0  # standard deviation of white noise, up to
    soft_mm: float = 0.0  # sigma of a softer kernel in the plane, up to
    sharp: float = 0.0  # of what a blur takes away, how much a sharper kernel adds, up to
    slice_mm: float = 0.0  # thickness of slices, averaged along the third axis, up to
    window: float = 0.0  # share of its width by which the level and the width of a window vary, up to


@dataclass(frozen=True)
class View:
    """The numbers of one view of one scan."""

    centre_mm: tuple[float, float, float]
    voxel_mm: float
    angles_deg: tuple[float, float, float]  # about x, then y, then z
    mirrored: bool
    scale_hu: float
    shift_hu: float
    noise_hu: float
    noise_seed: int
    soft_mm: float
    sharp: float
    slice_mm: float
    level: float  # shift of every window's level, as a share of its width
    width: float  # factor of every window's width


@dataclass(frozen=True)
class Seen:
    """What an encoder is given: one view of each of B scans."""

    image: Tensor  # (B, C, x, y, z), 0..1
    spacing_mm: Tensor  # (B, 3)
    air: Tensor  # share of the voxels that is neither patient nor table


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


def draw(rng: np.random.Generator, settings: ViewSettings, crops: Crops, box_mm: np.ndarray) -> View:
    """One view whose crop lies on the head, given the head's box (2, 3) in mm.

    A crop smaller than the head stays inside it but for its overhang; a larger one keeps the head inside.
    """
    edge_mm = np.exp(rng.uniform(*np.log(crops.edge_mm)))
    voxel_mm = edge_mm / crops.shape[0]
    reach_mm = voxel_mm * np.array(crops.shape) * (0.5 - crops.overhang)
    ends_mm = np.sort([box_mm[0] + reach_mm, box_mm[1] - reach_mm], axis=0)
    softer = rng.uniform() < 0.5
    return View(
        centre_mm=tuple(rng.uniform(*ends_mm).tolist()),
        voxel_mm=float(voxel_mm),
        angles_deg=tuple(rng.uniform(-settings.rotation_deg, settings.rotation_deg, 3).tolist()),
        mirrored=bool(rng.uniform() < settings.mirror),
        scale_hu=1 + float(rng.uniform(-settings.scale_hu, settings.scale_hu)),
        shift_hu=float(rng.uniform(-settings.shift_hu, settings.shift_hu)),
        noise_hu=float(rng.uniform(0, settings.noise_hu)),
        noise_seed=int(rng.integers(2**62)),
        soft_mm=float(rng.uniform(0, settings.soft_mm)) * softer,
        sharp=float(rng.uniform(0, settings.sharp)) * (not softer),
        slice_mm=float(rng.uniform(0, settings.slice_mm)),
        level=float(rng.uniform(-settings.window, settings.window)) / 2,
        width=1 + float(rng.uniform(-settings.window, settings.window)),
    )


def draw_views(rng: np.random.Generator, settings: ViewSettings, crops: Crops, box_mm: np.ndarray) -> list[View]:
    """All views of one kind of one scan."""
    return [draw(rng, settings, crops, box_mm) for _ in range(crops.views)]


def see(
    hu: Tensor, views: Sequence[View], crops: Crops, spacing_mm: Sequence[float], windows: Sequence[Window]
) -> Seen:
    """One view of each scan, from hu (B, X, Y, Z) of any dtype."""
    cropped = crop(hu, views, crops, spacing_mm)
    return Seen(
        image=windowed(rescanned(cropped, views), views, windows),
        spacing_mm=cropped.new_tensor([[view.voxel_mm] * 3 for view in views]),
        air=(cropped < TISSUE_HU).float().mean(),
    )


def crop(
    values: Tensor,
    views: Sequence[View],
    crops: Crops,
    spacing_mm: Sequence[float],
    *,
    outside: float = AIR_HU,
    mode: str = "bilinear",
) -> Tensor:
    """Values (B, x, y, z) float32 of one view of each scan, from (B, X, Y, Z); `outside` lies around the array.

    One interpolation, trilinear or, with the mode "nearest", none at all. Where even the smallest crop is much
    coarser than the array, voxels are averaged first.
    """
    finest_mm = crops.edge_mm[0] / crops.shape[0]
    factors = [1 if mode == "nearest" else max(1, int(finest_mm / mm)) for mm in spacing_mm]
    above = values.to(torch.float32)[:, None] - outside  # so that zeros outside are what lies there
    if max(factors) > 1:
        above = F.avg_pool3d(above, factors)
    places = torch.stack([_voxels(view, crops.shape, spacing_mm, factors, above.device) for view in views])
    last = torch.tensor([n - 1 for n in above.shape[2:]], dtype=torch.float32, device=above.device)
    to_unit = (2 * places / last - 1).flip(-1)  # grid_sample counts axes from the last
    return F.grid_sample(above, to_unit, mode=mode, align_corners=True)[:, 0] + outside


def _voxels(
    view: View, shape: Grid, spacing_mm: Sequence[float], factors: Sequence[int], device: torch.device
) -> Tensor:
    """Where the voxels of a view lie, (x, y, z, 3), counted in voxels of the array averaged by `factors`."""
    turn = _rotation(view.angles_deg)
    offsets_mm = [(np.arange(n) - (n - 1) / 2) * view.voxel_mm for n in shape]
    if view.mirrored:
        offsets_mm[0] = -offsets_mm[0]
    spacing, factor = np.asarray(spacing_mm), np.asarray(factors)
    origin = (np.array(view.centre_mm) / spacing - (factor - 1) / 2) / factor
    steps = [np.outer(offset, turn[:, axis] / spacing / factor) for axis, offset in enumerate(offsets_mm)]
    along_x, along_y, along_z, start = (
        torch.from_numpy(step.astype(np.float32)).to(device) for step in (*steps, origin)
    )
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


def rescanned(hu: Tensor, views: Sequence[View]) -> Tensor:
    """HU (B, x, y, z) as another scanner might have measured them: slices, kernel, scale, shift and noise."""
    if any(view.slice_mm > view.voxel_mm for view in views):
        hu = _filtered(hu, [_box(view.slice_mm / view.voxel_mm) for view in views], axes=(3,))
    if any(view.soft_mm for view in views):
        hu = _filtered(hu, [_bell(view.soft_mm / view.voxel_mm) for view in views], axes=(1, 2))
    if any(view.sharp for view in views):
        blurred = _filtered(hu, [_bell(SHARP_MM / view.voxel_mm) for view in views], axes=(1, 2))
        hu = hu + _of_each(views, "sharp", hu) * (hu - blurred)
    noise = torch.stack([_noise(view, hu) for view in views])
    # water is what scanners are calibrated to, so it stays
    return hu * _of_each(views, "scale_hu", hu) + _of_each(views, "shift_hu", hu) + noise


def _of_each(views: Sequence[View], name: str, like: Tensor) -> Tensor:
    return like.new_tensor([getattr(view, name) for view in views])[:, None, None, None]


def _noise(view: View, like: Tensor) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(view.noise_seed)
    return torch.randn(like.shape[1:], generator=generator, device=like.device) * view.noise_hu


def _box(length: float) -> np.ndarray:
    """Taps of the mean over `length` voxels, an odd number of them; the outermost two may take part in part."""
    reach = max(0, int(np.ceil((length - 1) / 2)))
    taps = np.ones(2 * reach + 1)
    taps[[0, -1]] = (length - (2 * reach - 1)) / 2 if reach else 1
    return taps / taps.sum()


def _bell(sigma: float) -> np.ndarray:
    """Taps of a Gaussian of `sigma` voxels, an odd number of them."""
    reach = int(np.ceil(3 * sigma))
    places = np.arange(-reach, reach + 1)
    taps = np.exp(-0.5 * (places / sigma) ** 2) if sigma > 0 else np.ones(1)
    return np.asarray(taps / taps.sum())


def _filtered(hu: Tensor, taps: Sequence[np.ndarray], axes: Sequence[int]) -> Tensor:
    """hu (B, x, y, z) with each scan filtered by its own taps along the axes; borders are repeated."""
    longest = max(len(one) for one in taps)
    padded = np.stack([np.pad(one, (longest - len(one)) // 2) for one in taps]).astype(np.float32)
    weights = torch.from_numpy(padded).to(hu.device)
    for axis in axes:
        along = hu.movedim(axis, -1)
        rows = along.reshape(len(hu), -1, along.shape[-1]).transpose(0, 1)  # (rows, B, n)
        rows = F.conv1d(F.pad(rows, (longest // 2, longest // 2), mode="replicate"), weights[:, None], groups=len(hu))
        hu = rows.transpose(0, 1).reshape(along.shape).movedim(-1, axis)
    return hu


def windowed(hu: Tensor, views: Sequence[View], windows: Sequence[Window]) -> Tensor:
    """Channels (B, C, x, y, z) in 0..1 from HU (B, x, y, z), through windows that vary from view to view."""
    level, width = hu.new_tensor(windows).reshape(1, -1, 1, 1, 1, 2).unbind(-1)
    levels = level + width * _of_each(views, "level", hu)[:, None]
    widths = width * _of_each(views, "width", hu)[:, None]
    return ((hu[:, None] - (levels - widths / 2)) / widths).clamp_(0, 1)
