"""How long a query takes among a million scans, what an approximate search misses, and what an index weighs.

    headct simulate --patients 500 --recipe head-coarse --out virtual
    headct embed virtual --model MODEL --out virtual.parquet
    OMP_NUM_THREADS=1 python benchmarks/retrieve.py virtual.parquet --to 100000 1000000

Real vectors of virtual scans are jittered to the number that is asked for, in one of two ways: along the difference of
two other scans, by up to a third of it, so that the cloud keeps its few directions; or in all directions alike, by a
third of each number's spread, which no encoder does and is the harder case. Queries are made in the same way and are
not in the index. Everything is measured with the threads that the environment allows, in this run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from headct.tasks.retrieval import Gallery, build, of_table
from headct.tasks.retrieval.approximate import library

QUERIES = 200
K = 10


def jittered(vectors: np.ndarray, number: int, how: str, rng: np.random.Generator) -> np.ndarray:
    """So many vectors (number, F) about those that are given."""
    made = np.empty((number, vectors.shape[1]), dtype=np.float32)
    spread = vectors.std(axis=0)
    for start in range(0, number, 50_000):
        block = made[start : start + 50_000]
        block[:] = vectors[rng.integers(0, len(vectors), len(block))]
        if how == "differences":
            first, second = rng.integers(0, len(vectors), (2, len(block)))
            block += rng.uniform(0, 1 / 3, (len(block), 1)).astype(np.float32) * (vectors[first] - vectors[second])
            block += (1e-3 * spread * rng.normal(size=block.shape)).astype(np.float32)
        else:
            block += (spread / 3 * rng.normal(size=block.shape)).astype(np.float32)
    return made


def scans_of(number: int) -> pd.DataFrame:
    ids = [f"{row:08x}" for row in range(number)]
    return pd.DataFrame(
        {"scan_id": ids, "patient_id": ids, "study_id": "", "series_id": "", "thickness_mm": np.arange(number) % 10 / 2}
    )


def milliseconds(search, queries: np.ndarray) -> np.ndarray:
    """Of each query alone."""
    taken = []
    for query in queries:
        begun_s = time.perf_counter()
        search(query[None])
        taken.append(1000 * (time.perf_counter() - begun_s))
    return np.array(taken)


def measure(given: Gallery, number: int, how: str) -> dict[str, object]:
    rng = np.random.default_rng(0)
    vectors, queries = jittered(given.vectors, number, how, rng), jittered(given.vectors, QUERIES, how, rng)
    gallery = Gallery(vectors, scans_of(number), given.model)
    with tempfile.TemporaryDirectory() as folder:
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        index = build(Path(folder) / "index", gallery, search="approximate")
        built_s, built_cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
        del vectors, gallery
        found, exact = index.search(queries, K), index.search(queries, K, exact=True)
        recall = np.mean([len(set(a.rows) & set(b.rows)) / K for a, b in zip(found, exact, strict=True)])
        quick = milliseconds(lambda query: index.search(query, K), queries)
        slow = milliseconds(lambda query: index.search(query, K, exact=True), queries[:20])
        flat = library().IndexFlatIP(queries.shape[1])
        flat.add(np.asarray(index.vectors))
        unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        faiss_flat = milliseconds(lambda query: flat.search(query, K), unit[:20])
        search, sizes = index.about["search"], index.about["bytes"]
        return {
            "scans": number,
            "numbers": queries.shape[1],
            "jitter": how,
            "lists / probes": f"{search['lists']} / {search['probes']}",
            "stated recall@10": search["recall_at_10"],
            "recall@10 of new queries": float(recall),
            "approximate ms (median, 95 %)": f"{np.median(quick):.1f}, {np.quantile(quick, 0.95):.1f}",
            "exact ms": float(np.median(slow)),
            "FAISS flat ms": float(np.median(faiss_flat)),
            "exact / approximate": float(np.median(slow) / np.median(quick)),
            "vectors MB": sizes["vectors.npy"] / 1e6,
            "approximate MB": sizes["approximate.faiss"] / 1e6,
            "build s (CPU s)": f"{built_s:.0f} ({built_cpu_s:.0f})",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path, help="a table of headct embed")
    parser.add_argument("--to", type=int, nargs="+", default=[100_000])
    parser.add_argument("--jitter", nargs="+", default=["differences", "directions"])
    parser.add_argument("--width", type=int, help="so many principal components of the vectors instead of all numbers")
    arguments = parser.parse_args()
    given = of_table(arguments.vectors)
    print(
        f"{len(given):,} real vectors of virtual scans, {given.vectors.shape[1]} numbers, "
        f"by {given.model['architecture']}"
    )
    if arguments.width:
        middle = given.vectors.mean(axis=0)
        *_, directions = np.linalg.svd(given.vectors - middle, full_matrices=False)
        given = Gallery(given.vectors @ directions[: arguments.width].T, given.scans, given.model)
    for number in arguments.to:
        for how in arguments.jitter:
            for name, value in measure(given, number, how).items():
                print(f"{name:>32}  {value:,.3f}" if isinstance(value, float) else f"{name:>32}  {value}", flush=True)
            print()


if __name__ == "__main__":
    main()
