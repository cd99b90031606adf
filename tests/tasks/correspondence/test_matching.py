"""Searches whose answer is known: by a closed form of the features, by brute force, or because nothing changed."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize
from tasks.correspondence.heads import affine_of, features_at, map_of

from headct.failure import Misuse
from headct.tasks.correspondence import Box, FeatureMap, box_in, places_in

POINTS_MM = np.random.default_rng(1).uniform(-45, 45, (20, 3))
AFFINE = affine_of(16.0, (-64.0, -72.0, -56.0))


def test_a_place_is_found_in_its_own_head() -> None:
    """To less than a tenth of a cell of 16 mm, wherever it lies between the cells; there and back again."""
    one = map_of(lambda points: points, AFFINE)
    found = places_in(one, one, POINTS_MM)
    assert_allclose(found.points_mm, POINTS_MM, atol=0.6)
    assert_allclose(found.similarity, 1, atol=1e-3)
    assert (found.forward_backward_mm < 1).all()


def test_a_place_is_found_in_a_head_that_lies_elsewhere_and_is_turned() -> None:
    """The other lattice is oblique, mirrored in its axes and of another spacing; features go with the place."""
    angle = np.deg2rad(25)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    moved_mm = np.array([10.0, -20.0, 35.0])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-12.0, 12.0, 14.0])
    affine[:3, 3] = moved_mm - affine[:3, :3] @ np.array([7.0, 7.0, 5.5])
    target = map_of(lambda points: (points - moved_mm) @ turn, affine, (15, 15, 12))
    found = places_in(map_of(lambda points: points, AFFINE), target, POINTS_MM)
    apart_mm = np.linalg.norm(found.points_mm - (POINTS_MM @ turn.T + moved_mm), axis=1)
    assert np.median(apart_mm) < 2
    assert apart_mm.max() < 5  # of cells of 12 to 16 mm
    assert (found.forward_backward_mm < 5).all()


def test_the_refinement_finds_what_an_optimiser_finds() -> None:
    """Oracle: scipy maximises the cosine of interpolated features from the best cell."""
    rng = np.random.default_rng(3)
    target = FeatureMap(rng.normal(size=(6, 5, 7, 12)).astype(np.float32), np.eye(4), np.ones((6, 5, 7), bool))
    wanted = target.at(np.array([[2.3, 1.7, 4.4]])) + 0.2 * rng.normal(size=12)
    query = FeatureMap(np.broadcast_to(wanted, (2, 2, 2, 12)).astype(np.float32), np.eye(4), np.ones((2, 2, 2), bool))

    def cosine(place: np.ndarray) -> float:
        there = target.at(place[None])[0]
        return float(there @ wanted[0] / np.linalg.norm(there) / np.linalg.norm(wanted))

    found = places_in(query, target, np.array([[0.5, 0.5, 0.5]]))
    best = min(
        (
            minimize(lambda place: -cosine(place), start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12})
            for start in found.points_mm[0] + np.random.default_rng(0).uniform(-0.3, 0.3, (8, 3))
        ),
        key=lambda one: one.fun,
    )
    assert found.similarity[0] == pytest.approx(cosine(found.points_mm[0]), abs=1e-6)
    assert found.similarity[0] == pytest.approx(-best.fun, abs=2e-3)
    assert_allclose(found.points_mm[0], best.x, atol=0.05)


def test_interpolation_is_linear_between_cells_and_flat_beyond() -> None:
    """Oracle: features that are the coordinates themselves."""
    places = np.stack(np.meshgrid(np.arange(4), np.arange(5), np.arange(3), indexing="ij"), axis=-1)
    one = FeatureMap(places.astype(np.float32), np.eye(4), np.ones((4, 5, 3), bool))
    asked = np.array([[0.25, 3.5, 1.75], [3, 4, 2], [-2, 4.4, 9]])
    assert_allclose(one.at(asked), np.clip(asked, 0, [3, 4, 2]))
    assert one.holds(np.array([[3.4, -0.4, 2.4], [3.6, 0, 0]])).tolist() == [True, False]
    assert one.resolution_mm == (1, 1, 1)


def test_nothing_is_found_where_nothing_is_looked_for() -> None:
    whole = map_of(lambda points: points, AFFINE)
    wanted = whole.wanted.copy()
    cell = np.rint(whole.places_of(np.zeros((1, 3)))[0]).astype(int)
    wanted[tuple(cell)] = False
    found = places_in(whole, FeatureMap(whole.features, AFFINE, wanted), whole.mm_of(cell[None].astype(float)))
    assert np.linalg.norm(whole.places_of(found.points_mm)[0] - cell) > 0.4


def test_a_box_becomes_a_box_of_the_other_heads_size() -> None:
    """The other head is 1.2 times as large and lies elsewhere."""
    moved_mm = np.array([30.0, -12.0, 8.0])
    larger = map_of(lambda points: (points - moved_mm) / 1.2, affine_of(14.0, (-75.0, -100.0, -85.0)), (15, 15, 14))
    box = Box(np.array([-30.0, -20, -25]), np.array([10.0, 30, 20]))
    found, similarity, back_mm = box_in(map_of(lambda points: points, AFFINE), larger, box)
    assert_allclose(found.middle_mm, box.middle_mm * 1.2 + moved_mm, atol=3)
    assert_allclose(found.high_mm - found.low_mm, (box.high_mm - box.low_mm) * 1.2, rtol=0.1)
    assert similarity > 0.95
    assert back_mm < 3


def test_wrong_input_is_named() -> None:
    with pytest.raises(Misuse, match="holds nothing"):
        Box(np.array([0.0, 0, 0]), np.array([1.0, np.nan, 1]))
    one = map_of(lambda points: points, AFFINE)
    narrow = FeatureMap(one.features[..., :3], AFFINE, one.wanted)
    with pytest.raises(Misuse, match="48 and 3 features"):
        places_in(one, narrow, np.zeros((1, 3)))
    assert features_at(np.zeros(3)).shape == (48,)
