"""What is to be drawn on: scans of files with their own geometry and images, and prepared scans of cohorts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from headct.cohort import Cohort
from headct.embedding.inputs import IDS, Reading, is_cohort
from headct.preparing import Prepared, prepare
from headct.reading import finish, survey
from headct.reading.instances import Instance
from headct.reading.pseudonyms import Pseudonyms, user_key
from headct.reading.series import Volume
from headct.scan import Rejection, Scan

SAME_PLACE_MM = 0.01


@dataclass(frozen=True)
class Subject:
    """A prepared scan. `scan` and `images` are what it was made from; a cohort does not keep them.

    `images` are the DICOM images of the scan's slices, in their order; empty where it is of no such series.
    """

    ids: dict[str, str]  # by `IDS`
    array: np.ndarray
    affine: np.ndarray  # (4, 4)
    scan: Scan | None = None
    images: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class Job:
    """What may become subjects; `name` is the same whenever the same files are given again."""

    name: str
    run: Callable[[], Sequence[Subject | Rejection]]


def jobs(inputs: Sequence[Path], reading: Reading) -> list[Job]:
    """One for each volume that headers announce, each scan of a cohort, and each rejection that is known already.

    Raises Misuse where a cohort was prepared by another recipe.
    """
    pseudonyms = Pseudonyms(None if reading.keep_ids else reading.key or user_key())
    found: dict[str, Job] = {}
    for place in (Path(os.path.expanduser(one)) for one in inputs):
        of_place = _of_cohort(Cohort(place), reading) if is_cohort(place) else _of_files(place, pseudonyms, reading)
        for job in of_place:
            found.setdefault(job.name, job)
    return list(found.values())


def _of_cohort(cohort: Cohort, reading: Reading) -> Iterator[Job]:
    cohort.expect(reading.recipe)
    ids = cohort.scans[list(IDS)].fillna("").astype(str)
    for row in ids.to_dict("records"):
        known = {str(name): str(value) for name, value in row.items()}
        yield Job(_digest(str(cohort.path.resolve()), known["scan_id"]), partial(_prepared, cohort, known))


def _prepared(cohort: Cohort, ids: dict[str, str]) -> list[Subject | Rejection]:
    return [Subject(ids, cohort.array(ids["scan_id"]), cohort.affine(ids["scan_id"]))]


def _of_files(place: Path, pseudonyms: Pseudonyms, reading: Reading) -> Iterator[Job]:
    volumes, rejections = survey(place)
    for rejection in rejections:
        yield Job(_digest(rejection.code, rejection.sentence, *rejection.files), partial(_refused, rejection))
    for volume in volumes:
        traces = [
            repr((source.path, source.member, source.size_bytes, _changed(source.path))) for source in volume.sources
        ]
        frames = [repr(image.frame) for image in volume.images]
        yield Job(_digest(*traces, *frames), partial(_read, volume, pseudonyms, reading))


def _refused(rejection: Rejection) -> list[Subject | Rejection]:
    return [rejection]


def _changed(path: str) -> int:
    """Time of the last change in ns; 0 for a file that went away, of which reading will tell."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _read(volume: Volume, pseudonyms: Pseudonyms, reading: Reading) -> list[Subject | Rejection]:
    found = list(finish(volume, reading.criteria, pseudonyms))
    lost = frozenset(name for item in found if isinstance(item, Rejection) for name in item.files)
    return [item if isinstance(item, Rejection) else _subject(item, volume, lost, reading) for item in found]


def _subject(scan: Scan, volume: Volume, lost: frozenset[str], reading: Reading) -> Subject | Rejection:
    wanted = reading.criteria
    prepared = prepare(scan, reading.recipe, check_head=wanted.check_head, min_coverage=wanted.min_coverage)
    if not isinstance(prepared, Prepared):
        names = tuple(name for name in volume.files if name not in lost)
        return Rejection(prepared.code, prepared.sentence, prepared.remedy, names)
    header = scan.header
    ids = dict(zip(IDS, (header.scan_id, header.patient_id, header.study_id, header.series_id), strict=True))
    return Subject(ids, prepared.array, prepared.affine, scan, images_of(scan, volume, lost))


def images_of(scan: Scan, volume: Volume, lost: frozenset[str] = frozenset()) -> tuple[Instance, ...]:
    """The image of each slice of a scan, found by where it lies; files in `lost` were not used.

    Empty for a grid file, for images of many frames, and where a slice has none.
    """
    images = []
    for origin_mm in scan.origins_mm:
        here = (
            image
            for part in volume.slices
            for image in part.candidates
            if image.source.name not in lost
            and np.linalg.norm(np.asarray(image.position_mm) - origin_mm) <= SAME_PLACE_MM
        )
        image = next(here, None)
        if image is None or image.frame is not None:
            return ()
        images.append(image)
    return tuple(images)
