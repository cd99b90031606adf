"""A .npy file of tokens that grows row by row, over several runs of one job."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headct.embedding.embeddings import partial_of, writing


class TokenFile:
    """A .npy file (n, N, W) float32 that grows: its header is written again when n is known.

    It goes on after `rows` rows, of which `has_rows` says whether they are there; after none it begins anew.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self._path, self._rows = path, rows
        if rows == 0:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)

    def append(self, tokens: np.ndarray) -> None:
        """Rows (B, N, W) float32."""
        with writing(self._path):
            if not self._path.exists():
                self._write_header(tokens.shape[1:])
            with self._path.open("r+b") as file:
                shape, start = _header(file)
                assert shape[1:] == tokens.shape[1:], f"rows {tokens.shape[1:]} after rows {shape[1:]}"
                file.seek(start + self._rows * _row_bytes(shape))
                file.truncate()
                file.write(np.ascontiguousarray(tokens, dtype=np.float32).data)
        self._rows += len(tokens)

    def finish(self, rows: Sequence[int]) -> None:
        """Leave these of the rows, in this order, and make the header say how many there are."""
        with writing(self._path):
            if not self._path.exists():
                self._write_header((0, 0))
            with self._path.open("rb") as file:
                shape, start = _header(file)
            self._write_header(shape[1:])
            os.truncate(self._path, start + self._rows * _row_bytes(shape))
            if list(rows) != list(range(self._rows)):
                self._choose(rows)

    def _choose(self, rows: Sequence[int]) -> None:
        whole = np.load(self._path, mmap_mode="r")
        partial = partial_of(self._path)
        with partial.open("wb") as file:
            _begin(file, (len(rows), *whole.shape[1:]))
            for row in rows:
                file.write(whole[row].tobytes())
        os.replace(partial, self._path)

    def _write_header(self, shape: tuple[int, ...]) -> None:
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            _begin(file, (self._rows, *shape))


def has_rows(path: Path, rows: int, last: int | None) -> bool:
    """Whether a file holds so many rows, of which the last has the checksum `last`: not another file, nor a shorter."""
    try:
        with path.open("rb") as file:
            shape, start = _header(file)
            file.seek(start + (rows - 1) * _row_bytes(shape))
            return zlib.crc32(file.read(_row_bytes(shape))) == last
    except (OSError, ValueError):  # no file, or none of numpy's
        return False


def crc32_of_row(row: np.ndarray) -> int:
    """The checksum of one row (N, W), for `has_rows`."""
    return zlib.crc32(np.ascontiguousarray(row, dtype=np.float32).data)


def _begin(file: Any, shape: tuple[int, ...]) -> None:
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)  # it leaves room for a larger first number


def _header(file: Any) -> tuple[tuple[int, ...], int]:
    """Shape and first byte of the values of a .npy file."""
    np.lib.format.read_magic(file)
    shape, _, _ = np.lib.format.read_array_header_1_0(file)
    return shape, file.tell()


def _row_bytes(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(np.float32).itemsize
