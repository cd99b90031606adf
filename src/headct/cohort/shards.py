"""Voxels on disk: many arrays of one shape in one compressed file, each readable alone.

A shard is a Blosc2 array file (`.b2nd`) of shape (n, *shape), which other programs can open. One scan is one chunk,
and one block unless it is very large, compressed with zstd after a byte shuffle, which puts the nearly constant high
bytes of HU together.
`benchmarks/store.py` compares the alternatives.
"""

from __future__ import annotations

import itertools
import math
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from headct.failure import Failure

SHARD_BYTES = 128 << 20
"""A shard is closed with the scan that brings its compressed bytes to this."""
ZSTD_LEVEL = 3
"""On a real head 6 % smaller than 1 for 8 ms more; 5 wins 2 % more for another 9 ms (`benchmarks/store.py`)."""
BLOCK_BYTES = 32 << 20
"""Blosc2 works on a block with three buffers of its size."""
OPEN_SHARDS = 32
"""Files that each reading thread keeps open."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One array, compressed; `crc32` covers the compressed bytes, the type, the shape, and that of a block."""

    shape: tuple[int, ...]
    dtype: str
    chunk: bytes
    crc32: int


def pack(array: np.ndarray) -> Packed:
    """Compress one array of any shape and type."""
    alone = _empty_shard(1, array.shape, array.dtype)
    alone[0] = np.ascontiguousarray(array)
    chunk = alone.schunk.get_chunk(0)
    return Packed(array.shape, array.dtype.str, chunk, _crc32(chunk, array.dtype, array.shape, alone.blocks[1:]))


def shard_bytes(arrays: Iterable[Packed], count: int) -> bytes:
    """The file that holds `count` packed arrays of one shape and type, in order."""
    rest = iter(arrays)
    first = next(rest)
    shard = _empty_shard(count, first.shape, np.dtype(first.dtype))
    for index, packed in enumerate(itertools.chain((first,), rest)):
        assert (packed.shape, packed.dtype) == (first.shape, first.dtype), "a shard holds arrays of one shape and type"
        shard.schunk.update_chunk(index, packed.chunk)
    return shard.to_cframe()


def _empty_shard(count: int, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    return blosc2.uninit(
        (count, *shape),
        dtype=dtype,
        chunks=(1, *shape),
        blocks=(1, *_block(shape, dtype.itemsize)),
        cparams=_compression(),
        contiguous=True,
    )


def _block(shape: tuple[int, ...], itemsize_bytes: int) -> tuple[int, ...]:
    """The whole shape, or a slab of it that is small enough, cut along its first axes."""
    block = list(shape)
    for axis in range(len(block)):
        others_bytes = math.prod(block[:axis] + block[axis + 1 :]) * itemsize_bytes
        block[axis] = max(1, min(block[axis], BLOCK_BYTES // others_bytes))
    return tuple(block)


class Shards:
    """The shards of a folder, opened when first read. Threads and forked processes may read at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._of_thread = threading.local()

    def array(self, name: str, index: int, crc32: int) -> np.ndarray:
        """One array, checked against the checksum of its row. Raises Failure where it is missing or damaged."""
        shard = self._open(name)
        try:
            chunk, dtype, shape, block = shard.schunk.get_chunk(index), shard.dtype, shard.shape[1:], shard.blocks[1:]
            if _crc32(chunk, dtype, shape, block) == crc32:
                return _unpacked(chunk, dtype, shape, block)
        except Exception as error:  # Blosc2 raises whatever damaged bytes provoke in it
            raise self._damaged(name, index) from error
        raise self._damaged(name, index)

    def _open(self, name: str) -> Any:
        opened: OrderedDict[str, Any] = self._of_thread.__dict__.setdefault("opened", OrderedDict())
        if name in opened:
            opened.move_to_end(name)
            return opened[name]
        path = self.folder / name
        if not path.is_file():
            raise Failure(f"shard {path} is missing", do="copy the cohort again as a whole, or ingest again")
        try:
            opened[name] = blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        except Exception as error:  # as above; the metadata even pass through Python's parser
            raise self._damaged(name) from error
        if len(opened) > OPEN_SHARDS:
            opened.popitem(last=False)
        return opened[name]

    def _damaged(self, name: str, index: int | None = None) -> Failure:
        where = f"shard {self.folder / name}" + ("" if index is None else f", scan {index}")
        why = "its bytes are not those that were written"
        return Failure(f"{where} is damaged", why=why, do="copy it again from where it came, or ingest again")


def _compression() -> dict[str, Any]:
    return {
        "codec": blosc2.Codec.ZSTD,
        "clevel": ZSTD_LEVEL,
        "filters": [blosc2.Filter.SHUFFLE],
        "filters_meta": [0],
        "nthreads": 1,
    }


def _crc32(chunk: bytes, dtype: np.dtype, shape: tuple[int, ...], block: tuple[int, ...]) -> int:
    return zlib.crc32(chunk, zlib.crc32(f"{dtype.str} {tuple(shape)} {tuple(block)}".encode()))


def _unpacked(chunk: bytes, dtype: np.dtype, shape: tuple[int, ...], block: tuple[int, ...]) -> np.ndarray:
    """The array of a chunk whose bytes are known to be right, with nothing asked of the file again.

    A chunk holds its blocks one after the other; at the upper ends of the array they are padded.
    """
    grid = tuple(-(-size // part) for size, part in zip(shape, block, strict=True))
    blocks = np.empty((*grid, *block), dtype)
    blosc2.set_releasegil(True)  # else threads that read scans wait for each other
    blosc2.decompress2(chunk, dst=blocks, nthreads=1)
    if math.prod(grid) == 1:
        return blocks.reshape(shape)
    axes = [axis for pair in zip(range(len(grid)), range(len(grid), 2 * len(grid)), strict=True) for axis in pair]
    padded = blocks.transpose(axes).reshape([count * part for count, part in zip(grid, block, strict=True)])
    return np.ascontiguousarray(padded[tuple(slice(size) for size in shape)])
