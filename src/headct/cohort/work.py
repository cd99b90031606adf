"""What a worker does with one item: read the headers of some files, or make one series ready for the cohort.

Both run in the worker's own cell (`headct.reading.isolation`), so that a file can crash, hang or eat memory there.
A death costs the file that caused it: it is tried once more alone, in a fresh process, before it is blamed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headct.cohort.shards import Packed, pack
from headct.failure import Failure
from headct.preparing import Prepared, prepare
from headct.preparing.recipe import Recipe
from headct.reading.criteria import Criteria, judge, judge_scan
from headct.reading.files import Source
from headct.reading.instances import GridFile, Instance, read_header
from headct.reading.isolation import CellDied, announce, cell
from headct.reading.pseudonyms import Pseudonyms
from headct.reading.series import Volume
from headct.reading.volumes import load
from headct.scan import Rejection, Scan

Header = Instance | GridFile | Rejection


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a worker may be busy before what it works on is given up; far beyond what real scans need."""

    files_s: float = 60.0
    """For the headers of a batch of files, or of one file alone."""
    series_s: float = 120.0
    """For one series, and `slice_s` for each of its files."""
    slice_s: float = 1.0
    """JPEG 2000, the slowest, takes 0.07 s."""
    deaths: int = 8
    """A series that has killed its worker so often is given up as a whole."""


@dataclass(frozen=True)
class Terms:
    """What decides how a series is made ready, the same for every worker."""

    recipe: Recipe
    criteria: Criteria
    pseudonyms: Pseudonyms
    site: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Accepted:
    """One scan of a series: its row of the table but for its place, and what decides on that place."""

    row: Mapping[str, Any]
    files: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    compressed_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one series: `voxels` belong to `accepted`, one each, until they are stored apart.

    Every file of the series is in an accepted scan or in a rejection.
    """

    accepted: tuple[Accepted, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    voxels: tuple[Packed, ...] = ()


# Headers


def read_headers(sources: Sequence[Source], limits: Limits) -> dict[str, tuple[Header, ...]]:
    """What each file says, by its name; a file that kills the worker is a rejection."""
    headers: dict[str, tuple[Header, ...]] = {}
    waiting = [tuple(sources)]
    while waiting:
        batch = waiting.pop()
        try:
            headers |= cell().run(headers_in_cell, batch, time_s=limits.files_s)
        except CellDied as death:
            if len(batch) == 1:
                headers[batch[0].name] = (_blame(death, batch[0].files),)
            else:
                waiting += _apart(batch, death.at)
    return headers


def headers_in_cell(sources: Sequence[Source]) -> dict[str, tuple[Header, ...]]:
    """Runs in a cell."""
    headers = {}
    for source in sources:
        announce(source.name)
        headers[source.name] = tuple(read_header(source))
    return headers


def _apart(batch: tuple[Source, ...], suspect: str) -> list[tuple[Source, ...]]:
    """The suspect alone, and those before and behind it; two halves where nobody is named."""
    index = next((index for index, source in enumerate(batch) if source.name == suspect), None)
    if index is None:
        return [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    return [part for part in (batch[:index], batch[index : index + 1], batch[index + 1 :]) if part]


# Series


def finish_series(volume: Volume, terms: Terms) -> Outcome:
    """Decode and prepare one series. Files that kill the worker are left out one by one, and the rest is read."""
    killers: list[Rejection] = []
    left: Volume | None = volume
    while left is not None:
        try:
            outcome = cell().run(series_in_cell, left, terms, bool(killers), time_s=_time_s(left, terms))
            return replace(outcome, rejections=(*killers, *outcome.rejections))
        except CellDied as death:
            killer = _alone(left, death, terms) if len(killers) < terms.limits.deaths else None
            if killer is None:
                return Outcome(rejections=(*killers, _blame(death, left.files)))
            killers.append(killer)
            left = left.without(*killer.files)
    return Outcome(rejections=tuple(killers))


def _alone(volume: Volume, death: CellDied, terms: Terms) -> Rejection | None:
    """The rejection of the file at which the worker died, if it kills a fresh one by itself; else all are to blame."""
    others = [name for name in volume.files if name != death.at]
    if len(others) == len(volume.files) or (suspect := volume.without(*others)) is None:
        return None
    try:
        cell().run(load, suspect, terms.pseudonyms, time_s=_time_s(suspect, terms))
    except CellDied as again:
        return _blame(again, suspect.files)
    return None


def _time_s(volume: Volume, terms: Terms) -> float:
    return terms.limits.series_s + terms.limits.slice_s * len(volume.files)


def _blame(death: CellDied, files: tuple[str, ...]) -> Rejection:
    what = {
        "time-limit": "reading it did not come to an end in time",
        "memory-limit": "reading it needed more memory than it may have",
        "crashed": "it crashed the process that read it",
    }
    return Rejection.because(death.reason, what[death.reason], files)


def series_in_cell(volume: Volume, terms: Terms, file_dropped: bool) -> Outcome:
    """Runs in a cell. `file_dropped`: a file of this series has killed an earlier one."""
    try:
        return _made_ready(volume, terms, file_dropped)
    except (MemoryError, Failure):
        raise
    except Exception as error:  # whatever a strange file provokes in a library costs its series, not the job
        logging.getLogger(__name__).debug("a series failed", exc_info=True)
        sentence = f"it could not be made ready ({type(error).__name__})"  # the text might quote a header
        return Outcome(rejections=(Rejection.because("crashed", sentence, volume.files),))


def _made_ready(volume: Volume, terms: Terms, file_dropped: bool) -> Outcome:
    scan, faulty = load(volume, terms.pseudonyms)
    rejected = {name for rejection in faulty for name in rejection.files}
    files = tuple(name for name in volume.files if name not in rejected)
    if scan is None:
        return Outcome(rejections=tuple(faulty))
    if file_dropped:
        scan = scan.with_flags("file-dropped")
    announce("")  # what happens from here on is nobody's fault but the whole series'
    criteria = terms.criteria
    if (unfit := _judge(volume.without(*rejected), scan, criteria, files)) is not None:
        return Outcome(rejections=(*faulty, unfit))
    prepared = prepare(scan, terms.recipe, check_head=criteria.check_head, min_coverage=criteria.min_coverage)
    if isinstance(prepared, Rejection):
        return Outcome(rejections=(*faulty, replace(prepared, files=files)))
    row = scan_row(scan, prepared, terms.site)
    del scan  # of a large one, its memory is needed to compress the array
    packed = pack(prepared.array)
    accepted = Accepted(
        row=row | {"crc32": packed.crc32},
        files=files,
        shape=packed.shape,
        dtype=packed.dtype,
        compressed_bytes=len(packed.chunk),
    )
    return Outcome((accepted,), tuple(faulty), (packed,))


def _judge(left: Volume | None, scan: Scan, criteria: Criteria, files: tuple[str, ...]) -> Rejection | None:
    """What is `left` of a series may be too little; a file that holds a whole volume has not been judged before."""
    assert left is not None, "a scan comes from some file"
    return judge_scan(scan, criteria, files) if left.grid is not None else judge(left, criteria)


def scan_row(scan: Scan, prepared: Prepared, site: str) -> dict[str, Any]:
    """The row of the table of scans, but for `preferred`, the place in a shard and the checksum."""
    header, gaps_mm = scan.header, scan.gaps_mm
    slices, rows, cols = scan.hu.shape
    known = len(gaps_mm) > 0
    return {
        "scan_id": header.scan_id,
        "patient_id": header.patient_id,
        "study_id": header.study_id,
        "series_id": header.series_id,
        "site": site,
        "source": header.source,
        "manufacturer": header.manufacturer,
        "model": header.model,
        "kernel": header.kernel,
        "kvp": header.kvp,
        "contrast": header.contrast,
        "age": header.age,
        "sex": header.sex,
        "slices": slices,
        "rows": rows,
        "cols": cols,
        "pixel_mm": max(scan.pixel_mm),
        "gap_min_mm": float(gaps_mm.min()) if known else None,
        "gap_median_mm": float(np.median(gaps_mm)) if known else None,
        "gap_max_mm": float(gaps_mm.max()) if known else None,
        "thickness_mm": scan.thickness_mm if math.isfinite(scan.thickness_mm) and scan.thickness_mm > 0 else None,
        "tilt_deg": scan.tilt_deg,
        "coverage": prepared.coverage,
        "transfer_syntax": header.transfer_syntax,
        "decoder": header.decoder,
        "flags": sorted({*header.flags, *prepared.flags}),
        "affine": [float(value) for value in np.asarray(prepared.affine).ravel()],
    }
