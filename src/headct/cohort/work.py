"""What a worker does with one series: make it ready for the cohort, in a cell of its own (`headct.reading.guard`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headct.cohort.shards import Packed, pack
from headct.failure import Failure
from headct.preparing import Prepared, prepare
from headct.preparing.recipe import Recipe
from headct.reading.criteria import Criteria, judge_loaded
from headct.reading.guard import guarded
from headct.reading.isolation import announce
from headct.reading.pseudonyms import Pseudonyms
from headct.reading.series import Volume
from headct.reading.volumes import load
from headct.scan import Rejection, Scan


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a worker may be busy before what it works on is given up; far beyond what real scans need."""

    files_s: float = 60.0
    """For the headers of a batch of files, or of one file alone."""
    series_s: float = 120.0
    """For one series, and `slice_s` for each of its files."""
    slice_s: float = 1.0
    """JPEG 2000, the slowest, takes 0.07 s."""

    def of_series(self, volume: Volume) -> float:
        """In seconds."""
        return self.series_s + self.slice_s * len(volume.files)


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


def finish_series(volume: Volume, terms: Terms) -> Outcome:
    """Decode and prepare one series. Files that kill the worker are left out one by one, and the rest is read."""
    outcome, killers = guarded(series_in_cell, volume, terms, time_s=terms.limits.of_series)
    return replace(outcome or Outcome(), rejections=(*killers, *(outcome.rejections if outcome else ())))


def series_in_cell(volume: Volume, terms: Terms) -> Outcome:
    """Runs in a cell."""
    try:
        return _made_ready(volume, terms)
    except (MemoryError, Failure):
        raise
    except Exception as error:  # whatever a strange file provokes in a library costs its series, not the job
        logging.getLogger(__name__).debug("a series failed", exc_info=True)
        sentence = f"it could not be made ready ({type(error).__name__})"  # the text might quote a header
        return Outcome(rejections=(Rejection.because("crashed", sentence, volume.files),))


def _made_ready(volume: Volume, terms: Terms) -> Outcome:
    scan, faulty = load(volume, terms.pseudonyms)
    rejected = {name for rejection in faulty for name in rejection.files}
    files = tuple(name for name in volume.files if name not in rejected)
    if scan is None:
        return Outcome(rejections=tuple(faulty))
    announce("")  # what happens from here on is nobody's fault but the whole series'
    criteria = terms.criteria
    if (unfit := judge_loaded(volume.without(*rejected), scan, criteria)) is not None:
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
        "slice_normal": [float(value) for value in scan.normal],
        "coverage": prepared.coverage,
        "transfer_syntax": header.transfer_syntax,
        "decoder": header.decoder,
        "flags": sorted({*header.flags, *prepared.flags}),
        "affine": [float(value) for value in np.asarray(prepared.affine).ravel()],
    }
