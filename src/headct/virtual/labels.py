"""What a reader could see: labels from the truth of a scan, positive only for what shows after partial volume.

The kernel's blur is left out: it is finer than the voxels that a reader's eye averages over. Blood in the sulci alone
is also looked for on the scan as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from scipy.ndimage import binary_closing, binary_dilation, gaussian_filter, generate_binary_structure, label

from headct.scan import Scan
from headct.virtual.acquisition import Taken
from headct.virtual.patient import MASSES, Patient
from headct.virtual.places import one_thread
from headct.virtual.template import ICBM_PER_HEAD
from headct.virtual.tissue import TUMOR_OEDEMA

BLEEDS = ("iph", "ivh", "sah", "sdh", "edh")
FINDINGS = (
    "ich", *BLEEDS, "tumor", "hydrocephalus", "edema", "dementia",
    "infarct", "fracture", "mass_effect", "midline_shift",
)  # fmt: skip
"""Columns of `labels.csv`, in their order."""


@dataclass(frozen=True)
class Visible:
    """When a painted finding counts as seen: voxels changed by at least `hu` make up at least `ml`.

    Their mean change times the root of their ml must reach `evidence` (HU times root ml): a small lesion needs more
    contrast than a large one, since grey and white matter and sulci vary by as much at its size.
    """

    ml: float
    hu: float
    evidence: float = 0.0


VISIBLE: Mapping[str, Visible] = MappingProxyType(
    {
        "iph": Visible(0.4, 8),
        "ivh": Visible(0.4, 8),
        "sah": Visible(2.0, 12),
        "sdh": Visible(3.0, 6),
        "edh": Visible(1.5, 6),
        "tumor": Visible(1.5, 5, 18),
        "edema": Visible(4.0, 3.5, 16),
        "infarct": Visible(1.0, 4, 18),
        "fracture": Visible(0.6, 400),
    }
)
"""Chosen so that a reader who knows where to look would agree; noise of the scan raises the second number."""

HYDROCEPHALUS_ML = 12.0
"""Ventricles larger than without it by so much count as hydrocephalus."""

DENSER_HU = 11.0
"""Blood in the sulci is seen where it is denser than the middle of all brain by so much, about 6 HU above cortex."""

BONY_HU = 130.0
"""What lies in voxels denser than this cannot be told from the bone in them."""

BONE_HU = 250.0
"""Voxels denser than this are bone, when brain is looked for within it."""

NEAR_BONE_MM = 4.0
"""Brain is looked for no nearer to bone than this."""

READ_MM = 2.0
"""Noise counts as averaged to pixels and slices no finer than this, whatever the scan's own: a reader does so."""

BLUR_MM = 0.8
"""The eye averages noise over about so much (sigma)."""

DEMENTIA_ML = 40.0
"""Fluid beyond what the patient's age explains that counts as atrophy."""

IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
IN_PLANE[1] = generate_binary_structure(2, 1)
"""Neighbours of a voxel within its slice."""

SHIFT_MM = (1.0, 3.0)
"""Below the first there is no midline shift, from the second on there is; between, the label is empty."""

MASS_EFFECT_MM = (2.0, 4.0)
"""The same for the largest displacement of brain by a mass, outside of the mass itself."""

EFFACED_ML = (1.5, 5.0)
"""The same for the fluid that swelling without a mass has pressed out of ventricles and sulci: also mass effect."""

SWELLINGS = ("edema", "infarct")
"""What presses fluid out without being a mass. Hydrocephalus closes sulci too, but by fluid."""

NOISE_FACTOR = 0.8
"""A change below this many standard deviations of the scan's noise does not count as seen."""


def mask_share(finding: str) -> float:
    """How much of a voxel a finding must fill to count it in the mask; thin and faint ones fill few by half."""
    return 0.3 if finding in ("ivh", "sah", "fracture", "edema") else 0.5


@dataclass(frozen=True)
class Labels:
    """Of one scan.

    Attributes:
        findings: For each of `FINDINGS` 1, 0, or None: it is there but hardly to be seen.
        volumes_ml: Of each painted finding: the sum of its shares of voxels.
        visible_ml: The part of it in voxels that show: never more than `volumes_ml`. The least volumes of `VISIBLE` are
            those of the voxels themselves, which a thin finding does not fill.
        midline_shift_mm: How far the septum has moved, without sign.
        ventricles_ml: Of the whole patient.
        hydrocephalus_ml: By how much the ventricles are larger than without it.
        dementia_ml: How much more fluid there is than without it.
        mass_effect_mm: How far brain has moved at most, outside of balls as large as the masses.
        effaced_ml: How much fluid swelling without a mass has pressed out.
    """

    findings: Mapping[str, int | None]
    volumes_ml: Mapping[str, float]
    visible_ml: Mapping[str, float]
    midline_shift_mm: float
    ventricles_ml: float
    hydrocephalus_ml: float
    dementia_ml: float
    mass_effect_mm: float
    effaced_ml: float


@one_thread()
def judge(patient: Patient, taken: Taken, noise_hu: float) -> Labels:
    """The labels of a scan; `noise_hu` is its noise in an average head, at voxels of `READ_MM` or the scan's coarser.

    `visit.coarsened(READ_MM).noise_hu` of the visit or of one that was coarsened before; a larger head has more.
    """
    noise_hu *= (ICBM_PER_HEAD / patient.anatomy.mean_scale) ** 3  # as in `acquisition`
    voxel_ml = voxel_volumes_ml(taken.scan)
    volumes = {name: _total_ml(share, voxel_ml) for name, share in taken.shares.items()}
    seen = {
        name: _seen(taken, name, max(rule.hu, NOISE_FACTOR * noise_hu))
        for name, rule in VISIBLE.items()
        if name in taken.changed_hu
    }
    shown = {
        name
        for name, voxels in seen.items()
        if _enough(VISIBLE[name], taken.changed_hu[name][voxels], _total_ml(voxels, voxel_ml))
    }
    if volumes.get("tumor", 0.0) >= VISIBLE["tumor"].ml and _oedema_shows(taken, noise_hu, voxel_ml):
        shown.add("tumor")
    present = {finding.name for finding in patient.findings} | set(seen)
    labels: dict[str, int | None] = dict.fromkeys(FINDINGS, 0)
    for name in VISIBLE:
        if name in present:
            labels[name] = 1 if name in shown else None
    fluid, wider_ml, lost_ml = patient.fluid_ml(), 0.0, 0.0
    if "hydrocephalus" in present:
        wider_ml = fluid.ventricles_ml - patient.without("hydrocephalus").fluid_ml().ventricles_ml
        labels["hydrocephalus"] = 1 if wider_ml >= HYDROCEPHALUS_ML else None
    if "dementia" in present:
        lost_ml = fluid.fluid_ml - patient.without("dementia").fluid_ml().fluid_ml
        labels["dementia"] = 1 if lost_ml >= DEMENTIA_ML else None
    shift_mm, moved_mm = _displacements(patient)
    labels["midline_shift"] = _graded(shift_mm, SHIFT_MM)
    effaced_ml = patient.without(*SWELLINGS).fluid_ml().fluid_ml - fluid.fluid_ml if present & set(SWELLINGS) else 0.0
    labels["mass_effect"] = _any([_graded(moved_mm, MASS_EFFECT_MM), _graded(effaced_ml, EFFACED_ML)])
    labels["ich"] = _any([labels[name] for name in BLEEDS])
    return Labels(
        findings=labels,
        volumes_ml=volumes,
        visible_ml={name: _total_ml(taken.shares[name], voxel_ml, voxels) for name, voxels in seen.items()},
        midline_shift_mm=shift_mm,
        ventricles_ml=fluid.ventricles_ml,
        hydrocephalus_ml=wider_ml,
        dementia_ml=lost_ml,
        mass_effect_mm=moved_mm,
        effaced_ml=effaced_ml,
    )


def _seen(taken: Taken, name: str, least_hu: float) -> np.ndarray:
    """Voxels in which a finding shows, bool (slices, rows, cols)."""
    changed = _wide(taken.changed_hu[name])
    if name == "sah":  # fluid that only turns as grey as brain is not seen as blood
        return (changed >= least_hu) & _denser_than_brain(taken.scan)
    voxels: np.ndarray = np.abs(changed, out=changed) >= least_hu
    return voxels


def _denser_than_brain(scan: Scan) -> np.ndarray:
    """Voxels (slices, rows, cols) that stand out bright from brain, and are not bone."""
    soft = _brain_values(scan)
    if not soft.size:
        return np.zeros(scan.hu.shape, dtype=bool)
    sigma = BLUR_MM / scan.pixel_mm[0]
    smooth = gaussian_filter(np.minimum(scan.hu, BONY_HU).astype(np.float32), (0, sigma, sigma))
    bright: np.ndarray = (smooth >= np.median(soft) + DENSER_HU) & (smooth < BONY_HU - 20)
    return bright


def _brain_values(scan: Scan) -> np.ndarray:
    """HU of brain: within the bone and not near it, in slices whose bone is closed; else of all soft tissue."""
    every = max(1, round(READ_MM / scan.pixel_mm[0]))
    hu = scan.hu[:, ::every, ::every]
    reach = max(1, round(NEAR_BONE_MM / (every * scan.pixel_mm[0])))
    soft = (hu > 10) & (hu < 60)
    bone = binary_closing(hu > BONE_HU, IN_PLANE, iterations=reach)
    parts, count = label(~bone, IN_PLANE)
    outside = np.zeros(count + 1, dtype=bool)  # parts that reach the edge of a slice; part 0 is bone, near to itself
    for edge in (parts[:, 0], parts[:, -1], parts[:, :, 0], parts[:, :, -1]):
        outside[edge] = True
    within = ~(outside[parts] | binary_dilation(bone, IN_PLANE, iterations=reach))
    values: np.ndarray = hu[within & soft]
    return values if len(values) > len(hu) else hu[soft]


def _enough(rule: Visible, changed_hu: np.ndarray, ml: float) -> bool:
    """Whether voxels that changed by so much, and fill so many ml, are enough to be seen."""
    return ml >= rule.ml and float(np.abs(changed_hu).mean(dtype=np.float64)) * ml**0.5 >= rule.evidence


def _oedema_shows(taken: Taken, noise_hu: float, voxel_ml: np.ndarray) -> bool:
    """Whether the oedema around a tumour is seen by itself: by it a tumour as grey as brain is found."""
    if TUMOR_OEDEMA not in taken.changed_hu:
        return False
    rule = VISIBLE["edema"]
    seen = _seen(taken, TUMOR_OEDEMA, max(rule.hu, NOISE_FACTOR * noise_hu))
    return _enough(rule, taken.changed_hu[TUMOR_OEDEMA][seen], _total_ml(seen, voxel_ml))


def voxel_volumes_ml(scan: Scan) -> np.ndarray:
    """(slices, 1, 1): each slice stands for the space half-way to its neighbours."""
    along = scan.origins_mm @ scan.normal
    gaps = np.abs(np.gradient(along)) if len(along) > 1 else np.array([scan.thickness_mm])
    row_mm, col_mm = scan.pixel_mm
    volumes: np.ndarray = (gaps * row_mm * col_mm / 1000).astype(np.float32)[:, None, None]
    return volumes


def _wide(values: np.ndarray) -> np.ndarray:
    """A copy in single precision; NumPy is slow with half precision."""
    return torch.from_numpy(values).to(torch.float32, copy=True).numpy()


def _total_ml(shares: np.ndarray, voxel_ml: np.ndarray, where: np.ndarray | None = None) -> float:
    """How much shares of voxels make up, of all or `where` it is true."""
    wide = _wide(shares)
    if where is not None:
        wide *= where
    return float((wide.sum(axis=(1, 2), dtype=np.float64) * voxel_ml[:, 0, 0]).sum())


def _displacements(patient: Patient) -> tuple[float, float]:
    """How far the septum, and how far any of the brain outside of balls as large as the masses, has moved in mm."""
    moved, coarse = patient.displaced_mm, patient.coarse
    x, y, z = coarse.template_mm.T
    septum = (x.abs() < 8) & ((y - 8).abs() < 14) & ((z - 14).abs() < 9)
    shift = float(moved[septum, 0].mean().abs()) if bool(septum.any()) else 0.0
    tissue = coarse.depth_mm > 0
    for finding in patient.findings:
        if finding.name in MASSES:
            tissue = tissue & ~finding.fills(coarse)
    length = (moved**2).sum(dim=1).sqrt()[tissue]
    return shift, float(length.max()) if len(length) else 0.0


def _graded(value: float, between: tuple[float, float]) -> int | None:
    low, high = between
    return 1 if value >= high else 0 if value < low else None


def _any(labels: list[int | None]) -> int | None:
    return 1 if 1 in labels else None if None in labels else 0
