"""How well a straight cut through the features tells classes apart, on patients that it was not made from.

For a finding that is what one hopes for. For a site or a scanner it is a leak: what the features know of the machine, a
detector learned from them can take for disease. A high number for the site is no proof of harm, since sites also differ
in whom they scan; a high one beside a low one for disease is a warning.

Patients are cut into two halves, each judged by a regression on the other, and the number is the mean of both. Its
interval is one half's: what two regressions find on a sample goes together, and the mean is little surer than a half.
Simulated (60, 100 and 200 patients, 32 features, classes of a half or a fifth, no signal or one of 1 SD, 200 worlds
each): DeLong's interval so made covers 94 to 98 %, of the 12 patients of a fifth of 60 up to 100 %, and 93 and 94 % for
three classes; the accuracy's 96 to 98 %. On scores of five folds, pooled or averaged by fold, DeLong's covers 82 to
92 %. The price is that a regression sees half of the patients and not four fifths: of even classes with a signal the
area was 0.59 rather than 0.62 at 60 patients, and 0.66 rather than 0.68 at 200.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headct.evaluation.intervals import Area, Estimate, Patients, Share, macro_area
from headct.failure import Misuse

LEAST_PATIENTS = 5
"""Of a class; smaller ones are left out."""
C = 0.1
"""The penalty of scikit-learn's logistic regression on standardised features: one for all, so that rows compare."""


@dataclass(frozen=True)
class Separable:
    """How well classes can be told apart, by scans that were held out with all others of their patient."""

    name: str
    classes: dict[str, int]  # scans of each
    auroc: Estimate  # the mean of both halves; of several classes the mean of each against the rest
    accuracy: Estimate
    commonest: float  # the accuracy of always naming the commonest class
    left_out: int  # scans of unknown or too rare a class


def separability(
    name: str,
    vectors: np.ndarray,
    classes: np.ndarray,
    patients: np.ndarray,
    *,
    seed: int = 0,
    words: Mapping[str, str] = MappingProxyType({}),
) -> Separable:
    """Of vectors (n, F) and a class for each, (n,), "" where it is unknown.

    Raises Misuse where nothing can be told apart; `words` say whom a class is of, if that is not "of" its own name.
    """
    classes = np.asarray(classes, dtype=str)
    named = np.unique(classes[classes != ""])
    holders = {one: len(np.unique(patients[classes == one])) for one in named.tolist()}
    common = [one for one, number in holders.items() if number >= LEAST_PATIENTS]
    if len(common) < 2:
        few = ", ".join(f"{number:,} {words.get(one, f'of {one}')}" for one, number in holders.items())
        fault = {0: "it is unknown for all", 1: "it is the same for all"}.get(len(named), "too few patients")
        raise Misuse(
            f"{name} cannot be told apart: {fault}",
            why=f"patients: {few or 'none'}; two classes need {LEAST_PATIENTS} each",
        )
    rows = np.flatnonzero(np.isin(classes, common))
    x, y, who = vectors[rows].astype(np.float64), classes[rows], patients[rows]
    order = np.array(sorted(common))
    halves = [test for _, test in StratifiedGroupKFold(2, shuffle=True, random_state=seed).split(x, y, who)]
    for one in order.tolist():
        if not all((y[half] == one).any() for half in halves):
            raise Misuse(
                f"{name} cannot be told apart: too few patients",
                why=f"a half of the patients has none {words.get(one, f'of {one}')}",
            )
    shares = _held_out(x, y, halves, order)
    counted = Patients.of(who)
    right = order[shares.argmax(axis=1)] == y
    areas = {one: _mean_area(y == one, shares[:, at], counted, halves) for at, one in enumerate(order.tolist())}
    auroc = areas[str(order[1])].estimate() if len(order) == 2 else macro_area(areas)
    accuracy = Share.of(right, np.ones(len(right)), counted)
    accuracy = replace(accuracy, trials=accuracy.trials / 2)  # as sure as one half, see above
    among = {one: int((y == one).sum()) for one in order.tolist()}
    return Separable(
        name,
        among,
        replace(auroc, method=f"mean of two halves of patients, as sure as one of them; {auroc.method}"),
        accuracy.estimate(positives=int(right.sum())),
        max(among.values()) / len(y),
        left_out=len(classes) - len(rows),
    )


def _mean_area(is_one: np.ndarray, scores: np.ndarray, patients: Patients, halves: Sequence[np.ndarray]) -> Area:
    """The mean of the areas of two halves, whose variance is the mean of theirs, not half of it."""
    first, second = (Area.of(is_one[half], scores[half], patients.only(half)) for half in halves)
    return Area(
        (first.value + second.value) / 2,
        (first.influence + second.influence) / np.sqrt(2),
        (min(first.holders[0], second.holders[0]), min(first.holders[1], second.holders[1])),
        first.n + second.n,
        first.positives + second.positives,
    )


def _held_out(x: np.ndarray, y: np.ndarray, halves: Sequence[np.ndarray], order: np.ndarray) -> np.ndarray:
    """The log of the share of each class, (n, classes) in `order`, by a regression on the half without the scan."""
    found = np.full((len(y), len(order)), -np.inf)
    for train, test in (halves, halves[::-1]):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))
        with warnings.catch_warnings():
            # a cut that is nearly the best tells apart nearly as well
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x[train], y[train])
        columns = np.searchsorted(order, model.classes_)
        found[np.ix_(test, columns)] = model.predict_log_proba(x[test])
    return found
