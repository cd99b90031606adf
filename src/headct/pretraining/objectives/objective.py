"""What an objective is given in a step, and what the loop asks of it. B scans, R rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from headct.encoders import Encoder, Window
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
    """

    scan_ids: tuple[str, ...]
    hu: Tensor
    spacing_mm: tuple[float, float, float]
    partners: Mapping[str, tuple[int, ...]]
    classes: Tensor | None
    template_mm: Tensor | None
    draws: Sequence[Any]

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


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student; buffers, such as BatchNorm's, are copied."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
    for buffer, now in zip(teacher.buffers(), student.buffers(), strict=True):
        buffer.copy_(now)


def over_processes(mean: Tensor) -> Tensor:
    """The mean over all processes of a mean over the batch of each; the tensor itself where there is one process."""
    if dist.is_available() and dist.is_initialized():
        mean = mean.clone()
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean
