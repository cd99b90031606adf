"""`headct segment train`: cohorts with masks to a segmenter.

.NAME.training/          beside the place of a segmenter NAME, until that is there
  journal/               on which terms it was begun: settings, and hashes of what is learned from
  states/                the last states, in files named by the step
NAME.splits.csv          scan_id, patient_id, split: who was learned from, and who was validated on; it stays at home
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from headct import __version__, encoders
from headct.checkpoints import PretrainedEncoder, published, registry
from headct.checkpoints.layout import check_new
from headct.cohort import Cohort
from headct.cohort.identities import is_virtual, pseudonyms_of
from headct.cohort.journal import Journal, expect_writable, only_writer, write_atomically
from headct.detection import splits
from headct.detection.method import Progress, mirrored, quiet
from headct.detection.training.loop import Course
from headct.detection.training.network import copied, inner
from headct.embedding.machine import Machine
from headct.encoders import Encoder, Grid, SegResEncoder
from headct.encoders.settling import settling
from headct.failure import Misuse
from headct.preparing.recipe import Windows
from headct.pretraining.runs import RunFolder
from headct.pretraining.step import kept_random
from headct.tasks.segmentation.classes import Classes
from headct.tasks.segmentation.masks import Masks, each
from headct.tasks.segmentation.network import Plan, ResidualSegmenter, SegmentationNetwork, decoder_for, network_of
from headct.tasks.segmentation.patches import Augmentation, Example, cut, draw
from headct.tasks.segmentation.segmenter import Segmenter, hash_of
from headct.tasks.segmentation.training import LAST_STEP, Diverged, Say, Schedule, Task, train, voxels_and_channels
from headct.tasks.segmentation.windows import Sliding, window_for

INITIALS = ("pretrained", "random")
SETTLED_ON = 8
"""Patches by which the norms of a random encoder that stays frozen learn what features look like."""
SHOTS = 22  # what a generator is for


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What is trained, on whom. Raises Misuse where a value is unknown or makes no sense."""

    decoder: str = "auto"  # of DECODERS; auto: segresnet for CT-FM's encoder, light for others
    initial: str = "pretrained"  # or random: the same encoder without what it has learned
    frozen: bool = False  # the encoder keeps its weights
    shots: int | None = None  # learn from so many patients, drawn by the seed; fewer are part of more
    validation: float = 0.2  # share of patients who choose the step
    window: Grid | None = None  # voxels of patches and of windows; by the recipe if not given
    overlap: float = 0.5  # of windows
    seed: int = 0
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.initial not in INITIALS:
            raise Misuse(f"initial must be one of {', '.join(INITIALS)}, got {self.initial!r}")
        if not 0 <= self.validation < 1:
            raise Misuse(f"validation must be a share from 0 to below 1, got {self.validation:g}")
        if self.shots is not None and self.shots < 1:
            raise Misuse(f"shots must be at least 1, got {self.shots}")


@dataclass(frozen=True)
class Fitted:
    """A segmenter, and what is told about how it was made."""

    segmenter: Segmenter
    splits: pd.DataFrame  # scan_id, patient_id, split: train, validation, or nothing where it was not used
    course: Course
    started: tuple[str, ...]  # what the network started with, and what there was to choose the step by
    notes: tuple[str, ...]  # what to mind

    @property
    def validated(self) -> bool:
        """Whether validation scans have chosen the step."""
        return self.course.chosen_by != LAST_STEP

    def save(self, folder: Path) -> Path:
        """Write the segmenter, and beside it its splits, which name patients.

        Raises Misuse where the folder exists, or splits that say something else.
        """
        place, content = splits_of(folder), _as_csv(self.splits)
        _expect_same(place, content)
        self.segmenter.save(folder)
        if not place.exists():
            write_atomically(place, content)
        return folder


def _as_csv(table: pd.DataFrame) -> bytes:
    """Splits as they are kept: without scans that were not used."""
    return table[table["split"] != ""].to_csv(index=False).encode()


def _expect_same(place: Path, content: bytes) -> None:
    """Raises Misuse where splits are there that are not, to the byte, those that would be written."""
    if place.exists() and place.read_bytes() != content:
        raise Misuse(
            f"{place} exists already and would become another table",
            why="who was learned from and validated on is written there, as scan_id,patient_id,split",
            do="move it to another name, and give it by that one where it is what --splits names",
        )


def splits_of(folder: Path) -> Path:
    """Where the splits of a segmenter are."""
    return folder.with_name(f"{folder.name}.splits.csv")


@dataclass(frozen=True)
class _Known:
    """The scans with a mask, n of them, and which of K classes each holds."""

    places: list[tuple[Masks, str]]
    patients: list[str]
    holds: np.ndarray  # (n, K) bool
    sha256: str  # of all arrays and masks, and whose they are

    @property
    def scan_ids(self) -> list[str]:
        return [scan_id for _, scan_id in self.places]

    def load(self, scan: int) -> Example:
        """One of them. Raises Misuse where its array holds no numbers, or its mask does not lie on it."""
        masks, scan_id = self.places[scan]
        return example_of(masks, scan_id)


def example_of(masks: Masks, scan_id: str) -> Example:
    """A scan with its mask. Raises Misuse where its array holds no numbers, or the mask does not lie on it."""
    array, affine = masks.cohort.array(scan_id), masks.cohort.affine(scan_id)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Misuse(
            f"the array of scan {scan_id} in {masks.cohort.path} holds values that are no numbers",
            do="prepare the cohort again, or leave the scan out",
        )
    return Example(array, masks.of(scan_id, array), np.linalg.norm(affine[:3, :3], axis=0))


def check(out: Path, split_file: Path | None = None) -> None:
    """Raises Misuse where a segmenter or its splits would replace what is there, Failure where they cannot be written.

    Splits that are there may be `split_file` itself; whether they say the same is told once the scans are known.
    """
    home, table = _home(out), splits_of(out)
    if out.exists() and home.exists():
        raise Misuse(
            f"{out} exists already, and {home}, where its training is kept, too",
            why="it was killed at its very end, or still runs, or the folder comes from elsewhere",
            do=f"remove {home}, or name another folder"
            if table.exists()
            else f"remove {out} and call the same line again, which goes on from the last state",
        )
    check_new(out)
    if split_file is None or split_file.resolve() != table.resolve():
        check_new(table)
    expect_writable(out)


def fit(
    masks: Sequence[Masks],
    encoder: PretrainedEncoder,
    machine: Machine,
    settings: TrainSettings | None = None,
    *,
    out: Path | None = None,
    split_file: Path | None = None,
    progress: Progress = quiet,
    reading: Progress = quiet,
    say: Say = lambda line: None,
) -> Fitted:
    """Learn the classes of masks, drawn on the scans of cohorts.

    With `out` the segmenter is saved there, and the same arguments go on after a kill where it stopped; what was done
    is forgotten where training diverges, for the same arguments would diverge again. Raises Misuse where a cohort has
    another recipe than the encoder, no class is drawn in any training scan, there are fewer patients than shots, a mask
    does not lie on its scan, `out` or its splits exist, or an unfinished training of it is another one; Failure where
    training diverges or `out` cannot be written.
    """
    if out is not None:
        check(out, split_file)
    settings = settings or TrainSettings()
    ready = _ready(masks, encoder, machine, settings, split_file, reading)
    learned = partial(_learned, ready, encoder, machine, settings, progress=progress, say=say)
    if out is None:
        return learned()
    _expect_same(splits_of(out), _as_csv(ready.splits))
    home = _home(out)
    with only_writer(home, out):
        check_new(out)  # another process may have made it meanwhile
        terms = _terms(encoder, settings, masks, ready.known, ready.parts, machine)
        try:
            fitted = learned(run=_run(home, terms, out))
        except Diverged:
            shutil.rmtree(home)
            raise
        fitted.save(out)
        shutil.rmtree(home)
    return fitted


@dataclass(frozen=True)
class _Ready:
    """All that is settled, and has been checked, before the first step."""

    known: _Known
    parts: np.ndarray  # (n,) of each scan: train, validation, or empty
    classes: Classes
    network: SegmentationNetwork
    plan: Plan
    task: Task
    started: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def splits(self) -> pd.DataFrame:
        return pd.DataFrame({"scan_id": self.known.scan_ids, "patient_id": self.known.patients, "split": self.parts})


def _ready(
    masks: Sequence[Masks],
    encoder: PretrainedEncoder,
    machine: Machine,
    settings: TrainSettings,
    split_file: Path | None,
    reading: Progress,
) -> _Ready:
    """The task, and the network before the first step. Raises Misuse for all that can be said without training."""
    for some in masks:
        some.cohort.expect(encoder.recipe)
    expect_drawable(encoder)
    known = _survey(masks, reading)
    classes = masks[0].classes
    parts = _parts(known, settings, split_file)
    rows = {name: np.flatnonzero(parts == name) for name in ("train", "validation")}
    notes = _expect_taught(known, rows, classes.names)
    network, plan, started = start(encoder, settings, classes.outputs)
    if not len(rows["validation"]):
        told = ("no patient is kept for validation: the last step is taken",)
        if settings.validation == 0:
            started += told  # it was asked for
        else:
            notes += told
    window = settings.window or window_for(_shape_of(known, encoder), network.divisor)
    if any(side % network.divisor for side in window):
        raise Misuse(
            f"a window of {' x '.join(map(str, window))} voxels does not fit the network",
            why=f"its sizes must be multiples of {network.divisor}",
            do=f"take for example {' x '.join(str(-(-side // network.divisor) * network.divisor) for side in window)}",
        )
    task = Task(
        load=known.load,
        holds=known.holds,
        train=rows["train"],
        validation=np.random.default_rng(settings.seed).permutation(rows["validation"]),
        windows=list(encoder.card.windows.values()),
        side=next(axis for axis, letter in enumerate(encoder.recipe.axes) if letter in "RL"),
        patch=window,
        sliding=Sliding(window=window, overlap=settings.overlap),
        machine=machine,
        seed=settings.seed,
        augmentation=_sided(settings.augmentation, classes.names),
    )
    return _Ready(known, parts, classes, network, plan, task, started, notes)


def _learned(
    ready: _Ready,
    encoder: PretrainedEncoder,
    machine: Machine,
    settings: TrainSettings,
    *,
    run: RunFolder | None = None,
    progress: Progress,
    say: Say,
) -> Fitted:
    """Train, and put the segmenter together."""
    if settings.initial == "random" and settings.frozen:
        _settle(ready.network.to(machine.device), ready.task)
    course = train(ready.network, ready.task, settings.schedule, progress, run=run, say=say)
    segmenter = Segmenter(
        ready.network,
        ready.plan,
        ready.classes.names,
        ready.classes.definition,
        encoder.recipe,
        encoder.card.windows,
        ready.task.sliding,
        _record(encoder, settings, ready, course, machine),
    )
    return Fitted(segmenter, ready.splits, course, ready.started, ready.notes)


def _home(out: Path) -> Path:
    """Where an unfinished training of a segmenter keeps what is done."""
    return out.with_name(f".{out.name}.training")


def _run(home: Path, terms: dict[str, Any], out: Path) -> RunFolder:
    """Where states of a training on these terms are kept. Raises Misuse where they are of one on other terms."""
    journal, run = Journal(home / "journal"), RunFolder(home)
    if journal.get("terms", 0) is None and run.states.exists():
        shutil.rmtree(run.states)  # before new terms are written: nothing says any more on which ones they were made
    journal.resume(terms, out)
    return run


def _terms(
    encoder: PretrainedEncoder,
    settings: TrainSettings,
    masks: Sequence[Masks],
    known: _Known,
    parts: np.ndarray,
    machine: Machine,
) -> dict[str, Any]:
    """All that decides what is learned, as plain values that name nobody; a run may go on on another device."""
    asked = asdict(settings)
    return {
        **asked.pop("schedule"),
        **asked.pop("augmentation"),
        **asked,
        "model": encoder.sha256,
        "classes": [list(masks[0].classes.names), masks[0].classes.definition],
        "scans": known.sha256,
        "splits": hashlib.sha256("\0".join(parts.tolist()).encode()).hexdigest(),
        "precision": machine.precision,
        "headct": __version__,
    }


def expect_drawable(encoder: PretrainedEncoder) -> None:
    """Raises Misuse for a graph, and for a recipe whose arrays hold several copies of the head."""
    inner(encoder)
    windows = encoder.recipe.step(Windows)
    if windows is not None and windows.stacked_along == "first-axis":
        raise Misuse(
            f"nothing can be drawn on arrays of the recipe {encoder.recipe.name}",
            why="they hold several copies of the head, one behind the other",
            do="take a model whose recipe has its windows in channels",
        )


def _survey(masks: Sequence[Masks], progress: Progress) -> _Known:
    """All scans with a mask; every mask is read, so that what is wrong with one is said before training."""
    places = list(each(masks))
    tables = {id(some): some.cohort.scans.set_index("scan_id")["patient_id"] for some in masks}
    patients = [str(tables[id(some)].loc[scan_id]) for some, scan_id in places]
    outputs = masks[0].classes.outputs
    holds = np.zeros((len(places), outputs), dtype=bool)
    seen = hashlib.sha256()
    for number, (some, scan_id) in enumerate(places):
        example = example_of(some, scan_id)
        holds[number] = np.bincount(example.numbers.ravel(), minlength=outputs) > 0
        for part in (example.array, example.numbers, example.spacing_mm):
            seen.update(np.ascontiguousarray(part).data)
        seen.update(f"{scan_id}\0{patients[number]}\0".encode())
        progress(number + 1, len(places))
    return _Known(places, patients, holds, seen.hexdigest())


def _parts(known: _Known, settings: TrainSettings, split_file: Path | None) -> np.ndarray:
    """The part (n,) of each scan: train, validation, or empty."""
    if split_file is not None:
        parts = splits.read_splits(split_file, known.scan_ids, known.patients)
        parts[parts == "test"] = ""
    else:
        shares = {"train": 1 - settings.validation, "validation": settings.validation}
        parts = splits.split(known.holds[:, 1:].astype(float), known.patients, shares, settings.seed)
    if not (parts == "train").any():
        raise Misuse("no scan is left to learn from", do="name one in the splits, or take a smaller --validation")
    patients = np.array(known.patients)
    if settings.shots is not None:
        taught = np.unique(patients[parts == "train"])
        if settings.shots > len(taught):
            raise Misuse(
                f"{settings.shots} patients are asked for, and {len(taught)} are there to learn from",
                do="ask for fewer shots, or name more scans with masks",
            )
        chosen = np.random.default_rng((settings.seed, SHOTS)).permutation(taught)[: settings.shots]
        parts = np.where((parts == "train") & ~np.isin(patients, chosen), "", parts)
    return parts


def _expect_taught(known: _Known, rows: dict[str, np.ndarray], names: Sequence[str]) -> tuple[str, ...]:
    """Raises Misuse where nothing is drawn in any training scan; notes about classes that are in none."""
    counts = known.holds[rows["train"]].sum(axis=0)[1:]
    if not counts.any():
        raise Misuse("nothing is drawn in the masks of the training scans", do="check --classes and the masks")
    untaught = [name for name, count in zip(names, counts, strict=True) if not count]
    return (f"in no training scan, so never drawn: {', '.join(untaught)}",) if untaught else ()


def start(
    encoder: PretrainedEncoder, settings: TrainSettings, outputs: int
) -> tuple[SegmentationNetwork, Plan, tuple[str, ...]]:
    """The network before the first step, how it is built again, and in words what it starts with.

    A decoder in a published file of CT-FM's is taken over, as far as it fits.
    """
    decoder = decoder_for(inner(encoder), settings.decoder)
    with kept_random("cpu"):
        torch.manual_seed(settings.seed)
        inside = copied(encoder) if settings.initial == "pretrained" else _new(inner(encoder))
        network = network_of(inside, decoder, outputs)
    plan = Plan.of(inner(encoder), decoder, outputs)
    notes = [f"the encoder starts with {'the weights of the model' if settings.initial == 'pretrained' else 'nothing'}"]
    if settings.initial == "pretrained":
        if isinstance(network, ResidualSegmenter) and (note := _published_decoder(network, encoder, outputs)):
            notes.append(note)
        network.hold_encoder(frozen=settings.frozen)
    elif settings.frozen:
        network.hold_encoder(frozen=True)
    return network, plan, tuple(notes)


def _new(like: Encoder) -> Encoder:
    """The same encoder with random weights."""
    return encoders.build(like.architecture, **json.loads(json.dumps(asdict(like.settings))))


def _published_decoder(network: ResidualSegmenter, encoder: PretrainedEncoder, outputs: int) -> str:
    """Take over the decoder that lies beside a published encoder, if one does; says so."""
    assert isinstance(inner(encoder), SegResEncoder)
    if encoder.source.startswith(registry.HUB):
        from headct.checkpoints import hub  # with it comes the Hub's client, which nothing else needs

        place = hub.fetch(hub.Address.parse(encoder.source)).folder
    else:
        place = Path(encoder.source)
    if not encoder.source or not published.recognise(place):
        return ""
    found = published.read_segmentation(place, outputs=outputs, depths=len(_heads(network)))
    network.network.load_state_dict(found.network.state_dict())
    kept = sum(name.startswith("up_layers.") for name in found.network.state_dict()) - len(found.untrained)
    return f"the decoder starts with {kept} tensors of the same file" if kept > 0 else ""


def _heads(network: ResidualSegmenter) -> list[str]:
    return [name for name in network.network.state_dict() if name.endswith("head.bias")]


def _shape_of(known: _Known, encoder: PretrainedEncoder) -> tuple[int, ...] | None:
    """Spatial shape of all scans, where the recipe fixes it; else that of none."""
    shape = encoder.recipe.shape
    return None if shape is None else tuple(known.places[0][0].cohort.array(known.scan_ids[0]).shape[-3:])


def _sided(augmentation: Augmentation, names: Sequence[str]) -> Augmentation:
    """Without the mirror where a class has a side."""
    if mirrored(names) == tuple(range(len(names))):
        return augmentation
    return Augmentation(**{**asdict(augmentation), "mirror": 0.0})


@torch.no_grad()
def _settle(network: SegmentationNetwork, task: Task) -> None:
    """Let the BatchNorms of a random encoder take their statistics from training patches, before it is frozen."""
    rng = np.random.default_rng((task.seed, SETTLED_ON))
    with settling(network.encoder_part) as any_norms:
        for _ in range(SETTLED_ON if any_norms else 0):
            one = draw(rng, [task.train], task.load, task.augmentation)
            example = task.load(one.scan)
            network(*voxels_and_channels([cut(example, one, task.patch, task.side)[0]], [example], task))


def _record(
    encoder: PretrainedEncoder,
    settings: TrainSettings,
    ready: _Ready,
    course: Course,
    machine: Machine,
) -> dict[str, Any]:
    """How it was made, as plain values."""
    patients = np.array(ready.known.patients)
    of_part = {name: patients[ready.parts == name] for name in ("train", "validation")}
    counted = {name: (len(some), len(np.unique(some))) for name, some in of_part.items()}
    return {
        "encoder": {
            "architecture": encoder.architecture,
            "sha256": encoder.sha256,
            "decisive_sha256": encoder.decisive_sha256,
        },
        "licence": encoder.card.licence,
        "settings": asdict(settings),
        "seen_patients_sha256": sorted({hash_of(one) for some in of_part.values() for one in some.tolist()}),
        "pseudonyms": sorted({pseudonyms_of(masks.cohort) for masks, _ in ready.known.places} - {""}),
        "course": course.facts(),
        "machine": str(machine),
        "virtual": all(is_virtual(masks.cohort) for masks, _ in ready.known.places),
        "sentences": [
            *(f"{n} scans of {p} patients for {name}" for name, (n, p) in counted.items()),
            *ready.started,
            f"{course.steps} steps; taken were the weights of step {course.best_step}, by {course.chosen_by}",
        ],
    }


def opened(places: Sequence[Path]) -> Iterator[Cohort]:
    """The cohorts, opened; the same one twice is refused."""
    seen: set[Path] = set()
    for place in places:
        if place.resolve() in seen:
            raise Misuse(f"{place} is named twice", do="name each cohort once")
        seen.add(place.resolve())
        yield Cohort(place)
