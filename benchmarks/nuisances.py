"""Whether a finding of fresh patients can be told from anything but itself: tables, air, noise, and what was drawn.

    headct simulate --patients 3000 --seed 990 --out COHORT
    python benchmarks/nuisances.py COHORT [--again 1000] [--threads 1]

Learned from one half of the patients and tested on the other, who share nothing with it: so p values hold, which folds
that share what they learn from do not give. Nothing is held out for a choice, for there is none: the models and what
they are given are those of table (a) of `soundness.py`. A finding is asked for twice: as it was drawn, and by its
label, which may rest on the visit a little, since what noise hides is left empty. Intervals are 95 % by bootstrap over
the patients tested; p is that of Mann and Whitney, one-sided, corrected by Holm over everything in the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from realism import show
from scipy.stats import mannwhitneyu
from soundness import (  # which lies beside this file
    DRAWN,
    boosted,
    count,
    drawn_of,
    features_of,
    labels_of,
    linear,
    measured,
    noise_of,
    scanners_of,
    simulation_of,
)
from threadpoolctl import threadpool_limits

from headct import Cohort
from headct.evaluation.comparison import holm
from headct.virtual.labels import FINDINGS
from headct.virtual.simulated import Simulation

ALL = ("table", "air", "visit", "patient")
FEWEST = 20
"""With a finding, and without it, in either half; of fewer nothing can be said."""


def nuisances_of(cohort: Cohort, again: int) -> dict[str, np.ndarray]:
    """Features (n, some) by name; noise, of those who are taken again, has no numbers for the others."""
    told = drawn_of(simulation_of(cohort), map(Simulation.index_of, labels_of(cohort)["patient_id"]))
    features = {
        "table": scanners_of([cohort]).fillna(-1).to_numpy(),
        "air": np.array([features_of(cohort.array(scan_id))["air"] for scan_id in cohort]),
        "visit": told["visit"],
        "patient": told["patient"],
    }
    features["all"] = np.hstack([features[name] for name in ALL])
    return features | ({"noise": noise_of(cohort, again)} if again else {})


def truth_of(cohort: Cohort) -> dict[tuple[str, str], np.ndarray]:
    """Which patients have a finding (n,), by its name and by how it is known: `drawn`, or by its `label`, maybe NaN."""
    table, simulation = labels_of(cohort), simulation_of(cohort)
    patients = [simulation.patient(Simulation.index_of(name)) for name in table["patient_id"]]
    has = [{finding.name for finding in patient.findings} for patient in patients]
    drawn = {(name, "drawn"): np.array([float(name in one) for one in has]) for name in DRAWN}
    return drawn | {(name, "label"): table[name].to_numpy(dtype=float) for name in FINDINGS}


def asked(make: Callable[[], Any], x: np.ndarray, truth: np.ndarray, tested: np.ndarray) -> tuple[str, float] | None:
    """AUROC with interval among the patients tested, and p; None where too few of either kind are left."""
    known = np.isfinite(truth) & np.isfinite(x).all(axis=1)
    seen, unseen = known & ~tested, known & tested
    if min(np.bincount(truth[half].astype(int), minlength=2).min() for half in (seen, unseen)) < FEWEST:
        return None
    score, label = make().fit(x[seen], truth[seen]).predict_proba(x[unseen])[:, 1], truth[unseen]
    p = mannwhitneyu(score[label == 1], score[label == 0], alternative="greater").pvalue
    return measured(score, label), float(p)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--again", type=count, default=1000, help="scans taken twice, for noise by itself")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    cohort = Cohort(options.cohort)
    if (scans := cohort.scans)["patient_id"].duplicated().any():
        parser.error("one scan of each patient is wanted")
    tested = np.random.default_rng(0).permutation(len(scans)) < len(scans) // 2
    runs = [(name, boosted) for name in (*ALL, *["noise"] * bool(options.again))] + [("all", linear), ("all", boosted)]
    print(f"{len(scans)} patients are read, {options.again} taken again; this takes minutes", flush=True)
    features, truth = nuisances_of(cohort, options.again), truth_of(cohort)
    print(f"models of {len(truth)} findings and labels are learned", flush=True)
    told = {
        (*what, f"{name}, {make.__name__}"): asked(make, features[name], values, tested)
        for what, values in truth.items()
        for name, make in runs
    }
    found = {key: value for key, value in told.items() if value is not None}
    if not found:
        raise SystemExit(f"no finding is there in {FEWEST} patients of either half, or lacks in as many: simulate more")
    p = holm({key: value[1] for key, value in found.items()})
    rows = []
    for finding, how in truth:
        mine = {key[2]: key for key in found if key[:2] == (finding, how)}
        values = truth[finding, how][tested]
        row: dict[str, Any] = {"finding": finding, "by": how, "n": int(np.isfinite(values).sum())}
        row |= {"pos": int(np.nansum(values))} | {name: found[key][0] for name, key in mine.items()}
        rows.append(row | {"least p": f"{min((p[key] for key in mine.values()), default=np.nan):.2g}"})
    lows = np.array([float(value.partition("(")[2].partition(" ")[0]) for value, _p in found.values()])
    show(
        f"AUROC among {tested.sum()} patients, learned from {(~tested).sum()} others",
        rows,
        f"noise: {np.isfinite(features['noise'][tested]).all(axis=1).sum() if options.again else 0} of those tested",
        f"least p of all {len(p)} after Holm: {min(p.values()):.2g}; {(lows > 0.5).sum()} intervals lie above 0.5, "
        f"chance gives {0.025 * len(p):.0f}",
    )


if __name__ == "__main__":
    main()
