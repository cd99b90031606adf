"""Where slices lie: normals, positions along them, gaps, tilt, and what a stack may lack and still be a volume.

Only positions and orientations count. Slice Thickness, Spacing Between Slices, Slice Location, Gantry/Detector Tilt
and Instance Number are wrong or differently signed too often; thickness is used for one thing, to tell slices that
are missing from slices that were never meant to be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from headct.reading.faults import Fault


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What still counts as the same, and how much may be missing. The one place where these thresholds stand."""

    # the same place
    orientation_deg: float = 0.3  # between the directions of slices of one volume
    pixel_share: float = 0.002  # between their pixel sizes
    position_mm: float = 0.02  # two slices this near along the normal share a position,
    position_share: float = 0.05  # or this near as a share of the wider gaps, whichever is more
    pairs: int = 3  # so many pairs of slices, each as far apart as the others,
    paired_share: float = 0.2  # at more than this share of the gaps, are two passes of which each pair is a position
    # the same gap
    uneven_mm: float = 0.1  # a gap further from the median than this makes a volume uneven
    thickness_share: float = 0.1  # thicknesses that differ more are different
    tilt_deg: float = 0.5
    aside_mm: float = 10.0  # a slice that alone leaves the line of its neighbours by more is not where it says
    # missing slices
    wide: float = 1.5  # a gap this many times as wide as expected lacks a slice
    neighbours: int = 5  # gaps around a gap, itself included, whose median is expected of it
    beside: int = 3  # gaps on either side of a gap, among which a narrower one shows that it could be narrow,
    meant: float = 0.3  # unless it is so narrow, as a share of that median, that a slice too many made it
    unseen_mm: float = 7.5  # tissue that one gap may leave unseen: one slice of the usual 5 mm, not two
    missing_share: float = 0.25  # of all slices, over all gaps
    gap_mm: float = 20.0  # beyond it no interpolation is honest, whatever the spacing


LIMITS = Limits()


def normal(row_step_mm: Sequence[float], col_step_mm: Sequence[float]) -> np.ndarray:
    """Unit vector (3,) across a slice, turned so that its largest component is positive (axial: to superior)."""
    across = np.cross(np.asarray(row_step_mm, dtype=float), np.asarray(col_step_mm, dtype=float))
    across = across / np.linalg.norm(across)
    return across if across[np.argmax(np.abs(across))] > 0 else -across


def same_frame(one: Sequence[float], other: Sequence[float], limits: Limits = LIMITS) -> bool:
    """True where two step vectors agree in direction and length, so that slices can share a grid."""
    if tuple(one) == tuple(other):
        return True
    a, b = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    length_a, length_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if abs(length_a - length_b) > limits.pixel_share * min(length_a, length_b):
        return False
    angle_rad = np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)
    return bool(np.degrees(angle_rad) <= limits.orientation_deg)


def same_position_mm(along_mm: np.ndarray, limits: Limits = LIMITS) -> float:
    """How near along the normal two of these slices (n,) must lie to share a position.

    The wider half of the gaps tells what is typical: those between slices and their repetitions are the narrow ones.
    """
    gaps_mm = np.diff(np.sort(along_mm))
    gaps_mm = gaps_mm[gaps_mm > limits.position_mm]
    if not len(gaps_mm):
        return limits.position_mm
    typical_mm = float(np.median(np.sort(gaps_mm)[len(gaps_mm) // 2 :]))
    return max(limits.position_mm, limits.position_share * typical_mm, _pair_mm(gaps_mm, limits))


def _pair_mm(gaps_mm: np.ndarray, limits: Limits) -> float:
    """How far apart the slices of a pair lie, where two passes of one spacing give pairs all over the stack; else 0."""
    around_mm = np.minimum(np.r_[np.inf, gaps_mm[:-1]], np.r_[gaps_mm[1:], np.inf])
    paired_mm = gaps_mm[(gaps_mm < around_mm / 2) & np.isfinite(around_mm)]
    if len(paired_mm) < limits.pairs or len(paired_mm) <= limits.paired_share * len(gaps_mm):
        return 0.0
    alike = np.ptp(paired_mm) <= limits.uneven_mm
    return float(paired_mm.max()) + limits.position_mm if alike else 0.0


def place_numbers(along_mm: np.ndarray, limits: Limits = LIMITS) -> np.ndarray:
    """For each slice (n,) the number, from 0 upwards, of the position that it shares with none or some others."""
    order = np.argsort(along_mm, kind="stable")
    steps = np.diff(along_mm[order]) > same_position_mm(along_mm, limits)
    numbers = np.empty(len(along_mm), dtype=np.int64)
    numbers[order] = np.concatenate([[0], np.cumsum(steps)])
    return numbers


def missing_slices(
    gaps_mm: np.ndarray, thicknesses_mm: np.ndarray, limits: Limits = LIMITS
) -> tuple[np.ndarray, np.ndarray]:
    """For each gap (n - 1,) how many slices are missing in it, and the tissue in mm that nobody saw.

    `thicknesses_mm` (n,) has NaN where unknown. A gap is expected to be like its neighbours, and no wider than one that
    lies near it on either side: stacks of different spacing lack nothing, one without every third slice does. It is
    also expected to be as wide as the slices on its sides would have it: slices of 4 mm every 4 mm followed by 7 mm
    every 7 mm lack nothing either, however short one of the stacks is. Where slices are as thick as a gap is wide, all
    tissue was seen and nothing is missing.
    """
    expected_mm = _local_median(gaps_mm, limits.neighbours)
    meant_mm = np.where(gaps_mm < limits.meant * expected_mm, np.inf, gaps_mm)
    expected_mm = np.minimum(expected_mm, _narrowest_beside(meant_mm, limits.beside))
    beside_mm = (thicknesses_mm[:-1] + thicknesses_mm[1:]) / 2
    if len(gaps_mm) and np.all(np.isfinite(beside_mm)):
        ratios = np.sort(gaps_mm / beside_mm)  # 1: contiguous; less: overlapping; more: tissue between them is skipped
        usual = ratios[(len(ratios) - 1) // 4]  # most gaps may be holes; a quarter that is as meant tells
        expected_mm = np.maximum(expected_mm, usual * beside_mm)
    covered = gaps_mm <= (1 + limits.thickness_share) * beside_mm  # False where unknown
    wide = (gaps_mm >= limits.wide * expected_mm) & ~covered
    missing = np.where(wide, np.maximum(np.rint(gaps_mm / expected_mm) - 1, 1), 0).astype(np.int64)
    return missing, np.where(wide, gaps_mm - expected_mm, 0.0)


def _local_median(gaps_mm: np.ndarray, window: int) -> np.ndarray:
    """The lower median of the gaps around each gap; at the ends, of the outermost ones."""
    window = min(window, len(gaps_mm))
    if window == 0:
        return gaps_mm
    starts = np.clip(np.arange(len(gaps_mm)) - window // 2, 0, len(gaps_mm) - window)
    around = np.sort(gaps_mm[starts[:, None] + np.arange(window)], axis=1)
    return around[:, (window - 1) // 2]


def _narrowest_beside(gaps_mm: np.ndarray, reach: int) -> np.ndarray:
    """The narrowest of some gaps before each gap or of those after it, whichever is wider.

    The gaps at the ends have only the one beside them; a gap alone has itself.
    """
    if len(gaps_mm) < 2:
        return gaps_mm
    beyond = np.full(reach, np.inf)
    before = sliding_window_view(np.r_[beyond, gaps_mm[:-1]], reach).min(axis=1)
    after = sliding_window_view(np.r_[gaps_mm[1:], beyond], reach).min(axis=1)
    return np.r_[gaps_mm[1], np.maximum(before, after)[1:-1], gaps_mm[-2]]


def aside_mm(origins_mm: np.ndarray, across: np.ndarray) -> np.ndarray:
    """How far each slice (n,) lies beside the stack, within its plane, by the nearest of two neighbours on either side.

    Origins (n, 3) are ordered along the unit normal `across`. A stack shears at one rate, that of most of its gaps, but
    part of it may have been reconstructed around another centre: slices that move aside together are not beside it.
    0 for fewer than four slices, which cannot tell which of them is wrong.
    """
    slices = len(origins_mm)
    if slices < 4:
        return np.zeros(slices)
    upright_mm = origins_mm - (origins_mm @ across)[:, None] * (across + _shear(origins_mm, across))
    nearest_mm = np.full(slices, np.inf)
    for reach in (1, 2):
        apart_mm = np.linalg.norm(upright_mm[reach:] - upright_mm[:-reach], axis=1)
        nearest_mm[reach:] = np.minimum(nearest_mm[reach:], apart_mm)
        nearest_mm[:-reach] = np.minimum(nearest_mm[:-reach], apart_mm)
    return nearest_mm


def review(
    origins_mm: np.ndarray, across: np.ndarray, thicknesses_mm: np.ndarray, limits: Limits = LIMITS
) -> tuple[str, ...]:
    """Flags of a stack with origins (n, 3), ordered along the unit normal `across`, one slice at each position.

    Raises Fault (missing-slices) where a gap is too wide to bridge, or too many slices are missing in all.
    """
    along_mm = origins_mm @ across
    gaps_mm = np.diff(along_mm)
    flags = []
    if len(gaps_mm):
        missing, unseen_mm = missing_slices(gaps_mm, thicknesses_mm, limits)
        _check_missing(gaps_mm, missing, unseen_mm, limits)
        if missing.any():
            flags.append("gap-filled")
        if np.max(np.abs(gaps_mm - np.median(gaps_mm))) > limits.uneven_mm:
            flags.append("uneven")
        if tilt_deg(origins_mm, across) > limits.tilt_deg:
            flags.append("tilt")
        if skips_tissue(gaps_mm, thicknesses_mm, limits):
            flags.append("skipped-tissue")
    known_mm = thicknesses_mm[np.isfinite(thicknesses_mm)]
    if len(known_mm) and known_mm.max() > known_mm.min() * (1 + limits.thickness_share):
        flags.append("mixed-thickness")
    return tuple(sorted(flags))


def skips_tissue(gaps_mm: np.ndarray, thicknesses_mm: np.ndarray, limits: Limits = LIMITS) -> bool:
    """True where most gaps (n - 1,) are wider than slices are thick (n,), as old protocols had it; NaN is not known."""
    ratios = 2 * gaps_mm / (thicknesses_mm[:-1] + thicknesses_mm[1:])
    known = ratios[np.isfinite(ratios)]
    return bool(len(known) and np.median(known) >= limits.wide)


def _check_missing(gaps_mm: np.ndarray, missing: np.ndarray, unseen_mm: np.ndarray, limits: Limits) -> None:
    widest = int(np.argmax(gaps_mm))
    if gaps_mm[widest] > limits.gap_mm:
        raise Fault(
            "missing-slices",
            f"a gap of {gaps_mm[widest]:.1f} mm after slice {widest + 1} of {len(gaps_mm) + 1}; "
            f"up to {limits.gap_mm:g} mm can be bridged",
        )
    darkest = int(np.argmax(unseen_mm))
    if unseen_mm[darkest] > limits.unseen_mm:
        raise Fault(
            "missing-slices",
            f"{missing[darkest]} missing after slice {darkest + 1} of {len(gaps_mm) + 1}: "
            f"{unseen_mm[darkest]:.1f} mm of tissue unseen, up to {limits.unseen_mm:g} mm can be bridged",
        )
    share = missing.sum() / (missing.sum() + len(gaps_mm) + 1)
    if share > limits.missing_share:
        raise Fault(
            "missing-slices", f"{missing.sum()} slices are missing, {100 * share:.0f} % of the whole, in several gaps"
        )


def tilt_deg(origins_mm: np.ndarray, across: np.ndarray) -> float:
    """Angle between the normal and the line along which slices follow each other; 0 for one slice.

    That of most gaps: part of a stack may have been reconstructed around another centre.
    Gantry/Detector Tilt (0018,1120) is not asked: vendors disagree about its sign, and many leave it out.
    """
    if len(origins_mm) < 2:
        return 0.0
    return float(np.degrees(np.arctan(np.linalg.norm(_shear(origins_mm, across)))))


def _shear(origins_mm: np.ndarray, across: np.ndarray) -> np.ndarray:
    """How far (3,) slices move within their plane for each mm along the normal, in most gaps."""
    along_mm = origins_mm @ across
    within_mm = origins_mm - along_mm[:, None] * across
    shear: np.ndarray = np.median(np.diff(within_mm, axis=0) / np.diff(along_mm)[:, None], axis=0)
    return shear
