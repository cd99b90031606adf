"""Weights as others publish them: read to the last key, or refused with the names of what does not fit."""

from __future__ import annotations

from headct.checkpoints.published.ct_fm import Segmentation, read_segmentation
from headct.checkpoints.published.fm_hct import read_head
from headct.checkpoints.published.reading import Published, read, recognise

__all__ = ["Published", "Segmentation", "read", "read_head", "read_segmentation", "recognise"]
