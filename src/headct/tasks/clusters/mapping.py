"""The whole of `headct map`: vectors and places of cohorts, mapped, told apart, and put on a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.cohort.identities import is_virtual
from headct.cohort.labels import Labels
from headct.detection.method import Progress, quiet
from headct.detection.scans import scans_of
from headct.embedding.machine import Machine
from headct.embedding.vectors import about
from headct.failure import Misuse
from headct.reporting import clusters as pages
from headct.reporting.clusters import Cloud, MappedPlaces, Told
from headct.reporting.findings import called
from headct.reporting.measured import measured
from headct.reporting.page import Page, Provenance, software_versions
from headct.tasks.clusters.places import Places, Whereabouts, places_of, whereabouts
from headct.tasks.clusters.projection import Method, Projection, project
from headct.tasks.clusters.separability import Separable, separability

MACHINES = {"site": "site", "manufacturer": "manufacturer", "model": "scanner model", "kernel": "kernel"}
"""Columns of a cohort's table that say where and by what a scan was made, and how a page calls them."""
OF_PLACES = ("site", "manufacturer")
"""By which of them, and by which findings, the scan of a place colours it."""
THIRDS = {
    "right to left": ("left third", "middle", "right third"),
    "back to front": ("back third", "middle", "front third"),
    "low to high": ("low third", "middle", "high third"),
}
"""The three axes, and what the thirds of the places along each are called."""


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """What is mapped and how."""

    method: Method = "pca"
    place_scans: int = 40  # scans whose places are mapped, evenly among all; 0 for none
    places_each: int = 60  # places of each
    seed: int = 0


@dataclass(frozen=True)
class Mapped:
    """What was made of cohorts: a row of `scans` for each point of `projection`."""

    scans: pd.DataFrame
    labels: pd.DataFrame | None
    projection: Projection
    machines: tuple[Separable, ...]
    findings: tuple[Separable, ...]
    left_out: Mapping[str, str]
    places: Places | None
    places_projection: Projection | None
    known_where: Whereabouts | None
    place_scans: tuple[int, ...]  # rows of `scans` whose places were mapped
    virtual: bool  # whether all patients are
    model: Mapping[str, str]
    settings: MapSettings

    def rows(self) -> list[dict[str, Any]]:
        """A row for each thing that was told apart, for people and JSON."""
        return [
            {
                "what": one.name,
                "kind": kind,
                "scans": one.auroc.n,
                "classes": len(one.classes),
                "AUROC": one.auroc.value,
                "AUROC low": one.auroc.low,
                "AUROC high": one.auroc.high,
                "accuracy": one.accuracy.value,
                "accuracy low": one.accuracy.low,
                "accuracy high": one.accuracy.high,
                "commonest": one.commonest,
            }
            for kind, told in (("machine", self.machines), ("finding", self.findings))
            for one in told
        ]

    def page(self) -> Page:
        """The page."""
        return pages.page(
            machines=[_told(one) for one in self.machines],
            findings=[_told(one) for one in self.findings],
            left_out=self.left_out,
            axes=self.projection.axes,
            points=self.projection.points,
            clouds=list(self._clouds()),
            places=self._mapped_places(),
            scans=len(self.scans),
            patients=int(self.scans["patient_id"].nunique()),
            virtual=self.virtual,
            provenance=Provenance(
                settings={
                    **asdict(self.settings),
                    "encoder": self.model["architecture"],
                    "recipe": self.model["recipe"],
                },
                hashes={"encoder (SHA-256)": self.model["sha256"]},
                versions=software_versions("headct", "scikit-learn", "numpy"),
            ),
        )

    def _clouds(self) -> Iterator[Cloud]:
        for column, name in MACHINES.items():
            words = self.scans[column].to_numpy(dtype=str)
            if len(np.unique(words[words != ""])) > 1:
                yield Cloud(name=name, classes=words)
        if self.labels is not None:
            for finding in map(str, self.labels.columns):
                values = self.labels[finding].to_numpy(dtype=float)
                words = np.where(values == 1, "with", np.where(values == 0, "without", ""))
                yield Cloud(name=finding, classes=words, is_finding=True)

    def _mapped_places(self) -> MappedPlaces | None:
        if self.places is None or self.places_projection is None:
            return None
        clouds = [
            Cloud(name=name, classes=_thirds(self.places.positions_mm[:, axis], words))
            for axis, (name, words) in enumerate(THIRDS.items())
        ]
        if (self.places.anatomy != "").any():
            clouds.append(Cloud(name="anatomy", classes=self.places.anatomy.astype(str)))
        rows = np.array(self.place_scans)[self.places.scans]
        of_scans = (
            replace(cloud, classes=cloud.classes[rows])
            for cloud in self._clouds()
            if cloud.name in OF_PLACES or cloud.is_finding
        )
        clouds += [cloud for cloud in of_scans if len(np.unique(cloud.classes[cloud.classes != ""])) > 1]
        return MappedPlaces(
            points=self.places_projection.points,
            axes=self.places_projection.axes,
            clouds=clouds,
            scans=len(self.place_scans),
            air_left_out=self.places.air_left_out,
            error_mm=None if self.known_where is None else measured(self.known_where.error_mm, counted=False),
            middle_mm=None if self.known_where is None else measured(self.known_where.middle_mm, counted=False),
        )


def map_features(
    cohorts: Sequence[Cohort],
    encoder: PretrainedEncoder,
    machine: Machine,
    cache: Path,
    settings: MapSettings | None = None,
    *,
    labels: Labels | None = None,
    batch_size: int = 8,
    workers: int = 1,
    progress: Progress = quiet,
    progress_of_places: Progress = quiet,
) -> Mapped:
    """Map the scans of cohorts; vectors that the folder `cache` holds from before are taken from there.

    Raises Misuse where a cohort has another recipe than the encoder or no scans, and where there are too few.
    """
    settings = settings or MapSettings()
    for cohort in cohorts:
        cohort.expect(encoder.recipe)
        if not len(cohort):
            raise Misuse(
                f"the cohort {cohort.path} has no scans",
                do="see its rejections.parquet for the reasons, or name another cohort",
            )
    table = _table(cohorts)
    held = scans_of(
        cohorts,
        table["scan_id"].tolist(),
        encoder,
        machine,
        cache,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    projection = project(held.held_vectors, settings.method, seed=settings.seed)
    values = None if labels is None else labels.values.reindex(table["scan_id"])
    machines, findings, left_out = _told_apart(held.held_vectors, table, values, settings.seed)
    rows = np.unique(np.linspace(0, len(table) - 1, min(settings.place_scans, len(table))).round().astype(int))
    places, on_plane, known = None, None, None
    if settings.place_scans:
        places = places_of(
            [held.places[row] for row in rows],
            encoder,
            machine,
            each=settings.places_each,
            seed=settings.seed,
            progress=progress_of_places,
        )
        on_plane = project(places.vectors, settings.method, seed=settings.seed)
        try:
            known = whereabouts(places, table["patient_id"].to_numpy(dtype=str)[rows][places.scans])
        except Misuse as error:
            left_out["where a place is"] = error.what
    return Mapped(
        table,
        values,
        projection,
        tuple(machines),
        tuple(findings),
        left_out,
        places,
        on_plane,
        known,
        tuple(rows.tolist()),
        all(is_virtual(cohort) for cohort in cohorts),
        about(encoder, machine),
        settings,
    )


def _table(cohorts: Sequence[Cohort]) -> pd.DataFrame:
    """A row for each scan, once; a scan of an unknown patient is one of its own."""
    columns = ["scan_id", "patient_id", *MACHINES]
    table = pd.concat([cohort.scans[columns] for cohort in cohorts], ignore_index=True)
    table = table.drop_duplicates("scan_id").fillna("").astype(str).reset_index(drop=True)
    return table.assign(patient_id=table["patient_id"].where(table["patient_id"] != "", table["scan_id"]))


def _told_apart(
    vectors: np.ndarray, table: pd.DataFrame, labels: pd.DataFrame | None, seed: int
) -> tuple[list[Separable], list[Separable], dict[str, str]]:
    """What can be told apart of machines and of findings, and why the rest cannot."""
    patients = table["patient_id"].to_numpy(dtype=str)
    machines: list[Separable] = []
    findings: list[Separable] = []
    left_out: dict[str, str] = {}

    def take(name: str, classes: np.ndarray, told: list[Separable], words: Mapping[str, str]) -> None:
        try:
            found = separability(called(name), vectors, classes, patients, seed=seed, words=words)
        except Misuse as error:
            left_out[name] = f"{error.what} ({error.why})"
        else:
            told.append(replace(found, name=name))

    for column, name in MACHINES.items():
        take(name, table[column].to_numpy(dtype=str), machines, {})
    if labels is not None:
        for finding in map(str, labels.columns):
            values = labels[finding].to_numpy(dtype=float)
            classes = np.where(values == 1, "1", np.where(values == 0, "0", ""))
            take(finding, classes, findings, {"1": "with it", "0": "without it"})
    return machines, findings, left_out


def _thirds(values: np.ndarray, words: tuple[str, str, str]) -> np.ndarray:
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    return np.array(words)[(values > low).astype(int) + (values > high)]


def _told(one: Separable) -> Told:
    return Told(
        name=one.name,
        classes=one.classes,
        auroc=measured(one.auroc, counted=False),
        accuracy=measured(one.accuracy, counted=False),
        commonest=one.commonest,
        left_out=one.left_out,
    )
