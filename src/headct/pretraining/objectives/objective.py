"""What an objective is given in a step, and what the loop asks of it. B scans, R rows."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from headct.encoders import Encoder, Window
from headct.encoders.vit import DropPath
from headct.pretraining.views import ViewSettings

UNKNOWN_CLASS = 255

TEMPLATE_BLOCK = 4
"""Template coordinates change so slowly that one for each block of so many voxels a side says all."""


@dataclass(frozen=True)
class Batch:
    """The scans of a step, then the partners that an objective asked for.

    Attributes:
        scan_ids: Of the R rows.
        hu: (R, X, Y, Z) int16.
        spacing_mm: Of the voxels.
        partners: For each kind the row (B,) of each scan's partner, -1 where it has none.
        classes: (R, X, Y, Z) uint8, `UNKNOWN_CLASS` where the truth is not known; None if not asked for.
        template_mm: (R, x, y, z, 3) float32, the mean over blocks of `TEMPLATE_BLOCK` voxels, NaN where the truth is
            not known; None if not asked for.
        draws: What the objective drew for each of the B scans.
        normals: (R, 3) unit vectors across the slices as acquired, in the axes of the array; zeros where they are not
            known, None where nobody asks.
        patients: Whose the B scans are; empty where nobody asks.
    """

    scan_ids: tuple[str, ...]
    hu: Tensor
    spacing_mm: tuple[float, float, float]
    partners: Mapping[str, tuple[int, ...]]
    classes: Tensor | None
    template_mm: Tensor | None
    draws: Sequence[Any]
    normals: np.ndarray | None = None
    patients: tuple[str, ...] = ()

    def normals_of(self, rows: np.ndarray | None = None) -> np.ndarray | None:
        """The normals of some rows, or of the B scans."""
        if self.normals is None:
            return None
        return self.normals[: len(self.draws)] if rows is None else self.normals[rows]

    @property
    def scans(self) -> Tensor:
        """HU (B, X, Y, Z) without the partners."""
        return self.hu[: len(self.draws)]


Watched = dict[str, Tensor]
"""Scalars that the monitors look at, on the device."""


@dataclass(frozen=True)
class Sight:
    """How scans are looked at, whatever the objective."""

    views: ViewSettings
    windows: Sequence[Window]


class Objective(nn.Module, ABC):
    """A loss with all the state it needs around an encoder; its `state_dict` is the whole of it.

    `draw` decides in the loader, by the generator alone, what is done to a scan; `forward` does it to a whole batch on
    the device. So a scan is treated alike whatever batch, process or try it comes in.
    """

    partners: tuple[str, ...] = ()
    """Which other scans of the same virtual patient it compares with: "rescan", "twin"."""
    truth: tuple[str, ...] = ()
    """Which truth of virtual patients it learns from: "classes", "template_mm"."""
    uses_findings: bool = False
    """Whether it uses what the generator knows of findings; recorded in the checkpoint, and off when few-label claims
    on virtual patients are made."""

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """The encoder that the run is for."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> Any:
        """The numbers of one scan, from the boxes (2, 3) of the heads of "scan" and of such partners as there are."""

    @abstractmethod
    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        """The loss of step `step` of `steps`."""

    def restrain(self, step: int, steps: int) -> None:  # most have nothing to do
        """Drop gradients that this step must not go down, after they were worked out."""

    def follow(self, step: int, steps: int) -> None:  # most have nothing to do
        """What happens after the optimiser's step, such as moving a teacher."""


Learner = TypeVar("Learner", bound=nn.Module)


def teacher_of(student: Learner) -> Learner:
    """A copy that takes no gradient and drops no path: its BatchNorms alone are in training mode."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.share = 0.0
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student; buffers are copied, but for those of a BatchNorm.

    A BatchNorm's statistics belong to the weights before it: the teacher's are of what the teacher saw.
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
    for theirs, ours in zip(teacher.modules(), student.modules(), strict=True):
        if not isinstance(theirs, _BatchNorm):
            for buffer, now in zip(theirs.buffers(recurse=False), ours.buffers(recurse=False), strict=True):
                buffer.copy_(now)


class Centre(nn.Module):
    """The running mean (K,) of a teacher's scores, equation 4 of arXiv 2104.14294.

    Without it one prototype takes all scans. It moves once a step, by the scores of all parts and processes.
    """

    value: Tensor
    total: Tensor
    number: Tensor

    def __init__(self, prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))
        self.register_buffer("total", torch.zeros(prototypes), persistent=False)  # since it moved last
        self.register_buffer("number", torch.zeros(()), persistent=False)

    @torch.no_grad()
    def note(self, scores: Tensor, counted: Tensor | None = None) -> None:
        """Keep scores (n, K), of which some may not be counted (n,), for the next move."""
        self.total += (scores if counted is None else scores * counted[:, None]).sum(dim=0)
        self.number += len(scores) if counted is None else counted.sum()

    @torch.no_grad()
    def move(self) -> None:
        """To the mean of what was noted, by the momentum; where nothing was it stays."""
        noted = torch.cat([self.total, self.number[None]])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(noted)
        moved = self.value * self.momentum + noted[:-1] / noted[-1].clamp(min=1) * (1 - self.momentum)
        self.value.copy_(torch.where(noted[-1] > 0, moved, self.value))
        self.total.zero_()
        self.number.zero_()


def spread_of(vectors: Tensor) -> Watched:
    """`spread` of scan vectors (..., N, F), and `dimensions` where there are enough of them to tell."""
    watched = {"spread": spread(vectors)}
    if vectors.shape[-2] >= LEAST_VECTORS:
        watched["dimensions"] = dimensions(vectors)
    return watched


LEAST_VECTORS = 8
"""Of fewer the effective dimensions are few in any case."""


def dimensions(vectors: Tensor) -> Tensor:
    """Effective dimensions in which vectors (..., N, F) of unit length differ: (sum l)^2 / sum l^2.

    With l the eigenvalues of their covariance over N.
    """
    unit = F.normalize(vectors, dim=-1)
    deviations = unit - unit.mean(dim=-2, keepdim=True)
    products = deviations @ deviations.transpose(-1, -2)  # (..., N, N), which has the same eigenvalues
    total = products.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return (total.square() / products.square().sum(dim=(-2, -1)).clamp(min=1e-12)).mean()


def spread(vectors: Tensor) -> Tensor:
    """Standard deviation of vectors (..., N, F) of unit length over N, times the root of F.

    1 is isotropic and 0 says that all are the same; 1 of a single one, which says nothing.
    """
    if vectors.shape[-2] < 2:
        return vectors.new_ones(())
    return F.normalize(vectors, dim=-1).std(dim=-2).mean() * vectors.shape[-1] ** 0.5
