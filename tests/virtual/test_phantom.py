"""The phantom against its own definition: sampled grids against points, tissues against the literature's values.

Rounding to whole HU is the only difference allowed between a thin scan and the points it lies on (0.5 HU, and 0.1 for
float32 coordinates beside a steep edge).
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from headct.virtual.phantom import Phantom

SPACING_MM = 3.0


def lattice(low: float, high: float, spacing_mm: float = SPACING_MM) -> np.ndarray:
    axis = np.arange(low, high, spacing_mm, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("tilt_deg", [0.0, 18.0, -25.0])
def test_a_thin_scan_holds_the_values_at_its_voxels(plane: str, tilt_deg: float) -> None:
    phantom = Phantom(4)
    scan = phantom.scan(
        positions_mm=[-30, -11, 25], rows=40, cols=50, pixel_mm=5, tilt_deg=tilt_deg, plane=plane, thickness_mm=0.01
    )
    r, c = np.meshgrid(np.arange(40), np.arange(50), indexing="ij")
    for hu, origin in zip(scan.hu, scan.origins_mm, strict=True):
        points = origin + r[..., None] * scan.row_step_mm + c[..., None] * scan.col_step_mm
        np.testing.assert_allclose(hu, phantom.hu_at(points), atol=0.6)


def test_a_thick_slice_is_the_mean_of_thin_ones() -> None:
    thick = Phantom(2).scan(slices=1, rows=64, cols=64, pixel_mm=4, thickness_mm=6)
    depths = [-2.25, -0.75, 0.75, 2.25]
    thin = Phantom(2).scan(positions_mm=depths, rows=64, cols=64, pixel_mm=4, thickness_mm=0.01)
    np.testing.assert_allclose(thick.hu[0], thin.hu.mean(axis=0), atol=1.0)


def test_tilt_and_gaps_are_as_asked() -> None:
    scan = Phantom(0).scan(positions_mm=[0, 4, 8, 15], rows=8, cols=8, pixel_mm=30, tilt_deg=20)
    assert scan.tilt_deg == pytest.approx(20)
    np.testing.assert_allclose(scan.gaps_mm, np.array([4, 4, 7]) * np.cos(np.radians(20)))
    np.testing.assert_allclose(np.ptp(scan.origins_mm, axis=0), [0, 0, 15], atol=1e-9)  # the table moves along z only
    assert scan.row_step_mm[2] < 0 < -scan.row_step_mm[1]  # towards the back and down: slices rise to the face


@pytest.mark.parametrize("seed", range(6))
def test_right_front_and_top_can_be_told(seed: int) -> None:
    phantom = Phantom(seed)
    at = phantom.landmarks_mm
    assert at["calcification"][0] > 20
    assert at["nose"][1] > 80
    assert at["vertex"][2] > 70
    assert at["right-ear"][0] > 60
    assert phantom.hu_at(at["calcification"]) > 800
    mirrored = phantom.to_patient_mm(np.array([-40.0, -6.0, 34.0]))
    assert phantom.hu_at(mirrored) < 60
    tips = np.array([at["nose"], phantom.to_patient_mm((0.0, -103.0, -56.0))])
    assert (phantom.hu_at(tips, table=False) > -300).tolist() == [True, False]
    above = at["vertex"] + [0, 0, 15]
    assert phantom.hu_at(above, table=False) == -1000


@pytest.mark.parametrize("seed", range(6))
def test_brain_volume_and_tissues_are_a_human_adult_s(seed: int) -> None:
    """Intracranial volume of adults is about 1.1 to 1.75 L; values as the radiology textbooks have them."""
    phantom = Phantom(seed)
    points = lattice(-110, 111)
    brain = phantom.holds_brain(points)
    assert 1150 < brain.sum() * SPACING_MM**3 / 1000 < 1700
    hu = phantom.hu_at(points)
    inner = hu[ndimage.binary_erosion(brain, iterations=2)]
    assert 26 < np.median(inner) < 36
    assert 35 < np.percentile(inner, 90) < 41
    assert 0.01 < np.mean(inner < 15) < 0.25  # cerebrospinal fluid
    assert hu.max() < 2000
    assert np.mean(hu == -1000) > 0.3


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_the_skull_is_closed_above_the_foramen_magnum(seed: int) -> None:
    """What is softer than bone inside does not touch what is softer than bone outside."""
    phantom = Phantom(seed)
    axis = np.arange(-125, 126, 1.5, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, np.arange(-50, 110, 1.5, dtype=np.float32), indexing="ij"), axis=-1)
    soft = phantom.hu_at(points, table=False) < 200
    places, _ = ndimage.label(soft)
    brain = places[phantom.holds_brain(points) & soft]
    assert np.bincount(brain).argmax() != places[0, 0, -1]


def test_the_table_is_below_the_head_and_can_be_left_out() -> None:
    points = lattice(-170, 171, 5.0)
    with_table, without = Phantom(3).hu_at(points), Phantom(3).hu_at(points, table=False)
    table = with_table != without
    assert table.any()
    assert points[table][:, 1].max() < -40
    assert -1000 <= with_table[table].min() < with_table[table].max() < 100


@pytest.mark.parametrize("kind", ["iph", "sdh"])
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_bleeds_are_blood_inside_an_unchanged_skull(kind: str, seed: int) -> None:
    points = lattice(-110, 111)
    well, bleeding = Phantom(seed), Phantom(seed, kind)
    inside = ndimage.binary_dilation(well.holds_brain(points), iterations=1)
    before, after = well.hu_at(points), bleeding.hu_at(points)
    outside = ~inside & (points[..., 2] > well.landmarks_mm["foramen-magnum"][2] + 5)
    np.testing.assert_array_equal(before[outside], after[outside])
    blood = inside & (after > 55) & (after < 75) & (np.abs(before - after) > 10)
    assert 5 < blood.sum() * SPACING_MM**3 / 1000 < 150
    side = np.sign(bleeding.drawn_bleed.side)
    assert np.mean(np.sign(points[blood][:, 0]) == side) > 0.9


def test_an_unknown_bleed_is_refused() -> None:
    with pytest.raises(ValueError, match='"iph" or "sdh"'):
        Phantom(1, "edh")


def test_the_same_arguments_give_the_same_bytes_and_another_seed_another_head() -> None:
    settings = {"slices": 3, "rows": 32, "cols": 32, "pixel_mm": 8.0, "noise_hu": 4.0}
    first, again, other = (Phantom(seed).scan(**settings).hu for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first != other) > 0.3


def test_noise_has_the_strength_asked_for() -> None:
    settings = {"slices": 4, "rows": 96, "cols": 96, "pixel_mm": 2.4}
    clean, noisy = Phantom(0).scan(**settings).hu, Phantom(0).scan(**settings, noise_hu=6.0, noise_seed=3).hu
    soft = np.abs(clean) < 200
    assert np.std((noisy - clean)[soft]) == pytest.approx(6.0, rel=0.05)


def test_blur_softens_edges_and_keeps_means() -> None:
    settings = {"slices": 2, "rows": 96, "cols": 96, "pixel_mm": 2.4}
    sharp, soft = Phantom(0).scan(**settings).hu, Phantom(0).scan(**settings, blur_mm=3.0).hu
    assert soft.max() < sharp.max()
    assert soft.mean() == pytest.approx(sharp.mean(), abs=1.0)
