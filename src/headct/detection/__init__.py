"""Few labels to a `Detector`: probes, trained networks, the few-shot protocol, calibration, and when to doubt."""

from __future__ import annotations

from headct.detection.adapting import Adapted, AdaptSettings, adapt
from headct.detection.detector import Detector

__all__ = ["AdaptSettings", "Adapted", "Detector", "adapt"]
