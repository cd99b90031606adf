"""What anything learned must beat: vectors of scans that no training made.

Histograms and heights take `Scans` (rows of prepared HU arrays, RAS) and give a vector for each, (n, F) float32. Random
weights are an encoder like any other, which must see some training scans before its features mean anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import nn

from headct import encoders
from headct.checkpoints import PretrainedEncoder
from headct.checkpoints.card import NOT_STATED
from headct.detection.method import Scans
from headct.detection.training.network import parts
from headct.embedding.machine import Machine
from headct.encoders import Encoder, Window, as_input
from headct.encoders.settling import settling
from headct.pretraining.step import kept_random

BATCH = 8
BINS, LOWEST_HU, HIGHEST_HU = 30, -20, 100
"""Of a histogram: what lies between fluid and fresh blood."""
REGIONS = 3
"""Boxes along each axis, where histograms are to know what lies where."""
SETTLED_ON = 48
"""Scans by which the BatchNorms of random weights learn what features look like."""
SKIN_HU = -300
"""Denser than this is no air, padding or cushion."""
OF_A_SLICE = 0.01
"""A slice of which so much is head belongs to it."""


def histograms(scans: Scans, parts: int = 1) -> np.ndarray:
    """Shares of bins of HU in each of parts x parts x parts boxes of the grid, as square roots: (n, parts^3 * BINS).

    The root makes the differences of rare values count (Hellinger). It knows neither edges nor shapes, only how much of
    which density lies where, and passes most pre-training of some minutes.
    """
    rows = [_histogram(array, parts) for array in _arrays(scans)]
    return np.sqrt(rows).astype(np.float32)


def _histogram(array: np.ndarray, parts: int) -> np.ndarray:
    boxes = [
        box
        for slab in np.array_split(array, parts, axis=0)
        for bar in np.array_split(slab, parts, axis=1)
        for box in np.array_split(bar, parts, axis=2)
    ]
    return np.concatenate([np.histogram(box, BINS, (LOWEST_HU, HIGHEST_HU))[0] / box.size for box in boxes])


def heights(scans: Scans) -> np.ndarray:
    """How much of the head was scanned from top to bottom, in mm: (n, 1). It says who is tall and what was cut off."""
    counted = [((array > SKIN_HU).mean(axis=(0, 1)) > OF_A_SLICE).sum() for array in _arrays(scans)]
    slice_mm = scans.spacing_mm(np.arange(len(scans)))[:, 2]
    return (np.array(counted) * slice_mm)[:, None].astype(np.float32)


def random_encoder(
    like: PretrainedEncoder,
    scans: Scans,
    train: np.ndarray,
    machine: Machine,
    seed: int,
    architecture: str | None = None,
) -> PretrainedEncoder:
    """The architecture of `like`, or another by its name, with its windows and recipe and weights of the seed alone.

    BatchNorms, where it has some, take their statistics from the training rows and no others: with those of nothing it
    would be no fair baseline, with those of test scans no honest one. Its hash is that of its weights, so that its
    vectors are kept apart from all others. It is in evaluation mode.
    """
    windows = list(like.card.windows.values())
    own = asdict(like.settings) if architecture is None else {"channels": like.channels}
    with kept_random(str(machine.device)):
        torch.manual_seed(seed)
        new = encoders.build(architecture or like.architecture, **json.loads(json.dumps(own)))
    new.to(machine.device)
    settle(new, windows, scans, train, machine, together=BATCH if like.recipe.shape else 1)
    card = replace(like.card, objective={}, data=(), licence=NOT_STATED)
    return PretrainedEncoder(new, card, _sha256(new), source=f"random weights of seed {seed}").eval()


@torch.no_grad()
def settle(
    encoder: Encoder,
    windows: Sequence[Window],
    scans: Scans,
    train: np.ndarray,
    machine: Machine,
    together: int = BATCH,
) -> None:
    """Set the statistics of BatchNorms to plain means over batches of the first `SETTLED_ON` training rows.

    Arrays that differ in shape are looked at one by one (`together` 1). The encoder is left in evaluation mode.
    """
    with settling(encoder) as any_norms:
        for rows in parts(train[:SETTLED_ON], together) if any_norms else ():
            if len(rows) == together or len(rows) > 1:  # one scan that is left over has no statistics
                _features(encoder, windows, scans, rows, machine)


def _sha256(encoder: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def seen_by(encoder: Encoder, windows: Sequence[Window], scans: Scans, machine: Machine) -> np.ndarray:
    """Vectors (n, F) of an encoder in memory, which is left in evaluation mode."""
    encoder.eval()
    rows = np.arange(len(scans))
    return np.concatenate([_features(encoder, windows, scans, some, machine) for some in parts(rows, BATCH)])


def _features(
    encoder: Encoder, windows: Sequence[Window], scans: Scans, rows: np.ndarray, machine: Machine
) -> np.ndarray:
    x = as_input(torch.from_numpy(np.ascontiguousarray(scans.arrays(rows))).to(machine.device), list(windows))
    with machine.arithmetic():
        vectors = encoder(x, torch.from_numpy(scans.spacing_mm(rows)).to(machine.device)).scan
    found: np.ndarray = vectors.float().cpu().numpy()
    return found


def _arrays(scans: Scans) -> Iterator[np.ndarray]:
    for row in range(len(scans)):
        yield scans.arrays(np.array([row]))[0]
