"""The few-shot protocol: which few scans are learned from, drawn by patient, nested, repeated, and written as files.

A draw is an order of positive and of negative patients; K shots are the first K of each. So K = 8 is a part of
K = 16, nobody is drawn twice, and one file holds all K. Label fractions are the first patients of an order alike.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from headct.cohort.journal import write_atomically
from headct.failure import Misuse

SHOTS = (8, 16, 32, 64, 128, 256)
FRACTIONS = (0.01, 0.05, 0.10, 0.25, 1.0)
DRAWS = 10


@dataclass(frozen=True)
class Shots:
    """Draws for the few-shot protocol.

    `table` has finding, draw, order (from 1), label (1 or 0), scan_id, patient_id: K shots of a finding and a draw are
    its rows with order <= K. `ks` are the K that can be drawn of each finding, `left_out` sentences about the others.
    """

    table: pd.DataFrame
    ks: dict[str, tuple[int, ...]]
    left_out: tuple[str, ...]

    def labels(self, finding: str, k: int, draw: int) -> pd.Series:
        """Labels of the 2 K scans, by scan_id. Raises Misuse where they were not drawn."""
        if k not in self.ks.get(finding, ()):
            told = "; ".join(self.left_out) or f"drawn were {self.ks}"
            raise Misuse(f"{k} positives of {finding!r} were not drawn", why=told, do="ask for fewer")
        table = self.table
        chosen = table[(table["finding"] == finding) & (table["draw"] == draw) & (table["order"] <= k)]
        return chosen.set_index("scan_id")["label"].astype(float)

    def write(self, path: Path) -> None:
        """The table as CSV, for others to learn from the same scans."""
        write_atomically(path, self.table.to_csv(index=False).encode())


def draw_shots(
    labels: pd.DataFrame,
    patients: Sequence[str],
    *,
    seed: int,
    ks: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    sites: Sequence[str] | None = None,
) -> Shots:
    """Orders of positives and negatives of each finding, so many times.

    `labels` (index scan_id, a column a finding: 1, 0 or NaN) are those that may be drawn, `patients` (n,) theirs. A
    positive patient has a scan with the finding, a negative one has none and one without it; either gives one scan. A
    negative is matched to the positive of its place by site, where `sites` (n,) are given and its site has one left.
    A draw depends on the seed, its number, the finding's name and who may be drawn; not on other findings, on other K,
    or on the order of rows.
    """
    scans = pd.DataFrame({"patient": list(patients), "scan": list(labels.index.astype(str))}).astype(str)
    scans["site"] = list(sites) if sites is not None else ""
    scans = scans.sort_values(["patient", "scan"])  # so that the order of rows decides nothing
    rows, possible, left_out = [], {}, []
    for finding in map(str, labels.columns):
        label = labels[finding].to_numpy(dtype=float)[scans.index]
        positive = scans[label == 1]
        negative = scans[(label == 0) & ~scans["patient"].isin(positive["patient"])]
        most = min(positive["patient"].nunique(), negative["patient"].nunique())
        possible[finding] = tuple(k for k in ks if k <= most)
        if missing := [k for k in ks if k > most]:
            told = f"{positive['patient'].nunique()} patients with it and {negative['patient'].nunique()} without"
            left_out.append(f"{finding}: K = {', '.join(map(str, missing))} not drawn, of {told}")
        taken = max(possible[finding], default=0)
        for draw in range(draws if taken else 0):
            rng = _generator(seed, draw, finding)
            with_it = _one_each(positive, rng).head(taken)
            without = _matched(with_it, _one_each(negative, rng))
            rows += [_rows(finding, draw, label, chosen) for label, chosen in ((1, with_it), (0, without))]
    columns = ["finding", "draw", "order", "label", "scan_id", "patient_id"]
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)
    return Shots(table[columns], possible, tuple(left_out))


def _generator(seed: int, draw: int, word: str) -> np.random.Generator:
    return np.random.default_rng([seed, draw, int.from_bytes(hashlib.sha256(word.encode()).digest()[:8])])


def _one_each(scans: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """One scan of each patient, the patients in an order that was drawn, however many scans each of them has."""
    of_patient = list(scans.groupby("patient", sort=True).indices.values())
    which = rng.spawn(1)[0].random(len(of_patient))
    rows = [int(of_patient[one][int(which[one] * len(of_patient[one]))]) for one in rng.permutation(len(of_patient))]
    return scans.iloc[rows].reset_index(drop=True)


def _matched(positives: pd.DataFrame, negatives: pd.DataFrame) -> pd.DataFrame:
    """As many negatives, each of the site of the positive at its place; the next of any where that has none left."""
    waiting = {str(site): list(rows) for site, rows in negatives.groupby("site", sort=False).groups.items()}
    chosen = []
    for site in positives["site"]:
        here = waiting.get(str(site)) or min((rows for rows in waiting.values() if rows), key=lambda rows: rows[0])
        chosen.append(here.pop(0))
    return negatives.loc[chosen]


def _rows(finding: str, draw: int, label: int, chosen: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "finding": finding,
            "draw": draw,
            "order": np.arange(1, len(chosen) + 1),
            "label": label,
            "scan_id": chosen["scan"].to_numpy(),
            "patient_id": chosen["patient"].to_numpy(),
        }
    )


@dataclass(frozen=True)
class Fractions:
    """Draws of label fractions: `table` has draw, order (from 1), patient_id; `shares` are those that can be drawn."""

    table: pd.DataFrame
    shares: tuple[float, ...]
    left_out: tuple[str, ...]

    def patients(self, share: float, draw: int) -> frozenset[str]:
        """Whose labels are known. Raises Misuse where that share was not drawn."""
        if share not in self.shares:
            raise Misuse(f"the share {share:g} was not drawn", why="; ".join(self.left_out), do="ask for more")
        one = self.table[self.table["draw"] == draw]
        return frozenset(one.loc[one["order"] <= math.ceil(share * len(one)), "patient_id"])

    def write(self, path: Path) -> None:
        """The table as CSV."""
        write_atomically(path, self.table.to_csv(index=False).encode())


def draw_fractions(
    labels: pd.DataFrame,
    patients: Sequence[str],
    *,
    seed: int,
    shares: Sequence[float] = FRACTIONS,
    draws: int = DRAWS,
) -> Fractions:
    """Orders of all patients, of whom the first share is labelled: nested, as prevalent as they come.

    Unlike with shots nothing is balanced, so a small share may lack a class: one that would, for every finding and in
    any draw, is left out and said.
    """
    names = sorted(set(map(str, patients)))
    of = pd.Series(list(map(str, patients)))
    orders = [[names[i] for i in _generator(seed, draw, "fractions").permutation(len(names))] for draw in range(draws)]
    kept, left_out = [], []
    for share in shares:
        taken = math.ceil(share * len(names))
        if all(_has_both(labels[of.isin(set(order[:taken])).to_numpy()]) for order in orders):
            kept.append(share)
        else:
            left_out.append(
                f"{100 * share:g} %: {taken} patients do not hold a finding both with and without in each draw"
            )
    frames = [
        pd.DataFrame({"draw": draw, "order": np.arange(1, len(order) + 1), "patient_id": order})
        for draw, order in enumerate(orders)
    ]
    return Fractions(pd.concat(frames, ignore_index=True), tuple(kept), tuple(left_out))


def _has_both(labels: pd.DataFrame) -> bool:
    return bool(((labels == 1).any() & (labels == 0).any()).any())
