"""How much a detector's encoder finds with fewer of its own labels: curves over K shots, or over shares of patients.

Frozen vectors of the encoder, of the same encoder with random weights, and histograms of regions learn from the same
draws of the patients that the detector learned from, and are tested on the scans that it is tested on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from headct.cohort.journal import write_atomically
from headct.detection.curves import MACRO
from headct.detection.linear import Linear
from headct.detection.method import Progress, Scans
from headct.detection.shots import Fractions, Shots, draw_fractions, draw_shots
from headct.evaluation import Estimate
from headct.evaluation.comparison import Difference, corrected
from headct.evaluation.leakage import LEAST_PATIENTS
from headct.failure import Misuse
from headct.studies.evaluation_predictions import Taught
from headct.studies.few_labels import PROBE, Contestant, Results, Study, StudySettings, predicted, results_of

Kind = Literal["shots", "shares"]
CURVES = "curves"
"""The folder of draws and areas, beside the predictions."""
OURS = "frozen encoder"
"""The learner with the detector's encoder."""
METHOD = "linear"
"""What every learner of a curve is, whatever the detector was learned by; of shots `PROBE`, whose penalty is fixed."""


@dataclass(frozen=True)
class LearningCurve:
    """Areas by learner, cohort, size and finding, `OURS` first.

    A size is K, or with `shares` a share of the training patients.
    """

    kind: Kind
    results: Results

    @property
    def learners(self) -> tuple[str, ...]:
        return tuple(self.results.areas)

    def sizes(self, place: str, finding: str) -> list[float]:
        """Sizes at which every draw knew the finding, and it can be tested; for the mean, all that can be tested."""
        testable = self.results.study.testable(place)
        wanted = testable if finding == MACRO else (finding,)
        cells, draws = self.results.areas[OURS], self.results.study.drawn.table["draw"].nunique()
        sizes = sorted(size for at, size in cells if at == place)
        return [
            size
            for size in sizes
            if set(wanted) <= set(testable)
            and sum(set(wanted) <= areas.keys() for areas in cells[place, size].values()) == draws
        ]

    def shown(self, place: str) -> list[str]:
        """The mean over findings, where it exists, and the findings of one cohort; what has no size is left out."""
        testable = self.results.study.testable(place)
        mean = len(testable) > 1 and bool(self.sizes(place, MACRO))
        study = self.results.study
        alone = sum(bool(study.testable(one)) for one in study.places()) == 1
        each = [finding for finding in testable if self.sizes(place, finding)]
        return [*([MACRO] if mean else []), *(each if alone or not mean else [])]

    def compared(self, place: str) -> str:
        """What differences between learners are of: the mean over findings, or the only one that can be tested."""
        testable = self.results.study.testable(place)
        return testable[0] if len(testable) == 1 else MACRO

    def area(self, learner: str, place: str, size: float, finding: str) -> Estimate:
        """The mean over draws, and of `MACRO` over findings, with an interval over draws and test patients."""
        found = (
            self.results.macro(learner, place, size)
            if finding == MACRO
            else self.results.finding(learner, place, size, finding)
        )
        assert found is not None
        return found

    @cached_property
    def _less(self) -> Mapping[tuple[str, str, float], Difference]:
        """By learner, cohort and size; corrected over all of them."""
        at = [
            (learner, place, size)
            for learner, place, size, finding in self._every()
            if finding == self.compared(place) and learner != OURS
        ]
        found = {each: self.results.difference(OURS, *each) for each in at}
        return corrected({each: one for each, one in found.items() if one is not None})

    def less(self, other: str, place: str, size: float) -> Difference | None:
        """By how much ours exceeds another learner's in what is compared, on the same draws and patients.

        Corrected by Holm over all other learners, cohorts and sizes of the curve.
        """
        return self._less.get((other, place, size))

    def labelled(self, size: float) -> int:
        """Positive patients of a finding, or with shares all patients, that have labels and are learned from."""
        drawn = self.results.study.drawn
        return len(drawn.patients(size, 0)) if isinstance(drawn, Fractions) else int(size)

    def draws(self, place: str, size: float) -> int:
        """How many there were."""
        return self.results.draws(OURS, place, size)

    def tree(self) -> Mapping[str, Any]:
        """For `metrics.json`: the method; learner, cohort, size, finding; and the differences."""
        areas: dict[str, Any] = {}
        differences: dict[str, Any] = {}
        for learner, place, size, finding in self._every():
            leaf = {"auroc": self.area(learner, place, size, finding).leaf(), "draws": self.draws(place, size)}
            areas.setdefault(learner, {}).setdefault(place, {}).setdefault(f"{size:g}", {})[finding] = leaf
            if finding == self.compared(place) and learner != OURS:
                less = self.less(learner, place, size)
                assert less is not None
                of = differences.setdefault(f"{OURS} less {learner}", {}).setdefault(place, {})
                of[f"{size:g}"] = {"auroc": less.leaf()}
        return {"method": METHOD, "learners": areas, "differences": differences}

    def table(self) -> pd.DataFrame:
        """learner, cohort, size, labelled, finding, draws, auroc, low, high, n, positives."""
        rows = []
        for learner, place, size, finding in self._every():
            area = self.area(learner, place, size, finding)
            rows.append(
                {
                    "learner": learner,
                    "cohort": place,
                    "size": size,
                    "labelled": self.labelled(size),
                    "finding": finding,
                    "draws": self.draws(place, size),
                    "auroc": area.value,
                    "low": area.low,
                    "high": area.high,
                    "n": area.n,
                    "positives": area.positives,
                }
            )
        return pd.DataFrame(rows)

    def _every(self) -> Iterator[tuple[str, str, float, str]]:
        for learner in self.learners:
            for place in self.results.study.places():
                testable = self.results.study.testable(place)
                for finding in [*testable, *([MACRO] if len(testable) > 1 else [])]:
                    for size in self.sizes(place, finding):
                        yield learner, place, size, finding


def kinds(names: Sequence[str]) -> list[Kind]:
    """Each once. Raises Misuse for another name."""
    for name in names:
        if name not in get_args(Kind):
            raise Misuse(f"there is no curve over {name!r}", do=f"take {' or '.join(get_args(Kind))}")
    return [kind for kind in get_args(Kind) if kind in names]


def curve_of(
    kind: Kind, known: Taught, out: Path, progress: Callable[[str], Progress], *, beside: bool = True
) -> tuple[LearningCurve | None, list[str]]:
    """Learn again and again from few of the labels that a detector learned from; and what was left out.

    Draws and areas are written to `out`; `beside` asks for histograms and random weights too. There is no curve where
    the labels are too few for any draw, or for a test.
    """
    study = _study(kind, known)
    notes = [f"curve over {kind}: {why}" for why in study.drawn.left_out]
    if not (any(study.drawn.ks.values()) if isinstance(study.drawn, Shots) else study.drawn.shares):
        return None, [*notes, f"no curve over {kind}: there are too few labels for any draw"]
    if not any(study.testable(place) for place in study.places()):
        return None, [
            *notes,
            f"no curve over {kind}: no cohort has {LEAST_PATIENTS} test patients with a finding and as many without",
        ]
    seen: dict[str, Scans] = {OURS: known.task.scans, **(known.beside if beside else {})}
    encoder, machine = known.task.encoder, known.task.machine
    method = PROBE if kind == "shots" else Linear()
    told = {
        one: predicted(study, Contestant(one, scans, encoder, method), machine, progress(f"{kind}, {one}"))
        for one, scans in seen.items()
    }
    found = LearningCurve(kind, results_of(study, told))
    if not any(map(found.shown, study.places())):
        return None, [*notes, f"no curve over {kind}: what can be tested was not drawn in every draw of any size"]
    folder = out / CURVES
    folder.mkdir(parents=True, exist_ok=True)
    study.drawn.write(folder / f"{kind}.csv")
    write_atomically(folder / f"{kind}-aurocs.csv", found.table().to_csv(index=False).encode())
    return found, notes


def forget_curves(out: Path) -> None:
    """Remove the curves of an earlier evaluation at this place: they would be taken for those of this one."""
    for kind in get_args(Kind):
        for table in (f"{kind}.csv", f"{kind}-aurocs.csv"):
            (out / CURVES / table).unlink(missing_ok=True)


def _study(kind: Kind, known: Taught) -> Study:
    task = known.task
    scan_ids = known.table["scan_id"].astype(str).tolist()
    labels = pd.DataFrame(task.labels, columns=list(task.findings), index=pd.Index(scan_ids, name="scan_id"))
    patients = task.patients.astype(str)
    parts = np.full(len(scan_ids), "test", dtype=object)
    parts[task.train] = "train"
    labelled = task.train[np.isfinite(task.labels[task.train]).any(axis=1)]
    settings = StudySettings(findings=task.findings, seed=task.seed)
    cohorts = known.table["cohort"].to_numpy(dtype=object)
    return Study(settings, scan_ids, labels, patients, parts, cohorts, _drawn(kind, known, labels, labelled))


def _drawn(kind: Kind, known: Taught, labels: pd.DataFrame, rows: np.ndarray) -> Shots | Fractions:
    """Negatives of shots are matched to positives by site, as `headct adapt` does."""
    may, patients, seed = labels.iloc[rows], known.task.patients[rows].astype(str).tolist(), known.task.seed
    if kind == "shares":
        return draw_fractions(may, patients, seed=seed)
    sites = known.table["site"].fillna("").astype(str).to_numpy()[rows]
    return draw_shots(may, patients, seed=seed, sites=sites.tolist())
