"""From a patient's head to the template: two smooth maps on a coarse grid, one for bone and one for the brain.

The *head map* H holds size, form and asymmetry; skull, base and scalp follow it. The *brain map* B is H and whatever
moves brain within the rigid skull: atrophy, wider ventricles, mass effect. So mass effect never bends bone, and the
template coordinate of every voxel is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch

from headct.virtual.anatomy import Anatomy
from headct.virtual.interpolation import Grid
from headct.virtual.solids import Vector
from headct.virtual.streams import stream
from headct.virtual.template import ICBM_PER_HEAD, Box, Template
from headct.virtual.texture import smooth_noise

COARSE = Box((-105, 105), (-126, 126), (-126, 105), 7.0)
"""Where the maps are known, in head millimetres: the patient's own, upright, origin near the anterior commissure.

A large head may reach a little beyond.
"""

NEAREST_MM = 0.05
"""Pushes below this are cut to nothing, smoothly, so that every finding has an end of its reach."""

THIRD_MM = 3.5
"""The third ventricle widens by no more than so much."""

DRAWN_MM, STEEPEST = 3.0, 0.85
"""Of a ventricle that widens, what lies within so much of its wall is drawn out to fill it; the push grows by no more
than this share of the way, so that the map never folds."""

UNEVEN_MM: Mapping[str, float] = MappingProxyType(
    {"thickness": 12.0, "scalp": 20.0, "gyri": 14.0, "texture": 11.0, "sulcal": 10.0}
)
"""Smooth fields of every head, and the sigma of their smoothing."""

FINDING_FIELDS = ("closed", "swelling")
"""Smooth fields of several findings: sulci pressed shut (share, summed), scalp swollen (mm, the thickest of them)."""


@dataclass(frozen=True)
class Coarse:
    """The points of `COARSE` (n of them, x fastest) and where they lie in the undiseased head."""

    head_mm: torch.Tensor  # (n, 3) patient
    template_mm: torch.Tensor  # (n, 3) by the head map
    cavity_mm: torch.Tensor  # (n,) patient mm from the skull's inner surface, negative inside
    outward: torch.Tensor  # (n, 3) direction away from the middle of the cavity
    ventricles_mm: torch.Tensor  # (n,) patient mm from the ventricles, negative inside
    from_ventricles: torch.Tensor  # (n, 3)
    scale: float  # template mm to a patient mm
    folds: torch.Tensor  # (n, 3) of unit variance: the brain's own
    fields: Mapping[str, torch.Tensor]  # each (n,) of unit variance: what is uneven in this head

    @property
    def depth_mm(self) -> torch.Tensor:
        """How deep below the skull's inner surface (n,), 0 outside."""
        return torch.clamp(-self.cavity_mm, min=0)


@dataclass(frozen=True)
class Bend:
    """The maps and smooth fields of one patient, to be sampled at any point of the head."""

    names: tuple[str, ...]
    values: torch.Tensor  # (z, y, x, channels): H, B, then the named fields
    scale: Vector  # template mm to a patient mm along each axis, by which both maps go on beyond the grid

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.values.numpy(), *COARSE.corners)

    def sample(self, head_mm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Template coordinates (n, 3) by H and by B, and the fields (n,) at finite points (n, 3), head millimetres."""
        sampled = self._grid.sample(head_mm)
        at, beyond_mm = COARSE.beyond_mm(head_mm)
        sampled[:6].index_add_(1, at, (beyond_mm * head_mm.new_tensor(self.scale)).T.repeat(2, 1))
        return sampled[:3].T, sampled[3:6].T, dict(zip(self.names, sampled[6:], strict=True))

    def head_of(self, template_mm: np.ndarray, *, brain: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Head millimetres (n, 3) of template points, by the inverse of B, or of H for bone and skin.

        Also gives by how many template millimetres (n,) each place misses its target: less than 0.001 where the map
        is monotone; more where a mass or a ventricle has taken the place of the tissue.
        """
        target = self.values.new_tensor(np.asarray(template_mm, dtype=np.float32).reshape(-1, 3))
        at, scale = target / ICBM_PER_HEAD, target.new_tensor(self.scale)
        own_map = slice(3, 6) if brain else slice(0, 3)
        for _ in range(60):  # of few points: without `sample`, which is made for many
            missing = target - (self._grid.sample(at)[own_map].T + COARSE.away_mm(at) * scale)
            at = at + 0.6 * missing
        missed_mm = torch.linalg.vector_norm(missing, dim=1)
        return at.numpy().astype(float), missed_mm.numpy().astype(float)


def points_of(box: Box) -> torch.Tensor:
    """(n, 3) millimetres, x fastest."""
    return torch.from_numpy(np.stack([axis.ravel() for axis in box.grid()], axis=1))


def undiseased(anatomy: Anatomy, template: Template) -> Coarse:
    """The head map of an anatomy and what it says of every coarse point."""
    points = points_of(COARSE)
    rng = stream(anatomy.seed, "form")
    warp = _noise(rng, 3, 35.0) * torch.tensor(anatomy.warp_mm)
    xy, xz, yz = anatomy.shear
    linear = torch.tensor([[1, xy, xz], [0, 1, yz], [0, 0, 1]]) * torch.tensor(anatomy.scale)[:, None]
    mapped = points @ linear.T.float() + warp
    smooth = template.slopes(mapped)
    scale = anatomy.mean_scale
    rng = stream(anatomy.seed, "brain")
    return Coarse(
        head_mm=points,
        template_mm=mapped,
        cavity_mm=smooth[:, 0] / scale,
        outward=smooth[:, 1:4],
        ventricles_mm=smooth[:, 4] / scale,
        from_ventricles=smooth[:, 5:8],
        scale=scale,
        folds=_noise(rng, 3, 8.5),
        fields={name: _noise(rng, 1, sigma_mm)[:, 0] for name, sigma_mm in UNEVEN_MM.items()},
    )


def bent(
    anatomy: Anatomy,
    coarse: Coarse,
    pushes: Sequence[torch.Tensor],
    wider_mm: Sequence[torch.Tensor],
    fields: Sequence[Mapping[str, torch.Tensor]],
) -> Bend:
    """Both maps: B is H plus the brain's own folds, atrophy, and what findings do.

    `pushes` (n, 3) in template mm, and `wider_mm` (n,), by how far tissue gives way to the ventricles, add up.
    """
    folds = coarse.folds * anatomy.folding_mm * torch.clamp(coarse.depth_mm / 12, max=1)[:, None]
    own = {**coarse.fields, **{name: torch.zeros(len(coarse.head_mm)) for name in FINDING_FIELDS}}
    side = 1 + anatomy.ventricle_asymmetry * torch.tanh(coarse.template_mm[:, 0] / 8)
    given_way = sum(wider_mm, given_way_mm(coarse, anatomy.ventricles_mm * side, 20.0))
    brain = coarse.template_mm + folds + _from_skull(anatomy, coarse) + widened(coarse, given_way)
    for push in pushes:
        brain = brain + ended(push)
    for name, values in (item for part in fields for item in part.items()):
        if name == "swelling":
            own[name] = torch.maximum(own[name], values)
        else:
            own[name] = own[name] + values if name in own else values
    channels = torch.cat([coarse.template_mm, brain, torch.stack(list(own.values()), dim=1)], dim=1)
    return Bend(tuple(own), channels.reshape(*COARSE.shape, -1).float(), anatomy.scale)


def ended(push: torch.Tensor) -> torch.Tensor:
    """A push (n, 3) that fades to exactly nothing where it is shorter than `NEAREST_MM`."""
    length = torch.sqrt((push**2).sum(dim=1, keepdim=True))
    return push * torch.clamp(1 - NEAREST_MM / torch.clamp(length, min=1e-6), min=0)


def given_way_mm(coarse: Coarse, wider_mm: float | torch.Tensor, reach_mm: float) -> torch.Tensor:
    """How far in patient mm tissue (n,) gives way to ventricles that are wider by up to `wider_mm`.

    It falls off over `reach_mm`. The third ventricle and the temporal horns give way less, as they do in patients.
    """
    x, z = coarse.template_mm[:, 0], coarse.template_mm[:, 2]
    share = 1 - 0.55 * torch.clamp((-8 - z) / 8, 0, 1)
    third = torch.clamp((12 - torch.abs(x)) / 6, 0, 1) * torch.clamp((20 - z) / 8, 0, 1)
    wider = torch.as_tensor(wider_mm, dtype=torch.float32)
    limit = wider - third * torch.clamp(wider - THIRD_MM, min=0)
    fall = torch.exp(-torch.clamp(coarse.ventricles_mm, min=0) / reach_mm)
    room = torch.clamp(coarse.depth_mm / 14, max=1)
    return limit * share * fall * room


def widened(coarse: Coarse, given_way: torch.Tensor) -> torch.Tensor:
    """The push (n, 3) of ventricles to which tissue gives way by so many patient mm (n,), all causes together.

    A push w(d) at distance d from the wall moves the wall to where w(d) = d. Within, it grows from nothing in the
    ventricle's middle, by less than the way itself, so that what fills a wide ventricle is drawn out and never folds.
    """
    most = STEEPEST * torch.clamp(coarse.ventricles_mm + DRAWN_MM, min=0)
    push = torch.clamp(given_way, -most, most)
    return -coarse.from_ventricles * (push * coarse.scale)[:, None]


def _from_skull(anatomy: Anatomy, coarse: Coarse) -> torch.Tensor:
    """The push (n, 3) of brain drawn away from the skull, as much as it has shrunk."""
    from_skull = anatomy.gap_mm * torch.exp(-coarse.depth_mm / 18) * (coarse.depth_mm > 0)
    return coarse.outward * (from_skull * coarse.scale)[:, None]


def _noise(rng: np.random.Generator, channels: int, correlation_mm: float) -> torch.Tensor:
    """(n, channels) of unit variance; `correlation_mm` is the sigma of its smoothing."""
    noise = smooth_noise(rng, (channels, *COARSE.shape), correlation_mm / COARSE.step_mm)
    return torch.from_numpy(noise.reshape(channels, -1).T.copy())
