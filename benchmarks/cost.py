"""What pre-training on many scans costs: preparing, storing, 100 epochs, on 1, 8 and 64 GPUs.

    python benchmarks/cost.py [--measure] [--scans 361663]

Prints the tables of docs/explanation/cost.md. The operations of a scan are counted on DINO's networks; the rates of a
processor are `MEASURED`, which `--measure` takes anew on this machine, in CPU seconds of one thread; a GPU's speed is
its vendor's peak times an assumed share.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from headct.encoders import build
from headct.preparing.windows import WINDOWS
from headct.pretraining.objectives import Sight
from headct.pretraining.objectives.dino import Dino, DinoSettings
from headct.pretraining.plan import duration
from headct.pretraining.speed import PEAKS, operations
from headct.pretraining.views import Seen, ViewSettings

COHORTS = {"FM-HCT's cohort": 361_663, "Ten million": 10_000_000}
EPOCHS, GPUS = 100, (1, 8, 64)
CPU_CORES = 16


@dataclass(frozen=True)
class Rates:
    """CPU seconds of one thread for one scan, and what it takes on disk."""

    prepare_thick_s: float  # 512 x 512 x 40 slices of 5 mm, DICOM, read and prepared (recipe head)
    prepare_thin_s: float  # the same of 200 slices of 0.8 mm
    store_s: float  # packed into a shard
    stored_mb: float  # in a shard, real noise
    read_s: float  # out of a shard, at random, from the page cache
    views_published_s: float  # 2 + 2 views of 96³ by MONAI, as FM-HCT's code does
    views_s: float  # the same views by ours in bfloat16, windows included


MEASURED = Rates(
    prepare_thick_s=0.316,
    prepare_thin_s=0.908,
    store_s=0.033,
    stored_mb=0.726,
    read_s=0.0033,
    views_published_s=0.527,
    views_s=0.046,
)
"""On two cores of a cloud machine that had other work too; nothing here was measured on a GPU."""

SHARES = {"40 %": 0.4, "20 %": 0.2, "FM-HCT, had it never waited": 0.235, "FM-HCT as it ran": 0.0137}
"""Of a GPU's peak in bfloat16. The last two follow from that run's logs: 52 and 3.06 scans a second on each A100."""

RAW_MB = 512 * 512 * 40 * 2 / 1e6
"""Of a series of 40 slices, uncompressed."""

FM_HCT_CACHE_MB = 5.31
"""What a scan takes in that run's cache: three windows of 96³ in float16."""


def flops_a_scan() -> float:
    """Operations of DINO on one scan: ViT-B, patches of 12 voxels, 2 + 2 views of 96³, student, teacher and heads."""
    sight = Sight(ViewSettings(), list(WINDOWS.values()))
    with torch.device("meta"):  # shapes are all that counts
        encoder = build("vit-base", patch=(12, 12, 12), grid=(8, 8, 8))
        dino = Dino(encoder, replace(DinoSettings.published(), published_views=False), sight).train()
        one = Seen(torch.empty(1, 3, 96, 96, 96), torch.empty(1, 3), torch.empty(()))
        learned = operations(lambda: dino.student([one] * 4)[1].sum().backward())
        return learned + operations(lambda: dino.teacher([one] * 2))


def tables(rates: Rates, cohorts: dict[str, int]) -> Iterator[str]:
    """The tables, as Markdown."""
    flops = flops_a_scan()
    yield f"One scan in one step: {flops / 1e12:.2f} TFLOP.\n"
    for name, scans in cohorts.items():
        yield f"## {name}: {scans:,} scans\n"
        yield from _on_processors(rates, scans)
        yield from _on_gpus(rates, flops, scans)


def _on_processors(rates: Rates, scans: int) -> Iterator[str]:
    yield f"| once | a scan | CPU hours | on {CPU_CORES} cores |\n| --- | --- | --- | --- |"
    for name, seconds in (
        ("read and prepare, 40 slices", rates.prepare_thick_s),
        ("read and prepare, 200 slices", rates.prepare_thin_s),
        ("pack", rates.store_s),
    ):
        whole = seconds * scans
        yield f"| {name} | {seconds * 1e3:.1f} ms | {whole / 3600:,.1f} | {duration(whole / CPU_CORES)} |"
    ours_gb, theirs_gb = rates.stored_mb * scans / 1e3, FM_HCT_CACHE_MB * scans / 1e3
    read_gb = RAW_MB * scans / 1e3
    yield f"| files of 40 slices at 1 GB/s | {RAW_MB:.1f} ms | | {duration(read_gb)} |"
    yield f"\nStored: {ours_gb:,.0f} GB ({rates.stored_mb:.2f} MB a scan), in FM-HCT's cache {theirs_gb:,.0f} GB.\n"


def _on_gpus(rates: Rates, flops: float, scans: int) -> Iterator[str]:
    whole = flops * scans * EPOCHS
    yield f"{EPOCHS} epochs are {whole / 1e18:,.0f} EFLOP.\n"
    heads = " | ".join(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS)
    yield f"| GPU | share of its peak | scans/s a GPU | cores that read for it | GPU-hours | {heads} |"
    yield "| --- " * (5 + len(GPUS)) + "|"
    for gpu in ("A100", "H100"):
        for name, share in SHARES.items():
            if gpu != "A100" and name.startswith("FM-HCT"):
                continue
            speed = share * PEAKS[gpu]["bf16"]
            seconds, scans_s = whole / speed, speed / flops
            times = " | ".join(duration(seconds / gpus) for gpus in GPUS)
            cores = scans_s * rates.read_s
            yield f"| {gpu} | {name} | {scans_s:.0f} | {cores:.2f} | {seconds / 3600:,.0f} | {times} |"
    built = {"published, MONAI": rates.views_published_s, "ours, bfloat16": rates.views_s}
    needed = "; ".join(f"{name} {cost * 0.4 * PEAKS['H100']['bf16'] / flops:.0f}" for name, cost in built.items())
    yield f"\nCores that build the views of one H100 at 40 %, were they built on processors: {needed}.\n"


# --------------------------------------------------------------------------------------------------------- measuring


def measured() -> Rates:
    """The rates of this machine, the best of some rounds."""
    import prepare as of_preparing
    import pretrain as of_training
    import store as of_storing

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seconds = {}
        for series in (of_preparing.THICK, of_preparing.THIN):
            path = of_preparing.dicom(series.scan(), Path(folder) / str(series.slices))
            seconds[series] = cpu_s(lambda path=path: of_preparing.from_files(path, "head"), rounds=3)
    heads = list(of_storing.prepared_heads(12, Path(__file__).parents[2] / "shared"))
    with tempfile.TemporaryDirectory() as folder:
        read_one = of_storing.cohort_shard(heads, Path(folder))
        bytes_ = sum(path.stat().st_size for path in Path(folder).rglob("*")) / len(heads)
        read_s = cpu_s(lambda: [read_one(index) for index in range(len(heads))], rounds=5) / len(heads)
    store_s = cpu_s(lambda: [of_storing.pack(head) for head in heads], rounds=3) / len(heads)
    rng = np.random.default_rng(0)
    hu = of_training.some_scans(4, rng)
    drawn = [of_training.draws(rng) for _ in range(len(hu))]
    cached = of_training.apply_windows(hu, list(WINDOWS.values())).half()
    return Rates(
        prepare_thick_s=seconds[of_preparing.THICK],
        prepare_thin_s=seconds[of_preparing.THIN],
        store_s=store_s,
        stored_mb=bytes_ / 1e6,
        read_s=read_s,
        views_published_s=cpu_s(lambda: of_training.all_by_monai(cached[0], drawn[0]), rounds=4),
        views_s=cpu_s(lambda: of_training.all_from_hu(hu, drawn, torch.bfloat16), rounds=4) / len(hu),
    )


def cpu_s(run: Callable[[], object], rounds: int) -> float:
    """The least CPU time of several rounds."""
    best_s = float("inf")
    for _ in range(rounds):
        begun_s = time.process_time()
        run()
        best_s = min(best_s, time.process_time() - begun_s)
    return best_s


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="take the rates of this machine")
    parser.add_argument("--scans", type=int, help="of a cohort of your own")
    given = parser.parse_args()
    if given.measure and os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("rates are those of one thread: set OMP_NUM_THREADS=1")
    rates = measured() if given.measure else MEASURED
    for entry in fields(rates) if given.measure else ():
        print(f"{entry.name} = {getattr(rates, entry.name):.5f}")
    for line in tables(rates, COHORTS if given.scans is None else {"your cohort": given.scans}):
        print(line)


if __name__ == "__main__":
    main()
