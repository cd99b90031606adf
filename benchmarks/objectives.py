"""What each objective teaches each kind of encoder in the same time: frozen probes inside and outside.

    headct simulate --patients 800 --seed 21 --masks --deformation --out PRETRAIN
    headct simulate --patients 300 --seed 22 --twin iph --rescan site-b --out PAIRS
    headct simulate --patients 800 --seed 23 --out INSIDE
    headct simulate --patients 300 --seed 24 --site site-c --out OUTSIDE
    python benchmarks/objectives.py PRETRAIN --pairs PAIRS --inside INSIDE --outside OUTSIDE [--budget 120]

Every run has the same budget of seconds, the same views of whole heads and the same windows. Probes are those of
`few_labels.py`: K positives and K negatives of a finding, drawn several times among the patients of INSIDE; tested on
others of INSIDE, and on OUTSIDE, whose scanners no probe has seen. kNN: mean label of the 10 nearest of all labelled
patients, by cosine. All patients are virtual: nothing here says anything about real ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from few_labels import Protocol, auroc, histograms
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from headct import checkpoints, pretraining
from headct.cohort import Cohort
from headct.encoders import Encoder, apply_windows
from headct.failure import Failure
from headct.pretraining import PretrainSettings, objective_settings
from headct.pretraining.step import new_objective

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
NEIGHBOURS = 10


@dataclass(frozen=True)
class Cases:
    """A labelled cohort in memory."""

    hu: np.ndarray  # (n, x, y, z)
    labels: pd.DataFrame
    spacing_mm: tuple[float, float, float]


def cases_of(path: Path) -> Cases:
    """Raises where the cohort has no labels beside it."""
    cohort = Cohort(path)
    ids = list(cohort.scans["scan_id"])
    labels = pd.read_csv(path / "labels.csv").set_index("scan_id").loc[ids].reset_index()
    x_mm, y_mm, z_mm = np.linalg.norm(cohort.affine(ids[0])[:3, :3], axis=0).tolist()
    return Cases(np.stack([cohort.array(scan_id) for scan_id in ids]), labels, (x_mm, y_mm, z_mm))


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


def vectors(encoder: Encoder, cases: Cases, windows: Sequence[tuple[float, float]]) -> np.ndarray:
    encoder.eval()
    found = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(cases.hu), 8):
            x = apply_windows(torch.from_numpy(cases.hu[start : start + 8]), windows)
            found.append(encoder(x, torch.tensor([cases.spacing_mm] * len(x))).scan.float().numpy())
    return np.concatenate(found)


def untrained(told: PretrainSettings, hu: np.ndarray) -> Encoder:
    """The encoder as a run begins with it, with BatchNorm statistics of scans."""
    encoder = new_objective(told).encoder.train()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm3d | torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for start in range(0, 48, 8):
            x = apply_windows(torch.from_numpy(hu[start : start + 8]), list(told.windows.values()))
            encoder(x, torch.full((len(x), 3), 2.0))
    return encoder


def measured(inside: np.ndarray, outside: np.ndarray, protocol: Protocol, others: Cases, k: int) -> dict[str, str]:
    """Macro AUROC of both probes on both cohorts."""
    mean, scale = inside[protocol.pool].mean(0), inside[protocol.pool].std(0) + 1e-6
    near, far = (np.clip((one - mean) / scale, -6, 6) / one.shape[1] ** 0.5 for one in (inside, outside))
    cells: dict[str, list[list[float]]] = {"linear in": [], "linear out": [], "knn in": [], "knn out": []}
    for finding in protocol.findings(k):
        rows, positive = protocol.tested(finding)
        known = np.flatnonzero(others.labels[finding].notna())
        truth = others.labels[finding].to_numpy()[known] == 1
        places = (near[rows], positive), (far[known], truth)
        found: dict[str, list[float]] = {name: [] for name in cells}
        for draw in range(protocol.draws):
            model = LogisticRegression(C=10.0, max_iter=2000)
            model.fit(near[protocol.drawn(finding, k, draw)], np.repeat([1, 0], k))
            for name, (features, label) in zip(("linear in", "linear out"), places, strict=True):
                found[name].append(auroc(model.decision_function(features), label))
        labelled = np.concatenate([protocol.rows(finding, protocol.pool, value) for value in (1, 0)])
        label = protocol.labels[finding].to_numpy()[labelled]
        for name, (features, wanted) in zip(("knn in", "knn out"), places, strict=True):
            found[name] = [auroc(neighbours(near[labelled], label, features), wanted)]
        for name, values in found.items():
            cells[name].append(values)
    return {name: summary(values) for name, values in cells.items()}


def summary(of_findings: list[list[float]]) -> str:
    macro = np.mean(of_findings, axis=0)
    return f"{macro.mean():.3f}" + (f" ± {macro.std(ddof=1):.3f}" if len(macro) > 1 else "")


def neighbours(seen: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    unit, other = (one / (np.linalg.norm(one, axis=1, keepdims=True) + 1e-9) for one in (seen, asked))
    nearest = np.argsort(-(other @ unit.T), axis=1)[:, :NEIGHBOURS]
    scores: np.ndarray = labels[nearest].mean(axis=1)
    return scores


def rows_of(options: argparse.Namespace, inside: Cases, outside: Cases, protocol: Protocol) -> Iterator[dict[str, str]]:
    """Baselines, then every plan."""

    def row(name: str, model: str, said: str, near: np.ndarray, far: np.ndarray) -> dict[str, str]:
        found = measured(near, far, protocol, outside, options.positives)
        return {"objective": name, "encoder": model, **found, "run": said}

    for parts, name in ((1, "HU histogram"), (3, "HU histogram of 27 regions")):
        yield row(name, "", "", histograms(inside.hu, parts), histograms(outside.hu, parts))
    for model in MODELS:
        told = settings("dino", model, 1.0, options.seed)
        encoder, windows = untrained(told, inside.hu), list(told.windows.values())
        yield row("none", model, "random", vectors(encoder, inside, windows), vectors(encoder, outside, windows))
    for objective, models in PLANS:
        if options.only and objective not in options.only:
            continue
        for model in models:
            told = settings(objective, model, options.budget, options.seed)
            cohorts = [options.pairs] if objective in ("rescan", "twin") else [options.pretrain]
            begun_s = time.process_time()
            try:
                run = pretraining.pretrain(cohorts, options.runs / f"{objective}-{model}", replace(told))
            except Failure as failure:  # a run that diverges is a result too
                print(f"{objective} {model}: {failure}", flush=True)
                continue
            said = f"{len(run.history)} steps, {time.process_time() - begun_s:.0f} s{', ' if run.stopped else ''}"
            encoder = checkpoints.load(run.checkpoint).encoder
            windows = list(told.windows.values())
            near, far = vectors(encoder, inside, windows), vectors(encoder, outside, windows)
            yield row(objective, model, said + run.stopped, near, far)


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
    inside, outside = cases_of(options.inside), cases_of(options.outside)
    protocol = Protocol(inside.labels, options.draws)
    for finding in protocol.findings(options.positives):
        rows, positive = protocol.tested(finding)
        known = outside.labels[finding].dropna()
        print(
            f"{finding}: inside {len(rows)} tested, {positive.sum()} positive; outside {len(known)}, {known.sum():.0f}"
        )
    print("\n| objective | encoder | linear in | linear out | knn in | knn out | run |\n|---|---|---|---|---|---|---|")
    for row in rows_of(options, inside, outside, protocol):
        print(f"| {' | '.join(row.values())} |", flush=True)


if __name__ == "__main__":
    main()
