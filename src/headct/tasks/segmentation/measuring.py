"""How well what was drawn agrees with the truth: a row for each scan and class, then numbers with intervals.

A class that is there and was not drawn is a miss: an overlap of 0 and distances without end, never a row left out. One
that was drawn and is not there has neither overlap nor distance; it is counted by itself, as a false alarm. Intervals
draw patients with all their scans.

Where all draws give the same number, as where all lesions were found or missed, they would say that it is certain. The
interval is then one that few patients leave open: Wilson's over patients for what lies in 0..1, Garwood's for a rate,
and none for what has no bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import label
from scipy.stats import chi2

from headct.evaluation.intervals import DRAWS, LEVEL, Estimate, Patients, Share, wilson
from headct.failure import Misuse
from headct.tasks.segmentation.surfaces import apart

TOLERANCE_MM = 2.0
"""Within which surfaces agree."""
LESION_ML = 0.05
"""Smaller connected bodies are no lesions, neither in the truth nor among what was drawn."""
FOUND_SHARE = 0.1
"""Of a lesion that must be drawn for it to be found."""
CORNERS = np.ones((3, 3, 3), dtype=bool)
"""Voxels that touch by a corner are of one body."""
ALIKE = 1e-12
"""Draws that differ by no more give the same number: what is between them is rounding."""
COLUMNS = (
    "scan_id",
    "patient_id",
    "class",
    "true_ml",
    "found_ml",
    "dice",
    "surface_dice",
    "hausdorff_95_mm",
    "average_surface_mm",
    "lesions",
    "lesions_found",
    "false_lesions",
)


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How masks are compared. Raises Misuse where a number makes no sense."""

    tolerance_mm: float = TOLERANCE_MM
    lesion_ml: float = LESION_ML
    found_share: float = FOUND_SHARE
    draws: int = DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.tolerance_mm >= 0 and self.lesion_ml >= 0 and 0 < self.found_share <= 1 and self.draws > 0):
            raise Misuse(f"a tolerance, a size, a share and a number of draws are needed, got {self}")


def compared(
    found: np.ndarray,
    true: np.ndarray,
    spacing_mm: Sequence[float],
    classes: Sequence[str],
    judging: Judging,
) -> Iterator[dict[str, Any]]:
    """A row for each class, by `COLUMNS` without whose scan it is, from maps of class numbers (X, Y, Z) of one grid.

    `dice` and the distances are NaN where the class is not there; distances are infinite where it is and was missed.
    Raises Misuse where the maps differ in shape.
    """
    if found.shape != true.shape:
        raise Misuse(f"what was drawn has the shape {found.shape}, the truth {true.shape}", do="bring both to one grid")
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    for number, name in enumerate(classes, start=1):
        drawn, there = found == number, true == number
        row: dict[str, Any] = {
            "class": name,
            "true_ml": float(there.sum()) * voxel_ml,
            "found_ml": float(drawn.sum()) * voxel_ml,
        }
        row |= _agreement(drawn, there, spacing_mm, judging.tolerance_mm)
        row |= _lesions(drawn, there, voxel_ml, judging)
        yield row


def _agreement(
    drawn: np.ndarray, there: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, Any]:
    names = ("dice", "surface_dice", "hausdorff_95_mm", "average_surface_mm")
    if not there.any():
        return dict.fromkeys(names, np.nan)
    if not drawn.any():
        return dict(zip(names, (0.0, 0.0, np.inf, np.inf), strict=True))
    surfaces = apart(drawn, there, spacing_mm)
    dice = 2 * float((drawn & there).sum()) / float(drawn.sum() + there.sum())
    distances = surfaces.surface_dice(tolerance_mm), surfaces.hausdorff_95_mm(), surfaces.average_mm()
    return dict(zip(names, (dice, *distances), strict=True))


def _lesions(drawn: np.ndarray, there: np.ndarray, voxel_ml: float, judging: Judging) -> dict[str, int]:
    """How many bodies of the truth there are, how many were found, and how many were drawn where there is none."""
    least = judging.lesion_ml / voxel_ml
    true_bodies, found_bodies = label(there, CORNERS)[0], label(drawn, CORNERS)[0]
    sizes = np.bincount(true_bodies.ravel())[1:]
    covered = np.bincount(true_bodies[drawn], minlength=len(sizes) + 1)[1:]
    of_drawn = np.bincount(found_bodies.ravel())[1:]
    touching = np.bincount(found_bodies[there], minlength=len(of_drawn) + 1)[1:]
    counted = sizes >= least
    return {
        "lesions": int(counted.sum()),
        "lesions_found": int((counted & (covered >= judging.found_share * sizes)).sum()),
        "false_lesions": int(((of_drawn >= least) & (touching == 0)).sum()),
    }


@dataclass(frozen=True)
class Agreement:
    """What was measured: `rows` by `COLUMNS`."""

    rows: pd.DataFrame
    classes: tuple[str, ...]
    judging: Judging

    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """By class, then measure; `all` is the mean of the classes' own."""
        patients = Patients.of(self.rows.drop_duplicates("scan_id")["patient_id"].astype(str).to_numpy())
        weights = patients.weights(self.judging.draws, self.judging.seed)
        tree = {name: _estimates(self._of(name), patients, weights) for name in self.classes}
        present = [name for name in self.classes if tree[name]["dice"].n]
        if len(present) > 1:
            tree["all"] = {"dice": self._mean_dice(present, weights, patients)}
        return tree

    def metrics(self) -> dict[str, Any]:
        """The leaves of `metrics.json`."""
        return {
            name: {measure: dict(estimate.leaf()) for measure, estimate in some.items()}
            for name, some in self.estimates().items()
        }

    def differences(self, other: Agreement) -> dict[str, Estimate]:
        """Mean Dice of each class, and of `all`, less that of another on the same scans, paired by patient.

        Raises Misuse where the two are of other scans or classes.
        """
        keys = ["scan_id", "class"]
        mine, theirs = (one.rows.set_index(keys).sort_index() for one in (self, other))
        if not mine.index.equals(theirs.index) or self.classes != other.classes:
            raise Misuse("only results of the same scans and classes can be compared", do="evaluate both on one cohort")
        scans = self.rows.drop_duplicates("scan_id").sort_values("scan_id")
        patients = Patients.of(scans["patient_id"].astype(str).to_numpy())
        weights = patients.weights(self.judging.draws, self.judging.seed)
        tables = [
            one["dice"].unstack("class")[list(self.classes)].loc[scans["scan_id"]].to_numpy() for one in (mine, theirs)
        ]
        means = [_drawn_means(table, weights) for table in tables]
        plain = [_drawn_means(table, np.ones((1, len(scans)))) for table in tables]
        there = np.isfinite(tables[0]).T  # (classes, scans)
        found = {}
        for column, name in enumerate(self.classes):
            if there[column].any():
                value, drawn = (one[:, column] - less[:, column] for one, less in (plain, means))
                found[name] = _difference(value, drawn, there[column], patients)
        if len(found) > 1:
            value, drawn = (_over_classes(one) - _over_classes(less) for one, less in (plain, means))
            found["all"] = _difference(value, drawn, there.any(axis=0), patients)
        return found

    def _of(self, name: str) -> pd.DataFrame:
        return self.rows[self.rows["class"] == name]

    def _mean_dice(self, present: Sequence[str], weights: np.ndarray, patients: Patients) -> Estimate:
        table = np.stack([self._of(name)["dice"].to_numpy(float) for name in present], axis=1)
        value = float(_over_classes(_drawn_means(table, np.ones((1, len(table)))))[0])
        drawn = _over_classes(_drawn_means(table, weights))
        low, high, told = _limits(drawn, patients.only(np.isfinite(table).any(axis=1)), _of_share)
        method = f"mean over {len(present)} classes of their means; {told}"
        positives = int(np.isfinite(table).sum())
        return Estimate.of(value, low, high, n=len(table), positives=positives, method=method)


def _drawn_means(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of each column (scans, c) over scans where it is a number, under each of the weights (d, scans): (d, c)."""
    known = np.isfinite(table)
    summed = weights.astype(float) @ np.where(known, table, 0.0)
    among = weights.astype(float) @ known
    return np.divide(summed, among, out=np.full(summed.shape, np.nan), where=among > 0)


def _over_classes(means: np.ndarray) -> np.ndarray:
    """Mean of each row (d, c) over the classes of which it has a number; NaN where it has none."""
    known = np.isfinite(means)
    among = known.sum(axis=1)
    return np.divide(np.where(known, means, 0.0).sum(axis=1), among, out=np.full(len(means), np.nan), where=among > 0)


def _difference(value: np.ndarray, drawn: np.ndarray, there: np.ndarray, patients: Patients) -> Estimate:
    """Of two means (1,), with their draws (d,) of the same patients, over the scans of which both have a number."""
    low, high, told = _limits(drawn, patients.only(there), _of_difference)
    n, method = int(there.sum()), f"Dice less Dice, paired; {told}"
    return Estimate.of(float(value[0]), low, high, n=n, positives=n, method=method)


def _limits(
    drawn: np.ndarray, patients: Patients, alike: Callable[[float, int], tuple[float, float, str]]
) -> tuple[float, float, str]:
    """Percentiles of draws, and how they came about; NaN for one patient, and where most draws hold nothing.

    `alike` gives the interval of a number that all draws share, over so many patients.
    """
    told = f"percentiles of {len(drawn):,} draws of patients"
    kept = drawn[~np.isnan(drawn)]
    number = len(np.unique(patients.codes))
    if number < 2 or len(kept) < len(drawn) / 2:
        return np.nan, np.nan, told
    low, high = np.quantile(kept, [0.025, 0.975], method="nearest")
    if np.isfinite(kept).all() and np.ptp(kept) <= ALIKE:
        return alike(float(kept[0]), number)
    return float(low), float(high), told


def _of_share(value: float, patients: int) -> tuple[float, float, str]:
    """Of a number in 0..1: nothing in it varies more than what is either (Bhatia and Davis, 2000)."""
    low, high = wilson(min(max(value, 0.0), 1.0), patients)
    return low, high, "Wilson interval over patients, as all give the same"


def _of_difference(value: float, patients: int) -> tuple[float, float, str]:
    """Of a difference of two such numbers; where there is none, one in either direction may have been missed."""
    low, high = wilson(min(abs(value), 1.0), patients)
    told = "Wilson interval over patients, as all give the same"
    if abs(value) <= ALIKE:
        return -high, high, told
    return (low, high, told) if value > 0 else (-high, -low, told)


def _of_rate(value: float, patients: int) -> tuple[float, float, str]:
    """Of a mean number of events, by what would be seen once in each patient: the exact limits of Poisson's.

    (Garwood, Biometrika 28, 1936.) Of no event in n patients it is 0 to 3.7 / n.
    """
    events, tail = value * patients, (1 - LEVEL) / 2
    low = float(chi2.ppf(tail, 2 * events)) / 2 / patients if events > 0 else 0.0
    high = float(chi2.ppf(1 - tail, 2 * events + 2)) / 2 / patients
    return low, high, "exact Poisson interval over patients, as all give the same"


def _of_length(value: float, patients: int) -> tuple[float, float, str]:
    """Of a number without bounds there is none."""
    return np.nan, np.nan, "no interval, as all patients give the same"


def _estimates(rows: pd.DataFrame, patients: Patients, weights: np.ndarray) -> dict[str, Estimate]:
    """Every measure of one class; `n` scans, of which `positives` have it, or of lesions where they are counted."""
    there, drawn = rows["true_ml"].to_numpy() > 0, rows["found_ml"].to_numpy() > 0
    n = int(there.sum())
    found: dict[str, Estimate] = {}
    for name in ("dice", "surface_dice"):
        values = rows[name].to_numpy(float)[:, None]
        plain, drawn_means = _drawn_means(values, np.ones((1, len(values)))), _drawn_means(values, weights)
        low, high, told = _limits(drawn_means[:, 0], patients.only(there), _of_share)
        method = f"mean over scans that have it, misses 0; {told}"
        found[name] = Estimate.of(float(plain[0, 0]), low, high, n=n, positives=n, method=method)
    for name in ("hausdorff_95_mm", "average_surface_mm"):
        found[name] = _median(rows[name].to_numpy(float), there, ~drawn & there, patients, weights)
    found["missed"] = Share.of(~drawn & there, there, patients).estimate(positives=int((~drawn & there).sum()))
    found["false_alarms"] = Share.of(drawn & ~there, ~there, patients).estimate(positives=int((drawn & ~there).sum()))
    found["lesions_found"] = _ratio(
        rows["lesions_found"], rows["lesions"], patients, weights, "share of lesions found", _of_share
    )
    found["false_lesions_per_scan"] = _ratio(
        rows["false_lesions"], pd.Series(1, index=rows.index), patients, weights, "false lesions in a scan", _of_rate
    )
    found["volume_error_ml"] = _mean(
        (rows["found_ml"] - rows["true_ml"]).to_numpy(), n, patients, weights, "mean of found less true, all scans"
    )
    return found


def _median(
    values: np.ndarray, there: np.ndarray, missed: np.ndarray, patients: Patients, weights: np.ndarray
) -> Estimate:
    """Over the scans that have the class; no number where half of them were missed."""
    if not there.any():
        return Estimate.of(np.nan, np.nan, np.nan, n=0, positives=0, method="median, misses beyond all")
    some, drawn = values[there], weights[:, there].astype(float)
    order = np.argsort(some, kind="stable")
    summed = np.cumsum(drawn[:, order], axis=1)
    at = (summed < summed[:, -1:] / 2).sum(axis=1)
    medians = np.where(summed[:, -1] > 0, some[order][np.minimum(at, len(some) - 1)], np.nan)
    low, high, told = _limits(medians, patients.only(there), _of_length)
    with np.errstate(invalid="ignore"):  # between a number and a miss lies no number
        middle = float(np.median(some))
    method = f"median, misses beyond all; {told}; positives are misses"
    return Estimate.of(middle, low, high, n=len(some), positives=int(missed.sum()), method=method)


def _ratio(
    top: pd.Series,
    bottom: pd.Series,
    patients: Patients,
    weights: np.ndarray,
    what: str,
    alike: Callable[[float, int], tuple[float, float, str]],
) -> Estimate:
    """A sum over a sum, both of scans; `alike` as for `_limits`."""
    over, under = top.to_numpy(float), bottom.to_numpy(float)
    if not under.sum():
        return Estimate.of(np.nan, np.nan, np.nan, n=0, positives=0, method=what)
    below = weights.astype(float) @ under
    drawn = np.divide(weights.astype(float) @ over, below, out=np.full(len(below), np.nan), where=below > 0)
    low, high, told = _limits(drawn, patients.only(under > 0), alike)
    value, n, positives = float(over.sum() / under.sum()), int(under.sum()), int(over.sum())
    return Estimate.of(value, low, high, n=n, positives=positives, method=f"{what}; {told}")


def _mean(values: np.ndarray, positives: int, patients: Patients, weights: np.ndarray, what: str) -> Estimate:
    drawn = _drawn_means(values[:, None], weights)[:, 0]
    low, high, told = _limits(drawn, patients, _of_length)
    return Estimate.of(float(values.mean()), low, high, n=len(values), positives=positives, method=f"{what}; {told}")


def leaf_rows(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """`Agreement.metrics` as rows: class, measure, value, low, high, n, positives."""
    return [
        {"class": name, "measure": measure, **{key: leaf[key] for key in ("value", "low", "high", "n", "positives")}}
        for name, some in metrics.items()
        for measure, leaf in some.items()
    ]
