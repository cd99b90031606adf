"""What few labels find, inside and outside the hospital that they come from: contestants on the same few scans.

A study has cohorts of several sites. The first is the one where labels are: its patients are shared out, a few of the
training patients are drawn as labelled ones (`headct.detection.shots`: by patient, nested, the same for every
contestant), and all are tested on the patients of that site that were held out and on every other site. A negative of
one finding may have others; an empty label counts for neither.

A contestant is a way to learn and what it learns from: frozen vectors (of a pre-trained encoder, of random weights,
of a histogram), or a network from scratch. What it says of the test patients is a table, from which
`headct.evaluation` makes areas, means over findings and draws, and paired differences, all with intervals.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from headct import __version__
from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.cohort.journal import write_atomically
from headct.cohort.labels import joined_patients, read_labels
from headct.detection.curves import Few, by_fractions, by_shots
from headct.detection.linear import Linear
from headct.detection.method import Fitted, Method, Progress, Scans, Task, quiet
from headct.detection.scans import Held, scans_of
from headct.detection.shots import Fractions, Shots, draw_shots
from headct.detection.splits import split, splits_table
from headct.detection.training.finetune import scratch
from headct.embedding.machine import Machine
from headct.evaluation import Area, Estimate, Patients
from headct.evaluation.comparison import Difference
from headct.evaluation.leakage import too_few, torn_patients
from headct.evaluation.repeated import Areas, difference_over_draws, macro_over_draws
from headct.evaluation.tables import named
from headct.failure import Failure, Misuse

FINDINGS = ("iph", "ivh", "sah", "sdh", "edh", "infarct", "tumor", "hydrocephalus")
PROBE = Linear(folds=1, fallback=10.0)
"""The frozen probe: C = 10 for every contestant, as nothing can be chosen among so few labels."""
COLUMNS = ("k", "draw", "site", "scan_id", "finding", "score")
"""Of what was said; k is the size, which with fractions is a share of the patients."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Who is learned from and who is tested."""

    findings: tuple[str, ...] = FINDINGS
    ks: tuple[int, ...] = (8, 16, 32)  # positives of each finding, and as many negatives
    draws: int = 10
    seed: int = 0
    validation: float = 0.15  # share of the first site's patients, by which networks choose their number of steps
    test: float = 0.35  # the rest are those of whom some are drawn


@dataclass(frozen=True)
class Study:
    """n scans of several sites with labels, the parts that they play, and the draws."""

    settings: StudySettings
    scan_ids: Sequence[str]
    labels: pd.DataFrame  # (n, findings) 1, 0 or NaN; index scan_id
    patients: np.ndarray  # (n,) text
    parts: np.ndarray  # (n,) of `PARTS` at the first site; all others are tested
    sites: np.ndarray  # (n,) names
    drawn: Shots | Fractions  # a size is K, or a share of the patients

    @property
    def home(self) -> str:
        """The site whose labels are learned from."""
        return str(self.sites[0])

    @property
    def tested(self) -> np.ndarray:
        """Rows on which every contestant is tested, of all sites."""
        return np.flatnonzero(self.parts == "test")

    def testable(self, site: str) -> tuple[str, ...]:
        """Findings that enough test patients of a site have, and enough have not."""
        rows = self.tested[self.sites[self.tested] == site]
        labels, patients = self.labels.iloc[rows], Patients.of(self.patients[rows])
        return tuple(str(finding) for finding in labels if not too_few(labels[finding].to_numpy(float), patients))

    def places(self) -> tuple[str, ...]:
        """Names of the sites, the first one first."""
        return tuple(dict.fromkeys(map(str, self.sites)))

    def counts(self) -> pd.DataFrame:
        """finding, part or site, n, positives: of whom is learned and who is tested."""
        rows = []
        where = {"to draw from": self.parts == "train"} | {
            site: (self.parts == "test") & (self.sites == site) for site in self.places()
        }
        for place, chosen in where.items():
            for finding in self.labels:
                known = self.labels[finding][chosen].dropna()
                rows.append({"place": place, "finding": finding, "n": len(known), "positives": int(known.sum())})
        return pd.DataFrame(rows)

    def write(self, folder: Path) -> None:
        """The split of the first site and the draws, for others to learn from the same scans and test on the same."""
        home = np.flatnonzero(self.sites == self.home)
        ids = [self.scan_ids[int(row)] for row in home]
        splits = splits_table(ids, self.patients[home].tolist(), self.parts[home])
        write_atomically(folder / "splits.csv", splits.to_csv(index=False).encode())
        self.drawn.write(folder / "shots.csv")

    def task(self, one: Contestant, machine: Machine) -> Task:
        """What a contestant is given, with all labels of the training patients."""
        return Task(
            encoder=one.encoder,
            scans=one.scans,
            findings=tuple(map(str, self.labels)),
            labels=self.labels.to_numpy(dtype=float),
            patients=self.patients,
            train=np.flatnonzero(self.parts == "train"),
            validation=np.flatnonzero(self.parts == "validation"),
            seed=self.settings.seed,
            machine=machine,
        )

    def few(self, task: Task) -> Iterator[Few]:
        """The task with fewer labels, for each size and draw."""
        if isinstance(self.drawn, Fractions):
            return by_fractions(task, self.drawn)
        return by_shots(task, self.scan_ids, self.drawn)


def study_of(sites: Mapping[str, tuple[Cohort, Path]], settings: StudySettings) -> Study:
    """From cohorts with their tables of labels by the name of the site; the first is the one that is learned from.

    Raises Misuse where a patient is at two sites, or no finding can be drawn at any K.
    """
    values, patients, told, names = [], [], [], []
    for site, (cohort, table) in sites.items():
        found = read_labels(table, [cohort], findings=settings.findings)
        values.append(found.values)
        patients += found.patients.astype(str).tolist()
        told += found.told.tolist()
        names.append(np.full(len(found.values), site, dtype=object))
    labels, of, at = pd.concat(values), np.array(joined_patients(patients, told)), np.concatenate(names)
    _expect_apart(of, at)
    home = at == at[0]
    shares = {
        "train": 1 - settings.validation - settings.test,
        "validation": settings.validation,
        "test": settings.test,
    }
    parts = np.full(len(labels), "test", dtype=object)
    parts[home] = split(labels.to_numpy(dtype=float)[home], of[home], shares, settings.seed)
    train = parts == "train"
    shots = draw_shots(labels[train], of[train].tolist(), seed=settings.seed, ks=settings.ks, draws=settings.draws)
    if not any(shots.ks.values()):
        raise Misuse(
            f"no finding can be drawn at K = {', '.join(map(str, settings.ks))}",
            why="; ".join(shots.left_out),
            do="label more patients, or ask for smaller K",
        )
    return Study(settings, labels.index.astype(str).tolist(), labels, of, parts, at, shots)


def _expect_apart(patients: np.ndarray, sites: np.ndarray) -> None:
    twice = torn_patients(patients, sites)
    if twice:
        raise Misuse(
            f"{len(twice):,} patients are at several sites: {named(twice)}",
            why="what is learned of a patient would be tested on the same patient",
            do="keep the scans of a patient at one site",
        )


@dataclass(frozen=True)
class Contestant:
    """A way to learn, and the scans as it sees them. `draws` None: all of the study's; networks take fewer."""

    name: str
    scans: Scans
    encoder: PretrainedEncoder  # of whose windows a network's input is made
    method: Method = PROBE
    draws: int | None = None


def of_encoder(
    name: str, encoder: PretrainedEncoder, study: Study, cohorts: Sequence[Cohort], machine: Machine, cache: Path
) -> Contestant:
    """The frozen vectors of a checkpoint, which are kept in `cache`."""
    return Contestant(name, scans_of(cohorts, study.scan_ids, encoder, machine, cache), encoder)


def of_vectors(name: str, vectors: np.ndarray, like: Contestant) -> Contestant:
    """Other vectors (n, F) of the scans of another contestant."""
    return replace(like, name=name, scans=Held(vectors), method=PROBE, draws=None)


def from_scratch(
    name: str, like: Contestant, architecture: str | None, *, steps: int, lr: float, draws: int, looks: int = 10
) -> Contestant:
    """A network that begins with random weights: the encoder of another contestant, or one by its name.

    How many of its steps are best, the validation patients say, with all of their labels: more than a user with K
    labels has, so that a budget too small or too large is not what it loses by. Transformers want `lr` 3e-3.
    """
    method = scratch(architecture, steps=steps, lr=lr)
    schedule = replace(method.schedule, looks=looks, patience=looks, epochs=0.0)
    return replace(like, name=name, method=replace(method, schedule=schedule), draws=draws)


def predicted(
    study: Study, one: Contestant, machine: Machine, progress: Progress = quiet, drafts: Path | None = None
) -> pd.DataFrame:
    """What a contestant says of each test scan after each draw of each size: a table of `COLUMNS`.

    Scores order scans; they are no probabilities. What was said after a draw is kept in `drafts`, and not made again.
    """
    tables, terms, task = [], _terms(study, one, machine), study.task(one, machine)
    few = [each for each in study.few(task) if one.draws is None or each.draw < one.draws]
    for done, each in enumerate(few, start=1):
        if drafts is None:
            tables.append(_learned(study, one, each))
        else:
            place = drafts / f"{each.size:g}-{each.draw}.parquet"
            tables.append(_once(place, terms, partial(_learned, study, one, each)))
        progress(done, len(few))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))


def kept_predictions(
    folder: Path, study: Study, one: Contestant, machine: Machine, progress: Progress = quiet
) -> pd.DataFrame:
    """`predicted`, kept in a folder under the contestant's name: a killed study goes on with the next draw.

    Raises Misuse where what is kept there is of another study, encoder or way to learn.
    """
    path = folder / f"{one.name.replace(', ', '-').replace(' ', '-')}.parquet"
    drafts, terms = path.with_suffix(".drafts"), _terms(study, one, machine)
    table = _once(path, terms, lambda: predicted(study, one, machine, progress, drafts))
    shutil.rmtree(drafts, ignore_errors=True)
    return table


def _terms(study: Study, one: Contestant, machine: Machine) -> str:
    """A hash of who is learned from and tested, by which labels, vectors and method, and how often."""
    parts = [
        __version__,
        one.encoder.sha256,
        repr(one.method),
        str(one.draws),
        str(study.settings.seed),
        f"{machine.device.type}, {machine.precision}",
        hashlib.sha256(one.scans.vectors(np.arange(len(one.scans))).tobytes()).hexdigest(),
        study.labels.to_csv(),
        "\0".join(map(str, study.scan_ids)),
        "\0".join(map(str, study.parts)),
        "\0".join(map(str, study.sites)),
        study.drawn.table.to_csv(),
    ]
    return hashlib.sha256("\1".join(parts).encode()).hexdigest()


def _once(path: Path, terms: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table of this file, made and written if it is not there. Raises Misuse where it was made on other terms."""
    if not path.exists():
        table = make()
        table.attrs["terms"] = terms
        write_atomically(path, table.to_parquet())
    table = pd.read_parquet(path)
    if table.attrs.get("terms") != terms:
        raise Misuse(
            f"{path} was kept by another study",
            why="its scans, labels, draws, encoder or way to learn differ",
            do=f"remove {path.parent}, or name another folder",
        )
    return table


def _learned(study: Study, one: Contestant, few: Few) -> pd.DataFrame:
    """What a contestant says of all test scans after it learned from one draw."""
    return said(study, few, one.method.fit(few.task), study.tested)


def said(study: Study, few: Few, fitted: Fitted, rows: np.ndarray) -> pd.DataFrame:
    """What was learned from one draw says of these rows, in their order: a table of `COLUMNS`."""
    findings = few.task.findings
    return pd.DataFrame(
        {
            "k": few.size,
            "draw": few.draw,
            "site": np.repeat(study.sites[rows], len(findings)),
            "scan_id": np.repeat(np.asarray(study.scan_ids, dtype=object)[rows], len(findings)),
            "finding": np.tile(np.asarray(findings, dtype=object), len(rows)),
            "score": fitted.scores(few.task.scans, rows).reshape(-1).astype(np.float32),
        }
    )


@dataclass(frozen=True)
class Results:
    """Areas of all contestants by name, then (site, size), then a mapping of findings for each draw."""

    study: Study
    areas: Mapping[str, Mapping[tuple[str, float], Mapping[int, Areas]]]

    def aurocs(self) -> pd.DataFrame:
        """contestant, site, k, draw, finding, auroc, n, positives: a row for each number, without means."""
        rows = [
            {
                "contestant": name,
                "site": site,
                "k": size,
                "draw": draw,
                "finding": finding,
                "auroc": area.value,
                "n": area.n,
                "positives": area.positives,
            }
            for name, cells in self.areas.items()
            for (site, size), draws in cells.items()
            for draw, of_findings in draws.items()
            for finding, area in of_findings.items()
        ]
        return pd.DataFrame(rows)

    def macro(self, name: str, site: str, size: float) -> Estimate | None:
        """The mean over findings and draws with its interval; None where it was not tested."""
        draws = self.areas[name].get((site, size))
        return macro_over_draws(list(draws.values())) if draws else None

    def finding(self, name: str, site: str, size: float, finding: str) -> Estimate | None:
        """The mean over draws of one finding with its interval over both; None where it was not tested."""
        draws = self.areas[name].get((site, size), {})
        told = [{finding: areas[finding]} for areas in draws.values() if finding in areas]
        return macro_over_draws(told) if told else None

    def difference(self, ours: str, other: str, site: str, size: float) -> Difference | None:
        """Ours less the other, paired over the draws that both have; None where there are none."""
        mine, theirs = (self.areas[name].get((site, size), {}) for name in (ours, other))
        both = sorted(set(mine) & set(theirs))
        if not both:
            return None
        return difference_over_draws([mine[draw] for draw in both], [theirs[draw] for draw in both])

    def draws(self, name: str, site: str, size: float) -> int:
        """How many draws there were."""
        return len(self.areas[name].get((site, size), {}))

    def table(self, ours: str) -> pd.DataFrame:
        """The macro area of each contestant at each site and size, and by how much `ours` exceeds it.

        contestant, site, k, findings, draws, auroc, low, high, difference, difference_low, difference_high, p; the last
        four are empty for `ours` itself.
        """
        return pd.DataFrame([row for name in self.areas for row in self._rows(name, ours)])

    def _rows(self, name: str, ours: str) -> Iterator[dict[str, Any]]:
        for (site, size), draws in self.areas[name].items():
            found = self.macro(name, site, size)
            assert found is not None
            row = {
                "contestant": name,
                "site": site,
                "k": size,
                "findings": len(next(iter(draws.values()))),
                "draws": len(draws),
                "auroc": found.value,
                "low": found.low,
                "high": found.high,
            }
            gain = self.difference(ours, name, site, size) if name != ours else None
            if gain is not None:
                of = gain.estimate
                row |= {"difference": of.value, "difference_low": of.low, "difference_high": of.high, "p": gain.p}
            yield row


def results_of(study: Study, tables: Mapping[str, pd.DataFrame]) -> Results:
    """Areas from the tables of `predicted` by the name of the contestant.

    At a site a finding is tested that `LEAST_PATIENTS` have and as many have not. Raises Failure where none is.
    """
    testable = {site: study.testable(site) for site in study.places()}
    if not any(testable.values()):
        raise Failure("no finding has enough test patients", do="add patients, or keep more of them for the test")
    everyone = Patients.of(study.patients)
    row_of = {scan_id: row for row, scan_id in enumerate(study.scan_ids)}
    areas: dict[str, dict[tuple[str, float], dict[int, dict[str, Area]]]] = {}
    for name, table in tables.items():
        cells = areas.setdefault(name, {})
        for key, group in table.groupby(["k", "draw", "site", "finding"], sort=False):
            size, draw, site, finding = cast(tuple[float, int, str, str], key)
            if finding not in testable[site]:
                continue
            rows = np.array([row_of[scan_id] for scan_id in group["scan_id"]])
            truth = study.labels[finding].to_numpy(dtype=float)[rows]
            known = np.isfinite(truth)
            area = Area.of(truth[known], group["score"].to_numpy(dtype=float)[known], everyone.only(rows[known]))
            cells.setdefault((site, size), {}).setdefault(int(draw), {})[str(finding)] = area
    return Results(study, areas)
