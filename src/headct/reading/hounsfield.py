"""From stored values to Hounsfield units, and how to tell that values are none.

The scale is read off the volume itself: air lies at -1000 HU by definition, and the soft tissue of any patient piles
up between water and 110 HU. Where both are found, the header was right. Where both are found 1024 too high or too
low, the Rescale Intercept was left out or applied twice. Where neither is found, a sound CT header is believed and the
scan is flagged; a file without one is believed only where there is air at least. Then each slice is held against the
verdict on the whole: scale and sign stand in every file of a series, and may be wrong in one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from headct.scan import AIR_HU, Repair

INT16 = np.iinfo(np.int16)

FLOOR_HU = -1200
"""Below this no voxel is tissue or air: noise around -1000 seldom goes there, fills (-1500, -2000, -3024) always do."""

TISSUE_HU = (-900, 3071)
"""A padding value inside this range may be a tissue as well; it is believed only outside the circle of a scan."""

METAL_HU = 3071
"""The highest value of the usual 12 bits; beyond it, metal on an extended scale."""

INTERCEPT_HU = 1024
"""What scanners add to Hounsfield units so that they can be stored without a sign."""

CLIPPED_SHARE = 0.05
"""Share of voxels too high for int16 from which on a file without a CT header is on another scale: metal fills less."""

Scale = Literal["sound", "intercept-added", "intercept-removed", "unknown"]

_SHIFT_HU: Mapping[Scale, int] = MappingProxyType({"intercept-added": -INTERCEPT_HU, "intercept-removed": INTERCEPT_HU})


def rescale(stored: np.ndarray, slope: float, intercept: float, out: np.ndarray) -> bool:
    """Writes `slope * stored + intercept`, rounded, into int16 `out`; True where something had to be clipped."""
    low, high = int(stored.min()), int(stored.max())
    ends = (slope * low + intercept, slope * high + intercept)
    fits = INT16.min <= round(min(ends)) and round(max(ends)) <= INT16.max
    if slope == 1 and intercept == int(intercept):
        if fits and stored.dtype == np.int16 and INT16.min <= intercept <= INT16.max:
            np.add(stored, np.int16(intercept), out=out)
            return False
        exact = stored.astype(np.int64) + int(intercept)
        np.copyto(out, np.clip(exact, INT16.min, INT16.max), casting="unsafe")
        return not fits
    scaled = np.rint(stored * float(slope) + float(intercept))
    np.copyto(out, np.clip(scaled, INT16.min, INT16.max), casting="unsafe")
    return not fits


def to_hounsfield(
    values: np.ndarray,
    *,
    padding: Sequence[tuple[float, float]] = (),
    trusted: bool = False,
    scale: Scale | None = None,
) -> tuple[np.ndarray, tuple[Repair, ...], tuple[str, ...]] | str:
    """Values (slices, rows, cols) as Hounsfield units: int16, the repairs made, the flags; or why they are none.

    `values` have their file's own scaling applied. `padding` are closed ranges of values, on the same scale, that the
    file calls padding. `trusted` says that a CT header stands behind the values. `scale` is the verdict of
    `scale_of` where the caller has it already. An int16 array that can be written is changed in place.
    """
    hu, flags = _as_int16(values)
    if "not-a-number" in flags and np.isnan(values).all():
        return "no voxel holds a number"
    if "clipped" in flags and not trusted and (too_high := np.count_nonzero(hu == INT16.max) / hu.size) > CLIPPED_SHARE:
        return f"{100 * too_high:.0f} % of the voxels are above {INT16.max}"
    scale = scale or scale_of(hu)
    if scale == "unknown":
        sentence = why_not(hu, sample(hu), trusted=trusted)
        if sentence:
            return sentence
        flags.add("hu-unverified")
    repairs = []
    shift_hu = _SHIFT_HU.get(scale, 0)
    where = _padding_mask(hu, padding, shift_hu)
    if shift_hu:
        repairs.append(_shift(hu, scale, shift_hu))
        flags |= {scale} if repairs[0].where is None else {scale, "clipped"}
    if where is not None:
        repairs.append(_pad_with_air(hu, where))
        flags.add("padding")
    if hu.max() > METAL_HU:
        flags.add("metal")
    return hu, tuple(repairs), tuple(sorted(flags))


def _shift(hu: np.ndarray, flag: str, shift_hu: int) -> Repair:
    """Adds `shift_hu` in place. What would leave int16 at its upper end stays there, and is kept for undoing.

    At the lower end only padding does; it wraps, as it does again in Repair.undo.
    """
    highest = INT16.max - max(shift_hu, 0)
    over = hu > np.int16(highest)
    values = hu[over]
    hu += np.int16(shift_hu)
    if not len(values):
        return Repair(flag, shift_hu=shift_hu)
    hu[over] = INT16.max
    return Repair(flag, shift_hu=shift_hu, where=np.packbits(over), values=values)


def _as_int16(values: np.ndarray) -> tuple[np.ndarray, set[str]]:
    flags: set[str] = set()
    if values.dtype == np.int16 and values.dtype.isnative and values.flags.writeable and values.flags.c_contiguous:
        return values, flags
    hu = np.empty(values.shape, np.int16)
    for slice_values, slice_hu in zip(values, hu, strict=True):  # slice by slice, so that copies stay small
        clipped, holes = _slice_as_int16(slice_values, slice_hu)
        flags |= ({"clipped"} if clipped else set()) | ({"not-a-number"} if holes else set())
    return hu, flags


def _slice_as_int16(values: np.ndarray, out: np.ndarray) -> tuple[bool, bool]:
    """Writes rounded values into `out`; whether some were clipped, and whether some were no numbers (now air)."""
    holes = False
    if values.dtype.kind == "i" and values.dtype.itemsize <= 2:
        np.copyto(out, values)
        return False, False
    if values.dtype.kind == "f":
        missing = np.isnan(values)
        holes = bool(missing.any())
        values = np.rint(np.where(missing, AIR_HU, values) if holes else values)
    elif values.dtype.kind == "b":
        values = values.astype(np.int16)
    clipped = bool(values.max() > INT16.max or values.min() < INT16.min)
    np.copyto(out, np.clip(values, INT16.min, INT16.max) if clipped else values, casting="unsafe")
    return clipped, holes


# Padding


def _padding_mask(hu: np.ndarray, padding: Sequence[tuple[float, float]], shift_hu: int) -> np.ndarray | None:
    """True on voxels that are fill; None where there is none. Values are those before a shift of `shift_hu`."""
    floor = FLOOR_HU - shift_hu
    circle = None
    where: np.ndarray | None = None
    for index, plane in enumerate(hu):
        fill = plane < np.int16(floor)
        for low, high in padding:
            inside = (plane >= low) & (plane <= high) if low < high else plane == low
            if low + shift_hu <= TISSUE_HU[1] and high + shift_hu >= TISSUE_HU[0]:
                circle = _outside_circle(*plane.shape) if circle is None else circle
                inside &= circle
            fill |= inside
        if fill.any():
            where = np.zeros(hu.shape, bool) if where is None else where
            where[index] = fill
    return where


def _outside_circle(rows: int, cols: int) -> np.ndarray:
    """True (rows, cols) outside the largest circle in the matrix, where no scanner reconstructs anything."""
    y, x = np.ogrid[:rows, :cols]
    radius = min(rows, cols) / 2
    return np.asarray((y - (rows - 1) / 2) ** 2 + (x - (cols - 1) / 2) ** 2 > radius**2)


def _pad_with_air(hu: np.ndarray, where: np.ndarray) -> Repair:
    fill = _constant(hu, where)
    values = hu[where] if fill is None else np.array(fill)
    np.copyto(hu, np.int16(AIR_HU), where=where)
    return Repair("padding", where=np.packbits(where), values=values)


def _constant(hu: np.ndarray, where: np.ndarray) -> np.int16 | None:
    """The one value that all voxels of a mask hold; None where they hold several."""
    fill = hu[np.unravel_index(np.argmax(where), where.shape)]
    for plane, inside in zip(hu, where, strict=True):
        if np.any((plane != fill) & inside):
            return None
    return np.int16(fill)


# The scale


@dataclass(frozen=True)
class Blocks:
    """Means of small in-plane blocks of up to `SAMPLED_SLICES` slices, as a histogram of 1 HU bins from `FIRST_HU`."""

    counts: np.ndarray

    def share(self, low_hu: float, high_hu: float) -> float:
        """Share of all blocks within a closed range."""
        return float(self._within(low_hu, high_hu).sum() / max(self.counts.sum(), 1))

    def fullest(self, low_hu: float, high_hu: float) -> float:
        """Share of all blocks in the fullest single bin of a closed range."""
        return float(self._within(low_hu, high_hu).max() / max(self.counts.sum(), 1))

    def density(self, low_hu: float, high_hu: float) -> float:
        """Mean number of blocks per HU."""
        return float(self._within(low_hu, high_hu).mean())

    def peak_hu(self, low_hu: float, high_hu: float) -> float:
        """Centre of the fullest `PEAK_HU` bins within a closed range."""
        counts = self._within(low_hu - PEAK_HU // 2, high_hu + PEAK_HU // 2)
        return low_hu + float(np.argmax(np.convolve(counts, np.ones(PEAK_HU), mode="valid")))

    def _within(self, low_hu: float, high_hu: float) -> np.ndarray:
        return self.counts[round(low_hu) - FIRST_HU : round(high_hu) - FIRST_HU + 1]


SAMPLED_SLICES = 32
FIRST_HU, LAST_HU = -6000, 9000
PEAK_HU = 9


def sample(hu: np.ndarray, *, inside: bool = False) -> Blocks:
    """Averages of 4 x 4 pixels (fewer in a small matrix) from slices spread over the volume: modes without noise.

    `inside` leaves out the corners, where a fill at, say, -1024 could be taken for air.
    """
    slices, rows, cols = hu.shape
    size = 4 if min(rows, cols) >= 256 else 2 if min(rows, cols) >= 128 else 1
    chosen = np.unique(np.linspace(0, slices - 1, min(slices, SAMPLED_SLICES)).round().astype(int))
    means = []
    kept = _ellipse(rows // size, cols // size) if inside else np.ones((rows // size, cols // size), bool)
    for index in chosen:
        plane = hu[index, : rows - rows % size, : cols - cols % size]
        tall = sum((plane[row::size] for row in range(1, size)), plane[::size].astype(np.int32))
        sums = sum((tall[:, col::size] for col in range(1, size)), tall[:, ::size])
        means.append(np.floor_divide(sums, size * size)[kept])
    bins = np.clip(np.concatenate(means), FIRST_HU, LAST_HU) - FIRST_HU
    counts = np.bincount(bins, minlength=LAST_HU - FIRST_HU + 1)
    return Blocks(counts)


def _ellipse(rows: int, cols: int) -> np.ndarray:
    """True (rows, cols) inside the largest ellipse in the matrix."""
    y, x = np.ogrid[:rows, :cols]
    return np.asarray(((2 * y + 1) / rows - 1) ** 2 + ((2 * x + 1) / cols - 1) ** 2 <= 1)


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What the modes of a CT look like; shares are of all blocks."""

    air_hu: tuple[int, int] = (-1100, -900)
    air_share: float = 0.02
    soft_hu: tuple[int, int] = (-20, 110)  # where the peak of soft tissue may lie
    soft_width_hu: int = 50  # to either side of the peak
    soft_share: float = 0.01
    soft_above: float = 4.0  # density of the peak over that of the range above it
    soft_below: float = 2.0  # and below it
    # before values are changed, the evidence must be better
    repair_share: float = 0.04
    narrow_share: float = 0.35  # of blocks within 300 HU of water, those around the peak
    dense_hu: int = 900
    dense_ratio: float = 0.5  # blocks above `dense_hu` over those around the peak


SIGNS = Signs()


def scale_of(hu: np.ndarray) -> Scale:
    """The scale of a volume, by what lies inside its circle; where that says nothing, by the whole."""
    scale = judge_scale(sample(hu, inside=True))
    return judge_scale(sample(hu)) if scale == "unknown" else scale


def judge_scale(blocks: Blocks) -> Scale:
    """Where air and soft tissue lie: where they should, 1024 HU off, or not to be found."""
    if _has_modes(blocks, 0):
        return "sound"
    shifted = [shift for shift in (-INTERCEPT_HU, INTERCEPT_HU) if _has_modes(blocks, shift) and _is_ct(blocks, shift)]
    if len(shifted) != 1:
        return "unknown"
    return "intercept-added" if shifted[0] < 0 else "intercept-removed"


def _has_modes(blocks: Blocks, shift_hu: int) -> bool:
    """True where air and a peak of soft tissue are found in the values plus `shift_hu`."""
    peak = _soft_peak(blocks, shift_hu)
    around = blocks.density(peak - PEAK_HU // 2, peak + PEAK_HU // 2)
    return (
        blocks.share(SIGNS.air_hu[0] - shift_hu, SIGNS.air_hu[1] - shift_hu) >= SIGNS.air_share
        and _soft_share(blocks, shift_hu) >= SIGNS.soft_share
        and around >= SIGNS.soft_above * blocks.density(peak + 150, peak + 400)
        and around >= SIGNS.soft_below * blocks.density(peak - 400, peak - 200)
    )


def _soft_share(blocks: Blocks, shift_hu: int) -> float:
    """Share of the blocks around the peak of soft tissue in the values plus `shift_hu`."""
    peak = _soft_peak(blocks, shift_hu)
    return blocks.share(peak - SIGNS.soft_width_hu, peak + SIGNS.soft_width_hu)


def _is_ct(blocks: Blocks, shift_hu: int) -> bool:
    """True where the modes are as strong, narrow and followed by as little bone as those of a patient."""
    soft = _soft_share(blocks, shift_hu)
    return (
        min(soft, blocks.share(SIGNS.air_hu[0] - shift_hu, SIGNS.air_hu[1] - shift_hu)) >= SIGNS.repair_share
        and soft >= SIGNS.narrow_share * blocks.share(-300 - shift_hu, 300 - shift_hu)
        and blocks.share(SIGNS.dense_hu - shift_hu, LAST_HU) <= SIGNS.dense_ratio * soft
    )


def _soft_peak(blocks: Blocks, shift_hu: int) -> float:
    return blocks.peak_hu(SIGNS.soft_hu[0] - shift_hu, SIGNS.soft_hu[1] - shift_hu)


# Slices on another scale than their volume


def strangers(hu: np.ndarray, scale: Scale) -> np.ndarray:
    """True (slices,) for slices that are on another scale than the volume, of which `scale` is the verdict.

    A slice is one where its own air and soft tissue lie 1024 off and air is not where its neighbours have it, where
    much of it lies below air or above metal, where neither air nor soft tissue is found, or where there is no air
    although there is much on either side. A volume of unknown scale has none.
    """
    if scale == "unknown":
        return np.zeros(len(hu), bool)
    slices = _Slices([sample(plane[None], inside=True) for plane in hu], _SHIFT_HU.get(scale, 0))
    beyond = slices.have_more_than_any(slices.below) | slices.have_more_than_any(slices.above)
    too_high, too_low = slices.would_be_ct(-INTERCEPT_HU), slices.would_be_ct(INTERCEPT_HU)
    sure = ~(beyond | too_high | too_low)
    air, fallen_air = slices.air(0), slices.air(-INTERCEPT_HU)
    air_beside, fallen_beside = _beside(air, sure).min(axis=0), _beside(fallen_air, sure).max(axis=0)
    lost = (air < SIGNS.air_share) & (slices.fill < ALL_PADDED)
    return np.asarray(
        beyond
        | (too_high & (air_beside - air > SIGNS.repair_share))
        | (too_low & (fallen_air - fallen_beside > SIGNS.repair_share))
        | (lost & ((slices.soft < SIGNS.soft_share) | (air_beside > MUCH_AIR)))
    )


class _Slices:
    """What the modes of each slice look like, (slices,) each; shares are of all blocks of a slice."""

    def __init__(self, blocks: Sequence[Blocks], shift_hu: int) -> None:
        """`shift_hu` brings the volume to its right scale."""
        self._blocks, self._shift_hu = blocks, shift_hu
        floor, metal = FLOOR_HU - shift_hu, METAL_HU - shift_hu
        self.fill = np.array([one.fullest(FIRST_HU, floor) for one in blocks])  # the fullest value below air
        self.below = np.array([one.share(FIRST_HU, floor) for one in blocks]) - self.fill
        self.above = np.array([one.share(metal + 1, LAST_HU) for one in blocks])
        self.soft = np.array([_soft_share(one, shift_hu) for one in blocks])

    def air(self, off_hu: int) -> np.ndarray:
        """Share of what would be air if a slice were off by so much."""
        low, high = (end + off_hu - self._shift_hu for end in SIGNS.air_hu)
        return np.array([one.share(low, high) for one in self._blocks])

    def would_be_ct(self, by_hu: int) -> np.ndarray:
        """True where air and soft tissue are not in place with the others, but would be if moved by so much."""
        shift_hu = self._shift_hu
        moved = [_has_modes(one, shift_hu + by_hu) and _is_ct(one, shift_hu + by_hu) for one in self._blocks]
        return np.array(moved) & ~np.array([_has_modes(one, shift_hu) for one in self._blocks])

    @staticmethod
    def have_more_than_any(shares: np.ndarray) -> np.ndarray:
        """True where there is much more than in the slice with the least: what pads a series is in all of them."""
        return shares - shares.min() > BELOW_SHARE


def _beside(shares: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """The shares (2, slices) of the nearest sure slice on either side, of the one side where the other has none."""
    places = np.flatnonzero(sure)
    if not len(places):
        return np.stack([shares, shares])
    here = np.arange(len(shares))
    before, after = np.searchsorted(places, here, "left") - 1, np.searchsorted(places, here, "right")
    last = len(places) - 1
    before, after = np.where(before < 0, after, before), np.where(after > last, before, after)
    return shares[places[np.clip([before, after], 0, last)]]


# What is not Hounsfield units

CUT_SHARE = 0.05
"""Share of voxels at the lowest value from which on a volume without air is taken to be cut off there."""


BELOW_SHARE = 0.1
"""Share of blocks below any air, at more than one value, from which on the scale is taken to be another one."""

MUCH_AIR = 0.3
"""Share of air in the slices on either side from which on a slice cannot be without any."""

ALL_PADDED = 0.9
"""Share of one value below air from which on a slice is taken to be padding."""


def why_not(hu: np.ndarray, blocks: Blocks, *, trusted: bool) -> str:
    """What shows that a volume of unknown scale is not in Hounsfield units; empty where nothing does."""
    low, high = int(hu.min()), int(hu.max())
    if low == high:
        return "" if trusted else f"every voxel is {low}"
    if low >= 0 and high <= 255:
        return f"values run from {low} to {high}: a windowed picture"
    if _is_cormack(blocks, low):
        return "air lies at 0 and soft tissue above 1900: a scale stretched for normalisation (Cormack)"
    below, fill = blocks.share(FIRST_HU, FLOOR_HU), blocks.fullest(FIRST_HU, FLOOR_HU)
    if below - fill > BELOW_SHARE:
        return f"{100 * below:.0f} % of the volume lie below {FLOOR_HU} HU, and not at one value as padding would"
    at_low = np.count_nonzero(hu == low) / hu.size
    if low > -900 and at_low > CUT_SHARE:
        return f"{100 * at_low:.0f} % of the voxels are {low}, and none is air: windowed, masked or subtracted"
    if low >= 0:
        return f"values run from {low} to {high}: there is no air at {AIR_HU} HU"
    if not trusted and blocks.share(*SIGNS.air_hu) < SIGNS.air_share:
        return f"there is no air at {AIR_HU} HU to check its scale by, and no CT header to vouch for it"
    return ""


def _is_cormack(blocks: Blocks, low: int) -> bool:
    """Air from 0, soft tissue stretched elevenfold to 900 + 11 (HU + 100): brain near 2300, bone above 3100."""
    return low >= -100 and blocks.share(-100, 100) > SIGNS.air_share and blocks.share(1900, 3100) > 0.1
