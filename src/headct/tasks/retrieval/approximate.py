"""A search that looks at a part of the vectors only, by FAISS, and says how many neighbours it misses for that.

Vectors are sorted into lists around centres (an inverted file) and kept there in two bytes a number: of near twins one
byte loses some that no number of lists brings back. A query looks into the lists whose centres are nearest, and what it
finds is compared again by the exact vectors. The number of lists is what a measurement on some of the vectors asks for,
and the recall that is stated is measured on others.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from headct.failure import Failure, Misuse
from headct.tasks.retrieval.ranking import Metric, largest, nearest, similarities

RECALL = 0.98
"""Of the ten nearest, what share must be found."""
RECALL_K = 10
MEASURED_ON = 200
"""Vectors that choose how many lists are looked into; as many others are what the stated recall is measured on."""
LEAST = 4_000
"""With fewer vectors there is nothing to gain."""
TRAINED_ON = 40
"""Vectors for each list that its centre is learned from."""
CANDIDATES = 4
"""For each neighbour that is asked for, how many are compared by the exact vectors."""
FIRST_PROBES = 4
NO_MORE = 0.002
"""Where twice the lists find so little more, looking into others does not help."""


@dataclass(frozen=True)
class Approximate:
    """An inverted file of n vectors, of which a query looks into `probes` of `lists` lists."""

    inverted: Any  # faiss.IndexIVF
    probes: int
    recall: float  # of the ten nearest, on vectors that did not choose `probes`
    measured_on: int

    @property
    def lists(self) -> int:
        """How many there are."""
        return int(self.inverted.nlist)

    def nearest(self, stored: np.ndarray, queries: np.ndarray, k: int, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
        """Rows and similarities (q, k), best first; `stored` are the exact vectors. Row -1 where fewer were found."""
        return _search(self.inverted, self.probes, stored, queries, k, metric)

    def write(self, path: Path) -> None:
        """One file."""
        library().write_index(self.inverted, str(path))

    @classmethod
    def read(cls, path: Path, probes: int, recall: float, measured_on: int) -> Approximate:
        """Raises Failure where the file is missing or damaged, Misuse where FAISS is missing."""
        try:
            return cls(library().read_index(str(path)), probes, recall, measured_on)
        except RuntimeError as error:
            why = str(error).strip().rpartition("Error: ")[2] or "FAISS cannot read it"
            raise Failure(f"{path} is missing or damaged", why=why, do="build the index again") from error


def is_installed() -> bool:
    """Whether FAISS is there."""
    return find_spec("faiss") is not None


def library() -> Any:
    """FAISS. Raises Misuse where it is missing."""
    if not is_installed():
        raise Misuse(
            "an approximate search needs the package faiss-cpu",
            do="run `pip install faiss-cpu`, or search exactly, which needs nothing (--search exact)",
        )
    with warnings.catch_warnings():  # of its wrapper, on import, about types without a module
        warnings.simplefilter("ignore", DeprecationWarning)
        import faiss
    return faiss


def approximate(stored: np.ndarray, metric: Metric, *, recall: float = RECALL, seed: int = 0) -> Approximate:
    """Sort the vectors (n, F), in stored form, into lists, and choose how many a query looks into.

    Raises Misuse where there are fewer than `LEAST`, or FAISS is missing.
    """
    faiss = library()
    number, width = stored.shape
    if number < LEAST:
        raise Misuse(
            f"{number:,} vectors are too few for an approximate search",
            why=f"below {LEAST:,} there is nothing to gain",
            do="search exactly (--search exact)",
        )
    rng = np.random.default_rng(seed)
    lists = 2 ** round(np.log2(min(2 * np.sqrt(number), number / TRAINED_ON)))
    inverted = faiss.index_factory(width, f"IVF{lists},SQfp16", faiss.METRIC_L2)
    learned_from = np.sort(rng.choice(number, min(number, TRAINED_ON * lists), replace=False))
    inverted.train(np.ascontiguousarray(stored[learned_from]))
    for start in range(0, number, 1 << 17):
        inverted.add(np.ascontiguousarray(stored[start : start + (1 << 17)]))
    drawn = rng.choice(number, min(2 * MEASURED_ON, number), replace=False)
    choosing, stating = np.sort(drawn[: len(drawn) // 2]), np.sort(drawn[len(drawn) // 2 :])
    probes, found = FIRST_PROBES, 0.0
    wanted = _others(nearest(stored, stored[choosing], RECALL_K + 1, metric)[0], choosing)
    while probes < lists:
        before, found = found, _recall(inverted, probes, stored, choosing, wanted, metric)
        if found >= recall + (1 - recall) / 2:  # a little more, for another draw of vectors has another recall
            break
        if found >= recall and found - before < NO_MORE:  # what is still missed is lost to the two bytes a number
            break
        probes *= 2
    probes = min(probes, lists)
    wanted = _others(nearest(stored, stored[stating], RECALL_K + 1, metric)[0], stating)
    return Approximate(
        inverted, probes, _recall(inverted, probes, stored, stating, wanted, metric), measured_on=len(stating)
    )


def _search(
    inverted: Any, probes: int, stored: np.ndarray, queries: np.ndarray, k: int, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    """By the inverted file, then by the exact vectors of what it gave."""
    inverted.nprobe = probes
    _, candidates = inverted.search(np.ascontiguousarray(queries, dtype=np.float32), min(CANDIDATES * k, len(stored)))
    rows, scores = np.full((len(queries), k), -1, dtype=np.int64), np.full((len(queries), k), -np.inf)
    for index, (query, given) in enumerate(zip(queries, candidates, strict=True)):
        given = np.sort(given[given >= 0])
        exact = similarities(query[None], np.asarray(stored[given]), metric)
        columns = largest(exact, min(k, len(given)))[0]
        rows[index, : len(columns)], scores[index, : len(columns)] = given[columns], exact[0, columns]
    return rows, scores


def _recall(
    inverted: Any, probes: int, stored: np.ndarray, chosen: np.ndarray, wanted: list[set[int]], metric: Metric
) -> float:
    """The share of the true neighbours `wanted` of the vectors in rows `chosen` that are found."""
    found = _others(_search(inverted, probes, stored, stored[chosen], RECALL_K + 1, metric)[0], chosen)
    return float(np.mean([len(true & mine) / len(true) for true, mine in zip(wanted, found, strict=True)]))


def _others(rows: np.ndarray, own: np.ndarray) -> list[set[int]]:
    """Each query's ten neighbours without itself, which would always be found."""
    return [
        set([int(row) for row in line if row not in (-1, me)][:RECALL_K]) for line, me in zip(rows, own, strict=True)
    ]
