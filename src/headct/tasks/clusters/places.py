"""Vectors of places inside heads, and how well they know where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import uniform_filter
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.cohort.identities import is_virtual
from headct.detection.method import Progress, quiet
from headct.embedding.machine import Machine
from headct.evaluation.intervals import Estimate, Patients, mean_of
from headct.failure import Misuse

ABOVE_AIR_HU = -300
INSIDE = 0.5
"""A place is in the head where so much of its cell is denser than air."""
RIDGE = 10.0
FOLDS = 5
MASKS = "masks"
"""In a virtual cohort, the folder of maps of classes."""
OTHER = "other"
"""What no class of such a map is."""


@dataclass(frozen=True)
class Places:
    """Vectors (t, W) of places, where they lie from the middle of the array in RAS mm, (t, 3), and whose they are.

    `scans` are the positions, in the list that was asked for, of the scans that each is from. `air` says whether
    places in air were left out; arrays that are not HU do not tell. `anatomy` (t,) names what fills most of each cell,
    of scans of which that is known; "" for others.
    """

    vectors: np.ndarray
    positions_mm: np.ndarray
    scans: np.ndarray
    air_left_out: bool
    anatomy: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)


def places_of(
    given: Sequence[tuple[Cohort, str]],
    encoder: PretrainedEncoder,
    machine: Machine,
    *,
    each: int = 60,
    seed: int = 0,
    progress: Progress = quiet,
) -> Places:
    """At most `each` places of every scan, drawn among those in the head. Raises Misuse where there is none."""
    rng = np.random.default_rng(seed)
    encoder = encoder.eval().to(machine.device)
    vectors, positions, scans, anatomy = [], [], [], []
    for number, (cohort, scan_id) in enumerate(given):
        array, affine = cohort.array(scan_id), cohort.affine(scan_id)
        tokens = _tokens(encoder, array, affine, machine)
        voxels = _voxels(encoder, array.shape[-3:], len(tokens))
        inside = np.arange(len(tokens))
        if encoder.recipe.in_hu:
            inside = np.flatnonzero(_share_above_air(array, encoder, voxels) >= INSIDE)
        drawn = np.sort(rng.permutation(inside)[:each])
        middle = (np.array(array.shape[-3:]) - 1) / 2
        vectors.append(tokens[drawn])
        positions.append((voxels[drawn] - middle) @ affine[:3, :3].T)
        scans.append(np.full(len(drawn), number))
        anatomy.append(_anatomy(cohort, scan_id, encoder, voxels[drawn]))
        progress(number + 1, len(given))
    found = Places(
        np.concatenate(vectors),
        np.concatenate(positions),
        np.concatenate(scans),
        encoder.recipe.in_hu,
        np.concatenate(anatomy),
    )
    if not len(found):
        raise Misuse("no place of these scans lies in a head", do="look at them: headct qc COHORT --out PAGE.html")
    return found


def _tokens(encoder: PretrainedEncoder, array: np.ndarray, affine: np.ndarray, machine: Machine) -> np.ndarray:
    spacing_mm = torch.from_numpy(np.linalg.norm(affine[:3, :3], axis=0)[None].astype(np.float32))
    with torch.inference_mode(), machine.arithmetic():
        features = encoder.see(torch.from_numpy(array[None]).to(machine.device), spacing_mm.to(machine.device))
    tokens: np.ndarray = features.tokens[0].float().cpu().numpy()
    return tokens


def _voxels(encoder: PretrainedEncoder, shape: tuple[int, ...], number: int) -> np.ndarray:
    """Where each token lies, (N, 3), in voxels of the array."""
    x, y, z = shape
    lattice = encoder.lattice((x, y, z))
    sizes = [
        round((length - 1 - first) // step) + 1
        for length, first, step in zip(shape, lattice.first, lattice.step, strict=True)
    ]
    assert int(np.prod(sizes)) == number, f"a lattice of {sizes} has not {number} tokens"
    grid = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), axis=-1).reshape(-1, 3)
    return np.array(lattice.first) + grid * np.array(lattice.step)


def _cell(encoder: PretrainedEncoder, shape: tuple[int, ...]) -> np.ndarray:
    """Voxels of the cell around each place, (3,)."""
    x, y, z = shape
    return np.maximum(1, np.round(encoder.lattice((x, y, z)).step)).astype(int)


def _anatomy(cohort: Cohort, scan_id: str, encoder: PretrainedEncoder, voxels: np.ndarray) -> np.ndarray:
    """What fills most of the cell around each place (N, 3), in words, (N,); "" where a cohort does not know.

    Known are the maps of classes that `headct simulate --masks` lays beside virtual patients, on their prepared grid.
    """
    place = cohort.path / MASKS / f"{scan_id}.nii.gz"
    if not is_virtual(cohort) or not place.is_file():
        return np.full(len(voxels), "", dtype=object)
    image: Any = nibabel.load(place)
    classes = np.asanyarray(image.dataobj)
    table = pd.read_csv(cohort.path / MASKS / "classes.csv")
    names = {0: OTHER, **dict(zip(table["value"].tolist(), table["name"].tolist(), strict=True))}
    size = _cell(encoder, classes.shape)
    begins = np.round(voxels - (size - 1) / 2).astype(int)
    cells = (
        classes[tuple(slice(low, high) for low, high in zip(np.maximum(begin, 0), begin + size, strict=True))]
        for begin in begins
    )
    return np.array([names[int(np.bincount(cell.ravel()).argmax())] for cell in cells], dtype=object)


def _share_above_air(array: np.ndarray, encoder: PretrainedEncoder, voxels: np.ndarray) -> np.ndarray:
    """Of the cell around each place the part that is denser than air, (N,)."""
    size = _cell(encoder, array.shape)
    share = uniform_filter((array > ABOVE_AIR_HU).astype(np.float32), tuple(size.tolist()), mode="nearest")
    at = np.clip(np.round(voxels).astype(int), 0, np.array(array.shape) - 1)
    return np.asarray(share[tuple(at.T)])


@dataclass(frozen=True)
class Whereabouts:
    """How far off a straight line from features to millimetres ends, beside naming the middle of all places."""

    error_mm: Estimate
    middle_mm: Estimate


def whereabouts(places: Places, patients: np.ndarray) -> Whereabouts:
    """By ridge regression on places of patients that it has not seen; `patients` (t,) of each place.

    Raises Misuse where there are fewer than five patients.
    """
    number = len(np.unique(patients))
    if number < FOLDS:
        raise Misuse(f"too few patients to learn where places are: {number}", why=f"it takes {FOLDS}")
    error, middle = np.empty(len(places)), np.empty(len(places))
    for train, test in GroupKFold(FOLDS).split(places.vectors, groups=patients):
        model = make_pipeline(StandardScaler(), Ridge(RIDGE)).fit(
            places.vectors[train].astype(np.float64), places.positions_mm[train]
        )
        guess = model.predict(places.vectors[test].astype(np.float64))
        error[test] = np.linalg.norm(guess - places.positions_mm[test], axis=1)
        middle[test] = np.linalg.norm(places.positions_mm[train].mean(axis=0) - places.positions_mm[test], axis=1)
    counted = Patients.of(patients)
    return Whereabouts(mean_of(error, counted, positives=0, log=True), mean_of(middle, counted, positives=0, log=True))
