"""What few labels find in frozen vectors: random weights, histograms, a pre-trained encoder, and training from scratch.

    headct simulate --patients 400 --seed 11 --masks --deformation --out PRETRAIN
    headct simulate --patients 600 --seed 12 --out LABELLED
    python benchmarks/few_labels.py PRETRAIN LABELLED [--steps 850] [--positives 8 16] [--threads 1]

All patients are virtual: nothing here says anything about real ones. The encoder learns tissues, template coordinates
and changes that were put in (`dense-insert`); it never sees a label, nor the mask of a finding. Of LABELLED, 6 in 10
patients may be drawn as labelled ones, the others are tested on. A negative of one finding may have others. An empty
label (there, but hardly to be seen) counts for neither.

The probe: features standardised on the labelled patients, clipped at 6 standard deviations, divided by the root of
their number, logistic regression with C = 10, on K positives and K negatives of a finding, drawn several times, the
same ones for every row. Macro AUROC is the mean over findings; beside it the standard deviation over draws.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from headct import checkpoints, encoders, pretraining
from headct.cohort import Cohort
from headct.encoders import apply_windows
from headct.encoders.anatomy import POOLINGS
from headct.pretraining.objectives.dense import DenseInsertSettings
from headct.pretraining.views import ViewSettings

FINDINGS = ("iph", "ivh", "sah", "sdh", "edh", "infarct", "tumor", "hydrocephalus")
WINDOWS = {"brain": (40.0, 80.0), "soft": (100.0, 500.0), "all": (250.0, 2500.0)}  # level, width in HU
VOXEL_MM = 4.0
BATCH = 8
LEAST_TEST = 5  # positives without which a finding is not reported


def settings(steps: int, seed: int) -> pretraining.PretrainSettings:
    return pretraining.PretrainSettings(
        objectives={"dense-insert": DenseInsertSettings()},
        encoder="anatomy-conv",
        windows=WINDOWS,
        views=ViewSettings(rotation_deg=4.0, mirror=0.5, scale_hu=0.04, shift_hu=2.5, noise_hu=2.0),
        steps=steps,
        batch=4,
        seed=seed,
        precision="bf16",
        device="cpu",
        workers=1,
        lr=3e-3,
        warmup=0.03,
        decay=(0.02, 0.02),
        save_every=200,
    )


def arrays(cohort: Cohort) -> np.ndarray:
    """All scans (n, x, y, z), int16 HU, averaged to voxels of `VOXEL_MM`."""
    made = []
    for scan_id in cohort.scans["scan_id"]:
        mm = np.linalg.norm(cohort.affine(scan_id)[:3, :3], axis=0)
        block = [round(VOXEL_MM / one) for one in mm]
        hu = F.avg_pool3d(torch.from_numpy(cohort.array(scan_id).astype(np.float32))[None], block)[0]
        made.append(hu.round().to(torch.int16).numpy())
    return np.stack(made)


def batches(hu: np.ndarray) -> Iterator[Tensor]:
    for start in range(0, len(hu), BATCH):
        yield apply_windows(torch.from_numpy(hu[start : start + BATCH]), list(WINDOWS.values()))


def vectors(encoder: encoders.Encoder, hu: np.ndarray) -> np.ndarray:
    encoder.eval()
    with torch.inference_mode():
        return np.concatenate([encoder(x).scan.float().numpy() for x in batches(hu)])


def random_encoder(hu: np.ndarray, seed: int) -> encoders.Encoder:
    """Random weights with BatchNorm statistics of scans, without which they would be no fair baseline."""
    torch.manual_seed(seed)
    encoder = encoders.build("conv-tiny").train()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = None  # a plain mean over batches
    with torch.no_grad():
        for x in batches(hu[: 6 * BATCH]):
            encoder(x)
    return encoder


def histograms(hu: np.ndarray, parts: int) -> np.ndarray:
    """Shares of 30 bins of -20..100 HU, square roots, for each of parts x parts x parts boxes of the grid."""
    rows = []
    for one in hu:
        boxes = [
            box
            for slab in np.array_split(one, parts, axis=0)
            for bar in np.array_split(slab, parts, axis=1)
            for box in np.array_split(bar, parts, axis=2)
        ]
        rows.append(np.concatenate([np.histogram(box, 30, (-20, 100))[0] / box.size for box in boxes]))
    return np.sqrt(rows)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Share of pairs of a positive and a negative that are in order; ties count half."""
    above = scores[positive][:, None] - scores[~positive][None]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


class Protocol:
    """Who is labelled, who is tested, and which few are drawn."""

    def __init__(self, labels: pd.DataFrame, draws: int) -> None:
        self.labels, self.draws = labels, draws
        order = np.random.default_rng(0).permutation(len(labels))
        self.pool, self.test = np.sort(order[: int(0.6 * len(order))]), np.sort(order[int(0.6 * len(order)) :])

    def rows(self, finding: str, among: np.ndarray, value: int) -> np.ndarray:
        return among[self.labels[finding].to_numpy()[among] == value]

    def findings(self, k: int) -> list[str]:
        """Those of which there are K positives to draw and some to test."""
        least = ((self.pool, k), (self.test, LEAST_TEST))
        return [name for name in FINDINGS if all(len(self.rows(name, among, 1)) >= n for among, n in least)]

    def drawn(self, finding: str, k: int, draw: int) -> np.ndarray:
        """K positives, then K negatives."""
        rng = np.random.default_rng((FINDINGS.index(finding), k, draw))
        return np.concatenate([rng.choice(self.rows(finding, self.pool, value), k, replace=False) for value in (1, 0)])

    def tested(self, finding: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows, and which of them are positive."""
        known = np.concatenate([self.rows(finding, self.test, value) for value in (1, 0)])
        return known, self.labels[finding].to_numpy()[known] == 1


def probed(features: np.ndarray, protocol: Protocol, k: int) -> pd.DataFrame:
    """AUROC of every finding (columns) in every draw (rows)."""
    seen = features[protocol.pool]
    scaled = np.clip((features - seen.mean(0)) / (seen.std(0) + 1e-6), -6, 6) / features.shape[1] ** 0.5
    found: dict[str, list[float]] = {}
    for finding in protocol.findings(k):
        rows, positive = protocol.tested(finding)
        found[finding] = []
        for draw in range(protocol.draws):
            model = LogisticRegression(C=10.0, max_iter=2000)
            model.fit(scaled[protocol.drawn(finding, k, draw)], np.repeat([1, 0], k))
            found[finding].append(auroc(model.decision_function(scaled[rows]), positive))
    return pd.DataFrame(found)


def from_scratch(hu: np.ndarray, protocol: Protocol, k: int, steps: int) -> pd.DataFrame:
    """The same network trained on one draw of all findings at once, with what is known of each scan."""
    findings = protocol.findings(k)
    wanted = np.full((len(hu), len(findings)), np.nan, dtype=np.float32)
    for column, finding in enumerate(findings):
        drawn = protocol.drawn(finding, k, 0)
        wanted[drawn, column] = np.repeat([1, 0], k)
    rows = np.flatnonzero(~np.isnan(wanted).all(axis=1))
    torch.manual_seed(0)
    encoder = encoders.build("conv-tiny").train()
    head = nn.Linear(encoder.scan_width, len(findings))
    weights = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        chosen = rng.choice(rows, BATCH, replace=False)
        x = apply_windows(torch.from_numpy(hu[chosen]) + float(rng.uniform(-2.5, 2.5)), list(WINDOWS.values()))
        x = x.flip(2) if rng.uniform() < 0.5 else x
        target = torch.from_numpy(wanted[chosen])
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(encoder(x).scan)
        known = ~target.isnan()
        loss = F.binary_cross_entropy_with_logits(logits.float()[known], target[known])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        scores = head(torch.from_numpy(vectors(encoder, hu))).numpy()
    found = {}
    for column, finding in enumerate(findings):
        rows, positive = protocol.tested(finding)
        found[finding] = [auroc(scores[rows, column], positive)]
    return pd.DataFrame(found)


def pooled(trained: encoders.Encoder, hu: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Vectors of the same weights under each pooling."""
    for pooling in POOLINGS:
        encoder = encoders.build("anatomy-conv", **{**vars(trained.settings), "pooling": pooling})
        encoder.load_state_dict(trained.state_dict())
        yield f"pre-trained, {pooling}", vectors(encoder, hu)


def show(name: str, ks: Sequence[int], found: Callable[[int], pd.DataFrame], per_finding: int) -> None:
    cells = []
    for k in ks:
        table = found(k)
        macro = table.mean(axis=1)
        spread = f" ± {macro.std():.3f}" if len(macro) > 1 else "        "
        cells.append(f"{macro.mean():.3f}{spread}")
        if k == per_finding:
            detail = " ".join(f"{finding} {value:.2f}" for finding, value in table.mean().items())
    print(f"{name:34s} {'   '.join(cells)}   {detail}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pretrain", type=Path)
    parser.add_argument("labelled", type=Path)
    parser.add_argument("--run", type=Path, help="a run to go on with, or one that has ended")
    parser.add_argument("--steps", type=int, default=850)
    parser.add_argument("--scratch-steps", type=int, default=300)
    parser.add_argument("--positives", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)

    cohort = Cohort(options.labelled)
    labels = pd.read_csv(options.labelled / "labels.csv").set_index("scan_id").loc[list(cohort.scans["scan_id"])]
    hu, protocol = arrays(cohort), Protocol(labels.reset_index(), options.draws)
    counts = [f"{name} {len(protocol.tested(name)[0])}/{protocol.tested(name)[1].sum()}" for name in FINDINGS]
    pool = [f"{name} {len(protocol.rows(name, protocol.pool, 1))}" for name in FINDINGS]
    print(f"{len(protocol.pool)} labelled patients, positives: {', '.join(pool)}")
    print(f"{len(protocol.test)} test patients, n/positives: {', '.join(counts)}")
    most = max(options.positives)
    print(f"\n{'macro AUROC':34s} {'   '.join(f'K = {k:<10d}' for k in options.positives)}   each at K = {most}")
    show("chance", options.positives, lambda k: pd.DataFrame({name: [0.5] for name in protocol.findings(k)}), most)

    def row(name: str, features: np.ndarray) -> None:
        show(name, options.positives, lambda k: probed(features, protocol, k), most)

    for seed in (0, 1):
        row(f"random weights {seed}", vectors(random_encoder(hu, seed), hu))
    row("HU histogram", histograms(hu, 1))
    row("HU histogram of 27 regions", histograms(hu, 3))
    begun_s = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        run = options.run or Path(place) / "run"
        told = settings(options.steps, options.seed)
        ended = pretraining.pretrain([options.pretrain], run, told)
        last = ended.history.tail(50).mean()
        seconds = time.process_time() - begun_s
        watched = " ".join(f"{name} {last[name]:.3f}" for name in ("tissue", "places_mm", "bce", "dice", "presence"))
        print(f"pre-training: {len(ended.history)} steps of 4, {seconds:.0f} s of the processor; at the end {watched}")
        trained = checkpoints.load(ended.checkpoint).encoder
    for name, features in pooled(trained, hu):
        row(name, features)
    begun_s = time.process_time()
    show("from scratch, one draw", [most], lambda k: from_scratch(hu, protocol, k, options.scratch_steps), most)
    print(f"({options.scratch_steps} steps of {BATCH}, {time.process_time() - begun_s:.0f} s of the processor)")


if __name__ == "__main__":
    main()
