"""Which slices an answer rests on: a slab of the scan is evened out, and the scan is judged again without it.

Evened out means: soft tissue of the slab becomes its own median, so that blood, infarcts and ventricles vanish in it,
and bone becomes the mean of the nearest slices outside the slab. What the score loses is the weight of the slab. It is
the same for frozen probes and trained networks, and costs one more look per slab. It is no proof: a slab that was
evened out is like no scan that was learned from, and a finding that shows in many slabs may lose little in each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from headct.detection import Detector
from headct.embedding.machine import Machine
from headct.reporting.result_pictures import Shown
from headct.tasks.explanation.evening import HEAD_HU, evened_slab
from headct.tasks.explanation.judging import judged

SLAB_MM = 10.0
"""How thick the slabs are; one without any of the head is not looked at."""
SHOWN = 3
LEAST_SHARE = 0.1
"""A slab that weighs less is not shown."""
BATCH = 8


def driving_slices(
    detector: Detector, array: np.ndarray, spacing_mm: Sequence[float], machine: Machine
) -> Mapping[str, list[Shown]]:
    """For each finding the middle slices of the slabs that its score rests on most, from below to above.

    `array` (X, Y, Z) HU, RAS. The weight of a slab is its share of all falls of the score; none is given where no slab
    lowers it. `detector` is one that is `on(machine)`.
    """
    slabs = list(_slabs(array, float(spacing_mm[2])))
    if not slabs:
        return {finding: [] for finding in detector.findings}
    given = [array, *(evened_slab(array, slab) for slab in slabs)]
    scores = np.concatenate(
        [judged(detector, given[start : start + BATCH], spacing_mm, machine) for start in range(0, len(given), BATCH)]
    )
    falls = np.clip(scores[:1] - scores[1:], 0, None)  # (slabs, f)
    return {finding: _heaviest(slabs, falls[:, column]) for column, finding in enumerate(detector.findings)}


def _heaviest(slabs: Sequence[slice], falls: np.ndarray) -> list[Shown]:
    total = float(falls.sum())
    if total <= 0:
        return []
    shares = falls / total
    chosen = [index for index in np.argsort(-shares, kind="stable")[:SHOWN] if shares[index] >= LEAST_SHARE]
    return [
        Shown(index=(slabs[index].start + slabs[index].stop - 1) // 2, weight=float(shares[index]))
        for index in sorted(chosen)
    ]


def _slabs(array: np.ndarray, slice_mm: float) -> Iterator[slice]:
    """Slabs of about `SLAB_MM` that hold some of the head."""
    thick = max(1, round(SLAB_MM / slice_mm))
    for start in range(0, array.shape[2], thick):
        slab = slice(start, min(start + thick, array.shape[2]))
        if (array[:, :, slab] > HEAD_HU).any():
            yield slab
