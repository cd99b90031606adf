"""The one writer of shards: takes what became of each series in input order, in whatever order they finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headct.cohort.journal import Journal, write_atomically
from headct.cohort.shards import SHARD_BYTES, Packed, shard_bytes
from headct.cohort.work import Accepted, Outcome
from headct.failure import Failure
from headct.scan import Rejection


@dataclass(frozen=True, slots=True)
class Committed:
    """A scan with its place in a shard: its complete row but for `preferred`, and the files it was read from."""

    row: Mapping[str, Any]
    files: tuple[str, ...]


class ShardWriter:
    """Writes a shard as soon as the scans at hand fill one, and forgets their voxels in the journal.

    The bytes of a shard depend on the outcomes and their order only. Voxels are forgotten when their shard is on disk
    as a whole, so a killed job that takes the same outcomes again leaves a shard alone whose voxels it misses.
    """

    def __init__(self, journal: Journal, volumes: Path, first_shard: int, taken: frozenset[str]) -> None:
        self._journal, self._volumes, self._shard = journal, volumes, first_shard
        self._taken = set(taken)
        self._open: list[tuple[int, int]] = []  # (series, which of its scans)
        self._open_kind: tuple[tuple[int, ...], str] | None = None
        self._open_bytes = 0
        self.next_series = 0
        self.scans: list[Committed] = []
        self.rejections: list[Rejection] = []

    @property
    def shards(self) -> int:
        """How many shards there are, those before the first of this writer included."""
        return self._shard

    def keep(self, series: int, mark: str, outcome: Outcome) -> Outcome:
        """Store the outcome of a series in the journal, voxels first; returns it without its voxels.

        `mark` names the files of the series as they were when it was read.
        """
        for which, packed in enumerate(outcome.voxels):
            self._journal.put(_voxels(which), series, packed)
        light = replace(outcome, voxels=())
        self._journal.put("series", series, (mark, light))
        return light

    def kept(self, series: int, mark: str) -> Outcome | None:
        """What `keep` stored for the series under this mark, if it did."""
        kept = self._journal.get("series", series)
        return kept[1] if kept is not None and kept[0] == mark else None

    def take(self, outcome: Outcome) -> None:
        """Give the scans of the series `next_series` their places."""
        self.rejections += outcome.rejections
        for which, accepted in enumerate(outcome.accepted):
            scan_id = accepted.row["scan_id"]
            if scan_id in self._taken:
                sentence = f"the same scan ({scan_id}) was already read from other files"
                self.rejections.append(Rejection.because("duplicate-file", sentence, accepted.files))
            else:
                self._taken.add(scan_id)
                self._place(accepted, which)
        self.next_series += 1

    def finish(self) -> None:
        """Close the last shard."""
        if self._open:
            self._close()

    def _place(self, accepted: Accepted, which: int) -> None:
        if self._open and self._open_kind != (accepted.shape, accepted.dtype):
            self._close()
        place = {"shard": shard_name(self._shard), "index": len(self._open)}
        self.scans.append(Committed({**accepted.row, **place}, accepted.files))
        self._open.append((self.next_series, which))
        self._open_kind = (accepted.shape, accepted.dtype)
        self._open_bytes += accepted.compressed_bytes
        if self._open_bytes >= SHARD_BYTES:
            self._close()

    def _close(self) -> None:
        path = self._volumes / shard_name(self._shard)
        if all(self._journal.has(_voxels(which), series) for series, which in self._open) or not path.exists():
            write_atomically(path, shard_bytes((self._recall(*scan) for scan in self._open), len(self._open)))
        for series, which in self._open:
            self._journal.drop(_voxels(which), series)
        self._shard += 1
        self._open, self._open_bytes = [], 0

    def _recall(self, series: int, which: int) -> Packed:
        packed: Packed | None = self._journal.get(_voxels(which), series)
        if packed is None:
            place = self._volumes.parent
            raise Failure(
                f"the unfinished cohort {place} was changed",
                why="voxels are missing",
                do=f"remove {place}, start again",
            )
        return packed


def shard_name(number: int) -> str:
    """File name in `volumes/`."""
    return f"{number:06d}.b2nd"


def shard_number(name: str) -> int:
    """The inverse of `shard_name`."""
    return int(name.partition(".")[0])


def _voxels(which: int) -> str:
    return f"voxels-{which}"
