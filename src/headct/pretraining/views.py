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
    slice_mm: float = 0.0  # thickness of slices, averaged across the slices as acquired, up to
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
    hu: Tensor,
    views: Sequence[View],
    crops: Crops,
    spacing_mm: Sequence[float],
    windows: Sequence[Window],
    normals: np.ndarray | None = None,
) -> Seen:
    """One view of each scan, from hu (B, X, Y, Z) of any dtype; `normals` as `rescanned` takes them."""
    return as_seen(crop(hu, views, crops, spacing_mm), views, windows, normals)


def as_seen(
    cropped: Tensor, views: Sequence[View], windows: Sequence[Window], normals: np.ndarray | None = None
) -> Seen:
    """Crops (B, x, y, z) in HU as another scanner might have taken them, through windows."""
    edges_mm = np.array([[view.voxel_mm] * 3 for view in views], np.float32)
    return Seen(
        image=windowed(rescanned(cropped, views, normals), views, windows),
        spacing_mm=sent(edges_mm, cropped.device),
        air=(cropped < TISSUE_HU).float().mean(),
    )


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device, which is not waited for: from pinned memory a copy queues up with the work there."""
    there = torch.from_numpy(array)
    return there.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else there.to(device)


def sent_together(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays as float32 on the device, in one copy."""
    whole = sent(np.concatenate([array.ravel() for array in arrays]).astype(np.float32), device)
    parts = torch.split(whole, [array.size for array in arrays])
    return [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]


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
    along = zip(*(_along(view, crops.shape, spacing_mm, factors) for view in views), strict=True)
    numbers = [*(np.stack(of_views) for of_views in along), np.array([n - 1 for n in above.shape[2:]])]
    x, y, z, start, last = sent_together(numbers, above.device)
    places = start[:, None, None, None] + x[:, :, None, None] + y[:, None, :, None] + z[:, None, None, :]
    to_unit = (2 * places / last - 1).flip(-1)  # grid_sample counts axes from the last
    return F.grid_sample(above, to_unit, mode=mode, align_corners=True)[:, 0] + outside


def _along(
    view: View, shape: Grid, spacing_mm: Sequence[float], factors: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where the voxels of a view lie, counted in voxels of the array averaged by `factors`.

    A voxel's place (3,) is the sum of one row of each of the steps (x, 3), (y, 3) and (z, 3), and of the middle (3,).
    """
    turn = _rotation(view.angles_deg)
    offsets_mm = [(np.arange(n) - (n - 1) / 2) * view.voxel_mm for n in shape]
    if view.mirrored:
        offsets_mm[0] = -offsets_mm[0]
    spacing, factor = np.asarray(spacing_mm), np.asarray(factors)
    middle = (np.array(view.centre_mm) / spacing - (factor - 1) / 2) / factor
    x, y, z = (np.outer(offset, turn[:, axis] / spacing / factor) for axis, offset in enumerate(offsets_mm))
    return x, y, z, middle


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


def rescanned(hu: Tensor, views: Sequence[View], normals: np.ndarray | None = None) -> Tensor:
    """HU (B, x, y, z) as another scanner might have measured them: slices, kernel, scale, shift and noise.

    Slices are averaged across: along the unit `normals` (B, 3) of each scan's own slices, in the axes of its array,
    which gantry tilt and a turned view take away from the third axis of the view; along that where they are not given.
    """
    numbers = [
        *(np.array([getattr(view, name) for view in views]) for name in ("sharp", "scale_hu", "shift_hu")),
        slabs(views, normals),
        _stacked([_bell(view.soft_mm / view.voxel_mm) for view in views]),
        _stacked([_bell(SHARP_MM / view.voxel_mm) for view in views]),
    ]
    sharp, scale, shift_hu, slices, soft, blur = sent_together(numbers, hu.device)
    sharp, scale, shift_hu = (values[:, None, None, None] for values in (sharp, scale, shift_hu))
    if any(view.slice_mm > view.voxel_mm for view in views):
        hu = _averaged(hu, slices)
    if any(view.soft_mm for view in views):
        hu = _filtered(hu, soft, axes=(1, 2))
    if any(view.sharp for view in views):
        hu = hu + sharp * (hu - _filtered(hu, blur, axes=(1, 2)))
    noise = torch.stack([_noise(view, hu) for view in views])
    return hu * scale + shift_hu + noise  # water is what scanners are calibrated to, so it stays


def _noise(view: View, like: Tensor) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(view.noise_seed)
    return torch.randn(like.shape[1:], generator=generator, device=like.device) * view.noise_hu


def _box(length: float) -> np.ndarray:
    """Taps of the mean over `length` voxels, an odd number of them; the outermost two may take part in part."""
    reach = max(0, int(np.ceil((length - 1) / 2)))
    taps = np.ones(2 * reach + 1)
    taps[[0, -1]] = (length - (2 * reach - 1)) / 2 if reach else 1
    return taps / taps.sum()


def slabs(views: Sequence[View], normals: np.ndarray | None) -> np.ndarray:
    """Taps (B, n, m, l) of the mean over each view's `slice_mm` along the normal (B, 3) of its scan's slices."""
    normals = np.zeros((len(views), 3)) if normals is None else normals
    taps = []
    for view, normal in zip(views, normals, strict=True):
        along = _rotation(view.angles_deg).T @ normal if normal.any() else np.array([0.0, 0.0, 1.0])
        if view.mirrored:
            along[0] = -along[0]
        taps.append(_slab(view.slice_mm / view.voxel_mm, along))
    longest = np.max([one.shape for one in taps], axis=0)
    return np.stack(
        [np.pad(one, [((n - m) // 2,) * 2 for n, m in zip(longest, one.shape, strict=True)]) for one in taps]
    )


def _slab(length: float, along: np.ndarray) -> np.ndarray:
    """Taps of the mean over `length` voxels along a unit vector (3,), odd numbers of them.

    Cubic between voxels (Keys, 10.1109/TASSP.1981.1163711): linear ones would blur within the slice about as much as a
    tilt of ten degrees does that is not followed.
    """
    main = int(np.argmax(np.abs(along)))
    weights = _box(length * abs(along[main]))
    steps = np.arange(len(weights)) - len(weights) // 2
    places = np.round(steps[:, None] * (along / along[main]), 9)  # (n, 3)
    low = np.floor(places).astype(int)
    f = places - low
    shares = np.stack(  # of the voxels at low - 1, low, low + 1 and low + 2
        [
            ((2 - f) * f - 1) * f / 2,
            ((3 * f - 5) * f * f + 2) / 2,
            ((4 - 3 * f) * f + 1) * f / 2,
            (f - 1) * f * f / 2,
        ]
    )
    reach = np.abs(low).max(axis=0) + 2
    taps = np.zeros(2 * reach + 1)
    for corner in np.ndindex(4, 4, 4):
        share = weights * shares[list(corner), :, range(3)].prod(axis=0)
        np.add.at(taps, tuple((low + corner - 1 + reach).T), share)
    return _trimmed(taps)


def _trimmed(taps: np.ndarray) -> np.ndarray:
    """The taps without the zeros around them, so far as both ends have some."""
    kept = []
    for axis, size in enumerate(taps.shape):
        used = np.flatnonzero(np.abs(taps).max(axis=tuple({0, 1, 2} - {axis})) > 1e-9)
        spare = min(used[0], size - 1 - used[-1])
        kept.append(slice(spare, size - spare))
    return taps[tuple(kept)]


def _averaged(hu: Tensor, taps: Tensor) -> Tensor:
    """hu (B, x, y, z) with each scan filtered by its own taps (B, n, m, l); borders are repeated."""
    around = [size // 2 for size in reversed(taps.shape[1:]) for _ in range(2)]
    with torch.autocast(hu.device.type, enabled=False):  # bfloat16 knows 1000 HU to 4
        return F.conv3d(F.pad(hu[None], around, mode="replicate"), taps[:, None], groups=len(hu))[0]


def _bell(sigma: float) -> np.ndarray:
    """Taps of a Gaussian of `sigma` voxels, an odd number of them."""
    reach = int(np.ceil(3 * sigma))
    places = np.arange(-reach, reach + 1)
    taps = np.exp(-0.5 * (places / sigma) ** 2) if sigma > 0 else np.ones(1)
    return np.asarray(taps / taps.sum())


def _stacked(taps: Sequence[np.ndarray]) -> np.ndarray:
    """Taps of odd numbers as (B, n), with zeros around the shorter ones."""
    longest = max(len(one) for one in taps)
    return np.stack([np.pad(one, (longest - len(one)) // 2) for one in taps])


def _filtered(hu: Tensor, taps: Tensor, axes: Sequence[int]) -> Tensor:
    """hu (B, x, y, z) with each scan filtered by its own taps (B, n) along the axes; borders are repeated."""
    reach = taps.shape[1] // 2
    for axis in axes:
        along = hu.movedim(axis, -1)
        rows = along.reshape(len(hu), -1, along.shape[-1]).transpose(0, 1)  # (rows, B, n)
        with torch.autocast(hu.device.type, enabled=False):  # bfloat16 knows 1000 HU to 4
            rows = F.conv1d(F.pad(rows, (reach, reach), mode="replicate"), taps[:, None], groups=len(hu))
        hu = rows.transpose(0, 1).reshape(along.shape).movedim(-1, axis)
    return hu


def windowed(hu: Tensor, views: Sequence[View], windows: Sequence[Window]) -> Tensor:
    """Channels (B, C, x, y, z) in 0..1 from HU (B, x, y, z), through windows that vary from view to view."""
    variations = np.array([(view.level, view.width) for view in views])
    of_windows, of_views = sent_together([np.array(windows), variations], hu.device)
    level, width = of_windows.reshape(1, -1, 1, 1, 1, 2).unbind(-1)
    shift, factor = of_views.reshape(-1, 1, 1, 1, 1, 2).unbind(-1)
    levels, widths = level + width * shift, width * factor
    return ((hu[:, None] - (levels - widths / 2)) / widths).clamp_(0, 1)
