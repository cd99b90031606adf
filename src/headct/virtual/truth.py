"""What lies where: the class and the template point of any place of a scan, worked out rather than resampled."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from headct.virtual.acquisition import POINTS_AT_ONCE, TISSUES, Acquisition
from headct.virtual.bending import COARSE
from headct.virtual.interpolation import Grid
from headct.virtual.labels import mask_share
from headct.virtual.patient import Patient
from headct.virtual.places import one_thread, some, where

CLASSES = (*TISSUES, "edema", "infarct", "tumor", "iph", "ivh", "sah", "sdh", "edh", "fracture")
"""Values 1, 2, 3, … of a map of classes; a later one covers an earlier one. 0 is everything else."""

BEYOND_MM = 22.0
"""From the cavity; the vault's bone ends nearer. Only a fracture can lie farther off."""


@one_thread()
def truth_at(patient: Patient, visit: Acquisition, points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `CLASSES` lies at points (n, 3) of the scanner, uint8 (n,), and which template point, float32 (n, 3)."""
    head_mm = visit.to_head(torch.from_numpy(points_mm.astype(np.float32)))
    parts = [_painted(patient, part) for part in torch.split(head_mm, POINTS_AT_ONCE)]
    classes, template_mm = zip(*parts, strict=True)
    return np.concatenate(classes), np.concatenate(template_mm)


@one_thread()
def classes_at(patient: Patient, visit: Acquisition, points_mm: np.ndarray) -> np.ndarray:
    """As `truth_at`, the classes alone (n,): quicker, since only what lies near the braincase is painted."""
    head_mm = visit.to_head(torch.from_numpy(points_mm.astype(np.float32)))
    classes = np.zeros(len(head_mm), dtype=np.uint8)
    near = torch.arange(len(head_mm))
    if not any(finding.name == "fracture" for finding in patient.findings):
        cavity_mm = Grid(patient.coarse.cavity_mm.reshape(*COARSE.shape, 1).numpy(), *COARSE.corners)
        near = where(cavity_mm.sample(head_mm)[0] < BEYOND_MM)
    for part in torch.split(near, POINTS_AT_ONCE):
        classes[part.numpy()] = _painted(patient, some(head_mm, part))[0]
    return classes


def _painted(patient: Patient, head_mm: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Class (n,) and template point (n, 3) at points in head millimetres."""
    painted = patient.paint(head_mm, 1.0, tissues=True)
    shares = {name: change.share.numpy() for name, change in painted.changes.items()}
    return class_map(shares, (len(head_mm),)), painted.template_mm.numpy()


def class_map(shares: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """`CLASSES` (uint8) from how much of each voxel each of them fills."""
    classes = np.zeros(shape, dtype=np.uint8)
    for value, name in enumerate(CLASSES, start=1):
        if name in shares:
            classes[shares[name] >= mask_share(name)] = value
    return classes
