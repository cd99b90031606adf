"""What each objective teaches each kind of encoder in the same time: frozen probes inside and outside.

    headct simulate --recipe head-coarse --patients 600 --seed 11 --masks --deformation --out PRETRAIN
    headct simulate --recipe head-coarse --patients 100 --seed 22 --twin iph --rescan site-b --out PAIRS
    headct simulate --recipe head-coarse --patients 900 --seed 12 --out INSIDE
    headct simulate --recipe head-coarse --patients 200 --seed 13 --site site-c --out OUTSIDE
    python benchmarks/objectives.py PRETRAIN --pairs PAIRS --inside INSIDE --outside OUTSIDE [--budget 240]

Every run has the same budget of seconds of one core, told by the processor's clock: a few steps are timed, then as many
are made as fit, and a run that took a sixth more or less is made again with as many as would have fitted. Views are
those of each objective at the 4 mm of the recipe: whole heads of 48 x 48 x 48 voxels, local ones of 32 x 32 x 32, and
the same windows. Who is learned from and who is tested is as in `few_labels.py` (`headct.studies.few_labels`): K
positives and K negatives of a finding, drawn several times among patients of INSIDE; tested on others of INSIDE, and on
OUTSIDE, whose scanners no probe has seen. Two probes on the same vectors: logistic regression, and the 10 nearest by
cosine. Macro AUROC with its interval over test patients and draws. Rows are kept in `--runs`, so a killed command goes
on with the next one; other cohorts need another folder. `--only fm-hct ct-fm dense-insert --encoders conv-tiny
anatomy-conv` compares the published recipes (`benchmarks/published`) with ours on one small network in equal time, and
`few_labels.py --beside NAME=RUN` takes the runs from there to each K and site. All patients are
virtual: nothing here says anything about real ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from headct import checkpoints, pretraining
from headct.cohort import Cohort
from headct.cohort.journal import write_atomically
from headct.detection.knn import Knn
from headct.embedding.machine import Machine, choose
from headct.failure import Failure
from headct.pretraining import PretrainSettings, objective_settings, read_settings
from headct.pretraining.loop import Run
from headct.pretraining.step import new_objective
from headct.studies import baselines, demo
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

VIT = {"depth": 6, "pooling": "class+mean", "patch": (8, 8, 8), "grid": (6, 7, 6)}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "vit-tiny": VIT,
    "segresenc": {"init_filters": 8},
    "slices-tiny": {},
    "conv-tiny": {},
}
WHOLE = {"shape": (48, 48, 48), "edge_mm": (186.0, 200.0)}
LOCAL = {"shape": (32, 32, 32), "edge_mm": (96.0, 128.0)}
VIEWS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "dino": {"global_crops": WHOLE, "local_crops": LOCAL | {"views": 2}},
    "dinov2": {"global_crops": WHOLE, "local_crops": LOCAL | {"views": 2}},
    "simclr": {"crops": LOCAL | {"views": 4}},
    "rescan": {"crop": WHOLE},
    "twin": {"crop": WHOLE},
    "mae": {"crops": WHOLE},
    "jepa": {"crops": WHOLE},
    "hybrid": {"crops": WHOLE},
}
"""What differs from the views of an objective, which are for 2 mm; those of `dense` and `insert` are at 4 mm."""
TRIAL_STEPS = (3, 9)
"""Of two runs, from whose difference the time of a step is told."""
TRIALS = 3
TOLERANCE = 1 / 6
"""How often a run is made whose seconds are not the budget, and the share by which they may differ."""
ANATOMY: Mapping[str, Mapping[str, Any]] = {
    "anatomy-conv": {},
    "anatomy-vit": {"inner_settings": VIT},
}
PLANS = (
    ("dino", "vit-tiny"),
    ("dino", "segresenc"),
    ("dino", "slices-tiny"),
    ("dinov2", "vit-tiny"),
    ("mae", "vit-tiny"),
    ("jepa", "vit-tiny"),
    ("simclr", "vit-tiny"),
    ("simclr", "segresenc"),
    ("simclr", "slices-tiny"),
    ("hybrid", "vit-tiny"),
    ("rescan", "vit-tiny"),
    ("rescan", "segresenc"),
    ("rescan", "slices-tiny"),
    ("twin", "vit-tiny"),
    ("twin", "segresenc"),
    ("twin", "slices-tiny"),
    ("dense", "anatomy-conv"),
    ("insert", "anatomy-conv"),
    ("dense-insert", "anatomy-conv"),
    ("dense-insert", "anatomy-vit"),
    ("fm-hct", "conv-tiny"),
    ("ct-fm", "conv-tiny"),
)
PUBLISHED = {name: Path(__file__).parent / "published" / f"{name}.toml" for name in ("fm-hct", "ct-fm")}
"""Recipes by name, on whatever encoder is asked for."""
PRECISION = choose("auto", "cpu").precision
"""bf16 where the processor has units for it; without them it is many times slower."""
LIKE = "virtual-coarse"
"""A checkpoint whose recipe and windows are those of the runs."""
PROBES = ("linear", "knn")
PLACES = ("inside", "outside")


def settings(objective: str, encoder: str, steps: int, seed: int) -> PretrainSettings:
    """Published recipes as they are but for the encoder, objectives of anatomy as in the demo, others by default."""
    every: dict[str, Any] = {"steps": steps, "seed": seed, "precision": PRECISION, "device": "cpu", "workers": 1}
    every |= {"save_every": 10_000}
    if objective in PUBLISHED:
        return read_settings(
            PUBLISHED[objective],
            encoder=encoder,
            encoder_settings=MODELS[encoder],
            **every,
        )
    told = objective_settings(objective)
    if encoder in ANATOMY:
        return replace(
            demo.settings(1.0),
            objectives={objective: told},
            encoder=encoder,
            encoder_settings=ANATOMY[encoder],
            budget_s=None,
            **every,
        )
    views = {name: replace(getattr(told, name), **other) for name, other in VIEWS.get(objective, {}).items()}
    return PretrainSettings(
        objectives={objective: replace(told, **views)},
        encoder=encoder,
        encoder_settings={**MODELS, **ANATOMY}[encoder],
        batch=8,
        **every,
    )


def steps_within(budget_s: float, told: PretrainSettings, cohorts: Sequence[Path]) -> int:
    """As many as fit into so much time of the processor, whatever else the machine does. Raises Failure if unclear."""

    def spent_s(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            begun_s = time.process_time()
            pretraining.pretrain(cohorts, Path(folder), replace(told, steps=steps))
            return time.process_time() - begun_s

    few, many = TRIAL_STEPS
    spent_s(1)  # what only the first steps of a process cost
    step_s = (spent_s(many) - spent_s(few)) / (many - few)
    if step_s <= 0:
        raise Failure("the time of a step could not be told", do="call this again on a quieter machine")
    return max(1, int(budget_s / step_s))


def within(budget_s: float, folder: Path, told: PretrainSettings, cohorts: Sequence[Path]) -> tuple[Run, float]:
    """A run and its seconds, made again with other steps where it did not take the budget. Raises Failure.

    One that a monitor stopped stays as it is: with more steps it would be another run.
    """
    for trial in range(TRIALS):
        shutil.rmtree(folder, ignore_errors=True)  # of a command that was killed, or of the last trial
        begun_s = time.process_time()
        run = pretraining.pretrain(cohorts, folder, told)
        taken_s = time.process_time() - begun_s
        if run.stopped or abs(taken_s / budget_s - 1) <= TOLERANCE or trial == TRIALS - 1:
            break
        told = replace(told, steps=max(1, round(told.steps * budget_s / taken_s)))
    return run, taken_s


def untrained(model: str, study: Study, like: Contestant, machine: Machine, seed: int) -> np.ndarray:
    """Vectors of the encoder as a run begins with it, with BatchNorm statistics of scans."""
    told = settings("dino", model, 1, seed)
    encoder, windows = new_objective(told).encoder, list(told.windows.values())
    baselines.settle(encoder, windows, like.scans, np.flatnonzero(study.parts == "train"), machine)
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
    """Baselines, then every plan; each row is kept, so that a killed command goes on with the next."""
    vectors = options.runs / "vectors"
    like = of_encoder("", checkpoints.load(LIKE), study, cohorts, machine, vectors)

    def beside(name: str, encoder: str, vectors_of: Callable[[], np.ndarray]) -> dict[str, str]:
        one = of_vectors(name, vectors_of(), like)
        return {"objective": name, "encoder": encoder, **measured(study, one, machine, options.positives), "run": ""}

    place = options.runs / f"{options.budget:g}s-k{options.positives}-draws{options.draws}-seed{options.seed}"
    for name, parts in (("HU histogram", 1), ("HU histogram of 27 regions", 3)):
        found = partial(baselines.histograms, like.scans, parts)
        yield kept(place / f"histogram-{parts}.json", partial(beside, name, "", found))
    for model in MODELS:
        if not options.encoders or model in options.encoders:
            found = partial(untrained, model, study, like, machine, options.seed)
            yield kept(place / f"random-{model}.json", partial(beside, "random weights", model, found))
    for objective, model in PLANS:
        if all(not some or name in some for name, some in ((objective, options.only), (model, options.encoders))):
            make = partial(pretrained, objective, model, place / "runs", study, cohorts, options, machine)
            yield kept(place / f"{objective}-{model}.json", make)


def kept(path: Path, make: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The row of this file, made and written if it is not there."""
    if not path.exists():
        made = json.dumps(make()).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, made)
    found: dict[str, str] = json.loads(path.read_text())
    return found


def pretrained(
    objective: str,
    model: str,
    runs: Path,
    study: Study,
    cohorts: Sequence[Cohort],
    options: argparse.Namespace,
    machine: Machine,
) -> dict[str, str]:
    """The row of one run."""
    trained_on = [options.pairs] if objective in ("rescan", "twin") else [options.pretrain]
    folder = runs / f"{objective}-{model}"
    steps = steps_within(options.budget, settings(objective, model, 1, options.seed), trained_on)
    try:
        run, taken_s = within(options.budget, folder, settings(objective, model, steps, options.seed), trained_on)
    except Failure as failure:  # a run that diverges is a result too
        return {"objective": objective, "encoder": model, "run": failure.what}
    said = f"{len(run.history)} steps, {taken_s:.0f} s"
    encoder = checkpoints.load(run.checkpoint)
    one = of_encoder(objective, encoder, study, cohorts, machine, options.runs / "vectors")
    cells = measured(study, one, machine, options.positives)
    stopped = f", {run.stopped}" if run.stopped else ""
    return {"objective": objective, "encoder": model, **cells, "run": said + stopped}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pretrain", type=Path)
    parser.add_argument("--pairs", type=Path, help="what rescan and twin learn from")
    parser.add_argument("--inside", type=Path, required=True)
    parser.add_argument("--outside", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs-of-objectives"), help="where runs are kept")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds of each run")
    parser.add_argument("--positives", type=int, default=16)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="objectives; all by default")
    parser.add_argument("--encoders", nargs="*", help="all by default")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.pairs is None and (not options.only or {"rescan", "twin"} & set(options.only)):
        parser.error("rescan and twin need --pairs")
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
        print(f"| {' | '.join(found.get(column, '') for column in columns)} |", flush=True)


if __name__ == "__main__":
    main()
