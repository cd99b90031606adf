"""Positions, gaps and tilt.

Oracles: closed forms. A stack is made from a drawn rotation, tilt and gaps, so its normal, gaps and tilt are known;
1e-6 mm and 1e-4 degrees are far above double rounding for coordinates below a metre and far below what matters.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from headct.reading import geometry
from headct.reading.faults import Fault
from headct.reading.geometry import LIMITS, Limits

angles = st.floats(-180, 180)
rotations = st.builds(
    lambda a, b, c: Rotation.from_euler("xyz", [a, b, c], degrees=True).as_matrix(), angles, angles, angles
)
gaps = st.lists(st.floats(0.5, 7.0), min_size=2, max_size=40).map(np.array)
UNKNOWN = np.nan
UP = np.array([0.0, 0, 1])


def origins_along(gaps_mm: np.ndarray, travel: np.ndarray) -> np.ndarray:
    """Origins (n, 3) whose distances along z are the gaps, moving along `travel` (3,), of which z is 1."""
    return np.concatenate([[0.0], np.cumsum(gaps_mm)])[:, None] * travel


def unknown(slices: int) -> np.ndarray:
    return np.full(slices, UNKNOWN)


@given(rotation=rotations, row_mm=st.floats(0.1, 2), col_mm=st.floats(0.1, 2))
def test_the_normal_is_a_unit_vector_across_the_slice_with_its_largest_component_positive(rotation, row_mm, col_mm):
    across = geometry.normal(row_mm * rotation[:, 0], col_mm * rotation[:, 1])
    assert_allclose([np.linalg.norm(across), across @ rotation[:, 0], across @ rotation[:, 1]], [1, 0, 0], atol=1e-9)
    assert across[np.argmax(np.abs(across))] > 0


@given(rotation=rotations, gaps_mm=gaps, tilt_deg=st.floats(-30, 30))
def test_tilt_and_positions_come_from_origins_alone(rotation, gaps_mm, tilt_deg):
    travel = np.array([0.0, np.tan(np.radians(tilt_deg)), 1.0])
    origins_mm = origins_along(gaps_mm, travel) @ rotation.T + [10.0, -200.0, 900.0]
    across = rotation[:, 2]
    assert_allclose(np.diff(origins_mm @ across), gaps_mm, atol=1e-6)
    assert_allclose(geometry.tilt_deg(origins_mm, across), abs(tilt_deg), atol=1e-4)


def test_one_slice_has_no_tilt():
    assert geometry.tilt_deg(np.zeros((1, 3)), UP) == 0


@given(gaps_mm=gaps, order=st.randoms(use_true_random=False), doubled=st.sets(st.integers(0, 40), max_size=5))
def test_positions_are_numbered_upwards_whatever_the_order(gaps_mm, order, doubled):
    assume(gaps_mm.min() > 0.06 * gaps_mm.max() + 0.02)
    between_mm = np.minimum(np.r_[np.inf, gaps_mm[:-1]], np.r_[gaps_mm[1:], np.inf])
    assume(np.count_nonzero(2 * gaps_mm < between_mm) < LIMITS.pairs)
    along_mm = np.concatenate([[0.0], np.cumsum(gaps_mm)])
    number = np.arange(len(along_mm))
    again = [index for index in sorted(doubled) if index < len(along_mm)]
    along_mm = np.concatenate([along_mm, along_mm[again] + 0.01])
    number = np.concatenate([number, number[again]])
    shuffled = list(range(len(along_mm)))
    order.shuffle(shuffled)
    assert geometry.place_numbers(along_mm[shuffled]).tolist() == number[shuffled].tolist()


@given(
    step_mm=st.floats(2.0, 7.0),
    slices=st.integers(5, 60),
    apart=st.floats(0.01, 0.32),
    order=st.randoms(use_true_random=False),
)
def test_two_passes_a_little_apart_share_their_positions(step_mm, slices, apart, order):
    """However near: a pass and its repetition are told apart by something else than a fraction of a gap."""
    along_mm = np.concatenate([np.arange(slices), np.arange(slices) + apart]) * step_mm
    shuffled = list(range(2 * slices))
    order.shuffle(shuffled)
    assert geometry.place_numbers(along_mm[shuffled]).tolist() == [index % slices for index in shuffled]


def test_stacks_of_narrow_and_wide_gaps_are_no_pairs():
    gaps_mm = np.array([1.0] * 8 + [3.0] + [5.0] * 8)
    assert geometry.place_numbers(np.concatenate([[0.0], np.cumsum(gaps_mm)])).tolist() == list(range(18))


@given(step_mm=st.floats(0.4, 5.0), slices=st.integers(8, 60), hole=st.integers(1, 200), lacking=st.integers(1, 10))
def test_a_hole_in_an_even_stack_is_found_counted_and_bridged_or_refused(step_mm, slices, hole, lacking):
    hole %= slices - 1
    gaps_mm = np.full(slices - 1, step_mm)
    gaps_mm[hole] *= lacking + 1
    missing, unseen_mm = geometry.missing_slices(gaps_mm, unknown(slices))
    assert missing.tolist() == [lacking if index == hole else 0 for index in range(slices - 1)]
    assert_allclose(unseen_mm[hole], lacking * step_mm)
    bridged = (
        lacking * step_mm <= LIMITS.unseen_mm
        and (lacking + 1) * step_mm <= LIMITS.gap_mm
        and lacking / (slices + lacking) <= LIMITS.missing_share
    )
    origins_mm = origins_along(gaps_mm, UP)
    if bridged:
        assert geometry.review(origins_mm, UP, unknown(slices)) == ("gap-filled", "uneven")
    else:
        with pytest.raises(Fault) as fault:
            geometry.review(origins_mm, UP, unknown(slices))
        assert fault.value.code == "missing-slices"


@given(step_mm=st.floats(0.3, 10.0), slices=st.integers(2, 60), thickness_mm=st.floats(0.3, 12.0))
def test_an_even_stack_lacks_nothing_however_thick_its_slices(step_mm, slices, thickness_mm):
    """That slices as a whole lie further apart than they are thick is said: nobody saw what is between them."""
    assume(abs(step_mm / thickness_mm - LIMITS.wide) > 1e-6)
    expected = ("skipped-tissue",) if step_mm > LIMITS.wide * thickness_mm else ()
    origins_mm = origins_along(np.full(slices - 1, step_mm), UP)
    assert geometry.review(origins_mm, UP, np.full(slices, thickness_mm)) == expected


def test_a_few_thin_slices_in_a_stack_skip_no_tissue_to_speak_of():
    thicknesses_mm = np.array([1.0] * 3 + [5.0] * 12)
    assert "skipped-tissue" not in geometry.review(origins_along(np.full(14, 5.0), UP), UP, thicknesses_mm)


@given(
    thin=st.integers(4, 20),
    thick=st.integers(4, 20),
    thin_mm=st.floats(1, 4),
    thick_mm=st.floats(5, 7),
    known=st.booleans(),
)
def test_contiguous_stacks_of_two_spacings_lack_nothing(thin, thick, thin_mm, thick_mm, known):
    gaps_mm = np.array([thin_mm] * thin + [(thin_mm + thick_mm) / 2] + [thick_mm] * thick)
    thicknesses_mm = np.array([thin_mm] * (thin + 1) + [thick_mm] * (thick + 1)) if known else unknown(thin + thick + 2)
    assert not geometry.missing_slices(gaps_mm, thicknesses_mm)[0].any()


def test_a_short_stack_of_thick_slices_lacks_nothing_where_thickness_says_so():
    gaps_mm, thicknesses_mm = np.array([3.0, 3, 3, 5, 7]), np.array([3.0, 3, 3, 3, 7, 7])
    assert not geometry.missing_slices(gaps_mm, thicknesses_mm)[0].any()
    assert geometry.missing_slices(gaps_mm, unknown(6))[0].tolist() == [0, 0, 0, 1, 1]


def test_a_gap_that_thick_slices_cover_lacks_nothing():
    gaps_mm = np.array([2.5, 2.5, 4.0, 4.0])
    assert not geometry.missing_slices(gaps_mm, np.full(5, 5.0))[0].any()
    assert geometry.missing_slices(gaps_mm, np.full(5, 2.5))[0].tolist() == [0, 0, 1, 1]


def test_one_of_four_slices_missing_is_found_with_and_without_thickness():
    gaps_mm = np.array([5.0, 5.0, 10.0])
    for thicknesses_mm in (unknown(4), np.full(4, 5.0)):
        missing, unseen_mm = geometry.missing_slices(gaps_mm, thicknesses_mm)
        assert missing.tolist() == [0, 0, 1]
        assert unseen_mm.tolist() == [0, 0, 5]


def test_every_third_slice_missing_is_no_spacing_that_was_meant():
    gaps_mm = np.tile([5.0, 10.0], 8)
    for thicknesses_mm in (unknown(17), np.full(17, 5.0)):
        missing, unseen_mm = geometry.missing_slices(gaps_mm, thicknesses_mm)
        assert missing.tolist() == [0, 1] * 8
        assert unseen_mm.tolist() == [0, 5] * 8


@pytest.mark.parametrize("pattern_mm", [(5, 10), (5, 5, 10), (10, 10, 5), (10, 5, 10)])
def test_each_hole_of_a_pattern_is_counted(pattern_mm):
    gaps_mm = np.tile(np.array(pattern_mm, dtype=float), 8)
    for thicknesses_mm in (unknown(len(gaps_mm) + 1), np.full(len(gaps_mm) + 1, 5.0)):
        missing, _ = geometry.missing_slices(gaps_mm, thicknesses_mm)
        assert missing[2:-2].tolist() == (gaps_mm == 10).astype(int)[2:-2].tolist()


def test_a_slice_too_many_is_no_measure_for_the_gaps_beside_it():
    gaps_mm = np.array([5, 5, 0.3, 4.7, 5, 0.3, 4.7, 5, 5])
    assert not geometry.missing_slices(gaps_mm, unknown(10))[0].any()


def test_too_many_single_holes_are_refused_though_each_could_be_bridged():
    gaps_mm = np.tile([2.5, 2.5, 2.5, 5.0], 6)
    assert "gap-filled" in geometry.review(origins_along(gaps_mm, UP), UP, unknown(25))
    with pytest.raises(Fault, match="in several gaps"):
        geometry.review(
            origins_along(gaps_mm, UP),
            np.array([0.0, 0, 1]),
            unknown(25),
            Limits(missing_share=0.1),
        )


@given(
    rotation=rotations,
    gaps_mm=st.lists(st.floats(1.0, 7.0), min_size=4, max_size=40).map(np.array),
    tilt_deg=st.floats(-30, 30),
    astray=st.integers(0, 40),
    far_mm=st.floats(1, 300),
)
def test_a_slice_beside_the_stack_is_found_and_measured(rotation, gaps_mm, tilt_deg, astray, far_mm):
    origins_mm = origins_along(gaps_mm, np.array([0.0, np.tan(np.radians(tilt_deg)), 1.0]))
    astray %= len(origins_mm)
    origins_mm[astray] += [far_mm, 0, 0]
    expected_mm = np.where(np.arange(len(origins_mm)) == astray, far_mm, 0.0)
    assert_allclose(geometry.aside_mm(origins_mm @ rotation.T, rotation[:, 2]), expected_mm, atol=1e-6)


def test_slices_that_move_aside_together_are_not_beside_the_stack():
    origins_mm = origins_along(np.full(19, 5.0), np.array([0.0, 0.3, 1.0]))
    origins_mm[18:] += [60.0, 0, 0]
    assert_allclose(geometry.aside_mm(origins_mm, UP), 0, atol=1e-9)
    assert_allclose(geometry.tilt_deg(origins_mm, UP), np.degrees(np.arctan(0.3)))


def test_of_three_slices_none_can_be_told_to_be_beside_the_others():
    assert not geometry.aside_mm(np.array([[0.0, 0, 0], [120, 0, 5], [0, 0, 10]]), UP).any()


@given(rotation=rotations, other_deg=st.floats(0, 5), share=st.floats(-0.01, 0.01))
def test_frames_are_the_same_within_the_limits(rotation, other_deg, share):
    assume(abs(other_deg - LIMITS.orientation_deg) > 1e-3 and abs(abs(share) - LIMITS.pixel_share) > 1e-4)
    one = 0.5 * rotation[:, 0]
    turned = Rotation.from_rotvec(np.radians(other_deg) * rotation[:, 2]).apply(one) * (1 + share)
    same = other_deg <= LIMITS.orientation_deg and abs(share) <= LIMITS.pixel_share
    assert geometry.same_frame(tuple(one), tuple(turned)) == same
