"""Whether the more there is of a finding, the more surely it is found: twins, scored by the network of `soundness.py`.

    python benchmarks/soundness.py COHORT... --told --out network.pt
    python benchmarks/severity.py network.pt [--patients 60] [--seed 4242] [--workers 2] [--out pairs.csv]

For each finding that is drawn, new patients are scanned with it and without it, all else equal. So their scores differ
by the finding and by what it brings with it, and not by what else the two heads have. Patients in whom it is there but
can hardly be seen, whose label is empty, count too: they are the low end of the scale. Told are the rank correlation of
severity with the difference of the two scores (logits), and the AUROC of scans with the finding against all of those
without it, where its label is 1 and by thirds of severity (who has as much as another is in the same third). Mass
effect and midline shift are not drawn: they are asked of twins of masses, of those who have no other. Oedema is of
three kinds, on scales of their own: patches, diffuse, and around a haematoma or a tumour. Intervals are 95 % by
bootstrap over patients.

Every finding has a seed of its own, counted from `--seed`; none may be that of a cohort that the network has learned
from.
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
from soundness import DRAWN, SEVERITY, Told, between, codes_of, cropped, rank_correlation, writable

from headct.cohort import executors
from headct.preparing import Prepared, prepare
from headct.preparing.recipe import named
from headct.virtual.findings.lesions import Edema
from headct.virtual.job import _begin, record_of
from headct.virtual.labels import FINDINGS
from headct.virtual.patient import MASSES, Patient
from headct.virtual.simulated import Simulation

BROUGHT = ("midline_shift", "mass_effect")
"""What is not drawn but follows from masses; what oedema and infarcts press shut (`effaced_ml`) is left out."""
OEDEMA = ("patches", "diffuse", "around others")
THIRDS = ("least", "middle", "most")
FEWEST = 9
"""Pairs of which thirds are told."""


@cache
def network(path: Path) -> Told:
    """Read once in each process."""
    net = Told()
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def oedema_of(patient: Patient) -> str:
    """Of which kind oedema is, where there is some."""
    own = next((found for found in patient.findings if isinstance(found, Edema)), None)
    if own is None:
        return "around others"
    return "diffuse" if own.diffuse else "patches"


@torch.no_grad()
def pair(path: Path, twins: tuple[str, int, int]) -> list[dict[str, Any]]:
    """Two rows, with the finding and without: labels, severities, all scores. No rows if one is rejected."""
    finding, seed, index = twins
    net, recipe = network(path), named("head")
    rows = []
    for simulated in Simulation(seed=seed, twin=finding).prepared_by(recipe).scans(index):
        prepared = prepare(simulated.scan, recipe)
        if not isinstance(prepared, Prepared):
            return []
        logits = net(cropped(codes_of(prepared.array))[None])[0].tolist()
        scores = {f"{name}_score": score for name, score in zip(FINDINGS, logits, strict=True)}
        told = {"twin": finding, "study": simulated.study, "oedema": oedema_of(simulated.patient)}
        rows.append(record_of(simulated) | scores | told)
    return rows


def pairs(path: Path, seed: int, patients: int, workers: int) -> pd.DataFrame:
    """A row for each pair: the scan with the finding, and in columns that end in `_without` the other one."""
    wanted = [(finding, seed + number, index) for number, finding in enumerate(DRAWN) for index in range(patients)]
    rows: list[dict[str, Any]] = []
    with executors.processes(workers, _begin) as crew:
        for done, (_, both) in enumerate(crew.results(partial(pair, path), enumerate(wanted)), 1):
            rows += both
            if done % 50 == 0:
                print(f"  {done} of {len(wanted)} pairs", flush=True)
    print(f"{len(wanted) - len(rows) // 2} of {len(wanted)} pairs were rejected by the recipe")
    return paired(pd.DataFrame(rows))


def paired(scans: pd.DataFrame) -> pd.DataFrame:
    """Both scans of a patient side by side."""
    sick, well = (scans[scans["study"] == study] for study in ("with", "without"))
    both = sick.merge(well, on=["twin", "patient_id"], suffixes=("", "_without"), validate="one_to_one")
    return both.sort_values(["twin", "patient_id"])  # workers end in any order


def cases(twins: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Each finding, of which kind, and the pairs of which one scan has some of it and the other one none."""
    for finding, measure in SEVERITY.items():
        if finding in BROUGHT:
            of = twins[twins["twin"].isin(MASSES) & (twins[measure] > 0)]
            yield finding, "", of[(of[f"{measure}_without"] == 0) & (of[f"{finding}_without"] == 0)]
        elif finding == "edema":
            for kind in OEDEMA:
                yield finding, kind, twins[(twins["twin"] == finding) & (twins["oedema"] == kind)]
        else:
            yield finding, "", twins[twins["twin"] == finding]


def row_of(finding: str, kind: str, of: pd.DataFrame) -> dict[str, object]:
    """Of the table."""
    high, low = (of[f"{finding}_score{which}"].to_numpy() for which in ("", "_without"))
    severity, n = of[SEVERITY[finding]].to_numpy(), len(of)
    row: dict[str, object] = {"finding": f"{finding}, {kind}" if kind else finding, "severity": SEVERITY[finding]}
    row |= {"pairs": n, "label 1": int((of[finding] == 1).sum()), "none of it to be seen": int((severity == 0).sum())}
    if n < FEWEST:
        return row
    ends = np.quantile(severity, (0, 1 / 3, 2 / 3, 1))
    third = np.digitize(severity, ends[1:3], right=True)

    def area(some: np.ndarray, rows: np.ndarray) -> float:
        chosen = rows[some[rows]]
        return auroc(np.concatenate([high[chosen], low[rows]]), np.arange(len(chosen) + n) < len(chosen))

    row |= {"AUROC, label 1": between(partial(area, (of[finding] == 1).to_numpy()), n)}
    row |= {"thirds": " to ".join(f"{value:.1f}" for value in ends)}
    row |= {"rho": between(partial(rank_correlation, severity, high - low), n)}
    return row | {f"AUROC, {name}": between(partial(area, third == i), n) for i, name in enumerate(THIRDS)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", type=Path, help="weights of a network that was told where lesions are")
    parser.add_argument("--patients", type=int, default=60, help="of each finding")
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=writable, help="a CSV file for the pairs: labels, severities and scores")
    options = parser.parse_args()
    if not options.network.is_file():
        parser.error(f"there is no file {options.network}; soundness.py --told --out makes one")
    if min(options.patients, options.workers) < 1:
        parser.error("--patients and --workers: at least 1")
    started_s = time.perf_counter()
    twins = pairs(options.network, options.seed, options.patients, options.workers)
    if options.out:
        twins.to_csv(options.out, index=False)
    show("severity and how surely a finding is found", [row_of(*case) for case in cases(twins)])
    print(f"{time.perf_counter() - started_s:.0f} s")


if __name__ == "__main__":
    main()
