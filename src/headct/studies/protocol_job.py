"""From a public set as downloaded to a table: prepare, embed, learn, test, compare; what was done is not done again.

out/
  table.csv          a row for each finding, number of labels and learner, with its differences from baselines
  metrics.json       every number with its interval
  report.html        the same for a reader
  protocol.json      settings, hashes of what went in, versions
  shots.csv          who was drawn (fractions.csv where few labels are a share of the patients)
  set/               cohort, labels and splits (`headct datasets prepare`), unless kept elsewhere
  vectors/, parts/   what need not be computed again: vectors, predictions of each learner, from few labels of each draw
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from headct import datasets
from headct.checkpoints import PretrainedEncoder
from headct.checkpoints.strict import sha256_of
from headct.cohort import Cohort
from headct.cohort.journal import expect_writable, write_atomically
from headct.datasets.splits import PARTS, RULE
from headct.detection.calibration import calibrate
from headct.detection.method import Fitted, Method, Scans, Task
from headct.detection.methods import METHODS, entry, method
from headct.detection.scans import Held, OfCohorts, scans_of
from headct.detection.shots import Fractions, Shots, draw_fractions, draw_shots
from headct.detection.splits import check_patients
from headct.detection.training.finetune import scratch
from headct.embedding.machine import Machine
from headct.evaluation import EvaluationSettings, Patients, evaluate
from headct.evaluation.cells import read_table
from headct.evaluation.leakage import duplicates, pairs_named, too_few
from headct.evaluation.repeated import Areas
from headct.evaluation.tables import labels_of, read_labels
from headct.failure import Failure, Misuse
from headct.reporting.page import software_versions
from headct.reporting.words import count
from headct.studies.baselines import random_encoder
from headct.studies.few_labels import Contestant, Study, StudySettings, kept_predictions, results_of
from headct.studies.protocol import TOLD, Protocol
from headct.studies.protocol_features import histogram_vectors, kept_vectors
from headct.studies.protocol_results import FEATURES, HISTOGRAM, MODEL, RANDOM, Learner, Results, learners

Progress = Callable[[str, int, int | None], None]
"""Called with a part of the work, how many items of it are done and, once known, how many there are."""

FORMAT = 2
"""Of what is kept in the folder; what an older headct kept there is not gone on from."""
RECORD = "protocol.json"


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a protocol is walked: what does not change what it is."""

    methods: tuple[str, ...] = ()  # some of the protocol's; all if empty
    prepared: Path | None = None  # where cohort, labels and splits are kept; out/set if None
    batch_size: int = 8
    workers: int | None = None  # processes that read the download
    key: Path | None = None
    draws: int = 1000  # of the bootstrap


@dataclass(frozen=True, kw_only=True)
class Walked:
    """What came out: the table, what to tell, and what the page is made of."""

    protocol: Protocol
    results: Results
    report: datasets.Report  # of the set
    cohort: Cohort
    splits: Mapping[str, int]  # labelled scans
    record: Mapping[str, Any]
    notes: tuple[str, ...]


def run_protocol(
    protocol: Protocol,
    data: Path,
    out: Path,
    encoder: PretrainedEncoder,
    machine: Machine,
    way: Way | None = None,
    *,
    progress: Progress = lambda what, done, total: None,
) -> Walked:
    """Walk a protocol into the folder `out`, but for the page (`headct.studies.protocol_page`).

    Called again it goes on where it stopped. Raises Misuse where `out` holds another protocol or model, the prepared
    set has another recipe than the model, or a method is none of the protocol's; Failure where the download is
    incomplete, or too few patients have any of the findings.
    """
    way = way or Way()
    methods, notes = _methods(protocol, way.methods, encoder)
    expect_writable(out / RECORD)
    record = _identity(protocol, encoder, machine, out)
    place = way.prepared or out / "set"
    report = datasets.prepare(
        datasets.named(protocol.dataset),
        data,
        place,
        recipe=encoder.recipe,
        workers=way.workers,
        key=way.key,
        progress=progress,
    )
    cohort = Cohort(place / "cohort")
    cohort.expect(encoder.recipe)
    material, left_out = _material(protocol, cohort, place)
    if not (out / RECORD).is_file():
        write_atomically(out / RECORD, _json(record))  # from now on the folder is this run's
    walk = _Walk(protocol, encoder, machine, way, out, cohort, material, progress)
    results = walk.results(methods)
    told = [*report_notes(report), *notes, *left_out, *walk.study.drawn.left_out, *walk.duplicates()]
    record = {
        **record,
        "methods": list(methods),
        "hashes": {"splits.csv": report.splits_sha256, **material.sha256, **walk.write_draws()},
        "splits": {"rule": RULE, **material.counts()},
        "facts": walk.facts(learners(methods)),
        "notes": told,
    }
    walked = Walked(
        protocol=protocol,
        results=results,
        report=report,
        cohort=cohort,
        splits=material.counts(),
        record=record,
        notes=tuple(told),
    )
    _write(walked, out)
    return walked


def _write(walked: Walked, out: Path) -> None:
    """The table, every number, and last the record of how they came about."""
    results = walked.results
    table = pd.DataFrame(results.rows()).astype({"draws": "Int64"})
    tree = {"format": FORMAT, "protocol": walked.protocol.name, **results.tree(), "notes": list(walked.notes)}
    write_atomically(out / "table.csv", table.to_csv(index=False, lineterminator="\n").encode())
    write_atomically(out / "metrics.json", (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode())
    write_atomically(out / RECORD, _json(walked.record))


def report_notes(report: datasets.Report) -> list[str]:
    """What is to be known of the download."""
    if not report.differing:
        return []
    return [
        f"counts that are not those of the whole set: {', '.join(report.differing)}; remarks.csv says what is missing"
    ]


def _methods(protocol: Protocol, asked: Sequence[str], encoder: PretrainedEncoder) -> tuple[tuple[str, ...], list[str]]:
    """The methods that are used, and a sentence on each that the model cannot be learned by."""
    for name in asked:
        entry(name)
        if name not in protocol.methods:
            raise Misuse(
                f"{name} is no method of the protocol {protocol.name}",
                why="a protocol is fixed, so that its numbers can be compared",
                do=f"take of {', '.join(protocol.methods)}, or use `headct adapt` for a way of your own",
            )
    why = ""
    if encoder.runtime is not None:
        why = f"a graph ({encoder.runtime.kind}) cannot be trained"
    elif encoder.recipe.shape is None:
        why = f"the arrays of recipe {encoder.recipe.name} differ in shape"
    trained = [name for name in asked or protocol.methods if not METHODS[name].frozen] if why else []
    if asked and trained:
        raise Misuse(f"{trained[0]} cannot be used with this model", why=why, do="leave it out of --methods")
    used = tuple(name for name in protocol.methods if name in (asked or protocol.methods) and name not in trained)
    return used, [f"{name} is left out: {why}" for name in trained]


def _identity(protocol: Protocol, encoder: PretrainedEncoder, machine: Machine, out: Path) -> dict[str, Any]:
    """What identifies the run. Raises Misuse where `out` holds another one."""
    asked: dict[str, Any] = {
        "format": FORMAT,
        "protocol": asdict(protocol),
        "model": {
            "source": encoder.source,
            "architecture": encoder.architecture,
            "sha256": encoder.sha256,
            "decisive_sha256": encoder.decisive_sha256,
            "licence": encoder.card.licence,
        },
        "recipe": {"name": encoder.recipe.name, "id": encoder.recipe.id},
        "arithmetic": f"{machine.device.type}, {machine.precision}",
    }
    path = out / RECORD
    if path.is_file():
        _expect_same(path, json.loads(_json(asked)))
    return {**asked, "versions": _versions()}


def _expect_same(path: Path, asked: Mapping[str, Any]) -> None:
    """Raises Misuse where the record is another run's; what a protocol says of itself and of others may differ."""
    try:
        before = json.loads(path.read_bytes())
        told = {
            "protocol": (before["protocol"]["name"], asked["protocol"]["name"]),
            **{
                f"setting {name!r} of the protocol": (before["protocol"].get(name), now)
                for name, now in asked["protocol"].items()
                if name not in TOLD
            },
            "version of headct": (f"format {before['format']}", f"format {asked['format']}"),
            "model": (before["model"]["decisive_sha256"][:16], asked["model"]["decisive_sha256"][:16]),
            "arithmetic": (before["arithmetic"], asked["arithmetic"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise Misuse(f"{path} is not the record of a protocol", do="choose another --out") from error
    for what, (there, now) in told.items():
        if there != now:
            raise Misuse(
                f"{path.parent} holds results of another {what} ({there}; now {now})",
                why="results of one folder are those of one protocol and one model",
                do="choose another --out, or remove this one",
            )


def _versions() -> dict[str, str]:
    return software_versions("headct", "torch", "numpy", "scikit-learn")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


# What is learned from


@dataclass(frozen=True, kw_only=True)
class _Material:
    """The labelled scans of a set: n scans, f findings that can be learned and tested."""

    findings: tuple[str, ...]
    scan_ids: list[str]
    patients: np.ndarray  # (n,)
    labels: np.ndarray  # (n, f)
    parts: np.ndarray  # (n,) of train, val and test
    judged: pd.DataFrame  # labels as `evaluate` wants them, of validation and test scans
    sha256: Mapping[str, str]  # of the tables

    def rows(self, part: str) -> np.ndarray:
        return np.flatnonzero(self.parts == part)

    def counts(self) -> dict[str, int]:
        """Scans of each part."""
        return {part: int((self.parts == part).sum()) for part in PARTS}


def _material(protocol: Protocol, cohort: Cohort, place: Path) -> tuple[_Material, list[str]]:
    """The tables of a prepared set; sentences on the findings of which too few patients are there.

    Raises Failure where that leaves none.
    """
    table = read_labels(place / protocol.labels)
    splits = read_table(place / "splits.csv").set_index("scan_id")["split"]
    parts = splits.reindex(table["scan_id"]).to_numpy(dtype=object)
    columns = {name: labels_of(table, name) for name in protocol.findings}
    patients = table["patient_id"].to_numpy(dtype=str)
    left_out = _too_few(columns, parts, patients)
    if len(left_out) == len(columns):
        raise Failure(
            f"nothing of {protocol.name} can be learned and tested",
            why="; ".join(f"{name}: {why}" for name, why in left_out.items()),
            do=f"is the download complete? {place / 'remarks.csv'} says what is missing",
        )
    check_patients(parts, patients.tolist(), str(place / "splits.csv"))
    findings = tuple(name for name in protocol.findings if name not in left_out)
    hashes = {
        protocol.labels: sha256_of(place / protocol.labels),
        "cohort/scans.parquet": cohort.about["tables"]["scans"]["sha256"],
    }
    material = _Material(
        findings=findings,
        scan_ids=table["scan_id"].tolist(),
        patients=patients,
        labels=np.stack([columns[name] for name in findings], axis=1),
        parts=parts,
        judged=table[np.isin(parts.astype(str), ("val", "test"))].reset_index(drop=True),
        sha256=hashes,
    )
    return material, [f"{name} is left out: {why}" for name, why in left_out.items()]


def _too_few(columns: Mapping[str, np.ndarray], parts: np.ndarray, patients: np.ndarray) -> dict[str, str]:
    """Findings that cannot be learned or tested, and why."""
    train, test = parts == "train", parts == "test"
    reasons = {}
    for name, values in columns.items():
        with_it, without = (int((values[train] == value).sum()) for value in (1, 0))
        if not with_it or not without:
            reasons[name] = f"{with_it} training scans have it, {without} do not"
            continue
        if reason := too_few(values[test], Patients.of(patients[test])):
            reasons[name] = f"test scans: {reason}"
    return reasons


def _drawn(protocol: Protocol, labels: pd.DataFrame, patients: Sequence[str]) -> Shots | Fractions:
    """Who is learned from where labels are few, of those who may be."""
    draws = max((number for _, number in protocol.few), default=0)
    if protocol.fractions:
        return draw_fractions(labels, patients, seed=protocol.seed, shares=protocol.fractions, draws=draws)
    return draw_shots(labels, patients, seed=protocol.seed, ks=protocol.shots, draws=draws)


# How it is learned


class _Walk:
    """The parts of the work, each done once and kept in `out`."""

    def __init__(
        self,
        protocol: Protocol,
        encoder: PretrainedEncoder,
        machine: Machine,
        way: Way,
        out: Path,
        cohort: Cohort,
        material: _Material,
        progress: Progress,
    ) -> None:
        self.protocol, self.encoder, self.machine, self.way = protocol, encoder, machine, way
        self.out, self.cohort, self.material, self.progress = out, cohort, material, progress
        went_in = {
            "versions": _versions(),  # those of the record are then those that made the parts
            **material.sha256,
            "parts": material.parts.tolist(),
            "findings": material.findings,
        }
        self.parts = out / "parts" / hashlib.sha256(json.dumps(went_in).encode()).hexdigest()[:16]

    @cached_property
    def _of_model(self) -> OfCohorts:
        return self._embedded(self.encoder, MODEL)

    def _embedded(self, encoder: PretrainedEncoder, what: str) -> OfCohorts:
        return scans_of(
            [self.cohort],
            self.material.scan_ids,
            encoder,
            self.machine,
            self.out / "vectors",
            batch_size=self.way.batch_size,
            progress=lambda done, total: self.progress(f"embedding, {what}", done, total),
        )

    @cached_property
    def _of(self) -> dict[str, Callable[[], Scans]]:
        return {MODEL: lambda: self._of_model, RANDOM: lambda: self._of_random, HISTOGRAM: lambda: self._of_histogram}

    @cached_property
    def _of_random(self) -> Held:
        train, seed = self.material.rows("train"), self.protocol.seed

        def seen() -> np.ndarray:
            random = random_encoder(self.encoder, self._of_model, train, self.machine, seed)
            return self._embedded(random, RANDOM).held_vectors

        of = (self.encoder.decisive_sha256, seed, dict(self.material.sha256), self.material.scan_ids, train.tolist())
        return Held(kept_vectors(self.out / "vectors", "random", of, seen))

    @cached_property
    def _of_histogram(self) -> Held:
        return Held(
            histogram_vectors(
                self.cohort,
                self.material.scan_ids,
                self._of_model,
                self.out / "vectors",
                lambda done, total: self.progress("histograms", done, total),
            )
        )

    def results(self, methods: Sequence[str]) -> Results:
        """What each learner reaches on test scans: from all labels, then from few."""
        settings = EvaluationSettings(draws=self.way.draws, seed=self.protocol.seed)
        evaluations = {
            one: evaluate(self.predictions(one), self.material.judged, settings) for one in learners(methods)
        }
        few: dict[tuple[Learner, str], list[Areas]] = {}
        for name, draws in self.protocol.few:
            for one in learners([name]) if name in methods else ():
                few |= {(one, size): areas for size, areas in self.few_labels(one, draws).items()}
        return Results(evaluations=evaluations, few=few)

    def contestant(self, one: Learner) -> Contestant:
        """A network from scratch sees the arrays, whose vectors are the model's."""
        assert one.features in FEATURES
        features = one.features if METHODS[one.method].frozen else MODEL
        return Contestant(one.slug, self._of[features](), self.encoder, self.method(one))

    def method(self, one: Learner) -> Method:
        """Training of all weights begins at random ones where the features are theirs."""
        return scratch() if one.features == RANDOM and one.method == "full" else method(one.method)

    def predictions(self, one: Learner) -> pd.DataFrame:
        """Calibrated probabilities of validation and test scans: scan_id, finding, probability, split."""
        path = self.parts / f"{one.slug}.parquet"
        if path.is_file():
            return pd.read_parquet(path)
        contestant = self.contestant(one)
        task = self.study.task(contestant, self.machine)
        fitted = contestant.method.fit(task, lambda done, total: self.progress(f"learning, {one.name}", done, total))
        rows = np.concatenate([self.material.rows("val"), self.material.rows("test")])
        table = self._calibrated(task, fitted, rows)
        write_atomically(self.parts / f"{one.slug}.json", json.dumps(dict(fitted.facts), default=_plain).encode())
        write_atomically(path, table.to_parquet(index=False))
        return table

    def _calibrated(self, task: Task, fitted: Fitted, rows: np.ndarray) -> pd.DataFrame:
        logits, validation = fitted.scores(task.scans, rows), np.isin(rows, task.validation)
        split = np.where(validation, "validation", "test")
        tables = []
        for column, finding in enumerate(task.findings):
            known = validation & np.isfinite(task.labels[rows, column])
            calibration = calibrate(
                logits[known, column], task.labels[rows[known], column], task.patients[rows[known]].tolist(), task.seed
            )
            tables.append(
                pd.DataFrame(
                    {
                        "scan_id": [self.material.scan_ids[row] for row in rows],
                        "finding": finding,
                        "probability": calibration(logits[:, column])[0],
                        "split": split,
                    }
                )
            )
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def study(self) -> Study:
        """The set as the only site, learned from all labels or from those of few of its training patients."""
        material, protocol = self.material, self.protocol
        index = pd.Index(material.scan_ids, name="scan_id")
        labels = pd.DataFrame(material.labels, index=index, columns=list(material.findings))
        train = material.parts == "train"
        return Study(
            StudySettings(findings=material.findings, seed=protocol.seed),
            material.scan_ids,
            labels,
            material.patients,
            parts=np.where(material.parts == "val", "validation", material.parts),
            sites=np.full(len(labels), protocol.dataset, dtype=object),
            drawn=_drawn(protocol, labels[train], material.patients[train].tolist()),
        )

    def few_labels(self, one: Learner, draws: int) -> dict[str, list[Areas]]:
        """The areas on test scans of each draw, by how many labels were learned from, in words."""
        said = kept_predictions(
            self.parts / "few",
            self.study,
            replace(self.contestant(one), draws=draws),
            self.machine,
            lambda done, total: self.progress(f"few labels, {one.name}", done, total),
        )
        areas = results_of(self.study, {one.slug: said}).areas[one.slug]
        return {self._in_words(size): list(of_draws.values()) for (_, size), of_draws in areas.items()}

    def _in_words(self, size: float) -> str:
        return f"{100 * size:g} %" if self.protocol.fractions else f"K = {size:g}"

    def duplicates(self) -> Iterator[str]:
        """A sentence on scans that the set gives to several patients: it is as it was published, so it goes on."""
        material = self.material
        vectors = self._of_model.vectors(np.arange(len(material.scan_ids)))
        pairs = duplicates(vectors, material.scan_ids, material.patients.tolist())
        if pairs:
            part_of = dict(zip(material.scan_ids, material.parts, strict=True))
            torn = [pair for pair in pairs if part_of[pair.first] != part_of[pair.second]]
            yield (
                f"{count(len(pairs), 'pair')} of scans of different patients have the same vector, {len(torn):,} "
                f"of them in two parts of the split: {pairs_named(torn or pairs)}"
            )

    def write_draws(self) -> dict[str, str]:
        """The draws as a file; its hash."""
        path = self.out / ("fractions.csv" if self.protocol.fractions else "shots.csv")
        self.study.drawn.write(path)
        return {path.name: sha256_of(path)}

    def facts(self, every: Sequence[Learner]) -> dict[str, Any]:
        """What each learner tells of its training."""
        return {one.name: json.loads((self.parts / f"{one.slug}.json").read_bytes()) for one in every}


def _plain(value: Any) -> Any:
    """Numbers of numpy and PyTorch as Python's."""
    if isinstance(value, np.generic | torch.Tensor):
        return value.item()
    raise TypeError(f"facts are plain values, not {type(value).__name__}")
