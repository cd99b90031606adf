"""Embedding as a job: written as it goes, in bounded memory, and resumed where it was cut off.

What is done lies in a hidden folder beside the output, part by part, until the whole is put in place at the end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from headct import __version__
from headct.checkpoints import PretrainedEncoder
from headct.cohort.journal import Journal, expect_writable, only_writer
from headct.embedding.embeddings import (
    TOKENS,
    VECTORS,
    Tables,
    check_place,
    check_token_place,
    jobs_of,
    model_of,
    write_places,
    writing,
)
from headct.embedding.inputs import Inputs, Reading, chosen_by, digest
from headct.embedding.machine import Machine
from headct.embedding.token_file import TokenFile, crc32_of_row, has_rows
from headct.embedding.vectors import Looked, Progress, about, first_of_each, identity, look
from headct.encoders import Grid
from headct.failure import Failure, Misuse

PART_INPUTS, PART_S = 256, 20.0
"""A part is kept when it has so many inputs or is so old: a kill costs no more."""
ROWS_AT_ONCE = 4096
"""Vectors that are written together, and lie together in the output."""
OF_FILES = ("criteria", "ids")
"""Terms that change nothing of what an output keeps, which is scans of cohorts."""
ANOTHER = "-"
"""Stands, in an output, for the name of a job that is done again: files are looked at each time."""


@dataclass(frozen=True)
class Summary:
    """What a finished job has written."""

    scans: int
    kept: int  # of these, from the output that was there
    width: int  # numbers in a vector
    rejected: Mapping[str, int]  # by code
    repeated: int = 0  # left out, for another input holds the same scan


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

    Called again with the same arguments it goes on where it stopped, after a kill too; what was done of a file that
    has changed or gone since is left out. Where the output is there already, made by the same model in the same way, a
    scan of a cohort that is in it is not embedded again. Vectors come in the order of the input either way, one for a
    scan, however many inputs hold it. Raises Misuse where an unfinished job at this place was another one, or
    `check` does; Failure where nothing can be written, or the tokens of an unfinished job are gone.
    """
    check(out, inputs, tokens)
    terms = _terms(encoder, inputs, reading, machine, tokens)
    home = _home(out)
    with only_writer(home, out):
        asked = {**terms, "inputs": digest(inputs), "tokens": _place_of(tokens)}
        parts = _Parts(Journal(home / "journal"), asked, out)
        kept = _Kept(out if tokens is None else None, terms)
        file = None if tokens is None else _token_file(tokens, parts, home)
        batches = look(
            encoder,
            inputs,
            reading,
            machine,
            batch_size=batch_size,
            workers=workers,
            tokens=tokens is not None,
            done=parts.names | kept.rows.keys(),
            grid=parts.grid,
            progress=progress,
        )
        met: Counter[str] = Counter()  # names, in the order of the input
        for batch in batches:
            if file is not None and batch.tokens is not None:
                file.append(batch.tokens)
            parts.add(batch)
            met.update(batch.met)
        parts.flush()
        scans = [name for name in met if name in parts.rows or name in kept.rows]
        found = [scans[index] for index in first_of_each(parts.scans.get(name) or kept.scans[name] for name in scans)]
        repeated = sum(met[name] for name in scans) - len(found)
        rejected: Counter[str] = Counter()
        lasting = [name if name in kept.rows or name in parts.of_cohorts else ANOTHER for name in found]
        with Tables(out, terms, lasting) as tables:
            for start in range(0, len(found), ROWS_AT_ONCE):
                names = found[start : start + ROWS_AT_ONCE]
                rows = [parts.vector(name) if name in parts.rows else kept.vector(name) for name in names]
                tables.add_vectors([ids for ids, _ in rows], np.stack([vector for _, vector in rows]))
            for part in parts:
                rejections = [row for row in part["rejections"] if row["job"] in met]
                tables.add_rejections(rejections)
                rejected.update(str(row["code"]) for row in rejections)
        if file is not None and tokens is not None:
            file.finish([parts.rows[name] for name in found])
            _write_places(tokens, parts, found, terms)
        parts.journal.remove()
        shutil.rmtree(home, ignore_errors=True)
    before = sum(name not in parts.rows for name in found)
    return Summary(len(found), before, encoder.scan_width, rejected, repeated)


def check(out: Path, inputs: Inputs, tokens: Path | None = None) -> None:
    """What can be known before the model is there.

    Raises Misuse where an input is missing, or the output would replace or lie among other things; Failure where it
    cannot be written.
    """
    listed = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    for one in listed if isinstance(listed, Sequence) else ():  # an iterator can be gone through only once
        if isinstance(one, str | os.PathLike) and not os.path.lexists(os.path.expanduser(one)):
            raise Misuse(f"there is no file or folder {one}", do="check the path")
    check_place(out)
    expect_writable(out)
    if tokens is None:
        return
    if out.parent.resolve() == tokens.resolve():
        raise Misuse(f"tokens need a folder of their own, and {out} lies in {tokens} too", do="name another folder")
    unfinished = Journal(_home(out) / "journal").get("terms", 0) or {}
    check_token_place(tokens, begun=unfinished.get("tokens") == _place_of(tokens))
    expect_writable(tokens / TOKENS)


def _home(out: Path) -> Path:
    """Where an unfinished job keeps what is done."""
    return out.with_name(f".{out.name}.embedding")


def _place_of(tokens: Path | None) -> str:
    return "no" if tokens is None else str(tokens.resolve())


def _remains(home: Path, tokens: str) -> str:
    """What an unfinished job would leave, in words; `tokens` as by `_place_of`."""
    file = Path(tokens) / TOKENS
    return f"{home} and {file}" if file.is_file() else str(home)


def _terms(
    encoder: PretrainedEncoder, inputs: Inputs, reading: Reading, machine: Machine, tokens: Path | None
) -> dict[str, str]:
    """All that decides what becomes of a scan: kept in the output, and compared when the job is called again."""
    return {
        **about(encoder, machine),
        **chosen_by(inputs, reading),
        "tokens": "no" if tokens is None else "yes",
        "headct": __version__,
    }


class _Parts:
    """What has been embedded so far, in the order in which it was.

    `rows` are the numbers, in that order, of the scans that the named jobs gave, `scans` what these are (`identity`),
    `of_cohorts` the names of those that took it from a cohort; `last` is the checksum of the last row of tokens.
    """

    def __init__(self, journal: Journal, terms: Mapping[str, str], out: Path) -> None:
        self.journal, self.count = journal, 0
        self.names: set[str] = set()
        self.rows: dict[str, int] = {}
        self.scans: dict[str, str] = {}
        self.of_cohorts: set[str] = set()
        self.grid: Grid | None = None
        self.last: int | None = None
        self._firsts: list[int] = []  # number of the first row of each part
        self._id = ""  # of the last part
        self._held: tuple[int, dict[str, Any]] = (-1, {})
        unfinished = journal.get("terms", 0) or {}
        journal.resume(terms, out, remains=_remains(journal.folder.parent, unfinished.get("tokens", "no")))
        # What follows a damaged part is done again; parts that came after it stay on disk, and follow no new one.
        while (part := journal.get("part", self.count)) is not None and part["after"] == self._id:
            self._take(part)
        self._begin()

    def add(self, batch: Looked) -> None:
        """Take a batch in; now and then what has come in is kept."""
        self._names += batch.names
        self._ids += batch.ids
        self._vectors += [batch.vectors] if batch.ids else []
        self._affines += [batch.token_affines] if len(batch.token_affines) else []
        self.grid = batch.grid or self.grid
        self.last = self.last if batch.tokens is None else crc32_of_row(batch.tokens[-1])
        self._rejections += batch.rejections
        if len(self._names) >= PART_INPUTS or time.monotonic() - self._since_s >= PART_S:
            self.flush()

    def flush(self) -> None:
        """Keep what has come in."""
        if not self._names:
            return
        part = {
            "id": secrets.token_hex(8),
            "after": self._id,
            "names": self._names,
            "ids": self._ids,
            "vectors": _plain(self._vectors),
            "affines": _plain(self._affines),
            "grid": self.grid,
            "last": self.last,
            "rejections": self._rejections,
        }
        self.journal.put("part", self.count, part)
        self._take(part)
        self._begin()

    def vector(self, name: str) -> tuple[Mapping[str, Any], np.ndarray]:
        """Ids and vector of the scan that this job gave."""
        return self._row(name, "vectors")

    def affine(self, name: str) -> tuple[Mapping[str, Any], np.ndarray]:
        """Ids and (4, 4) matrix from token to RAS mm of the scan that this job gave."""
        return self._row(name, "affines")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The parts that are kept."""
        for number in range(self.count):
            yield self.journal.get("part", number)

    def _row(self, name: str, column: str) -> tuple[Mapping[str, Any], np.ndarray]:
        number, row = _block(self.rows[name], self._firsts)
        if self._held[0] != number:
            self._held = number, self.journal.get("part", number)
        part = self._held[1]
        return part["ids"][row], _array(part[column])[row]

    def _take(self, part: Mapping[str, Any]) -> None:
        self._firsts.append(len(self.rows))
        for row in part["ids"]:
            self.rows[row["job"]] = len(self.rows)
            self.scans[row["job"]] = identity(row)
            self.of_cohorts.update([row["job"]] if row["of_cohort"] else [])
        self.names.update(part["names"])
        self.grid, self.last, self._id = part["grid"], part["last"], part["id"]
        self.count += 1

    def _begin(self) -> None:
        self._since_s = time.monotonic()
        self._names: list[str] = []
        self._ids: list[dict[str, Any]] = []
        self._vectors: list[np.ndarray] = []
        self._affines: list[np.ndarray] = []
        self._rejections: list[dict[str, object]] = []


class _Kept:
    """The vectors of an earlier output, if it was made on the same terms.

    `rows` are their numbers by name of job, `scans` their ids. All are of cohorts, so terms of files do not count.
    """

    def __init__(self, path: Path | None, terms: Mapping[str, str]) -> None:
        self.rows: dict[str, int] = {}
        self.scans: dict[str, str] = {}
        self._held: tuple[int, list[dict[str, Any]], np.ndarray] = (-1, [], np.zeros((0, 0)))
        before = None if path is None else model_of(path)
        if path is None or before is None or _lasting(before) != _lasting(terms):
            return
        if pq.read_schema(path).names != VECTORS.names:  # of an earlier version
            return
        self._path = path
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        self._firsts = np.cumsum([0, *sizes]).tolist()[:-1]
        self.rows = {name: row for row, name in enumerate(jobs_of(path)) if name != ANOTHER}
        scan_ids = pq.read_table(path, columns=["scan_id"])["scan_id"].to_pylist()
        self.scans = {name: scan_ids[row] for name, row in self.rows.items()}

    def vector(self, name: str) -> tuple[Mapping[str, Any], np.ndarray]:
        """Ids and vector of the scan that this job gave."""
        number, row = _block(self.rows[name], self._firsts)
        if self._held[0] != number:
            with pq.ParquetFile(self._path) as file:
                block = file.read_row_group(number)
            vectors = block["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            self._held = number, block.drop_columns("vector").to_pylist(), vectors.reshape(len(block), -1)
        return self._held[1][row], self._held[2][row]


def _lasting(terms: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in terms.items() if name not in OF_FILES}


def _block(row: int, firsts: Sequence[int]) -> tuple[int, int]:
    """The block in which a row lies and its place there, from the first row of each block."""
    number = bisect_right(firsts, row) - 1
    return number, row - firsts[number]


def _token_file(tokens: Path, parts: _Parts, home: Path) -> TokenFile:
    """Raises Failure where it does not hold what the parts say that it does."""
    path = tokens / TOKENS
    if parts.rows and not has_rows(path, len(parts.rows), parts.last):
        raise Failure(
            f"{path} does not hold the tokens that the unfinished job has written there",
            why="it was moved, replaced or cut short since",
            do=f"put it back, or remove {_remains(home, str(tokens))} and call this line again",
        )
    return TokenFile(path, len(parts.rows))


def _write_places(folder: Path, parts: _Parts, names: Sequence[str], terms: Mapping[str, str]) -> None:
    rows = [parts.affine(name) for name in names]
    affines = np.array([affine for _, affine in rows]).reshape(-1, 4, 4)
    with writing(folder):
        write_places(folder, [ids["scan_id"] for ids, _ in rows], affines, parts.grid, terms)


def _plain(arrays: list[np.ndarray]) -> tuple[bytes, str, tuple[int, ...]]:
    """Arrays one after the other, as a journal may hold them."""
    whole = np.concatenate(arrays) if arrays else np.zeros((0, 0), np.float32)
    return whole.tobytes(), whole.dtype.str, whole.shape


def _array(plain: tuple[bytes, str, tuple[int, ...]]) -> np.ndarray:
    data, dtype, shape = plain
    return np.frombuffer(data, dtype).reshape(shape)
