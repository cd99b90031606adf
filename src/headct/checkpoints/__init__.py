"""Encoders on disk: saved with what they need to be used rightly, loaded strictly."""

from __future__ import annotations

from headct.checkpoints.card import Card
from headct.checkpoints.folder import CheckpointFailure, find, save
from headct.checkpoints.loading import load
from headct.checkpoints.pretrained import PretrainedEncoder

__all__ = ["Card", "CheckpointFailure", "PretrainedEncoder", "find", "load", "save"]
