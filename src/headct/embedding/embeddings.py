"""What embedding gives, in memory and on disk."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headct.cohort.journal import refused
from headct.encoders import Grid
from headct.failure import Misuse

TOKENS, ABOUT_TOKENS = "tokens.npy", "tokens.json"
"""Files of a folder of tokens; the latter is written last."""


@dataclass(frozen=True)
class Embeddings:
    """Vectors of n scans, in the order of the input, and why other inputs have none.

    `table` has n rows: scan_id, patient_id, study_id, series_id, input. `rejections` has scan_id (empty where a file
    never became a scan), code, sentence, remedy, files, input. `input` is the position, from 0, of the input.
    """

    table: pd.DataFrame
    vectors: np.ndarray  # (n, F) float32
    tokens: np.ndarray | None  # (n, N, W) float32, N places in the order of `grid` with the third axis fastest
    rejections: pd.DataFrame
    grid: Grid | None  # (nx, ny, nz), if there are tokens
    token_affines: np.ndarray | None  # (n, 4, 4), place (i, j, k) in the grid to RAS mm, if there are tokens
    model: Mapping[str, str]  # architecture, sha256, decisive_sha256, recipe, device, precision

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        tokens = "" if self.tokens is None else f", tokens {self.tokens.shape}"
        made_by = f"{self.model['architecture']} {self.model['sha256'][:8]}"
        return f"Embeddings({self.vectors.shape}{tokens}, {len(self.rejections)} rejected, by {made_by})"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write NAME.parquet (scan_id, vector) and NAME.rejections.parquet beside it; `check_place` says where not."""
        path = Path(path)
        check_place(path)
        with Tables(path, self.model) as tables:
            tables.add_vectors(self.table["scan_id"], self.vectors)
            tables.add_rejections(self.rejections.to_dict("records"))

    def write_tokens(self, folder: str | os.PathLike[str]) -> None:
        """Write tokens.npy (n, N, W), which numpy can map into memory, tokens.json and tokens.parquet."""
        assert self.tokens is not None, "embed with tokens=True"
        assert self.token_affines is not None
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / TOKENS, self.tokens)
        write_places(folder, self.table["scan_id"], self.token_affines, self.grid, self.model)


REJECTIONS = pa.schema(
    [
        ("scan_id", pa.string()),
        ("code", pa.string()),
        ("sentence", pa.string()),
        ("remedy", pa.string()),
        ("files", pa.list_(pa.string())),
    ]
)


def rejections_path(path: Path) -> Path:
    """NAME.rejections.parquet of NAME.parquet."""
    return path.with_name(f"{path.stem}.rejections.parquet")


def check_place(path: Path) -> None:
    """Raises Misuse where tables at `path` would bear a wrong name, or replace what headct did not write."""
    if path.suffix.lower() != ".parquet":
        raise Misuse(
            f"vectors are a Parquet table, and {path} is not called so", do=f"name {path.with_suffix('.parquet')}"
        )
    for final in (path, rejections_path(path)):
        if final.is_dir():
            raise Misuse(f"{final} is a folder", do="name another file")
        if final.exists() and model_of(final) is None:
            do = "name another file, or move that one away"
            raise Misuse(f"{final} is there already, and headct did not write it", do=do)


def model_of(path: Path) -> Mapping[str, str] | None:
    """What a table of ours says of the model that made it; None for any other file, or none."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        about = json.loads(metadata.get(b"headct", b"null"))
    except (pa.ArrowInvalid, ValueError, FileNotFoundError):
        return None
    return about if isinstance(about, dict) else None


JOBS = "headct-jobs"
"""Under this the metadata of a table of vectors has a name for each row; outside the schema, where few look."""


def jobs_of(path: Path) -> list[str]:
    """The names, row by row, that a table of ours was written with; none where it does not say."""
    return (pq.read_metadata(path).metadata or {}).get(JOBS.encode(), b"").decode().split()


VECTORS = pa.schema([("scan_id", pa.string()), ("vector", pa.list_(pa.float32()))])

PLACES = pa.schema([("scan_id", pa.string()), ("affine", pa.list_(pa.float64()))])


class Tables:
    """NAME.parquet and NAME.rejections.parquet, written piece by piece.

    Both are put in place, one after the other, when the block has ended and both are whole; neither where it ends by
    an error. `jobs` has a name for each row of vectors, for `jobs_of`. Raises Failure, with what to do, where the
    system refuses to write.
    """

    def __init__(self, path: Path, model: Mapping[str, str], jobs: Sequence[str] = ()) -> None:
        self._finals = (path, rejections_path(path))
        self._partials = tuple(final.with_name(f".{final.name}.partial") for final in self._finals)
        self._metadata = {"headct": json.dumps(dict(model))}
        self._jobs = {JOBS: " ".join(jobs)}

    def __enter__(self) -> Tables:
        with writing(self._finals[0]):
            self._finals[0].parent.mkdir(parents=True, exist_ok=True)
            self._writers = [
                pq.ParquetWriter(partial, schema.with_metadata(self._metadata))
                for partial, schema in zip(self._partials, (VECTORS, REJECTIONS), strict=True)
            ]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with writing(self._finals[0]):
                self._writers[0].add_key_value_metadata(self._jobs)
                for writer in self._writers:
                    writer.close()
                if kind is None:
                    for partial, final in zip(self._partials, self._finals, strict=True):
                        os.replace(partial, final)
        finally:
            for partial in self._partials:
                partial.unlink(missing_ok=True)

    def add_vectors(self, scan_ids: Iterable[str], vectors: np.ndarray) -> None:
        """Rows of vectors (n, F)."""
        rows = [pa.array(list(scan_ids), pa.string()), flat(vectors, pa.float32())]
        with writing(self._finals[0]):
            self._writers[0].write_table(pa.table(rows, schema=VECTORS.with_metadata(self._metadata)))

    def add_rejections(self, rows: Sequence[Mapping[Any, Any]]) -> None:
        """Rows by the columns of `REJECTIONS`."""
        with writing(self._finals[1]):
            table = pa.Table.from_pylist([dict(row) for row in rows], REJECTIONS.with_metadata(self._metadata))
            self._writers[1].write_table(table)


def write_places(
    folder: Path, scan_ids: Iterable[str], affines: np.ndarray, grid: Grid | None, model: Mapping[str, str]
) -> None:
    """Beside tokens.npy: tokens.json (grid, model) and tokens.parquet (scan_id, affine: 16 numbers, row by row)."""
    about = {"grid": grid, "model": dict(model)}
    rows = [pa.array(list(scan_ids), pa.string()), flat(affines.reshape(len(affines), 16), pa.float64())]
    pq.write_table(pa.table(rows, schema=PLACES), folder / "tokens.parquet")
    (folder / ABOUT_TOKENS).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def flat(rows: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Rows (n, F) as a column of lists, without a copy."""
    starts = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(pa.array(starts), pa.array(rows.reshape(-1), kind))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError in the block becomes a Failure about `path`."""
    try:
        yield
    except OSError as error:
        raise refused(path, error) from error
