"""What each defect of FM-HCT's published downstream changes, on virtual patients, beside the protocol of this package.

    headct simulate --patients 600 --seed 12 --out LABELLED
    python benchmarks/defects.py LABELLED --model RUN [--findings iph sdh] [--shots 16] [--draws 5] [--epochs 10]

All patients are virtual: nothing here says anything about real ones. COHORT is a folder of `headct simulate` whose
recipe is the model's. Patients are shared out to training, validation and test. `as published` is
`headct.detection.training.published.Published`: few-shot scans drawn with replacement, a head in training mode for
ever, flips whatever side a label has, all weights trained although a probe was asked for. Each row below it switches
one of these off and leaves the rest; then all of them; then the package's own methods on nested draws without
replacement. Without --shots all labels are learned from: 500 draws an epoch as published, and as many as there are
training scans in the row that switches this off.

Every draw is tested on the same scans. Areas are means over findings and draws, their differences from `as published`
are paired by draw, finding and patient, with 95 % intervals over patients and draws. Draws of the package's own methods
are others than those of the published code, so there the pairs are of patients alone. The last line says what the order
of the test scans does to the published numbers: nothing else is changed between its rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from headct import checkpoints
from headct.cohort import Cohort
from headct.cohort.labels import read_labels
from headct.detection.curves import Few
from headct.detection.method import Method
from headct.detection.methods import method
from headct.detection.shots import Fractions, Shots, draw_fractions, draw_shots
from headct.detection.splits import split
from headct.detection.training.published import Published
from headct.embedding.machine import Machine, choose
from headct.evaluation.leakage import LEAST_PATIENTS
from headct.evaluation.repeated import Areas, difference_over_draws, macro_over_draws
from headct.failure import Misuse
from headct.studies.few_labels import Contestant, Study, StudySettings, of_encoder, predicted, results_of, said

SHARES = {"train": 0.5, "validation": 0.15, "test": 0.35}
ORDERS = 5  # of the test scans
AS_PUBLISHED = "as published"


def without_defects(shots: int | None, scans: int) -> Mapping[str, dict[str, object]]:
    """Settings that differ from the published ones, by what they switch off."""
    one_by_one: dict[str, dict[str, object]] = {
        "head in evaluation mode": {"evaluation_mode": True},
        "no flips": {"flips": False},
        "the probe's flag heeded": {"locked": True},
    }
    if shots is None:
        one_by_one["an epoch sees as many scans as there are"] = {"draws": scans}
    else:
        one_by_one["drawn without replacement"] = {"replacement": False}
    together = {name: value for settings in one_by_one.values() for name, value in settings.items()}
    return {**one_by_one, "all of these": together}


@dataclass(frozen=True)
class Bench:
    """Who is learned from and tested, and the scans as every row sees them."""

    study: Study
    one: Contestant
    machine: Machine
    draws: int

    def areas(self, of_draws: pd.DataFrame) -> list[Areas]:
        """By finding, of each draw."""
        (found,) = results_of(self.study, {self.one.name: of_draws}).areas[self.one.name].values()
        return list(found.values())

    def published(self, how: Published) -> list[Areas]:
        """A run of the published code for each draw, with a seed of its own, by which it draws among all labels."""
        task = self.study.task(self.one, self.machine)
        runs = [Few(1.0, draw, replace(task, seed=draw)) for draw in range(self.draws)]
        return self.areas(pd.concat([said(self.study, run, how.fit(run.task), self.study.tested) for run in runs]))

    def ours(self, how: Method) -> list[Areas]:
        """The package's own way: the same scans for every method, nested, none twice."""
        return self.areas(predicted(self.study, replace(self.one, method=how), self.machine))

    def orders(self, how: Published) -> np.ndarray:
        """Mean area of one published network for so many orders of the same test scans."""
        run, tested = Few(1.0, 0, self.study.task(self.one, self.machine)), self.study.tested
        fitted, means = how.fit(run.task), []
        for number in range(ORDERS):
            rows = np.random.default_rng(number).permutation(tested) if number else tested
            (areas,) = self.areas(said(self.study, run, fitted, rows))
            means.append(np.mean([area.value for area in areas.values()]))
        return np.array(means)


def bench(options: argparse.Namespace) -> Bench:
    cohort = Cohort(options.cohort)
    encoder = checkpoints.load(options.model)
    labels = read_labels(options.cohort / "labels.csv", [cohort], findings=options.findings)
    patients = labels.patients.to_numpy(dtype=str)
    parts = split(labels.values.to_numpy(dtype=float), patients.tolist(), SHARES, 0)
    kept = [name for name in labels.findings if _testable(labels.values[name].to_numpy(float), parts, patients)]
    if not kept:
        raise Misuse(f"none of {', '.join(labels.findings)} has {LEAST_PATIENTS} test patients of either kind")
    values, train = labels.values[kept], parts == "train"
    study = Study(
        StudySettings(findings=tuple(kept)),
        values.index.astype(str).tolist(),
        values,
        patients,
        parts,
        sites=np.full(len(values), options.cohort.name, dtype=object),
        drawn=_drawn(values[train], patients[train].tolist(), cohort, options),
    )
    machine = choose(options.precision, options.device)
    cache = options.cache or options.cohort.parent / ".headct-vectors"
    return Bench(study, of_encoder("", encoder, study, [cohort], machine, cache), machine, options.draws)


def _drawn(labels: pd.DataFrame, patients: list[str], cohort: Cohort, options: argparse.Namespace) -> Shots | Fractions:
    """Of the package's own methods."""
    if options.shots is None:
        return draw_fractions(labels, patients, seed=0, shares=(1.0,), draws=options.draws)
    site_of = cohort.scans.set_index("scan_id")["site"].fillna("").astype(str)
    sites = site_of[labels.index.astype(str)].tolist()
    drawn = draw_shots(labels, patients, seed=0, ks=(options.shots,), draws=options.draws, sites=sites)
    if drawn.left_out:
        raise Misuse(f"{options.shots} shots cannot be drawn: {'; '.join(drawn.left_out)}", do="name fewer, or others")
    return drawn


def _testable(values: np.ndarray, parts: np.ndarray, patients: np.ndarray) -> bool:
    both = all(((values == value) & (parts == part)).any() for value in (0, 1) for part in ("train", "validation"))
    tested = [len(np.unique(patients[(values == value) & (parts == "test")])) for value in (0, 1)]
    return both and min(tested) >= LEAST_PATIENTS


def show(name: str, found: Sequence[Areas], published: Sequence[Areas]) -> None:
    area = macro_over_draws(found)
    line = f"{name:42s} {area.value:.3f} ({area.low:.3f} to {area.high:.3f})"
    if found is not published:
        less = difference_over_draws(found, published)
        told, each = less.estimate, [difference_over_draws(*_one(found, published, one)) for one in found[0]]
        line += f"   {told.value:+.3f} ({told.low:+.3f} to {told.high:+.3f}), p {less.p:.3f}   "
        line += " ".join(f"{one} {of.estimate.value:+.3f}" for one, of in zip(found[0], each, strict=True))
    print(line, flush=True)


def _one(found: Sequence[Areas], published: Sequence[Areas], finding: str) -> tuple[list[Areas], list[Areas]]:
    return [{finding: areas[finding]} for areas in found], [{finding: areas[finding]} for areas in published]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--findings", nargs="+", default=["iph", "ivh", "sah", "sdh", "edh", "hydrocephalus"])
    parser.add_argument("--shots", type=int, help="of each class; all labels if not given")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10, help="of the published code; its own is 10")
    parser.add_argument("--batch", type=int, default=64, help="of the published code; its own is 64")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="some of the rows by their names, for each takes long")
    parser.add_argument("--methods", nargs="+", default=["linear", "full"], help="the package's own")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="where vectors are kept; beside the cohort")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        run(bench(options), options)


def run(made: Bench, options: argparse.Namespace) -> None:
    study = made.study
    positives = (study.labels.iloc[study.tested] == 1).sum()
    told = ", ".join(f"{name} {number}" for name, number in positives.items())
    training, validation, tested = (int((study.parts == part).sum()) for part in SHARES)
    print(f"{training} training, {validation} validation, {tested} test scans")
    print(f"test positives: {told}; {made.draws} draws, {options.shots or 'all'} labels of each class\n")
    print(f"{'':42s} {'macro AUROC':23s}   less as published")
    as_published = Published(shots=options.shots, epochs=options.epochs, batch=options.batch)
    published = made.published(as_published)
    show(AS_PUBLISHED, published, published)
    rows = without_defects(options.shots, training)
    if unknown := sorted(set(options.rows or ()) - rows.keys()):
        raise Misuse(f"there is no row {unknown[0]!r}", do=f"name some of {', '.join(rows)}")
    for name, settings in ((name, rows[name]) for name in options.rows or rows):
        show(name, made.published(replace(as_published, **settings)), published)  # type: ignore[arg-type]
    for name in options.methods:
        show(f"this package, {name}", made.ours(method(name)), published)
    means = made.orders(as_published)
    print(f"\n{ORDERS} orders of the test scans, {AS_PUBLISHED}: macro AUROC {means.min():.3f} to {means.max():.3f}")
    means = made.orders(replace(as_published, evaluation_mode=True))
    print(f"{ORDERS} orders of the test scans, head in evaluation mode: {means.min():.3f} to {means.max():.3f}")


if __name__ == "__main__":
    main()
