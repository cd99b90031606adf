"""How to keep prepared heads on disk: size, time to write, time to read one at random.

    python benchmarks/store.py [--heads 48] [--shared ../shared]

Heads are the real one in the shared folder, turned a little for each copy so that no two are alike, or phantoms with
noise where that folder is absent. Every store holds the same heads of recipe `head` (96 x 112 x 96 int16), apart from
the cache of FM-HCT, which keeps three windows of 96 x 96 x 96 as float16. One thread; the best of five rounds; files
come from the page cache, so reading is decompression and copying, not the disk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from scipy.ndimage import zoom
from scipy.spatial.transform import Rotation

from headct.cohort.shards import Shards, pack, shard_bytes
from headct.preparing import Prepared, prepare, windows
from headct.reading import read
from headct.scan import Scan
from headct.virtual.phantom import Phantom

REAL = "data/nifti/ge_hispeed_dcm2niix_tilt_eq_1mm.nii.gz"
ROUNDS = 5

Read = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Store:
    """A way to keep arrays: `write` puts them into a folder and returns what reads one of them."""

    name: str
    write: Callable[[list[np.ndarray], Path], Read]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=48)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    arguments = parser.parse_args()
    heads = list(prepared_heads(arguments.heads, arguments.shared))
    cached = [fm_hct_cache(head) for head in heads]
    print(f"{'store':44} {'MB/scan':>8} {'write ms':>9} {'read ms':>8} {'size':>6} {'read':>6}")
    baseline: tuple[float, float] | None = None
    for store, arrays in [(Store("FM-HCT's cache: npy, 3 x float16", npy), cached), *((s, heads) for s in stores())]:
        size_bytes, write_s, read_s = measure(store, arrays)
        baseline = baseline or (size_bytes, read_s)
        ratios = f"{baseline[0] / size_bytes:5.1f}x {baseline[1] / read_s:5.1f}x"
        print(f"{store.name:44} {size_bytes / 1e6:8.3f} {write_s * 1e3:9.2f} {read_s * 1e3:8.3f} {ratios}", flush=True)


def prepared_heads(count: int, shared: Path) -> Iterator[np.ndarray]:
    """Different arrays of the default recipe, from the real head or from phantoms."""
    real = next(iter(read([shared / REAL])), None) if (shared / REAL).exists() else None
    generator = np.random.default_rng(0)
    for seed in range(count):
        scan = real if isinstance(real, Scan) else Phantom(seed).scan(noise_hu=6.0, noise_seed=seed)
        prepared = prepare(turned(scan, generator.normal(0, 4, 3)), "head")
        assert isinstance(prepared, Prepared), prepared
        yield prepared.array


def turned(scan: Scan, angles_deg: np.ndarray) -> Scan:
    """The same voxels with the patient turned."""
    turn = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix().T
    return replace(
        scan,
        origins_mm=scan.origins_mm @ turn,
        row_step_mm=scan.row_step_mm @ turn,
        col_step_mm=scan.col_step_mm @ turn,
    )


def fm_hct_cache(head: np.ndarray) -> np.ndarray:
    """What the published cache holds of a scan: three windows, (3, 96, 96, 96) float16."""
    cube = zoom(head, 96 / np.array(head.shape), order=1)
    return windows.apply(cube, list(windows.WINDOWS.values())).astype(np.float16)


def measure(store: Store, arrays: list[np.ndarray]) -> tuple[float, float, float]:
    """Bytes a scan, seconds to write one, and seconds to read one at random; reads are checked."""
    order = np.random.default_rng(1).permutation(len(arrays))
    with tempfile.TemporaryDirectory() as folder:
        started_s = time.perf_counter()
        read_one = store.write(arrays, Path(folder))
        write_s = (time.perf_counter() - started_s) / len(arrays)
        size_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*")) / len(arrays)
        for index in order:
            assert np.array_equal(read_one(index), arrays[index]), f"{store.name} gave other voxels"
        best_s = float("inf")
        for _ in range(ROUNDS):
            started_s = time.perf_counter()
            for index in order:
                read_one(index)
            best_s = min(best_s, (time.perf_counter() - started_s) / len(arrays))
    return size_bytes, write_s, best_s


def stores() -> Iterator[Store]:
    """All that are compared."""
    yield Store("npy, one file each", npy)
    yield Store("npy memmap of all", memmap)
    yield Store("npz (deflate)", npz)
    shuffle, bitshuffle, zstd, lz4 = (
        blosc2.Filter.SHUFFLE,
        blosc2.Filter.BITSHUFFLE,
        blosc2.Codec.ZSTD,
        blosc2.Codec.LZ4,
    )
    for codec, level, filter_, blocks in [
        (lz4, 5, shuffle, None),
        (zstd, 1, bitshuffle, None),
        (zstd, 5, bitshuffle, None),
        (zstd, 1, shuffle, (1, 32, 56, 48)),
        (zstd, 1, shuffle, None),
        (zstd, 3, shuffle, None),
        (zstd, 5, shuffle, None),
    ]:
        name = f"blosc2 {codec.name.lower()}-{level} {filter_.name.lower()}, {'8 blocks' if blocks else '1 block'}"
        yield Store(name, b2nd(codec, level, filter_, blocks))
    yield Store("a cohort's shard (checksum verified)", cohort_shard)


def npy(arrays: list[np.ndarray], folder: Path) -> Read:
    for index, array in enumerate(arrays):
        np.save(folder / f"{index}.npy", array)
    return lambda index: np.load(folder / f"{index}.npy")


def memmap(arrays: list[np.ndarray], folder: Path) -> Read:
    np.save(folder / "all.npy", np.stack(arrays))
    mapped = np.load(folder / "all.npy", mmap_mode="r")
    return lambda index: np.array(mapped[index])


def npz(arrays: list[np.ndarray], folder: Path) -> Read:
    for index, array in enumerate(arrays):
        np.savez_compressed(folder / f"{index}.npz", hu=array)
    return lambda index: np.load(folder / f"{index}.npz")["hu"]


def b2nd(
    codec: Any, level: int, filter_: Any, blocks: tuple[int, ...] | None
) -> Callable[[list[np.ndarray], Path], Read]:
    """A Blosc2 array file, one chunk each, written and read by the library itself."""
    cparams = {"codec": codec, "clevel": level, "filters": [filter_], "filters_meta": [0], "nthreads": 1}

    def write(arrays: list[np.ndarray], folder: Path) -> Read:
        one = (1, *arrays[0].shape)
        shape, path = (len(arrays), *arrays[0].shape), str(folder / "all.b2nd")
        shard = blosc2.empty(shape, arrays[0].dtype, chunks=one, blocks=blocks or one, cparams=cparams, urlpath=path)
        for index, array in enumerate(arrays):
            shard[index] = array
        opened = blosc2.open(path, mode="r", mmap_mode="r", dparams={"nthreads": 1})
        return lambda index: opened[int(index)]

    return write


def cohort_shard(arrays: list[np.ndarray], folder: Path) -> Read:
    packed = [pack(array) for array in arrays]
    (folder / "000000.b2nd").write_bytes(shard_bytes(packed, len(packed)))
    shards = Shards(folder)
    return lambda index: shards.array("000000.b2nd", int(index), packed[index].crc32)


if __name__ == "__main__":
    main()
