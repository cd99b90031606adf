"""What a reader could see: labels from the truth of a scan, positive only for what shows after acquisition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from headct.scan import Scan
from headct.virtual.acquisition import Taken
from headct.virtual.patient import Patient

BLEEDS = ("iph", "ivh", "sah", "sdh", "edh")
FINDINGS = (
    "ich", *BLEEDS, "tumor", "hydrocephalus", "edema", "dementia",
    "infarct", "fracture", "mass_effect", "midline_shift",
)  # fmt: skip
"""Columns of `labels.csv`, in their order."""


@dataclass(frozen=True)
class Visible:
    """When a painted finding counts as seen: voxels changed by at least `hu` make up at least `ml`."""

    ml: float
    hu: float


VISIBLE: Mapping[str, Visible] = MappingProxyType(
    {
        "iph": Visible(0.4, 8),
        "ivh": Visible(0.4, 8),
        "sah": Visible(1.0, 8),
        "sdh": Visible(3.0, 6),
        "edh": Visible(1.5, 6),
        "tumor": Visible(1.0, 4),
        "edema": Visible(4.0, 3.5),
        "infarct": Visible(1.5, 3.5),
        "fracture": Visible(0.08, 120),
    }
)
"""Chosen so that a reader who knows where to look would agree; noise of the scan raises the second number."""

HYDROCEPHALUS_ML = 12.0
"""Ventricles larger than without it by so much count as hydrocephalus."""

DEMENTIA_ML = 15.0
"""Fluid beyond what the patient's age explains that counts as atrophy."""

SHIFT_MM = (1.0, 3.0)
"""Below the first there is no midline shift, from the second on there is; between, the label is empty."""

MASS_EFFECT_MM = (2.0, 5.0)
"""The same for the largest displacement of brain."""

NOISE_FACTOR = 0.8
"""A change below this many standard deviations of the scan's noise does not count as seen."""


@dataclass(frozen=True)
class Labels:
    """Of one scan.

    Attributes:
        findings: For each of `FINDINGS` 1, 0, or None: it is there but hardly to be seen (the stratum `subtle`).
        volumes_ml: Of each painted finding, by its mask.
        visible_ml: The part of it that shows.
        midline_shift_mm: How far the septum has moved, without sign.
        ventricles_ml: Of the whole patient.
    """

    findings: Mapping[str, int | None]
    volumes_ml: Mapping[str, float]
    visible_ml: Mapping[str, float]
    midline_shift_mm: float
    ventricles_ml: float

    @property
    def subtle(self) -> tuple[str, ...]:
        """Findings that are there but can hardly be seen."""
        return tuple(name for name, label in self.findings.items() if label is None)


def judge(patient: Patient, taken: Taken, noise_hu: float) -> Labels:
    """The labels of a scan; `noise_hu` is the standard deviation of its noise."""
    voxel_ml = voxel_volumes_ml(taken.scan)
    volumes = {name: _total_ml(share, voxel_ml) for name, share in taken.shares.items()}
    visible = {
        name: _total_ml(np.abs(taken.changed_hu[name]) >= max(rule.hu, NOISE_FACTOR * noise_hu), voxel_ml)
        for name, rule in VISIBLE.items()
        if name in taken.changed_hu
    }
    present = {finding.name for finding in patient.findings} | set(visible)
    labels: dict[str, int | None] = dict.fromkeys(FINDINGS, 0)
    for name in VISIBLE:
        if name in present:
            labels[name] = 1 if visible.get(name, 0.0) >= VISIBLE[name].ml else None
    fluid = patient.fluid_ml()
    if "hydrocephalus" in present:
        added = fluid.ventricles_ml - patient.without("hydrocephalus").fluid_ml().ventricles_ml
        labels["hydrocephalus"] = 1 if added >= HYDROCEPHALUS_ML else None
    if "dementia" in present:
        added = fluid.fluid_ml - patient.without("dementia").fluid_ml().fluid_ml
        labels["dementia"] = 1 if added >= DEMENTIA_ML else None
    shift_mm, moved_mm = _displacements(patient)
    labels["midline_shift"] = _graded(shift_mm, SHIFT_MM)
    labels["mass_effect"] = _graded(moved_mm, MASS_EFFECT_MM)
    labels["ich"] = _any([labels[name] for name in BLEEDS])
    return Labels(labels, volumes, visible, shift_mm, fluid.ventricles_ml)


def voxel_volumes_ml(scan: Scan) -> np.ndarray:
    """(slices, 1, 1): each slice stands for the space half-way to its neighbours."""
    along = scan.origins_mm @ scan.normal
    gaps = np.abs(np.gradient(along)) if len(along) > 1 else np.array([scan.thickness_mm])
    row_mm, col_mm = scan.pixel_mm
    volumes: np.ndarray = (gaps * row_mm * col_mm / 1000).astype(np.float32)[:, None, None]
    return volumes


def _total_ml(shares: np.ndarray, voxel_ml: np.ndarray) -> float:
    return float((shares.sum(axis=(1, 2), dtype=np.float64) * voxel_ml[:, 0, 0]).sum())


def _displacements(patient: Patient) -> tuple[float, float]:
    """How far the septum, and how far any of the brain, has moved in mm."""
    moved, coarse = patient.displaced_mm, patient.coarse
    x, y, z = coarse.template_mm.T
    septum = (x.abs() < 8) & ((y - 8).abs() < 14) & ((z - 14).abs() < 9)
    shift = float(moved[septum, 0].mean().abs()) if bool(septum.any()) else 0.0
    length = (moved**2).sum(dim=1).sqrt()[coarse.depth_mm > 0]
    return shift, float(length.max()) if len(length) else 0.0


def _graded(value: float, between: tuple[float, float]) -> int | None:
    low, high = between
    return 1 if value >= high else 0 if value < low else None


def _any(labels: list[int | None]) -> int | None:
    return 1 if 1 in labels else None if None in labels else 0
