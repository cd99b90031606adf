"""Learning from scans without labels: views, objectives, one loop."""

from __future__ import annotations

from headct.pretraining.auto import settings_for
from headct.pretraining.loop import Run, plan_of, pretrain
from headct.pretraining.plan import Plan
from headct.pretraining.settings import PretrainSettings, limits, objective_settings, read_settings, to_pairs, to_toml

__all__ = [
    "Plan",
    "PretrainSettings",
    "Run",
    "limits",
    "objective_settings",
    "plan_of",
    "pretrain",
    "read_settings",
    "settings_for",
    "to_pairs",
    "to_toml",
]
