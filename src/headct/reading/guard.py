"""Work on files in a cell, where a death costs the file that caused it and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from headct.reading.files import Source
from headct.reading.instances import GridFile, Instance, read_header
from headct.reading.isolation import CellDied, announce, cell
from headct.reading.series import Volume
from headct.scan import Rejection

T = TypeVar("T")
Header = Instance | GridFile | Rejection

DEATHS = 8
"""A volume that has killed its worker so often is given up as a whole."""


def read_headers(sources: Sequence[Source], *, time_s: float) -> dict[str, tuple[Header, ...]]:
    """What each file says, by its name; one that kills the worker, or takes it longer than `time_s`, is a rejection.

    The time to get to where a file lies in an archive does not count.
    """
    headers: dict[str, tuple[Header, ...]] = {}
    waiting = [tuple(sources)]
    while waiting:
        batch = waiting.pop()
        try:
            headers |= cell().run(headers_in_cell, batch, time_s=time_s + _reach_s(batch))
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


def guarded(
    function: Callable[..., T], volume: Volume, *args: Any, time_s: Callable[[Volume], float], deaths: int = DEATHS
) -> tuple[T | None, tuple[Rejection, ...]]:
    """`function(volume, *args)` in a cell, and a rejection for each file that had to be left out because it killed it.

    The function must announce each file, as `load` does. A file at which the worker died is tried once more alone, in
    a fresh process, before it is blamed. Gives None where nothing is left of the volume.
    """
    killers: list[Rejection] = []
    left: Volume | None = volume
    while left is not None:
        try:
            return cell().run(function, left, *args, time_s=_time_s(left, time_s)), tuple(killers)
        except CellDied as death:
            killer = _alone(function, left, death, args, time_s) if len(killers) < deaths else None
            if killer is None:
                return None, (*killers, _blame(death, left.files))
            killers.append(killer)
            left = left.without(*killer.files)
    return None, tuple(killers)


def _alone(
    function: Callable[..., Any],
    volume: Volume,
    death: CellDied,
    args: tuple[Any, ...],
    time_s: Callable[[Volume], float],
) -> Rejection | None:
    """The rejection of the file at which the worker died, if it kills a fresh one by itself; else all are to blame."""
    others = [name for name in volume.files if name != death.at]
    if len(others) == len(volume.files) or (suspect := volume.without(*others)) is None:
        return None
    try:
        cell().run(function, suspect, *args, time_s=_time_s(suspect, time_s))
    except CellDied as again:
        return _blame(again, suspect.files)
    return None


def _time_s(volume: Volume, time_s: Callable[[Volume], float]) -> float:
    return time_s(volume) + _reach_s(volume.sources)


def _reach_s(sources: Iterable[Source]) -> float:
    """A fresh process goes through an archive once, up to the last of the files."""
    return max((source.reach_s for source in sources), default=0.0)


def _blame(death: CellDied, files: tuple[str, ...]) -> Rejection:
    what = {
        "time-limit": "reading it did not come to an end in time",
        "memory-limit": "reading it needed more memory than it may have",
        "crashed": "it crashed the process that read it",
    }
    return Rejection.because(death.reason, what[death.reason], files)
