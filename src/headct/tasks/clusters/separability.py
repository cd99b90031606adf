"""How well a straight cut through the features tells classes apart, on patients that it was not made from.

For a finding that is what one hopes for. For a site or a scanner it is a leak: what the features know of the machine, a
detector learned from them can take for disease. A high number for the site is no proof of harm, since sites also differ
in whom they scan; a high one beside a low one for disease is a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
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
FOLDS = 5
C = 0.1
"""The penalty of scikit-learn's logistic regression on standardised features: one for all, so that rows compare."""


@dataclass(frozen=True)
class Separable:
    """How well classes can be told apart, by scans that were held out with all others of their patient."""

    name: str
    classes: dict[str, int]  # scans of each
    auroc: Estimate  # of several classes the mean of each against the rest
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
    shares = _held_out(x, y, who, order, min(FOLDS, *(holders[one] for one in common)), seed)
    counted = Patients.of(who)
    right = order[shares.argmax(axis=1)] == y
    if len(order) == 2:
        auroc = Area.of(y == order[1], shares[:, 1], counted).estimate()
    else:
        auroc = macro_area({one: Area.of(y == one, shares[:, at], counted) for at, one in enumerate(order.tolist())})
    among = {one: int((y == one).sum()) for one in order.tolist()}
    return Separable(
        name,
        among,
        auroc,
        Share.of(right, np.ones(len(right)), counted).estimate(positives=int(right.sum())),
        max(among.values()) / len(y),
        left_out=len(classes) - len(rows),
    )


def _held_out(x: np.ndarray, y: np.ndarray, who: np.ndarray, order: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The log of the share of each class, (n, classes) in `order`, by a regression that has not seen the patient."""
    found = np.full((len(y), len(order)), -np.inf)
    for train, test in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(x, y, who):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # a cut that is nearly the best tells apart nearly as well
            model.fit(x[train], y[train])
        columns = np.searchsorted(order, model.classes_)
        found[np.ix_(test, columns)] = model.predict_log_proba(x[test])
    return found
