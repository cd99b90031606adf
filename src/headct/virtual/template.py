"""The average head from which every virtual patient is bent: tissue maps and distances in one space, in millimetres.

Template coordinates are those of the ICBM-152 2009a symmetric brain (x to the right, y to anterior, z to superior,
origin near the anterior commissure). Two boxes of channels: `brain` at 1 mm, derived from the ICBM maps of grey and
white matter (Fonov et al., NeuroImage 54, 2011, 313-327; notice in NOTICE), and `head` at 1.5 mm, our own geometry of
skull, base, face and neck. Distances are negative inside. `tools/build_template.py` makes the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates, minimum_filter

from headct.virtual.interpolation import Grid
from headct.virtual.places import some, where

TEMPLATE_FILE = Path(__file__).with_name("template.npz")

ICBM_PER_HEAD = 1.085
"""The ICBM brain is larger than most: template millimetres to one of an average head."""


@dataclass(frozen=True)
class Box:
    """A regular grid of template or head space; arrays on it are (z, y, x). `x`, `y`, `z` are first and last, in mm."""

    x: tuple[float, float]
    y: tuple[float, float]
    z: tuple[float, float]
    step_mm: float

    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The coordinates along x, y and z."""
        return self._axis(*self.x), self._axis(*self.y), self._axis(*self.z)

    def _axis(self, first: float, last: float) -> np.ndarray:
        return np.arange(round((last - first) / self.step_mm) + 1, dtype=np.float32) * np.float32(self.step_mm) + first

    @property
    def corners(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """x, y and z of the first point and of the last."""
        return (self.x[0], self.y[0], self.z[0]), (self.x[1], self.y[1], self.z[1])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an array on this grid."""
        x, y, z = self.axes()
        return len(z), len(y), len(x)

    def grid(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y and z of every point, each (z, y, x)."""
        x, y, z = self.axes()
        at_z, at_y, at_x = np.meshgrid(z, y, x, indexing="ij")
        return at_x, at_y, at_z

    @cached_property
    def _limits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The least and the greatest x, y and z (3,) in mm; none is too low, for the neck goes on as it is."""
        return torch.tensor((self.x[0], self.y[0], -torch.inf)), torch.tensor(self.corners[1], dtype=torch.float32)

    def away_mm(self, points: torch.Tensor) -> torch.Tensor:
        """How far points (n, 3) lie beyond the grid along each axis (n, 3), in mm; never downwards."""
        return points - torch.clamp(points, *(limit.to(points.device) for limit in self._limits))

    def beyond_mm(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`away_mm` (m, 3) of those of many points (n, 3) that lie beyond the grid, after their indices (m,)."""
        x, y, z = points.T
        at = where((x < self.x[0]) | (x > self.x[1]) | (y < self.y[0]) | (y > self.y[1]) | (z > self.z[1]))
        return at, self.away_mm(some(points, at))


BRAIN_BOX = Box((-76, 76), (-112, 80), (-84, 90), 1.0)
HEAD_BOX = Box((-102, 102), (-126, 126), (-120, 105), 1.5)


class Coding(NamedTuple):
    """How a channel is stored in 8 bits: value = code * step + low."""

    box: str
    low: float
    step: float


def _distance(box: str, reach_mm: float) -> Coding:
    return Coding(box, -reach_mm, 2 * reach_mm / 254)


CHANNELS: Mapping[str, Coding] = MappingProxyType(
    {
        "grey": Coding("brain", 0, 1 / 255),
        "white": Coding("brain", 0, 1 / 255),
        "sulci": Coding("brain", 0, 1 / 255),
        "arteries_mm": _distance("brain", 8),
        "sinuses_mm": _distance("brain", 8),
        "ventricles_mm": _distance("brain", 31),
        "tent_mm": _distance("brain", 10),
        "cerebellum_mm": _distance("brain", 20),
        "stem_mm": _distance("brain", 20),
        "cavity_mm": _distance("head", 45),
        "thickness": Coding("head", 0, 2 / 255),
        "face_mm": _distance("head", 20),
        "bone_mm": _distance("head", 8),
        "marrow_mm": _distance("head", 8),
        "air_mm": _distance("head", 8),
        "soft_hu": Coding("head", -127, 1),
    }
)
"""Every channel: shares from 0 to 1, signed distances in mm, Hounsfield values."""

BOXES: Mapping[str, Box] = MappingProxyType({"brain": BRAIN_BOX, "head": HEAD_BOX})


def coded(name: str, values: np.ndarray) -> np.ndarray:
    """The 8-bit codes of a channel."""
    coding = CHANNELS[name]
    return np.clip(np.rint((values - coding.low) / coding.step), 0, 255).astype(np.uint8)


COARSER = 2
"""Slopes of distances, and the distance to a face nearby, are kept at every second point of `HEAD_BOX`."""

NEAR_FACE_MM = 9.0
"""How far off along each axis a face counts as here, which is wider than a cell of the patients' coarse grid."""


class Template:
    """The channels, ready to be sampled."""

    def __init__(self) -> None:
        self.names = {box: [name for name, coding in CHANNELS.items() if coding.box == box] for box in BOXES}
        with np.load(TEMPLATE_FILE) as stored:
            self._grids = {box: _grid(stored, names, BOXES[box]) for box, names in self.names.items()}
            slopes = _slopes(*(_decoded(name, stored[name]) for name in ("cavity_mm", "ventricles_mm")))
            near_face_mm = _nearest(_decoded("face_mm", stored["face_mm"]))
        self._slopes = Grid(slopes, *HEAD_BOX.corners)
        self._near_face = Grid(near_face_mm, *HEAD_BOX.corners)

    def sample(self, box: str, points_mm: torch.Tensor) -> dict[str, torch.Tensor]:
        """All channels of a box at points (n, 3), by name, each (n,); beyond the box its edge goes on."""
        return dict(zip(self.names[box], self._grids[box].sample(points_mm), strict=True))

    def slopes(self, points_mm: torch.Tensor) -> torch.Tensor:
        """(n, 8): distance to the cavity's wall and its gradient, distance to the ventricles and its gradient."""
        return self._slopes.sample(points_mm).T

    def near_face_mm(self, points_mm: torch.Tensor) -> torch.Tensor:
        """The least `face_mm` (n,) around points (n, 3), so that nothing of a face is missed that lies between them."""
        return self._near_face.sample(points_mm)[0]


def _slopes(cavity_mm: np.ndarray, ventricles_mm: np.ndarray) -> np.ndarray:
    """Both distances and their gradients (z, y, x, 8) at every `COARSER`-th point of `HEAD_BOX`, smoothed."""
    axes = [axis[::COARSER] for axis in HEAD_BOX.axes()[::-1]]
    at = np.stack(np.meshgrid(*axes, indexing="ij"))
    first = np.array([BRAIN_BOX.z[0], BRAIN_BOX.y[0], BRAIN_BOX.x[0]]).reshape(3, 1, 1, 1)
    ventricles = map_coordinates(ventricles_mm, (at - first) / BRAIN_BOX.step_mm, order=1, mode="nearest")
    parts = []
    for distance in (_coarser(cavity_mm), ventricles):
        smooth = gaussian_filter(distance, 1.0)
        along_z, along_y, along_x = np.gradient(smooth, HEAD_BOX.step_mm * COARSER)
        parts += [distance, along_x, along_y, along_z]
    return np.stack(parts, axis=-1).astype(np.float32)


def _nearest(face_mm: np.ndarray) -> np.ndarray:
    """The least distance (z, y, x, 1) to the face within `NEAR_FACE_MM` of every `COARSER`-th point of `HEAD_BOX`."""
    reach = round(NEAR_FACE_MM / (HEAD_BOX.step_mm * COARSER))
    return minimum_filter(_coarser(face_mm), 2 * reach + 1, mode="nearest")[..., None]


def _coarser(values: np.ndarray) -> np.ndarray:
    return values[::COARSER, ::COARSER, ::COARSER]


def _grid(stored: Mapping[str, np.ndarray], names: list[str], box: Box) -> Grid:
    """The channels of a box, from the codes of their right halves."""
    codes = np.empty((*box.shape, len(names)), dtype=np.uint8)
    for index, name in enumerate(names):
        codes[..., index] = _whole(stored[name])
    _boxes, lows, steps = zip(*(CHANNELS[name] for name in names), strict=True)
    return Grid(codes, *box.corners, steps=steps, lows=lows)


def _whole(half: np.ndarray) -> np.ndarray:
    """Both sides (z, y, x) of a channel from its right one: the template is symmetric."""
    return np.concatenate([half[..., :0:-1], half], axis=-1)


def _decoded(name: str, half: np.ndarray) -> np.ndarray:
    """A channel (z, y, x) float32 from the codes of its right half."""
    return _whole(half).astype(np.float32) * np.float32(CHANNELS[name].step) + np.float32(CHANNELS[name].low)


@cache
def template() -> Template:
    """The template, read once in each process."""
    return Template()
