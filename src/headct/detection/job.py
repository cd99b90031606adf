"""Prediction as a job: kept as it goes, resumed where it was cut off, written as a table at the end."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headct import __version__
from headct.cohort.journal import Journal, expect_writable, only_writer
from headct.detection.detector import PREDICTIONS, Detector, Judged
from headct.detection.method import Progress, quiet
from headct.embedding.embeddings import REJECTIONS, model_of, partial_of, rejections_path, writing
from headct.embedding.inputs import Inputs, Reading, chosen_by, digest
from headct.embedding.machine import Machine
from headct.embedding.vectors import about
from headct.failure import Misuse

PART_INPUTS, PART_S = 256, 20.0
"""A part is kept when it has so many inputs or is so old: a kill costs no more."""


@dataclass(frozen=True)
class Predicted:
    """What a finished job has written: `rows` of the table, how many scans, rejections by code, scans left out."""

    rows: list[dict[str, Any]]
    scans: int
    rejected: Mapping[str, int]
    repeated: int


def check(out: Path, inputs: Sequence[Path]) -> None:
    """What can be known before the detector is there.

    Raises Misuse where an input is missing, or the output would replace other things; Failure where it cannot be
    written.
    """
    for one in inputs:
        if not os.path.lexists(one):
            raise Misuse(f"there is no file or folder {one}", do="check the path")
    if out.suffix.lower() != ".parquet":
        raise Misuse(
            f"predictions are a Parquet table, and {out} is not called so", do=f"name {out.with_suffix('.parquet')}"
        )
    for final in (out, rejections_path(out)):
        if final.exists() and "detector" not in (model_of(final) or {}):
            raise Misuse(f"{final} is there already, and is no table of predictions", do="name another file")
    expect_writable(out)


def predict_into(
    out: Path,
    inputs: Inputs,
    detector: Detector,
    reading: Reading,
    machine: Machine,
    *,
    batch_size: int = 8,
    workers: int = 1,
    progress: Progress = quiet,
) -> Predicted:
    """Write NAME.parquet (`PREDICTIONS`) and NAME.rejections.parquet, in the order of the input, a scan once.

    Called again with the same arguments after a kill it goes on where it stopped. Raises Misuse where an unfinished
    job at this place was another one; Failure where nothing can be written.
    """
    terms = {
        "detector": detector.sha256,
        **about(detector.encoder, machine),
        **chosen_by(inputs, reading),
        "headct": __version__,
    }
    home = out.with_name(f".{out.name}.predicting")
    with only_writer(home, out):
        parts = _Parts(
            Journal(home / "journal"), {**terms, "inputs": digest(inputs), "columns": " ".join(PREDICTIONS.names)}, out
        )
        met: Counter[str] = Counter()
        for batch in detector.on(machine).judge(
            inputs, reading, machine, batch_size=batch_size, workers=workers, done=parts.done, progress=progress
        ):
            parts.add(batch)
            met.update(batch.met)
        parts.flush()
        found = [parts.rows[name] for name in met if name in parts.rows]
        by_scan = {rows[0]["scan_id"]: rows for rows in reversed(found)}
        order = dict.fromkeys(rows[0]["scan_id"] for rows in found)
        rows = [row for scan_id in order for row in by_scan[scan_id]]
        rejections = [row for row in parts.rejections if row["job"] in met]
        _write(out, rows, rejections, terms)
        parts.journal.remove()
        shutil.rmtree(home, ignore_errors=True)
    repeated = sum(met[name] for name in met if name in parts.rows) - len(order)
    return Predicted(rows, len(order), Counter(str(row["code"]) for row in rejections), repeated)


def _write(out: Path, rows: list[dict[str, Any]], rejections: list[dict[str, Any]], terms: Mapping[str, str]) -> None:
    """Both tables, each put in place when both are whole."""
    metadata = {"headct": json.dumps(dict(terms))}
    finals = {out: (rows, PREDICTIONS), rejections_path(out): (rejections, REJECTIONS)}
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        for final, (content, schema) in finals.items():
            table = pa.Table.from_pylist(content, schema.with_metadata(metadata))
            pq.write_table(table, partial_of(final))
        for final in finals:
            os.replace(partial_of(final), final)


class _Parts:
    """What was judged so far: `rows` by name of the job, `rejections`, and the names of all jobs that are `done`."""

    def __init__(self, journal: Journal, terms: Mapping[str, str], out: Path) -> None:
        self.journal, self.count = journal, 0
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.rejections: list[dict[str, Any]] = []
        self.done: set[str] = set()
        journal.resume(terms, out)
        while (part := journal.get("part", self.count)) is not None:
            self._take(part)
        self._begin()

    def add(self, batch: Judged) -> None:
        """Take a batch in; now and then what has come in is kept."""
        self._new["names"] += batch.names
        self._new["rows"] |= batch.rows
        self._new["rejections"] += batch.rejections
        if len(self._new["names"]) >= PART_INPUTS or time.monotonic() - self._since_s >= PART_S:
            self.flush()

    def flush(self) -> None:
        """Keep what has come in."""
        if self._new["names"]:
            self.journal.put("part", self.count, self._new)
            self._take(self._new)
            self._begin()

    def _take(self, part: Mapping[str, Any]) -> None:
        # A part from before a damaged one may hold what was judged again since; its rows are the same.
        self.rejections += [row for row in part["rejections"] if row["job"] not in self.done]
        self.rows |= part["rows"]
        self.done.update(part["names"])
        self.count += 1

    def _begin(self) -> None:
        self._since_s = time.monotonic()
        self._new: dict[str, Any] = {"names": [], "rows": {}, "rejections": []}
