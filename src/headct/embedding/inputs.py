"""Whatever can be embedded, as one stream of arrays and rejections in the order of the input."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from headct.cohort import Cohort
from headct.cohort.identities import fingerprint, is_virtual, pseudonyms_of
from headct.failure import Failure, Misuse
from headct.preparing import Prepared, Recipe, prepare
from headct.reading import Criteria, finish, survey
from headct.reading.pseudonyms import Pseudonyms, user_key
from headct.reading.series import Volume
from headct.scan import Rejection, Scan

Input = str | os.PathLike[str] | Scan | Cohort | Rejection
Inputs = Input | Iterable[Input]

COHORT_FILE = "cohort.json"
SHOWN = 3
"""Scans that an error names of those that there are."""
IDS = ("scan_id", "patient_id", "study_id", "series_id")
OF_HEADER = ("flags", "manufacturer", "model", "kernel", "contrast", "age", "sex")
TRAITS = (*OF_HEADER, "thickness_mm", "tilt_deg", "coverage")
"""What else is told of a scan, as in a cohort's table: by it a reader may doubt what is made of its vector."""
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files become scans, and scans arrays."""

    recipe: Recipe
    criteria: Criteria
    key: bytes | None = None  # of the pseudonyms; None: the user's own
    keep_ids: bool = False
    one_for_one: bool = False  # a scan that comes up again in the inputs is a scan again


@dataclass(frozen=True)
class Ready:
    """A prepared scan that waits for the encoder."""

    ids: dict[str, str]  # by `IDS`
    array: np.ndarray  # as the recipe makes it
    affine: np.ndarray  # (4, 4), voxel to RAS mm
    files: tuple[str, ...] = ()  # names of those it was read from, where this call has read it
    traits: Mapping[str, Any] = field(default_factory=dict)  # by `TRAITS`
    virtual: bool = False  # whether it is of a simulated cohort

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
    scan_id: str = ""  # where it is known beforehand
    one_for_one: bool = False  # taken as often as it is given: whoever gives scans one by one wants them one by one
    again: bool = False  # nothing to be run: an earlier job, whose name it has, is of the same volume


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


def is_cohort(place: Path) -> bool:
    """Whether a path is taken as a finished cohort."""
    return (place / COHORT_FILE).is_file()


def chosen_by(inputs: Inputs, reading: Reading) -> dict[str, str]:
    """By which criteria scans were chosen, and how their ids came about: of a cohort, as its `cohort.json` says.

    Of the ids of virtual patients, which are nobody's, it says nothing. Several, in the order of the input, where
    inputs differ in it. An iterator is taken to give files.
    """
    given = [] if isinstance(inputs, Iterator) else list(_each(inputs))
    terms = [_of_cohort(one) if isinstance(one, Cohort) else _of_files(reading) for one in given]
    criteria, ids = (list(dict.fromkeys(values)) for values in zip(*(terms or [_of_files(reading)]), strict=True))
    told = criteria[0] if len(criteria) == 1 else f"[{', '.join(criteria)}]"
    return {"criteria": told, "ids": ", ".join(filter(None, ids))}


def _of_cohort(cohort: Cohort) -> tuple[str, str]:
    ids = pseudonyms_of(cohort)
    return json.dumps(cohort.about.get("criteria"), sort_keys=True), "kept" if ids == "none" else ids


def _of_files(reading: Reading) -> tuple[str, str]:
    ids = "kept" if reading.keep_ids else fingerprint(reading.key or user_key())
    return json.dumps(reading.criteria.to_dict(), sort_keys=True), ids


def stream(
    inputs: Inputs, reading: Reading, *, workers: int, done: Collection[str] = ()
) -> Iterator[tuple[Job, Items | None]]:
    """Each job and what came of it, made ahead by `workers` threads, never more than a few at a time.

    None stands for what came of those whose names are `done`, and of those that come up again; nothing is read for
    them. Raises Misuse where a cohort was prepared by another recipe, or an input is nothing that can be embedded.
    """
    jobs = _told_apart(_jobs(inputs, reading), one_for_one=reading.one_for_one)
    return _ahead(lambda job: (job, None if job.again or job.name in done else job.run()), jobs, workers)


def one_scan(scan: str | os.PathLike[str], reading: Reading, cohort: Cohort | None = None) -> Ready:
    """The scan in a file, a folder or an archive that holds one, or that of a scan id of `cohort`.

    Raises Misuse where there is no such thing, it holds several scans, or the cohort has another recipe, Failure where
    it holds none that can be used.
    """
    place = Path(os.path.expanduser(scan))
    if cohort is not None:
        cohort.expect(reading.recipe)
        if str(scan) in cohort and not place.exists():
            row = cohort.scans.set_index("scan_id", drop=False).loc[str(scan)]
            ids = {name: str(row[name]) for name in IDS}
            return Ready(ids, cohort.array(str(scan)), cohort.affine(str(scan)), virtual=is_virtual(cohort))
    if not place.exists():
        also = "" if cohort is None else f", and no scan of that id in {cohort.path}"
        raise Misuse(
            f"there is no file or folder {place}{also}",
            do="name a file, a folder that holds one scan, or --in COHORT and an id",
        )
    if is_cohort(place) and len(several := Cohort(place)) > 1:
        do = f"name one of them by its id, such as {next(iter(several))}, with --in {place}"
        raise Misuse(f"{place} is a cohort of several scans", do=do)
    items = [item for _, several in stream(place, reading, workers=1) for item in several or ()]
    ready = [item for item in items if isinstance(item, Ready)]
    if not ready:
        told = "; ".join(dict.fromkeys(one.rejection.sentence for one in items if isinstance(one, Refused)))
        raise Failure(f"no scan in {place} can be used", why=told or "it holds no scans", do="name another scan")
    if len(ready) > 1:
        raise Misuse(f"{place} holds {len(ready)} scans", do=_how_to_name_one(place, ready, reading))
    return ready[0]


def _how_to_name_one(place: Path, ready: Sequence[Ready], reading: Reading) -> str:
    """By the folder or file that holds one alone, where each has one; else by the ids that an ingest gives them."""
    alone = [_place_of(place, one) for one in ready]
    apart = all(one.exists() for one in alone) and not any(
        first == second or first in second.parents for first, second in permutations(alone, 2)
    )
    named = [str(one) for one in alone] if apart else [one.ids["scan_id"] for one in ready]
    some = ", ".join(named[:SHOWN]) + ", ..." * (len(named) > SHOWN)
    if apart:
        return f"name one of them: {some}"
    return (
        f"headct ingest {shlex.quote(str(place))} --recipe {reading.recipe.name} --out COHORT, "
        f"then name one by its id with --in COHORT: {some}"
    )


def _place_of(place: Path, scan: Ready) -> Path:
    """The file of a scan, or the folder of its files; their names begin with that of the input."""
    common = os.path.commonpath(scan.files)
    return place.joinpath(*Path(common).parts[1:])


def _jobs(inputs: Inputs, reading: Reading) -> Iterator[Job]:
    pseudonyms = Pseudonyms(None if reading.keep_ids else reading.key or user_key())
    for index, one in enumerate(_each(inputs)):
        if isinstance(one, Cohort):
            yield from _jobs_of_cohort(one, index, reading)
        elif isinstance(one, Scan):
            name = one.header.scan_id or f"scan-{index + 1}"
            yield Job(_digest("scan", name), index, partial(_from_scan, one, name, reading), one_for_one=True)
        elif isinstance(one, Rejection):
            yield Job(_digest("rejection", _place(one)), index, partial(_refuse, one), one_for_one=True)
        else:
            volumes, rejections = survey(one)
            for rejection in rejections:
                name = _digest("rejection", _place(one), _place(rejection))
                yield Job(name, index, partial(_refuse, rejection))
            for volume in volumes:
                name = _digest("volume", *_traces(volume))
                yield Job(name, index, partial(_from_volume, volume, pseudonyms, reading))


def _jobs_of_cohort(cohort: Cohort, index: int, reading: Reading) -> Iterator[Job]:
    cohort.expect(reading.recipe)
    scans = cohort.scans
    wanted = (*IDS, "crc32")
    columns = [scans[name].fillna("").astype(str) if name in scans else [""] * len(scans) for name in wanted]
    traits = scans[[name for name in TRAITS if name in scans]].to_dict("records")
    for *ids, crc32, known in zip(*columns, traits, strict=True):
        name = _digest("cohort", _place(cohort), ids[0], crc32)
        run = partial(_from_cohort, cohort, dict(zip(IDS, ids, strict=True)), known)
        yield Job(name, index, run, of_cohort=True, scan_id=ids[0])


def _told_apart(jobs: Iterable[Job], *, one_for_one: bool) -> Iterator[Job]:
    """The jobs; one of a volume that was met before is marked so, or has a name of its own where it is wanted again."""
    times: Counter[str] = Counter()
    first_of: dict[str, str] = {}
    for job in jobs:
        same = job.scan_id or job.name
        if one_for_one or job.one_for_one:
            times[job.name] += 1
            name = job.name if times[job.name] == 1 else _digest(job.name, str(times[job.name]))
            yield replace(job, name=name, one_for_one=True)
        elif same in first_of:
            yield replace(job, name=first_of[same], again=True)
        else:
            first_of[same] = job.name
            yield job


def _listed(inputs: Inputs) -> Iterable[Input]:
    if isinstance(inputs, Scan | Cohort | Rejection | str | os.PathLike):
        return [inputs]
    if not isinstance(inputs, Iterable):
        raise _no_input(inputs)
    return inputs


def _each(inputs: Inputs) -> Iterator[Scan | Cohort | Rejection | Path]:
    """The inputs one by one; a folder that is a cohort is opened. Raises Misuse for what is no input."""
    for one in _listed(inputs):
        if isinstance(one, Scan | Cohort | Rejection):
            yield one
        elif isinstance(one, str | os.PathLike):
            path = Path(os.path.expanduser(one))
            yield Cohort(path) if is_cohort(path) else path
        else:
            raise _no_input(one)


def _no_input(one: object) -> Misuse:
    return Misuse(
        f"a {type(one).__name__} cannot be embedded",
        do="give paths, scans, cohorts, or what headct.read gives, one of them or several",
    )


def _place(one: Input) -> str:
    """Where an input lies, whichever way it was named; of a scan in memory its id, of a rejection what it says."""
    if isinstance(one, Scan):
        return one.header.scan_id
    if isinstance(one, Rejection):
        return repr((one.code, one.sentence, one.files))
    return str((one.path if isinstance(one, Cohort) else Path(os.path.expanduser(one))).resolve())


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


def _from_cohort(cohort: Cohort, ids: dict[str, str], traits: Mapping[Hashable, Any]) -> Items:
    known = {str(name): value for name, value in traits.items()}
    array, affine = cohort.array(ids["scan_id"]), cohort.affine(ids["scan_id"])
    return (Ready(ids, array, affine, traits=known, virtual=is_virtual(cohort)),)


def _from_volume(volume: Volume, pseudonyms: Pseudonyms, reading: Reading) -> Items:
    items: list[Ready | Refused] = []
    found = list(finish(volume, reading.criteria, pseudonyms))
    lost = {name for item in found if isinstance(item, Rejection) for name in item.files}
    files = tuple(name for name in volume.files if name not in lost)
    for item in found:
        items += (
            [Refused(item)] if isinstance(item, Rejection) else _from_scan(item, item.header.scan_id, reading, files)
        )
    return tuple(items)


def _from_scan(scan: Scan, name: str, reading: Reading, files: tuple[str, ...] = ()) -> Items:
    wanted = reading.criteria
    prepared = prepare(scan, reading.recipe, check_head=wanted.check_head, min_coverage=wanted.min_coverage)
    if not isinstance(prepared, Prepared):
        return (Refused(prepared, name),)
    header = scan.header
    ids = dict(zip(IDS, (name, header.patient_id, header.study_id, header.series_id), strict=True))
    measured = {"thickness_mm": scan.thickness_mm, "tilt_deg": scan.tilt_deg, "coverage": prepared.coverage}
    traits = {name: getattr(header, name) for name in OF_HEADER} | measured
    return (Ready(ids, prepared.array, prepared.affine, files, traits),)


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
