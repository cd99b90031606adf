"""How far from the truth a search for the same place ends, in mm, beside what needs no encoder.

    .venv/bin/python benchmarks/search.py MODEL... [--cohort DIR] [--patients 30] [--queries 5] [--register]

Without --cohort, virtual patients are made for the recipe of the first model, half of them scanned at another site.
Each of the 48 landmarks of some query heads is looked for in every head of another patient. Beside the models: the same
architecture with random weights, the same offset from the middle of the head, affine maps of the head's box and of the
moments of its tissue; with --register an affine registration by SimpleITK (mean squares, the head's box to begin with)
of every pair. All virtual heads descend from one template, which makes this easier than life.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from headct import checkpoints, encoders
from headct.cohort import Cohort
from headct.embedding.machine import choose
from headct.tasks.correspondence import Head, Landmarks, evaluate, heads_of, read_landmarks
from headct.tasks.correspondence.evaluation import NEAR_MM, OURS, Outcome
from headct.virtual.job import Job, run
from headct.virtual.simulated import Simulation

REGISTERED = "affine registration"


def made(folder: Path, patients: int, recipe: str) -> Cohort:
    """Virtual patients with landmarks, each scanned at two sites."""
    job = Job(simulation=Simulation(rescan="site-b"), patients=patients, recipe=recipe)
    run(job, folder, workers=1, progress=lambda *_: None)
    return Cohort(folder)


def at_random(model: checkpoints.PretrainedEncoder, folder: Path) -> checkpoints.PretrainedEncoder:
    """The same architecture, untrained."""
    torch.manual_seed(0)
    settings = {name: getattr(model.settings, name) for name in model.settings.__dataclass_fields__}
    checkpoints.save(folder, encoders.build(model.architecture, **settings), model.card)
    return checkpoints.load(folder)


def registered(query: Head, target: Head, points_mm: np.ndarray) -> np.ndarray:
    """Points (n, 3) of the query in the target, by an affine registration of the two arrays."""
    import SimpleITK as sitk

    images = []
    for head in (query, target):
        image = sitk.GetImageFromArray(np.clip(head.array, -200, 200).astype(np.float32).transpose(2, 1, 0))
        image.SetSpacing(np.linalg.norm(head.affine[:3, :3], axis=0).tolist())
        image.SetOrigin(head.affine[:3, 3].tolist())
        images.append(image)
    start = sitk.CenteredTransformInitializer(
        *images, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 150)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    method.SetInitialTransform(start, inPlace=False)
    found = method.Execute(*images)  # from the fixed image's points, the query's, to the moving one's
    return np.array([found.TransformPoint(point.tolist()) for point in points_mm])


def by_registration(heads: list[Head], landmarks: Landmarks, outcome: Outcome) -> Outcome:
    """The search with a registration beside it, in the same rows: what could not be asked for is a miss of it too."""
    by_id = {head.scan_id: head for head in heads}
    rows = outcome.errors[outcome.errors["method"] == OURS].assign(method=REGISTERED, forward_backward_mm=np.nan)
    for (query, target), some in rows.groupby(["query", "target"], sort=False):
        asked_for = some[np.isfinite(some["error_mm"])]
        asked, true = (np.stack([landmarks[scan][name] for name in asked_for["landmark"]]) for scan in (query, target))
        error_mm = np.linalg.norm(registered(by_id[query], by_id[target], asked) - true, axis=1)
        rows.loc[asked_for.index, "error_mm"] = error_mm
    return replace(outcome, errors=pd.concat([outcome.errors, rows]))


def told(name: str, leaves: Mapping[str, Any]) -> None:
    median, share = leaves["median_mm"], leaves[f"within_{NEAR_MM:g}_mm"]
    print(
        f"{name:28s} {median['value']:6.1f} ({median['low']:.1f} to {median['high']:.1f}) mm   "
        f"{100 * share['value']:5.1f} ({100 * share['low']:.1f} to {100 * share['high']:.1f}) %   n = {share['n']:,}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--cohort", type=Path)
    parser.add_argument("--patients", type=int, default=30)
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--register", action="store_true")
    options = parser.parse_args()
    machine = choose("fp32", "cpu")
    with tempfile.TemporaryDirectory() as place:
        models = {name: checkpoints.load(name) for name in options.models}
        first = next(iter(models.values()))
        models["the first, untrained"] = at_random(first, Path(place) / "random")
        cohort = (
            Cohort(options.cohort) if options.cohort else made(Path(place) / "c", options.patients, first.recipe.name)
        )
        landmarks = read_landmarks(cohort.path / "landmarks.csv", cohort)
        print(
            f"{len(cohort)} scans of {cohort.scans['patient_id'].nunique()} virtual patients, {options.queries} queries"
        )
        print(f"{'':28s} median error, mm (95 %)          within {NEAR_MM:g} mm (95 %)")
        for number, (name, model) in enumerate(models.items()):
            heads = list(heads_of(cohort, model, machine))
            outcome = evaluate(heads, landmarks, queries=options.queries)
            metrics = outcome.metrics()
            told(f"{name[-20:]} ({max(outcome.resolution_mm):.0f} mm)", metrics[OURS])
            mutual, sure = metrics[OURS]["mutual"], metrics[OURS][f"within_{NEAR_MM:g}_mm_where_mutual"]
            print(
                f"{'':28s} {100 * mutual['value']:.0f} % agree backwards, of these {100 * sure['value']:.0f} % within"
            )
            if not number:
                of_first = by_registration(heads, landmarks, outcome) if options.register else outcome
        for name, leaves in of_first.metrics().items():
            if name != OURS:
                told(name, leaves)


if __name__ == "__main__":
    main()
