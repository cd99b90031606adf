"""Training patches: drawn so that rare classes come as often as others, then cut out, turned and varied.

Draw, then apply: what is drawn depends on a generator alone. V channels of an array as prepared (1 for HU), X Y Z
voxels of it, x y z of a patch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from headct.encoders import Grid
from headct.failure import Misuse
from headct.scan import AIR_HU

CACHE_BYTES = 2 << 30
"""Arrays and masks that are kept in memory."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a patch may differ from what is on disk. Values change only where arrays are in HU."""

    mirror: float = 0.5  # share of patches whose left and right change places, where no class has a side
    turn_deg: float = 10.0  # about a random axis, up to
    zoom: float = 0.1  # share by which it is enlarged or shrunk, up to
    shift_hu: float = 4.0  # of all values, standard deviation
    stretch: float = 0.03  # of all values, standard deviation of the factor less 1
    noise_hu: float = 4.0  # standard deviation of white noise, up to

    def __post_init__(self) -> None:
        for name in ("mirror", "zoom"):
            if not 0 <= getattr(self, name) < 1 + (name == "mirror"):
                raise Misuse(f"{name} must be a share of 0..1, got {getattr(self, name)}")
        for name in ("turn_deg", "shift_hu", "stretch", "noise_hu"):
            if getattr(self, name) < 0:
                raise Misuse(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class Example:
    """A scan in memory."""

    array: np.ndarray  # int16 HU (X, Y, Z), or scaled (V, X, Y, Z)
    numbers: np.ndarray  # (X, Y, Z) uint8, classes
    spacing_mm: np.ndarray  # (3,) of voxels

    @property
    def in_hu(self) -> bool:
        """Whether values are Hounsfield units."""
        return self.array.ndim == 3


@dataclass(frozen=True)
class Draw:
    """The numbers of one patch."""

    scan: int
    number: int  # the class around which it lies; 0 for anywhere
    centre: tuple[float, float, float]  # voxel
    axis_deg: tuple[float, float, float]  # the turn, as a rotation vector
    zoom: float
    mirrored: bool
    shift_hu: float
    stretch: float
    noise_hu: float
    noise_seed: int


class Kept:
    """The scans used last, as many as fit into `CACHE_BYTES`."""

    def __init__(self, load: Callable[[int], Example]) -> None:
        self._load, self._kept, self._bytes = load, OrderedDict[int, Example](), 0

    def __call__(self, scan: int) -> Example:
        if scan in self._kept:
            self._kept.move_to_end(scan)
            return self._kept[scan]
        found = self._load(scan)
        self._kept[scan] = found
        self._bytes += found.array.nbytes + found.numbers.nbytes
        while self._bytes > CACHE_BYTES and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.array.nbytes + dropped.numbers.nbytes
        return found


def draw(
    rng: np.random.Generator,
    holders: Sequence[np.ndarray],
    examples: Callable[[int], Example],
    augmentation: Augmentation,
) -> Draw:
    """One patch. `holders[c]` are the scans that hold class c; those of class 0 are all scans.

    First a class among those that any scan holds, the background included, then one of its scans, then a voxel: so
    each class comes as often, however few scans hold it and however small it is there. The background may lie anywhere.
    """
    taught = [number for number, scans in enumerate(holders) if len(scans)]
    number = int(rng.choice(taught))
    scan = int(rng.choice(holders[number]))
    example = examples(scan)
    if number:
        found = np.flatnonzero(example.numbers == number)
        centre = np.array(np.unravel_index(found[rng.integers(len(found))], example.numbers.shape), dtype=float)
    else:
        centre = rng.uniform(0, np.array(example.numbers.shape) - 1)
    direction = rng.normal(size=3)
    turn = rng.uniform(-augmentation.turn_deg, augmentation.turn_deg) * direction / np.linalg.norm(direction)
    x, y, z = centre.tolist()
    a, b, c = turn.tolist()
    return Draw(
        scan=scan,
        number=number,
        centre=(x, y, z),
        axis_deg=(a, b, c),
        zoom=float(np.exp(rng.uniform(-1, 1) * np.log1p(augmentation.zoom))),
        mirrored=bool(rng.uniform() < augmentation.mirror),
        shift_hu=float(rng.normal(0, augmentation.shift_hu)),
        stretch=float(np.exp(rng.normal(0, augmentation.stretch))),
        noise_hu=float(rng.uniform(0, augmentation.noise_hu)),
        noise_seed=int(rng.integers(2**31)),
    )


def cut(example: Example, drawn: Draw, patch: Grid, side: int) -> tuple[Tensor, Tensor]:
    """Values float32 (V, x, y, z) and classes int64 (x, y, z) of a patch.

    It is kept within the array as far as it is no larger, so a centre near the border lies off its middle. The turn is
    one of millimetres, whatever the voxels measure; values are interpolated linearly, classes taken from the nearest
    voxel. `side` is the axis along which left and right lie. Outside of the array there is air and background.
    """
    shape = np.array(example.numbers.shape)
    half = (np.array(patch) - 1) / 2
    room = np.maximum(shape - 1 - half, half)
    low, high = np.minimum(half, (shape - 1) / 2), np.where(shape >= np.array(patch), room, (shape - 1) / 2)
    centre = np.clip(np.array(drawn.centre), low, high)
    values = torch.from_numpy(example.array.astype(np.float32))
    values = values[None] if example.in_hu else values
    air = AIR_HU if example.in_hu else 0
    plain = drawn.zoom == 1 and not any(drawn.axis_deg)
    if plain:
        box, pads = _box(np.rint(centre - half).astype(int), patch, shape)
        image = F.pad(values[(slice(None), *box)], pads, value=air)
        numbers = F.pad(torch.from_numpy(example.numbers.astype(np.int64))[box], pads)
    else:
        places = _places(drawn, centre, patch, shape, example.spacing_mm)
        image = F.grid_sample(values[None] - air, places, align_corners=True)[0] + air
        there = torch.from_numpy(example.numbers.astype(np.float32))[None, None]
        numbers = F.grid_sample(there, places, mode="nearest", align_corners=True)[0, 0].long()
    if drawn.mirrored:
        image, numbers = image.flip(1 + side), numbers.flip(side)
    if example.in_hu:
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(drawn.noise_seed))
        image = image * drawn.stretch + drawn.shift_hu + noise * drawn.noise_hu
    return image, numbers


def _box(first: np.ndarray, patch: Grid, shape: np.ndarray) -> tuple[tuple[slice, ...], list[int]]:
    """Which part of an array a patch holds, and what is to be padded, in the order that `pad` takes."""
    last = first + np.array(patch)
    box = tuple(slice(max(0, int(a)), min(int(n), int(b))) for a, b, n in zip(first, last, shape, strict=True))
    pads = [
        part
        for a, b, n in reversed(list(zip(first.tolist(), last.tolist(), shape.tolist(), strict=True)))
        for part in (max(0, -a), max(0, b - n))
    ]
    return box, pads


def _places(drawn: Draw, centre: np.ndarray, patch: Grid, shape: np.ndarray, spacing_mm: np.ndarray) -> Tensor:
    """Where the voxels of a patch lie in its array, (1, x, y, z, 3), as `grid_sample` takes it."""
    turn = Rotation.from_rotvec(drawn.axis_deg, degrees=True).as_matrix()
    by = (turn * spacing_mm) / spacing_mm[:, None] * drawn.zoom  # voxel to voxel, through millimetres
    axes = [np.arange(size) - (size - 1) / 2 for size in patch]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    voxels = offsets @ by.T + centre
    scaled = 2 * voxels / np.maximum(shape - 1, 1) - 1
    return torch.from_numpy(scaled[..., ::-1].astype(np.float32).copy())[None]
