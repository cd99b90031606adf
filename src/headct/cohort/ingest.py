"""Files to a cohort: find, read headers, group into series, make each ready, write in input order.

The work on headers and on series is a map over independent items (`headct.cohort.work`), handed to local processes or
a cluster (`headct.cohort.executors`). One writer keeps every finished item in a journal inside the cohort
(`.ingest/unfinished`) and commits them in input order, so that the bytes of a cohort do not depend on the number of
workers and a killed job goes on where it stopped. Shards are never written again: more files become more shards, and
the tables are replaced.

Three things may happen to a cohort that is there already:

- files that were not seen before are added, those of another input with the same name too; where they belong to a
  series that was read, the whole series is read again and its row replaced (its former voxels stay behind in their
  shard, unused);
- a file that was rejected and has changed since is read again, as the remedy of its rejection may have asked for;
- a file of an accepted scan that has changed or gone is reported, and the cohort keeps what it read.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from headct import __version__
from headct.cohort import executors, publish
from headct.cohort.commit import shard_number
from headct.cohort.identities import fingerprint
from headct.cohort.inputs import Input, Paths, take_stock
from headct.cohort.journal import Journal, expect_writable, only_writer, sweep_partials
from headct.cohort.publish import Content
from headct.cohort.roots import Roots
from headct.cohort.rounds import Progress, Round, Runner
from headct.cohort.summary import Summary
from headct.cohort.work import Limits, Terms
from headct.failure import Misuse
from headct.preparing.recipe import Recipe, named
from headct.reading.criteria import Criteria
from headct.reading.files import Source
from headct.reading.pseudonyms import Pseudonyms, user_key
from headct.scan import REASONS


def ingest(
    inputs: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    recipe: str | Recipe = "head",
    criteria: Criteria | None = None,
    *,
    workers: int | None = None,
    cluster: str | None = None,
    site: str = "",
    keep_ids: bool = False,
    key: str | PathLike[str] | None = None,
    hash_paths: bool = False,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Summary:
    """Read files, folders and archives into the cohort `out`; go on with it, or add to it, where it is there.

    `criteria` None: the default ones. `workers` None: one for each core; with `cluster`, the address of a Dask
    scheduler, its workers do the work. `site` is written for the scans that are new. `key`: a file with the secret of
    the pseudonyms, the user's own if None.
    Raises Misuse where the call cannot work or contradicts what is in `out`, Failure where the system refuses.
    """
    started_s = time.monotonic()
    places, folder = [Path(place) for place in inputs], Path(out)
    check_places(places, folder)
    expect_writable(folder / publish.COHORT_JSON)
    secret = user_key(Path(key) if key is not None else None)
    terms = Terms(
        named(recipe), criteria or Criteria(), Pseudonyms(None if keep_ids else secret), site, limits or Limits()
    )
    lasting = _lasting(terms, secret, keep_ids=keep_ids, hash_paths=hash_paths)
    progress = progress or (lambda what, done, total: None)
    home = _Home(folder, lasting, site)
    with only_writer(folder / ".ingest"):
        home.sweep()
        progress("files", 0, None)
        roots = Roots(home.base().seen, Paths(secret if hash_paths else None).shown, secret)
        names = roots.names(places)
        stock = take_stock(places, names)
        if (settled := roots.settled(places, names, stock)) != names:
            names, stock = settled, take_stock(places, settled)
        progress("files", len(stock), len(stock))
        paths = Paths(secret if hash_paths else None, (one.name for one in stock), places)
        place_of = {name: roots.place(place) for place, name in zip(places, names, strict=True)}
        again = {paths.shown(one.name): one for one in stock}

        def run(job: Round) -> None:
            with _crew(workers, cluster, stock) as crew:
                Runner(folder, home.journal, terms, secret, paths, place_of, again, crew, progress).run(job)
            home.journal.remove()

        job = home.unfinished(stock)
        before = content = job.base if job else home.content()
        if job:
            run(job)
            content = home.content()
        if job := home.next_round(content, stock, paths):
            run(job)
            content = home.content()
        return _summary(folder, before, content, again, site, time.monotonic() - started_s)


def check_places(places: Sequence[Path], out: Path) -> None:
    """Raises Misuse where the cohort would lie in its own input, or over something else."""
    target = out.resolve()
    if not places:
        raise Misuse("nothing to read", do="name files, folders or archives")
    for place in places:
        if not os.path.lexists(place):
            raise Misuse(f"there is no file or folder {place}", do="check the path")
        source = place.resolve()
        if target == source or source in target.parents:
            raise Misuse(f"the cohort {out} would lie inside its input {place}", do="choose another --out")
        if target in source.parents:
            raise Misuse(f"the input {place} lies inside the cohort {out}", do="choose another input or --out")
    if out.exists() and not out.is_dir():
        raise Misuse(f"{out} is a file", do="choose another --out")
    ours = (out / ".ingest").exists() or (out / publish.COHORT_JSON).exists()
    if out.is_dir() and not ours and (others := sorted(path.name for path in out.iterdir())):
        raise Misuse(f"{out} holds other things, such as {others[0]}", do="choose an empty or a new folder")


def _lasting(terms: Terms, key: bytes, *, keep_ids: bool, hash_paths: bool) -> dict[str, Any]:
    """What all ingests into one cohort must agree on, as `cohort.json` says it."""
    recipe = terms.recipe
    return {
        "recipe": {"id": recipe.id, "name": recipe.name, "content": json.loads(recipe.to_json())},
        "criteria": terms.criteria.to_dict(),
        "pseudonyms": "none" if keep_ids else fingerprint(key),
        "hashed_paths": fingerprint(key) if hash_paths else "none",
    }


@dataclass(frozen=True)
class _Home:
    """The folder of a cohort, and what this call wants of it."""

    folder: Path
    lasting: Mapping[str, Any]
    site: str

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / ".ingest" / "unfinished")

    def sweep(self) -> None:
        """Remove what a kill in the middle of a write, or of a removal, has left behind."""
        self.journal.sweep()
        if self.journal.get("round", 0) is None:
            self.journal.remove()
        sweep_partials(self.folder)

    def content(self) -> Content:
        """What the cohort holds, nothing if it is not there yet. Raises Misuse where it was made on other terms."""
        if not (self.folder / publish.COHORT_JSON).exists():
            return Content()
        about = publish.read_about(self.folder)
        _agree(f"the cohort {self.folder}", about, self.lasting)
        return publish.read(self.folder, about)

    def base(self) -> Content:
        """What the cohort held before the round that was cut short, else what it holds."""
        job = self._cut_short()
        return job.base if job else self.content()

    def _cut_short(self) -> Round | None:
        """The round in the journal. Raises Misuse where this call asks for something else."""
        job: Round | None = self.journal.get("round", 0)
        if job is not None:
            what = f"the unfinished ingest into {self.folder}"
            _agree(what, {**job.lasting, "site": job.site}, {**self.lasting, "site": self.site})
        return job

    def unfinished(self, stock: Sequence[Input]) -> Round | None:
        """The round that was cut short; None where there is none, or its files have changed since.

        Raises Misuse where this call asks for something else.
        """
        job = self._cut_short()
        if job is None:
            return None
        now = {one.name: one.stamp for one in stock}
        same = all(now.get(one.name) == one.stamp for one in job.inputs)
        if same and job.version == __version__:
            return job
        roots, roots_now = {one.root for one in job.inputs}, {one.root for one in stock}
        if not roots <= roots_now:
            do = f"call it again with its own inputs, or remove {self.folder}"
            raise Misuse(
                f"the unfinished ingest into {self.folder} reads other inputs",
                why=f"it reads {', '.join(sorted(roots))}",
                do=do,
            )
        self._undo(job)
        return None

    def _undo(self, job: Round) -> None:
        """Bring the cohort back to what it was before an unfinished round."""
        if (self.folder / publish.COHORT_JSON).exists():  # the kill may have come between two of its tables
            publish.write(self.folder, job.base, job.lasting)
        for shard in (self.folder / "volumes").glob("*.b2nd"):
            if shard_number(shard.name) >= job.base.shards:
                shard.unlink()
        self.journal.remove()

    def next_round(self, base: Content, stock: Sequence[Input], paths: Paths) -> Round | None:
        """What there is to read; None where the cohort is complete."""
        if (self.folder / publish.COHORT_JSON).exists():
            stamps = {row["path"]: row["stamp"] for row in base.seen}
            stock = [one for one in stock if _is_due(paths.shown(one.name), one.stamp, stamps, base.outcome_of)]
            if not stock:
                return None
        job = Round(__version__, self.lasting, self.site, tuple(stock), base)
        self.journal.begin()
        self.journal.put("round", 0, job)
        return job


def _is_due(path: str, stamp: str, stamps: Mapping[str, str], outcome_of: Mapping[str, str]) -> bool:
    """True for a file that was not seen before, has changed since it was rejected, or waits for its series."""
    if path not in stamps or outcome_of[path] == "split-series":
        return True
    return outcome_of[path] in REASONS and stamps[path] != stamp


def _agree(what: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name, mine in ours.items():
        if theirs.get(name) != mine:
            theirs_of, mine_of = _where_they_differ(theirs.get(name), mine)
            why = f"it has {name} {_brief(theirs_of)}, this call has {_brief(mine_of)}"
            raise Misuse(
                f"{what} was begun differently", why=why, do="call with the same options, or choose another --out"
            )


def _where_they_differ(theirs: Any, ours: Any) -> tuple[Any, Any]:
    """Two values, or of two sets of criteria only the fields that differ."""
    if not (isinstance(theirs, Mapping) and isinstance(ours, Mapping)) or "id" in ours:  # a recipe has a name
        return theirs, ours
    fields = [field for field in {**ours, **theirs} if theirs.get(field) != ours.get(field)]
    return tuple({field: one.get(field) for field in fields} for one in (theirs, ours))  # type: ignore[return-value]


def _brief(value: Any) -> str:
    if isinstance(value, Mapping) and "id" in value:
        return f"{value['name']} ({value['id']})"
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, Mapping) else repr(value)


def _crew(workers: int | None, cluster: str | None, stock: Iterable[Input]) -> contextlib.AbstractContextManager[Any]:
    if cluster is None:
        return executors.local(workers or executors.usable_cores())
    witness = next((Path(one.found.path) for one in stock if isinstance(one.found, Source)), None)
    return executors.cluster(cluster, witness)


def _summary(
    folder: Path, before: Content, after: Content, again: Mapping[str, Input], site: str, seconds: float
) -> Summary:
    counts = publish.counts(after)
    place_before = {row["scan_id"]: (row["shard"], row["index"]) for row in before.scans}
    place_after = {row["scan_id"]: (row["shard"], row["index"]) for row in after.scans}
    moved = [scan_id for scan_id, place in place_after.items() if place_before.get(scan_id) != place]
    replaced = sum(scan_id in place_before for scan_id in moved)
    changed = tuple(
        row["path"] for row in after.seen if row["path"] in again and again[row["path"]].stamp != row["stamp"]
    )
    roots = {row["root"] for row in after.seen if row["path"] in again}
    here = {after.outcome_of.get(path) for path in again}
    return Summary(
        files_found=counts["files"],
        files_read=counts["files_read"],
        files_rejected=counts["files_rejected"],
        scans=counts["scans"],
        preferred=counts["preferred"],
        rejections=counts["rejections"],
        rejected=dict(Counter(row["code"] for row in after.rejections).most_common()),
        rejected_files=dict(Counter(o for o in after.outcome_of.values() if o in REASONS).most_common()),
        added_scans=len(moved) - replaced,
        replaced_scans=replaced,
        added_files=len(after.files) - len(before.files),
        changed=changed,
        other_site=sum(site not in ("", row["site"]) and row["scan_id"] in here for row in after.scans),
        gone=sum(row["root"] in roots and row["path"] not in again for row in after.seen),
        seconds=seconds,
        scans_per_s=len(moved) / seconds,
        cohort_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )
