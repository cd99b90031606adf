"""What an answer rests on: maps of a scan, each with whether it is true to the detector and where the lesion lies."""

from __future__ import annotations

from headct.tasks.explanation.job import Explained, Explanation, Settings, explain
from headct.tasks.explanation.maps import METHODS, Map
from headct.tasks.explanation.truth import read_mask

__all__ = ["METHODS", "Explained", "Explanation", "Map", "Settings", "explain", "read_mask"]
