"""Scans and cohorts to vectors, by an encoder that was trained before."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from headct import checkpoints
from headct.checkpoints import PretrainedEncoder
from headct.embedding.embeddings import REJECTIONS, Embeddings
from headct.embedding.inputs import IDS, Inputs, Items, Job, Reading, Ready, Refused, count, stream
from headct.embedding.machine import Machine, choose
from headct.encoders import Features, Grid
from headct.failure import Misuse
from headct.reading import Criteria

Progress = Callable[[int, int | None], None]
"""Called with how many inputs are done and, once known, how many there are."""

IDLE = 32
"""After so many inputs that give no array a batch is not waited for: what became of them is told and kept.

A number and not a time, so that the same inputs make the same batches, and these the same last bits.
"""


def embed(
    inputs: Inputs,
    model: PretrainedEncoder | str | os.PathLike[str],
    *,
    batch_size: int = 8,
    tokens: bool = False,
    workers: int = 1,
    precision: str | None = None,
    device: str | None = None,
    criteria: Criteria | None = None,
    key: bytes | None = None,
    keep_ids: bool = False,
    progress: Progress | None = None,
) -> Embeddings:
    """Vectors of scans, pooled as the encoder's settings say, in the order of the input.

    `inputs` are paths of files, folders, archives or cohorts, scans, cohorts, what `headct.read` gives, or a mix. Files
    are taken as far as they meet the `criteria` (None: the default ones, as in `headct ingest`), and prepared by the
    model's recipe; of a scan in memory only the head is judged; a cohort must have been prepared by that recipe. The
    column `input` of both tables is the position in `inputs` (from 0) of what a row came from. Identifiers of files
    become pseudonyms as in `headct.read`, so that they are those of a cohort that was ingested with the same `key` or
    `keep_ids`. These three are for files: a cohort keeps what it was ingested with. What cannot be embedded is in
    `rejections`, never a row of zeros. Where paths and cohorts overlap, a scan has one row, the first.

    The encoder runs on `device` (None: a GPU if there is one) in `precision`: fp32 (None), bf16, or "auto", which takes
    bf16 where the machine has units for it; an exported graph runs on the CPU in its own. Vectors do not depend on
    `batch_size` (beyond the last bits) or `workers`. All are held in memory; `headct embed` writes them as they come.
    A `model` that was loaded before is moved to that device and left in evaluation mode, as after `.to()` and
    `.eval()`. Raises Misuse where a cohort has another recipe, or an input is none of these.
    """
    encoder = model if isinstance(model, PretrainedEncoder) else checkpoints.load(model)
    machine = choose(precision, device, graph=encoder.runtime)
    reading = Reading(recipe=encoder.recipe, criteria=criteria or Criteria(), key=key, keep_ids=keep_ids)
    return gathered(
        encoder,
        machine,
        look(
            encoder, inputs, reading, machine, batch_size=batch_size, workers=workers, tokens=tokens, progress=progress
        ),
        tokens=tokens,
    )


def gathered(
    encoder: PretrainedEncoder, machine: Machine, batches: Iterable[Looked], *, tokens: bool = False
) -> Embeddings:
    """All that was seen."""
    seen = list(batches)
    rows = [row for one in seen for row in one.ids]
    met = Counter(name for one in seen for name in one.met)
    kept = first_of_each(map(identity, rows))

    def joined(arrays: Iterable[np.ndarray | None], shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
        whole = _joined([array for array in arrays if array is not None], shape, dtype)
        return whole if len(kept) == len(rows) else whole[kept]

    return Embeddings(
        table=_table([rows[index] for index in kept], (*IDS, "files")),
        vectors=joined((one.vectors for one in seen), (encoder.scan_width,)),
        tokens=joined((one.tokens for one in seen), (0, 0)) if tokens else None,
        rejections=_table([row for one in seen for row in one.rejections], REJECTIONS.names),
        grid=next((one.grid for one in seen if one.grid), None),
        token_affines=joined((one.token_affines for one in seen), (4, 4), np.float64) if tokens else None,
        model=about(encoder, machine),
        repeated=sum(met[row["job"]] for row in rows) - len(kept),
    )


def identity(row: Mapping[str, Any]) -> str:
    """What rows of one scan share, by a row of `Looked.ids`; one that is wanted as often as it is given has its own."""
    return f"job {row['job']}" if row["one_for_one"] else row["scan_id"]


def first_of_each(names: Iterable[str]) -> list[int]:
    """Where each name comes up for the first time."""
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        first.setdefault(name, index)
    return list(first.values())


def about(encoder: PretrainedEncoder, machine: Machine) -> dict[str, str]:
    """What made the vectors, as it is stored with them: two that differ in it are not to be compared."""
    return {
        "architecture": encoder.architecture,
        "sha256": encoder.sha256,
        "decisive_sha256": encoder.decisive_sha256,
        "recipe": encoder.recipe.id,
        "device": machine.device.type,
        "precision": machine.precision,
    }


@dataclass
class Looked:
    """A batch that the encoder has seen: the names of its jobs, and what became of them."""

    met: list[str] = field(default_factory=list)  # names of all its jobs, in the order of the input; some again
    names: list[str] = field(default_factory=list)  # of these, those that were not done before
    ready: list[tuple[Job, Ready]] = field(default_factory=list)
    refused: list[tuple[Job, Refused]] = field(default_factory=list)
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # (B, F)
    tokens: np.ndarray | None = None  # (B, N, W), if asked for
    grid: Grid | None = None
    token_affines: np.ndarray = field(default_factory=lambda: np.zeros((0, 4, 4)))  # (B, 4, 4), token to RAS mm

    @property
    def ids(self) -> list[dict[str, Any]]:
        """A row for each scan, by `IDS`, `files`, `input`, and what its job is: `job`, `of_cohort`, `one_for_one`."""
        return [
            {
                **ready.ids,
                "files": list(ready.files),
                "input": job.input,
                "job": job.name,
                "of_cohort": job.of_cohort,
                "one_for_one": job.one_for_one,
            }
            for job, ready in self.ready
        ]

    @property
    def rejections(self) -> list[dict[str, Any]]:
        """A row for each rejection, by the columns of `REJECTIONS`, `input`, and `job`, the name of its job."""
        return [
            {
                "scan_id": one.scan_id,
                "code": one.rejection.code,
                "sentence": one.rejection.sentence,
                "remedy": one.rejection.remedy,
                "files": list(one.rejection.files),
                "input": job.input,
                "job": job.name,
            }
            for job, one in self.refused
        ]


def look(
    encoder: PretrainedEncoder,
    inputs: Inputs,
    reading: Reading,
    machine: Machine,
    *,
    batch_size: int,
    workers: int,
    tokens: bool = False,
    done: Collection[str] = (),
    grid: Grid | None = None,
    progress: Progress | None = None,
) -> Iterator[Looked]:
    """Batch after batch, each with all that was seen since the one before; those that are `done` are passed over.

    The encoder is moved to the machine's device and left in evaluation mode. `grid` is that of tokens made before.
    Raises Misuse where token grids would differ in shape.
    """
    if batch_size < 1 or workers < 1:
        raise Misuse(f"batch_size and workers must be at least 1, got {batch_size} and {workers}")
    encoder = encoder.eval().to(machine.device)
    total, finished = count(inputs), 0
    for batch in _batches(stream(inputs, reading, workers=workers, done=done), batch_size):
        if batch.ready:
            arrays = [ready for _, ready in batch.ready]
            features = _features(encoder, arrays, machine)
            batch.vectors = features.scan.float().cpu().numpy()
            if tokens:
                grid = batch.grid = _same_grid(grid, features.grid, arrays[0])
                batch.tokens = features.tokens.float().cpu().numpy()
                batch.token_affines = np.stack([_token_affine(encoder, ready) for ready in arrays])
        finished += len(batch.met)
        if progress:
            progress(finished, total)
        yield batch


def _batches(done: Iterable[tuple[Job, Items | None]], size: int) -> Iterator[Looked]:
    """Runs of at most `size` arrays of one shape and of `IDLE` jobs without one, with what was refused among them."""
    batch = Looked()
    for job, items in done:
        new = [(job, one) for one in items or () if isinstance(one, Ready)]
        other = bool(batch.ready and new) and new[0][1].array.shape != batch.ready[0][1].array.shape
        if len(batch.ready) == size or other or len(batch.met) - len(batch.ready) == IDLE:
            yield batch
            batch = Looked()
        batch.met.append(job.name)
        if items is not None:
            batch.names.append(job.name)
            batch.ready += new
            batch.refused += [(job, one) for one in items if isinstance(one, Refused)]
    if batch.met:
        yield batch


def _features(encoder: PretrainedEncoder, batch: list[Ready], machine: Machine) -> Features:
    arrays = torch.from_numpy(np.stack([ready.array for ready in batch])).to(machine.device)
    spacing_mm = torch.from_numpy(np.stack([ready.spacing_mm for ready in batch])).to(machine.device, torch.float32)
    with torch.inference_mode(), machine.arithmetic():
        return encoder.see(arrays, spacing_mm)


def _token_affine(encoder: PretrainedEncoder, ready: Ready) -> np.ndarray:
    """The matrix from a token's place (i, j, k) in the grid to RAS mm."""
    x, y, z = ready.array.shape[-3:]
    lattice = encoder.lattice((x, y, z))
    to_voxel = np.diag([*lattice.step, 1.0])
    to_voxel[:3, 3] = lattice.first
    return ready.affine @ to_voxel


def _same_grid(before: Grid | None, now: Grid, ready: Ready) -> Grid:
    if before is not None and before != now:
        raise Misuse(
            f"scan {ready.ids['scan_id']} has a token grid of {now}, the ones before {before}",
            why="the recipe gives arrays of different shapes, and token grids are stored as one array",
            do="embed without tokens, or these scans one by one",
        )
    return now


def _table(rows: list[dict[str, Any]], columns: Iterable[str]) -> pd.DataFrame:
    """Rows with text in these columns, and the position of the input in `input`."""
    table = pd.DataFrame(rows, columns=[*columns, "input"])
    return table.astype({"input": np.int64, **{name: str for name in IDS if name in table}})


def _joined(arrays: list[np.ndarray], shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """Arrays one after the other; where there are none, an empty one of such rows."""
    filled = [array for array in arrays if len(array)]
    return np.concatenate(filled) if filled else np.zeros((0, *shape), dtype)
