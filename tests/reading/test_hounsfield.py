"""The scale of values, read off the values.

Oracle: a digital head in known Hounsfield units, put on a wrong scale by a known formula; what comes back must be the
head again, exactly, and `undo` of the repairs must give what was read, exactly: all of it is integer arithmetic.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headct.reading import hounsfield
from headct.reading.hounsfield import judge_scale, rescale, sample, to_hounsfield
from headct.scan import AIR_HU
from headct.virtual.phantom import Phantom


@cache
def _head() -> np.ndarray:
    return Phantom(0).scan(rows=72, cols=72, pixel_mm=3.2, noise_hu=3.0).hu


@pytest.fixture
def head() -> np.ndarray:
    """A head (slices, rows, cols) in Hounsfield units, int16, air clipped at -1024 as scanners do."""
    return np.maximum(_head(), -1024)


def corners(shape: tuple[int, ...]) -> np.ndarray:
    """True (slices, rows, cols) outside the circle of the scan."""
    y, x = np.ogrid[: shape[1], : shape[2]]
    outside = np.hypot(y - (shape[1] - 1) / 2, x - (shape[2] - 1) / 2) > shape[1] / 2
    return np.broadcast_to(outside, shape)


def converted(values: np.ndarray, **settings):
    result = to_hounsfield(values.copy(), **settings)
    assert not isinstance(result, str), result
    hu, repairs, flags = result
    before = hu
    for repair in reversed(repairs):
        before = repair.undo(before)
    assert hu.dtype == before.dtype == np.int16
    assert np.array_equal(before, np.clip(np.rint(values), -32768, 32767)), "repairs do not undo"
    return hu, {repair.flag for repair in repairs}, set(flags)


def test_a_sound_head_is_left_alone(head):
    hu, repairs, flags = converted(head)
    assert np.array_equal(hu, head)
    assert repairs == flags == set()


@pytest.mark.parametrize("shift_hu", [1024, -1024])
def test_a_missing_or_doubled_intercept_is_found_and_undone(head, shift_hu):
    hu, repairs, flags = converted(head + np.int16(shift_hu))
    assert np.array_equal(hu, head)
    assert repairs == flags == {"intercept-added" if shift_hu > 0 else "intercept-removed"}


def test_a_shift_up_stops_at_the_end_of_int16_and_is_undone(head):
    values = head - np.int16(1024)
    values[10, 30, 30:33] = [31743, 31744, 32767]
    hu, repairs, flags = converted(values)
    assert hu[10, 30, 30:33].tolist() == [32767] * 3
    assert repairs == {"intercept-removed"}
    assert flags == {"intercept-removed", "clipped", "metal"}


@pytest.mark.parametrize("fill_hu", [-1500, -2000, -2048, -3024, -32768])
def test_fills_without_a_tag_become_air(head, fill_hu):
    padded = np.where(corners(head.shape), fill_hu, head).astype(np.int16)
    hu, repairs, flags = converted(padded)
    assert np.array_equal(hu, np.where(corners(head.shape), AIR_HU, head))
    assert repairs == flags == {"padding"}


@pytest.mark.parametrize("fill_hu", [-2000, -2048, -3024, -32768])
@pytest.mark.parametrize("shift_hu", [1024, -1024])
def test_fills_and_a_wrong_intercept_together(head, fill_hu, shift_hu):
    padded = np.where(corners(head.shape), max(fill_hu + shift_hu, -32768), head + shift_hu).astype(np.int16)
    hu, repairs, _ = converted(padded)
    assert np.array_equal(hu, np.where(corners(head.shape), AIR_HU, head))
    assert repairs == {"padding", "intercept-added" if shift_hu > 0 else "intercept-removed"}


def test_fills_of_two_values_keep_each(head):
    padded = head.copy()
    padded[:, 0], padded[:, -1] = -2000, -3024
    assert converted(padded)[1] == {"padding"}


def test_a_padding_value_among_tissue_is_believed_outside_the_circle_only(head):
    padded = np.where(corners(head.shape), 0, head).astype(np.int16)
    assert np.count_nonzero(head == 0)
    hu, repairs, _ = converted(padded, padding=[(0.0, 0.0)])
    assert np.array_equal(hu, np.where(corners(head.shape), AIR_HU, head))
    assert repairs == {"padding"}


def test_a_padding_range_counts_with_both_ends(head):
    values = head.copy()
    values[:, 0, :3] = [3500, 3600, 3700]
    values[:, 0, 3] = 3701
    hu, _, flags = converted(values, padding=[(3500.0, 3700.0)])
    assert hu[0, 0, :4].tolist() == [AIR_HU, AIR_HU, AIR_HU, 3701]
    assert flags == {"padding", "metal"}


def test_metal_is_kept_and_flagged(head):
    values = head.copy()
    values[10, 30:33, 30:33] = 8000
    hu, repairs, flags = converted(values)
    assert hu.max() == 8000
    assert (repairs, flags) == (set(), {"metal"})


@pytest.mark.parametrize("trusted", [True, False])
def test_a_volume_without_any_number_is_said_to_be_one(trusted):
    assert to_hounsfield(np.full((4, 8, 8), np.nan, np.float32), trusted=trusted) == "no voxel holds a number"


def test_floats_holes_and_overflow(head):
    values = head.astype(np.float64) + 0.25
    values[0, 0, 0], values[0, 0, 1], values[0, 0, 2] = np.nan, 1e9, np.inf
    hu, repairs, flags = to_hounsfield(values)
    assert hu[0, 0, :3].tolist() == [AIR_HU, 32767, 32767]
    assert np.array_equal(hu[1:], head[1:])
    assert set(flags) == {"not-a-number", "clipped", "metal"}
    assert repairs == ()


@pytest.mark.parametrize("dtype", ["i2", ">i2", "i4", "u2", "f4", "f8", "i8"])
@pytest.mark.parametrize("view", ["plain", "flipped", "transposed"])
def test_every_dtype_and_layout_gives_the_same_contiguous_array(head, dtype, view):
    values = (head + 1024 if dtype == "u2" else head).astype(dtype)
    if view == "flipped":
        values = np.flip(np.flip(values, 2).copy(), 2)
    elif view == "transposed":
        values = np.ascontiguousarray(values.transpose(2, 1, 0)).transpose(2, 1, 0)
    hu, *_ = to_hounsfield(values)
    assert np.array_equal(hu, head)
    assert hu.flags.c_contiguous
    assert hu.flags.writeable


def test_what_cannot_be_written_is_copied(head):
    head = (head + 1024).astype(np.int16)
    head.flags.writeable = False
    hu, *_ = to_hounsfield(head)
    assert head.min() >= 0
    assert hu.min() < -900


def windowed(hu):
    return np.clip((hu + 40) * 255.0 / 160, 0, 255).astype(np.uint8)


def vessels_only(hu):
    return np.where(hu > 150, hu, 0)


def cormack(hu):
    """The stretched scale of the Clinical Toolbox for SPM: air from 0, -100..100 HU elevenfold."""
    hu = np.clip(hu.astype(float), -1000, 3071)
    return hu + 1000 + 10 * np.clip(hu + 100, 0, 200)


def cut_off(hu):
    return np.clip(hu, -200, 300)


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("change", [windowed, vessels_only, cormack, cut_off])
def test_what_is_no_hounsfield_scale_is_refused(head, change, trusted):
    result = to_hounsfield(change(head), trusted=trusted)
    assert isinstance(result, str)
    assert result


def thousandfold(hu):
    return hu.astype(np.int32) * 1000


def tenth(hu):
    return hu // 10


def moved(hu):
    return hu + 200


def skull_stripped(hu):
    """Brain on zero, a few voxels of noise below it."""
    return np.where((hu > -20) & (hu < 80), hu, 0)


@pytest.mark.parametrize("change", [thousandfold, tenth, moved, skull_stripped])
def test_without_a_ct_header_air_must_be_where_it_should(head, change):
    assert isinstance(to_hounsfield(change(head)), str)


def test_a_brain_in_air_needs_no_ct_header(head):
    masked = np.where((head > -20) & (head < 80), head, AIR_HU)
    assert np.array_equal(converted(masked)[0], masked)


def test_a_t1_weighted_brain_is_no_ct_with_a_missing_intercept():
    """Background at 0, grey and white matter side by side about 1000, as MR scanners scale them."""
    rng = np.random.default_rng(0)
    tissue = rng.choice([350, 820, 1060], p=[0.2, 0.45, 0.35], size=(20, 64, 64)) + rng.normal(0, 40, (20, 64, 64))
    background = np.abs(rng.normal(0, 8, (20, 64, 64)))
    y, x = np.ogrid[:64, :64]
    volume = np.where(np.hypot(y - 31.5, x - 31.5) < 24, tissue, background).astype(np.int16)
    assert isinstance(to_hounsfield(volume), str)


def test_noise_behind_a_ct_header_is_taken_as_it_is_and_flagged():
    noise = np.random.default_rng(0).integers(-1024, -769, (4, 64, 64)).astype(np.int16)
    hu, repairs, flags = converted(noise, trusted=True)
    assert np.array_equal(hu, noise)
    assert (repairs, flags) == (set(), {"hu-unverified"})


def test_two_heads_apart_in_scale_by_noise_only(head):
    """Sharp kernels: single voxels say nothing, their averages do."""
    noisy = np.repeat(np.repeat(head, 4, 1), 4, 2)[::4] + np.random.default_rng(1).normal(
        0, 120, (len(head[::4]), 288, 288)
    )
    for shift_hu, scale in ((0, "sound"), (1024, "intercept-added"), (-1024, "intercept-removed")):
        assert judge_scale(sample((noisy + shift_hu).astype(np.int16))) == scale


# Slices on another scale


def mirrored(hu):
    return -2 * 1024 - hu


def unsigned(hu):
    """Negative values as a reader sees them who takes their bits for unsigned."""
    return np.where(hu < 0, 32767, hu)


CHANGES = {
    "1024 too high": lambda hu: hu + 1024,
    "1024 too low": lambda hu: hu - 1024,
    "mirrored": mirrored,
    "unsigned": unsigned,
    "tenfold": lambda hu: hu * 10,
    "a tenth": lambda hu: hu // 10,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("scale", ["sound", "intercept-added", "intercept-removed"])
def test_slices_on_another_scale_are_found_wherever_they_lie(head, change, scale):
    shift_hu = {"sound": 0, "intercept-added": 1024, "intercept-removed": -1024}[scale]
    for index in (0, 3, 14, 26):
        values = head.astype(np.int32)
        values[index] = CHANGES[change](values[index])
        values = np.clip(values + shift_hu, -32768, 32767).astype(np.int16)
        assert np.flatnonzero(hounsfield.strangers(values, scale)).tolist() == [index]


def test_a_slice_of_nothing_but_air_is_found_by_its_neighbours(head):
    head[-1] = head[0, :4].mean()
    head[-1] += 1024
    assert np.flatnonzero(hounsfield.strangers(head, "sound")).tolist() == [len(head) - 1]


def test_a_head_has_no_strangers_whatever_its_slices_show(head):
    metal = head.copy()
    metal[14, 20:30, 20:30] = 20000
    padded = np.where(corners(head.shape), -3024, head)
    padded[:3] = -3024
    zoomed = head[:, 20:52, 20:52]
    y, x = np.ogrid[:72, :72]
    cut_round = np.where(np.hypot(y - 35.5, x - 35.5) > 30, -2048, head)
    cut_round[-1, 20:50, 20:50] = AIR_HU
    for values in (head, metal, padded, zoomed, cut_round, head[14:15], head[14:16]):
        assert not hounsfield.strangers(values.astype(np.int16), "sound").any()


def test_nothing_is_a_stranger_where_nothing_is_known(head):
    assert not hounsfield.strangers(head, "unknown").any()


@given(
    stored=hnp.arrays(np.int16, (3, 4), elements=st.integers(-32768, 32767)),
    slope=st.sampled_from([1.0, 0.5, 2.0, -1.0, 1.25]),
    intercept=st.sampled_from([0.0, -1024.0, 1024.0, -0.5, -40000.0]),
)
def test_rescale_is_the_formula_rounded_and_clipped(stored, slope, intercept):
    out = np.empty(stored.shape, np.int16)
    clipped = rescale(stored, slope, intercept, out)
    exact = np.rint(slope * stored.astype(np.float64) + intercept)
    assert np.array_equal(out, np.clip(exact, -32768, 32767))
    assert clipped == bool(np.any((exact < -32768) | (exact > 32767)))


@given(low=st.integers(0, 64000), values=hnp.arrays(np.int32, (2, 3), elements=st.integers(0, 1000)))
def test_rescale_of_unsigned_values_beyond_int16(low, values):
    out = np.empty(values.shape, np.int16)
    clipped = rescale(values + low, 1.0, -1024.0, out)
    assert np.array_equal(out, np.minimum(values + low - 1024, 32767))
    assert clipped == bool((values + low - 1024).max() > 32767)


@given(hu=hnp.arrays(np.int16, (2, 8, 8), elements=st.integers(-4000, 8000)))
def test_a_sample_of_single_voxels_counts_each(hu):
    blocks = sample(hu)
    assert blocks.counts.sum() == hu.size
    assert blocks.share(-4000, 0) == pytest.approx(np.mean(hu <= 0))


def test_a_sample_of_blocks_averages_them():
    plane = np.arange(128 * 128, dtype=np.int16).reshape(1, 128, 128) % 1000
    means = plane[0].reshape(64, 2, 64, 2).astype(int).sum((1, 3)) // 4
    counts = np.bincount(means.ravel() - hounsfield.FIRST_HU, minlength=hounsfield.LAST_HU - hounsfield.FIRST_HU + 1)
    assert np.array_equal(sample(plane).counts, counts)
