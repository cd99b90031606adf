"""One round of an ingest: a fixed list of files, from their headers to the tables of the cohort.

Everything a round finishes is in its journal, so one that was cut short is run again from its beginning and finds
what it had done.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headct.cohort import publish
from headct.cohort.commit import ShardWriter
from headct.cohort.executors import Crew
from headct.cohort.inputs import Input, Paths, stamp
from headct.cohort.journal import Journal
from headct.cohort.publish import Content
from headct.cohort.work import Outcome, Terms, finish_series
from headct.reading.criteria import judge
from headct.reading.files import Source
from headct.reading.guard import Header, read_headers
from headct.reading.instances import GridFile, Instance
from headct.reading.series import Volume, assemble
from headct.scan import REASONS, Rejection

HEADERS_AT_ONCE = 64
"""Files whose headers one worker reads in one go."""

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done (files, headers, series), how many are done, and how many there are once known."""

Headers = dict[str, tuple[Header, ...]]
"""What the headers of each file say, by the name of the file."""


@dataclass(frozen=True)
class Round:
    """What a round starts from, as its journal keeps it: the files to read, and the cohort as it was."""

    version: str
    lasting: Mapping[str, Any]
    site: str
    inputs: tuple[Input, ...]
    base: Content


@dataclass(frozen=True)
class Runner:
    """Runs a round. `again` are the files of the inputs that an earlier round has read, by their path in the tables.

    `place_of` says by the name of an input where it lies, as `headct.cohort.roots` writes it.
    """

    out: Path
    journal: Journal
    terms: Terms
    key: bytes
    paths: Paths
    place_of: Mapping[str, str]
    again: Mapping[str, Input]
    crew: Crew
    progress: Progress

    def run(self, job: Round) -> None:
        """From headers to tables. The journal can be removed afterwards."""
        headers = self._headers("headers", job.inputs)
        siblings = self._siblings(job, headers)
        headers |= self._headers("headers-again", siblings)
        inputs = (*siblings, *job.inputs)
        base = job.base.without(self.paths.shown(name) for one in inputs for name in one.files)

        entries = [entry for one in inputs for entry in headers[one.name]]
        refused = _refused(inputs, headers)
        volumes, unassembled = assemble([entry for entry in entries if not isinstance(entry, Rejection)])
        _check_accounts(inputs, volumes, (*refused, *unassembled))

        taken = frozenset(row["scan_id"] for row in base.scans)
        writer = ShardWriter(self.journal, self.out / "volumes", base.shards, taken)
        self._series(writer, volumes, inputs)
        rejections = (*refused, *unassembled, *writer.rejections)
        self._publish(job, base, inputs, headers, writer, rejections)

    def _headers(self, kind: str, inputs: Sequence[Input]) -> Headers:
        if not inputs:
            return {}
        batches = [inputs[start : start + HEADERS_AT_ONCE] for start in range(0, len(inputs), HEADERS_AT_ONCE)]
        headers: Headers = {}
        todo = []
        for number, batch in enumerate(batches):
            kept = self.journal.get(kind, number)
            if kept is not None and kept[0] == _stamps(batch):
                headers |= kept[1]
            else:
                todo.append((number, tuple(one.found for one in batch if isinstance(one.found, Source))))
        self.progress("headers", len(headers), len(inputs))
        for number, read in self.crew.results(functools.partial(read_headers, time_s=self.terms.limits.files_s), todo):
            batch = batches[number]
            found = read | {one.name: (one.found,) for one in batch if isinstance(one.found, Rejection)}
            self.journal.put(kind, number, (_stamps(batch), found))
            headers |= found
            self.progress("headers", len(headers), len(inputs))
        return headers

    def _siblings(self, job: Round, headers: Headers) -> tuple[Input, ...]:
        """Files read before whose series has got new files; those series are then read as if for the first time.

        A series with files that are not in these inputs cannot be read again: its new files are turned away, those of
        images that were accepted as their copies.
        """
        accepted = {row.get("image") for row in job.base.seen if job.base.outcome_of[row["path"]] not in REASONS} - {""}
        known: dict[str, list[str]] = {}
        for row in job.base.seen:
            known.setdefault(row["series"], []).append(row["path"])
        fresh = {self.paths.shown(one.name) for one in job.inputs}
        files_of = {one.name: one.files for one in job.inputs}
        siblings: dict[str, Input] = {}
        for name, entries in headers.items():
            series = self._series_key(entries)
            before = [path for path in known.get(series, ()) if path not in fresh] if series else []
            if all(path in self.again for path in before):
                siblings |= {path: self.again[path] for path in before}
            elif self._image_key(entries) in accepted:
                sentence = "its image is in the cohort already, read from a file that is not in this input"
                headers[name] = (Rejection.because("duplicate-file", sentence, files_of[name]),)
            else:
                sentence = "its series is in the cohort already, read from files that are not in this input"
                headers[name] = (Rejection.because("split-series", sentence, files_of[name]),)
        return tuple(siblings[path] for path in job.base.outcome_of if path in siblings)

    def _series(self, writer: ShardWriter, volumes: Sequence[Volume], inputs: Sequence[Input]) -> None:
        stamp_of = {name: one.stamp for one in inputs for name in one.files}
        outcomes: dict[int, Outcome] = {}
        todo = []
        for number, volume in enumerate(volumes):
            if (rejection := judge(volume, self.terms.criteria)) is not None:
                outcomes[number] = Outcome(rejections=(rejection,))
            elif (kept := writer.kept(number, _mark(volume, stamp_of))) is not None:
                outcomes[number] = kept
            else:
                todo.append((number, volume))
        done = len(volumes) - len(todo)
        self._commit(writer, outcomes)
        self.progress("series", done, len(volumes))
        for number, outcome in self.crew.results(functools.partial(finish_series, terms=self.terms), todo):
            outcomes[number] = writer.keep(number, _mark(volumes[number], stamp_of), outcome)
            self._commit(writer, outcomes)
            done += 1
            self.progress("series", done, len(volumes))
        writer.finish()

    @staticmethod
    def _commit(writer: ShardWriter, outcomes: dict[int, Outcome]) -> None:
        while writer.next_series in outcomes:
            writer.take(outcomes.pop(writer.next_series))

    def _publish(
        self,
        job: Round,
        base: Content,
        inputs: Sequence[Input],
        headers: Headers,
        writer: ShardWriter,
        rejections: Sequence[Rejection],
    ) -> None:
        outcome_of = {name: rejection.code for rejection in reversed(rejections) for name in rejection.files}
        outcome_of |= {name: scan.row["scan_id"] for scan in reversed(writer.scans) for name in scan.files}
        shown = self.paths.shown
        files = (
            {"path": shown(name), "bytes": size_bytes, "outcome": outcome_of[name]}
            for one in inputs
            for name, size_bytes in zip(one.files, one.sizes_bytes, strict=True)
        )
        seen = (
            {
                "path": shown(one.name),
                "root": shown(one.root),
                "place": self.place_of[one.root],
                "stamp": one.stamp,
                "series": self._series_key(headers[one.name]),
                "image": self._image_key(headers[one.name]),
            }
            for one in inputs
        )
        refused = (
            {**self.paths.told(one), "code": one.code, "files": [shown(name) for name in one.files]}
            for one in rejections
        )
        content = Content(
            scans=(*base.scans, *(scan.row for scan in writer.scans)),
            rejections=(*base.rejections, *refused),
            files=(*base.files, *files),
            seen=(*base.seen, *seen),
            shards=writer.shards,
        )
        publish.write(self.out, content.with_preferred(self.terms.criteria), job.lasting)

    def _series_key(self, entries: Iterable[Header]) -> str:
        """16 hexadecimal digits shared by files that may belong together; empty for a file without images."""
        image = next((entry for entry in entries if not isinstance(entry, Rejection)), None)
        if image is None:
            return ""
        if isinstance(image, GridFile):
            together = image.digest
        else:
            together = image.series_uid or image.source.name.rpartition("/")[0]
        return self._hashed(together)

    def _image_key(self, entries: Iterable[Header]) -> str:
        """16 hexadecimal digits shared by files that hold the same image; empty for a file without images."""
        images = [entry for entry in entries if not isinstance(entry, Rejection)]
        return self._hashed("\n".join(map(_identity, images))) if images else ""

    def _hashed(self, text: str) -> str:
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), key=self.key[:64], digest_size=8).hexdigest()


def _identity(image: Instance | GridFile) -> str:
    if isinstance(image, GridFile):
        return image.digest
    return repr((image.patient_id, image.study_uid, image.series_uid, image.sop_uid, image.frame, image.position_mm))


def _check_accounts(inputs: Iterable[Input], volumes: Iterable[Volume], rejections: Iterable[Rejection]) -> None:
    """Finds out that a file was lost before the long part begins, not after it."""
    named = {name for volume in volumes for name in volume.files}
    named |= {name for rejection in rejections for name in rejection.files}
    found = {name for one in inputs for name in one.files}
    assert named == found, f"neither in a series nor rejected, or not found: {sorted(named ^ found)[:5]}"


def _refused(inputs: Iterable[Input], headers: Headers) -> tuple[Rejection, ...]:
    """Rejections that came before any series, each once; one of a detached header is one of its data, too."""
    together = {one.name: one.files for one in inputs}
    entries = (entry for one in inputs for entry in headers[one.name])
    distinct = dict.fromkeys(entry for entry in entries if isinstance(entry, Rejection))
    return tuple(
        replace(one, files=tuple(dict.fromkeys(part for name in one.files for part in together.get(name, (name,)))))
        for one in distinct
    )


def _stamps(batch: Iterable[Input]) -> tuple[str, ...]:
    return tuple(one.stamp for one in batch)


def _mark(volume: Volume, stamp_of: Mapping[str, str]) -> str:
    return stamp(*(stamp_of[name] for name in volume.files))
