"""From scan to array. Oracles: the head drawn in millimetres, evaluated at the centre of each voxel of the array; the
array of the same scan stored or acquired otherwise; a real series beside what dcm2niix made of it."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing.heads import INNER_MM, Anatomy, Bottle, Scanner
from preparing.volumes import flipped, part, permuted, scan_of, scan_of_dicom
from scipy.spatial.transform import Rotation

from headct.failure import Misuse
from headct.preparing import Prepared, prepare, recipes
from headct.preparing.prepared import MIN_COVERAGE
from headct.scan import Header, Rejection, Scan

SCANNER = Scanner(pixels=112, pixel_mm=2.1, gaps_mm=3.0, samples=1)


def of(scan: Scan, recipe: str = "head", **settings) -> Prepared:
    prepared = prepare(scan, recipe, **settings)
    assert isinstance(prepared, Prepared)
    return prepared


def points_of(prepared: Prepared) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, prepared.array.shape), indexing="ij"), axis=-1)
    return index @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]


def deep_in_the_brain(points: np.ndarray) -> np.ndarray:
    """At least 5 mm from the skull and its base."""
    return (np.sum((points / (INNER_MM - 5)) ** 2, axis=-1) < 1) & (points[..., 2] > -22)


@pytest.mark.parametrize("name", ["head", "head-axial", "head-fine"])
def test_ours_are_int16_ras_of_their_shape(name):
    scan = SCANNER.scan(Anatomy(metal=True))
    before = scan.hu.copy()
    prepared = of(scan, name)
    assert prepared.array.shape == recipes[name].shape
    assert prepared.array.dtype == np.int16
    assert prepared.array.flags.c_contiguous
    np.testing.assert_array_equal(np.diag(prepared.affine), [*recipes[name].spacing_mm, 1])
    np.testing.assert_array_equal(scan.hu, before)
    x, y, z = points_of(prepared)[np.unravel_index(np.argmax(prepared.array), prepared.array.shape)]
    np.testing.assert_allclose((x, y, z), (-20, 20, -10), atol=5)  # the clip lies on the left, in front, below


def test_values_are_those_of_the_head():
    """Within the brain, away from edges, the median voxel is off by the rounding alone; 2 HU cover 95 %."""
    prepared = of(SCANNER.scan(Anatomy(bleed_ml=60)))
    points = points_of(prepared)
    inside = deep_in_the_brain(points)
    error = np.abs(prepared.array[inside] - Anatomy(bleed_ml=60).hu_at(points[inside]))
    assert np.median(error) <= 0.5
    assert np.percentile(error, 90) < 4


@pytest.mark.parametrize(
    ("other", "mean_hu"),
    [
        ({"tilt_deg": 18.0}, 1.0),
        ({"tilt_deg": -18.0}, 1.0),
        ({"gaps_mm": (3.0,) * 34 + (4.5,) * 26}, 1.0),
        ({"gaps_mm": 1.5}, 1.0),
        ({"gaps_mm": 5.0, "samples": 3}, 2.0),
        ({"pixels": 150, "pixel_mm": 1.5}, 1.0),
        ({"first_mm": -300.0}, 0.5),
    ],
    ids=["tilt 18", "tilt -18", "uneven", "1.5 mm", "5 mm", "finer pixels", "down to the shoulders"],
)
def test_the_same_head_acquired_otherwise(other, mean_hu):
    """Grey, white, ventricles and blood span 60 HU with sharp borders, which each acquisition blurs in its own way:
    the mean difference in the brain stays below 1 HU, below 2 where slices are thick."""
    anatomy = Anatomy(bleed_ml=60)
    first, second = of(SCANNER.scan(anatomy)), of(replace(SCANNER, **other).scan(anatomy))
    shift = (second.affine - first.affine)[:3, 3] / 2
    np.testing.assert_array_equal(shift, np.round(shift))  # frames lie on whole voxels
    assert np.abs(shift).max() <= 1
    moved = np.roll(second.array, np.round(shift).astype(int), axis=(0, 1, 2))
    inside = deep_in_the_brain(points_of(first))
    assert np.abs(moved.astype(int) - first.array)[inside].mean() < mean_hu


def test_table_and_headrest_change_nothing_in_the_head():
    with_table, without = (of(SCANNER.scan(Anatomy(table=t, headrest=t))) for t in (True, False))
    np.testing.assert_array_equal(with_table.affine, without.affine)
    inside = deep_in_the_brain(points_of(without))
    np.testing.assert_array_equal(with_table.array[inside], without.array[inside])


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0)], ids=str)
@pytest.mark.parametrize("flips", [(False, True, True), (True, False, True)], ids=str)
def test_the_same_scan_stored_otherwise_is_the_same_array(order, flips):
    scan = replace(SCANNER, gaps_mm=4.0).scan(Anatomy())
    again = flipped(permuted(scan, order), **dict(zip(("slices", "rows", "cols"), flips, strict=True)))
    first, second = of(scan), of(again)
    np.testing.assert_array_equal(second.array, first.array)
    np.testing.assert_array_equal(second.affine, first.affine)


def test_a_tilted_uneven_scan_stored_backwards_is_the_same_array():
    scan = replace(SCANNER, tilt_deg=15.0, gaps_mm=(3.0,) * 30 + (6.0,) * 20).scan(Anatomy())
    np.testing.assert_array_equal(of(flipped(scan, slices=True, rows=True, cols=True)).array, of(scan).array)


def test_positions_in_float32_as_nifti_holds_them_change_next_to_nothing():
    """Positions differ by up to 1e-5 mm, values by a rounding here and there."""
    scan = SCANNER.scan(Anatomy())
    rounded = replace(
        scan,
        origins_mm=(scan.origins_mm + 0.1234).astype(np.float32),
        row_step_mm=scan.row_step_mm.astype(np.float32),
        col_step_mm=scan.col_step_mm.astype(np.float32),
    )
    first, second = of(replace(scan, origins_mm=scan.origins_mm + 0.1234)), of(rounded)
    np.testing.assert_array_equal(first.affine, second.affine)
    difference = np.abs(first.array.astype(int) - second.array)
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 1e-3


def test_no_head_and_too_little_of_one_are_rejections():
    nothing = prepare(SCANNER.scan(Bottle()))
    assert isinstance(nothing, Rejection)
    assert (nothing.code, nothing.files) == ("no-head", ())
    scan = SCANNER.scan(Anatomy())
    single = prepare(part(scan, 41, 42))
    assert isinstance(single, Rejection)
    assert single.code == "cropped"
    half = prepare(part(scan, 43, len(scan.hu)))
    assert isinstance(half, Rejection)
    assert half.code == "cropped"
    assert f"{MIN_COVERAGE:.0%} are asked for" in half.sentence


def test_how_much_must_be_covered_is_the_users_choice():
    scan = SCANNER.scan(Anatomy())
    half = part(scan, 43, len(scan.hu))
    prepared = of(half, min_coverage=0.3)
    assert 0.3 < prepared.coverage < MIN_COVERAGE
    assert isinstance(prepare(scan, min_coverage=1.01), Rejection)


def test_without_the_check_anything_is_framed():
    prepared = of(SCANNER.scan(Bottle(inside_hu=7.0)), check_head=False)
    assert prepared.coverage is None
    assert prepared.array[48, 56, 48] == 7
    assert of(part(SCANNER.scan(Anatomy()), 41, 42), check_head=False).array.max() > 500


def test_published_recipes_look_for_the_head_too():
    scan = SCANNER.scan(Anatomy())
    prepared = of(scan, "fm-hct")
    assert prepared.array.shape == (3, 96, 96, 96)
    assert prepared.coverage > 0.97
    refused = prepare(SCANNER.scan(Bottle()), "fm-hct")
    assert isinstance(refused, Rejection)
    assert refused.code == "no-head"


@pytest.mark.parametrize(
    ("spacing_mm", "complaint"), [((40.0, 0.5, 5.0), "extends over 4440 mm"), ((0.5, 0.01, 5.0), "measure 0.0100 mm")]
)
def test_sizes_that_no_patient_has_are_refused_before_they_fill_the_memory(spacing_mm, complaint):
    scan = scan_of(np.zeros((112, 112, 4), dtype=np.int16), np.diag([*spacing_mm, 1.0]))
    for name in ("head", "fm-hct"):
        refused = prepare(scan, name, check_head=False)
        assert isinstance(refused, Rejection)
        assert refused.code == "no-geometry"
        assert complaint in refused.sentence


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing_mm=st.tuples(*[st.floats(0.1, 40.0)] * 3),
    turn_deg=st.tuples(*[st.floats(-180, 180)] * 3),
    shear=st.floats(-0.5, 0.5),
    values=st.sampled_from([(-1000, -999), (0, 100), (-1024, 3071), (900, 901)]),
    recipe=st.sampled_from(list(recipes)),
    check_head=st.booleans(),
)
def test_any_scan_at_all_is_an_array_or_a_rejection(shape, spacing_mm, turn_deg, shear, values, recipe, check_head):
    volume = np.random.default_rng(0).integers(*values, shape).astype(np.int16)
    affine = np.eye(4)
    steps = np.diag(spacing_mm) @ np.array([[1, 0, 0], [0, 1, shear], [0, 0, 1]])
    affine[:3, :3] = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix() @ steps
    prepared = prepare(scan_of(volume, affine), recipe, check_head=check_head)
    if isinstance(prepared, Prepared):
        assert prepared.array.shape == (recipes[recipe].shape or prepared.array.shape)
        assert prepared.array.dtype == recipes[recipe].dtype
        assert np.all(np.isfinite(prepared.array))
    else:
        assert prepared.code in {"no-head", "cropped", "recipe-unfit"}


def test_a_sliver_between_the_points_of_the_coarse_grid_is_framed_too():
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", 2, degrees=True).as_matrix() @ np.array(
        [[0.1015625, 0, 0], [0, 4, 2], [0, 0, 1]]
    )
    scan = scan_of(np.full((1, 1, 3), 40, np.int16), affine)
    prepared = prepare(scan, "head", check_head=False)
    assert isinstance(prepared, Prepared)
    middle = np.linalg.inv(prepared.affine) @ [*scan.origins_mm.mean(axis=0), 1]
    assert np.all((middle[:3] > 0) & (middle[:3] < prepared.array.shape))


def test_flags_and_recipe_come_along():
    scan = replace(SCANNER.scan(Anatomy()), header=Header(flags=("metal", "tilt")))
    prepared = of(scan, "head-axial")
    assert prepared.flags == ("metal", "tilt")
    assert prepared.recipe is recipes["head-axial"]
    assert of(scan, recipes["head-axial"]).recipe is recipes["head-axial"]


def test_an_unknown_recipe_is_the_users_mistake():
    with pytest.raises(Misuse, match="did you mean head"):
        prepare(SCANNER.scan(Anatomy()), "haed")


def test_a_real_tilted_series_and_what_dcm2niix_made_of_it(shared):
    """dcm2niix shears the slices back, resamples to even gaps and was averaged 2 x 2 in the plane: another resample of
    the same head. The frames agree to the millimetre; brain differs by 2 HU in the mean, bone edges by more."""
    raw = of(scan_of_dicom(shared / "data/dicom/ge_hispeed_tilt"))
    nifti = nibabel.load(shared / "data/nifti/ge_hispeed_dcm2niix_tilt_eq_1mm.nii.gz")
    theirs = of(scan_of(np.maximum(np.asarray(nifti.dataobj), -1024), nifti.affine))
    np.testing.assert_array_equal(raw.affine, theirs.affine)
    brain = (raw.array > 0) & (raw.array < 80)
    brain[:, :, :40] = False  # the skull base, all edges
    difference = np.abs(raw.array.astype(int) - theirs.array)[brain]
    assert np.median(difference) <= 2
    assert difference.mean() < 3
