"""What each objective teaches each kind of encoder in the same time: frozen probes inside and outside.

    headct simulate --patients 800 --seed 21 --masks --deformation --out PRETRAIN
    headct simulate --patients 300 --seed 22 --twin iph --rescan site-b --out PAIRS
    headct simulate --patients 800 --seed 23 --out INSIDE
    headct simulate --patients 300 --seed 24 --site site-c --out OUTSIDE
    python benchmarks/objectives.py PRETRAIN --pairs PAIRS --inside INSIDE --outside OUTSIDE [--budget 120]

Every run has the same budget of seconds, the same views of whole heads and the same windows. Who is learned from and
who is tested is as in `few_labels.py` (`headct.studies.few_labels`): K positives and K negatives of a finding, drawn
several times among patients of INSIDE; tested on others of INSIDE, and on OUTSIDE, whose scanners no probe has seen.
Two probes on the same vectors: logistic regression, and the 10 nearest by cosine. Macro AUROC with its interval over
test patients and draws. All patients are virtual: nothing here says anything about real ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from headct import checkpoints, pretraining
from headct.cohort import Cohort
from headct.detection.knn import Knn
from headct.embedding.machine import Machine, choose
from headct.failure import Failure
from headct.pretraining import PretrainSettings, objective_settings
from headct.pretraining.step import new_objective
from headct.studies import baselines
from headct.studies.few_labels import (
    Contestant,
    Study,
    StudySettings,
    of_encoder,
    of_vectors,
    predicted,
    results_of,
    study_of,
)

VIT = {"depth": 6, "pooling": "class+mean"}
MODELS = {"vit-tiny": VIT, "segresenc": {"init_filters": 8}, "slices-tiny": {}, "conv-tiny": {}}
ANATOMY = {"anatomy-conv": {}, "anatomy-vit": {}}
PLANS: Sequence[tuple[str, Sequence[str]]] = (
    ("dino", tuple(MODELS)),
    ("simclr", tuple(MODELS)),
    ("rescan", tuple(MODELS)),
    ("twin", tuple(MODELS)),
    ("dinov2", ("vit-tiny",)),
    ("mae", ("vit-tiny",)),
    ("jepa", ("vit-tiny",)),
    ("hybrid", ("vit-tiny",)),
    ("dense", tuple(ANATOMY)),
    ("insert", tuple(ANATOMY)),
    ("dense-insert", tuple(ANATOMY)),
)
PROBES = ("linear", "knn")
PLACES = ("inside", "outside")


def settings(objective: str, encoder: str, budget_s: float, seed: int) -> PretrainSettings:
    return PretrainSettings(
        objectives={objective: objective_settings(objective)},
        encoder=encoder,
        encoder_settings={**MODELS, **ANATOMY}[encoder],
        budget_s=budget_s,
        batch=8,
        seed=seed,
        precision="bf16",
        device="cpu",
        workers=1,
        save_every=10_000,
    )


def untrained(told: PretrainSettings, like: Contestant, train: np.ndarray, machine: Machine) -> np.ndarray:
    """Vectors of the encoder as a run begins with it, with BatchNorm statistics of scans."""
    encoder, windows = new_objective(told).encoder, list(told.windows.values())
    baselines.settle(encoder, windows, like.scans, train, machine)
    return baselines.seen_by(encoder, windows, like.scans, machine)


def measured(study: Study, one: Contestant, machine: Machine, k: int) -> dict[str, str]:
    """Macro AUROC of both probes at both places."""
    tables = {
        "linear": predicted(study, one, machine),
        "knn": predicted(study, replace(one, method=Knn()), machine),
    }
    results = results_of(study, tables)
    cells = {}
    for probe in PROBES:
        for place in PLACES:
            found = results.macro(probe, place, k)
            told = "" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
            cells[f"{probe} {place}"] = told
    return cells


def rows_of(
    study: Study, cohorts: Sequence[Cohort], options: argparse.Namespace, machine: Machine
) -> Iterator[dict[str, str]]:
    """Every plan, and after the first run, whose scans they share, the baselines."""
    like: Contestant | None = None
    for objective, models in PLANS:
        if options.only and objective not in options.only:
            continue
        for model in models:
            told = settings(objective, model, options.budget, options.seed)
            trained_on = [options.pairs] if objective in ("rescan", "twin") else [options.pretrain]
            begun_s = time.process_time()
            try:
                run = pretraining.pretrain(trained_on, options.runs / f"{objective}-{model}", told)
            except Failure as failure:  # a run that diverges is a result too
                print(f"{objective} {model}: {failure}", flush=True)
                continue
            seconds = time.process_time() - begun_s
            encoder = checkpoints.load(run.checkpoint)
            one = of_encoder(objective, encoder, study, cohorts, machine, options.runs / "vectors")
            if like is None:
                like = one
                yield from baseline_rows(study, like, options, machine)
            said = f"{len(run.history)} steps, {seconds:.0f} s{', ' + run.stopped if run.stopped else ''}"
            cells = measured(study, one, machine, options.positives)
            yield {"objective": objective, "encoder": model, **cells, "run": said}


def baseline_rows(
    study: Study, like: Contestant, options: argparse.Namespace, machine: Machine
) -> Iterator[dict[str, str]]:
    """Histograms and random weights on the same scans."""
    vectors = {
        ("HU histogram", ""): baselines.histograms(like.scans),
        ("HU histogram of 27 regions", ""): baselines.histograms(like.scans, 3),
    }
    for (name, model), found in vectors.items():
        cells = measured(study, of_vectors(name, found, like), machine, options.positives)
        yield {"objective": name, "encoder": model, **cells, "run": ""}
    for model in MODELS:
        train = np.flatnonzero(study.parts == "train")
        found = untrained(settings("dino", model, 1.0, options.seed), like, train, machine)
        cells = measured(study, of_vectors(model, found, like), machine, options.positives)
        yield {"objective": "none", "encoder": model, **cells, "run": "random"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pretrain", type=Path)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--inside", type=Path, required=True)
    parser.add_argument("--outside", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs-of-objectives"), help="where runs are kept")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of each run")
    parser.add_argument("--positives", type=int, default=16)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="objectives; all by default")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    paths = {"inside": options.inside, "outside": options.outside}
    sites = {place: (Cohort(path), path / "labels.csv") for place, path in paths.items()}
    study = study_of(sites, StudySettings(ks=(options.positives,), draws=options.draws, seed=options.seed))
    for row in study.counts().to_dict("records"):
        print(f"{row['place']}: {row['finding']} {row['positives']} of {row['n']}")
    cohorts, machine = [cohort for cohort, _ in sites.values()], choose("auto")
    columns = ["objective", "encoder", *(f"{probe} {place}" for probe in PROBES for place in PLACES), "run"]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for found in rows_of(study, cohorts, options, machine):
        print(f"| {' | '.join(found[column] for column in columns)} |", flush=True)


if __name__ == "__main__":
    main()
