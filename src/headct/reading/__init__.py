"""Files to scans: whatever lies in a folder becomes a `Scan` or a `Rejection` that says why not.

The stages can be had one by one, to be spread over many machines: `files.find`, `instances.read_header`,
`series.assemble`, `criteria.judge`, `volumes.load`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain

from headct.reading.criteria import CRITERIA, Criteria, judge, judge_loaded
from headct.reading.files import Source, find
from headct.reading.guard import Header, guarded, read_headers
from headct.reading.instances import GridFile, Instance, read_header
from headct.reading.pseudonyms import Pseudonyms, user_key
from headct.reading.series import Volume, assemble
from headct.reading.volumes import load, time_limit_s
from headct.scan import Rejection, Scan

__all__ = ["CRITERIA", "Criteria", "finish", "read", "survey"]

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

    `criteria` None takes every readable CT, a single slice too. What a criterion says of the head in the pixels
    (`check_head`, `min_coverage`) is asked when a scan is prepared, not here. Identifiers become pseudonyms by `key`,
    the user's own if None, unless `keep_ids`. Files are decoded in a worker process, so that a malicious one can do no
    harm but to itself; `isolated` False does without it, for files that are trusted.

        for item in headct.read("/data/ct"):
            print(item.code, item.sentence) if isinstance(item, headct.Rejection) else print(item.hu.shape)
    """
    pseudonyms = Pseudonyms(None if keep_ids else key or user_key())
    volumes, rejections = survey(paths, isolated=isolated)
    yield from rejections
    for volume in volumes:
        yield from finish(volume, criteria, pseudonyms, isolated=isolated)


def survey(paths: Paths, *, isolated: bool = True) -> tuple[list[Volume], list[Rejection]]:
    """The volumes that the headers in files, folders and archives announce, and what already is none; no pixels yet."""
    headers: list[Instance | GridFile] = []
    rejections: list[Rejection] = []
    inputs = [paths] if isinstance(paths, str | os.PathLike) else paths
    places = [os.path.expanduser(path) for path in inputs]
    for entry in chain.from_iterable(_headers(found, isolated) for found in find(places)):
        if isinstance(entry, Rejection):
            rejections.append(entry)
        else:
            headers.append(entry)
    volumes, leftover = assemble(headers)
    return volumes, [*rejections, *leftover]


def _headers(found: Source | Rejection, isolated: bool) -> Iterable[Header]:
    if isinstance(found, Rejection):
        return [found]
    return read_headers([found], time_s=HEADER_S)[found.name] if isolated else read_header(found)


def finish(
    volume: Volume, criteria: Criteria | None, pseudonyms: Pseudonyms, *, isolated: bool = True
) -> Iterator[Scan | Rejection]:
    """What becomes of a volume: at most one scan, and a rejection for each file that is not in it."""
    if criteria is not None and (unfit := judge(volume, criteria)) is not None:
        yield unfit
        return
    killers: tuple[Rejection, ...] = ()
    loaded: tuple[Scan | None, list[Rejection]] | None
    if isolated:
        loaded, killers = guarded(load, volume, pseudonyms, time_s=time_limit_s)
    else:
        loaded = load(volume, pseudonyms)
    scan, faulty = loaded or (None, [])
    yield from killers
    yield from faulty
    if scan is None:
        return
    lost = {name for rejection in (*killers, *faulty) for name in rejection.files}
    unfit = judge_loaded(volume.without(*lost), scan, criteria) if criteria is not None else None
    yield scan if unfit is None else unfit
