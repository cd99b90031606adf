"""Whether one finding is seen for itself: a network learns it where many have it, and is tested on twins.

    headct simulate --patients 800 --seed 77 --prevalence fracture=0.5 --masks --out often
    headct simulate --patients 120 --seed 78 --twin fracture --out twins
    python benchmarks/twins.py often twins --finding fracture [--epochs 14]
    python benchmarks/twins.py often twins --finding fracture --masks [--also COHORT]

For findings that are too rare in the cohort of `soundness.py` to say whether its network, which is the one here, could
learn them. Twins are the same patient with and without the finding, all else equal to the voxel, so a score that
differs rests on the finding or on what it brings with it: every second fracture brings a swollen scalp. Told are the
AUROC over all scans of the twins, the share of pairs in which the one with the finding scores higher (ties count half),
the rank correlation of visible volume with the difference of the two scores, with 95 % intervals by bootstrap over
patients, and the same for thirds by visible volume, and for pairs whose scalps are alike.

With `--masks` the network is told where the finding is, not only that it is somewhere: a U-Net (MONAI's) on pieces of
64 mm, half of them with the finding in their middle and half around bone of patients without it. A scan has two scores:
the mean of its `HIGHEST` most suspicious voxels, and the volume that the network draws, which is what all voxels'
probabilities add up to. `--also` names cohorts of other patients with findings as common as usual, `--out` keeps the
network's weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from realism import auroc, show  # which lie beside this file
from soundness import (
    LESIONS,
    LEVELS_HU,
    SEVERITY,
    SHAPE,
    SKULL,
    WINDOWS,
    Net,
    Patients,
    between,
    codes_of,
    descend,
    labels_of,
    measured,
    passed,
    plain_batches,
    rank_correlation,
    train,
)
from threadpoolctl import threadpool_limits
from torch import nn

from headct import Cohort
from headct.embedding.machine import choose
from headct.virtual.labels import FINDINGS
from headct.virtual.truth import CLASSES

PIECE, PIECES = 32, 8
"""Voxels of 2 mm along a piece, and pieces in a step."""
AIR_BELOW_HU, SWELLING_HU = -500.0, 300.0
"""What is air, and by how much it changes where a scalp swells."""
HIGHEST = 30
"""Voxels that a scan is scored by: 0.24 ml."""


def load(path: Path, finding: str) -> Patients:
    """A cohort of 2 mm in memory, whose labels are those of one finding."""
    cohort = Cohort(path)
    table = labels_of(cohort)
    codes = torch.empty((len(cohort), *SHAPE), dtype=torch.uint8)
    for row, scan_id in enumerate(cohort):
        codes[row] = codes_of(cohort.array(scan_id))
    labels = np.full((len(table), len(FINDINGS)), np.nan)
    labels[:, FINDINGS.index(finding)] = table[finding]
    places = [(path, scan_id) for scan_id in cohort]
    return Patients(places, table["patient_id"].to_numpy(), table, labels, codes, [], {})


def show_pairs(
    twins: Patients, scores: np.ndarray, title: str, finding: str, kinds: Sequence[str] | np.ndarray = ()
) -> None:
    """Pairs whose finding is labelled: all, by thirds of its size, and by its kind if `kinds` has one a scan."""
    pairs = pairs_of(twins, scores, finding, kinds)
    rows = [told(name, some, SEVERITY[finding]) for name, some in parted(twins, pairs, SEVERITY[finding]).items()]
    show(f"{title}, on twins", rows, f"{len(scores) // 2 - len(pairs)} pairs are left out: their label is empty")


def pairs_of(twins: Patients, scores: np.ndarray, finding: str, kinds: Sequence[str] | np.ndarray = ()) -> pd.DataFrame:
    """A row for each patient: the scan with the finding, and in columns that end in `_without` the other one."""
    scans = twins.table.assign(score=scores, row=np.arange(len(scores)), kind=kinds if len(kinds) else "")
    scans = scans.sort_values("scan_id")
    sick = scans[scans[finding] == 1].groupby("patient_id").first()
    well = scans[scans[finding] == 0].groupby("patient_id").first()
    return sick.merge(well, left_index=True, right_index=True, suffixes=("", "_without"))


def parted(twins: Patients, pairs: pd.DataFrame, measure: str) -> dict[str, pd.DataFrame]:
    """All pairs, then some of them: by thirds of a measure, by kind, and those whose scalps are alike."""
    third = pd.qcut(pairs[measure], 3, labels=["small", "middle", "large"]).astype(str)
    alike = [scalps_alike(twins, *both) for both in zip(pairs["row"], pairs["row_without"], strict=True)]
    parts = {"all": pairs} | {name: pairs[third == name] for name in ("small", "middle", "large")}
    parts |= {name: pairs[pairs["kind"] == name] for name in pairs["kind"].unique() if name}
    return parts | ({"scalps alike": pairs[alike]} if any(alike) else {})


def told(name: str, pairs: pd.DataFrame, measure: str) -> dict[str, object]:
    """How well scores tell scans with the finding from all of those without it, and from their own twins."""
    high, low = pairs["score"].to_numpy(), pairs["score_without"].to_numpy()

    def area(rows: np.ndarray) -> float:
        of = np.repeat([True, False], len(rows))
        return auroc(np.concatenate([high[rows], low[rows]]), of)

    def higher(rows: np.ndarray) -> float:
        return float((high[rows] > low[rows]).mean() + (high[rows] == low[rows]).mean() / 2)

    return {
        "twins": name,
        "pairs": len(pairs),
        measure: f"{pairs[measure].min():.1f} to {pairs[measure].max():.1f}",
        "AUROC": between(area, len(pairs)),
        "the one with it scores higher": between(higher, len(pairs)),
        "rho": between(partial(rank_correlation, pairs[measure].to_numpy(), high - low), len(pairs)),
    }


def scalps_alike(twins: Patients, one: int, other: int) -> bool:
    """Whether two scans differ nowhere by `SWELLING_HU` where either has air: by some 0.6 mm of swelling and more."""
    hu = torch.tensor(LEVELS_HU, dtype=torch.float32)
    first, second = (hu[twins.codes[row].int()] for row in (one, other))
    air = torch.minimum(first, second) < AIR_BELOW_HU
    return bool(((first - second).abs()[air] < SWELLING_HU).all())


class Where(nn.Module):
    """Of each voxel, whether the finding is there: logits (B, 1, X, Y, Z) of bytes (B, X, Y, Z)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = BasicUNet(3, len(WINDOWS), 1, features=(8, 16, 32, 32, 32, 8))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        level, width = torch.tensor(WINDOWS, dtype=torch.float32).T
        shown = ((torch.tensor(LEVELS_HU, dtype=torch.float32)[:, None] - level + width / 2) / width).clamp(0, 1) - 0.3
        with choose("auto", "cpu").arithmetic():
            logits: torch.Tensor = self.net(shown[codes.int()].movedim(-1, 1))
        return logits.float()


def piece_at(volume: torch.Tensor, middle: np.ndarray) -> torch.Tensor:
    """`PIECE` voxels each way, moved inside where that begins or ends outside."""
    starts = [int(min(max(0, at - PIECE // 2), size - PIECE)) for at, size in zip(middle, volume.shape, strict=True)]
    return volume[tuple(slice(start, start + PIECE) for start in starts)]


def train_where(often: Patients, finding: str, steps: int, rng: np.random.Generator) -> Where:
    """From masks, by pieces with the finding in them and pieces of bone of patients without it."""
    value, labels = CLASSES.index(finding) + 1, often.labels[:, FINDINGS.index(finding)]
    masks, places = {}, {}
    for row in np.flatnonzero(np.isfinite(labels)):
        classes = often.classes(row)
        there = np.argwhere(classes == (value if labels[row] == 1 else SKULL))
        if len(there):
            masks[row], places[row] = torch.from_numpy(classes == value), there[rng.permutation(len(there))[:300]]
    sick, well = ([row for row in places if labels[row] == wanted] for wanted in (1, 0))
    print(f"learned from pieces of {len(sick)} patients with a mask of it and {len(well)} without")
    net, loss_of = Where(), DiceCELoss(sigmoid=True, batch=True)

    def losses() -> Iterator[torch.Tensor]:
        for _ in range(steps):
            pairs = []
            for row in (*rng.choice(sick, PIECES // 2), *rng.choice(well, PIECES // 2)):
                middle = rng.choice(places[row]) + rng.integers(-8, 9, 3)
                turned = [0] if rng.uniform() < 0.5 else []
                pairs.append([piece_at(volume, middle).flip(turned) for volume in (often.codes[row], masks[row])])
            codes, truth = (torch.stack(part) for part in zip(*pairs, strict=True))
            yield loss_of(net(codes), truth[:, None].float())

    descend(net, losses(), steps, 3e-3)
    return net


@torch.no_grad()
def scores_where(net: Where, patients: Patients) -> dict[str, np.ndarray]:
    """Two scores of each scan (n,): of its most suspicious voxels, and the logarithm of the volume that is drawn."""
    logits = [net(codes[None]).flatten() for codes in patients.codes]
    return {
        f"{HIGHEST} highest voxels": np.array([float(one.topk(HIGHEST).values.mean()) for one in logits]),
        "volume": np.array([float(one.sigmoid().sum().log()) for one in logits]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("often", type=Path)
    parser.add_argument("twins", type=Path)
    parser.add_argument("--finding", default="fracture", choices=SEVERITY)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--masks", action="store_true", help="tell the network where the finding is")
    parser.add_argument("--steps", type=int, default=1000, help="with --masks")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="with --masks, cohorts of other patients")
    parser.add_argument("--out", type=Path, help="with --masks, a file for the weights")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if (options.out or options.also) and not options.masks:
        parser.error("--out and --also go with --masks")
    if options.masks and options.finding not in LESIONS:
        parser.error(f"--masks: {options.finding} has none; name one of {', '.join(LESIONS)}")
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    often, rng, column = load(options.often, options.finding), np.random.default_rng(0), FINDINGS.index(options.finding)
    if options.masks:
        where = train_where(often, options.finding, options.steps, rng)
        if options.out:
            torch.save(where.state_dict(), options.out)
        twins = load(options.twins, options.finding)
        for name, scores in scores_where(where, twins).items():
            show_pairs(twins, scores, f"{options.finding}, by {name}", options.finding)
        for path in options.also:
            others = load(path, options.finding)
            for name, scores in scores_where(where, others).items():
                said = measured(scores, others.labels[:, column])
                print(f"{path.name}, by {name}: AUROC {said}, {int(np.nansum(others.labels[:, column]))} have it")
    else:
        known = np.flatnonzero(np.isfinite(often.labels[:, column]))
        print(f"learned from {len(known)} patients, {int(np.nansum(often.labels[:, column]))} of them with it")
        steps = options.epochs * (len(known) // 12)
        net = train(Net(), plain_batches(often, known, options.epochs, rng), steps, 3e-3, rng)
        twins = load(options.twins, options.finding)
        show_pairs(twins, passed(net, twins.codes)[:, column], options.finding, options.finding)
    print(f"{time.process_time():.0f} s of the processor")


if __name__ == "__main__":
    main()
