"""An index on disk: what `headct retrieve build` writes, and how it is searched.

index/
  index.json          metric, model, recipe, cohort, how it is searched and what that misses
  scans.parquet       a row for each scan, with the columns that conditions may ask
  vectors.npy         float32 (n, F) as they are compared; mapped into memory, never read as a whole
  approximate.faiss   only where the search is approximate
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from headct import __version__
from headct.cohort.journal import refused
from headct.failure import Failure, Misuse
from headct.reporting.words import count
from headct.tasks.retrieval import ranking
from headct.tasks.retrieval.approximate import Approximate, approximate, is_installed, library
from headct.tasks.retrieval.filters import Condition, kept
from headct.tasks.retrieval.gallery import Gallery, expect_finite
from headct.tasks.retrieval.ranking import Metric

ABOUT, SCANS, VECTORS, APPROXIMATE = "index.json", "scans.parquet", "vectors.npy", "approximate.faiss"
FORMAT = 1
Search = Literal["auto", "exact", "approximate"]
WORTH_IT = 50_000
"""From so many vectors on, `auto` searches approximately, where FAISS is there: below, exact takes milliseconds."""


@dataclass(frozen=True)
class Found:
    """What one query found, best first: rows of the index and similarities (cosine, or minus the distance).

    `barred` other scans of the query's own patient were passed over; `exact` says whether any could have been missed.
    """

    rows: np.ndarray
    similarities: np.ndarray
    barred: int
    exact: bool


def search_named(name: str) -> Search:
    """The search of this name. Raises Misuse where there is none."""
    if name not in get_args(Search):
        raise Misuse(f"no search is called {name!r}", do=f"take {', '.join(get_args(Search))}")
    return cast(Search, name)


def build(
    out: Path,
    gallery: Gallery,
    *,
    metric: Metric = "cosine",
    search: Search = "auto",
    model_name: str = "",
    cohort: Path | None = None,
    virtual: bool = False,
) -> Index:
    """Write an index; one that is there is replaced. `model_name` and `cohort` are where later calls find them.

    `virtual` says that its patients are, which pages repeat.

    Raises Misuse where something else is there, or an approximate search is asked for that is not to be had.
    """
    check_place(out)
    if search == "approximate":
        library()
    stored = ranking.stored_form(gallery.vectors, metric)
    wanted = search == "approximate" or (search == "auto" and is_installed() and len(stored) >= WORTH_IT)
    found = approximate(stored, metric) if wanted else None
    draft = out.with_name(f".{out.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        np.save(draft / VECTORS, stored)
        gallery.scans.to_parquet(draft / SCANS, index=False)
        if found is not None:
            found.write(draft / APPROXIMATE)
        sizes = {path.name: path.stat().st_size for path in draft.iterdir()}
        about = {
            "format": FORMAT,
            "headct": __version__,
            "metric": metric,
            "scans": len(stored),
            "patients": int(gallery.scans["patient_id"].nunique()),
            "width": stored.shape[1],
            "model": dict(gallery.model),
            "model_name": model_name,
            "cohort": "" if cohort is None else str(cohort.resolve()),
            "virtual": virtual,
            "pseudonyms": gallery.pseudonyms,
            "search": _search_in_words(found),
            "bytes": sizes,
        }
        (draft / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        os.replace(draft, out)
    except OSError as error:
        raise refused(out, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Index(out)


def _search_in_words(found: Approximate | None) -> dict[str, Any]:
    if found is None:
        return {"kind": "exact", "recall_at_10": 1.0}
    return {
        "kind": "approximate",
        "lists": found.lists,
        "probes": found.probes,
        "recall_at_10": found.recall,
        "measured_on": found.measured_on,
    }


def check_place(out: Path) -> None:
    """Raises Misuse where an index at `out` would replace what is none."""
    if out.exists() and not (out / ABOUT).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise Misuse(f"{out} is there already, and is no index", do="name a new folder")


class Index:
    """An index in a folder; opening reads `index.json`, the rest follows when asked for.

    Raises Misuse where there is none, Failure where it is damaged or of a newer format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.expanduser(path))
        try:
            self.about: Mapping[str, Any] = json.loads((self.path / ABOUT).read_text(encoding="utf-8"))
            form = self.about["format"]
        except FileNotFoundError:
            raise Misuse(f"{self.path} is no index", do="make one with headct retrieve build") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Failure(f"{self.path / ABOUT} is damaged", do="build the index again") from error
        if form != FORMAT:
            raise Failure(
                f"the index {self.path} has format {form}, and this headct reads {FORMAT}", do="build the index again"
            )

    def __len__(self) -> int:
        return int(self.about["scans"])

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}, {count(len(self), 'scan')}, {self.metric}, {self.about['search']['kind']})"

    @property
    def metric(self) -> Metric:
        """How vectors are compared."""
        return ranking.metric_named(self.about["metric"])

    @property
    def pseudonyms(self) -> str:
        """As `Gallery.pseudonyms`; "" for an index of a headct that did not keep it."""
        return str(self.about.get("pseudonyms", ""))

    @property
    def bytes(self) -> int:
        """What it takes on disk."""
        return sum(self.about["bytes"].values())

    @cached_property
    def scans(self) -> pd.DataFrame:
        """A row for each scan. Raises Failure where the table is missing or damaged."""
        try:
            table: pd.DataFrame = pq.ParquetFile(self.path / SCANS).read(use_threads=False).to_pandas()
        except (OSError, ValueError) as error:
            raise self._damaged(SCANS, error) from error
        if len(table) != len(self):
            raise self._damaged(SCANS, ValueError(f"{len(table):,} rows for {len(self):,} scans"))
        return table

    @cached_property
    def vectors(self) -> np.ndarray:
        """In stored form (n, F), mapped into memory. Raises Failure where they are missing or damaged."""
        try:
            found: np.ndarray = np.load(self.path / VECTORS, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise self._damaged(VECTORS, error) from error
        if found.shape != (len(self), self.about["width"]):
            raise self._damaged(VECTORS, ValueError(f"shape {found.shape}"))
        return found

    @cached_property
    def _approximate(self) -> Approximate | None:
        how = self.about["search"]
        if how["kind"] == "exact":
            return None
        return Approximate.read(self.path / APPROXIMATE, how["probes"], how["recall_at_10"], how["measured_on"])

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {scan_id: row for row, scan_id in enumerate(self.scans["scan_id"])}

    @cached_property
    def _rows_of_patient(self) -> dict[str, np.ndarray]:
        grouped = self.scans.groupby("patient_id", sort=False).indices
        return {str(patient): np.asarray(rows) for patient, rows in grouped.items()}

    def row(self, scan_id: str) -> int:
        """Where a scan is. Raises Misuse for one that is not there."""
        if scan_id not in self._row_of:
            raise Misuse(f"no scan {scan_id!r} in the index {self.path}", do=f"its ids are in {self.path / SCANS}")
        return self._row_of[scan_id]

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        *,
        scan_ids: Sequence[str] | None = None,
        patients: Sequence[str] | None = None,
        conditions: Sequence[Condition] = (),
        exact: bool = False,
    ) -> list[Found]:
        """The k most similar scans of each query vector (q, F), as the encoder gives them; fewer where there are less.

        `conditions` are met by all that is found: they choose before anything is ranked, so that k results come back.
        The query itself, by `scan_ids`, and scans of `patients` (one for each query, "" for nobody) are passed over.
        With conditions, or if `exact`, nothing is missed; else what an approximate index states. Raises Misuse where
        vectors do not fit, conditions leave nothing, or only the query's own patient.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.about["width"]:
            raise Misuse(
                f"the index {self.path} has vectors of {self.about['width']} numbers, "
                f"the query has {vectors.shape[-1]}",
                do="make the query's vector with the model of the index",
            )
        if k < 1:
            raise Misuse(f"at least one scan must be asked for, got {k}", do="-k 1 or more")
        expect_finite(vectors, [f"query {number}" for number in range(1, len(vectors) + 1)])
        rows = kept(self.scans, conditions) if conditions else None
        nobody = [""] * len(vectors)
        own = [
            self._own(*who)
            for who in zip(
                nobody if scan_ids is None else scan_ids, nobody if patients is None else patients, strict=True
            )
        ]
        most = k + max((len(barred) for barred, _ in own), default=0)  # so that k are left when they are gone
        queries = ranking.stored_form(vectors, self.metric)
        finder = None if exact or rows is not None else self._approximate
        if finder is None:
            found, scores = ranking.nearest(self.vectors, queries, most, self.metric, rows)
        else:
            found, scores = finder.nearest(self.vectors, queries, most, self.metric)
        return [
            self._left(line, values, *barred, k, finder is None)
            for line, values, barred in zip(found, scores, own, strict=True)
        ]

    def _own(self, scan_id: str, patient_id: str) -> tuple[np.ndarray, int]:
        """Rows of the query itself and of its patient, and how many there are without itself."""
        of_patient = self._rows_of_patient.get(patient_id, np.empty(0, int))
        itself = [self._row_of[scan_id]] if scan_id in self._row_of else []
        return np.union1d(of_patient, itself).astype(int), len(np.setdiff1d(of_patient, itself))

    def _left(
        self, rows: np.ndarray, scores: np.ndarray, barred: np.ndarray, passed: int, k: int, exact: bool
    ) -> Found:
        """What is left of a query without itself and its own patient."""
        good = (rows >= 0) & ~np.isin(rows, barred)
        if not good.any():
            raise Misuse(
                "nothing is left to find but the query itself and scans of its patient",
                do="search a larger index, widen the conditions, or allow them (--own-patient)",
            )
        return Found(rows[good][:k], scores[good][:k].astype(float), passed, exact)

    def _damaged(self, name: str, error: Exception) -> Failure:
        return Failure(f"{self.path / name} is missing or damaged", why=str(error), do="build the index again")
