"""The objectives by name: one plain table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from headct.encoders import Encoder
from headct.pretraining.objectives.dino import Dino, DinoSettings
from headct.pretraining.objectives.mixture import Mixture
from headct.pretraining.objectives.objective import Batch, Objective, Sight, Watched

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Mixture",
    "Objective",
    "ObjectiveKind",
    "ObjectiveSettings",
    "Sight",
    "Watched",
    "mixture",
]

ObjectiveSettings = DinoSettings
"""The union of every objective's settings; each has a `weight`."""


@dataclass(frozen=True)
class ObjectiveKind:
    """A named objective: its settings, and what makes it around an encoder."""

    settings: type[ObjectiveSettings]
    make: Callable[[Encoder, Any, Sight], Objective]


OBJECTIVES: Mapping[str, ObjectiveKind] = MappingProxyType({"dino": ObjectiveKind(DinoSettings, Dino)})


def mixture(encoder: Encoder, settings: Mapping[str, ObjectiveSettings], sight: Sight) -> Mixture:
    """The named objectives around one encoder."""
    parts = {name: OBJECTIVES[name].make(encoder, one, sight) for name, one in settings.items()}
    return Mixture(parts, {name: one.weight for name, one in settings.items()})
