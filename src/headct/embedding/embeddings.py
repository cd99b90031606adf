"""Vectors of scans, from whatever holds them: files, scans in memory, or a cohort."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from headct import checkpoints
from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.failure import Misuse
from headct.preparing import prepare
from headct.reading import Criteria, read
from headct.scan import Rejection, Scan

T = TypeVar("T")

Inputs = Cohort | str | os.PathLike[str] | Scan | Iterable[str | os.PathLike[str] | Scan]
Progress = Callable[[int, int | None], None]

REJECTION_COLUMNS = ("code", "sentence", "remedy", "files")


@dataclass(frozen=True)
class Embeddings:
    """What an encoder makes of scans; row i of `table`, `vectors[i]` and `tokens[i]` belong together.

    `vectors` are float32 (n, F). `tokens`, where asked for, are one array (nx, ny, nz, W) a scan. `rejections` lists
    what could not be embedded: no scan ever becomes a row of zeros.
    """

    table: pd.DataFrame  # scan_id, patient_id, study_id, series_id
    vectors: np.ndarray
    tokens: list[np.ndarray] | None
    rejections: pd.DataFrame

    def write(self, path: Path) -> None:
        """Write `NAME.parquet` (scan_id and the other columns, vector) and `NAME.rejections.parquet` beside it."""
        width = self.vectors.shape[1]
        vector = pa.FixedSizeListArray.from_arrays(pa.array(self.vectors.ravel(), pa.float32()), width)
        table = pa.Table.from_pandas(self.table, preserve_index=False)
        pq.write_table(table.append_column("vector", vector.cast(pa.list_(pa.float32()))), path)
        rejections = pa.Table.from_pandas(self.rejections, schema=_REJECTIONS, preserve_index=False)
        pq.write_table(rejections, path.with_name(path.stem + ".rejections.parquet"))


_REJECTIONS = pa.schema(
    [("code", pa.string()), ("sentence", pa.string()), ("remedy", pa.string()), ("files", pa.list_(pa.string()))]
)


def embed(
    inputs: Inputs,
    model: str | Path | PretrainedEncoder,
    *,
    batch_size: int = 8,
    tokens: bool = False,
    device: str = "auto",
    criteria: Criteria | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """The vectors of all scans in a cohort, in files and folders, or in memory, by a checkpoint or a loaded encoder.

    Files are read and scans prepared by the encoder's own recipe; a cohort must have been prepared by it. Raises
    Misuse where the recipes disagree. What cannot be embedded is in `rejections`.
    """
    encoder = model if isinstance(model, PretrainedEncoder) else checkpoints.load(model)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    encoder = encoder.to(device).eval()
    rejections: list[Rejection] = []
    rows: list[Mapping[str, str]] = []
    vectors: list[np.ndarray] = []
    grids: list[np.ndarray] = []
    items, total = _items(inputs, encoder, criteria or Criteria(), rejections)
    for batch in _batches(items, batch_size):
        features = _see(encoder, [item.array for item in batch], [item.spacing_mm for item in batch])
        vectors.append(features.scan.float().cpu().numpy())
        rows += [item.row for item in batch]
        if tokens:
            grids += list(features.tokens.float().cpu().numpy().reshape(len(batch), *features.grid, -1))
        if progress is not None:
            progress(len(rows), total)
    return Embeddings(
        table=pd.DataFrame(rows, columns=list(_COLUMNS), dtype="str"),
        vectors=np.concatenate(vectors) if vectors else np.zeros((0, encoder.scan_width), np.float32),
        tokens=grids if tokens else None,
        rejections=pd.DataFrame(
            [[getattr(one, name) for name in REJECTION_COLUMNS] for one in rejections], columns=list(REJECTION_COLUMNS)
        ),
    )


@dataclass(frozen=True)
class _Item:
    row: Mapping[str, str]
    array: np.ndarray
    spacing_mm: np.ndarray  # (3,)


_COLUMNS = ("scan_id", "patient_id", "study_id", "series_id")


def _items(
    inputs: Inputs, encoder: PretrainedEncoder, criteria: Criteria, rejections: list[Rejection]
) -> tuple[Iterator[_Item], int | None]:
    """What is to be embedded, one by one, and how many if that is known; rejections are added as they are met."""
    if isinstance(inputs, Scan | str | os.PathLike):
        inputs = [inputs]
    if not isinstance(inputs, Cohort):
        several = list(inputs)
        cohorts = [Path(one) for one in several if not isinstance(one, Scan) and (Path(one) / "cohort.json").is_file()]
        if not cohorts:
            return _prepared(several, encoder, criteria, rejections), None
        if len(several) > 1:
            raise Misuse(f"{cohorts[0]} is a cohort and cannot be mixed with other inputs", do="embed it on its own")
        inputs = Cohort(cohorts[0])
    if inputs.recipe.id != encoder.recipe.id:
        raise Misuse(
            f"cohort {inputs.path} uses recipe {inputs.recipe.id}, the encoder uses {encoder.recipe.id}",
            why="features of differently prepared scans cannot be compared",
            do=f"ingest again with --recipe {encoder.recipe.name}, or choose another model",
        )
    return _stored(inputs), len(inputs)


def _stored(cohort: Cohort) -> Iterator[_Item]:
    for row in cohort.scans[list(_COLUMNS)].to_dict("records"):
        spacing_mm = np.linalg.norm(cohort.affine(row["scan_id"])[:3, :3], axis=0)
        yield _Item({str(name): value for name, value in row.items()}, cohort.array(row["scan_id"]), spacing_mm)


def _prepared(
    inputs: Sequence[Any], encoder: PretrainedEncoder, criteria: Criteria, rejections: list[Rejection]
) -> Iterator[_Item]:
    for number, scan in enumerate(_scans(inputs, criteria)):
        if isinstance(scan, Rejection):
            rejections.append(scan)
            continue
        name = scan.header.scan_id or f"scan-{number}"
        prepared = prepare(
            scan, encoder.recipe, check_head=criteria.check_head, min_coverage=criteria.min_coverage
        )
        if isinstance(prepared, Rejection):
            rejections.append(replace(prepared, files=(name,)))
            continue
        row = {"scan_id": name, **{column: getattr(scan.header, column) for column in _COLUMNS[1:]}}
        yield _Item(row, prepared.array, np.linalg.norm(prepared.affine[:3, :3], axis=0))


def _scans(inputs: Sequence[Any], criteria: Criteria) -> Iterator[Scan | Rejection]:
    """Scans as they are, and those in files; paths are read together, so that a series may span several of them."""
    yield from (one for one in inputs if isinstance(one, Scan))
    paths = [one for one in inputs if not isinstance(one, Scan)]
    if paths:
        yield from read(paths, criteria)


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Up to `size` items of one shape each, in order."""
    waiting: list[_Item] = []
    for item in items:
        if waiting and (len(waiting) == size or item.array.shape != waiting[0].array.shape):
            yield waiting
            waiting = []
        waiting.append(item)
    if waiting:
        yield waiting


@torch.inference_mode()
def _see(encoder: PretrainedEncoder, arrays: Sequence[np.ndarray], spacings_mm: Sequence[np.ndarray]) -> Any:
    device = next(encoder.parameters()).device
    batch = torch.from_numpy(np.stack(arrays)).to(device)
    return encoder.see(batch, torch.from_numpy(np.stack(spacings_mm)).float().to(device))
