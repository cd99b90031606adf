"""What the demo's pre-training learns, beside random weights.

    .venv/bin/python benchmarks/features.py [--heads 40] [--budget 60]

Half of the virtual heads bleed into the brain; the other half are the same heads without. A ridge on frozen vectors
says which, and how large the head is, for each pair after having seen all others (leave one pair out). Chance is an
AUROC of 0.5 and an R2 of 0. Both encoders have the same architecture and see the same arrays.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from headct import checkpoints, pretraining
from headct.cohort import Cohort
from headct.cohort.ingest import ingest
from headct.embedding import embed
from headct.pretraining.loop import new_objective
from headct.studies.demo import settings
from headct.virtual.phantom import Phantom
from headct.writing import write_dicom


def write_pairs(folder: Path, heads: int) -> None:
    """Each head with and without a bleed, as DICOM; noise takes turns between them."""
    for number in range(heads):
        scan = Phantom(number // 2 + 1, "iph" if number % 2 else None).scan(
            slices=30, rows=128, cols=128, pixel_mm=1.8, noise_hu=3 + number % 5
        )
        write_dicom(scan, folder / f"head-{number:03d}")


def numbers_of(cohort: Cohort) -> np.ndarray:
    """Which head each scan is, (n,), in the order of the cohort."""
    files = cohort.files
    first = files[files["outcome"].isin(list(cohort))].drop_duplicates("outcome").set_index("outcome")["path"]
    return np.array([int(str(first[scan_id]).split("head-")[1][:3]) for scan_id in cohort])


def left_out(vectors: np.ndarray, wanted: np.ndarray, pairs: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """What a ridge predicts for each scan (n,) that has not seen the pair it belongs to."""
    predicted = np.empty(len(wanted))
    for pair in np.unique(pairs):
        seen = pairs != pair
        mean, scale = vectors[seen].mean(0), vectors[seen].std(0) + 1e-9
        x, y = (vectors[seen] - mean) / scale, wanted[seen]
        kernel = x @ x.T / x.shape[1] + strength * np.eye(len(x)) / len(x)
        weights = np.linalg.solve(kernel, y - y.mean())
        predicted[~seen] = (vectors[~seen] - mean) / scale @ x.T / x.shape[1] @ weights + y.mean()
    return predicted


def auroc(predicted: np.ndarray, positive: np.ndarray) -> float:
    """Share of pairs of a positive and a negative that are in order; ties count half."""
    above = predicted[positive][:, None] - predicted[~positive][None]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of pre-training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_pairs(folder / "scans", options.heads)
        ingest([folder / "scans"], folder / "cohort")
        cohort = Cohort(folder / "cohort")
        run = pretraining.pretrain([cohort], folder / "run", settings(options.budget), progress=print)
        trained = checkpoints.load(run.checkpoint)
        random = new_objective(replace(run.settings, seed=1)).encoder.eval()
        checkpoints.save(folder / "random", random, trained.card)
        numbers = numbers_of(cohort)
        size = np.array([np.prod(Phantom(int(n) // 2 + 1).shape.size) for n in numbers])
        print(f"{len(cohort)} heads, {len(run.history)} steps, loss {run.history['loss'].iloc[-1]:.2f}")
        print(f"{'encoder':10s} {'AUROC of bleeding':>18s} {'R2 of head size':>16s}")
        for name, model in {"trained": trained, "random": checkpoints.load(folder / "random")}.items():
            vectors = embed(cohort, model).vectors
            bleed = left_out(vectors, (numbers % 2).astype(float), numbers // 2)
            found = left_out(vectors, size, numbers // 2)
            explained = 1 - np.sum((found - size) ** 2) / np.sum((size - size.mean()) ** 2)
            print(f"{name:10s} {auroc(bleed, numbers % 2 == 1):18.2f} {explained:16.2f}")


if __name__ == "__main__":
    main()
