"""Files to scans: whatever lies in a folder becomes a `Scan` or a `Rejection` that says why not.

The stages can be had one by one, to be spread over many machines: `files.find`, `instances.read_header`,
`series.assemble`, `criteria.judge`, `volumes.load`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain

from headct.reading.criteria import CRITERIA, Criteria, judge, judge_scan
from headct.reading.files import Source, find
from headct.reading.instances import GridFile, Instance, read_header
from headct.reading.isolation import CellDied, cell
from headct.reading.pseudonyms import Pseudonyms, user_key
from headct.reading.series import Volume, assemble
from headct.reading.volumes import guarded, load
from headct.scan import Rejection, Scan

__all__ = ["CRITERIA", "Criteria", "read"]

HEADER_S = 10.0
"""How long reading the header of one file may take."""

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def read(
    paths: Paths,
    criteria: Criteria | None = None,
    *,
    key: bytes | None = None,
    keep_ids: bool = False,
    isolated: bool = True,
) -> Iterator[Scan | Rejection]:
    """The scans in files, folders and archives, and a rejection for everything else; every file ends in one of them.

    `criteria` None takes every readable CT, a single slice too. Identifiers become pseudonyms by `key`, the user's own
    if None, unless `keep_ids`. Files are decoded in a worker process, so that a malicious one can do no harm but to
    itself; `isolated` False does without it, for files that are trusted.

        for item in headct.read("/data/ct"):
            print(item.code, item.sentence) if isinstance(item, headct.Rejection) else print(item.hu.shape)
    """
    pseudonyms = Pseudonyms(None if keep_ids else key or user_key())
    headers: list[Instance | GridFile] = []
    inputs = [paths] if isinstance(paths, str | os.PathLike) else paths
    for entry in chain.from_iterable(_headers(found, isolated) for found in find(inputs)):
        if isinstance(entry, Rejection):
            yield entry
        else:
            headers.append(entry)
    volumes, rejections = assemble(headers)
    yield from rejections
    for volume in volumes:
        yield from _finish(volume, criteria, pseudonyms, isolated)


def _headers(found: Source | Rejection, isolated: bool) -> list[Instance | GridFile | Rejection]:
    if isinstance(found, Rejection):
        return [found]
    if not isolated:
        return read_header(found)
    try:
        return cell().run(read_header, found, time_s=HEADER_S)
    except CellDied as death:
        return [Rejection.because(death.reason, "the worker that read its header had to be ended", found.files)]


def _finish(
    volume: Volume, criteria: Criteria | None, pseudonyms: Pseudonyms, isolated: bool
) -> Iterator[Scan | Rejection]:
    if criteria is not None and (unfit := judge(volume, criteria)) is not None:
        yield unfit
        return
    (scan, faulty), dead = _loaded(volume, pseudonyms) if isolated else (load(volume, pseudonyms), [])
    yield from dead
    yield from faulty
    if scan is None:
        return
    scan = scan.with_flags("file-dropped") if dead else scan
    gone = {name for rejection in (*dead, *faulty) for name in rejection.files}
    files = tuple(name for name in volume.files if name not in gone)
    unfit = judge_scan(scan, criteria, files) if criteria is not None and volume.grid is not None else None
    yield scan if unfit is None else unfit


def _loaded(volume: Volume, pseudonyms: Pseudonyms) -> tuple[tuple[Scan | None, list[Rejection]], list[Rejection]]:
    loaded, dead = guarded(load, volume, pseudonyms)
    return loaded or (None, []), dead
