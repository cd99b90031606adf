"""Whether the more there is of a finding, the more surely it is found: twins, scored by the network of `soundness.py`.

    python benchmarks/soundness.py COHORT... --told --out network.pt
    python benchmarks/severity.py network.pt [--patients 60] [--seed 4242] [--workers 2]

For each finding that is drawn, new patients are scanned with it and without it, all else equal. So their scores differ
by the finding and by what it brings with it, and not by what else the two heads have. Patients in whom it is there but
can hardly be seen, whose label is empty, count too: they are the low end of the scale. Told are the rank correlation of
severity with the difference of the two scores (logits), and the AUROC of scans with the finding against all without it,
by thirds of severity. Mass effect and midline shift are not drawn: they are asked of twins of what brings them about,
and how much there is of them is what the twin without it lacks. Intervals are 95 % by bootstrap over patients.

Every finding has a seed of its own, counted from `--seed`: none that the network has learned from.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from realism import auroc, show  # which lie beside this file
from scipy.stats import rankdata
from soundness import SEVERITY, Told, between, codes_of, cropped, rank_correlation
from threadpoolctl import threadpool_limits

from headct.cohort import executors
from headct.preparing import Prepared, prepare
from headct.preparing.recipe import named
from headct.virtual.findings.lesions import Edema
from headct.virtual.findings.mixture import PREVALENCE
from headct.virtual.job import record_of
from headct.virtual.labels import FINDINGS
from headct.virtual.simulated import Simulation

BROUGHT_BY = {
    "midline_shift": ("iph", "sdh", "edh", "tumor"),
    "mass_effect": ("iph", "sdh", "edh", "tumor"),
}
"""What is not drawn, and the masses that push brain aside; `effaced_ml`, the other way to mass effect, is left out."""
THIRDS = ("least", "middle", "most")


@cache
def network(path: Path) -> Told:
    """Read once in each process, which works on one thread."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    net = Told()
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


@torch.no_grad()
def pair(path: Path, twins: tuple[str, int, int]) -> list[dict[str, Any]]:
    """Two rows, with the finding and without it: labels, severities, scores of all findings. None if rejected."""
    finding, seed, index = twins
    net, recipe = network(path), named("head")
    simulation = Simulation(seed=seed, twin=finding).prepared_by(recipe)
    rows = []
    for simulated in simulation.scans(index):
        prepared = prepare(simulated.scan, recipe)
        if not isinstance(prepared, Prepared):
            return []
        scores = net(cropped(codes_of(prepared.array))[None])[0].tolist()
        told = record_of(simulated) | {f"{name}_score": score for name, score in zip(FINDINGS, scores, strict=True)}
        diffuse = any(isinstance(found, Edema) and found.diffuse for found in simulated.patient.findings)
        rows.append(told | {"twin": finding, "study": simulated.study, "diffuse": diffuse})
    return rows


def pairs(path: Path, seed: int, patients: int, workers: int) -> pd.DataFrame:
    """A row for each pair: the scan with the finding, and in columns that end in `_without` the other one."""
    drawn = [finding for finding in PREVALENCE if finding in SEVERITY]
    wanted = [(finding, seed + number, index) for number, finding in enumerate(drawn) for index in range(patients)]
    rows: list[dict[str, Any]] = []
    with executors.processes(workers) as crew:
        for done, (_, both) in enumerate(crew.results(partial(pair, path), enumerate(wanted)), 1):
            rows += both
            if done % 50 == 0:
                print(f"  {done} of {len(wanted)} pairs", flush=True)
    print(f"{len(wanted) - len(rows) // 2} of {len(wanted)} pairs were rejected by the recipe")
    scans = pd.DataFrame(rows)
    sick, well = (scans[scans["study"] == study] for study in ("with", "without"))
    both_scans = sick.merge(well, on=["twin", "patient_id"], suffixes=("", "_without"), validate="one_to_one")
    return both_scans.sort_values(["twin", "patient_id"])  # workers end in any order


def cases(twins: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame, np.ndarray]]:
    """Each finding, of which kind, with its pairs, and how much of it there is in each.

    Diffuse oedema is the whole brain's, faint and large, and on no scale with patches. Those whom a mass does not move
    at all are left out.
    """
    for finding, measure in SEVERITY.items():
        of = twins[twins["twin"].isin(BROUGHT_BY.get(finding, (finding,)))]
        if finding in BROUGHT_BY:
            of = of[of[measure] > of[f"{measure}_without"]]
            yield finding, "", of, (of[measure] - of[f"{measure}_without"]).to_numpy()
        elif finding == "edema":
            for kind, some in (("patches", of[~of["diffuse"]]), ("diffuse", of[of["diffuse"]])):
                yield finding, kind, some, some[measure].to_numpy()
        else:
            yield finding, "", of, of[measure].to_numpy()


def told(finding: str, kind: str, of: pd.DataFrame, severity: np.ndarray) -> dict[str, object]:
    """A row of the table."""
    high, low = (of[f"{finding}_score{which}"].to_numpy() for which in ("", "_without"))
    third = pd.qcut(rankdata(severity, "ordinal"), 3, labels=False)  # some may be as little as others: not at all

    def area(some: np.ndarray, rows: np.ndarray) -> float:
        chosen = rows[some[rows]]
        return auroc(np.concatenate([high[chosen], low[rows]]), np.arange(len(chosen) + len(rows)) < len(chosen))

    n = len(of)
    areas = {f"AUROC, {name}": between(partial(area, third == i), n) for i, name in enumerate(THIRDS)}
    seen = int((of[finding] == 1).sum())
    return {
        "finding": f"{finding}, {kind}" if kind else finding,
        "severity": SEVERITY[finding],
        "pairs": n,
        "label 1": seen,
        "from": " to ".join(f"{value:.1f}" for value in np.quantile(severity, (0, 1 / 3, 2 / 3, 1))),
        "rho": between(partial(rank_correlation, severity, high - low), n),
    } | areas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", type=Path, help="weights of a network that was told where lesions are")
    parser.add_argument("--patients", type=int, default=60, help="of each finding")
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    started_s = time.perf_counter()
    twins = pairs(options.network, options.seed, options.patients, options.workers)
    show("severity and how surely a finding is found", [told(*case) for case in cases(twins)])
    print(f"{time.perf_counter() - started_s:.0f} s")


if __name__ == "__main__":
    main()
