"""Whatever can be embedded, as one stream of arrays and rejections in the order of the input."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from headct.cohort import Cohort
from headct.preparing import Prepared, Recipe, prepare
from headct.reading import Criteria, finish, survey
from headct.reading.pseudonyms import Pseudonyms, user_key
from headct.reading.series import Volume
from headct.scan import Rejection, Scan

Input = str | os.PathLike[str] | Scan | Cohort
Inputs = Input | Iterable[Input]

COHORT_FILE = "cohort.json"
IDS = ("scan_id", "patient_id", "study_id", "series_id")
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

    ids: dict[str, str]  # by `IDS`
    array: np.ndarray  # as the recipe makes it
    affine: np.ndarray  # (4, 4), voxel to RAS mm

    @property
    def spacing_mm(self) -> np.ndarray:
        """Voxel size (3,) along the axes of the array."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


@dataclass(frozen=True)
class Refused:
    """A rejection, with the id of the scan if it was one already."""

    rejection: Rejection
    scan_id: str = ""


Items = tuple[Ready | Refused, ...]
"""What a volume becomes: at most one scan, and a rejection for each of its files that is not in it."""


@dataclass(frozen=True)
class Job:
    """A volume to be made ready, of the input at position `input`.

    `name` is the same whenever the same volume is given again, and that of no other; what is done goes by it.
    """

    name: str
    input: int
    run: Callable[[], Items]
    of_cohort: bool = False  # which gives a scan and no rejections


def count(inputs: Inputs) -> int | None:
    """How many jobs there will be, where that is known before files are looked at and without using anything up."""
    if isinstance(inputs, Iterator):
        return None
    total = 0
    for one in _each(inputs):
        if isinstance(one, Path):
            return None
        total += len(one) if isinstance(one, Cohort) else 1
    return total


def digest(inputs: Inputs) -> str:
    """Tells apart what was asked for: places of files and cohorts, in order. What an iterator will give is unknown."""
    return "an iterator" if isinstance(inputs, Iterator) else _digest(*map(_place, _listed(inputs)))


def stream(
    inputs: Inputs, reading: Reading, *, workers: int, done: Collection[str] = ()
) -> Iterator[tuple[Job, Items | None]]:
    """Each job and what came of it, made ahead by `workers` threads, never more than a few at a time.

    None stands for what came of those whose names are `done`; nothing is read for them. Raises Misuse where a cohort
    was prepared by another recipe.
    """
    return _ahead(
        lambda job: (job, None if job.name in done else job.run()), _told_apart(_jobs(inputs, reading)), workers
    )


def _jobs(inputs: Inputs, reading: Reading) -> Iterator[Job]:
    pseudonyms = Pseudonyms(None if reading.keep_ids else reading.key or user_key())
    for index, one in enumerate(_each(inputs)):
        if isinstance(one, Cohort):
            yield from _jobs_of_cohort(one, index, reading)
        elif isinstance(one, Scan):
            name = one.header.scan_id or f"scan-{index + 1}"
            yield Job(_digest("scan", name), index, partial(_from_scan, one, name, reading))
        else:
            volumes, rejections = survey(one)
            for rejection in rejections:
                name = _digest("rejection", _place(one), rejection.code, rejection.sentence, *rejection.files)
                yield Job(name, index, partial(_refuse, rejection))
            for volume in volumes:
                name = _digest("volume", *_traces(volume))
                yield Job(name, index, partial(_from_volume, volume, pseudonyms, reading))


def _jobs_of_cohort(cohort: Cohort, index: int, reading: Reading) -> Iterator[Job]:
    cohort.expect(reading.recipe)
    scans = cohort.scans
    wanted = (*IDS, "crc32")
    columns = [scans[name].fillna("").astype(str) if name in scans else [""] * len(scans) for name in wanted]
    for *ids, crc32 in zip(*columns, strict=True):
        name = _digest("cohort", _place(cohort), ids[0], crc32)
        yield Job(name, index, partial(_from_cohort, cohort, dict(zip(IDS, ids, strict=True))), of_cohort=True)


def _told_apart(jobs: Iterable[Job]) -> Iterator[Job]:
    """The jobs; one that comes up again, as its input was given twice, under a name of its own."""
    times: Counter[str] = Counter()
    for job in jobs:
        times[job.name] += 1
        again = times[job.name]
        yield job if again == 1 else replace(job, name=_digest(job.name, str(again)))


def _listed(inputs: Inputs) -> Iterable[Input]:
    return [inputs] if isinstance(inputs, Scan | Cohort | str | os.PathLike) else inputs


def _each(inputs: Inputs) -> Iterator[Scan | Cohort | Path]:
    """The inputs one by one; a folder that is a cohort is opened."""
    for one in _listed(inputs):
        if isinstance(one, Scan | Cohort):
            yield one
        else:
            path = Path(one)
            yield Cohort(path) if (path / COHORT_FILE).is_file() else path


def _place(one: Input) -> str:
    """Where an input lies, whichever way it was named; of a scan in memory its id."""
    if isinstance(one, Scan):
        return one.header.scan_id
    return str((one.path if isinstance(one, Cohort) else Path(one)).resolve())


def _traces(volume: Volume) -> Iterator[str]:
    """Where each file of a volume lies, its size and its last change: what tells it from others and from its past."""
    for source in dict.fromkeys(volume.sources):
        yield repr((source.path, source.member, source.place, source.size_bytes, _changed(source.path)))
        for beside in (os.path.join(os.path.dirname(source.path), name) for name in source.beside):
            yield repr((beside, _changed(beside)))


def _changed(path: str) -> tuple[int, int]:
    """Bytes and time of the last change in ns; zeros for a file that went away, of which reading will tell."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _from_cohort(cohort: Cohort, ids: dict[str, str]) -> Items:
    return (Ready(ids, cohort.array(ids["scan_id"]), cohort.affine(ids["scan_id"])),)


def _from_volume(volume: Volume, pseudonyms: Pseudonyms, reading: Reading) -> Items:
    items: list[Ready | Refused] = []
    for item in finish(volume, reading.criteria, pseudonyms):
        items += [Refused(item)] if isinstance(item, Rejection) else _from_scan(item, item.header.scan_id, reading)
    return tuple(items)


def _from_scan(scan: Scan, name: str, reading: Reading) -> Items:
    wanted = reading.criteria
    prepared = prepare(scan, reading.recipe, check_head=wanted.check_head, min_coverage=wanted.min_coverage)
    if not isinstance(prepared, Prepared):
        return (Refused(prepared, name),)
    header = scan.header
    ids = dict(zip(IDS, (name, header.patient_id, header.study_id, header.series_id), strict=True))
    return (Ready(ids, prepared.array, prepared.affine),)


def _refuse(rejection: Rejection) -> Items:
    return (Refused(rejection),)


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
