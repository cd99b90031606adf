"""Whatever can be embedded, as one stream of arrays and rejections in the order of the input."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from headct.cohort import Cohort
from headct.failure import Misuse
from headct.preparing import Prepared, Recipe, prepare
from headct.reading import Criteria, read
from headct.scan import Rejection, Scan

Input = str | os.PathLike[str] | Scan | Cohort
Inputs = Input | Iterable[Input]

COHORT_FILE = "cohort.json"
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files become scans, and scans arrays."""

    recipe: Recipe
    criteria: Criteria
    key: bytes | None = None  # of the pseudonyms; None: the user's own
    keep_ids: bool = False


@dataclass(frozen=True)
class Ready:
    """A prepared scan that waits for the encoder."""

    ids: dict[str, str]  # scan_id, patient_id, study_id, series_id
    array: np.ndarray  # as the recipe makes it
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Refused:
    """A rejection, with the id of the scan if it was one already."""

    rejection: Rejection
    scan_id: str = ""


def stream(inputs: Inputs, reading: Reading, *, workers: int) -> Iterator[Ready | Refused]:
    """Prepared arrays, made ahead by `workers` threads; never more than a few at a time.

    Raises Misuse where a cohort was prepared by another recipe.
    """
    return _ahead(lambda job: job(), _jobs(inputs, reading), workers)


def _jobs(inputs: Inputs, reading: Reading) -> Iterator[Callable[[], Ready | Refused]]:
    """One call for each scan that gives what it becomes."""
    count = 0
    for one in _each(inputs):
        if isinstance(one, Cohort):
            _check_recipe(one, reading.recipe)
            for row in one.scans.to_dict("records"):
                yield partial(_from_cohort, one, row)
            continue
        for item in [one] if isinstance(one, Scan) else _read(one, reading):
            if isinstance(item, Rejection):
                yield partial(Refused, item)
            else:
                count += 1
                yield partial(_from_scan, item, item.header.scan_id or f"scan-{count}", reading)


def _read(path: Path, reading: Reading) -> Iterator[Scan | Rejection]:
    return read([path], reading.criteria, key=reading.key, keep_ids=reading.keep_ids)


def _each(inputs: Inputs) -> Iterator[Scan | Cohort | Path]:
    """The inputs one by one; a folder that is a cohort is opened."""
    for one in [inputs] if isinstance(inputs, Scan | Cohort | str | os.PathLike) else inputs:
        if isinstance(one, Scan | Cohort):
            yield one
        else:
            path = Path(one)
            yield Cohort(path) if (path / COHORT_FILE).is_file() else path


def _check_recipe(cohort: Cohort, recipe: Recipe) -> None:
    if cohort.recipe.id != recipe.id:
        raise Misuse(
            f"cohort {cohort.path.name} uses recipe {cohort.recipe.name} ({cohort.recipe.id}), "
            f"the checkpoint uses {recipe.name} ({recipe.id})",
            why="features of differently prepared scans cannot be compared",
            do=f"prepare the cohort again with recipe {recipe.name}, or choose another checkpoint",
        )


def _from_cohort(cohort: Cohort, row: Mapping[Any, Any]) -> Ready:
    scan_id = str(row["scan_id"])
    ids = {name: str(row.get(name) or "") for name in ("patient_id", "study_id", "series_id")}
    return Ready({"scan_id": scan_id, **ids}, cohort.array(scan_id), _spacing(cohort.affine(scan_id)))


def _from_scan(scan: Scan, name: str, reading: Reading) -> Ready | Refused:
    wanted = reading.criteria
    prepared = prepare(scan, reading.recipe, check_head=wanted.check_head, min_coverage=wanted.min_coverage)
    if not isinstance(prepared, Prepared):
        return Refused(prepared, name)
    header = scan.header
    ids = {"patient_id": header.patient_id, "study_id": header.study_id, "series_id": header.series_id}
    return Ready({"scan_id": name, **ids}, prepared.array, _spacing(prepared.affine))


def _spacing(affine: np.ndarray) -> tuple[float, float, float]:
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return x, y, z


def _ahead(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Results in the order of the items, with `workers` threads that are at most one item each ahead."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        try:
            for item in items:
                waiting.append(threads.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
