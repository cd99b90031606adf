"""The one resample. Oracles: closed forms (straight lines, waves), quadrature, and the promise itself: the same
object in another acquisition or another order of storage. Values of a `Scan` are rounded to whole HU, so 0.5 HU is the
least that two acquisitions of one object can differ."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing.volumes import flipped, part, permuted, scan_of
from scipy.integrate import quad
from scipy.spatial.transform import Rotation

from headct.preparing import resample as room
from headct.preparing.resample import Grid, Lattice, canonical, resample, tent_weights
from headct.scan import Scan

GRID = Grid((10, 12, 9), (2.0, 2.0, 2.0), (-9.0, -11.0, -8.0))


def acquired_by(
    value_at,
    *,
    turn: Rotation | None = None,
    tilt_deg: float = 0.0,
    pixel_mm: float = 0.9,
    depths_mm: np.ndarray | None = None,
    half_mm: float = 40.0,
    center_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Scan:
    """A scan of an object given by its values at points (..., 3): slices at `depths_mm` of their travel, sheared."""
    matrix = (turn or Rotation.identity()).as_matrix()
    lean = Rotation.from_rotvec(np.radians(tilt_deg) * np.array([1.0, 0, 0])).as_matrix()
    col, row, travel = matrix @ [1, 0, 0], matrix @ lean @ [0, 1, 0], matrix @ [0, 0, 1]
    depths = np.arange(-42.0, 43.0, 3.0) if depths_mm is None else depths_mm
    pixels = int(2 * half_mm / pixel_mm) + 1
    offset = (np.arange(pixels) - (pixels - 1) / 2) * pixel_mm
    in_plane = offset[:, None, None] * row + offset[:, None] * col + np.array(center_mm)
    middles = depths[:, None] * travel
    hu = np.rint(value_at(in_plane + middles[:, None, None])).astype(np.int16)
    origins = in_plane[0, 0] + middles
    return Scan(hu=hu, origins_mm=origins, row_step_mm=row * pixel_mm, col_step_mm=col * pixel_mm, thickness_mm=np.nan)


def points_of(grid: Grid) -> np.ndarray:
    return np.stack(np.meshgrid(*grid.axes_mm, indexing="ij"), axis=-1)


small_angles = st.tuples(*[st.floats(-25, 25)] * 3)
uneven_depths = st.lists(st.floats(0.7, 6.0), min_size=34, max_size=34).map(lambda gaps: np.cumsum(gaps))


@settings(max_examples=25, deadline=None)
@given(
    turn_deg=small_angles,
    oblique=st.booleans(),
    tilt_deg=st.floats(-25, 25),
    pixel_mm=st.floats(0.4, 2.5),
    depths_mm=uneven_depths,
    slope=st.tuples(*[st.floats(-9, 9)] * 3),
)
def test_a_straight_line_stays_where_it_is(turn_deg, oblique, tilt_deg, pixel_mm, depths_mm, slope):
    """Tilt, uneven gaps, oblique slices, any pixel: a linear field is reproduced to its rounding, 0.5 HU, and a tenth.

    Kept away from the ends, beyond which edges are repeated.
    """
    turn = Rotation.from_euler("xyz", turn_deg, degrees=True) if oblique else None
    depths_mm = depths_mm - depths_mm.mean()

    def linear(points):
        return points @ np.array(slope)

    scan = acquired_by(linear, turn=turn, tilt_deg=tilt_deg, pixel_mm=pixel_mm, depths_mm=depths_mm)
    values = resample(scan, GRID, fill_hu=-9999)
    points = points_of(GRID)
    lattice = Lattice(canonical(scan), GRID)
    depth = points @ lattice.normal
    away = (depth > lattice.depths_mm[0] + 8) & (depth < lattice.depths_mm[-1] - 8)
    np.testing.assert_allclose(values[away], linear(points)[away], atol=0.6)


@settings(max_examples=20, deadline=None)
@given(
    samples=st.lists(st.floats(0.3, 5.0), min_size=2, max_size=8),
    half_width=st.floats(0.05, 6.0),
    at=st.floats(-3.0, 25.0),
    seed=st.integers(0, 99),
)
def test_tent_weights_average_the_lines_through_the_samples(samples, half_width, at, seed):
    """Against quadrature (1e-6 of values up to 1)."""
    positions = np.cumsum(samples)
    values = np.random.default_rng(seed).uniform(-1, 1, len(positions))

    def averaged(t):
        return np.interp(t, positions, values) * (1 - abs(t - at) / half_width) / half_width

    breaks = [p for p in (*positions, at) if abs(p - at) < half_width]
    expected, _ = quad(averaged, at - half_width, at + half_width, points=breaks, limit=200)
    weights = tent_weights(np.array([at]), positions, np.array([half_width]))[0]
    assert weights @ values == pytest.approx(expected, abs=1e-6)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    plain = tent_weights(np.array([at]), positions, np.zeros(1))[0]
    assert plain @ values == pytest.approx(np.interp(at, positions, values), abs=1e-12)


def test_a_scan_on_the_very_grid_passes_through_untouched():
    rng = np.random.default_rng(0)
    volume = rng.integers(-1000, 2000, GRID.shape).astype(np.int16)
    np.testing.assert_array_equal(resample(scan_of(volume, GRID.affine), GRID), volume)


def test_what_is_finer_than_the_grid_is_averaged_not_skipped():
    """Stripes one pixel wide, ±500 HU around 40: an aliased resample shows up to 500, ours below 3 HU of them."""
    rng = np.random.default_rng(0)
    stripes = np.where(np.arange(81) % 2, 540, -460)
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = 81
        volume = np.broadcast_to(stripes.reshape(shape), (81, 81, 81))
        affine = np.diag([0.5, 0.5, 0.5, 1.0])
        affine[:3, 3] = rng.uniform(-20.3, -20.0, 3)
        values = resample(scan_of(volume, affine), GRID)
        inside = np.abs(points_of(GRID)).max(axis=-1) < 8
        assert np.abs(values[inside] - 40).max() < 3


def blobs(points):
    """A smooth object: waves of 14 mm and more, which every acquisition below resolves."""
    x, y, z = np.moveaxis(points, -1, 0)
    return 300 * np.sin(x / 4 + 0.3) * np.cos(y / 5) + 200 * np.cos(z / 5 + y / 9) + 100


@pytest.mark.parametrize(
    ("other", "tolerance_hu"),
    [
        ({"tilt_deg": 20.0}, 1.5),
        ({"tilt_deg": -20.0}, 1.5),
        ({"turn": Rotation.from_euler("xyz", (15, 10, 20), degrees=True)}, 3.0),
        ({"turn": Rotation.from_euler("y", 90, degrees=True)}, 3.0),  # sagittal slices
        ({"turn": Rotation.from_euler("x", 90, degrees=True)}, 3.0),  # coronal slices
        ({"depths_mm": np.cumsum([1.0, 0.4, 2.0, 0.7] * 22) - 45}, 6.0),
        ({"pixel_mm": 1.7}, 9.0),
    ],
    ids=["tilt 20", "tilt -20", "oblique", "sagittal", "coronal", "uneven gaps", "coarse pixels"],
)
def test_another_acquisition_of_the_same_object(other, tolerance_hu):
    """The object spans 1200 HU. A resolution of h = 2 mm takes (2 pi h / L)^2 / 12 off a wave of length L, 2 % for
    L = 25 mm, in all acquisitions alike; they differ by how their own samples share in it. Tolerances are 1.5 to 3
    times what was measured."""
    usual = {"pixel_mm": 0.8, "depths_mm": np.arange(-45.0, 46.0, 0.8), "half_mm": 45.0}
    first = resample(acquired_by(blobs, **usual), GRID)
    second = resample(acquired_by(blobs, **{**usual, **other}), GRID)
    difference = np.abs(first - second)
    assert difference.max() < tolerance_hu
    assert difference.mean() < tolerance_hu / 4


def some_scan(*, tilt_deg: float = 0.0, uneven: bool = False) -> Scan:
    """Noise, so that any difference shows."""
    rng = np.random.default_rng(1)
    gaps = rng.uniform(1, 4, 13) if uneven else np.full(13, 2.3)
    depths = np.cumsum(gaps) - 17.1
    return acquired_by(
        lambda points: rng.uniform(-1000, 1500, points.shape[:-1]),
        tilt_deg=tilt_deg,
        depths_mm=depths,
        half_mm=14.0,
        center_mm=(0.123, -0.77, 0.3),
    )


@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize(
    "kind", [{}, {"tilt_deg": 17.0}, {"uneven": True}, {"tilt_deg": -11.0, "uneven": True}], ids=str
)
def test_stored_backwards_it_is_the_same_bit_for_bit(kind, flips):
    scan = some_scan(**kind)
    turned = flipped(scan, **dict(zip(("slices", "rows", "cols"), flips, strict=True)))
    np.testing.assert_array_equal(resample(turned, GRID), resample(scan, GRID))


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_stored_with_other_axes_it_is_the_same_bit_for_bit(order):
    scan = replace(some_scan(), thickness_mm=2.3)
    again = flipped(permuted(scan, order), slices=True, rows=False, cols=True)
    np.testing.assert_array_equal(resample(again, GRID), resample(scan, GRID))


@pytest.mark.parametrize("kind", [{}, {"tilt_deg": 17.0}, {"uneven": True}], ids=str)
def test_transposed_slices_are_the_same_bit_for_bit(kind):
    scan = some_scan(**kind)
    across = replace(scan, hu=scan.hu.transpose(0, 2, 1), row_step_mm=scan.col_step_mm, col_step_mm=scan.row_step_mm)
    np.testing.assert_array_equal(resample(across, GRID), resample(scan, GRID))


@pytest.mark.parametrize("kind", [{}, {"tilt_deg": 17.0}, {"uneven": True}], ids=str)
def test_the_fast_way_and_the_general_one_agree(kind):
    """Same weights, other order of sums: float32 of values up to 1500, 1e-2 HU."""
    lattice = Lattice(canonical(some_scan(**kind)), GRID)
    assert lattice.has_columns_along_x
    fast, general = room._sagittal_planes(lattice, -1000), room._single_points(lattice, -1000)
    np.testing.assert_allclose(fast, general, atol=1e-2)


def test_slices_beside_each_other_keep_their_own_place():
    """A stack whose slices are shifted along x is put together where they say they are."""
    scan = acquired_by(lambda points: 20 * points[..., 0], half_mm=30.0)
    shift = np.round(5 * np.sin(np.arange(len(scan.hu))), 1)
    moved = replace(scan, origins_mm=scan.origins_mm + shift[:, None] * [1, 0, 0])
    moved = replace(moved, hu=np.rint(moved.hu + 20 * shift[:, None, None]).astype(np.int16))
    np.testing.assert_allclose(resample(moved, GRID), 20 * points_of(GRID)[..., 0], atol=0.6)


def test_nothing_is_made_up_outside_the_scan():
    """Half a pixel beyond the rows and columns, half a gap beyond the slices, and no further."""
    scan = acquired_by(
        lambda points: np.full(points.shape[:-1], 70.0), pixel_mm=1.0, depths_mm=np.arange(0, 21, 4.0), half_mm=10
    )
    grid = Grid((61, 61, 81), (0.5, 0.5, 0.5), (-15.0, -15.0, -10.0))
    values = resample(scan, grid)
    x, y, z = np.moveaxis(points_of(grid), -1, 0)
    inside = (np.abs(x) <= 10.5) & (np.abs(y) <= 10.5) & (z >= -2) & (z <= 22)
    on_the_edge = (np.abs(x) == 10.5) | (np.abs(y) == 10.5) | (z == -2) | (z == 22)
    np.testing.assert_allclose(values[inside & ~on_the_edge], 70, atol=1e-3)
    np.testing.assert_array_equal(values[~inside], -1000)
    np.testing.assert_array_equal(Lattice(canonical(scan), grid).acquired(), values > 0)


@pytest.mark.parametrize("thickness_mm", [1.0, np.nan, 0.0, 9.0])
def test_the_end_slices_reach_half_a_gap_however_thick_they_are(thickness_mm):
    """So that a file that cannot tell the thickness gives the same array."""
    scan = acquired_by(lambda points: np.zeros(points.shape[:-1]), depths_mm=np.arange(0, 21, 4.0), half_mm=9)
    grid = Grid((1, 1, 81), (2.0, 2.0, 0.4), (0.0, 0.0, -5.1))
    seen = grid.axes_mm[2][resample(replace(scan, thickness_mm=thickness_mm), grid)[0, 0] == 0]
    assert -2 <= seen[0] <= -1.6
    assert 21.6 <= seen[-1] <= 22


@pytest.mark.parametrize(("thickness_mm", "voxels"), [(6.0, 3), (0.0, 1), (np.inf, 1)])
def test_a_single_slice(thickness_mm, voxels):
    scan = part(acquired_by(lambda points: np.full(points.shape[:-1], 12.0), depths_mm=np.array([0.3, 4.3])), 0, 1)
    values = resample(replace(scan, thickness_mm=thickness_mm), GRID)
    assert np.count_nonzero(np.all(np.abs(values - 12) < 1e-3, axis=(0, 1))) == voxels


def test_far_from_the_scan_there_is_air():
    far = replace(GRID, first_mm=(900.0, 900.0, 900.0))
    np.testing.assert_array_equal(resample(some_scan(), far), -1000)
