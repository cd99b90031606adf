"""What a protocol found, put together: numbers of every learner, and how much more they are than those of baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headct.detection.curves import MACRO
from headct.evaluation.comparison import Difference, corrected
from headct.evaluation.evaluation import Evaluation
from headct.evaluation.intervals import Area, Estimate
from headct.evaluation.repeated import Areas, difference_over_draws, macro_over_draws
from headct.studies.protocol import ALL

MODEL, RANDOM, HISTOGRAM = "model", "random", "histogram"
FEATURES = (MODEL, RANDOM, HISTOGRAM)
BASELINES = (RANDOM, HISTOGRAM)


@dataclass(frozen=True)
class Learner:
    """A method on features: those of the model, of the same encoder with random weights, or histograms."""

    features: str
    method: str

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.features}, {self.method}"

    @property
    def slug(self) -> str:
        """For files."""
        return f"{self.features}-{self.method}"

    def beside(self, baseline: str) -> Learner:
        """What it is compared with: the same method on random weights, or the probe of histograms."""
        return Learner(baseline, self.method if baseline == RANDOM else "linear")


def learners(methods: Sequence[str]) -> list[Learner]:
    """The model's first, so that a reader finds them; nothing but a probe can be had of a histogram."""
    every = [Learner(features, method) for features in FEATURES for method in methods]
    return [one for one in every if one.features != HISTOGRAM or one.method == "linear"]


@dataclass(frozen=True)
class Line:
    """A line of the table: a finding, or the mean of all, by one learner from so many labels.

    `draws` is None where all labels were learned from; only there is an average precision. `less` has the differences
    of area from the baselines on the same scans and draws.
    """

    finding: str
    learner: Learner
    labels: str
    draws: int | None
    auroc: Estimate
    average_precision: Estimate | None
    less: Mapping[str, Difference]

    def row(self) -> dict[str, Any]:
        """As it stands in table.csv."""
        row: dict[str, Any] = {
            "finding": self.finding,
            "learner": self.learner.name,
            "features": self.learner.features,
            "method": self.learner.method,
            "labels": self.labels,
            "draws": self.draws,
            "scans": self.auroc.n,
            "positives": self.auroc.positives,
            **_ends("auroc", self.auroc),
            **_ends("average_precision", self.average_precision),
        }
        for baseline in BASELINES:
            found, name = self.less.get(baseline), f"less_{baseline}"
            row |= _ends(name, None if found is None else found.estimate)
            row |= {f"{name}_p": found and found.p, f"{name}_p_holm": found and found.corrected}
        return row


def _ends(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    told = (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), told, strict=True))


@dataclass(frozen=True, kw_only=True)
class Results:
    """`evaluations` of what learned from all labels; `few` the areas of each draw by learner and size, in words."""

    evaluations: Mapping[Learner, Evaluation]
    few: Mapping[tuple[Learner, str], Sequence[Areas]]

    @cached_property
    def lines(self) -> list[Line]:
        """All labels first, then few; at each the learners in order, and their findings."""
        return [*self._of_all(), *self._of_few()]

    def rows(self) -> list[dict[str, Any]]:
        """The table."""
        return [line.row() for line in self.lines]

    def tree(self) -> dict[str, Any]:
        """For `metrics.json`, whose leaves are those of `headct.evaluation`."""
        few: dict[str, Any] = {}
        differences: dict[str, Any] = {}
        for line in self.lines:
            if line.draws is not None:
                leaf = {"auroc": line.auroc.leaf(), "draws": line.draws}
                few.setdefault(line.learner.name, {}).setdefault(line.labels, {})[line.finding] = leaf
            for baseline, found in line.less.items():
                name = f"{line.learner.name} less {line.learner.beside(baseline).name}"
                of_labels = differences.setdefault(name, {}).setdefault(line.labels, {})
                of_labels[line.finding] = {"auroc": found.leaf()}
        return {
            "learners": {one.name: dict(evaluation.tree()) for one, evaluation in self.evaluations.items()},
            "few_labels": few,
            "differences": differences,
        }

    def _of_all(self) -> Iterator[Line]:
        areas = {
            one: {name: finding.area for name, finding in evaluation.findings.items()}
            for one, evaluation in self.evaluations.items()
        }
        for one, evaluation in self.evaluations.items():
            less = {
                baseline: _differences([areas[one]], [areas[one.beside(baseline)]])
                for baseline in BASELINES
                if one.features == MODEL and one.beside(baseline) in areas
            }
            estimates = {name: finding.estimates for name, finding in evaluation.findings.items()}
            if len(estimates) > 1:
                estimates[MACRO] = dict(evaluation.macro)
            for name, told in estimates.items():
                of_this = {baseline: found[name] for baseline, found in less.items()}
                yield Line(name, one, ALL, None, told["auroc"], told["average_precision"], of_this)

    def _of_few(self) -> Iterator[Line]:
        every = set(next(iter(self.evaluations.values())).findings)
        for (one, size), draws in self.few.items():
            # a draw may lack a finding where few labels are a share of the patients
            findings = [name for name in draws[0] if all(name in areas for areas in draws)]
            kept = [_only(areas, findings) for areas in draws]
            less = {}
            for baseline in BASELINES:
                beside = self.few.get((one.beside(baseline), size), ())
                if one.features == MODEL and beside and findings:
                    number = min(len(draws), len(beside))  # draws are numbered, and the first are the same
                    theirs = [_only(areas, findings) for areas in beside[:number]]
                    less[baseline] = _differences(kept[:number], theirs)
            for name in [*findings, *([MACRO] if len(findings) > 1 and set(findings) == every else [])]:
                wanted = findings if name == MACRO else [name]
                area = macro_over_draws([_only(areas, wanted) for areas in kept])
                yield Line(
                    name, one, size, len(draws), area, None, {baseline: found[name] for baseline, found in less.items()}
                )


def _only(areas: Areas, findings: Sequence[str]) -> dict[str, Area]:
    return {name: areas[name] for name in findings}


def _differences(ours: Sequence[Areas], theirs: Sequence[Areas]) -> dict[str, Difference]:
    """By finding, corrected by Holm for being many, and of their mean."""
    findings = list(ours[0])
    each = {
        name: difference_over_draws([_only(one, [name]) for one in ours], [_only(one, [name]) for one in theirs])
        for name in findings
    }
    return {**corrected(each), MACRO: difference_over_draws(ours, theirs)}
