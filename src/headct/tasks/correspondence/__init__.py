"""The same place in other heads: dense correspondence between scans, by what an encoder sees at each place."""

from __future__ import annotations

from headct.tasks.correspondence.evaluation import Landmarks, Outcome, evaluate, read_landmarks
from headct.tasks.correspondence.job import Found, Search, same_place
from headct.tasks.correspondence.maps import FeatureMap, Head, MapSettings, heads_of, one_head
from headct.tasks.correspondence.matching import Box, Matches, box_in, places_in

__all__ = [
    "Box",
    "FeatureMap",
    "Found",
    "Head",
    "Landmarks",
    "MapSettings",
    "Matches",
    "Outcome",
    "Search",
    "box_in",
    "evaluate",
    "heads_of",
    "one_head",
    "places_in",
    "read_landmarks",
    "same_place",
]
