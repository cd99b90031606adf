"""Whether one finding is seen for itself: a network learns it where many have it, and is tested on twins.

    headct simulate --patients 800 --seed 77 --prevalence fracture=0.5 --out often
    headct simulate --patients 120 --seed 78 --twin fracture --out twins
    python benchmarks/twins.py often twins --finding fracture [--epochs 14]

For findings that are too rare in the cohort of `soundness.py` to say whether its network, which is the one here, could
learn them. Twins are the same patient with and without the finding, all else equal to the voxel, a swollen scalp over
it too; so a score that differs can rest on the finding alone. Told are the AUROC over all scans of the twins, the share
of pairs in which the one with the finding scores higher, with 95 % intervals by bootstrap over patients, and the same
for thirds by visible volume.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from realism import auroc, show  # which lie beside this file
from soundness import CODE_OF, SHAPE, Net, Patients, between, passed, plain_batches, train
from threadpoolctl import threadpool_limits

from headct import Cohort
from headct.virtual.job import VOLUMES
from headct.virtual.labels import FINDINGS


def load(path: Path, finding: str) -> Patients:
    """A cohort of 2 mm in memory, whose labels are those of one finding."""
    cohort = Cohort(path)
    table = pd.read_csv(path / "labels.csv").set_index("scan_id").loc[list(cohort)].reset_index()
    codes = torch.empty((len(cohort), *SHAPE), dtype=torch.uint8)
    for row, scan_id in enumerate(cohort):
        codes[row] = torch.from_numpy(CODE_OF[cohort.array(scan_id).clip(-1024, 3071).astype(np.int32) + 1024])
    labels = np.full((len(table), len(FINDINGS)), np.nan)
    labels[:, FINDINGS.index(finding)] = table[finding]
    return Patients(cohort, list(cohort), table["patient_id"].to_numpy(), table, labels, codes, [], {})


def show_pairs(twins: Patients, scores: np.ndarray, finding: str) -> None:
    """Pairs whose finding is labelled, all and by thirds of its size."""
    told = twins.table.assign(score=scores).sort_values("scan_id")
    sick = told[told[finding] == 1].groupby("patient_id").first()
    well = told[told[finding] == 0].groupby("patient_id").first()
    pairs = sick.merge(well, left_index=True, right_index=True, suffixes=("", "_without"))
    measure = f"{finding}_visible_ml" if finding in VOLUMES else "ventricles_ml"
    third = pd.qcut(pairs[measure], 3, labels=["small", "middle", "large"]).astype(str)
    rows = []
    for name in ("all", "small", "middle", "large"):
        some = pairs[(third == name) | (name == "all")]
        high, low = some["score"].to_numpy(), some["score_without"].to_numpy()

        def area(rows: np.ndarray, high: np.ndarray = high, low: np.ndarray = low) -> float:
            of = np.repeat([True, False], len(rows))
            return auroc(np.concatenate([high[rows], low[rows]]), of)

        def higher(rows: np.ndarray, high: np.ndarray = high, low: np.ndarray = low) -> float:
            return float((high[rows] > low[rows]).mean())

        size = some[measure]
        rows.append(
            {
                "twins": name,
                "pairs": len(some),
                "ml": f"{size.min():.1f} to {size.max():.1f}",
                "AUROC": between(area, len(some)),
                "the one with it scores higher": between(higher, len(some)),
            }
        )
    show(f"{finding}, on twins", rows, f"{len(told) // 2 - len(pairs)} pairs are left out: too little to be seen")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("often", type=Path)
    parser.add_argument("twins", type=Path)
    parser.add_argument("--finding", default="fracture", choices=FINDINGS)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    often, rng, column = load(options.often, options.finding), np.random.default_rng(0), FINDINGS.index(options.finding)
    known = np.flatnonzero(np.isfinite(often.labels[:, column]))
    print(f"learned from {len(known)} patients, {int(np.nansum(often.labels[:, column]))} of them with it")
    steps = options.epochs * (len(known) // 12)
    net = train(Net(), plain_batches(often, known, options.epochs, rng), steps, 3e-3, rng)
    twins = load(options.twins, options.finding)
    show_pairs(twins, passed(net, twins.codes)[:, column], options.finding)
    print(f"{time.process_time():.0f} s of the processor")


if __name__ == "__main__":
    main()
