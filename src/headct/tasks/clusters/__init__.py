"""Maps of features, and how much of site and scanner is in them beside disease."""

from __future__ import annotations

from headct.tasks.clusters.mapping import Mapped, MapSettings, map_features
from headct.tasks.clusters.places import Places, places_of
from headct.tasks.clusters.projection import Projection, project
from headct.tasks.clusters.separability import Separable, separability

__all__ = [
    "MapSettings",
    "Mapped",
    "Places",
    "Projection",
    "Separable",
    "map_features",
    "places_of",
    "project",
    "separability",
]
