"""Learning from scans without labels: views, objectives, one loop."""

from __future__ import annotations

from headct.pretraining.loop import Run, pretrain
from headct.pretraining.settings import (
    PretrainSettings,
    objective_settings,
    read_settings,
    seconds,
    settings_for,
    to_toml,
)

__all__ = [
    "PretrainSettings",
    "Run",
    "objective_settings",
    "pretrain",
    "read_settings",
    "seconds",
    "settings_for",
    "to_toml",
]
