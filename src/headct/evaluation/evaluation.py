"""Two tables to everything that is known of a detector: `evaluate`, and the tree that becomes `metrics.json`.

The tree, whose leaves are `{"value", "low", "high", "n", "positives", "method"}` (None where there is no number):

    format, settings, notes            how it was made, and what the reader should know
    counts                             scans, patients
    left_out                           finding: why there are no numbers
    macro                              auroc, average_precision: means over the findings
    findings / FINDING
        auroc, average_precision, brier, ece
        sensitivity, specificity, f1, balanced_accuracy, ppv, npv       at operating_point
        operating_point                threshold, origin
        at_specificity / 0.9           sensitivity, read off the curve of these very scans
        at_sensitivity / 0.9           specificity, the same
        baselines                      prevalence, always_positive, majority
        calibration                    curve; parts: reliability - resolution + uncertainty - within = brier
        abstention                     coverage, risk, low, high, area
        abstention_by_ood              the same, the scans least like the training scans left to a person first;
                                       None where the predictions do not say how unlike they are
        roc, precision_recall          x, y, low, high
        shuffled_labels                mean, shufflings
        subgroups / COLUMN / GROUP     scans, auroc, difference (auroc less that of all other scans, with p and p_holm);
                                       reason, where one of them is missing
        unknown                        scans left out because their label is empty
    comparison / FINDING               auroc, average_precision: this model less the other, with p and p_holm
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headct.evaluation import comparison, leakage, operating, subgroups
from headct.evaluation.calibration import Bin, Decomposition, decomposition, ece_estimate, reliability_curve
from headct.evaluation.cells import nearest
from headct.evaluation.comparison import Difference
from headct.evaluation.curves import Band, precision_recall_band, roc_band
from headct.evaluation.intervals import (
    DRAWS,
    LEVEL,
    Area,
    Estimate,
    Patients,
    Share,
    from_draws,
    macro_area,
    mean_of,
    rarer_class,
)
from headct.evaluation.metrics import Array, Ranked
from headct.evaluation.operating import FALLBACK, Abstention, OperatingPoint
from headct.evaluation.subgroups import Subgroup
from headct.evaluation.tables import Case, join, named
from headct.failure import Failure, Misuse

Outcome = Literal["hit", "miss", "false alarm", "cleared"]

FORMAT = 1
VALIDATION = "validation"
OWN, UNCHOSEN = "the predictions' own", f"{FALLBACK}, as neither validation scans nor predictions say another"
"""Where a threshold comes from that is not chosen here."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is asked of two tables."""

    draws: int = DRAWS  # of the bootstrap
    seed: int = 0
    threshold: float | None = None  # None: by `rule` on validation scans, or `FALLBACK` where there are none
    rule: operating.Rule = "youden"
    target: float = 0.9  # of the rules sensitivity and specificity, and of the points read off the curve
    prevalence: float | None = None  # where predictive values are wanted; None: that of these scans
    groups: tuple[str, ...] = ()  # columns of the labels

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.threshold), ("target", self.target), ("prevalence", self.prevalence)):
            if value is not None and not 0 < value < 1:
                raise Misuse(f"{name} is {value:g}", do="give a number between 0 and 1")
        if self.draws < 100:
            raise Misuse(f"{self.draws:,} draws are too few for an interval", do="take 100 or more; 1,000 is usual")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Everything about one finding. `scan_ids`, `labels`, `probabilities` (n,) are what the numbers come from."""

    name: str
    unknown: int
    estimates: Mapping[str, Estimate]  # by the keys of metrics.json
    at_specificity: Mapping[float, Estimate]  # sensitivity
    at_sensitivity: Mapping[float, Estimate]  # specificity
    operating_point: OperatingPoint
    baselines: Mapping[str, Mapping[str, Estimate]]
    curve: tuple[Bin, ...]
    decomposition: Decomposition
    abstention: Abstention
    abstention_by_ood: Abstention | None
    roc: Band
    precision_recall: Band
    shuffled: leakage.Shuffled
    subgroups: tuple[Subgroup, ...]
    area: Area
    scan_ids: tuple[str, ...]
    labels: Array
    probabilities: Array

    @property
    def margins(self) -> Array:
        """How far from the operating point each probability is, (n,)."""
        return np.abs(self.probabilities - self.operating_point.threshold)

    def surest(self, outcome: Outcome) -> int | None:
        """The row of this outcome whose probability is farthest from the operating point; None where there is none."""
        is_there, is_called = self.labels == 1, self.probabilities >= self.operating_point.threshold
        chosen = {
            "hit": is_there & is_called,
            "miss": is_there & ~is_called,
            "false alarm": ~is_there & is_called,
            "cleared": ~is_there & ~is_called,
        }[outcome]
        rows = np.flatnonzero(chosen)
        return int(rows[np.argmax(self.margins[rows])]) if len(rows) else None

    def tree(self) -> Mapping[str, Any]:
        """As it stands in `metrics.json`."""
        groups: dict[str, dict[str, Any]] = {}
        for each in self.subgroups:
            groups.setdefault(each.column, {})[each.group] = _group_tree(each)
        return {
            **{name: estimate.leaf() for name, estimate in self.estimates.items()},
            "operating_point": asdict(self.operating_point),
            "at_specificity": {f"{at:g}": {"sensitivity": e.leaf()} for at, e in self.at_specificity.items()},
            "at_sensitivity": {f"{at:g}": {"specificity": e.leaf()} for at, e in self.at_sensitivity.items()},
            "baselines": {
                name: {key: estimate.leaf() for key, estimate in values.items()}
                for name, values in self.baselines.items()
            },
            "calibration": {
                "curve": [
                    {"from": b.lower, "to": b.upper, "probability": b.probability, "frequency": b.frequency.leaf()}
                    for b in self.curve
                ],
                "parts": {name: part for name, part in asdict(self.decomposition).items() if name != "brier"},
            },
            "abstention": _abstention_tree(self.abstention),
            "abstention_by_ood": None if self.abstention_by_ood is None else _abstention_tree(self.abstention_by_ood),
            "roc": _lists(self.roc),
            "precision_recall": _lists(self.precision_recall),
            "shuffled_labels": asdict(self.shuffled),
            "subgroups": groups,
            "unknown": self.unknown,
        }


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found; `left_out` says of a finding why there are no numbers."""

    settings: EvaluationSettings
    scans: int
    patients: int
    findings: Mapping[str, Finding]
    left_out: Mapping[str, str]
    macro: Mapping[str, Estimate]
    comparison: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def tree(self) -> Mapping[str, Any]:
        """What `metrics.json` holds."""
        return {
            "format": FORMAT,
            "settings": {**asdict(self.settings), "level": LEVEL},
            "counts": {"scans": self.scans, "patients": self.patients},
            "notes": list(self.notes),
            "left_out": dict(self.left_out),
            "macro": {name: estimate.leaf() for name, estimate in self.macro.items()},
            "findings": {name: finding.tree() for name, finding in self.findings.items()},
            "comparison": {
                name: {key: difference.leaf() for key, difference in of_finding.items()}
                for name, of_finding in self.comparison.items()
            },
        }


def evaluate(
    predictions: pd.DataFrame,
    labels: pd.DataFrame,
    settings: EvaluationSettings | None = None,
    against: pd.DataFrame | None = None,
    points: Mapping[str, OperatingPoint] | None = None,
) -> Evaluation:
    """Evaluate predictions by labels, both as `headct.evaluation.tables` reads them.

    Where predictions name splits, thresholds come from validation scans and numbers from test scans, and training scans
    are left out. `points` are thresholds that were chosen before, by finding; only one in the settings goes before
    them. `against` are another model's predictions of the same scans. Raises Misuse where the tables do not go
    together or the other model has learned from tested patients, and Failure where patients straddle splits or no
    finding can be evaluated.
    """
    settings = settings or EvaluationSettings()
    cases, notes = join(predictions, labels)
    _expect_apart(predictions, labels)
    tested, validation = _by_split(cases, notes)
    good, left_out = _evaluable(tested)
    groups = grouped(labels, settings.groups, tuple(cases))
    rows = np.unique(np.concatenate([case.rows for case in good.values()]))
    if against is not None:
        _expect_apart(against, labels, "of the other model's predictions ")
        _expect_unseen(against, labels, rows)
    patients = Patients.of(labels["patient_id"].to_numpy()[rows])
    weights = patients.weights(settings.draws, settings.seed)
    notes += _caution_of_all(good)
    findings, precision, compared = {}, {}, {}
    for name, case in good.items():
        point = _operating_point(validation.get(name), settings, case, (points or {}).get(name))
        notes += _cautions(case)
        drawn = _drawn(weights, np.searchsorted(rows, case.rows))
        precision[name] = Ranked.of(case.labels, case.probabilities).average_precision(drawn)
        findings[name] = _finding(case, point, drawn, precision[name], groups, settings, tuple(cases))
        if against is not None and (differences := _compare(case, against, drawn, notes)):
            compared[name] = differences
    notes += _of_thresholds(findings, settings)
    return Evaluation(
        settings=settings,
        scans=len(rows),
        patients=patients.number,
        findings=findings,
        left_out=left_out,
        macro=_macro(findings, precision),
        comparison=_corrected(compared),
        notes=tuple(dict.fromkeys(notes)),
    )


def rival(done: Evaluation, against: pd.DataFrame, labels: pd.DataFrame) -> Evaluation | None:
    """The other model's numbers, of each finding on the scans on which it was compared; None where it was not.

    Its thresholds come from validation scans of its own, where it names some.
    """
    if not done.comparison:
        return None
    by_finding = {name: against[against["finding"] == name] for name in done.comparison}
    told = [rows[rows["scan_id"].isin(done.findings[name].scan_ids)] for name, rows in by_finding.items()]
    if "split" in against:
        told = [rows.assign(split="test") for rows in told]
        told += [rows[rows["split"] == VALIDATION] for rows in by_finding.values()]
    return evaluate(pd.concat(told), labels, replace(done.settings, groups=()))


def _expect_apart(predictions: pd.DataFrame, labels: pd.DataFrame, what: str = "") -> None:
    """Raises Failure where patients straddle splits, by scans of unknown label too."""
    if "split" in predictions:
        told = (
            predictions[["scan_id", "split"]].drop_duplicates().merge(labels[["scan_id", "patient_id"]], on="scan_id")
        )
        leakage.patients_in_one_split(told["patient_id"], told["split"], what)


def untaught(labels: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Labels of patients of whom the model of the predictions knows no scan, neither from training nor validation."""
    if "split" not in predictions:
        return labels
    taught = predictions["scan_id"][predictions["split"].isin(("train", VALIDATION))]
    known = labels["patient_id"][labels["scan_id"].isin(taught)]
    return labels[~labels["patient_id"].isin(known)]


def _by_split(cases: Mapping[str, Case], notes: list[str]) -> tuple[dict[str, Case], dict[str, Case]]:
    """The cases of test scans and those of validation scans; `notes` get what is left out."""
    rows = np.concatenate([case.rows for case in cases.values()])
    splits = np.concatenate([case.splits.to_numpy(dtype=object) for case in cases.values()])
    if not (splits != "").any() and not any(split for case in cases.values() for split in case.unknown_in):
        notes.append("the predictions name no splits: it is taken that none of these scans was trained on")
        return dict(cases), {}
    for split, fate in (("train", "were trained on"), ("", "are in no split")):
        if number := len(np.unique(rows[splits == split])):
            notes.append(f"{number:,} scans {fate} and are left out")
    if not (splits == "test").any():
        raise Misuse(
            "no scan of the predictions is in the split test",
            why=f"there are {', '.join(sorted(set(splits) - {''}))} only",
            do="predict test scans, or leave out the column split where none was trained on",
        )
    of = {split: {name: case.of(split) for name, case in cases.items()} for split in ("test", VALIDATION)}
    return of["test"], {name: case for name, case in of[VALIDATION].items() if len(case.labels)}


def _evaluable(cases: Mapping[str, Case]) -> tuple[dict[str, Case], dict[str, str]]:
    good, left_out = {}, {}
    for name, case in cases.items():
        if reason := leakage.too_few(case.labels, case.patients):
            left_out[name] = f"of {len(case.labels):,} scans of known label, {reason}"
        else:
            good[name] = case
    if not good:
        raise Failure(
            "no finding can be evaluated",
            why="; ".join(f"{name}: {why}" for name, why in left_out.items()),
            do=f"add patients: at least {leakage.LEAST_PATIENTS} with a finding and {leakage.LEAST_PATIENTS} without",
        )
    return good, left_out


WIDER_FROM = 50
"""Patients of the rarer kind below which intervals of specificity at a fixed sensitivity, and of the calibration error,
are not known to be covered; see `headct.evaluation.intervals`."""


def _caution_of_all(cases: Mapping[str, Case]) -> list[str]:
    """Which intervals the cases have too few patients for, though they have enough for others."""
    rarer = {name: rarer_class(case.labels, case.patients) for name, case in cases.items()}
    few = [name for name, number in rarer.items() if leakage.COVERED_FROM <= number < WIDER_FROM]
    if not few:
        return []
    return [
        f"{', '.join(few)}: fewer than {WIDER_FROM} patients of the rarer kind; intervals of specificity at a fixed "
        "sensitivity and of the calibration error may cover less or more than 95 %"
    ]


def _cautions(case: Case) -> Iterable[str]:
    rarer = rarer_class(case.labels, case.patients)
    if rarer < leakage.COVERED_FROM:
        yield (
            f"{case.finding}: {rarer} patients of the rarer kind; below {leakage.COVERED_FROM} an interval may cover "
            "less or more than 95 %"
        )
    if np.isfinite(case.ood).any() and not np.isfinite(case.ood).all():
        missing = int((~np.isfinite(case.ood)).sum())
        yield f"{case.finding}: no curve of abstention by distance, which {missing:,} scans lack"
    if len(np.unique(case.probabilities)) == 1:
        yield f"{case.finding}: every probability is {case.probabilities[0]:g}"


def grouped(labels: pd.DataFrame, columns: Sequence[str], findings: Sequence[str]) -> dict[str, pd.Series]:
    """By column, the groups of the scans. Raises Misuse where the labels lack one, or it divides nothing."""
    return {column: _grouping(labels, column, findings) for column in columns}


def _grouping(labels: pd.DataFrame, column: str, findings: Sequence[str]) -> pd.Series:
    if column not in labels:
        known = [name for name in labels.columns if name not in ("scan_id", "patient_id")]
        near = nearest(column, known)
        raise Misuse(
            f"the labels have no column {column}",
            why=f"they have {', '.join(known)}",
            do=f"did you mean {near}?" if near else "name one of these",
        )
    groups = subgroups.groups_of(labels[column], findings)
    if not (groups != "").any():
        raise Misuse(
            f"the column {column} gives no groups",
            why=f"it is empty, or has more than {subgroups.MOST_GROUPS} different texts",
            do="write the name of a group into each row",
        )
    return groups


def _operating_point(
    validation: Case | None, settings: EvaluationSettings, tested: Case, before: OperatingPoint | None
) -> OperatingPoint:
    """The settings go before what was chosen before, this before validation scans, these before the model's own."""
    if settings.threshold is not None:
        return OperatingPoint(settings.threshold, "as given")
    if before is not None:
        return before
    if validation is not None and len(np.unique(validation.labels)) == 2:
        return operating.choose(validation.labels, validation.probabilities, settings.rule, settings.target)
    return OperatingPoint(FALLBACK, UNCHOSEN) if tested.threshold is None else OperatingPoint(tested.threshold, OWN)


def _of_thresholds(findings: Mapping[str, Finding], settings: EvaluationSettings) -> Iterable[str]:
    """Findings whose threshold was not chosen as it was asked."""
    by_origin: dict[str, list[str]] = {}
    for name, finding in findings.items():
        by_origin.setdefault(finding.operating_point.origin, []).append(name)
    if unchosen := by_origin.get(UNCHOSEN):
        yield f"{', '.join(unchosen)}: the threshold is {UNCHOSEN}; another one can be given"
    if settings.rule != EvaluationSettings.rule and (own := by_origin.get(OWN)):
        yield f"{', '.join(own)}: the threshold is {OWN} and not one by {settings.rule}, for want of validation scans"


def _drawn(weights: NDArray[np.uint8], rows: NDArray[np.intp]) -> NDArray[np.uint8]:
    """The columns of some scans; no copy where they are all of them, in order."""
    return weights if np.array_equal(rows, np.arange(weights.shape[1])) else weights.take(rows, axis=1)


def _finding(
    case: Case,
    point: OperatingPoint,
    weights: NDArray[np.uint8],
    precision: Array,
    groups: Mapping[str, pd.Series],
    settings: EvaluationSettings,
    findings: Sequence[str],
) -> Finding:
    labels, told, patients = case.labels, case.probabilities, case.patients
    area, ranked, rarer = Area.of(labels, told, patients), Ranked.of(labels, told), rarer_class(labels, patients)
    number, positives = len(labels), int(labels.sum())
    prevalence = settings.prevalence or positives / number

    def drawn(value: Array, draws: Array, *, biased: bool = True) -> Estimate:
        return from_draws(float(value), draws, rarer=rarer, n=number, positives=positives, biased=biased)

    target = settings.target
    return Finding(
        name=case.finding,
        unknown=case.unknown,
        estimates={
            "auroc": area.estimate(),
            "average_precision": drawn(ranked.average_precision(), precision),
            **operating.at_threshold(point.threshold, labels, told, patients, prevalence),
            "brier": mean_of((told - labels) ** 2, patients, positives=positives, log=True),
            "ece": ece_estimate(labels, told, weights),
        },
        at_specificity={target: drawn(ranked.sensitivity_at(target), ranked.sensitivity_at(target, weights))},
        at_sensitivity={
            target: drawn(ranked.specificity_at(target), ranked.specificity_at(target, weights), biased=False)
        },
        operating_point=point,
        baselines=_baselines(labels, patients),
        curve=tuple(reliability_curve(labels, told, patients)),
        decomposition=decomposition(labels, told),
        abstention=operating.abstention(labels, told, point.threshold, patients=patients),
        abstention_by_ood=(
            operating.abstention(labels, told, point.threshold, case.ood, patients)
            if np.isfinite(case.ood).all()
            else None
        ),
        roc=roc_band(ranked, weights),
        precision_recall=precision_recall_band(ranked, weights),
        shuffled=leakage.shuffled_labels(labels, told, settings.seed),
        subgroups=tuple(_subgroups(case, groups, findings)),
        area=area,
        scan_ids=tuple(case.scan_ids),
        labels=labels,
        probabilities=told,
    )


def _subgroups(case: Case, groups: Mapping[str, pd.Series], findings: Sequence[str]) -> Iterable[Subgroup]:
    """By every column; one that is named after a finding (`sdh_ml`) divides that finding alone."""
    for column, names in groups.items():
        owners = [name for name in findings if column.startswith(f"{name}_")]
        owner = max(owners, key=len, default=case.finding)  # sdh_left_ml is of sdh_left, where that is a finding
        if owner == case.finding:
            of_scans = names.iloc[case.rows].rename(column)
            if column.startswith(f"{owner}_"):  # the size of what is not there is no group
                of_scans = of_scans.where(case.labels == 1, "")
            yield from subgroups.subgroups(case.labels, case.probabilities, of_scans, case.patients)


def _baselines(labels: Array, patients: Patients) -> Mapping[str, Mapping[str, Estimate]]:
    """What can be had without looking at a scan. Average precision at chance is the prevalence."""
    share = Share.of(labels == 1, np.ones(len(labels)), patients)
    low, high = share.limits()
    positives = int(labels.sum())

    def from_prevalence(of_low: float, value: float, of_high: float) -> Estimate:
        method = "from the Wilson interval of the prevalence"
        ends = sorted((of_low, of_high))
        return Estimate.of(value, ends[0], ends[1], n=len(labels), positives=positives, method=method)

    f1_low, f1, f1_high = (float(2 * p / (1 + p)) for p in (low, share.value, high))
    always = {
        "f1": from_prevalence(f1_low, f1, f1_high),
        "average_precision": from_prevalence(low, share.value, high),
        "accuracy": from_prevalence(low, share.value, high),
    }
    common = share.value > 0.5
    turned = (low, share.value, high) if common else (1 - low, 1 - share.value, 1 - high)
    majority = {"accuracy": from_prevalence(*turned)} | ({"f1": always["f1"]} if common else {})
    return {
        "prevalence": {"share": share.estimate(positives=positives)},
        "always_positive": always,
        "majority": majority,
    }


def _macro(findings: Mapping[str, Finding], precision: Mapping[str, Array]) -> Mapping[str, Estimate]:
    """Means over the findings; `precision` are the draws of each one's average precision."""
    areas = {name: finding.area for name, finding in findings.items()}
    values = [finding.estimates["average_precision"].value for finding in findings.values()]
    return {
        "auroc": macro_area(areas),
        "average_precision": from_draws(
            float(np.mean([value for value in values if value is not None])),
            np.mean(list(precision.values()), axis=0),
            rarer=sum(min(area.holders) for area in areas.values()),
            n=max(area.n for area in areas.values()),
            positives=sum(area.positives for area in areas.values()),
        ),
    }


def _expect_unseen(against: pd.DataFrame, labels: pd.DataFrame, tested: NDArray[np.intp]) -> None:
    """Raise Misuse where the other model learned from patients whose scans, rows of `labels`, this one is tested on."""
    known = labels.iloc[tested]["scan_id"]
    seen = known[~known.isin(untaught(labels, against)["scan_id"])]
    if len(seen):
        raise Misuse(
            f"{len(seen):,} test scans are of patients whom the other model has learned from: {named(list(seen))}",
            why="a model is better on patients whom it has seen, so the comparison would be unfair",
            do="compare models that were taught with the same split",
        )


def _compare(
    case: Case, against: pd.DataFrame, drawn: NDArray[np.uint8], notes: list[str]
) -> Mapping[str, Difference] | None:
    """One finding against the other model; None, and a note, where it did not predict the same scans."""
    other = against[against["finding"] == case.finding].set_index("scan_id")["probability"]
    told = other.reindex(case.scan_ids).to_numpy(dtype=float)
    if np.isnan(told).any():
        absent = list(case.scan_ids[np.isnan(told)])
        notes.append(
            f"{case.finding} is not compared: the other model predicted {len(told) - len(absent):,} of the "
            f"{len(told):,} tested scans, without {named(absent)}; predict these too, or leave them out of both"
        )
        return None
    if np.array_equal(told, case.probabilities):
        notes.append(f"{case.finding}: both models say the same of every scan, as if they were one")
    areas = [Area.of(case.labels, scores, case.patients) for scores in (case.probabilities, told)]
    return {
        "auroc": comparison.delong(*areas),
        "average_precision": comparison.compare(case.labels, case.probabilities, told, Ranked.average_precision, drawn),
    }


def _corrected(compared: Mapping[str, Mapping[str, Difference]]) -> Mapping[str, Mapping[str, Difference]]:
    """Holm over the findings, for each metric apart."""
    metrics = {key for differences in compared.values() for key in differences}
    by_metric = {
        key: comparison.corrected({name: differences[key] for name, differences in compared.items()})
        for key in sorted(metrics)
    }
    return {name: {key: by_metric[key][name] for key in differences} for name, differences in compared.items()}


def _group_tree(group: Subgroup) -> Mapping[str, Any]:
    leaves = {} if group.area is None else {"auroc": group.area.leaf()}
    if group.difference is not None:
        leaves["difference"] = group.difference.leaf()
    return {"scans": group.scans, **leaves, **({"reason": group.reason} if group.reason else {})}


def _abstention_tree(abstention: Abstention) -> Mapping[str, Any]:
    return {**_lists(abstention), "area": abstention.area}


def _lists(arrays: Abstention | Band) -> dict[str, Any]:
    return {name: values.tolist() for name, values in asdict(arrays).items()}
