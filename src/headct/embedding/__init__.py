"""Scans and cohorts to vectors."""

from __future__ import annotations

from headct.embedding.embed import embed
from headct.embedding.embeddings import Embeddings
from headct.embedding.neighbours import neighbours

__all__ = ["Embeddings", "embed", "neighbours"]
