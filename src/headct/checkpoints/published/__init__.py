"""Weights as others publish them: read to the last key, or refused with the names of what does not fit."""

from __future__ import annotations

from headct.checkpoints.published.fm_hct import read_head
from headct.checkpoints.published.reading import Published, read, recognise

__all__ = ["Published", "read", "read_head", "recognise"]
