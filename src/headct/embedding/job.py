"""Embedding as a job: written as it goes, in bounded memory, and resumed where it was cut off.

What is done lies in a hidden folder beside the output, part by part, until the whole is put in place at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headct import __version__
from headct.checkpoints import PretrainedEncoder
from headct.cohort.journal import Journal, expect_writable, only_writer
from headct.embedding.embeddings import ABOUT_TOKENS, TOKENS, Tables, check_place, model_of, write_places, writing
from headct.embedding.inputs import Inputs, Reading
from headct.embedding.machine import Machine
from headct.embedding.vectors import Looked, Progress, about, look
from headct.encoders import Grid
from headct.failure import Misuse

PART_INPUTS, PART_S = 256, 20.0
"""A part is kept when it has so many inputs or is so old: a kill costs no more."""


@dataclass(frozen=True)
class Summary:
    """What a finished job has written."""

    scans: int
    kept: int  # of these, from the output that was there
    width: int  # numbers in a vector
    rejected: Mapping[str, int]  # by code


def embed_into(
    out: Path,
    inputs: Inputs,
    encoder: PretrainedEncoder,
    reading: Reading,
    machine: Machine,
    *,
    batch_size: int = 8,
    workers: int = 1,
    tokens: Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Write NAME.parquet and NAME.rejections.parquet (`Embeddings.write`), and token grids into the folder `tokens`.

    Called again with the same arguments it goes on where it stopped, after a kill too. Where the output is there
    already, made by the same model in the same way, a scan of a cohort that is in it is not embedded again. Raises
    Misuse where an unfinished job at this place was another one, or `check` does; Failure where nothing can be written.
    """
    check(out, inputs, tokens)
    terms = _terms(encoder, reading, machine, tokens)
    home = _home(out)
    with only_writer(home):
        parts = _Parts(Journal(home / "journal"), terms, out)
        kept = _Kept(out, terms) if tokens is None else _Kept(None, terms)
        file = None if tokens is None else _TokenFile(tokens / TOKENS, parts.scans)
        batches = look(
            encoder,
            inputs,
            reading,
            machine,
            batch_size=batch_size,
            workers=workers,
            tokens=tokens is not None,
            done=parts.names | kept.names,
            progress=progress,
        )
        for batch in batches:
            if file is not None and batch.tokens is not None:
                file.append(batch.tokens)
            parts.add(batch)
            kept.seen.update(batch.skipped)
        parts.flush()
        rejected: Counter[str] = Counter()
        with Tables(out, terms) as tables:
            for scan_ids, vectors in kept.rows():
                tables.add_vectors(scan_ids, vectors)
            for part in parts:
                tables.add_vectors([row["scan_id"] for row in part["ids"]], _array(part["vectors"]))
                tables.add_rejections(part["rejections"])
                rejected.update(str(row["code"]) for row in part["rejections"])
        if file is not None and tokens is not None:
            file.finish()
            _write_places(tokens, parts, terms)
        parts.journal.remove()
    shutil.rmtree(home, ignore_errors=True)
    return Summary(parts.scans + kept.count, kept.count, encoder.scan_width, rejected)


def check(out: Path, inputs: Inputs, tokens: Path | None = None) -> None:
    """What can be known before the model is there.

    Raises Misuse where an input is missing, or the output would replace what headct did not write; Failure where it
    cannot be written.
    """
    listed = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    for one in listed if isinstance(listed, Sequence) else ():  # an iterator can be gone through only once
        if isinstance(one, str | os.PathLike) and not os.path.lexists(one):
            raise Misuse(f"there is no {one}", do="check the path")
    check_place(out)
    expect_writable(out)
    if tokens is None:
        return
    ours = (tokens / ABOUT_TOKENS).exists() or _home(out).exists()
    if (tokens / TOKENS).exists() and not ours:
        raise Misuse(
            f"{tokens / TOKENS} is there already, and headct did not write it",
            do="name another folder, or move that file away",
        )
    expect_writable(tokens / TOKENS)


def _home(out: Path) -> Path:
    """Where an unfinished job keeps what is done."""
    return out.with_name(f".{out.name}.embedding")


def _terms(encoder: PretrainedEncoder, reading: Reading, machine: Machine, tokens: Path | None) -> dict[str, str]:
    """All that decides what the output holds: kept in it, and compared when the job is called again."""
    criteria = json.dumps(asdict(reading.criteria), sort_keys=True, default=str)
    ids = "kept" if reading.keep_ids else "pseudonyms"
    return {
        **about(encoder, machine),
        "criteria": criteria,
        "ids": ids,
        "tokens": "no" if tokens is None else "yes",
        "headct": __version__,
    }


class _Parts:
    """What has been embedded so far, in the order in which it was."""

    def __init__(self, journal: Journal, terms: Mapping[str, str], out: Path) -> None:
        self.journal, self.count, self.scans = journal, 0, 0
        self.names: set[str] = set()
        journal.sweep()
        before = journal.get("terms", 0)
        if before is None:
            journal.begin()
            journal.put("terms", 0, dict(terms))
        elif before != terms:
            other = [name for name in {*before, *terms} if before.get(name) != terms.get(name)]
            raise Misuse(
                f"an unfinished job at {out} embeds otherwise ({', '.join(sorted(other))})",
                do=f"finish it by the line that began it, or remove {journal.folder.parent} and call this line again",
            )
        self._grid: Grid | None = None
        self._begin()
        while (part := journal.get("part", self.count)) is not None:  # what follows a damaged one is done again
            self.names.update(part["names"])
            self.scans += len(part["ids"])
            self.count += 1

    def add(self, batch: Looked) -> None:
        """Take a batch in; now and then what has come in is kept."""
        self._names += batch.names
        self._ids += batch.ids
        self._vectors += [batch.vectors] if batch.ids else []
        self._affines += [batch.token_affines] if len(batch.token_affines) else []
        self._grid = batch.grid or self._grid
        self._rejections += batch.rejections
        self.scans += len(batch.ids)
        if len(self._names) >= PART_INPUTS or time.monotonic() - self._since_s >= PART_S:
            self.flush()

    def flush(self) -> None:
        """Keep what has come in."""
        if not self._names:
            return
        part = {
            "names": self._names,
            "ids": self._ids,
            "vectors": _plain(self._vectors),
            "affines": _plain(self._affines),
            "grid": self._grid,
            "rejections": self._rejections,
        }
        self.journal.put("part", self.count, part)
        self.count += 1
        self._begin()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The parts that are kept."""
        for number in range(self.count):
            yield self.journal.get("part", number)

    def _begin(self) -> None:
        self._since_s = time.monotonic()
        self._names: list[str] = []
        self._ids: list[dict[str, str]] = []
        self._vectors: list[np.ndarray] = []
        self._affines: list[np.ndarray] = []
        self._rejections: list[dict[str, object]] = []


class _Kept:
    """The vectors of an earlier output, if it was made on the same terms; those whose names are `seen` stay."""

    def __init__(self, path: Path | None, terms: Mapping[str, str]) -> None:
        self._path = path if path is not None and model_of(path) == dict(terms) else None
        self.names: frozenset[str] = frozenset()
        if self._path is not None:
            self.names = frozenset(pq.read_table(self._path, columns=["scan_id"])["scan_id"].to_pylist())
        self.seen: set[str] = set()

    @property
    def count(self) -> int:
        """How many of them stay."""
        return len(self.names & self.seen)

    def rows(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Their ids and vectors, some at a time."""
        if self._path is None:
            return
        wanted = pa.array(sorted(self.names & self.seen), pa.string())
        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(4096):
                chosen = batch.filter(pc.is_in(batch["scan_id"], wanted))
                if len(chosen):
                    vectors = chosen["vector"].flatten().to_numpy(zero_copy_only=False)
                    yield chosen["scan_id"].to_pylist(), vectors.reshape(len(chosen), -1)


class _TokenFile:
    """A .npy file (n, N, W) that grows: its header is written again when n is known. It goes on after `rows` rows."""

    def __init__(self, path: Path, rows: int) -> None:
        self._path, self._rows = path, rows
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if rows == 0 or not path.exists():
                path.unlink(missing_ok=True)

    def append(self, tokens: np.ndarray) -> None:
        """Rows (B, N, W) float32."""
        with writing(self._path):
            if not self._path.exists():
                self._write_header(tokens.shape[1:])
            with self._path.open("r+b") as file:
                _, _, start = _header(file)
                file.seek(start + self._rows * tokens[0].nbytes)
                file.truncate()
                file.write(np.ascontiguousarray(tokens, dtype=np.float32).data)
        self._rows += len(tokens)

    def finish(self) -> None:
        """Make the header say how many rows there are."""
        with writing(self._path):
            if not self._path.exists():
                self._write_header((0, 0))
            with self._path.open("rb") as file:
                shape, _, start = _header(file)
            self._write_header(shape[1:])
            row_bytes = int(np.prod(shape[1:])) * np.dtype(np.float32).itemsize
            os.truncate(self._path, start + self._rows * row_bytes)

    def _write_header(self, shape: tuple[int, ...]) -> None:
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            about = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, *shape)}
            np.lib.format.write_array_header_1_0(file, about)  # it leaves room for a larger first number


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and first byte of the values of a .npy file."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype, file.tell()


def _write_places(folder: Path, parts: _Parts, terms: Mapping[str, str]) -> None:
    ids: list[str] = []
    affines: list[np.ndarray] = [np.zeros((0, 4, 4))]
    grid: Grid | None = None
    for part in parts:
        ids += [row["scan_id"] for row in part["ids"]]
        affines += [_array(part["affines"])] if part["ids"] else []
        grid = grid or part["grid"]
    with writing(folder):
        write_places(folder, ids, np.concatenate(affines), grid, terms)


def _plain(arrays: list[np.ndarray]) -> tuple[bytes, str, tuple[int, ...]]:
    """Arrays one after the other, as a journal may hold them."""
    whole = np.concatenate(arrays) if arrays else np.zeros((0, 0), np.float32)
    return whole.tobytes(), whole.dtype.str, whole.shape


def _array(plain: tuple[bytes, str, tuple[int, ...]]) -> np.ndarray:
    data, dtype, shape = plain
    return np.frombuffer(data, dtype).reshape(shape)
