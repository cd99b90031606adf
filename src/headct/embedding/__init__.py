"""Scans and cohorts to vectors and token grids; nothing of training."""

from __future__ import annotations

from headct.embedding.embeddings import Embeddings, embed
from headct.embedding.neighbours import neighbours

__all__ = ["Embeddings", "embed", "neighbours"]
