"""Scans and cohorts to vectors."""

from __future__ import annotations

from headct.embedding.embeddings import Embeddings
from headct.embedding.nearest import neighbours
from headct.embedding.vectors import embed

__all__ = ["Embeddings", "embed", "neighbours"]
