"""The mission once: files, cohorts, pre-training without labels, few labels, a test inside and outside, and a page.

All patients are virtual and come from four sites. Some enter as DICOM through the front door, as a hospital's would;
the others are made as prepared arrays, because a few hundred of them are needed to measure anything.

    out/
      virtual-patients/  DICOM            cohort/         what was accepted of it, 4 mm
      unlabelled/        to learn from    site-a/         those with labels: some are drawn, some are held out
      site-b/ ...        other sites, which are tested only
      run/               the pre-training and its checkpoint
      few-labels/        splits, draws, and what each contestant said of every test scan
      detector/          made with all labels of site-a that are not held out
      results.csv        the table of the page
      report.html        the page
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headct import checkpoints, pretraining
from headct.cohort import Cohort
from headct.cohort.ingest import ingest
from headct.cohort.journal import write_atomically
from headct.cohort.labels import read_labels
from headct.cohort.quality import write_page
from headct.detection import AdaptSettings, Detector, adapt
from headct.embedding.machine import Machine, choose
from headct.failure import Failure, Misuse
from headct.pretraining import PretrainSettings, Run
from headct.pretraining.objectives.dense import DenseInsertSettings
from headct.pretraining.views import ViewSettings
from headct.reporting.words import count
from headct.studies import baselines
from headct.studies.few_labels import (
    FINDINGS,
    Contestant,
    Results,
    Study,
    StudySettings,
    from_scratch,
    kept_predictions,
    of_encoder,
    of_vectors,
    results_of,
    study_of,
)
from headct.studies.own_scans import own_scans
from headct.virtual.demonstration import write_demonstration
from headct.virtual.findings.mixture import PREVALENCE
from headct.virtual.job import Job
from headct.virtual.job import run as simulate
from headct.virtual.simulated import Simulation

if TYPE_CHECKING:
    from headct.cohort.rounds import Progress

Say = Callable[[str], None]

RECIPE = "head-coarse"
"""4 mm: an eighth of the voxels of the usual recipe, so that a training of two minutes is one."""
HOME = "site-a"
WINDOWS = {"brain": (40.0, 80.0), "soft": (100.0, 500.0), "all": (250.0, 2500.0)}
"""Level and width in HU."""
VIRTUAL = "virtual-patients"
CONVOLUTIONS = "conv-tiny"
"""The network that is pre-trained, without the maps that pre-training teaches it: random, and from scratch."""
SEED_UNLABELLED, SEED_LABELLED = 101, 102

PRETRAINED, LONGER = "pre-trained here", "pre-trained longer"
REGIONAL, HISTOGRAM, HEIGHT = "regional histogram", "histogram", "height of the head"
RANDOM, SCRATCH = "random weights", "from scratch"
SHIPPED = "virtual-coarse"
"""The model that comes with the package: the same pre-training, longer and on more patients."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """How much of everything a demo does."""

    files: int  # patients that come as DICOM
    unlabelled: int  # patients that are learned from without labels
    labelled: int  # patients of the first site
    validation: float  # share of these
    test: float
    elsewhere: int  # patients of each other site
    sites: tuple[str, ...]  # the others
    findings: tuple[str, ...]
    prevalence: float  # of each finding among patients with labels
    budget_s: float  # of the pre-training
    ks: tuple[int, ...]
    draws: int
    steps: int  # of a network from scratch
    own_budget_s: float  # of the pre-training on scans of one's own
    workers: int | None = None  # that make patients; None: one a core. Each costs some seconds to begin


FULL = Length(
    files=12,
    unlabelled=100,
    labelled=180,
    validation=0.15,
    test=0.35,
    elsewhere=36,
    sites=("site-b", "site-c", "site-d"),
    findings=FINDINGS,
    prevalence=0.2,
    budget_s=120.0,
    ks=(4, 8, 16),
    draws=10,
    steps=25,
    own_budget_s=60.0,
)
QUICK = Length(
    files=2,
    unlabelled=4,
    labelled=28,
    validation=0.15,
    test=0.5,
    elsewhere=12,
    sites=("site-b",),
    findings=("iph", "hydrocephalus"),
    prevalence=0.6,
    budget_s=5.0,
    ks=(2, 4),
    draws=2,
    steps=4,
    own_budget_s=15.0,
    workers=1,
)


@dataclass(frozen=True)
class Walked:
    """What the page is written from."""

    length: Length
    files: Cohort  # what came through the front door
    unlabelled: Cohort
    sites: Mapping[str, Cohort]
    study: Study
    results: Results
    encoder: checkpoints.PretrainedEncoder  # that was pre-trained here
    run: Run
    detector: Detector
    said: pd.DataFrame  # of the detector on the patients of the first site: scan_id, finding, probability, split
    at_the_door: pd.DataFrame  # of the detector on what came through the front door
    labels: Path  # of the first site
    longer: str  # where the encoder of a longer run came from


def demo(
    out: Path,
    data: Path | None = None,
    *,
    quick: bool = False,
    checkpoint: Path | None = None,
    say: Say = lambda line: None,
) -> Path:
    """Walk the whole way into the folder `out` and return the path of the page.

    `data`: scans of one's own, which have no labels; nothing is then tested. `checkpoint` is one from a longer run of
    the same pre-training, to stand beside the short one instead of the one that comes with the package. Called again
    the demo goes on where it stopped. Raises Failure where no scan is accepted, Misuse where `out` holds another demo.
    """
    length = QUICK if quick else FULL
    with_it = f", beside {checkpoint.resolve()}" if checkpoint else ""
    _hold_to(out, f"{VIRTUAL if data is None else data.resolve()}{', quick' if quick else ''}{with_it}")
    if data is not None:
        return own_scans(out, data, length.own_budget_s, say)
    from headct.studies.demo_page import page_of

    page = out / "report.html"
    page_of(_walk(out, length, str(checkpoint or SHIPPED), say)).write(page)
    return page


def _walk(out: Path, length: Length, longer: str, say: Say) -> Walked:
    files = _front_door(out, length.files, say)
    unlabelled = _simulated(out / "unlabelled", _job(HOME, length.unlabelled, SEED_UNLABELLED, truth=True), length, say)
    often = {**PREVALENCE, **dict.fromkeys(length.findings, length.prevalence)}
    sites = {
        site: _simulated(out / site, _job(site, number, SEED_LABELLED, prevalence=often), length, say)
        for site, number in ((HOME, length.labelled), *((site, length.elsewhere) for site in length.sites))
    }
    study = study_of(
        {site: (cohort, out / site / "labels.csv") for site, cohort in sites.items()},
        StudySettings(
            findings=length.findings,
            ks=length.ks,
            draws=length.draws,
            validation=length.validation,
            test=length.test,
        ),
    )
    study.write(out / "few-labels")
    run = pretraining.pretrain([unlabelled], out / "run", settings(length.budget_s), progress=say)
    machine = choose("auto")
    encoder = checkpoints.load(run.checkpoint)
    ours = of_encoder(PRETRAINED, encoder, study, list(sites.values()), machine, out / "vectors")
    lasting = of_encoder(LONGER, checkpoints.load(longer), study, list(sites.values()), machine, out / "vectors")
    contestants = [ours, lasting, *_beside(ours, study, length, machine)]
    tables = {}
    for one in contestants:
        say(f"few labels: {one.name}")
        tables[one.name] = kept_predictions(out / "few-labels", study, one, machine)
    results = results_of(study, tables)
    write_atomically(out / "results.csv", results.table(PRETRAINED).to_csv(index=False).encode())
    detector = _detector(out, sites[HOME], lasting.encoder, length, machine, say)
    return Walked(
        length=length,
        files=files,
        unlabelled=unlabelled,
        sites=sites,
        study=study,
        results=results,
        encoder=encoder,
        run=run,
        detector=detector,
        said=_said(detector, study, lasting),
        at_the_door=detector.predict(files),
        labels=out / HOME / "labels.csv",
        longer=longer,
    )


# The steps, each of which goes on where it was stopped


def _front_door(out: Path, patients: int, say: Say) -> Cohort:
    """Patients as DICOM, read as a hospital's would be."""
    data = out / VIRTUAL
    if not data.exists():
        say(f"writing {patients} virtual patients as DICOM")
        draft = data.with_name(data.name + ".partial")
        write_demonstration(draft, patients=patients)
        draft.rename(data)  # whole or not at all: a demo that was killed does not go on with half of its patients
    say(f"reading {data}")
    ingest([data], out / "cohort", RECIPE)
    cohort = Cohort(out / "cohort")
    say(f"{count(len(cohort), 'scan')} accepted, {count(len(cohort.rejections), 'rejection')}")
    write_page(cohort, out / "quality.html", virtual=True)
    if len(cohort) == 0:
        raise Failure("no usable head CT was found", do=f"open {out / 'quality.html'}: it says why for every file")
    return cohort


def _job(
    site: str, patients: int, seed: int, *, truth: bool = False, prevalence: Mapping[str, float] = PREVALENCE
) -> Job:
    return Job(
        simulation=Simulation(seed=seed, site=site, prevalence=dict(prevalence)),
        patients=patients,
        recipe=RECIPE,
        masks=truth,
        deformation=truth,
    )


def _simulated(place: Path, job: Job, length: Length, say: Say) -> Cohort:
    """Virtual patients as prepared arrays."""
    if not (place / "cohort.json").exists():
        say(f"making {job.patients} virtual patients of {job.simulation.site} ({place.name})")
        simulate(job, place, workers=length.workers, progress=_now_and_then(say, job.patients))
    return Cohort(place)


def _now_and_then(say: Say, patients: int, parts: int = 4) -> Progress:
    """Says how many are made, a few times."""
    every = max(1, patients // parts)

    def progress(what: str, done: int, total: int | None) -> None:
        if done and done % every == 0:
            say(f"  {done} of {patients} {what}")

    return progress


def settings(budget_s: float) -> PretrainSettings:
    """Tissues, template coordinates and changes that were put in, on a small network of convolutions.

    Of so short trainings it is the one that beat a histogram. It is told which tissue virtual patients have where, and
    which place of a template; of their findings nothing: neither labels nor masks.
    """
    return PretrainSettings(
        objectives={"dense-insert": DenseInsertSettings()},
        encoder="anatomy-conv",
        windows=WINDOWS,
        views=ViewSettings(rotation_deg=4.0, mirror=0.5, scale_hu=0.04, shift_hu=2.5, noise_hu=2.0),
        budget_s=budget_s,
        batch=4,
        precision=choose("auto").precision,
        lr=3e-3,
        warmup=0.03,
        decay=(0.02, 0.02),
    )


def _beside(ours: Contestant, study: Study, length: Length, machine: Machine) -> list[Contestant]:
    """What the encoder is compared with, on the same scans."""
    scans, windows = ours.scans, list(WINDOWS.values())
    train = np.flatnonzero(study.parts == "train")
    random = baselines.random_encoder(ours.encoder, scans, train, machine, 0, CONVOLUTIONS)
    return [
        of_vectors(REGIONAL, baselines.histograms(scans, baselines.REGIONS), ours),
        of_vectors(HISTOGRAM, baselines.histograms(scans), ours),
        of_vectors(HEIGHT, baselines.heights(scans), ours),
        of_vectors(RANDOM, baselines.seen_by(random, windows, scans, machine), ours),
        from_scratch(SCRATCH, ours, CONVOLUTIONS, steps=length.steps, lr=2e-3, draws=1, looks=5),
    ]


def _detector(
    out: Path, home: Cohort, encoder: checkpoints.PretrainedEncoder, length: Length, machine: Machine, say: Say
) -> Detector:
    """A detector from all labels of the first site that are not held out, on the encoder that finds more."""
    place = out / "detector"
    if not place.exists():
        say("adapting a detector")
        labels = read_labels(out / HOME / "labels.csv", [home], findings=length.findings)
        made = adapt(
            [home],
            labels,
            encoder,
            machine,
            out / "vectors",
            AdaptSettings(method="linear"),
            splits=out / "few-labels" / "splits.csv",
        )
        made.save(place)
    return Detector.load(place)


def _said(detector: Detector, study: Study, one: Contestant) -> pd.DataFrame:
    """Probabilities of the validation and test patients of the first site."""
    chosen = (study.sites == study.home) & (study.parts != "train")
    rows = np.flatnonzero(chosen)
    told = detector.probabilities(detector.fitted.scores(one.scans, rows))[0]
    table = pd.DataFrame(told, columns=list(detector.findings)).assign(
        scan_id=[study.scan_ids[int(row)] for row in rows], split=study.parts[rows].astype(str)
    )
    return table.melt(["scan_id", "split"], var_name="finding", value_name="probability")


def _hold_to(out: Path, what: str) -> None:
    """A demo's folder holds one demo. Scans of another would be added to its cohort, and real ones called virtual."""
    note = out / "demo.txt"
    if note.exists() and (before := note.read_text(encoding="utf-8").strip()) != what:
        raise Misuse(
            f"{out} holds another demo (of {before}; now {what})",
            do="name another folder (--out DIR, make demo OUT=DIR), or remove this one",
        )
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(what + "\n", encoding="utf-8")
