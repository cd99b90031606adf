"""What few labels find inside and outside: a pre-trained encoder beside random weights, histograms, and from scratch.

    for site in site-b site-c site-d; do
      headct simulate --recipe head-coarse --patients 200 --seed 13 --site $site $OFTEN --out $site; done
    headct simulate --recipe head-coarse --patients 900 --seed 12 $OFTEN --out site-a
    headct simulate --recipe head-coarse --patients 600 --seed 11 --masks --deformation --out unlabelled
    python benchmarks/few_labels.py unlabelled site-a site-b site-c site-d --run run [--steps 3000]
        [--positives 8 16 32 64] [--draws 10] [--scratch-steps 600] [--scratch-draws 3] [--threads 2]

with OFTEN="--prevalence F=0.2" for each finding F of `headct.studies.few_labels.FINDINGS`, as 64 positives of a finding
need so many patients. The command takes some hours of two cores, most of them for the networks from scratch;
`--scratch-draws 0` leaves these out. `--run` keeps the run, and goes on with it; its checkpoint is the one that comes
with the package as `virtual-coarse`. `--model` takes another checkpoint instead, `--beside` compares with more, such as
the published recipes on small models: `headct pretrain unlabelled --config benchmarks/published/fm-hct.toml --steps 400
--out fm-hct`, then `--beside FM-HCT=fm-hct`.
What every contestant said is kept in `--out`, so a killed command goes on, with the draws, the split and `results.csv`.

All patients are virtual: nothing here says anything about real ones. The encoder learns tissues, template coordinates
and changes that were put in (`dense-insert`); it never sees a label, nor the mask of a finding. How patients are
shared out, drawn and tested: `headct.studies.few_labels`. Each number has its 95 % interval over test patients and
draws; a difference is ours less the other, paired.
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
from threadpoolctl import threadpool_limits

from headct import checkpoints, encoders, pretraining
from headct.cohort import Cohort
from headct.detection.linear import FittedLinear, Linear
from headct.detection.method import Progress, Scans, Task, quiet
from headct.embedding.machine import Machine, choose
from headct.encoders.anatomy import POOLINGS, AnatomyEncoder
from headct.studies import baselines
from headct.studies.demo import CONVOLUTIONS, HEIGHT, HISTOGRAM, PRETRAINED, REGIONAL, settings
from headct.studies.few_labels import (
    PROBE,
    Contestant,
    Results,
    Study,
    StudySettings,
    from_scratch,
    kept_predictions,
    of_encoder,
    of_vectors,
    results_of,
    study_of,
)

SEEDS = (0, 1)
"""Of random weights."""
TRANSFORMER_LR, CONVOLUTIONS_LR = 3e-3, 2e-3


@dataclass(frozen=True)
class Apart:
    """The probe, for which vectors are standardised on the scans that were drawn for a finding alone."""

    probe: Linear = PROBE

    def fit(self, task: Task, progress: Progress = quiet) -> FittedApart:
        """A finding after the other."""
        alone = [
            self.probe.fit(replace(task, findings=(finding,), labels=task.labels[:, [column]]))
            for column, finding in enumerate(task.findings)
        ]
        return FittedApart(alone)


@dataclass(frozen=True)
class FittedApart:
    """Probes of one finding each."""

    alone: Sequence[FittedLinear]

    def scores(self, scans: Scans, rows: np.ndarray) -> np.ndarray:
        """Logits (B, f)."""
        return np.concatenate([one.scores(scans, rows) for one in self.alone], axis=1)


def pretrained(options: argparse.Namespace) -> checkpoints.PretrainedEncoder:
    """The checkpoint that was named, or that of a run, which is made or gone on with."""
    if options.model is not None:
        return checkpoints.load(options.model)
    told = replace(settings(1.0), budget_s=None, steps=options.steps, seed=options.seed, licence="apache-2.0")
    begun_s = time.process_time()
    run = pretraining.pretrain([options.unlabelled], options.run, told, progress=print)
    print(
        f"pre-training: {len(run.history)} steps, {time.process_time() - begun_s:.0f} s of the processor in this call"
    )
    return checkpoints.load(run.checkpoint)


def contestants(
    encoder: checkpoints.PretrainedEncoder,
    study: Study,
    cohorts: Sequence[Cohort],
    options: argparse.Namespace,
    machine: Machine,
) -> Iterator[Contestant]:
    """Ours first, then its other poolings, then what it must beat."""
    ours = of_encoder(PRETRAINED, encoder, study, cohorts, machine, options.out / "vectors")
    scans, windows = ours.scans, list(encoder.card.windows.values())
    yield ours
    if isinstance(encoder.encoder, AnatomyEncoder):
        for pooling in sorted(set(POOLINGS) - {encoder.encoder.settings.pooling}):
            other = encoders.build(encoder.architecture, **{**vars(encoder.settings), "pooling": pooling})
            other.load_state_dict(encoder.encoder.state_dict())
            yield of_vectors(f"pooling {pooling}", baselines.seen_by(other, windows, scans, machine), ours)
    for named in options.beside:
        name, _, model = named.partition("=")
        yield of_encoder(name, checkpoints.load(model), study, cohorts, machine, options.out / "vectors")
    for seed in SEEDS:
        train = np.flatnonzero(study.parts == "train")
        random = baselines.random_encoder(encoder, scans, train, machine, seed, CONVOLUTIONS)
        yield of_vectors(f"random weights {seed}", baselines.seen_by(random, windows, scans, machine), ours)
    yield of_vectors(HISTOGRAM, baselines.histograms(scans), ours)
    regional = of_vectors(REGIONAL, baselines.histograms(scans, baselines.REGIONS), ours)
    yield regional
    for one in (ours, regional) if options.apart else ():
        yield replace(one, name=f"{one.name}, apart", method=Apart())
    yield of_vectors(HEIGHT, baselines.heights(scans), ours)
    for architecture in options.scratch if options.scratch_draws else ():
        lr = TRANSFORMER_LR if "vit" in architecture else CONVOLUTIONS_LR
        yield from_scratch(
            f"{architecture} from scratch",
            ours,
            architecture,
            steps=options.scratch_steps,
            lr=lr,
            draws=options.scratch_draws,
            looks=20,
        )


def show(results: Results) -> None:
    """The macro table, then every finding at the largest K of the first site."""
    table = results.table(PRETRAINED)
    for (site, k), rows in table.groupby(["site", "k"], sort=False):
        print(f"\n{site}, K = {k}, {rows['findings'].iloc[0]} findings")
        for row in rows.to_dict("records"):
            said = f"{row['auroc']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
            gain = (
                f"  ours {row['difference']:+.3f} ({row['difference_low']:+.3f} to {row['difference_high']:+.3f})"
                if pd.notna(row["difference"])
                else ""
            )
            print(f"  {row['contestant']:28s} {row['draws']:3d} draws  {said}{gain}")
    means = results.aurocs().groupby(["contestant", "site", "k", "finding"], sort=False)["auroc"].mean().unstack()
    print(f"\nby finding, means over draws\n{means.round(2).to_string()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("unlabelled", type=Path)
    parser.add_argument("sites", type=Path, nargs="+", help="the first is learned from; each has labels.csv beside it")
    parser.add_argument("--out", type=Path, default=Path("few-labels"))
    parser.add_argument("--run", type=Path, default=Path("run-of-few-labels"))
    parser.add_argument("--model", help="a checkpoint instead of a run")
    parser.add_argument("--beside", nargs="*", default=[], metavar="NAME=MODEL", help="checkpoints to compare with")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--scratch", nargs="+", default=[CONVOLUTIONS], help="encoders by name")
    parser.add_argument("--scratch-steps", type=int, default=600)
    parser.add_argument("--scratch-draws", type=int, default=3)
    parser.add_argument("--positives", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--apart", action="store_true", help="also standardise vectors on a finding's own scans alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    sites = {path.name: (Cohort(path), path / "labels.csv") for path in options.sites}
    study = study_of(sites, StudySettings(ks=tuple(options.positives), draws=options.draws, seed=options.seed))
    study.write(options.out)
    counts = study.counts().assign(cell=lambda of: of["positives"].astype(str) + "/" + of["n"].astype(str))
    print(counts.pivot(index="place", columns="finding", values="cell").to_string())
    for line in study.drawn.left_out:
        print(line)
    machine, encoder = choose("auto"), pretrained(options)
    cohorts = [cohort for cohort, _ in sites.values()]
    tables = {}
    for one in contestants(encoder, study, cohorts, options, machine):
        begun_s = time.process_time()
        tables[one.name] = kept_predictions(options.out, study, one, machine)
        print(f"{one.name}: {time.process_time() - begun_s:.0f} s of the processor", flush=True)
    results = results_of(study, tables)
    results.table(PRETRAINED).to_csv(options.out / "results.csv", index=False)
    results.aurocs().to_csv(options.out / "aurocs.csv", index=False)
    show(results)


if __name__ == "__main__":
    main()
