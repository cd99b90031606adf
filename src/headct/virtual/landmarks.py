"""Named places of the template whose position is known in every virtual patient."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from headct.virtual.patient import Patient
from headct.virtual.solids import Vector

MIDLINE_MM: Mapping[str, Vector] = MappingProxyType(
    {
        "anterior-commissure": (0, 3, -4),
        "posterior-commissure": (0, -25, -2),
        "genu-of-corpus-callosum": (0, 28, 8),
        "splenium-of-corpus-callosum": (0, -38, 12),
        "septum-pellucidum": (0, 12, 13),
        "pineal-gland": (0, -30, 2),
        "optic-chiasm": (0, 4, -17),
        "pons": (0, -26, -33),
        "medulla": (0, -38, -54),
        "vermis": (0, -64, -26),
    }
)
"""Template mm, on the midline of the brain."""

PAIRED_MM: Mapping[str, Vector] = MappingProxyType(
    {
        "caudate-head": (13, 15, 8),
        "putamen": (27, 3, 2),
        "pallidum": (19, -4, -1),
        "thalamus": (12, -19, 7),
        "hippocampal-head": (26, -16, -20),
        "insula": (39, 3, 0),
        "hand-knob": (38, -25, 55),
        "frontal-pole": (22, 60, 4),
        "temporal-pole": (38, 14, -34),
        "occipital-pole": (18, -94, -2),
        "parietal-lobule": (28, -60, 48),
        "superior-frontal-gyrus": (14, 30, 50),
        "cerebellar-hemisphere": (28, -62, -40),
        "centrum-semiovale": (26, -20, 36),
    }
)
"""Template mm of the right one; the left is its mirror image."""

BONE_MM: Mapping[str, Vector] = MappingProxyType(
    {
        "nasion": (0, 86, -22),
        "vertex": (0, -18, 84),
        "dorsum-sellae": (0, -5.5, -27),
        "opisthion": (0, -61, -62),
        "right-labyrinth": (39, -26, -39),
        "left-labyrinth": (-39, -26, -39),
        "right-eye": (34, 70, -30),
        "left-eye": (-34, 70, -30),
        "right-pterion": (62, 20, 2),
        "left-pterion": (-62, 20, 2),
    }
)
"""Template mm of places in bone and face, which follow the head map."""


def brain_landmarks() -> Mapping[str, Vector]:
    """All landmarks of the brain: 10 on the midline and 14 on either side, template mm."""
    sides = {"right": 1, "left": -1}
    paired = {
        f"{side}-{name}": (sign * x, y, z) for name, (x, y, z) in PAIRED_MM.items() for side, sign in sides.items()
    }
    return {**MIDLINE_MM, **paired}


def head_landmarks_mm(patient: Patient) -> dict[str, np.ndarray]:
    """Where each landmark (3,) lies in this head, in head millimetres; without those that a finding has displaced
    beyond recognition.
    """
    found: dict[str, np.ndarray] = {}
    for names, brain in ((brain_landmarks(), True), (BONE_MM, False)):
        targets = np.array(list(names.values()), dtype=float)
        places, missed_mm = patient.bend.head_of(targets, brain=brain)
        found |= {name: place for name, place, miss in zip(names, places, missed_mm, strict=True) if miss < 1.0}
    return found
