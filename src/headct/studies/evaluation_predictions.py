"""What detectors, and the baselines beside them, say of the scans of cohorts: tables that are kept and found again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import expit

from headct import __version__
from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.cohort.identities import is_virtual
from headct.cohort.journal import Journal, only_writer, refused
from headct.detection.detector import SCORES, Known
from headct.detection.linear import Linear
from headct.detection.method import Progress, Scans, Task, quiet
from headct.detection.scans import Held, OfCohorts, scans_of
from headct.embedding.embeddings import model_of, partial_of
from headct.embedding.inputs import TRAITS
from headct.embedding.machine import Machine
from headct.embedding.vectors import about
from headct.studies.baselines import REGIONS, histograms, random_encoder, seen_by
from headct.studies.evaluation_scans import Entry, Labelled

SCHEMA = pa.schema([*SCORES, ("split", pa.string())])
HISTOGRAM, RANDOM = "histogram probe", "random encoder"
KEPT_SCANS = 64
"""That are predicted at once and then kept: a network that was trained takes seconds for each."""


class Vectors:
    """The labelled scans as each encoder sees them; every encoder looks once."""

    def __init__(
        self,
        cohorts: Sequence[Cohort],
        scan_ids: Sequence[str],
        cache: Path,
        *,
        batch_size: int = 8,
        workers: int = 1,
        progress: Callable[[str], Progress] = lambda what: quiet,
    ) -> None:
        self.cohorts, self.scan_ids, self.cache = cohorts, list(scan_ids), cache
        self._batch_size, self._workers, self._progress = batch_size, workers, progress
        self._seen: dict[str, OfCohorts] = {}

    def by(self, encoder: PretrainedEncoder, machine: Machine) -> OfCohorts:
        """The scans with their vectors by this encoder, kept in the cache as `headct adapt` keeps them."""
        key = f"{encoder.decisive_sha256} {machine}"
        if key not in self._seen:
            self._seen[key] = scans_of(
                self.cohorts, self.scan_ids, encoder, machine, self.cache,
                batch_size=self._batch_size, workers=self._workers, progress=self._progress("embedding"),
            )  # fmt: skip
        return self._seen[key]


def predicted(entry: Entry, labelled: Labelled, vectors: Vectors, machine: Machine, out: Path) -> pd.DataFrame:
    """What a detector says of all labelled scans, by `SCHEMA`; kept in `out`, and taken from there a second time.

    What a killed call has looked at is not looked at again.

    The same numbers as `headct predict` gives, up to rounding: arrays meet the encoder in other batches.
    """
    detector = entry.detector.on(machine)
    terms = {
        "detector": detector.sha256,
        **about(detector.encoder, machine),
        "scans": _sha256_of(vectors.cohorts, labelled.scan_ids),
        "splits": hashlib.sha256(" ".join(labelled.parts).encode()).hexdigest(),
        "columns": " ".join(SCHEMA.names),
        "headct": __version__,
    }
    if out.is_file() and model_of(out) == terms:
        return pq.read_table(out).to_pandas()
    scans, known = vectors.by(detector.encoder, machine), _known(vectors.cohorts, labelled.scan_ids)
    home, told = out.with_name(f".{out.name}.predicting"), []
    with only_writer(home, out):
        journal = Journal(home / "journal")
        if journal.get("terms", 0) != terms:  # what was kept on others is as quickly made again
            journal.begin()
            journal.put("terms", 0, terms)
        for number, start in enumerate(range(0, len(scans), KEPT_SCANS)):
            part = journal.get("part", number)
            if part is None:
                rows = slice(start, start + KEPT_SCANS)
                few = OfCohorts(scans.held_vectors[rows], scans.places[rows])
                part = detector.rows(few, known[rows])
                journal.put("part", number, part)
            told += part
        table = [row | {"split": str(part)} for rows, part in zip(told, labelled.parts, strict=True) for row in rows]
        _write(out, table, terms)
        journal.remove()
        shutil.rmtree(home, ignore_errors=True)
    return pd.DataFrame(table, columns=SCHEMA.names)


def _sha256_of(cohorts: Sequence[Cohort], scan_ids: Sequence[str]) -> str:
    """Of these scans and of what the cohorts hold of them: one made anew has other arrays under the same names."""
    scans = pd.concat([cohort.scans for cohort in cohorts], ignore_index=True).drop_duplicates("scan_id")
    held = scans.set_index("scan_id")["crc32"].loc[list(scan_ids)]
    traits = json.dumps(_traits(cohorts, scan_ids), sort_keys=True, default=str)
    return hashlib.sha256((held.to_csv() + traits).encode()).hexdigest()


def _known(cohorts: Sequence[Cohort], scan_ids: Sequence[str]) -> list[Known]:
    virtual = {scan_id: is_virtual(cohort) for cohort in reversed(cohorts) for scan_id in cohort}
    traits = _traits(cohorts, scan_ids)
    return [Known(scan_id, of_scan, virtual[scan_id]) for scan_id, of_scan in zip(scan_ids, traits, strict=True)]


def _traits(cohorts: Sequence[Cohort], scan_ids: Sequence[str]) -> list[dict[str, object]]:
    scans = pd.concat([cohort.scans for cohort in cohorts], ignore_index=True).drop_duplicates("scan_id")
    known = scans.set_index("scan_id")[[name for name in TRAITS if name in scans]].loc[list(scan_ids)]
    return [{str(name): value for name, value in row.items()} for row in known.to_dict("records")]


def _write(out: Path, rows: list[dict[str, object]], terms: dict[str, str]) -> None:
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({"headct": json.dumps(terms)}))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, partial_of(out))
        os.replace(partial_of(out), out)
    except OSError as error:
        raise refused(out, error) from error


@dataclass(frozen=True)
class Taught:
    """What a detector learned from, as far as it is in the cohorts, and what is tested, as its encoder sees them.

    `task` has those scans alone, of which the rows `tested` are tested; `table` are their rows of `Labelled.table`.
    `disadvantage` says that the detector itself has learned from more, where it has.
    """

    task: Task
    tested: np.ndarray
    table: pd.DataFrame
    disadvantage: str = ""

    @cached_property
    def beside(self) -> Mapping[str, Scans]:
        """The same scans as histograms of regions, and as the same encoder with random weights, see them."""
        task, found = self.task, dict[str, Scans]()
        encoder = task.encoder
        if encoder.recipe.in_hu:
            found[HISTOGRAM] = Held(histograms(task.scans, REGIONS))
        if encoder.runtime is None:
            unlearned = random_encoder(encoder, task.scans, task.train, task.machine, task.seed)
            windows = list(encoder.card.windows.values())
            found[RANDOM] = Held(seen_by(unlearned, windows, task.scans, task.machine))
        return found

    def probed(self) -> dict[str, pd.DataFrame]:
        """What linear probes on these, not calibrated, say of the tested scans: for measures of order alone."""
        return {name: self._probed(scans) for name, scans in self.beside.items()}

    def _probed(self, scans: Scans) -> pd.DataFrame:
        task, tested = self.task, self.tested
        told = expit(Linear().fit(replace(task, scans=scans)).scores(scans, tested))
        return pd.DataFrame(
            {
                "scan_id": np.repeat(self.table["scan_id"].to_numpy()[tested], len(task.findings)),
                "finding": np.tile(np.array(task.findings, dtype=object), len(tested)),
                "probability": told.reshape(-1),
                "split": "test",
            }
        )


def taught(
    entry: Entry, labelled: Labelled, vectors: Vectors, machine: Machine, seed: int
) -> tuple[Taught | None, str]:
    """What others must learn from to stand beside a detector; and why, where there is nothing."""
    train = np.flatnonzero(_own(entry, labelled, "train"))
    findings = [name for name in entry.detector.findings if name in labelled.findings]
    truth = labelled.table[findings].to_numpy(dtype=float)
    if entry.shots is not None:
        truth = _drawn(entry.shots, labelled, findings, truth)
    learned = [column for column in range(len(findings)) if {0.0, 1.0} <= set(truth[train, column])]
    if not learned:
        return None, (
            f"the scans that {entry.name} learned from, with labels of both kinds, are not in the cohorts that were "
            "named"
        )
    encoder = entry.detector.encoder
    rows = np.concatenate([train, np.flatnonzero(labelled.parts == "test")])
    everyone = vectors.by(encoder, machine)
    table = labelled.table.iloc[rows].reset_index(drop=True)
    kept = labelled.table[findings].to_numpy(dtype=float)[rows]
    kept[: len(train)] = truth[train]
    task = Task(
        encoder=encoder,
        scans=OfCohorts(everyone.vectors(rows), [everyone.places[row] for row in rows]),
        findings=tuple(findings[column] for column in learned),
        labels=kept[:, learned],
        patients=table["patient_id"].to_numpy(dtype=object),
        train=np.arange(len(train)),
        validation=np.zeros(0, dtype=int),  # the penalty is chosen among the training patients
        seed=seed,
        machine=machine,
    )
    return Taught(task, np.arange(len(train), len(rows)), table, _disadvantage(entry, len(train))), ""


def _disadvantage(entry: Entry, learned: int) -> str:
    """That baselines learned from fewer scans than the detector, in a sentence; empty where they did not."""
    if entry.shots is not None:
        own = entry.shots["scan_id"].nunique()
    else:
        own = 0 if entry.splits is None else int((entry.splits["split"] == "train").sum())
    if learned >= own:
        return ""
    return (
        f"baselines learned from {learned:,} of the {own:,} scans that {entry.name} learned from, as the others are "
        "not in the cohorts that were named, or left out by --preferred: they are at a disadvantage"
    )


def _own(entry: Entry, labelled: Labelled, part: str) -> np.ndarray:
    """Which labelled scans (n,) this detector has in a part of its own."""
    if entry.splits is None:
        return np.zeros(len(labelled.table), dtype=bool)
    own = entry.splits["scan_id"][entry.splits["split"] == part]
    found: np.ndarray = labelled.table["scan_id"].isin(own).to_numpy()
    return found


def _drawn(shots: pd.DataFrame, labelled: Labelled, findings: Sequence[str], truth: np.ndarray) -> np.ndarray:
    """The labels (n, f) that were learned from, of those few that were drawn."""
    kept = np.full(truth.shape, np.nan)
    for column, finding in enumerate(findings):
        drawn = labelled.table["scan_id"].isin(shots["scan_id"][shots["finding"] == finding]).to_numpy()
        kept[drawn, column] = truth[drawn, column]
    return kept
