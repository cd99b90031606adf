"""Shards give back exactly what was packed, in any program that reads Blosc2, and never anything else.

Oracle: `blosc2.open(...)[i]`, the library's own way to read an array file, which our reader does not use.
"""

from __future__ import annotations

import threading
from pathlib import Path

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headct.cohort import shards as shards_module
from headct.cohort.shards import Packed, Shards, pack, shard_bytes
from headct.failure import Failure


def heads(count: int, dtype: str = "int16", shape: tuple[int, ...] = (12, 14, 10)) -> list[np.ndarray]:
    generator = np.random.default_rng(7)
    return [(generator.normal(30, 400, shape)).astype(dtype) for _ in range(count)]


def written(folder: Path, arrays: list[np.ndarray]) -> list[Packed]:
    packed = [pack(array) for array in arrays]
    (folder / "000000.b2nd").write_bytes(shard_bytes(packed, len(packed)))
    return packed


@pytest.mark.parametrize("dtype", ["int16", "float16", "float32"])
def test_every_array_comes_back_by_our_reader_and_by_the_library(tmp_path: Path, dtype: str) -> None:
    arrays = heads(5, dtype)
    packed = written(tmp_path, arrays)
    shards, library = Shards(tmp_path), blosc2.open(str(tmp_path / "000000.b2nd"), mode="r")
    assert library.shape == (5, 12, 14, 10)
    assert library.chunks == library.blocks == (1, 12, 14, 10)
    for index in (3, 0, 4, 2, 1):
        got = shards.array("000000.b2nd", index, packed[index].crc32)
        assert got.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(got, arrays[index])
        np.testing.assert_array_equal(library[index], arrays[index])


@settings(max_examples=30, deadline=None)
@given(
    array=hnp.arrays(
        dtype=st.sampled_from(["int16", "float16", "float32"]),
        shape=hnp.array_shapes(min_dims=3, max_dims=4, max_side=9),
    )
)
def test_any_array_of_any_shape(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    folder = tmp_path_factory.mktemp("shard")
    (packed,) = written(folder, [array])
    got = Shards(folder).array("000000.b2nd", 0, packed.crc32)
    assert got.tobytes() == array.tobytes()  # also the bits of not-a-number
    assert got.shape == array.shape


@pytest.mark.parametrize("block_bytes", [100, 999, 5000])
def test_a_large_array_is_cut_into_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(shards_module, "BLOCK_BYTES", block_bytes)
    arrays = heads(2, "float32", (1, 13, 11, 7))
    packed = written(tmp_path, arrays)
    opened = blosc2.open(str(tmp_path / "000000.b2nd"), mode="r")
    assert np.prod(opened.blocks) * 4 <= block_bytes
    for index in range(2):
        np.testing.assert_array_equal(Shards(tmp_path).array("000000.b2nd", index, packed[index].crc32), arrays[index])


def test_the_bytes_depend_on_the_arrays_only() -> None:
    arrays = heads(4)
    once = shard_bytes([pack(a) for a in arrays], 4)
    again = shard_bytes((pack(np.asfortranarray(a)) for a in arrays), 4)
    assert once == again


def test_no_damage_goes_unnoticed(tmp_path: Path) -> None:
    """One bit of the file is flipped, everywhere in turn: each scan is either whole or refused."""
    arrays = heads(3, shape=(6, 5, 4))
    packed = written(tmp_path, arrays)
    whole = (tmp_path / "000000.b2nd").read_bytes()
    refused = 0
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        (tmp_path / "damaged.b2nd").write_bytes(damaged)
        shards = Shards(tmp_path)
        for index in range(3):
            try:
                got = shards.array("damaged.b2nd", index, packed[index].crc32)
            except Failure:
                refused += 1
            else:
                np.testing.assert_array_equal(got, arrays[index])
    assert refused > len(whole) // 6


@pytest.mark.parametrize("left", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_shard_is_refused(tmp_path: Path, left: float) -> None:
    packed = written(tmp_path, heads(3))
    path = tmp_path / "000000.b2nd"
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    with pytest.raises(Failure, match="damaged"):
        Shards(tmp_path).array("000000.b2nd", 2, packed[2].crc32)


def test_a_swapped_scan_is_refused(tmp_path: Path) -> None:
    packed = written(tmp_path, heads(2))
    with pytest.raises(Failure, match="scan 0 is damaged"):
        Shards(tmp_path).array("000000.b2nd", 0, packed[1].crc32)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"000007\.b2nd is missing"):
        Shards(tmp_path).array("000007.b2nd", 0, 0)


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    arrays = heads(8, shape=(40, 40, 40))
    packed = written(tmp_path, arrays)
    shards, wrong = Shards(tmp_path), []

    def read(seed: int) -> None:
        for index in np.random.default_rng(seed).integers(0, 8, 60):
            if not np.array_equal(shards.array("000000.b2nd", index, packed[index].crc32), arrays[index]):
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
