"""The objectives by name: one plain table, and what the loop asks of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from headct.encoders import Encoder
from headct.pretraining.dino import Dino, DinoSettings
from headct.pretraining.views import Views

ObjectiveSettings = DinoSettings
"""The union of every objective's settings."""


class Objective(Protocol):
    """An `nn.Module` whose `state_dict` is the whole state of the objective."""

    @property
    def encoder(self) -> Encoder:
        """The encoder that the run is for."""

    def __call__(self, views: Views, step: int, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of step `step` of `steps`, and scalars that monitors watch."""

    def follow(self, step: int, steps: int) -> None:
        """What happens after the optimiser's step, such as moving a teacher."""


@dataclass(frozen=True)
class ObjectiveKind:
    """A named objective: its settings, and what makes it around an encoder."""

    settings: type[ObjectiveSettings]
    make: Callable[[Encoder, Any], Dino]


OBJECTIVES: Mapping[str, ObjectiveKind] = MappingProxyType({"dino": ObjectiveKind(DinoSettings, Dino)})
