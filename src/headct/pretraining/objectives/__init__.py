"""The objectives by name: one plain table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from headct.encoders import AnatomyEncoder, Encoder
from headct.failure import Misuse
from headct.pretraining.objectives.dense import Dense, DenseInsert, DenseInsertSettings, DenseSettings
from headct.pretraining.objectives.dino import Dino, DinoSettings
from headct.pretraining.objectives.dinov2 import Dinov2, Dinov2Settings
from headct.pretraining.objectives.hybrid import Hybrid, HybridSettings
from headct.pretraining.objectives.insert import Insert, InsertSettings
from headct.pretraining.objectives.jepa import Jepa, JepaSettings
from headct.pretraining.objectives.mae import Mae, MaeSettings
from headct.pretraining.objectives.mixture import Mixture
from headct.pretraining.objectives.objective import Batch, Objective, Sight, Watched
from headct.pretraining.objectives.rescan import Rescan, RescanSettings
from headct.pretraining.objectives.simclr import Simclr, SimclrSettings
from headct.pretraining.objectives.twin import Twin, TwinSettings

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

ObjectiveSettings = (
    DinoSettings
    | Dinov2Settings
    | SimclrSettings
    | RescanSettings
    | TwinSettings
    | MaeSettings
    | JepaSettings
    | HybridSettings
    | DenseSettings
    | InsertSettings
    | DenseInsertSettings
)
"""The union of every objective's settings; each has a `weight`."""


@dataclass(frozen=True)
class ObjectiveKind:
    """A named objective: its settings, and what makes it around an encoder."""

    settings: type[ObjectiveSettings]
    make: Callable[[Encoder, Any, Sight], Objective]


OBJECTIVES: Mapping[str, ObjectiveKind] = MappingProxyType(
    {
        "dino": ObjectiveKind(DinoSettings, Dino),
        "dinov2": ObjectiveKind(Dinov2Settings, Dinov2),
        "simclr": ObjectiveKind(SimclrSettings, Simclr),
        "rescan": ObjectiveKind(RescanSettings, Rescan),
        "twin": ObjectiveKind(TwinSettings, Twin),
        "mae": ObjectiveKind(MaeSettings, Mae),
        "jepa": ObjectiveKind(JepaSettings, Jepa),
        "hybrid": ObjectiveKind(HybridSettings, Hybrid),
        "dense": ObjectiveKind(DenseSettings, Dense),
        "insert": ObjectiveKind(InsertSettings, Insert),
        "dense-insert": ObjectiveKind(DenseInsertSettings, DenseInsert),
    }
)


def mixture(encoder: Encoder, settings: Mapping[str, ObjectiveSettings], sight: Sight) -> Mixture:
    """The named objectives around one encoder. Raises Misuse where one of them cannot train it, or none all of it."""
    parts = {name: OBJECTIVES[name].make(encoder, one, sight) for name, one in settings.items()}
    maps_used = any(isinstance(part, Dense | Insert | DenseInsert) for part in parts.values())
    if isinstance(encoder, AnatomyEncoder) and encoder.settings.pooling == "inner" and not maps_used:
        raise Misuse(
            f"{' and '.join(parts)} would leave the maps of {encoder.architecture or 'the anatomy encoder'} untrained",
            why='with the pooling "inner" they are no part of the scan vector, which is all that is trained',
            do=f'take the encoder {encoder.settings.inner}, the pooling "anatomy", or dense or insert besides',
        )
    return Mixture(parts, {name: one.weight for name, one in settings.items()})
