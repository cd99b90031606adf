"""Occlusion: box after box is hidden, and what the answer loses is the weight of the box (Zeiler, arXiv 1311.2901).

CT-FM's figures hide a box by fading it to 0, which in its scaled values is air: such a map is of dense tissue before it
is of anything else. Ours fades it to the evened-out head, and the published ways are kept to be compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, product

import numpy as np

from headct.failure import Misuse
from headct.pretraining.published import smoothing
from headct.tasks.explanation.judging import Judge

KINDS = ("gaussian", "mean_img", "mean_patch")
LEAST_WEIGHT = 1e-3
"""Of a voxel at a corner of its box."""


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Which boxes are hidden, and how; lengths in voxels.

    `gaussian` fades from the box's border to a ground in its middle; the other two are MONAI's modes of that name:
    `mean_img` puts in the mean of the image, `mean_patch` multiplies by the mean of the box (which is not its mean).
    """

    edge: tuple[int, int, int]
    overlap: float = 0.25  # share of an edge that neighbouring boxes have in common; CT-FM's
    kind: str = "gaussian"

    def __post_init__(self) -> None:
        if min(self.edge) < 1:
            raise Misuse(f"boxes must have edges of at least 1 voxel, got {self.edge}")
        if not 0 <= self.overlap < 1:
            raise Misuse(f"the overlap must be a share from 0 to below 1, got {self.overlap:g}")
        if self.kind not in KINDS:
            raise Misuse(f"there is no way to hide called {self.kind!r}", do=f"name one of {', '.join(KINDS)}")

    def begins(self, shape: Sequence[int]) -> list[tuple[int, int, int]]:
        """First voxels of boxes that cover (X, Y, Z) voxels; the last along each axis ends with the volume."""
        axes = [_along(n, edge, self.overlap) for n, edge in zip(shape, self.edge, strict=True)]
        return [(x, y, z) for x, y, z in product(*axes)]

    def that_hide(self, hu: np.ndarray, even: np.ndarray) -> list[tuple[int, int, int]]:
        """Those of them in which the head `hu` (X, Y, Z) and the evened-out one differ."""
        differ = hu != even
        return [begin for begin in self.begins(hu.shape) if differ[inside(begin, self.edge)].any()]

    def kept(self) -> np.ndarray:
        """How much of what is there each voxel of a box keeps: 0 in the middle, 1 at the farthest corner, `edge`."""
        middle = np.ones(())
        for edge in self.edge:
            middle = np.multiply.outer(middle, smoothing(0.25 * edge, edge)[:, edge // 2])
        return (middle.max() - middle) / np.ptp(middle) if np.ptp(middle) else np.zeros(self.edge)

    def weights(self) -> np.ndarray:
        """How much a box counts at each of its voxels where boxes overlap, `edge`: most in its middle if it fades."""
        if self.kind != "gaussian":
            return np.ones(self.edge)
        weight = np.ones(())
        for edge in self.edge:
            offsets = np.arange(edge) - (edge - 1) / 2
            weight = np.multiply.outer(weight, np.exp(-(offsets**2) / (2 * (0.125 * edge) ** 2)))
        return np.maximum(weight, LEAST_WEIGHT)


def _along(size: int, edge: int, overlap: float) -> list[int]:
    if edge > size:
        raise Misuse(f"a box of {edge} voxels does not fit into {size}", do="choose smaller boxes")
    step = max(1, int(edge * (1 - overlap)))
    return [*range(0, size - edge, step), size - edge]


def hidden(array: np.ndarray, ground: np.ndarray | float, begin: Sequence[int], boxes: Boxes) -> np.ndarray:
    """A copy of the array (X, Y, Z) float32 with the box at `begin` hidden; it fades to the ground, of the same shape.

    The published fading is that with the ground 0.
    """
    changed = array.astype(np.float32)
    place = inside(begin, boxes.edge)
    box = changed[place]
    if boxes.kind == "gaussian":
        under = ground[place] if isinstance(ground, np.ndarray) else ground
        changed[place] = under + (box - under) * boxes.kept()
    elif boxes.kind == "mean_img":
        changed[place] = array.mean()
    else:
        changed[place] = box * box.mean()
    return changed


def inside(begin: Sequence[int], edge: Sequence[int]) -> tuple[slice, ...]:
    """The voxels of a box."""
    return tuple(slice(first, first + length) for first, length in zip(begin, edge, strict=True))


def spread(outputs: np.ndarray, begins: Sequence[Sequence[int]], boxes: Boxes, shape: Sequence[int]) -> np.ndarray:
    """What a network said (n, K) when each box was hidden, as maps (K, X, Y, Z): weighted means where boxes overlap."""
    weight = boxes.weights()
    total, weights = np.zeros((outputs.shape[1], *shape)), np.zeros(tuple(shape))
    for said, begin in zip(outputs, begins, strict=True):
        place = inside(begin, boxes.edge)
        total[(slice(None), *place)] += said[:, None, None, None] * weight
        weights[place] += weight
    return total / weights


def losses(judge: Judge, hu: np.ndarray, even: np.ndarray, begins: Sequence[Sequence[int]], boxes: Boxes) -> np.ndarray:
    """How much of its score each finding loses when one of the boxes at `begins` is evened out, (n, f)."""
    ground = even.astype(np.float32)
    scores = judge(chain([hu.astype(np.float32)], (hidden(hu, ground, begin, boxes) for begin in begins)))
    return np.asarray(scores[0] - scores[1:])


def occlusion(judge: Judge, hu: np.ndarray, even: np.ndarray, boxes: Boxes) -> np.ndarray:
    """How much of its score each finding loses where the head `hu` (X, Y, Z) is evened out, (f, X, Y, Z) float32.

    `even` is the evened-out head. Boxes in which both are alike, as in air, are not looked at: they lose nothing.
    """
    begins, looked = boxes.begins(hu.shape), boxes.that_hide(hu, even)
    lost = dict(zip(looked, losses(judge, hu, even, looked, boxes), strict=True))
    nothing = np.zeros(len(judge.detector.findings))
    every = np.stack([lost.get(begin, nothing) for begin in begins])
    return spread(every, begins, boxes, hu.shape).astype(np.float32)
