"""Scans and cohorts to vectors, by an encoder that was trained before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from headct import checkpoints
from headct.checkpoints import PretrainedEncoder
from headct.embedding.embeddings import COLUMNS, REJECTIONS, Embeddings
from headct.embedding.inputs import Inputs, Reading, Ready, Refused, stream
from headct.encoders import Features, Grid
from headct.failure import Misuse
from headct.reading import Criteria

Progress = Callable[[int, int | None], None]
"""Called with how many inputs are done and, once known, how many there are."""


def embed(
    inputs: Inputs,
    model: PretrainedEncoder | str | os.PathLike[str],
    *,
    batch_size: int = 8,
    tokens: bool = False,
    workers: int = 1,
    criteria: Criteria | None = None,
    key: bytes | None = None,
    keep_ids: bool = False,
    progress: Progress | None = None,
) -> Embeddings:
    """Vectors of scans, pooled as the encoder's settings say, in the order of the input.

    `inputs` are paths of files, folders, archives or cohorts, scans, cohorts, or a mix. Files are taken as far as they
    meet the `criteria` (None: the default ones, as in `headct ingest`), and prepared by the model's recipe; of a scan
    in memory only the head is judged; a cohort must have been prepared by that recipe. Identifiers of files become
    pseudonyms as in `headct.read`, so that they are those of a cohort that was ingested with the same `key` or
    `keep_ids`. What cannot be embedded is in `rejections`, never a row of zeros. Vectors do not depend on
    `batch_size` (beyond the last bits) or `workers`. Raises Misuse where a cohort has another recipe.
    """
    if batch_size < 1 or workers < 1:
        raise Misuse(f"batch_size and workers must be at least 1, got {batch_size} and {workers}")
    encoder = model if isinstance(model, PretrainedEncoder) else checkpoints.load(Path(model))
    encoder.eval()
    device = next(encoder.parameters()).device
    rows: list[dict[str, str]] = []
    vectors: list[np.ndarray] = []
    grids: list[np.ndarray] = []
    refused: list[Refused] = []
    grid: Grid | None = None
    done = 0
    reading = Reading(recipe=encoder.recipe, criteria=criteria or Criteria(), key=key, keep_ids=keep_ids)
    for batch in _batches(stream(inputs, reading, workers=workers), batch_size, refused):
        features = _look(encoder, batch, device)
        rows += [ready.ids for ready in batch]
        vectors.append(features.scan.float().cpu().numpy())
        if tokens:
            grid = _same_grid(grid, features.grid, batch[0])
            grids.append(features.tokens.float().cpu().numpy())
        done += len(batch)
        if progress:
            progress(done + len(refused), None)
    return Embeddings(
        table=pd.DataFrame(rows, columns=COLUMNS, dtype=str),
        vectors=np.concatenate(vectors) if vectors else np.zeros((0, encoder.scan_width), np.float32),
        tokens=(np.concatenate(grids) if grids else np.zeros((0, 0, 0), np.float32)) if tokens else None,
        rejections=_rejections(refused),
        grid=grid,
        model={"architecture": encoder.architecture, "sha256": encoder.sha256, "recipe": encoder.recipe.id},
    )


def _batches(items: Iterable[Ready | Refused], size: int, refused: list[Refused]) -> Iterator[list[Ready]]:
    """Runs of arrays of one shape; what was refused is put aside into `refused`."""
    batch: list[Ready] = []
    for item in items:
        if isinstance(item, Refused):
            refused.append(item)
            continue
        if batch and item.array.shape != batch[0].array.shape:
            yield batch
            batch = []
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _look(encoder: PretrainedEncoder, batch: list[Ready], device: torch.device) -> Features:
    arrays = torch.from_numpy(np.stack([ready.array for ready in batch])).to(device)
    spacing_mm = torch.tensor([ready.spacing_mm for ready in batch], dtype=torch.float32, device=device)
    with torch.inference_mode():
        return encoder.see(arrays, spacing_mm)


def _same_grid(before: Grid | None, now: Grid, ready: Ready) -> Grid:
    if before is not None and before != now:
        raise Misuse(
            f"scan {ready.ids['scan_id']} has a token grid of {now}, the ones before {before}",
            why="the recipe gives arrays of different shapes, and token grids are stored as one array",
            do="embed without tokens, or these scans one by one",
        )
    return now


def _rejections(refused: list[Refused]) -> pd.DataFrame:
    rows = [
        {
            "scan_id": one.scan_id,
            "code": one.rejection.code,
            "sentence": one.rejection.sentence,
            "remedy": one.rejection.remedy,
            "files": list(one.rejection.files),
        }
        for one in refused
    ]
    return pd.DataFrame(rows, columns=REJECTIONS.names)
