"""FM-HCT's pre-training as published: its views, its schedules, its clipping and its optimiser.

For those who want to compare with that run; nothing here is the default of anything. What it does otherwise than the
rest of this package, each a finding of its own:

- Four fifths of a global view are padding, and each axis is stretched on its own.
- An offset of up to 0.2 is added after windowing, so air is no longer 0 and values leave 0..1.
- The rate of the first step is 0.
- The teacher's momentum is read at the place within the epoch, so it never rises.
- Each weight is clipped on its own, and all of them decay, biases, norms and tokens too.

The padded cube of 224 voxels a side is never made. Padding, crop, area resize, flip and smoothing are linear and act on
each axis alone, so the three of a view are three small matrices. B scans, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from headct.encoders import Grid, Window
from headct.encoders.windowing import apply_windows
from headct.failure import Misuse
from headct.pretraining.schedules import cosine, ramp
from headct.pretraining.views import TISSUE_HU, Seen, sent

SCAN = 96  # voxels a side of a scan, whatever its array
PADDED = 224  # voxels a side of the cube of zeros in whose middle it lies
LOCAL_PADDED = 192  # of that cube, what local views are cut from
GLOBAL_EDGES = (112, 224)
LOCAL_EDGES = (64, 112)

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class PublishedView:
    """The numbers of one view of one scan."""

    start: tuple[int, int, int]  # of the crop, in voxels of the padded cube
    edges: tuple[int, int, int]  # of the crop, voxels
    flipped: tuple[bool, bool, bool] = (False, False, False)
    offset: float = 0.0  # added to all windows
    sigma: Triple | None = None  # of a Gaussian, in voxels of the view
    gamma: float | None = None


def draw_global(rng: np.random.Generator, number: int) -> PublishedView:
    """One global view: the first of a scan may be smoothed, the second may get a gamma."""
    start, edges = _crop(rng, GLOBAL_EDGES, PADDED)
    flipped = tuple((rng.uniform(size=3) < 0.2).tolist())
    offset = float(rng.uniform(-0.2, 0.2)) * (rng.uniform() < 0.5)
    changed = rng.uniform() < 0.2
    sigma, gamma = tuple(rng.uniform(0.5, 1.0, 3).tolist()), float(rng.uniform(0.2, 1.0))
    return PublishedView(
        start,
        edges,
        flipped,
        offset,
        sigma=sigma if changed and number == 0 else None,
        gamma=gamma if changed and number == 1 else None,
    )


def draw_local(rng: np.random.Generator) -> PublishedView:
    """One local view, which is cropped and no more."""
    return PublishedView(*_crop(rng, LOCAL_EDGES, LOCAL_PADDED))


def _crop(
    rng: np.random.Generator, edges: tuple[int, int], within: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Start and edges of a crop inside the middle of the padded cube."""
    drawn = rng.integers(edges[0], edges[1], 3, endpoint=True)
    start = rng.integers(0, within - drawn, endpoint=True) + (PADDED - within) // 2
    return tuple(start.tolist()), tuple(drawn.tolist())


def see_published(
    hu: Tensor,
    draws: Sequence[Sequence[PublishedView]],
    shape: Grid,
    spacing_mm: Sequence[float],
    windows: Sequence[Window],
    dtype: torch.dtype = torch.float32,
) -> list[Seen]:
    """Of each view one entry, from hu (B, X, Y, Z) and draws [scan][view].

    An array of any shape is stretched to `SCAN` voxels a side first. In bfloat16 values are off by up to 0.01.
    """
    count = len(draws[0])
    flat = [view for views in draws for view in views]
    matrices = along_axes(flat, (hu.shape[1], hu.shape[2], hu.shape[3]), shape, hu.device)
    weights = [matrix.mean(dim=1) for matrix in matrices]  # of voxels in the mean of a view
    images = [torch.empty(len(hu), len(windows), *shape, dtype=dtype, device=hu.device) for _ in range(count)]
    tissue = hu.new_empty(len(hu), count, dtype=torch.float32)
    for b, views in enumerate(draws):  # scan by scan, so that all views find a scan in the processor's cache
        image = apply_windows(hu[b : b + 1], windows)[0].to(dtype)
        patient = (hu[b] > TISSUE_HU).float()
        for number, view in enumerate(views):
            row = b * count + number
            fill(images[number][b], image, view, [matrix[row] for matrix in matrices])
            x, y, z = (weight[row] for weight in weights)
            tissue[b, number] = x @ (patient @ z) @ y
    edges_mm = [[mm * n * e / SCAN for mm, n, e in zip(spacing_mm, hu.shape[1:], v.edges, strict=True)] for v in flat]
    voxels_mm = sent((np.array(edges_mm) / shape).astype(np.float32), hu.device).reshape(len(hu), count, 3)
    return [Seen(images[n], voxels_mm[:, n], 1 - tissue[:, n].mean()) for n in range(count)]


def fill(seen: Tensor, image: Tensor, view: PublishedView, matrices: Sequence[Tensor]) -> None:
    """Fill `seen` (C, x, y, z) with a view of an image (C, X, Y, Z), by its matrices (x, X), (y, Y) and (z, Z).

    All in the image's dtype. Where crop and scan do not meet the matrices are zeros, and that part is left out.
    """
    (from_x, to_x), (from_y, to_y), (from_z, to_z) = spans = [
        _span(view, axis, matrix.shape[1], len(matrix)) for axis, matrix in enumerate(matrices)
    ]
    along_x, along_y, along_z = (
        matrix[to, from_].to(image.dtype) for matrix, (from_, to) in zip(matrices, spans, strict=True)
    )
    part = along_y @ (image[:, from_x, from_y, from_z] @ along_z.T)  # (C, X, y, z)
    seen.zero_()
    seen[:, to_x, to_y, to_z] = (along_x @ part.flatten(2)).reshape(len(part), -1, *part.shape[2:])
    if view.offset:
        seen += (view.offset * _smoothed_ones(view, seen.shape[1:])).to(seen)
    if view.gamma is not None:
        seen.copy_(bent(seen.float(), view.gamma))


def bent(image: Tensor, gamma: float) -> Tensor:
    """The image with a gamma between its darkest and its brightest value."""
    darkest = image.min()
    reach = image.max() - darkest
    return ((image - darkest) / (reach + 1e-7)) ** gamma * reach + darkest


def along_axes(
    views: Sequence[PublishedView], voxels: Grid, shape: Grid, device: torch.device | str = "cpu"
) -> list[Tensor]:
    """For each axis the matrices (views, shape[axis], voxels[axis]) from the voxels of an array to those of views."""
    return [
        sent(np.stack([_along(view, axis, voxels[axis], shape[axis]) for view in views]), torch.device(device))
        for axis in range(3)
    ]


def _along(view: PublishedView, axis: int, voxels: int, length: int) -> np.ndarray:
    """The matrix (length, voxels) of one axis of one view, float32."""
    matrix = area(view.edges[axis], length, np.arange(SCAN) + (PADDED - SCAN) // 2 - view.start[axis])
    if view.flipped[axis]:
        matrix = matrix[::-1]
    if view.sigma is not None:
        matrix = smoothing(view.sigma[axis], length) @ matrix
    if voxels != SCAN:
        matrix = matrix @ area(voxels, SCAN)
    return np.ascontiguousarray(matrix, dtype=np.float32)


def area(voxels: int, length: int, places: np.ndarray | None = None) -> np.ndarray:
    """The matrix (length, places) of an area resize of `voxels` to `length`: adaptive average pooling.

    `places` are voxels of the input, all of them by default; those outside it have no part in any mean.
    """
    places = np.arange(voxels) if places is None else places
    outputs = np.arange(length)
    first, last = outputs * voxels // length, -(-(outputs + 1) * voxels // length)  # rounded down, rounded up
    taken = (places >= first[:, None]) & (places < last[:, None])
    return np.asarray(taken / (last - first)[:, None])


def smoothing(sigma: float, length: int) -> np.ndarray:
    """The matrix (length, length) of a Gaussian integrated over each voxel, cut off at 4 sigma, with zeros outside.

    Neither the cut nor the border is made up for, so flat images get a little darker, and more so at the border.
    """
    reach = math.floor(max(4 * sigma, 0.5) + 0.5)
    edges = [math.erf((k - 0.5) / (sigma * math.sqrt(2))) for k in range(-reach, reach + 2)]
    taps = np.diff(edges) / 2
    distance = np.arange(length) - np.arange(length)[:, None]
    return np.where(abs(distance) <= reach, taps[np.clip(distance, -reach, reach) + reach], 0.0)


def _smoothed_ones(view: PublishedView, shape: Sequence[int]) -> Tensor:
    """What the smoothing of a view makes of ones (x, y, z)."""
    if view.sigma is None:
        return torch.ones(())
    x, y, z = (
        torch.from_numpy(smoothing(sigma, length).sum(axis=1)).float()
        for sigma, length in zip(view.sigma, shape, strict=True)
    )
    return x[:, None, None] * y[:, None] * z


Span = tuple[slice, slice]


def _span(view: PublishedView, axis: int, voxels: int, length: int) -> Span:
    """Which voxels of the array and of the view take part: a little too wide rather than too narrow.

    From the view's numbers alone, so the device is not waited for.
    """
    start, edge = view.start[axis] - (PADDED - SCAN) // 2, view.edges[axis]  # counted in voxels of the scan
    first, last = max(0, start), min(SCAN, start + edge)
    from_ = slice(first * voxels // SCAN, -(-last * voxels // SCAN))
    low, high = (first - start) * length // edge, -(-(last - start) * length // edge)
    if view.flipped[axis]:
        low, high = length - high, length - low
    reach = 0 if view.sigma is None else math.floor(max(4 * view.sigma[axis], 0.5) + 0.5)
    return from_, slice(max(0, low - reach), min(length, high + reach))


LR_SHAPES = ("cosine", "poly", "constant")


def published_lr(step: int, steps: int, warmup: int, base: float, end: float, shape: str = "cosine") -> float:
    """The rate of a step: a rise from 0, then a cosine (which rises again past the end), "poly", or "constant"."""
    if shape not in LR_SHAPES:
        raise Misuse(f"shape must be one of {', '.join(LR_SHAPES)}, got {shape!r}")
    if step < warmup:
        return base * step / warmup
    done = (step - warmup) / (steps - warmup)
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "poly": (1 - min(done, 1.0)) ** 2, "constant": 1.0}
    return end + (base - end) * left[shape]


def published_momentum(index: int, epochs: int, steps_per_epoch: int, start: float, end: float = 1.0) -> float:
    """The teacher's momentum at the step `index` of any epoch, for the whole run's schedule is read at that place."""
    return cosine(index, epochs * steps_per_epoch, start, end)


def published_temperature(epoch: int, start: float, end: float, warmup: int = 30) -> float:
    """The teacher's temperature in an epoch."""
    return ramp(epoch, warmup, start, end)


@torch.no_grad()
def published_clip(weights: Iterable[nn.Parameter], norm: float) -> None:
    """Scale the gradient of each weight down to a norm of its own."""
    for weight in weights:
        if weight.grad is not None:
            weight.grad.mul_((norm / (weight.grad.norm() + 1e-6)).clamp(max=1.0))


def published_optimizer(module: nn.Module) -> torch.optim.AdamW:
    """AdamW in one group, so that all weights decay."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    return torch.optim.AdamW([{"params": weights, "decays": True}], fused=True)
