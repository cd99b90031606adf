"""What anything learned must beat: vectors of scans that no training made.

Each takes `Scans` (rows of prepared HU arrays, RAS) and gives a vector for each of them, (n, F) float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from headct import encoders
from headct.detection.method import Scans
from headct.embedding.machine import Machine
from headct.encoders import Encoder, Window, as_input
from headct.pretraining.step import kept_random

BATCH = 8
BINS, LOWEST_HU, HIGHEST_HU = 30, -20, 100
"""Of a histogram: what lies between fluid and fresh blood."""
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


def random_weights(
    architecture: str, settings: dict[str, object], windows: list[Window], scans: Scans, machine: Machine, seed: int = 0
) -> np.ndarray:
    """Vectors of an encoder that was never trained, its BatchNorms settled on some of the scans.

    Without the last its features would be those of a network that has seen nothing at all, and the baseline unfair.
    """
    with kept_random(str(machine.device)):
        torch.manual_seed(seed)
        encoder = encoders.build(architecture, **{"channels": len(windows), **settings}).to(machine.device)
        settle(encoder, windows, scans, machine)
        return seen_by(encoder, windows, scans, machine)


@torch.no_grad()
def settle(encoder: Encoder, windows: list[Window], scans: Scans, machine: Machine) -> None:
    """Set the statistics of BatchNorms to plain means over batches of the first `SETTLED_ON` scans."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = None
    encoder.train()
    for rows in _batches(min(len(scans), SETTLED_ON)):
        if len(rows) > 1:
            _features(encoder, windows, scans, rows, machine)
    encoder.eval()


@torch.inference_mode()
def seen_by(encoder: Encoder, windows: list[Window], scans: Scans, machine: Machine) -> np.ndarray:
    """Vectors of an encoder in memory."""
    encoder.eval()
    return np.concatenate([_features(encoder, windows, scans, rows, machine) for rows in _batches(len(scans))])


def _features(encoder: Encoder, windows: list[Window], scans: Scans, rows: np.ndarray, machine: Machine) -> np.ndarray:
    x = as_input(torch.from_numpy(np.ascontiguousarray(scans.arrays(rows))).to(machine.device), windows)
    with machine.arithmetic():
        vectors = encoder(x, torch.from_numpy(scans.spacing_mm(rows)).to(machine.device)).scan
    found: np.ndarray = vectors.float().cpu().numpy()
    return found


def _arrays(scans: Scans) -> Iterator[np.ndarray]:
    for row in range(len(scans)):
        yield scans.arrays(np.array([row]))[0]


def _batches(number: int) -> Iterator[np.ndarray]:
    for start in range(0, number, BATCH):
        yield np.arange(start, min(number, start + BATCH))
