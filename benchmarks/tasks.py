"""What encoders are good for beside detection, in one table a task: retrieval, places, re-scans, and what leaks.

    headct simulate --recipe head-coarse --patients 500 --seed 31 --out labelled
    headct simulate --recipe head-coarse --patients 60 --seed 32 --rescan site-b --out twice
    python benchmarks/tasks.py MODEL... --labelled labelled other-site --twice twice

Models are checkpoints of one recipe. Each stands beside its own architecture with random weights, frozen. Two sites
among the labelled scans are needed to see what the features know of the site. All intervals are 95 % over patients; all
patients are virtual, and all their heads descend from one template, which makes the search for places easier than life.

- Retrieval: the share of the 10 nearest scans of other patients that have the query's finding, less that of a random
  order, for every finding.
- Places: how far in mm from the truth a landmark of one head is found in another.
- Re-scans: whether the second scan of a patient, at another site, is the most alike of all, and cosines.
- Leaks: how well a straight cut tells sites apart, beside findings.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from search import at_random, told  # which lies beside this file
from threadpoolctl import threadpool_limits

from headct import checkpoints
from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.cohort.labels import read_labels
from headct.embedding.machine import Machine, choose
from headct.failure import Misuse
from headct.tasks.clusters import separability
from headct.tasks.correspondence import evaluate, heads_of, read_landmarks
from headct.tasks.correspondence.evaluation import OURS
from headct.tasks.retrieval import Judging, judge, of_cohort
from headct.tasks.retrieval.judging import Labelled
from headct.tasks.robustness import measure

NEAREST = 10
Rows = dict[str, dict[str, str]]  # row, then encoder, to what is said


def labelled_of(encoder: PretrainedEncoder, cohorts: Sequence[Cohort], machine: Machine, at: Path) -> Labelled:
    """Vectors, the site of each scan as its label, and patients."""
    galleries = [of_cohort(cohort, encoder, machine, at) for cohort in cohorts]
    return Labelled(
        np.concatenate([one.vectors for one in galleries]),
        np.concatenate([one.scans["site"].to_numpy(dtype=str) for one in galleries]),
        np.concatenate([one.scans["patient_id"].to_numpy(dtype=str) for one in galleries]),
    )


def retrieval(seen: Labelled, findings: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for finding in findings:
        labels = findings[finding].to_numpy(dtype=float)
        try:
            found = judge(Labelled(seen.vectors, labels, seen.patients), Judging(ks=(NEAREST,)))
        except Misuse:  # nobody, or only one, has it
            continue
        name = f"precision_at_{NEAREST}"
        yield (
            f"{finding}, {found.queries} queries, chance {found.chance[name]:.3f}",
            found.gain[name].written(signed=True),
        )


def leaks(seen: Labelled, findings: pd.DataFrame) -> Iterator[tuple[str, str]]:
    def cut(name: str, words: np.ndarray) -> tuple[str, str]:
        return name, separability(name, seen.vectors, words, seen.patients).auroc.written()

    yield cut("site", seen.labels)
    for finding in findings:
        words = findings[finding].map({1.0: "with", 0.0: "without"}).fillna("").to_numpy(dtype=str)
        yield cut(finding, words)


def rescans(encoder: PretrainedEncoder, cohort: Cohort, machine: Machine) -> Iterator[tuple[str, str]]:
    everyone = measure(cohort, encoder, machine).metrics()["all"]
    for name in ("first_of_all", "cosine", "cosine_of_others", "rank", "icc_of_features"):
        leaf: Mapping[str, Any] = everyone[name]
        interval = "" if leaf["low"] is None or np.isnan(leaf["low"]) else f" ({leaf['low']:.3f} to {leaf['high']:.3f})"
        yield f"{name}, {leaf['n']} pairs", f"{leaf['value']:.3f}{interval}"


def show(title: str, rows: Rows, models: Sequence[str]) -> None:
    print(f"\n{title}\n\n| | {' | '.join(models)} |\n|{'---|' * (len(models) + 1)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells.get(model, '') for model in models)} |", flush=True)


def gathered(models: Mapping[str, PretrainedEncoder], of: Callable[[str], Iterator[tuple[str, str]]]) -> Rows:
    rows: Rows = {}
    for model in models:
        for name, cell in of(model):
            rows.setdefault(name, {})[model] = cell
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--labelled", type=Path, nargs="+", required=True, help="cohorts with labels.csv beside them")
    parser.add_argument("--twice", type=Path, required=True, help="a cohort of re-scans with landmarks.csv")
    parser.add_argument("--vectors", type=Path, default=Path("vectors-of-tasks"), help="where vectors are kept")
    parser.add_argument("--queries", type=int, default=5, help="heads whose landmarks are looked for")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    machine = choose("fp32", "cpu")
    cohorts, twice = [Cohort(path) for path in options.labelled], Cohort(options.twice)
    tables = [
        read_labels(cohort.path / "labels.csv", [cohort]).values.reindex(cohort.scans["scan_id"]) for cohort in cohorts
    ]
    findings = pd.concat(tables)
    landmarks = read_landmarks(twice.path / "landmarks.csv", twice)
    options.vectors.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        models = {}
        for named in options.models:
            name, _, model = named.rpartition("=")
            models[name or model] = checkpoints.load(model)
            models[f"{name or model}, random"] = at_random(models[name or model], Path(place) / str(len(models)))
        seen = {name: labelled_of(encoder, cohorts, machine, options.vectors) for name, encoder in models.items()}
        print(f"{len(findings)} labelled scans; {len(twice)} scans of {twice.scans['patient_id'].nunique()} twice")
        names = list(models)
        show(
            f"Precision at {NEAREST} above chance",
            gathered(models, lambda name: retrieval(seen[name], findings)),
            names,
        )
        show("AUROC of a straight cut", gathered(models, lambda name: leaks(seen[name], findings)), names)
        show("Re-scans at another site", gathered(models, lambda name: rescans(models[name], twice, machine)), names)
        print("\nPlaces in other heads")
        for number, (name, encoder) in enumerate(models.items()):
            outcome = evaluate(list(heads_of(twice, encoder, machine)), landmarks, queries=options.queries)
            for method, leaves in outcome.metrics().items():
                if method == OURS or number == 0:
                    told(f"{name} ({max(outcome.resolution_mm):.0f} mm)" if method == OURS else method, leaves)


if __name__ == "__main__":
    main()
