"""Detectors on cohorts: predictions, labels, the checks that make numbers believable, and the numbers themselves.

A scan is tested where it has a label and none of the detectors has learned from its patient, or validated on it: so all
of them are tested on the same scans, and can be compared in pairs. Thresholds are those that the detectors chose on
their own validation scans. What was predicted is kept beside the numbers, so a second call goes on from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.cohort.journal import write_atomically
from headct.detection.calibration import POINTS, TARGET
from headct.detection.method import Progress, quiet
from headct.embedding.machine import Machine
from headct.evaluation import Area, Evaluation, EvaluationSettings, Patients, evaluate
from headct.evaluation.evaluation import grouped
from headct.evaluation.leakage import no_duplicates, too_few
from headct.evaluation.measurements import Measurements, compare_tables, side_named
from headct.evaluation.operating import OperatingPoint, Rule
from headct.evaluation.pairs import Pair, compare_all
from headct.evaluation.tables import labels_of
from headct.evaluation.transfer import MeanTransfer, TransferMatrix
from headct.failure import Failure, Misuse
from headct.studies.evaluation_checks import Unlearned, unlearned
from headct.studies.evaluation_curves import Kind, LearningCurve, curve_of, forget_curves
from headct.studies.evaluation_predictions import Vectors, predicted, taught
from headct.studies.evaluation_scans import Entry, Labelled, counted, names_of

POINT_OF: Mapping[Rule, str] = {rule: name for name, rule in POINTS.items()}
"""What a detector calls the threshold that a rule chose on its validation scans."""
SAID = ["scan_id", "finding", "probability"]
WITH_TARGET: tuple[Rule, ...] = ("sensitivity", "specificity")

LABELS, PREDICTIONS, METRICS, PAGE = "labels.csv", "predictions", "metrics.json", "report.html"
"""What lies in the folder of an evaluation: labels of all labelled scans, a table a detector, the numbers, the page."""


@dataclass(frozen=True)
class Study:
    """What came out. The first detector is the one that the page is about; all were tested on the same scans.

    `evaluations` and `machines` are by detector, `baselines` by their name, `predictions` by detector and of all
    labelled scans.
    `unlearned` is None where nothing could be learned again.
    """

    entries: Sequence[Entry]
    cohorts: Sequence[Cohort]
    labelled: Labelled
    evaluations: Mapping[str, Evaluation]
    baselines: Mapping[str, Evaluation]
    pairs: Sequence[Pair]
    transfer: Sequence[TransferMatrix]
    measurements: Measurements | None
    curves: Sequence[LearningCurve]
    unlearned: Unlearned | None
    predictions: Mapping[str, pd.DataFrame]
    machines: Mapping[str, Machine]
    notes: tuple[str, ...]

    @property
    def machine(self) -> Machine:
        """Of the first detector."""
        return self.machines[self.entries[0].name]

    @property
    def rows(self) -> Mapping[str, str]:
        """What detectors are called in the matrices of transfer."""
        return called_by_home(self.entries, self.cohorts)

    @property
    def mean_transfer(self) -> MeanTransfer | None:
        """Over findings."""
        return MeanTransfer.of(self.transfer)

    @property
    def first(self) -> Evaluation:
        """Of the first detector, with all that is to be known."""
        main = self.evaluations[self.entries[0].name]
        return replace(main, notes=tuple(dict.fromkeys([*self.notes, *main.notes])))

    def tree(self) -> Mapping[str, Any]:
        """What `metrics.json` holds: the tree of the first detector, and beside it what the others add."""
        mean = self.mean_transfer
        return {
            **self.first.tree(),
            "detectors": {
                entry.name: {
                    "sha256": entry.detector.sha256,
                    "method": entry.detector.learned_by,
                    "findings": list(entry.detector.findings),
                }
                for entry in self.entries
            },
            "parts": dict(counted(self.labelled)),
            "others": {name: one.tree() for name, one in list(self.evaluations.items())[1:]},
            "beside": {name: one.tree() for name, one in self.baselines.items()},
            "pairs": [pair.tree() for pair in self.pairs],
            "transfer": {matrix.finding: matrix.tree() for matrix in self.transfer},
            "mean_transfer": None if mean is None else mean.tree(),
            "measurements": None if self.measurements is None else self.measurements.tree(),
            "few_labels": {curve.kind: curve.tree() for curve in self.curves},
            "shuffled_training": None if self.unlearned is None else self.unlearned.tree(),
        }


def evaluate_detectors(
    entries: Sequence[Entry],
    cohorts: Sequence[Cohort],
    labelled: Labelled,
    out: Path,
    cache: Path,
    machine_of: Callable[[PretrainedEncoder], Machine],
    settings: EvaluationSettings,
    *,
    measured: pd.DataFrame | None = None,
    beside: bool = True,
    few: Sequence[Kind] = (),
    batch_size: int = 8,
    workers: int = 1,
    progress: Callable[[str], Progress] = lambda what: quiet,
) -> Study:
    """Evaluate detectors on the tested scans of cohorts; predictions and labels go to `out`, vectors to `cache`.

    `machine_of` says where an encoder runs, for a graph may have to run elsewhere than others. `measured` are
    measurements by scan_id to be compared with those of the labels, `beside` asks for baselines and the check by
    shuffled training labels, `few` for curves over fewer labels. The groups of the settings come on top of those of the
    scans. Raises Failure where scans of different patients are the same, or no finding can be evaluated;
    Misuse, before anything is looked at, where a cohort has another recipe than a detector, a detector no such
    threshold (`points_of`), or groups and measurements do not go with the labels.
    """
    labels = labelled.tested
    grouped(labels, settings.groups, labelled.findings)
    compared = None if measured is None else compare_tables(measured, labels)
    for entry in entries:
        for cohort in cohorts:
            cohort.expect(entry.detector.encoder.recipe)
    points = {entry.name: points_of(entry, settings) for entry in entries}
    vectors = Vectors(cohorts, labelled.scan_ids, cache, batch_size=batch_size, workers=workers, progress=progress)
    machines = {entry.name: machine_of(entry.detector.encoder) for entry in entries}
    machine = machines[entries[0].name]
    everyone = vectors.by(entries[0].detector.encoder, machine)
    patient_ids = [str(one) for one in labelled.table["patient_id"]]
    no_duplicates(everyone.vectors(np.arange(len(everyone))), labelled.scan_ids, patient_ids)
    tables = {}
    for entry in entries:
        place = _place(out, entry.name)
        tables[entry.name] = predicted(entry, labelled, vectors, machines[entry.name], place)
    _write_labels(labelled.table, out)
    told = {name: _of_test(table, labelled) for name, table in tables.items()}
    alike = [
        f"{first} and {second} say the same of every scan, as if they were one detector"
        for first, second in combinations(told, 2)
        if told[first][SAID].equals(told[second][SAID])
    ]
    settings = replace(settings, groups=tuple(dict.fromkeys([*labelled.groups, *settings.groups])))
    evaluations = {name: evaluate(table, labels, settings, points=points[name]) for name, table in told.items()}
    plain, notes = replace(settings, groups=()), [*labelled.notes, *alike, *_not_in_matrix(labelled, cohorts)]
    probed: dict[str, pd.DataFrame] = {}
    curves: list[LearningCurve] = []
    forget_curves(out)
    checked: Unlearned | None = None
    if beside or few:
        known, why = taught(entries[0], labelled, vectors, machine, settings.seed)
        if known is not None:
            probed = known.probed() if beside else {}
            checked = unlearned(known, progress("shuffled training labels")) if beside else None
            notes += [known.disadvantage] if known.disadvantage and beside else []
            for kind in few:
                curve, lines = curve_of(kind, known, out, progress, beside=beside)
                curves += [curve] if curve else []
                notes += lines
        else:
            missing = [*(["no baselines"] if beside else []), *(["no curve over few labels"] if few else [])]
            notes.append(f"{' and '.join(missing)} beside {entries[0].name}: {why}")
            notes += ["so nothing was learned from shuffled labels to check the training by"] if beside else []
    return Study(
        entries=entries,
        cohorts=cohorts,
        labelled=labelled,
        evaluations=evaluations,
        baselines=_evaluated(probed, labels, plain),
        pairs=_pairs(told, probed, labels, plain),
        transfer=transfer(entries, cohorts, told, labels),
        measurements=_measurements(evaluations[entries[0].name], labels, compared),
        curves=curves,
        unlearned=checked,
        predictions=tables,
        machines=machines,
        notes=tuple(notes),
    )


def expect_own_folder(out: Path, written: Sequence[str] = (LABELS, PAGE)) -> None:
    """Raises Misuse where what is `written` would lie in a cohort, or replace a file that is of no evaluation."""
    ours = (out / METRICS).exists() or (out / PREDICTIONS).exists()
    there = [name for name in written if (out / name).exists()]
    if (out / "cohort.json").exists():
        raise Misuse(f"{out} is a cohort", why="what is found of it belongs elsewhere", do="name another --out")
    if there and not ours:
        raise Misuse(
            f"{out / there[0]} is of no evaluation, and would be replaced", do="name another --out, or move it away"
        )


def points_of(entry: Entry, settings: EvaluationSettings) -> dict[str, OperatingPoint]:
    """The thresholds of a detector by finding, as it chose them on its validation scans.

    Raises Misuse for a rule by which detectors choose none, and for a target that theirs were not chosen by.
    """
    if settings.rule not in POINT_OF:
        raise Misuse(
            f"detectors keep no threshold by the rule {settings.rule}",
            do=f"take {', '.join(POINT_OF)}, or evaluate tables (--predictions)",
        )
    if settings.threshold is None and settings.target != own_target(settings):
        raise Misuse(
            f"the detector {entry.name} keeps no threshold of {settings.rule} {settings.target:g}",
            why=f"it chose its own on its validation scans, for a {settings.rule} of {TARGET:g}",
            do=f"leave --target out or say {TARGET:g}, name a --threshold, or evaluate tables (--predictions)",
        )
    name = POINT_OF[settings.rule]
    reached = f" ({settings.rule} {TARGET:g})" if settings.rule in WITH_TARGET else ""
    origin = f"{name}{reached}, chosen by {entry.name} on its own validation scans"
    return {
        finding: OperatingPoint(points[name], origin)
        for finding, points in zip(entry.detector.findings, entry.detector.points, strict=True)
        if name in points
    }


def own_target(settings: EvaluationSettings) -> float:
    """The target that detectors chose their thresholds by, where the rule has one; else that of the settings."""
    return TARGET if settings.rule in WITH_TARGET else settings.target


def _place(out: Path, name: str) -> Path:
    return out / PREDICTIONS / f"{name.replace('/', '-')}.parquet"


def _write_labels(table: pd.DataFrame, out: Path) -> None:
    """Beside the predictions, so that `headct evaluate --predictions` finds both."""
    write_atomically(out / LABELS, table.to_csv(index=False).encode())


def _of_test(table: pd.DataFrame, labelled: Labelled) -> pd.DataFrame:
    chosen = (table["split"] == "test") & table["finding"].isin(labelled.findings)
    return table[chosen].reset_index(drop=True)


def _evaluated(
    probed: Mapping[str, pd.DataFrame], labels: pd.DataFrame, settings: EvaluationSettings
) -> dict[str, Evaluation]:
    """Baselines whose findings can be evaluated; what they lack, the detector lacks too, and its notes say so."""
    found = {}
    for name, table in probed.items():
        try:
            found[name] = evaluate(table, labels, settings)
        except Failure:
            continue
    return found


def _pairs(
    told: Mapping[str, pd.DataFrame],
    probed: Mapping[str, pd.DataFrame],
    labels: pd.DataFrame,
    settings: EvaluationSettings,
) -> list[Pair]:
    """Every two detectors, and the first one with each baseline, corrected together."""
    first = next(iter(told))
    names = list(told)
    wanted = [(a, b) for index, a in enumerate(names) for b in names[index + 1 :]]
    wanted += [(first, name) for name in probed]
    return compare_all({**told, **probed}, labels, settings, wanted)


def transfer(
    entries: Sequence[Entry], cohorts: Sequence[Cohort], told: Mapping[str, pd.DataFrame], labels: pd.DataFrame
) -> list[TransferMatrix]:
    """By finding, detectors against cohorts, where there are several of either; without pairs of too few patients."""
    if len(entries) < 2 and len(cohorts) < 2:
        return []
    rows = called_by_home(entries, cohorts)
    matrices = []
    for finding in dict.fromkeys(name for table in told.values() for name in table["finding"]):
        areas: dict[tuple[str, str], Area] = {}
        for entry in entries:
            for cohort in dict.fromkeys(labels["cohort"]):
                area = _area(told[entry.name], labels[labels["cohort"] == cohort], str(finding))
                if area is not None:
                    areas[rows[entry.name], str(cohort)] = area
        if areas:
            matrices.append(TransferMatrix.of(str(finding), areas))
    return matrices


def _not_in_matrix(labelled: Labelled, cohorts: Sequence[Cohort]) -> Iterator[str]:
    """Why a finding has no number on one of several cohorts; of one, it is left out and told as that."""
    labels = labelled.tested
    for cohort in names_of(cohorts) if len(cohorts) > 1 else ():
        of_cohort = labels[labels["cohort"] == cohort]
        if of_cohort.empty:
            yield f"no scan of {cohort} is tested: no label names one, or all are of patients that a detector knows"
            continue
        patients = Patients.of(of_cohort["patient_id"].to_numpy())
        for finding in labelled.findings:
            if why := too_few(labels_of(of_cohort, finding), patients):
                yield f"{finding} has no number on {cohort}: {why}"


def called_by_home(entries: Sequence[Entry], cohorts: Sequence[Cohort]) -> dict[str, str]:
    """By name of a detector, the cohort that it alone learned from, or its name, told from that of a cohort."""
    homes = {entry.name: _home(entry, cohorts) for entry in entries}
    times, places = Counter(homes.values()), names_of(cohorts)
    return {
        name: home if home and times[home] == 1 else f"detector {name}" if name in places else name
        for name, home in homes.items()
    }


def _home(entry: Entry, cohorts: Sequence[Cohort]) -> str:
    """The cohort that holds all scans that a detector learned from, or nothing."""
    if entry.splits is None:
        return ""
    train = entry.splits["scan_id"][entry.splits["split"] == "train"]
    for name, cohort in zip(names_of(cohorts), cohorts, strict=True):
        if len(train) and all(scan_id in cohort for scan_id in train):
            return name
    return ""


def _area(table: pd.DataFrame, labels: pd.DataFrame, finding: str) -> Area | None:
    """The area on these scans, by all of their patients: so those of several findings can be averaged."""
    of_finding = table[table["finding"] == finding].set_index("scan_id")["probability"]
    truth = labels_of(labels, finding)
    scores = of_finding.reindex(labels["scan_id"]).to_numpy(dtype=float)
    known = np.isfinite(truth) & np.isfinite(scores)
    patients = Patients.of(labels["patient_id"].to_numpy()).only(known)
    if too_few(truth[known], patients):
        return None
    return Area.of(truth[known], scores[known], patients)


def _measurements(evaluation: Evaluation, labels: pd.DataFrame, compared: Measurements | None) -> Measurements | None:
    """Measured columns against those of the labels (`compared`), and sides where a finding is detected on either."""
    told, truth = sides(evaluation)
    if told.empty:
        return compared
    known = labels[["scan_id", "patient_id"]].merge(truth, on="scan_id")
    of_sides = compare_tables(told, known)
    if compared is None:
        return of_sides
    twice = [
        f"{name} is as it was measured, not as the detector told it"
        for name in of_sides.sides
        if name in compared.sides
    ]
    return Measurements(
        compared.errors, {**of_sides.sides, **compared.sides}, (*compared.notes, *of_sides.notes, *twice)
    )


def sides(evaluation: Evaluation) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sides as they were told and as they are, a column `FINDING_side` for each of `FINDING_left, FINDING_right`.

    Of scans whose label is known on both sides; told is what lies at or above the operating point.
    """
    told: list[pd.Series] = []
    truth: list[pd.Series] = []
    for name, left in evaluation.findings.items():
        right = evaluation.findings.get(f"{name.removesuffix('_left')}_right")
        if not name.endswith("_left") or right is None:
            continue
        column = f"{name.removesuffix('_left')}_side"
        both = pd.DataFrame({"left": left.labels, "said left": left.probabilities}, index=list(left.scan_ids)).join(
            pd.DataFrame({"right": right.labels, "said right": right.probabilities}, index=list(right.scan_ids)),
            how="inner",
        )
        said = side_named(
            both["said left"] >= left.operating_point.threshold, both["said right"] >= right.operating_point.threshold
        )
        told.append(pd.Series(said, index=both.index, name=column))
        truth.append(pd.Series(side_named(both["left"] == 1, both["right"] == 1), index=both.index, name=column))
    empty = pd.DataFrame({"scan_id": pd.Series(dtype=str)})
    if not told:
        return empty, empty
    return tuple(pd.concat(each, axis=1).rename_axis("scan_id").reset_index() for each in (told, truth))  # type: ignore[return-value]
