"""Virtual patients one after another: scans with labels, masks and landmarks, decided by a seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from pydicom.uid import generate_uid

from headct.failure import Misuse
from headct.preparing.recipe import Frame, Recipe, recipes
from headct.scan import Header, Scan
from headct.virtual.acquisition import Acquisition, Taken, take
from headct.virtual.findings.mixture import KINDS, PREVALENCE, draw_findings, one_of
from headct.virtual.labels import FINDINGS, READ_MM, Labels, judge, mask_share
from headct.virtual.landmarks import head_landmarks_mm
from headct.virtual.patient import Patient
from headct.virtual.sites import SITES, Site


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What to simulate: all that decides on the patients and their scans.

    Attributes:
        seed: Another seed, other patients.
        site: One of `SITES`; each site has patients of its own.
        rescan: A site at which every patient is scanned a second time, or empty.
        twin: A finding that every patient has in a first scan and lacks in a second, or empty. With a re-scan, the
            first scan is the one that is repeated.
        prevalence: How often each finding is drawn.
        spacing_mm: Pixels and slices no finer than this, for arrays that are prepared at once; None: the protocol's.
    """

    seed: int = 0
    site: str = "site-a"
    rescan: str = ""
    twin: str = ""
    prevalence: Mapping[str, float] = field(default_factory=lambda: dict(PREVALENCE))
    spacing_mm: float | None = None

    def __post_init__(self) -> None:
        """Raises Misuse for an unknown site or finding, a prevalence that is no share, or what is no seed."""
        object.__setattr__(self, "prevalence", dict(self.prevalence))  # a view of one cannot be written down
        for argument, value, known, what in (
            ("site", self.site, SITES, "site"),
            ("rescan", self.rescan or self.site, SITES, "site"),
            ("twin", self.twin or "iph", KINDS, "finding"),
            *(("prevalence", name, KINDS, "finding") for name in self.prevalence),
        ):
            if value not in known:
                raise _unknown(argument, what, value, known)
        seed: object = self.seed  # of Python's callers nothing is known
        if not isinstance(seed, int | np.integer) or seed < 0:
            raise Misuse(f"there is no seed {seed!r}", do="give a whole number from 0 on")
        for name, share in self.prevalence.items():
            if not 0 <= share <= 1:
                raise Misuse(f"{name} cannot have the prevalence {share:g}", do="give a share from 0 to 1")

    @property
    def scans_each(self) -> int:
        """How many scans every patient has."""
        return 1 + bool(self.twin) + bool(self.rescan)

    def prepared_by(self, recipe: Recipe) -> Simulation:
        """The same with pixels and slices as fine as the voxels of a recipe. Raises Misuse for a published one."""
        frame = recipe.step(Frame)
        if frame is None:
            ours = ", ".join(name for name, known in recipes.items() if known.in_hu)
            raise Misuse(
                f"virtual patients are not prepared by the published recipe {recipe.name}",
                do=f"name one of {ours}; or simulate --format dicom, then headct ingest with that recipe",
            )
        return replace(self, spacing_mm=float(min(frame.spacing_mm)))

    def patient(self, index: int) -> Patient:
        """The `index`-th patient, counted from 0."""
        digest = hashlib.blake2b(f"{self.seed}/{self.site}/{index}".encode(), digest_size=6).digest()
        return Patient.draw(int.from_bytes(digest, "big"), prevalence=self.prevalence)

    @staticmethod
    def index_of(patient_id: str) -> int:
        """Of a patient's name, which ends with its number counted from 1."""
        return int(patient_id.rsplit("-", 1)[1]) - 1

    def scans(self, index: int) -> Iterator[Simulated]:
        """The scans of the `index`-th patient."""
        patient, site = self.patient(index), SITES[self.site]
        name = f"{self.site}-{self.seed}-{index + 1:06d}"
        if self.twin:
            others = patient.without(self.twin)
            patient = patient if patient != others else self._with_twin(others)
            yield self._taken(patient, site, 0, name, "with")
            without = " without oedema of others" if self.twin == "edema" else ""
            yield self._taken(others, site, 0, name, "without", without)
        else:
            yield self._taken(patient, site, 0, name, "1")
        if self.rescan:
            yield self._taken(patient, SITES[self.rescan], 1, name, "2", f"at {self.rescan}")

    def _with_twin(self, patient: Patient) -> Patient:
        """The patient with the twin's finding drawn for it."""
        order = list(KINDS)
        findings = (*patient.findings, one_of(self.twin, patient.seed))
        return replace(patient, findings=tuple(sorted(findings, key=lambda finding: order.index(finding.name))))

    def _taken(self, patient: Patient, site: Site, visit: int, name: str, study: str, otherwise: str = "") -> Simulated:
        acquisition = Acquisition.draw(patient.seed, site, visit)
        if self.spacing_mm is not None:
            acquisition = acquisition.coarsened(self.spacing_mm)
        if patient.findings != draw_findings(patient.seed):  # asked for, so that others may ask for other ones
            otherwise += f" with {'+'.join(finding.name for finding in patient.findings)}"
        return Simulated(patient, acquisition, name, study, otherwise)


def _unknown(argument: str, what: str, name: str, known: Iterable[str]) -> Misuse:
    why = f"{name} follows from other findings" if name in FINDINGS else ""
    return Misuse(f"{argument}: there is no virtual {what} {name!r}", why=why, do=f"name one of {', '.join(known)}")


@dataclass(frozen=True)
class Simulated:
    """One scan of one virtual patient; what it costs to make is made when it is asked for.

    `study` is the number of the visit, or "with" and "without" of twins; `otherwise` says what else was asked for, so
    that scans of one patient that differ bear different identifiers. With `tissues`, `taken` keeps the shares of brain,
    ventricles and skull too. `device` is where `take` paints.
    """

    patient: Patient
    visit: Acquisition
    patient_id: str
    study: str
    otherwise: str = ""
    tissues: bool = False
    device: str | torch.device = field(default="cpu", compare=False)

    @cached_property
    def study_id(self) -> str:
        """A DICOM UID, made from what decides on the scan."""
        return str(generate_uid(entropy_srcs=["virtual study", self.patient_id, self.study + self.otherwise]))

    @property
    def series_id(self) -> str:
        """A DICOM UID."""
        return self._series_id("head")

    def _series_id(self, what: str) -> str:
        told = self.study + self.otherwise
        return str(generate_uid(entropy_srcs=["virtual series", self.patient_id, told, what]))

    def header(self, what: str) -> Header:
        """That of another series of the same study, such as a `localizer`; without a scan id."""
        return replace(self.scan.header, series_id=self._series_id(what), scan_id="")

    @cached_property
    def scan_id(self) -> str:
        """16 hexadecimal digits that name the scan in a cohort."""
        return hashlib.blake2b(self.series_id.encode(), digest_size=8).hexdigest()

    @cached_property
    def taken(self) -> Taken:
        """The scan with its truth."""
        return take(self.patient, self.visit, tissues=self.tissues, device=self.device)

    @cached_property
    def scan(self) -> Scan:
        """As a scanner would give it, with this scan's identifiers."""
        header = replace(
            self.taken.scan.header,
            patient_id=self.patient_id,
            study_id=self.study_id,
            series_id=self.series_id,
            scan_id=self.scan_id,
        )
        return replace(self.taken.scan, header=header)

    @cached_property
    def labels(self) -> Labels:
        """What can be seen on this scan."""
        return judge(self.patient, self.taken, self.visit.coarsened(READ_MM).noise_hu)

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Where each finding lies, and each trap such as old surgery: bool (slices, rows, cols) on the scan's grid.

        That of hydrocephalus is the ventricles without blood in them. Dementia has none: it is fluid all around that
        would be brain.
        """
        return {name: share >= mask_share(name) for name, share in self.taken.shares.items() if name in KINDS}

    @property
    def landmarks_mm(self) -> dict[str, np.ndarray]:
        """Named places (3,) in the scan's patient space, RAS mm, also beyond its first or last slice."""
        return {name: self.visit.to_scanner(place) for name, place in head_landmarks_mm(self.patient).items()}


def simulate(
    patients: int,
    *,
    seed: int = 0,
    site: str = "site-a",
    rescan: str = "",
    twin: str = "",
    prevalence: Mapping[str, float] = PREVALENCE,
) -> Iterator[Simulated]:
    """Virtual patients with `scan`, `labels`, `masks` and `landmarks_mm`, each made when it is its turn.

    The same arguments give the same patients. `prevalence` says how often each finding is drawn; those that it does not
    name are not. Raises Misuse at once for less than one patient, and for an unknown site or finding.
    """
    if patients < 1:
        raise Misuse("at least one patient is needed", do="ask for 1 or more")
    simulation = Simulation(seed=seed, site=site, rescan=rescan, twin=twin, prevalence=prevalence)
    return (scan for index in range(patients) for scan in simulation.scans(index))
