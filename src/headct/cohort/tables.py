"""The tables of a cohort: their columns, and how they become bytes that depend on nothing but their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headct.failure import Failure

SCANS = pa.schema(
    [
        ("scan_id", pa.string()),
        ("patient_id", pa.string()),
        ("study_id", pa.string()),
        ("series_id", pa.string()),
        ("site", pa.string()),
        ("source", pa.string()),  # dicom, nifti, nrrd, metaimage
        ("manufacturer", pa.string()),
        ("model", pa.string()),
        ("kernel", pa.string()),
        ("kvp", pa.float64()),
        ("contrast", pa.bool_()),  # empty where nothing says so
        ("age", pa.float64()),  # years
        ("sex", pa.string()),
        ("slices", pa.int32()),
        ("rows", pa.int32()),
        ("cols", pa.int32()),
        ("pixel_mm", pa.float64()),  # the larger of the two distances in the plane
        ("gap_min_mm", pa.float64()),  # gaps: between slices along their normal; empty for a single slice
        ("gap_median_mm", pa.float64()),
        ("gap_max_mm", pa.float64()),
        ("thickness_mm", pa.float64()),
        ("tilt_deg", pa.float64()),
        ("slice_normal", pa.list_(pa.float64(), 3)),  # RAS, unit length
        ("coverage", pa.float64()),  # share of the brain; empty where the recipe does not look for a head
        ("transfer_syntax", pa.string()),
        ("decoder", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("preferred", pa.bool_()),  # the one series of its study to take when only one is taken
        ("shard", pa.string()),  # file in volumes/
        ("index", pa.int32()),  # place in the shard
        ("crc32", pa.int64()),  # of the compressed voxels
        ("affine", pa.list_(pa.float64(), 16)),  # voxel (i, j, k) of the array to RAS mm, row by row
    ]
)
REJECTIONS = pa.schema(
    [("code", pa.string()), ("sentence", pa.string()), ("remedy", pa.string()), ("files", pa.list_(pa.string()))]
)
FILES = pa.schema([("path", pa.string()), ("bytes", pa.int64()), ("outcome", pa.string())])
SEEN = pa.schema([(name, pa.string()) for name in ("path", "root", "place", "stamp", "series", "image")])
"""By which a later ingest knows an input, a file, its image and its series again; hidden in `.ingest/`."""

Row = Mapping[str, Any]


def parquet_bytes(rows: Sequence[Row], schema: pa.Schema) -> bytes:
    """A Parquet file of the rows; an empty table has its columns and their types all the same."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink, compression="zstd", compression_level=3)
    return sink.getvalue().to_pybytes()


def read_table(path: Path, sha256: str | None = None) -> pa.Table:
    """A table of a cohort. Raises Failure where it is missing or its bytes are not those of `sha256`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Failure(f"{path} is missing", do="copy the cohort again as a whole, or ingest again") from None
    if sha256 is not None and digest(data) != sha256:
        why = "its bytes are not those that were written, or an ingest is adding to it right now"
        raise Failure(f"{path} is damaged", why=why, do="try again in a minute; then copy it again, or ingest again")
    # Not pq.read_table: that goes through Arrow's thread pool, which may still hold our bytes when the interpreter
    # ends, and then aborts the process.
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
