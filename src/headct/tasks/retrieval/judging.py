"""Do scans that are alike share a finding? Precision, average precision and hit rate of neighbours, beside chance.

A query looks among the scans of other patients whose label is known. What CT-FM's published figures count is given
too, under a name of its own, and is not what its name says (ct-fm, organ retrieval): its average precision at k divides
by the hits that were *found*, so that one hit at rank 1 and nine misses score 1, and finding more can only lower it.
Here it is divided by the hits that could have been found, min(k, relevant). Its hit rate is near 1 for any finding that
is not rare; so every number stands beside what a random order would give, which has a closed form.

Intervals take the queries' patients as the sample and the gallery as given. Where all patients give the same mean, as
few often do, Student's would have no width: it is then that of a share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
from scipy.special import gammaln

from headct.evaluation.intervals import Estimate, Patients, Share, mean_of, wilson
from headct.evaluation.leakage import LEAST_PATIENTS
from headct.failure import Misuse
from headct.reporting.words import count
from headct.tasks.retrieval.ranking import Metric, similarities, stored_form

Relevance = Literal["present", "same"]
QUERIES_AT_ONCE = 256
LEAST_QUERIES = 2
ALIKE = 1e-12
"""An interval narrower than that has no width: what is between its ends is rounding."""


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How neighbours are judged."""

    metric: Metric = "cosine"
    ks: tuple[int, ...] = (1, 5, 10)  # how many neighbours are looked at
    relevance: Relevance = "present"
    """present: queries have the finding, and so must their neighbours; same: all query, labels must agree."""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise Misuse(f"k must be at least 1, got {self.ks}", do="give numbers such as 1,5,10")


def relevance_named(name: str) -> Relevance:
    """The rule of this name. Raises Misuse where there is none."""
    if name not in get_args(Relevance):
        raise Misuse(f"no relevance is called {name!r}", do=f"take {' or '.join(get_args(Relevance))}")
    return cast(Relevance, name)


@dataclass(frozen=True)
class Judged:
    """One finding: numbers by name, each with chance and the gain over it, and who was looked at.

    `estimates` has precision_at_k, average_precision_at_k, hit_rate_at_k and average_precision (of the whole order,
    whose mean over queries is known as mAP). `as_published` has CT-FM's average_precision_of_hits_at_k.
    """

    estimates: Mapping[str, Estimate]
    chance: Mapping[str, float]
    gain: Mapping[str, Estimate]
    as_published: Mapping[str, float]
    queries: int
    patients: int  # of the queries
    gallery: int
    relevant: int
    alone: int  # queries left out, for no scan of another patient is relevant to them
    unknown: int  # scans left out, for their label is unknown

    @property
    def against_chance(self) -> str:
        """above, or not above: what the lower end of the gain in mAP shows, of queries of at least five patients.

        Average precision is skewed to the right, so the upper end lies too low where queries are few: on vectors
        without sense below 0 in a third of cases with five queries among 60 scans, and in a sixth with ten. So it is
        never said that neighbours share a finding less often than by chance.
        """
        gain = self.gain["average_precision"]
        few = self.patients < LEAST_PATIENTS
        return "not above" if few or gain.low is None or gain.low <= 0 else "above"

    def tree(self) -> dict[str, Any]:
        """For `metrics.json`: every number beside chance."""
        numbers = {
            name: {**estimate.leaf(), "chance": self.chance[name], "gain": self.gain[name].leaf()}
            for name, estimate in self.estimates.items()
        }
        counts = {
            "queries": self.queries,
            "patients_of_queries": self.patients,
            "gallery": self.gallery,
            "relevant": self.relevant,
            "queries_without_relevant": self.alone,
            "unknown": self.unknown,
        }
        return {**numbers, "as_published_by_ct_fm": dict(self.as_published), "counts": counts}


@dataclass(frozen=True)
class Labelled:
    """Vectors (n, F), a label for each (numbers or words; NaN, None or "" unknown), and their patients."""

    vectors: np.ndarray
    labels: np.ndarray
    patients: np.ndarray

    def known(self) -> Labelled:
        """Those whose label is known."""
        good = np.array([not (one is None or one == "" or one != one) for one in self.labels.tolist()], dtype=bool)
        return Labelled(self.vectors[good], self.labels[good], self.patients[good])


def judge(gallery: Labelled, settings: Judging | None = None, *, queries: Labelled | None = None) -> Judged:
    """Judge neighbours by one finding; the gallery's own scans are the queries unless others are given.

    A scan of the query's own patient is never among its neighbours. Raises Misuse where fewer than two queries have
    something to find, or the vectors do not fit together.
    """
    settings = settings or Judging()
    given = gallery if queries is None else queries
    if given.vectors.shape[1] != gallery.vectors.shape[1]:
        raise Misuse(
            f"queries have vectors of {given.vectors.shape[1]} numbers, the index of {gallery.vectors.shape[1]}",
            do="embed both with one model",
        )
    stored, asking = gallery.known(), given.known()
    unknown = len(gallery.labels) - len(stored.labels)
    unknown += 0 if queries is None else len(queries.labels) - len(asking.labels)
    if settings.relevance == "present":
        has = asking.labels == 1
        asking = Labelled(asking.vectors[has], asking.labels[has], asking.patients[has])
    parts = list(_ranked(stored, asking, settings)) or [_Ranked.none(settings.ks)]
    ranked = _Ranked.joined(parts)
    if len(ranked.relevant) < LEAST_QUERIES:
        raise Misuse(
            f"relevant scans of other patients exist for {len(ranked.relevant)} of at least {LEAST_QUERIES} queries",
            why=f"{count(len(asking.labels), 'query', 'queries')}, {len(stored.labels):,} scans whose label is known",
            do="label more scans, or a finding that more patients have",
        )
    has_one = ranked.relevant > 0
    patients = Patients.of(asking.patients[ranked.rows])
    estimates, chance, gain = {}, {}, {}
    positives = int(has_one.sum())
    for name, values in ranked.values.items():
        by_chance = ranked.chance[name]
        chance[name] = float(by_chance.mean())
        estimates[name] = (
            Share.of(values > 0, np.ones(len(values)), patients).estimate(positives=int((values > 0).sum()))
            if name.startswith("hit_rate")
            else _mean(values, patients, positives)
        )
        gain[name] = _gain(values - by_chance, estimates[name], chance[name], patients, positives)
    return Judged(
        estimates,
        chance,
        gain,
        {name: float(values.mean()) for name, values in ranked.published.items()},
        queries=len(ranked.relevant),
        patients=len(np.unique(patients.codes)),
        gallery=len(stored.labels),
        relevant=int((stored.labels == 1).sum()) if settings.relevance == "present" else len(stored.labels),
        alone=len(asking.labels) - len(ranked.relevant),
        unknown=unknown,
    )


def _mean(values: np.ndarray, patients: Patients, positives: int) -> Estimate:
    """Of numbers in 0..1, with Student's interval, kept inside 0..1.

    Where all patients give the same mean, with Wilson's of a share over as many trials as there are patients: nothing
    in 0..1 varies more than what is either (Bhatia and Davis, American Mathematical Monthly 107, 2000), so that it is
    wide enough.
    """
    found = mean_of(values, patients, positives=positives)
    if found.value is None or found.low is None or found.high is None:
        return found
    if _is_flat(found):
        low, high = wilson(found.value, len(np.unique(patients.codes)))
        method = "Wilson interval over patients, as all give the same mean"
        return replace(found, low=low, high=high, method=method)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def _gain(differences: np.ndarray, estimate: Estimate, chance: float, patients: Patients, positives: int) -> Estimate:
    """How far above chance an estimate is; where patients do not differ in that, with the interval of the estimate."""
    found = mean_of(differences, patients, positives=positives)
    return _less(estimate, chance) if _is_flat(found) else found


def _is_flat(estimate: Estimate) -> bool:
    """Whether an interval has no width."""
    return estimate.low is not None and estimate.high is not None and estimate.high - estimate.low < ALIKE


def _less(estimate: Estimate, chance: float) -> Estimate:
    """How far above chance a number is, with the interval of the number."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return replace(estimate, value=None if estimate.value is None else estimate.value - chance)
    parts = {name: getattr(estimate, name) - chance for name in ("value", "low", "high")}
    return replace(estimate, **parts)


@dataclass(frozen=True)
class _Ranked:
    """Queries that have something to find: their rows, how many are relevant to each, and their numbers by name."""

    rows: np.ndarray
    relevant: np.ndarray
    values: Mapping[str, np.ndarray]
    chance: Mapping[str, np.ndarray]
    published: Mapping[str, np.ndarray]

    @classmethod
    def none(cls, ks: Sequence[int]) -> _Ranked:
        empty = np.empty(0)
        return cls(empty.astype(int), empty.astype(int), {"average_precision": empty}, {"average_precision": empty}, {})

    @classmethod
    def joined(cls, parts: Sequence[_Ranked]) -> _Ranked:
        def all_of(field: str) -> dict[str, np.ndarray]:
            return {
                name: np.concatenate([getattr(part, field)[name] for part in parts])
                for name in getattr(parts[0], field)
            }

        rows = np.concatenate([part.rows for part in parts])
        relevant = np.concatenate([part.relevant for part in parts])
        return cls(rows, relevant, all_of("values"), all_of("chance"), all_of("published"))


def _ranked(stored: Labelled, asking: Labelled, settings: Judging) -> Iterator[_Ranked]:
    """Queries, some at a time."""
    there, here = stored_form(stored.vectors, settings.metric), stored_form(asking.vectors, settings.metric)
    for start in range(0, len(here), QUERIES_AT_ONCE):
        rows = np.arange(start, min(start + QUERIES_AT_ONCE, len(here)))
        scores = similarities(here[rows], there, settings.metric)
        own = asking.patients[rows, None] == stored.patients
        scores[own] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")
        match = (asking.labels[rows, None] == stored.labels) & ~own
        hits = np.take_along_axis(match, order, axis=1)
        size, relevant = (~own).sum(axis=1), match.sum(axis=1)
        asked = relevant > 0
        hits, size, relevant = hits[asked], size[asked], relevant[asked]
        values = {"average_precision": average_precision(hits, relevant)}
        chance = {"average_precision": average_precision_by_chance(size, relevant)}
        published = {}
        for k in settings.ks:
            values[f"precision_at_{k}"] = precision(hits, k)
            chance[f"precision_at_{k}"] = np.minimum(1.0, size / k) * relevant / size
            values[f"average_precision_at_{k}"] = average_precision(hits, relevant, k)
            chance[f"average_precision_at_{k}"] = average_precision_by_chance(size, relevant, k)
            values[f"hit_rate_at_{k}"] = hits[:, :k].any(axis=1).astype(float)
            chance[f"hit_rate_at_{k}"] = hit_rate_by_chance(size, relevant, k)
            published[f"average_precision_of_hits_at_{k}"] = average_precision_of_hits(hits, k)
        yield _Ranked(rows[asked], relevant, values, chance, published)


def precision(hits: np.ndarray, k: int) -> np.ndarray:
    """The share of the first k that is relevant: hits (q, n) in their order, to (q,). A missing k-th is a miss."""
    return np.asarray(hits[:, :k].sum(axis=1) / k)


def average_precision(hits: np.ndarray, relevant: np.ndarray, k: int | None = None) -> np.ndarray:
    """The mean precision at the ranks of relevant scans, (q,), of hits (q, n) in their order.

    Over the first k ranks, divided by the hits that they could hold, min(k, relevant); over all of them where k is
    None. 0 where nothing is relevant.
    """
    seen = hits if k is None else hits[:, :k]
    most = relevant if k is None else np.minimum(k, relevant)
    return _summed_precision(seen) / np.maximum(most, 1)


def average_precision_of_hits(hits: np.ndarray, k: int) -> np.ndarray:
    """As CT-FM's notebook counts it, (q,): divided by the hits among the first k, so that misses behind them are free.

    For comparison with its published figures alone.
    """
    return _summed_precision(hits[:, :k]) / np.maximum(hits[:, :k].sum(axis=1), 1)


def _summed_precision(hits: np.ndarray) -> np.ndarray:
    ranks = np.arange(1, hits.shape[1] + 1)
    return np.asarray((hits * np.cumsum(hits, axis=1) / ranks).sum(axis=1))


def average_precision_by_chance(size: np.ndarray, relevant: np.ndarray, k: int | None = None) -> np.ndarray:
    """What `average_precision` is on average over all orders of `size` scans, (q,).

    A rank holds a relevant scan with probability relevant / size, and each rank before it then another one with
    (relevant - 1) / (size - 1).
    """
    found = np.empty(len(size))
    for row, (n, r) in enumerate(zip(size.tolist(), relevant.tolist(), strict=True)):
        ranks = np.arange(1, min(n, k or n) + 1)
        before = (ranks - 1) * ((r - 1) / (n - 1) if n > 1 else 0.0)
        found[row] = ((1 + before) / ranks).sum() * r / n / min(r, k or r)
    return found


def hit_rate_by_chance(size: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """The probability that k scans drawn without return hold a relevant one, (q,): one minus the hypergeometric 0."""
    misses = size - relevant
    drawn = np.minimum(k, size)
    possible = misses >= drawn

    def log_choose(n: np.ndarray) -> np.ndarray:
        rest = np.maximum(n - drawn, 0)
        return np.asarray(gammaln(n + 1) - gammaln(rest + 1))

    return np.where(possible, -np.expm1(np.minimum(log_choose(misses) - log_choose(size), 0.0)), 1.0)
