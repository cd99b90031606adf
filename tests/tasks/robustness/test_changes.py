"""Changes of a head whose result is known: by a closed form, or by CT-FM's fixtures of augmentations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from headct.failure import Misuse
from headct.pretraining.views import Crops, View, crop
from headct.tasks.robustness import KINDS, Change, changed
from headct.tasks.robustness.changes import all_changes, along_curve

SPACING_MM = np.array([2.0, 2.0, 4.0])
FLAT = np.full((20, 24, 16), 40, np.int16)
RAMP = (np.arange(20)[:, None, None] * 30 + np.zeros((20, 24, 16))).astype(np.int16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_is_the_same_again_and_leaves_the_scan_alone(kind: str) -> None:
    rng = np.random.default_rng(0)
    hu = rng.normal(30, 10, (20, 24, 16)).astype(np.int16)
    before = hu.copy()
    once, again, other = (changed(hu, SPACING_MM, Change(kind, KINDS[kind].sizes[1]), name) for name in ("a", "a", "b"))
    assert_array_equal(hu, before)
    assert_array_equal(once, again)
    assert once.dtype == np.int16
    assert (once != hu).any()
    assert (other != once).any() == (kind in ("noise", "shift", "turn"))


def test_noise_has_the_size_it_says() -> None:
    hu = changed(np.full((60, 60, 60), 40, np.int16), SPACING_MM, Change("noise", 10), "a")
    assert hu.mean() == pytest.approx(40, abs=0.1)
    assert hu.std() == pytest.approx(10, rel=0.01)


def test_kernels_and_slices_leave_what_is_flat_and_blur_a_ramp_only_at_its_ends() -> None:
    for kind in ("soft", "sharp", "thick"):
        assert_array_equal(changed(FLAT, SPACING_MM, Change(kind, 2), "a"), FLAT)
    assert_allclose(changed(RAMP, SPACING_MM, Change("soft", 1), "a")[4:-4], RAMP[4:-4], atol=1)


def test_thick_slices_are_the_mean_over_their_thickness() -> None:
    """Slices of 12 mm over gaps of 4 mm: the mean of three. In the plane nothing changes."""
    hu = np.random.default_rng(0).normal(0, 100, (9, 9, 20)).astype(np.int16)
    mean = (hu[..., :-2].astype(float) + hu[..., 1:-1] + hu[..., 2:]) / 3
    assert_allclose(changed(hu, SPACING_MM, Change("thick", 12), "a")[..., 1:-1], mean, atol=0.51)


def test_a_shift_and_a_turn_move_by_what_they_say() -> None:
    """Oracle: a linear ramp, of which trilinear interpolation is exact, read where the head has moved to."""
    gradient = np.array([7.0, -5.0, 11.0])  # HU per mm
    places = np.stack(np.meshgrid(*map(np.arange, (24, 26, 20)), indexing="ij"), axis=-1)
    middle_mm = (np.array([24, 26, 20]) - 1) / 2 * SPACING_MM
    hu = np.rint((places * SPACING_MM - middle_mm) @ gradient).astype(np.int16)
    inner = (slice(8, -8), slice(8, -8), slice(7, -7))
    shifted = changed(hu, SPACING_MM, Change("shift", 5), "a").astype(float) - hu
    assert np.ptp(shifted[inner]) <= 3  # the same everywhere but for rounding
    assert np.abs(shifted[inner]).mean() <= 5 * np.linalg.norm(gradient)
    turned = changed(hu, SPACING_MM, Change("turn", 10), "a").astype(float)
    slope = np.stack([np.gradient(turned, mm, axis=axis)[inner].mean() for axis, mm in enumerate(SPACING_MM)])
    assert np.linalg.norm(slope) == pytest.approx(np.linalg.norm(gradient), rel=0.02)  # a rotation keeps lengths
    angle = np.rad2deg(np.arccos(slope @ gradient / np.linalg.norm(slope) / np.linalg.norm(gradient)))
    assert 0 < angle <= 10.5
    assert turned[12, 13, 10] == pytest.approx(hu[12, 13, 10], abs=25)  # next to the middle, which stays


def test_energy_stretches_what_is_denser_than_water() -> None:
    hu = np.array([[[-1000, -500, 0, 100, 1000]]], np.int16)
    assert changed(hu, SPACING_MM, Change("energy", 10), "a").tolist() == [[[-1000, -500, 0, 110, 1100]]]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_curve_is_the_published_histogram_shift(seed: int, shared: Path) -> None:
    arrays = np.load(shared / "fixtures" / "ct-fm" / "tasks.npz")
    manifest = json.loads((shared / "fixtures" / "ct-fm" / "manifest.json").read_text())
    points = manifest["files"]["tasks.npz"]["info"][f"aug/histshift_seed{seed}"]
    image = arrays["aug/input"]
    low, high = float(image.min()), float(image.max())
    before, after = (low + np.array(points[name]) * (high - low) for name in ("reference", "floating"))
    theirs = arrays[f"aug/histshift_seed{seed}"]
    assert_allclose(along_curve(image, before, after), theirs, atol=1e-5)


@pytest.mark.parametrize("scale", ["0.33", "0.5", "0.77", "1.0"])
def test_crops_are_the_published_resized_ones(scale: str, shared: Path) -> None:
    """Inside: at the border theirs repeats the crop's last voxels, ours looks at what lies there."""
    arrays = np.load(shared / "fixtures" / "ct-fm" / "tasks.npz")
    manifest = json.loads((shared / "fixtures" / "ct-fm" / "manifest.json").read_text())
    about = manifest["files"]["tasks.npz"]["info"][f"aug/resized_crop_scale{scale}"]
    roi, start, shape = np.array(about["roi"]), np.array(about["start"]), np.array([16, 20, 24])
    # our voxels are cubes: an array whose spacing makes the crop's voxels cubes of 1 mm
    spacing_mm = tuple(shape / roi)
    centre_mm = tuple((start + (roi - 1) / 2) * np.array(spacing_mm))
    view = View(centre_mm, 1.0, (0, 0, 0), False, 1, 0, 0, 0, 0, 0, 0, 0, 1)  # type: ignore[arg-type]
    crops = Crops(views=1, shape=(16, 20, 24), edge_mm=(16.0, 16.0), overhang=0.0)
    image = torch.from_numpy(arrays["aug/input"])
    ours = crop(image, [view], crops, spacing_mm, outside=0.0)[0].numpy()  # type: ignore[arg-type]
    theirs = arrays[f"aug/resized_crop_scale{scale}"][0]
    edge = [int(np.ceil(n / (2 * r))) for n, r in zip(shape, roi, strict=True)]
    inner = tuple(slice(e, -e) for e in edge)
    assert_allclose(ours[inner], theirs[inner], atol=2e-5)


def test_a_soft_kernel_is_the_published_smoothing_in_its_plane(shared: Path) -> None:
    """Theirs smooths along all axes; ours in the plane, twice, with the axes turned in between, sums up to the same.

    Variances add: (x, y), (y, z) and (z, x) with 0.9 / sqrt(2) voxels each are 0.9 along each. Sampled and integrated
    kernels of so few voxels differ by up to 0.01 of the range.
    """
    arrays = np.load(shared / "fixtures" / "ct-fm" / "tasks.npz")
    hu = np.rint(arrays["aug/input"][0] * 10_000).astype(np.int16)
    for _ in range(3):
        hu = changed(hu, np.ones(3), Change("soft", 0.9 / np.sqrt(2)), "a").transpose(1, 2, 0)
    theirs = arrays["aug/gaussian_smooth_sigma0.9"][0]
    inner = (slice(4, -4),) * 3
    assert_allclose(hu[inner] / 10_000, theirs[inner], atol=0.03)
    assert np.corrcoef(hu[inner].ravel(), theirs[inner].ravel())[0, 1] > 0.99


def test_every_change_is_named_and_nonsense_refused() -> None:
    assert len(all_changes()) == sum(len(kind.sizes) for kind in KINDS.values())
    assert Change("noise", 5).words == "noise 5 HU"
    assert Change("sharp", 0.5).words == "sharp 0.5"
    with pytest.raises(Misuse, match="there is no change 'magic'"):
        Change("magic", 1)
    with pytest.raises(Misuse, match="above 0"):
        Change("noise", float("nan"))


@pytest.mark.parametrize("kind", ["shift", "turn"])
def test_a_head_that_lies_elsewhere_is_as_sharp(kind: str) -> None:
    """Half a voxel: of structures four voxels long nearly all is kept. Trilinear interpolation took a quarter away."""
    rng = np.random.default_rng(0)
    white = np.fft.fftn(rng.normal(0, 1, (48, 48, 48)))
    cycles = np.sqrt(sum(axis**2 for axis in np.meshgrid(*[np.fft.fftfreq(48)] * 3, indexing="ij")))
    band = np.fft.ifftn(np.where((cycles > 0.15) & (cycles < 0.3), white, 0)).real
    hu = np.rint(40 + 300 * band / band.std()).astype(np.int16)
    size = {"shift": 0.5 * np.sqrt(3), "turn": 2.0}[kind]  # mm of voxels of one mm, and degrees
    other = changed(hu, np.ones(3), Change(kind, size), "a")
    inside = (slice(8, -8),) * 3
    assert other[inside].var() > 0.9 * hu[inside].var()
