"""Encoders on disk: saved with what they need to be used rightly, loaded strictly."""

from __future__ import annotations

from headct.checkpoints.card import Card
from headct.checkpoints.folder import find, save
from headct.checkpoints.loading import load
from headct.checkpoints.pretrained import PretrainedEncoder
from headct.checkpoints.strict import CheckpointFailure

__all__ = ["Card", "CheckpointFailure", "PretrainedEncoder", "find", "load", "save"]
