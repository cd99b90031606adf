"""A volume seen through overlapping windows, whose answers are averaged with gaussian weights.

Starts and weights are those of MONAI's `sliding_window_inference`, which is the oracle of the tests. K classes, C
channels, X Y Z voxels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headct.encoders import Grid
from headct.encoders.conv import checked_triple
from headct.failure import Misuse

LEAST_WEIGHT = 1e-3
MOST_VOXELS = 1_100_000
"""In a window, unless it is chosen: a head of the recipe `head` at once."""
OF_ANY_SHAPE: Grid = (32, 128, 128)
"""Voxels of a window where scans differ in shape; what CT-FM's pre-training saw."""


@dataclass(frozen=True, kw_only=True)
class Sliding:
    """How a volume is walked through. Raises Misuse where a number makes no sense."""

    window: Grid  # voxels
    overlap: float = 0.5  # share of the window that neighbours have in common; CT-FM has 0.625
    sigma: float = 0.125  # of the weights, as a share of the window
    batch: int = 1  # windows that are seen together

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", checked_triple("window", self.window))
        if not 0 <= self.overlap < 1:
            raise Misuse(f"the overlap must be a share from 0 to below 1, got {self.overlap:g}")
        if not self.sigma > 0 or self.batch < 1:
            raise Misuse(f"sigma and batch must be above zero, got {self.sigma:g} and {self.batch}")


def window_for(shape: Sequence[int] | None, divisor: int) -> Grid:
    """A window for scans of one shape, or of any: all of it where it is not too large, else halves and so on."""
    sides = list(OF_ANY_SHAPE if shape is None else shape)
    while math.prod(sides) > MOST_VOXELS:
        longest = sides.index(max(sides))
        sides[longest] = -(-sides[longest] // 2)
    x, y, z = (-(-side // divisor) * divisor for side in sides)
    return x, y, z


def starts(size: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along an axis, until one reaches its end; the last one is moved back to end there."""
    if size <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil((size - window) / step) + 1
    return [min(index * step, size - window) for index in range(count)]


def weights(window: Grid, sigma: float) -> Tensor:
    """Of the places in a window, float32: a gaussian around its middle, nowhere below `LEAST_WEIGHT`."""
    product = torch.ones(())
    for size in window:
        along = torch.arange(-(size - 1) / 2, (size - 1) / 2 + 1)
        product = product[..., None] * torch.exp(-(along**2) / (2 * (size * sigma) ** 2))
    return product.clamp(min=max(float(product.min()), LEAST_WEIGHT))


def slabs(look: Callable[[Tensor], Tensor], x: Tensor, sliding: Sliding, along: int = 0) -> Iterator[Tensor]:
    """Logits of x (1, C, X, Y, Z) from what `look` gives of windows: slabs of whole planes along an axis, in order.

    Side by side they are (K, X, Y, Z), float32 on the device of x. `look` maps (b, C, *window) to (b, K, *window). A
    volume smaller than the window is padded with zeros, air in every window of HU, on both sides alike. Windows go
    along the axis last, so that planes that no later window reaches can be given away: however long the volume is, K
    numbers a voxel are held of as many planes as a window is deep, and once more of those of the slab.
    """
    lacking = [max(0, wanted - size) for wanted, size in zip(sliding.window, x.shape[2:], strict=True)]
    before = [lack // 2 for lack in lacking]
    pads = [part for lack, front in zip(lacking, before, strict=True) for part in (front, lack - front)]
    padded = F.pad(x, (pads[4], pads[5], pads[2], pads[3], pads[0], pads[1])) if any(pads) else x
    shape = padded.shape[2:]
    kept = tuple(slice(front, front + size) for front, size in zip(before, x.shape[2:], strict=True))
    places = [starts(size, side, sliding.overlap) for size, side in zip(shape, sliding.window, strict=True)]
    if all(len(some) == 1 for some in places):
        yield look(padded)[0].float()[(slice(None), *kept)]
        return
    weight = weights(sliding.window, sliding.sigma).to(x.device)
    depth, begins = sliding.window[along], places[along]
    held = [depth if axis == along else size for axis, size in enumerate(shape)]
    total, summed = None, torch.zeros(held, device=x.device)
    for number, begin in enumerate(begins):
        row = list(itertools.product(*([begin] if axis == along else some for axis, some in enumerate(places))))
        for first in range(0, len(row), sliding.batch):
            boxes = [
                [slice(start, start + side) for start, side in zip(place, sliding.window, strict=True)]
                for place in row[first : first + sliding.batch]
            ]
            seen = look(torch.cat([padded[(slice(None), slice(None), *box)] for box in boxes])).float()
            if total is None:
                total = torch.zeros((seen.shape[1], *held), device=x.device)
            for box, one in zip(boxes, seen, strict=True):
                box[along] = slice(0, depth)
                total[(slice(None), *box)] += one * weight
                summed[tuple(box)] += weight
        assert total is not None
        done = begins[number + 1] - begin if number + 1 < len(begins) else depth
        yield (total.narrow(1 + along, 0, done) / summed.narrow(along, 0, done))[(slice(None), *kept)]
        _move_up(total, 1 + along, done)
        _move_up(summed, along, done)


def _move_up(planes: Tensor, axis: int, by: int) -> None:
    """Move planes to the front along an axis, in place and without a second copy; zeros follow."""
    size = planes.shape[axis]
    for start in range(0, size - by, by):
        some = min(by, size - by - start)
        planes.narrow(axis, start, some).copy_(planes.narrow(axis, start + by, some))
    planes.narrow(axis, size - by, by).zero_()


@dataclass(frozen=True)
class Probabilities:
    """Of K classes at each voxel of a volume, made slab by slab whenever they are gone through: never all are there."""

    shape: Grid  # (X, Y, Z)
    slabs: Callable[[int], Iterator[Tensor]]  # along an axis: (K, X, Y, Z) where the axis is as long as a slab is deep

    def numbers(self) -> np.ndarray:
        """The most probable class of each voxel, uint8 (X, Y, Z)."""
        return joined(self.slabs(0))


def most_probable(slab: Tensor) -> np.ndarray:
    """Class numbers uint8 (X, Y, Z) of logits or probabilities (K, X, Y, Z)."""
    return slab.argmax(dim=0).to(torch.uint8).cpu().numpy()


def joined(slabs: Iterable[Tensor]) -> np.ndarray:
    """Class numbers uint8 (X, Y, Z) of slabs along the first axis."""
    return np.concatenate([most_probable(slab) for slab in slabs])
