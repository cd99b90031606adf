"""What embedding gives, in memory and on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headct.encoders import Grid


@dataclass(frozen=True)
class Embeddings:
    """Vectors of n scans, in the order of the input, and why other inputs have none.

    `table` has n rows: scan_id, patient_id, study_id, series_id. `rejections` has scan_id (empty where a file never
    became a scan), code, sentence, remedy, files.
    """

    table: pd.DataFrame
    vectors: np.ndarray  # (n, F) float32
    tokens: np.ndarray | None  # (n, N, W) float32, N places in the order of `grid` with the third axis fastest
    rejections: pd.DataFrame
    grid: Grid | None  # (nx, ny, nz), if there are tokens
    model: Mapping[str, str]  # architecture, sha256, recipe

    def __len__(self) -> int:
        return len(self.vectors)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write NAME.parquet (scan_id, vector) and NAME.rejections.parquet beside it."""
        path = Path(path)
        starts = np.arange(len(self.vectors) + 1, dtype=np.int32) * self.vectors.shape[1]
        vector = pa.ListArray.from_arrays(pa.array(starts), pa.array(self.vectors.reshape(-1)))
        scan_id = pa.array(self.table["scan_id"].astype(str), pa.string())
        _write(pa.table({"scan_id": scan_id, "vector": vector}), path, self.model)
        rejections = pa.Table.from_pandas(self.rejections, schema=REJECTIONS, preserve_index=False)
        _write(rejections, rejections_path(path), self.model)

    def write_tokens(self, folder: str | os.PathLike[str]) -> None:
        """Write tokens.npy (n, N, W), which numpy can map into memory, and tokens.json with scan_id and grid."""
        assert self.tokens is not None, "embed with tokens=True"
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "tokens.npy", self.tokens)
        about = {"scan_id": self.table["scan_id"].tolist(), "grid": self.grid, "model": dict(self.model)}
        (folder / "tokens.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


COLUMNS = ["scan_id", "patient_id", "study_id", "series_id"]

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


def _write(table: pa.Table, path: Path, model: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(table.replace_schema_metadata({"headct": json.dumps(dict(model))}), partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
