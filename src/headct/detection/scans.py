"""The scans of cohorts, or of a batch in memory, by row: what methods are given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.detection.method import Progress, quiet
from headct.embedding.inputs import Reading
from headct.embedding.job import embed_into
from headct.embedding.machine import Machine
from headct.failure import Misuse
from headct.reading import Criteria


@dataclass(frozen=True)
class Held:
    """Scans in memory."""

    held_vectors: np.ndarray  # (n, F)
    held_arrays: np.ndarray | None = None  # (n, ...)
    held_spacing_mm: np.ndarray | None = None  # (n, 3)

    def __len__(self) -> int:
        return len(self.held_vectors)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Vectors (B, F)."""
        return self.held_vectors[rows]

    def arrays(self, rows: np.ndarray) -> np.ndarray:
        """Prepared arrays (B, ...)."""
        assert self.held_arrays is not None, "these scans were held for methods that need vectors alone"
        return self.held_arrays[rows]

    def spacing_mm(self, rows: np.ndarray) -> np.ndarray:
        """Voxel sizes (B, 3)."""
        assert self.held_spacing_mm is not None, "these scans were held for methods that need vectors alone"
        return self.held_spacing_mm[rows]


@dataclass(frozen=True)
class OfCohorts:
    """Some scans of cohorts: vectors in memory, arrays read when they are asked for."""

    held_vectors: np.ndarray  # (n, F)
    places: Sequence[tuple[Cohort, str]]  # (n,) cohort and scan_id

    def __len__(self) -> int:
        return len(self.places)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Vectors (B, F)."""
        return self.held_vectors[rows]

    def arrays(self, rows: np.ndarray) -> np.ndarray:
        """Prepared arrays (B, ...). Raises Misuse where they differ in shape."""
        found = [cohort.array(scan_id) for cohort, scan_id in (self.places[row] for row in rows)]
        if shapes := sorted({array.shape for array in found} - {found[0].shape}):
            raise Misuse(
                f"scans have arrays of {found[0].shape} and {shapes[0]}",
                why="networks are trained on batches of one shape",
                do="choose a recipe with a fixed grid, or the method linear",
            )
        return np.stack(found)

    def spacing_mm(self, rows: np.ndarray) -> np.ndarray:
        """Voxel sizes (B, 3)."""
        affines = np.stack([cohort.affine(scan_id) for cohort, scan_id in (self.places[row] for row in rows)])
        return np.linalg.norm(affines[:, :3, :3], axis=1).astype(np.float32)


def scans_of(
    cohorts: Sequence[Cohort],
    scan_ids: Sequence[str],
    encoder: PretrainedEncoder,
    machine: Machine,
    cache: Path,
    *,
    batch_size: int = 8,
    workers: int = 1,
    progress: Progress = quiet,
) -> OfCohorts:
    """These scans with their vectors, which are kept in the folder `cache`, a table for each cohort and encoder.

    A cohort is embedded as a whole, once; a later call with the same encoder, whatever it is for, finds it there, and
    one that was cut off goes on. Raises Misuse where a cohort has another recipe than the encoder.
    """
    for cohort in cohorts:
        cohort.expect(encoder.recipe)
    place_of: dict[str, tuple[Cohort, str]] = {}
    vector_of: dict[str, np.ndarray] = {}
    before, total = 0, sum(len(cohort) for cohort in cohorts)
    for cohort in cohorts:
        done = _Share(progress, before, total)
        ids, vectors = _embedded(cohort, encoder, machine, cache, batch_size, workers, done)
        for scan_id, vector in zip(ids, vectors, strict=True):
            if scan_id not in place_of:
                place_of[scan_id], vector_of[scan_id] = (cohort, scan_id), vector
        before += len(cohort)
    return OfCohorts(np.stack([vector_of[one] for one in scan_ids]), [place_of[one] for one in scan_ids])


@dataclass(frozen=True)
class _Share:
    """The progress of one cohort among several."""

    progress: Progress
    before: int
    total: int

    def __call__(self, done: int, total: int | None) -> None:
        self.progress(self.before + done, self.total)


def table_of_vectors(cohort: Cohort, encoder: PretrainedEncoder, machine: Machine, cache: Path) -> Path:
    """Where the vectors of a cohort are kept: another table for each encoder, recipe and arithmetic."""
    arithmetic = f"{machine.device.type}-{machine.precision}"
    place = hashlib.sha256(str(cohort.path.resolve()).encode()).hexdigest()[:8]
    made_by = f"{encoder.recipe.id}-{encoder.decisive_sha256[:16]}-{arithmetic}"
    return cache / f"{cohort.path.resolve().name}-{place}-{made_by}.parquet"


def _embedded(
    cohort: Cohort,
    encoder: PretrainedEncoder,
    machine: Machine,
    cache: Path,
    batch_size: int,
    workers: int,
    progress: Progress,
) -> tuple[list[str], np.ndarray]:
    """Ids (n,) and vectors (n, F) of all scans of a cohort."""
    out = table_of_vectors(cohort, encoder, machine, cache)
    reading = Reading(recipe=encoder.recipe, criteria=Criteria(), keep_ids=True)
    embed_into(out, [cohort], encoder, reading, machine, batch_size=batch_size, workers=workers, progress=progress)
    table = pq.read_table(out, columns=["scan_id", "vector"])
    vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return table["scan_id"].to_pylist(), vectors.reshape(len(table), -1)
