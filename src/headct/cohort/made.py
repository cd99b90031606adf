"""A cohort from scans that are made rather than read: the same journal, shards and tables, without files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headct import __version__
from headct.cohort import publish
from headct.cohort.commit import ShardWriter
from headct.cohort.executors import Crew
from headct.cohort.journal import Journal, expect_writable, only_writer, sweep_partials
from headct.cohort.publish import MAKING, Content
from headct.cohort.rounds import Progress
from headct.cohort.work import Outcome
from headct.failure import Misuse
from headct.reading.criteria import Criteria

LONGEST = 40
"""Characters of a value that a message shows."""


@dataclass(frozen=True, slots=True)
class Made:
    """What one item of the work gave: scans or rejections, and a plain record for each scan, for whoever asked."""

    outcome: Outcome
    records: tuple[Mapping[str, Any], ...] = ()


@contextmanager
def making(out: Path, terms: Mapping[str, Any]) -> Iterator[Journal]:
    """Hold the folder `out` against others, and give the journal of what is made there on these terms.

    The journal is that of an earlier call if that was cut short, and is removed when the block ends without an error.
    Raises Misuse where `out` holds something else, or was begun on other terms; Failure where it cannot be written.
    """
    if out.is_file():
        raise Misuse(f"{out} is a file", do="choose another --out")
    expect_writable(out / MAKING)
    journal = Journal(out / MAKING / "unfinished")
    begun = journal.get("terms", 0)
    if begun is None and (out / publish.COHORT_JSON).exists():
        raise Misuse(f"there is a cohort in {out} already", do="choose another --out")
    others = sorted(path.name for path in out.iterdir() if path.name != MAKING) if out.is_dir() else []
    if begun is None and others:
        raise Misuse(f"{out} holds other things, such as {others[0]}", do="choose an empty or a new folder")
    if begun is not None and begun != terms:
        do = f"call with the same options, remove {out}, or choose another --out"
        raise Misuse(f"{out} was begun differently", why=", ".join(differences(begun, terms)), do=do)
    with only_writer(out / MAKING, out):
        sweep_partials(out)
        if begun is None:
            journal.begin()
            journal.put("terms", 0, dict(terms))
        yield journal
        journal.remove()  # at one stroke, so that a kill leaves all or nothing to go on from
        shutil.rmtree(out / MAKING)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Each value by its dotted name that is another one now, as a person would say it."""
    for name in sorted({**before, **now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{name}.")
        elif old != new:
            short = max(len(str(old)), len(str(new))) <= LONGEST
            yield f"{prefix}{name} was {old}, now {new}" if short else f"{prefix}{name} differs"


def make_cohort(
    out: Path,
    items: int,
    make: Callable[[int], Made],
    about: Mapping[str, Any],
    *,
    crew: Crew,
    progress: Progress,
    finish: Callable[[Sequence[Mapping[str, Any]]], None],
) -> Content:
    """Make the items 0 to `items` - 1 by a crew and keep them in the cohort `out`, in their order.

    `about` is what `cohort.json` says of them. `finish` gets the records of all scans and writes what belongs beside
    the tables, before these are written. What was finished before a kill is not made again, and the bytes do not
    depend on the number of workers. Raises as `making` does.
    """
    with making(out, {"version": __version__, "items": items, **about}) as journal:
        writer = ShardWriter(journal, out / "volumes", 0, frozenset())
        made = _work(journal, writer, items, make, crew, progress)
        finish([record for number in range(items) for record in made[number]])
        content = _content(writer)
        publish.write(out, content, about)
    return content


def _work(
    journal: Journal,
    writer: ShardWriter,
    items: int,
    make: Callable[[int], Made],
    crew: Crew,
    progress: Progress,
) -> dict[int, tuple[Mapping[str, Any], ...]]:
    """Make what is not made yet, and commit everything in order; gives the records of each item."""
    records: dict[int, tuple[Mapping[str, Any], ...]] = {}
    outcomes: dict[int, Outcome] = {}
    todo = []
    for number in range(items):
        kept, record = writer.kept(number, ""), journal.get("records", number)
        if kept is None or record is None:
            todo.append((number, number))
        else:
            outcomes[number], records[number] = kept, tuple(record)
    _commit(writer, outcomes)
    done = items - len(todo)
    progress("patients", done, items)
    for number, result in crew.results(make, todo):
        journal.put("records", number, [dict(record) for record in result.records])
        outcomes[number] = writer.keep(number, "", result.outcome)
        records[number] = result.records
        _commit(writer, outcomes)
        done += 1
        progress("patients", done, items)
    writer.finish()
    return records


def _commit(writer: ShardWriter, outcomes: dict[int, Outcome]) -> None:
    while writer.next_series in outcomes:
        writer.take(outcomes.pop(writer.next_series))


def _content(writer: ShardWriter) -> Content:
    """The tables: what was made stands for its own file."""
    outcome_of = {name: rejection.code for rejection in reversed(writer.rejections) for name in rejection.files}
    outcome_of |= {name: scan.row["scan_id"] for scan in writer.scans for name in scan.files}
    refused = (
        {"code": one.code, "sentence": one.sentence, "remedy": one.remedy, "files": list(one.files)}
        for one in writer.rejections
    )
    content = Content(
        scans=tuple(scan.row for scan in writer.scans),
        rejections=tuple(refused),
        files=tuple({"path": name, "bytes": 0, "outcome": outcome} for name, outcome in sorted(outcome_of.items())),
        shards=writer.shards,
    )
    return content.with_preferred(Criteria())
