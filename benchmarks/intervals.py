"""How often the intervals of `headct.evaluation` hold the truth, and how long a bootstrap of large tables takes.

    python benchmarks/intervals.py coverage [--repeats 2000] [--positives 10 15 25 50 100]
    python benchmarks/intervals.py others   [--repeats 400]
    python benchmarks/intervals.py patients [--repeats 1000]
    python benchmarks/intervals.py timing   [--scans 100000] [--findings 20] [--draws 1000]

A 95 % interval should hold the truth in 95 of 100 tables. Tables are drawn from worlds whose truth is known: scores of
negatives are standard normal, those of positives are normal too (`normal`), or both are exponential (`exponential`,
where the positives spread more widely), or a part of the positives cannot be seen at all and the others are obvious
(`hidden`). `coverage` sets the interval of the area under the ROC curve beside DeLong's on the plain scale and the
percentiles of a bootstrap, in the same tables. `others` does the same for all other numbers. In `patients` each has
one to four scans, whose scores go together; beside each interval is one that takes the scans for independent.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtri

from headct.evaluation.calibration import ece_estimate
from headct.evaluation.comparison import delong, paired_bootstrap
from headct.evaluation.intervals import Area, Estimate, Patients, Z, from_draws, mean_of, rarer_class
from headct.evaluation.metrics import Confusion, Ranked, brier, ece
from headct.evaluation.operating import at_threshold

DRAWS = 400  # of a bootstrap in a simulated table; more change little
THRESHOLD = 1.0
Limits = tuple[float | None, float | None]


@dataclass(frozen=True)
class World:
    """Where tables come from: `positives` scans are expected in each, the share `prevalence` of all."""

    shape: str
    positives: int
    prevalence: float
    auroc: float

    @property
    def scans(self) -> int:
        return round(self.positives / self.prevalence)

    def scores(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = rng.standard_normal(len(labels))
        if self.shape == "exponential":
            return rng.exponential(np.where(labels, self.auroc / (1 - self.auroc), 1.0))
        if self.shape == "hidden":
            return noise + 6 * (labels & (rng.random(len(labels)) < 2 * self.auroc - 1))
        return noise + np.sqrt(2) * ndtri(self.auroc) * labels

    def table(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Labels and scores: as many positives as expected."""
        labels = np.arange(self.scans) < self.positives
        return labels, self.scores(labels, rng)

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Labels and scores: as many positives as it happens, at least two."""
        labels = np.arange(self.scans) < max(2, rng.binomial(self.scans, self.prevalence))
        return labels, self.scores(labels, rng)


def held(limits: Limits, truth: float) -> bool:
    low, high = limits
    return low is not None and high is not None and low <= truth <= high


def of(estimate: Estimate) -> Limits:
    return estimate.low, estimate.high


def line(world: World, shares: Mapping[str, list[bool]]) -> None:
    where = f"{world.shape:12s} {world.positives:4d} {world.prevalence:6.2f} {world.auroc:6.2f}"
    print(where, *(f"{100 * np.mean(each):{max(7, len(name))}.1f}" for name, each in shares.items()), flush=True)


def heading(names: list[str]) -> None:
    print("shape         pos.  prev.  AUROC", *(f"{name:>7s}" for name in names))


def worlds(shapes: list[str], positives: list[int], prevalences: list[float], areas: list[float]) -> list[World]:
    return [World(s, m, p, a) for m in positives for s in shapes for p in prevalences for a in areas]


def coverage(arguments: argparse.Namespace) -> None:
    rng = np.random.default_rng(1)
    heading(["ours", "DeLong", "percentile"])
    for world in worlds(["normal", "exponential", "hidden"], arguments.positives, [0.1, 0.5], [0.6, 0.8, 0.9, 0.96]):
        shares: dict[str, list[bool]] = {"ours": [], "DeLong": [], "percentile": []}
        for repeat in range(arguments.repeats):
            labels, scores = world.table(rng)
            area = Area.of(labels, scores)
            half = Z * np.sqrt(area.variance)
            shares["ours"].append(held(of(area.estimate()), world.auroc))
            shares["DeLong"].append(held((area.value - half, area.value + half), world.auroc))
            if repeat < arguments.repeats // 5:  # it takes long, and is here to be looked at only
                draws = Ranked.of(labels, scores).auroc(Patients.each(len(labels)).weights(DRAWS, repeat))
                shares["percentile"].append(held(tuple(np.nanquantile(draws, [0.025, 0.975])), world.auroc))
        line(world, shares)


def truths(world: World, rng: np.random.Generator) -> dict[str, float]:
    """From a sample of a million scans of either kind, weighted to the prevalence."""
    labels = np.arange(400_000) < 200_000
    scores = world.scores(labels, rng)
    weights = np.where(labels, world.prevalence, 1 - world.prevalence)
    ranked, told = Ranked.of(labels, scores), expit(scores - THRESHOLD)
    at = Confusion.at(0.5, labels, told, weights)
    return {
        "precision": float(ranked.average_precision(weights)),
        "sens@0.9": float(ranked.sensitivity_at(0.9, weights)),
        "spec@0.9": float(ranked.specificity_at(0.9, weights)),
        "brier": float(brier(labels, told, weights)),
        "ece": float(ece(labels, told, weights)),
        "sensitivity": float(at.sensitivity),
        "specificity": float(at.specificity),
        "f1": float(at.f1),
        "balanced_accuracy": float(at.balanced_accuracy),
        "ppv": float(at.ppv(world.prevalence)),
        "npv": float(at.npv(world.prevalence)),
    }


def others(arguments: argparse.Namespace) -> None:
    rng = np.random.default_rng(2)
    first = True
    for world in worlds(["normal", "exponential"], arguments.positives, [0.1, 0.4], [0.7, 0.9]):
        truth = truths(world, rng)
        if first:
            heading(list(truth))
        first = False
        shares: dict[str, list[bool]] = {name: [] for name in truth}
        for repeat in range(arguments.repeats):
            labels, scores = world.sample(rng)
            patients, ranked, told = Patients.each(len(labels)), Ranked.of(labels, scores), expit(scores - THRESHOLD)
            weights, rarer = patients.weights(DRAWS, repeat), rarer_class(labels, patients)
            number, positives = len(labels), int(labels.sum())

            def drawn(metric: Callable[..., np.ndarray], *target: float) -> Estimate:
                draws = metric(*target, weights)  # noqa: B023 - called in this turn of the loop only
                value = float(metric(*target))
                biased = metric != ranked.specificity_at  # noqa: B023
                return from_draws(value, draws, rarer=rarer, n=number, positives=positives, biased=biased)  # noqa: B023

            found = {
                "precision": drawn(ranked.average_precision),
                "sens@0.9": drawn(ranked.sensitivity_at, 0.9),
                "spec@0.9": drawn(ranked.specificity_at, 0.9),
                "brier": mean_of((told - labels) ** 2, patients, positives=positives, log=True),
                "ece": ece_estimate(labels, told, weights),
                **at_threshold(0.5, labels, told, patients, world.prevalence),
            }
            for name, estimate in found.items():
                shares[name].append(held(of(estimate), truth[name]))
        line(world, shares)


def of_patients(
    world: World, number: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Patients]:
    """Labels, scores of two models and patients of one to four scans; nine in ten have scans of one label only."""
    codes = np.repeat(np.arange(number), rng.integers(1, 5, number))
    of_patient, mixed = rng.random(number) < world.prevalence, rng.random(number) < 0.1
    labels = np.where(mixed[codes], rng.random(len(codes)) < world.prevalence, of_patient[codes])
    shift = np.sqrt(2) * ndtri(world.auroc) * labels
    common = 0.8 * rng.standard_normal(number)[codes]
    scores = [shift + common + 0.6 * rng.standard_normal(len(codes)) for _ in range(2)]
    return labels, scores[0], scores[1], Patients(codes, number)


def patients(arguments: argparse.Namespace) -> None:
    rng = np.random.default_rng(3)
    names = ["AUROC", "(as scans)", "sens.", "(as scans)", "bal. acc.", "difference", "its bootstrap"]
    print("patients with the finding, prevalence, AUROC:", ", ".join(names))
    for world in worlds(["normal"], arguments.positives, [0.1, 0.4], [0.7, 0.9]):
        shares: list[list[bool]] = [[] for _ in names]
        labels, scores, _, _ = of_patients(world, 100_000, rng)
        at = Confusion.at(THRESHOLD, labels, scores)
        for repeat in range(arguments.repeats):
            labels, scores, second, whose = of_patients(world, round(world.positives / world.prevalence), rng)
            if min(labels.sum(), (~labels).sum()) < 2:
                continue
            alone = Patients.each(len(labels))
            area, other = Area.of(labels, scores, whose), Area.of(labels, second, whose)
            ours = at_threshold(THRESHOLD, labels, scores, whose, world.prevalence)
            naive = at_threshold(THRESHOLD, labels, scores, alone, world.prevalence)
            checks = [
                held(of(area.estimate()), world.auroc),
                held(of(Area.of(labels, scores).estimate()), world.auroc),
                held(of(ours["sensitivity"]), float(at.sensitivity)),
                held(of(naive["sensitivity"]), float(at.sensitivity)),
                held(of(ours["balanced_accuracy"]), float(at.balanced_accuracy)),
                held(of(delong(area, other).estimate), 0.0),
            ]
            if repeat < arguments.repeats // 5:
                weights = whose.weights(DRAWS, repeat)
                pair = [
                    (each.value, Ranked.of(labels, s).auroc(weights)) for each, s in ((area, scores), (other, second))
                ]
                checks.append(held(of(paired_bootstrap(pair[0], pair[1], n=1, positives=1).estimate), 0.0))
            for share, check in zip(shares, checks, strict=False):
                share.append(check)
        where = f"{world.positives:4d} {world.prevalence:5.2f} {world.auroc:5.2f}"
        print(where, *(f"{100 * np.mean(each):8.1f}" for each in shares), flush=True)


def timing(arguments: argparse.Namespace) -> None:
    rng = np.random.default_rng(4)
    labels = rng.random((arguments.findings, arguments.scans)) < rng.uniform(0.01, 0.5, (arguments.findings, 1))
    scores = rng.standard_normal(labels.shape) + labels
    whole, cpu = time.perf_counter(), time.process_time()
    weights = Patients.each(arguments.scans).weights(arguments.draws)
    drawn = time.perf_counter()
    for truth, told in zip(labels, scores, strict=True):
        Ranked.of(truth, told).auroc(weights)
    print(f"{arguments.scans:,} scans x {arguments.findings} findings x {arguments.draws:,} draws of the AUROC:")
    print(f"  draws of patients {drawn - whole:.1f} s, areas {time.perf_counter() - drawn:.1f} s")
    print(f"  in all {time.perf_counter() - whole:.1f} s by the clock, {time.process_time() - cpu:.1f} s of one core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["coverage", "others", "patients", "timing"])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--positives", type=int, nargs="+", default=[10, 15, 25, 50, 100])
    parser.add_argument("--scans", type=int, default=100_000)
    parser.add_argument("--findings", type=int, default=20)
    parser.add_argument("--draws", type=int, default=1000)
    arguments = parser.parse_args()
    {"coverage": coverage, "others": others, "patients": patients, "timing": timing}[arguments.what](arguments)


if __name__ == "__main__":
    main()
