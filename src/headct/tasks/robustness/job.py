"""`headct robustness`: the same heads seen twice, by an encoder or by a detector.

Either a patient was scanned twice (two rows of the cohort with one patient_id), or each scan is changed by known
amounts. Whatever happened to a patient between two scans counts as a change, so scans should be near in time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.cohort.identities import is_virtual
from headct.cohort.journal import write_atomically
from headct.detection import Detector
from headct.detection.calibration import POINT
from headct.detection.scans import Held
from headct.embedding.machine import Machine
from headct.evaluation.intervals import Estimate, Share, mean_of
from headct.evaluation.measurements import concordance, errors
from headct.failure import Failure, Misuse
from headct.reporting import page
from headct.reporting.measured import Measured
from headct.reporting.robustness import Row, robustness_page
from headct.reporting.words import count
from headct.tasks.robustness.agreement import LEAST_HEADS, cosines, icc, ranks
from headct.tasks.robustness.changes import KINDS, Change, all_changes, changed

PAIRS, TABLE, METRICS, PAGE = "pairs.csv", "robustness.csv", "metrics.json", "page.html"
THICKNESS_MM, TILT_DEG = 1.0, 5.0
"""Two scans whose slices, or tilts, differ by more than this are another group."""
FEW = 5
"""A group of fewer pairs says nothing."""
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compared.

    `perturb`: True changes each scan, False takes two scans of each patient, None whichever there is.
    """

    perturb: bool | None = None
    changes: tuple[Change, ...] = all_changes()
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise Misuse(f"batch_size must be at least 1, got {self.batch_size}")
        if not self.changes:
            raise Misuse("there is nothing to change", do=f"name some of {', '.join(KINDS)}")


@dataclass(frozen=True)
class Seen:
    """What was seen in n scans."""

    vectors: np.ndarray  # (n, F)
    probabilities: np.ndarray  # (n, f), of f findings; f is 0 without a detector


@dataclass(frozen=True)
class Group:
    """Pairs of n heads, and which of them are summarised together under a name."""

    name: str  # a kind of `KINDS`, or "rescan"
    size: float | None
    unit: str
    label: str
    pairs: np.ndarray  # (n,) bool
    first: Seen
    second: Seen


@dataclass(frozen=True)
class Robustness:
    """What was found: `pairs` has a row for each pair, `table` one for each group, measure and finding."""

    pairs: pd.DataFrame
    table: pd.DataFrame
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    perturbed: bool

    def metrics(self) -> dict[str, Any]:
        """By group, then measure, or finding and measure: leaves of `metrics.json`."""
        tree: dict[str, Any] = {}
        for row in self.table.to_dict("records"):
            place = tree.setdefault(str(row["group"]), {})
            if row["finding"]:
                place = place.setdefault(str(row["finding"]), {})
            leaf = {key: row[key] for key in ("value", "low", "high", "n", "positives", "method")}
            place[str(row["measure"])] = {key: None if pd.isna(one) else one for key, one in leaf.items()}
        return tree


def measure(
    cohort: Cohort,
    by: PretrainedEncoder | Detector,
    machine: Machine,
    settings: Settings | None = None,
    *,
    progress: Progress = lambda done, total: None,
) -> Robustness:
    """See each head of a cohort twice, and compare.

    Raises Misuse where the recipe is another, there are fewer than three patients, two scans a patient are asked for
    and are not there, arrays that are not in HU are to be changed, or the cohort is one of twins, who differ.
    Raises Failure where a vector is not finite.
    """
    settings = settings or Settings()
    eye = _Eye(by, machine, settings.batch_size)
    cohort.expect(eye.encoder.recipe)
    firsts, seconds, notes = _whom(cohort)
    perturb = len(seconds) < LEAST_HEADS if settings.perturb is None else settings.perturb
    if perturb:
        groups = _perturbed(cohort, firsts, eye, settings, progress)
    else:
        groups = _rescanned(cohort, firsts, seconds, eye, progress)
        alone = len(firsts) - len(seconds)
        notes += (f"left out, having one scan only: {count(alone, 'patient')}",) * (alone > 0)
    ids = _ids(cohort, firsts, None if perturb else seconds)
    pairs, rows = [], []
    for group in groups:
        if perturb or group.label == "all":
            pairs.append(_pairs(group, ids, eye.findings))
        rows += list(_rows(group, eye))
    table = pd.DataFrame(rows)
    return Robustness(pd.concat(pairs, ignore_index=True), table, eye.findings, notes, perturb)


class _Eye:
    """An encoder, with a detector's findings if there is one."""

    def __init__(self, by: PretrainedEncoder | Detector, machine: Machine, batch_size: int) -> None:
        self.detector = by.on(machine) if isinstance(by, Detector) else None
        self.encoder = by.encoder if isinstance(by, Detector) else by
        self.encoder.eval().to(machine.device)
        self.machine, self.batch_size = machine, batch_size
        self.findings: tuple[str, ...] = self.detector.findings if self.detector else ()
        self.points: Mapping[str, float] = (
            {name: one[POINT] for name, one in zip(self.findings, self.detector.points, strict=True) if POINT in one}
            if self.detector
            else {}
        )

    def see(self, scans: Iterator[tuple[str, np.ndarray, np.ndarray]]) -> Seen:
        """Scans given as name, array and voxel size (3,), in batches of one shape."""
        seen: list[Seen] = []
        batch: list[tuple[str, np.ndarray, np.ndarray]] = []
        for scan in scans:
            if batch and (len(batch) == self.batch_size or scan[1].shape != batch[0][1].shape):
                seen.append(self._see(batch))
                batch = []
            batch.append(scan)
        seen.append(self._see(batch))
        return Seen(np.concatenate([one.vectors for one in seen]), np.concatenate([one.probabilities for one in seen]))

    def _see(self, batch: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Seen:
        arrays = np.stack([array for _, array, _ in batch])
        spacing_mm = np.stack([mm for _, _, mm in batch]).astype(np.float32)
        device = self.machine.device
        with torch.inference_mode(), self.machine.arithmetic():
            features = self.encoder.see(torch.from_numpy(arrays).to(device), torch.from_numpy(spacing_mm).to(device))
        vectors = features.scan.float().cpu().numpy()
        for (name, _, _), vector in zip(batch, vectors, strict=True):
            if not np.isfinite(vector).all():
                raise Failure(
                    f"the vector of scan {name} is not finite",
                    why="its array holds values that are no numbers, or the model's weights do",
                    do="look at the scan, or name another model",
                )
        if self.detector is None:
            return Seen(vectors, np.zeros((len(vectors), 0)))
        scores = self.detector.fitted.scores(Held(vectors, arrays, spacing_mm), np.arange(len(vectors)))
        return Seen(vectors, self.detector.probabilities(scores)[0])


def _whom(cohort: Cohort) -> tuple[list[str], list[str], tuple[str, ...]]:
    """The first scan of each patient, then the second ones of those who have two, in the same order, and notes.

    Patients who have two come first.
    """
    scans = cohort.scans
    of_patient = scans.groupby("patient_id", sort=False)["scan_id"].apply(list)
    if len(of_patient) < LEAST_HEADS:
        raise Misuse(
            f"cohort {cohort.path} holds scans of {count(len(of_patient), 'patient')}",
            why=f"agreement is judged among different heads, at least {LEAST_HEADS}",
            do="name a larger cohort",
        )
    twice = [ids for ids in of_patient if len(ids) > 1]
    once = [ids for ids in of_patient if len(ids) == 1]
    further = sum(len(ids) - 2 for ids in twice)
    notes = (f"left out, of patients who have more than two: {count(further, 'further scan')}",) if further else ()
    return [ids[0] for ids in (*twice, *once)], [ids[1] for ids in twice], notes


def _scan(cohort: Cohort, scan_id: str) -> tuple[str, np.ndarray, np.ndarray]:
    return scan_id, cohort.array(scan_id), np.linalg.norm(cohort.affine(scan_id)[:3, :3], axis=0)


def _perturbed(
    cohort: Cohort, scan_ids: Sequence[str], eye: _Eye, settings: Settings, progress: Progress
) -> Iterator[Group]:
    recipe = eye.encoder.recipe
    if not recipe.in_hu:
        raise Misuse(
            f"recipe {recipe.name} ({recipe.id}) gives arrays that are not in HU, which cannot be changed as scans are",
            do="name a cohort with two scans of each patient",
        )
    rounds = 1 + len(settings.changes)
    first = eye.see(_scan(cohort, one) for one in scan_ids)
    everyone = np.ones(len(scan_ids), dtype=bool)
    for number, change in enumerate(settings.changes, start=1):
        progress(number, rounds)

        def other(scan_id: str, change: Change = change) -> tuple[str, np.ndarray, np.ndarray]:
            name, array, spacing_mm = _scan(cohort, scan_id)
            return name, changed(array, spacing_mm, change, name, settings.seed), spacing_mm

        second = eye.see(other(one) for one in scan_ids)
        yield Group(change.kind, change.size, KINDS[change.kind].unit, change.words, everyone, first, second)
    progress(rounds, rounds)


def _rescanned(
    cohort: Cohort, firsts: Sequence[str], seconds: Sequence[str], eye: _Eye, progress: Progress
) -> Iterator[Group]:
    twins = cohort.about.get("simulated", {}).get("simulation", {}).get("twin")
    if twins:
        raise Misuse(f"the two scans of a patient in {cohort.path} differ in {twins}", do="simulate with --rescan")
    if len(seconds) < LEAST_HEADS:
        raise Misuse(
            f"in {cohort.path} there are two scans of {count(len(seconds), 'patient')} only",
            why=f"at least {LEAST_HEADS} such patients are needed",
            do="leave out --rescans: each scan is then changed by known amounts",
        )
    firsts = firsts[: len(seconds)]
    first = eye.see(_scan(cohort, one) for one in firsts)
    progress(1, 2)
    second = eye.see(_scan(cohort, one) for one in seconds)
    progress(2, 2)
    for label, chosen in _kinds_of_pairs(cohort, firsts, seconds).items():
        yield Group("rescan", None, "", label, chosen, first, second)


def _kinds_of_pairs(cohort: Cohort, firsts: Sequence[str], seconds: Sequence[str]) -> dict[str, np.ndarray]:
    """All pairs, and those of which the table says that something changed, or did not; groups of a few are left out.

    A pair of which a side is not stated is in neither.
    """
    table = cohort.scans.set_index("scan_id")
    one, two = table.loc[list(firsts)], table.loc[list(seconds)]
    found = {"all": np.ones(len(firsts), dtype=bool)}
    for column in ("site", "manufacturer", "kernel"):
        first, second = (side[column].fillna("").to_numpy(dtype=str) for side in (one, two))
        stated = (first != "") & (second != "")
        found |= {f"same {column}": stated & (first == second), f"other {column}": stated & (first != second)}
    for column, least, unit in (("thickness_mm", THICKNESS_MM, "mm"), ("tilt_deg", TILT_DEG, "°")):
        apart = np.abs(one[column].to_numpy(float) - two[column].to_numpy(float))
        name = column.partition("_")[0]
        found |= {f"{name} within {least:g} {unit}": apart <= least, f"{name} beyond {least:g} {unit}": apart > least}
    return {name: chosen for name, chosen in found.items() if name == "all" or FEW <= chosen.sum() < len(chosen)}


def _ids(cohort: Cohort, firsts: Sequence[str], seconds: Sequence[str] | None) -> pd.DataFrame:
    kept = list(firsts if seconds is None else firsts[: len(seconds)])
    patients = cohort.scans.set_index("scan_id")["patient_id"]
    return pd.DataFrame(
        {"patient_id": patients.loc[kept].to_numpy(), "first": kept, "second": kept if seconds is None else seconds}
    )


def _pairs(group: Group, ids: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """A row for each pair: who, what changed, cosine, mean squared difference, rank, and probabilities."""
    similarity = cosines(group.first.vectors, group.second.vectors)
    apart = group.first.vectors.astype(float) - group.second.vectors
    told: dict[str, Any] = {
        "change": group.name,
        "size": group.size,
        "unit": group.unit,
        "cosine": np.diag(similarity),
        "mean_square": (apart**2).mean(axis=1),
        "rank": ranks(similarity),
    }
    for column, name in enumerate(findings):
        told[f"{name}_first"] = group.first.probabilities[:, column]
        told[f"{name}_second"] = group.second.probabilities[:, column]
    return ids.assign(**told)


def _within(estimate: Estimate, least: float, most: float) -> Estimate:
    """With an interval that stays where the number can lie."""
    if estimate.low is None or estimate.high is None:
        return estimate
    return replace(estimate, low=max(least, estimate.low), high=min(most, estimate.high))


def _rows(group: Group, eye: _Eye) -> Iterator[dict[str, Any]]:
    """A row for each measure of a group."""
    chosen, n = group.pairs, int(group.pairs.sum())
    similarity = cosines(group.first.vectors, group.second.vectors)
    own = np.diag(similarity)[chosen]
    others = similarity[chosen][~np.eye(len(similarity), dtype=bool)[chosen]]
    place = ranks(similarity)[chosen]
    first, second = group.first.vectors[chosen], group.second.vectors[chosen]
    found: dict[str, Estimate] = {
        "cosine": _within(mean_of(own, positives=n), -1.0, 1.0),
        "cosine_of_others": _plain(float(others.mean()), n, "mean over all pairs of different heads"),
        "first_of_all": Share.of(place == 1, np.ones(n)).estimate(positives=int((place == 1).sum())),
        "rank": _plain(float(np.median(place)), n, f"median place of the true pair among {len(similarity):,}"),
    }
    if n >= LEAST_HEADS:
        dimensions = [icc(np.stack(pair, axis=1)).agreement for pair in zip(first.T, second.T, strict=True)]
        agreed = [concordance(a, b) for a, b in zip(first.T, second.T, strict=True)]
        method = f"median over {len(dimensions):,} features"
        found["icc_of_features"] = _plain(_median(dimensions), n, f"ICC(2,1), {method}")
        found["concordance_of_features"] = _plain(_median(agreed), n, f"Lin's concordance, {method}")
    for name, estimate in found.items():
        yield _row(group, name, "", estimate)
    for column, finding in enumerate(eye.findings):
        both = np.stack([group.first.probabilities[chosen, column], group.second.probabilities[chosen, column]], axis=1)
        for name, estimate in _of_finding(both, eye.points.get(finding)).items():
            yield _row(group, name, finding, estimate)


def _of_finding(both: np.ndarray, point: float | None) -> dict[str, Estimate]:
    """Agreement of probabilities (n, 2) of one finding, and how many decisions flip at its operating point."""
    found: dict[str, Estimate] = {}
    n = len(both)
    if n >= LEAST_HEADS:
        agreed = icc(both)
        method = "ICC(2,1) = ICC(A,1), McGraw and Wong's interval"
        found["icc"] = Estimate.of(agreed.agreement, agreed.low, agreed.high, n=n, positives=n, method=method)
        apart = errors(both[:, 0], both[:, 1], "", tolerance=0.1)
        low, high = apart.agreement
        found["bias"] = apart.bias
        found["limits_of_agreement"] = Estimate.of(
            float(np.mean([low, high])), low, high, n=n, positives=n, method="95 % of first less second (Bland-Altman)"
        )
    if point is not None:
        said = both >= point
        flips = said[:, 0] != said[:, 1]
        found["flips"] = Share.of(flips, np.ones(n)).estimate(positives=int(flips.sum()))
    return found


def _median(values: Sequence[float]) -> float:
    known = np.array([value for value in values if np.isfinite(value)])
    return float(np.median(known)) if len(known) else float("nan")


def _plain(value: float, n: int, method: str) -> Estimate:
    return Estimate.of(value, np.nan, np.nan, n=n, positives=n, method=f"{method}; no interval")


def _row(group: Group, measure: str, finding: str, estimate: Estimate) -> dict[str, Any]:
    return {
        "group": group.label,
        "change": group.name,
        "size": group.size,
        "unit": group.unit,
        "measure": measure,
        "finding": finding,
        **asdict(estimate),
    }


def check(out: Path) -> None:
    """Raises Misuse where the page would replace what is not ours."""
    page.check_place(out / PAGE)


def write(
    found: Robustness, cohort: Cohort, by: PretrainedEncoder | Detector, machine: Machine, seed: int, out: Path
) -> None:
    """Write pairs.csv, robustness.csv, metrics.json and page.html into a folder, which is made as needed."""
    check(out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / PAIRS, found.pairs.to_csv(index=False).encode())
    write_atomically(out / TABLE, found.table.to_csv(index=False).encode())
    write_atomically(out / METRICS, (json.dumps(found.metrics(), indent=1, allow_nan=False) + "\n").encode())
    encoder = by.encoder if isinstance(by, Detector) else by
    robustness_page(
        [_page_row(row) for row in found.table.to_dict("records")],
        findings=found.findings,
        notes=found.notes,
        perturbed=_kinds_used(found) if found.perturbed else {},
        heads=int(found.pairs["patient_id"].nunique()),
        provenance=page.Provenance(
            settings={
                "cohort": cohort.path.name,
                "model": encoder.architecture,
                "detector": by.fitted.method if isinstance(by, Detector) else "none",
                "operating point": POINT,
                "recipe": f"{encoder.recipe.name} ({encoder.recipe.id})",
                "machine": str(machine),
                "seed": seed,
            },
            hashes={"model": encoder.sha256} | ({"detector": by.sha256} if isinstance(by, Detector) else {}),
            versions=page.software_versions("headct", "torch", "numpy", "scipy"),
        ),
        virtual=is_virtual(cohort),
    ).write(out / PAGE)


def _kinds_used(found: Robustness) -> dict[str, str]:
    """The kinds of change that were made, with what each is, in the order of the list of kinds."""
    used = set(found.table["change"])
    return {name: kind.words for name, kind in KINDS.items() if name in used}


def _page_row(row: Mapping[Any, Any]) -> Row:
    value, low, high = (float("nan") if pd.isna(row[key]) else float(row[key]) for key in ("value", "low", "high"))
    positives = int(row["positives"]) if row["measure"] in ("flips", "first_of_all") else None
    return Row(
        group=str(row["group"]),
        change=str(row["change"]),
        measure=str(row["measure"]),
        finding=str(row["finding"]),
        measured=Measured(value=value, low=low, high=high, n=int(row["n"]), positives=positives),
    )
