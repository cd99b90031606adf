"""Whether a map tells the truth about its detector, and, where that is known, whether it lies on the lesion.

These are two questions. Deletion and insertion (Petsiuk et al., arXiv 1806.07421) ask the detector: evened out in the
order of a faithful map, the head loses its score sooner than in a random order, and put back into the evened-out head
it returns sooner. Both must be: an order that harms texture as such, by being rougher than the random ones, lowers both
curves, and what it wins by the first it loses by the second. Pointing game and overlap ask the mask: a map may be true
to a detector that looks elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from headct.tasks.explanation.judging import Judge

SHARES = (0.0, 0.02, 0.05, 0.12, 0.3, 0.6, 1.0)
"""Of the voxels that can change, how many are evened out, or put back; most findings fill a few per cent. Each
costs two looks for every order."""
LOOKS_OF_AN_ORDER = 2 * (len(SHARES) - 2)
"""The head and the evened-out one are the same for all orders."""
ROUGH_MM = 12.0
"""Sigma of the noise by which random orders are made: single voxels here and there would be noise to an encoder, while
maps are of places."""
NEAR_MM = 5.0
"""A peak this near to the lesion is a hit, as half a cell of a map is about as wide."""


@dataclass(frozen=True)
class Curves:
    """Logits (f, len(SHARES)) when the first of an order are evened out, and when they alone are not."""

    deletion: np.ndarray
    insertion: np.ndarray

    @property
    def areas(self) -> tuple[np.ndarray, np.ndarray]:
        """Under deletion, better if small, and insertion, better if large: mean logits (f,) over the shares."""
        deletion, insertion = (np.trapezoid(one, SHARES, axis=1) for one in (self.deletion, self.insertion))
        return deletion, insertion


def curves(judge: Judge, hu: np.ndarray, even: np.ndarray, order: np.ndarray, ends: np.ndarray) -> Curves:
    """The head `hu` (X, Y, Z) by an order of flat voxels (n,), those that matter most first.

    `ends` (2, f) are the logits of the head and of the evened-out one, which every order has in common.
    """
    scores = judge(_steps(hu, even, order))
    between = len(SHARES) - 2
    whole, none = ends[:1], ends[1:]
    return Curves(
        deletion=np.concatenate([whole, scores[:between], none]).T,
        insertion=np.concatenate([none, scores[between:], whole]).T,
    )


def _steps(hu: np.ndarray, even: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
    for before, after in ((hu, even), (even, hu)):
        for share in SHARES[1:-1]:
            changed = before.copy()
            first = order[: round(share * len(order))]
            changed.reshape(-1)[first] = after.reshape(-1)[first]
            yield changed


def order_of(values: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """The flat voxels of `domain` (X, Y, Z) bool, highest value first; equal ones as they lie."""
    places = np.flatnonzero(domain)
    return places[np.argsort(-values.reshape(-1)[places], kind="stable")]


def random_orders(domain: np.ndarray, spacing_mm: Sequence[float], number: int, seed: int) -> Iterator[np.ndarray]:
    """Orders of the flat voxels of `domain` by smooth noise, as rough as maps are."""
    rng = np.random.default_rng(seed)
    sigma = [ROUGH_MM / float(mm) for mm in spacing_mm]
    for _ in range(number):
        yield order_of(gaussian_filter(rng.normal(size=domain.shape).astype(np.float32), sigma), domain)


@dataclass(frozen=True, kw_only=True)
class Faith:
    """One map and one finding: areas under the curves, beside those of random orders.

    `fall` is what the score of the scan is above that of the evened-out head: without any there is nothing to explain.
    """

    fall: float
    deletion: float
    insertion: float
    random_deletion: np.ndarray  # (r,)
    random_insertion: np.ndarray  # (r,)

    @property
    def deletion_p(self) -> float:
        """How likely a random order would delete as fast: a rank among them."""
        return float((1 + (self.random_deletion <= self.deletion).sum()) / (1 + len(self.random_deletion)))

    @property
    def insertion_p(self) -> float:
        """How likely a random order would bring the score back as fast."""
        return float((1 + (self.random_insertion >= self.insertion).sum()) / (1 + len(self.random_insertion)))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a map lies against a mask of the lesion; every number beside what a map without sense would have."""

    hit: bool  # the peak lies in the lesion, or within NEAR_MM of it
    hit_by_chance: float  # share of the voxels that would be a hit
    overlap: float  # Dice of the mask and as many of the highest voxels
    overlap_by_chance: float  # share of the lesion among the voxels
    voxels: int  # of the lesion


def place_of(
    values: np.ndarray, peak: Sequence[int], mask: np.ndarray, domain: np.ndarray, spacing_mm: Sequence[float]
) -> Place:
    """A map (X, Y, Z) against a mask (X, Y, Z) bool, within `domain`, which holds some of the mask."""
    inside = mask & domain
    near = distance_transform_edt(~inside, sampling=[float(mm) for mm in spacing_mm]) <= NEAR_MM
    size = int(inside.sum())
    highest = order_of(values, domain)[:size]
    return Place(
        hit=bool(near[tuple(peak)]),
        hit_by_chance=float((near & domain).sum() / domain.sum()),
        overlap=float(inside.reshape(-1)[highest].mean()),
        overlap_by_chance=float(size / domain.sum()),
        voxels=size,
    )
