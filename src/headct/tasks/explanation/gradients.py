"""Integrated gradients: what each voxel adds to the score on the way from the evened-out head to the scan.

(Sundararajan et al., arXiv 1703.01365.) Twenty lines, because the library that has them brings a plotting library
along; it is the oracle of the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from headct.detection import Detector
from headct.embedding.machine import Machine
from headct.encoders import as_input
from headct.tasks.explanation.judging import differentiable


@dataclass(frozen=True)
class Gradients:
    """What voxels add to the scores: `maps` (f, X, Y, Z) float32, smoothed; `gaps` (f,) is what the sum misses.

    A gap is a share of the difference that the sum ought to be: 0.02 is two per cent.
    """

    maps: np.ndarray
    gaps: np.ndarray


def integrated_gradients(
    detector: Detector,
    hu: np.ndarray,
    even: np.ndarray,
    spacing_mm: np.ndarray,
    columns: Sequence[int],
    machine: Machine,
    *,
    steps: int,
    smooth_mm: float,
    stepped: Callable[[], None] = lambda: None,
) -> Gradients:
    """Of the findings `columns` of a detector, for the head `hu` (X, Y, Z) in HU, `even` being the evened-out one.

    The way is straight in the channels that the encoder is given, whose parts are summed up at each voxel. Gradients
    change from voxel to voxel, so the maps are smoothed by a Gaussian of `smooth_mm`. `stepped` is called after each
    gradient. Raises Unfit where the detector has no gradient.
    """
    network = differentiable(detector).eval().to(machine.device)
    windows = list(detector.encoder.card.windows.values())
    start, end = (as_input(torch.from_numpy(one[None]).to(machine.device), windows) for one in (even, hu))
    spacing = torch.from_numpy(np.asarray(spacing_mm, dtype=np.float32)[None]).to(machine.device)
    with torch.no_grad():
        ought = (network(end, spacing) - network(start, spacing))[0].double().cpu().numpy()
    maps, gaps = [], []
    for column in columns:
        added = along_the_way(network, start, end, spacing, column, steps, stepped)
        parts = added[0].sum(dim=0).double().cpu().numpy()
        gaps.append(abs(parts.sum() - ought[column]) / max(abs(ought[column]), 1e-9))
        maps.append(gaussian_filter(parts, [smooth_mm / float(mm) for mm in spacing_mm]).astype(np.float32))
    return Gradients(np.stack(maps), np.array(gaps))


def along_the_way(
    network: nn.Module,
    start: Tensor,
    end: Tensor,
    spacing: Tensor,
    column: int,
    steps: int,
    stepped: Callable[[], None] = lambda: None,
) -> Tensor:
    """What each value of `end` (1, C, X, Y, Z) adds to one output on the way from `start`, by the midpoint rule."""
    total = torch.zeros_like(end)
    for step in range(steps):
        x = (start + (step + 0.5) / steps * (end - start)).requires_grad_(True)
        with torch.enable_grad():
            score = network(x, spacing)[0, column]
            (gradient,) = torch.autograd.grad(score, x)
        total += gradient
        stepped()
    return total / steps * (end - start)
