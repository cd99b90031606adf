"""From few labels to a detector: who is learned from, what is learned, and how sure one may be of it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.cohort.identities import is_virtual
from headct.cohort.labels import Account, Labels, only
from headct.detection.calibration import calibrate, operating_points
from headct.detection.detector import Detector
from headct.detection.ladder import climb
from headct.detection.method import Fitted, Progress, Task, quiet
from headct.detection.methods import entry, method
from headct.detection.ood import Familiar
from headct.detection.reasons import VIRTUAL, Met
from headct.detection.scans import scans_of
from headct.detection.shots import Shots, draw_shots
from headct.detection.splits import check_patients, read_splits, split, splits_table
from headct.embedding.machine import Machine
from headct.evaluation.intervals import Area, Patients
from headct.evaluation.leakage import no_duplicates, too_few
from headct.failure import Misuse
from headct.reporting.words import count

LEAST_PATIENTS = 4
"""Of either class, for training and validation to have both: fewer cannot be shared out."""
AUTO = "auto"
SEEDS = 2**32
"""As many as every generator takes that a method may use, scikit-learn's too."""


@dataclass(frozen=True, kw_only=True)
class AdaptSettings:
    """How a detector is made."""

    method: str = AUTO  # or a name that `entry` knows
    shots: int | None = None  # learn from so many positives of each finding and as many negatives; None: from all
    seed: int = 0
    validation: float = 0.25  # share of patients
    test: float = 0.0  # share of patients that are kept out of everything

    def __post_init__(self) -> None:
        if self.method != AUTO:
            entry(self.method)
        if not (self.validation > 0 and self.test >= 0 and self.validation + self.test < 1):
            raise Misuse(
                f"validation and test are shares of patients, got {self.validation:g} and {self.test:g}",
                do="leave some of the patients for training",
            )
        if self.shots is not None and self.shots < 1:
            raise Misuse(f"shots must be at least 1, got {self.shots}")
        if not 0 <= self.seed < SEEDS:
            raise Misuse(f"the seed must lie in 0..{SEEDS - 1}, got {self.seed}")


@dataclass(frozen=True)
class Adapted:
    """A detector, tables that belong beside it (splits, and shots where few were drawn), and what to tell.

    `rows` have finding, `train_with`, `train_without`, `validation_with`, `validation_without` (scans), and
    `validation_auroc` with its 95 % interval (`_low`, `_high`); `ladder` what the rungs of `auto` did, `notes`
    sentences on what was left out, and what is learned from too few.
    """

    detector: Detector
    tables: dict[str, pd.DataFrame]
    rows: list[dict[str, Any]]
    ladder: list[dict[str, Any]]
    notes: list[str]

    def save(self, folder: Path) -> Path:
        """Write the detector's folder. Raises Misuse where it exists already."""
        return self.detector.save(folder, self.tables)


def adapt(
    cohorts: Sequence[Cohort],
    labels: Labels,
    encoder: PretrainedEncoder,
    machine: Machine,
    cache: Path,
    settings: AdaptSettings,
    *,
    required: Sequence[str] = (),
    splits: Path | None = None,
    batch_size: int = 8,
    workers: int = 1,
    progress: Callable[[str], Progress] = lambda what: quiet,
) -> Adapted:
    """Learn the findings of `labels` from their scans, which the cohorts hold.

    Vectors are kept in `cache` (`scans_of`). Patients are shared out by the seed, or by the table `splits`. A finding
    of too few patients is left out and said; one that is `required` is an error. `progress` gives the one for a part
    of the work. Raises Misuse where nothing can be learned from the labels, a patient is in two splits, or a cohort
    has another recipe than the encoder; Failure where scans of different patients are the same, for one of them would
    be learned from and the other validated or tested on.
    """
    begun_s = time.monotonic()
    for cohort in cohorts:
        cohort.expect(encoder.recipe)
    labels, notes = _learnable(labels, required, given=splits is not None)
    patients = labels.patients.astype(str).tolist()
    scan_ids = labels.values.index.astype(str).tolist()
    parts = _shared_out(labels, scan_ids, patients, settings, splits)
    labels, more = _in_both(labels, parts, required)
    notes += more
    truth, shots = labels.values.to_numpy(dtype=float), None
    if settings.shots is not None:
        labels, truth, shots, more = _few(labels, parts, settings, cohorts, required)
        notes += more
    scans = scans_of(
        cohorts, scan_ids, encoder, machine, cache,
        batch_size=batch_size, workers=workers, progress=progress("embedding"),
    )  # fmt: skip
    placed = np.flatnonzero(parts != "")
    no_duplicates(scans.vectors(placed), [scan_ids[row] for row in placed], [patients[row] for row in placed])
    task = Task(
        encoder=encoder,
        scans=scans,
        findings=labels.findings,
        labels=truth,
        patients=np.array(patients),
        train=np.flatnonzero(parts == "train"),
        validation=np.flatnonzero(parts == "validation"),
        seed=settings.seed,
        machine=machine,
    )
    fitted, ladder = _fitted(task, settings, progress)
    notes += _too_few_to_tell(task, settings)
    detector, rows = _detector(task, fitted, _met(cohorts, scan_ids, task.known(task.train)))
    account = _impersonal(labels.account)
    virtual = all(is_virtual(cohort) for cohort in cohorts)
    sentences = [*account.sentences(), *_told(task, parts, shots, splits), *notes, *[VIRTUAL] * virtual]
    record = {
        "virtual": virtual,
        "labels": account.to_dict(),
        "settings": asdict(settings),
        "splits": {part: int((parts == part).sum()) for part in ("train", "validation", "test")},
        "findings": rows,
        "ladder": ladder,
        "sentences": sentences,
        "seconds": round(time.monotonic() - begun_s, 1),
        "machine": str(machine),
    }
    detector = replace(detector, record=record)
    tables = {"splits": splits_table(scan_ids, patients, parts, labels.told.tolist())}
    if shots is not None:
        tables["shots"] = shots.table
    return Adapted(detector, tables, rows, ladder, notes)


def _learnable(labels: Labels, required: Sequence[str], *, given: bool) -> tuple[Labels, list[str]]:
    """The findings that enough patients have, and enough do not; sentences on the others."""
    patients = labels.patients.astype(str)
    number = {
        name: tuple(int(patients[labels.values[name] == value].nunique()) for value in (1, 0))
        for name in labels.findings
    }
    least = 1 if given else LEAST_PATIENTS
    few = {name: counts for name, counts in number.items() if min(counts) < least}
    told = {name: f"{count(with_it, 'patient')} with it, {without} without" for name, (with_it, without) in few.items()}
    wanted = [name for name in required if name in few]
    if wanted or len(few) == len(number):
        name = wanted[0] if wanted else next(iter(few))
        all_told = patients.nunique()
        if all_told < 2 * least:
            what = f"{all_told} labelled patients are too few to learn from and to validate on"
        elif 0 in few[name]:
            what = f"{name} has a single class: {told[name]}"
        else:
            what = f"{name} has too few patients: {told[name]}"
        raise Misuse(
            what,
            why=f"at least {least} patients with a finding and {least} without are needed, for training and validation",
            do="label more patients, or name other findings (--findings)",
        )
    kept = [name for name in labels.findings if name not in few]
    return only(labels, kept), [f"{name} is left out: {told[name]}" for name in few]


def _shared_out(
    labels: Labels, scan_ids: Sequence[str], patients: Sequence[str], settings: AdaptSettings, splits: Path | None
) -> np.ndarray:
    if splits is not None:
        usual = AdaptSettings()
        if (settings.validation, settings.test) != (usual.validation, usual.test):
            raise Misuse(
                f"{splits} says who is in which part, so shares for validation and test would do nothing",
                do="leave out --validation and --test, or --splits",
            )
        return read_splits(splits, scan_ids, patients)
    shares = {
        "train": 1 - settings.validation - settings.test,
        "validation": settings.validation,
        "test": settings.test,
    }
    shares = {part: share for part, share in shares.items() if share > 0}
    parts = split(labels.values.to_numpy(dtype=float), patients, shares, settings.seed)
    check_patients(parts, patients, "the split")
    return parts


def _in_both(labels: Labels, parts: np.ndarray, required: Sequence[str]) -> tuple[Labels, list[str]]:
    """The findings of which training has both classes and validation too; sentences on the others."""
    lacking: dict[str, str] = {}
    for name in labels.findings:
        values = labels.values[name].to_numpy(dtype=float)
        for part in ("train", "validation"):
            positive, negative = (int((values[parts == part] == value).sum()) for value in (1, 0))
            if not positive or not negative:
                lacking.setdefault(name, f"{part} has {count(positive, 'scan')} with it and {negative} without")
    wanted = [name for name in required if name in lacking]
    if wanted or len(lacking) == len(labels.findings):
        name = wanted[0] if wanted else next(iter(lacking))
        raise Misuse(
            f"{name} cannot be learned: {lacking[name]}",
            why="both are needed in training, and in validation to calibrate by",
            do="label more patients, or share them out otherwise (--splits, --validation, --seed)",
        )
    if not lacking:
        return labels, []
    learned = labels.values.drop(columns=list(lacking))  # all rows stay: they are placed
    return replace(labels, values=learned), [f"{name} is left out: {why}" for name, why in lacking.items()]


def _few(
    labels: Labels, parts: np.ndarray, settings: AdaptSettings, cohorts: Sequence[Cohort], required: Sequence[str]
) -> tuple[Labels, np.ndarray, Shots, list[str]]:
    """The findings that can be drawn, their labels (n, f), the draw, and sentences on the other findings.

    Of these labels training keeps K positives and K negatives of each finding; validation keeps all.
    """
    assert settings.shots is not None
    train = np.flatnonzero(parts == "train")
    may = labels.values.iloc[train]
    site_of = {
        str(scan_id): str(site)
        for cohort in reversed(cohorts)
        for scan_id, site in zip(cohort.scans["scan_id"], cohort.scans["site"].fillna(""), strict=True)
    }
    shots = draw_shots(
        may,
        labels.patients.iloc[train].tolist(),
        seed=settings.seed,
        ks=(settings.shots,),
        draws=1,
        sites=[site_of[str(scan_id)] for scan_id in may.index],
    )
    rare = [name for name in labels.findings if not shots.ks[name]]
    if len(rare) == len(labels.findings) or set(rare) & set(required):
        raise Misuse(
            f"{settings.shots} shots cannot be drawn: {'; '.join(shots.left_out)}",
            why="they are drawn without replacement from the training patients",
            do="ask for fewer --shots, label more patients, or name other --findings",
        )
    notes = [
        f"{name} is left out: {why.removeprefix(f'{name}: ')}" for name, why in zip(rare, shots.left_out, strict=True)
    ]
    labels = replace(labels, values=labels.values.drop(columns=rare))  # all rows stay: they are placed
    truth = labels.values.copy()
    truth.iloc[train] = np.nan
    for finding in labels.findings:
        drawn = shots.labels(finding, settings.shots, 0)
        truth.loc[drawn.index, finding] = drawn.to_numpy()
    return labels, truth.to_numpy(dtype=float), shots, notes


def _too_few_to_tell(task: Task, settings: AdaptSettings) -> list[str]:
    """Findings of which training or validation has so few patients that numbers say nothing; shots were asked for."""
    parts = {"training": task.train, "validation": task.validation}
    notes = []
    for name, rows in parts.items():
        if name == "training" and settings.shots is not None:
            continue
        patients = Patients.of(task.patients[rows])
        for column, finding in enumerate(task.findings):
            if why := too_few(task.labels[rows, column], patients):
                notes.append(f"{finding}: {name} has {why}: too few for its numbers to say much")
    return notes


def _fitted(
    task: Task, settings: AdaptSettings, progress: Callable[[str], Progress]
) -> tuple[Fitted, list[dict[str, Any]]]:
    if settings.method == AUTO:
        climbed = climb(task, progress=progress)
        return climbed.fitted, list(climbed.rows)
    if task.encoder.runtime is not None and not entry(settings.method).frozen:
        raise Misuse(
            f"the method {settings.method} cannot be used with an exported graph ({task.encoder.runtime.kind})",
            why="a graph gives vectors and cannot be trained",
            do="name the checkpoint that it was made from, or take the method linear",
        )
    return method(settings.method).fit(task, progress(settings.method)), []


def _detector(task: Task, fitted: Fitted, met: Met) -> tuple[Detector, list[dict[str, Any]]]:
    """Calibrated on the validation rows, and what to tell of each finding."""
    logits, labels = fitted.scores(task.scans, task.validation), task.labels[task.validation]
    patients = task.patients[task.validation]
    calibrations, points, rows = [], [], []
    for column, finding in enumerate(task.findings):
        known = np.isfinite(labels[:, column])
        truth, score = labels[known, column], logits[known, column]
        calibration = calibrate(score, truth, patients[known].tolist(), task.seed)
        calibrations.append(calibration)
        points.append(operating_points(calibration(score)[0], truth))
        train, area = task.labels[task.train, column], Area.of(truth, score, Patients.of(patients[known])).estimate()
        rows.append(
            {
                "finding": finding,
                "train_with": int((train == 1).sum()),
                "train_without": int((train == 0).sum()),
                "validation_with": int(truth.sum()),
                "validation_without": int((truth == 0).sum()),
                "validation_auroc": area.value,
                "validation_auroc_low": area.low,
                "validation_auroc_high": area.high,
            }
        )
    learned_from = task.scans.vectors(task.known(task.train))
    familiar = Familiar.of(learned_from, task.scans.vectors(task.validation), task.seed)
    return Detector(task.encoder, fitted, tuple(calibrations), tuple(points), familiar, met), rows


def _met(cohorts: Sequence[Cohort], scan_ids: Sequence[str], rows: np.ndarray) -> Met:
    wanted = {scan_ids[row] for row in rows}
    scans = pd.concat([cohort.scans for cohort in cohorts], ignore_index=True).drop_duplicates("scan_id")
    return Met.of(scans[scans["scan_id"].isin(wanted)])


def _impersonal(account: Account) -> Account:
    """Without what stands in cells of the user's table, which is not for those who are given the detector."""
    return replace(
        account,
        unmatched=tuple(re.sub(r" \(.*\): ", ": ", row, flags=re.DOTALL) for row in account.unmatched),
        left_out={
            column: re.sub(r" holds .*", " holds no label", why, flags=re.DOTALL)
            for column, why in account.left_out.items()
        },
    )


def _told(task: Task, parts: np.ndarray, shots: Shots | None, splits: Path | None) -> list[str]:
    numbers = {
        part: (int((parts == part).sum()), len(np.unique(task.patients[parts == part])))
        for part in ("train", "validation", "test", "")
    }
    told = ", ".join(
        f"{part} {count(n, 'scan')} of {count(of, 'patient')}" for part, (n, of) in numbers.items() if part and n
    )
    how = f"by {splits.name}" if splits else f"stratified by finding, seed {task.seed}"
    lines = [f"shared out by patient ({how}): {told}"]
    if numbers[""][0]:
        lines.append(f"left out, for they are in no split: {count(numbers[''][0], 'labelled scan')}")
    if shots is not None:
        lines.append(
            f"of the training scans {len(task.known(task.train)):,} were drawn (shots.csv); validation keeps all labels"
        )
    return lines
