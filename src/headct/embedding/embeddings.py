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

TOKENS, TOKEN_PLACES, ABOUT_TOKENS = "tokens.npy", "tokens.parquet", "tokens.json"
"""Files of a folder of tokens; the last is written last."""


@dataclass(frozen=True)
class Embeddings:
    """Vectors of n scans, in the order of the input, and why other inputs have none.

    `table` has n rows: scan_id, patient_id, study_id, series_id, files (none for a scan of a cohort or in memory),
    input. `rejections` has scan_id (empty where a file never became a scan), code, sentence, remedy, files, input.
    `input` is the position, from 0, of the input. A scan that paths or cohorts hold more than once has one row, and
    `repeated` says how often one was left out for that.
    """

    table: pd.DataFrame
    vectors: np.ndarray  # (n, F) float32
    tokens: np.ndarray | None  # (n, N, W) float32, N places in the order of `grid` with the third axis fastest
    rejections: pd.DataFrame
    grid: Grid | None  # (nx, ny, nz), if there are tokens
    token_affines: np.ndarray | None  # (n, 4, 4), place (i, j, k) in the grid to RAS mm, if there are tokens
    model: Mapping[str, str]  # architecture, sha256, decisive_sha256, recipe, device, precision
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        tokens = "" if self.tokens is None else f", tokens {self.tokens.shape}"
        made_by = f"{self.model['architecture']} {self.model['sha256'][:8]}"
        repeated = f", {self.repeated} repeated left out" if self.repeated else ""
        return f"Embeddings({self.vectors.shape}{tokens}, {len(self.rejections)} rejected{repeated}, by {made_by})"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write NAME.parquet (scan_id, vector, where it is from) and NAME.rejections.parquet beside it.

        Raises Misuse where another name is needed, or something else is there.
        """
        path = Path(os.path.expanduser(path))
        check_place(path)
        with Tables(path, self.model) as tables:
            tables.add_vectors(self.table.to_dict("records"), self.vectors)
            tables.add_rejections(self.rejections.to_dict("records"))

    def write_tokens(self, folder: str | os.PathLike[str]) -> None:
        """Write tokens.npy (n, N, W), which numpy can map into memory, tokens.json and tokens.parquet.

        Raises Misuse where there are no tokens, or the folder holds other things.
        """
        if self.tokens is None or self.token_affines is None:
            raise Misuse("there are no tokens to write", do="call headct.embed with tokens=True")
        folder = Path(os.path.expanduser(folder))
        check_token_place(folder)
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
    for final, what in ((path, "vectors"), (rejections_path(path), "rejections of vectors")):
        if final.is_dir():
            raise Misuse(f"{final} is a folder", do="name another file")
        if final.exists() and model_of(final) is None:
            fault = f"is not a table of {what}" if _is_table(final) else "is damaged, or not a table at all"
            raise Misuse(f"{final} is there already, and {fault}", do="name another file, or move that one away")


def check_token_place(folder: Path, *, begun: bool = False) -> None:
    """Raises Misuse where tokens in `folder` would lie among, or replace, what is not ours; some may be `begun`."""
    if folder.exists() and not folder.is_dir():
        raise Misuse(f"{folder} is a file", do="name a folder")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if others := sorted(found - {TOKENS, TOKEN_PLACES, ABOUT_TOKENS, partial_of(folder / TOKENS).name}):
        raise Misuse(f"{folder} holds other things, such as {others[0]}", do="name an empty or a new folder")
    if TOKENS in found and ABOUT_TOKENS not in found and not begun:
        raise Misuse(
            f"{folder / TOKENS} is there already, and no {ABOUT_TOKENS} beside it says what it is",
            do="name another folder, or move that file away",
        )


def partial_of(path: Path) -> Path:
    """Under which name a file is written before it is whole."""
    return path.with_name(f".{path.name}.partial")


def _is_table(path: Path) -> bool:
    try:
        pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return False
    return True


def model_of(path: Path) -> Mapping[str, str] | None:
    """What a table of ours says of the model that made it; None for any other file, or none."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        about = json.loads(metadata.get(b"headct", b"null"))
    except (pa.ArrowException, ValueError, OSError):
        return None
    return about if isinstance(about, dict) else None


JOBS = "headct-jobs"
"""Under this the metadata of a table of vectors has a name for each row; outside the schema, where few look."""


def jobs_of(path: Path) -> list[str]:
    """The names, row by row, that a table of ours was written with; none where it does not say."""
    return (pq.read_metadata(path).metadata or {}).get(JOBS.encode(), b"").decode().split()


VECTORS = pa.schema(
    [
        ("scan_id", pa.string()),
        ("vector", pa.list_(pa.float32())),
        ("patient_id", pa.string()),
        ("study_id", pa.string()),
        ("series_id", pa.string()),
        ("files", pa.list_(pa.string())),
    ]
)

PLACES = pa.schema([("scan_id", pa.string()), ("affine", pa.list_(pa.float64()))])


class Tables:
    """NAME.parquet and NAME.rejections.parquet, written piece by piece.

    Both are put in place, one after the other, when the block has ended and both are whole; neither where it ends by
    an error. `jobs` has a name for each row of vectors, for `jobs_of`. Raises Failure, with what to do, where the
    system refuses to write.
    """

    def __init__(self, path: Path, model: Mapping[str, str], jobs: Sequence[str] = ()) -> None:
        self._finals = (path, rejections_path(path))
        self._partials = tuple(map(partial_of, self._finals))
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

    def add_vectors(self, rows: Sequence[Mapping[Any, Any]], vectors: np.ndarray) -> None:
        """Rows by the other columns of `VECTORS`, and their vectors (n, F)."""
        columns = [
            flat(vectors, pa.float32())
            if field.name == "vector"
            else pa.array([row[field.name] for row in rows], field.type)
            for field in VECTORS
        ]
        with writing(self._finals[0]):
            self._writers[0].write_table(pa.table(columns, schema=VECTORS.with_metadata(self._metadata)))

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
    pq.write_table(pa.table(rows, schema=PLACES), folder / TOKEN_PLACES)
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
