"""What a scanner does to a head: the colour of its noise, streaks, coverage, and what differs from site to site."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, gaussian_filter, gaussian_filter1d, shift

from headct.virtual.acquisition import (
    MATRIX,
    MINERAL_HU,
    MISSED_MM,
    TISSUES,
    Acquisition,
    _displaced,
    _hardened,
    _moved,
    _noise,
    _seen_at,
    blurred,
    mineral_factor,
    take,
)
from headct.virtual.anatomy import Anatomy
from headct.virtual.archive import sharper
from headct.virtual.bending import COARSE
from headct.virtual.findings.mixture import one_of
from headct.virtual.interpolation import Grid
from headct.virtual.metal import FILLED, METAL_HU, Metal, lay_metal, metal_of, spots_in
from headct.virtual.noise import Kernel, correlated, noise_of, overlap_per_mm
from headct.virtual.patient import Patient
from headct.virtual.sites import SITES, Protocol
from headct.virtual.strap import BAND_HU, lay_strap

STANDARD = Kernel(blur_mm=0.42, sharpening=0.0, noise_blur_mm=0.0, limit_per_mm=0.8)
STEPS = np.array([0.0, -1.0, 0.0]), np.array([-1.0, 0.0, 0.0])


def mean_per_mm(noise: np.ndarray, pixel_mm: float) -> float:
    """Of the variance of noise (slices, n, n)."""
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0)
    along = np.fft.fftfreq(noise.shape[1], pixel_mm)
    return float((power * np.hypot(along, along[:, None])).sum() / power.sum())


def test_noise_has_the_spectrum_of_its_kernel() -> None:
    pixel_mm, size = 0.48, 256
    noise = noise_of(np.random.default_rng(1), (12, size, size), STANDARD, pixel_mm).numpy()
    assert noise.dtype == np.float32
    assert noise.std() == pytest.approx(1, abs=0.02)
    along = np.fft.fftfreq(size, pixel_mm)
    per_mm = np.hypot(along, along[:, None])
    found = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0)
    asked = STANDARD.noise_power(per_mm) * np.sinc(along * pixel_mm) ** 2 * np.sinc(along[:, None] * pixel_mm) ** 2
    scale = asked.sum() / found.sum()
    for low, high in pairwise((0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)):
        ring = (per_mm >= low) & (per_mm < high)
        assert found[ring].sum() * scale == pytest.approx(asked[ring].sum(), rel=0.08)


def test_noise_of_a_standard_kernel_is_like_that_of_real_ones() -> None:
    """Level below 0.2 per mm and less than half of it at 0.5; mean frequencies of real series are 0.31 to 0.37."""
    low, middle, high = STANDARD.noise_power(np.array([0.06, 0.16, 0.5]))
    assert 0.8 < low / middle < 1.2
    assert high < middle / 2
    noise = noise_of(np.random.default_rng(2), (4, 256, 256), STANDARD, 0.48).numpy()
    assert 0.30 < mean_per_mm(noise, 0.48) < 0.40


@pytest.mark.parametrize(
    ("coarser", "finer"),
    [
        (replace(STANDARD, blur_mm=0.55), STANDARD),
        (replace(STANDARD, noise_blur_mm=0.4), STANDARD),
        (STANDARD, replace(STANDARD, sharpening=0.5)),
        (STANDARD, replace(STANDARD, blur_mm=0.3, limit_per_mm=1.05)),
    ],
)
def test_soft_and_iterative_kernels_have_coarser_noise(coarser: Kernel, finer: Kernel) -> None:
    noises = (noise_of(np.random.default_rng(3), (2, 256, 256), kernel, 0.48) for kernel in (coarser, finer))
    found = [mean_per_mm(noise.numpy(), 0.48) for noise in noises]
    assert found[0] < 0.97 * found[1]


def test_a_second_series_for_bone_has_finer_and_stronger_noise() -> None:
    visit = Acquisition.draw(3, SITES["site-c"])
    sharp = sharper(visit)
    assert sharp.noise_hu > 2 * visit.noise_hu
    soft, fine = (one.kernel.noise_power(np.array([0.15, 0.55])) for one in (visit, sharp))
    assert fine[1] / fine[0] > 3 * soft[1] / soft[0]
    assert (sharp.turn_deg, sharp.noise_seed) == (visit.turn_deg, visit.noise_seed)


def test_large_pixels_hold_the_mean_of_small_ones() -> None:
    fine = noise_of(np.random.default_rng(4), (6, 512, 512), STANDARD, 0.5).numpy()
    blocks = fine.reshape(6, 128, 4, 128, 4).mean(axis=(2, 4))
    assert blocks.std() == pytest.approx(STANDARD.spread(2.0) / STANDARD.spread(0.5), rel=0.03)
    direct = noise_of(np.random.default_rng(5), (6, 128, 128), STANDARD, 2.0).numpy() * blocks.std()
    assert mean_per_mm(direct, 2.0) == pytest.approx(mean_per_mm(blocks, 2.0), rel=0.03)


@pytest.mark.parametrize("together", [2, 3, 7])
def test_noise_is_the_same_however_many_slices_are_worked_on_together(together: int) -> None:
    alone, joint = (noise_of(np.random.default_rng(8), (7, 60, 60), STANDARD, 1.0, together=n) for n in (1, together))
    torch.testing.assert_close(joint, alone)


@pytest.mark.parametrize("sigma", [0.21, 0.8, 2.4, 30.0])
def test_a_blur_and_a_shift_are_those_of_scipy(sigma: float) -> None:
    planes = np.random.default_rng(9).normal(0, 1000, (2, 40, 31)).astype(np.float32)
    found = blurred(torch.from_numpy(planes), sigma).numpy()
    np.testing.assert_allclose(found, gaussian_filter(planes, (0, sigma, sigma), mode="nearest"), atol=2e-3)
    for by in (-sigma, sigma):
        moved = _displaced(_displaced(torch.from_numpy(planes), 1, by), 2, -by / 2).numpy()
        expected = shift(planes, (0, by, -by / 2), order=1, mode="nearest")
        np.testing.assert_allclose(moved, expected, atol=0.02)


@pytest.mark.parametrize(("thickness", "wings"), [(5.0, 0.8), (1.0, 0.3), (0.75, 0.25)])
def test_slices_share_what_their_profiles_share(thickness: float, wings: float) -> None:
    step = 0.005
    z = np.arange(-12, 12, step)
    profile = gaussian_filter1d((np.abs(z) < thickness / 2) / thickness, wings / step)
    for apart in (0.0, 0.6 * thickness, thickness, 2 * thickness):
        moved = np.roll(profile, round(apart / step))
        assert overlap_per_mm(thickness, apart, wings) == pytest.approx((profile * moved).sum() * step, abs=3e-3)


@pytest.mark.parametrize("asked", [0.0, 0.2, 0.4])
def test_neighbouring_slices_are_correlated_as_asked(asked: float) -> None:
    white = np.random.default_rng(6).standard_normal((30, 64, 64), dtype=np.float32)
    noise = correlated(torch.from_numpy(white), asked).numpy()
    assert noise.shape == (28, 64, 64)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert (noise[1:] * noise[:-1]).mean() == pytest.approx(asked, abs=0.02)
    assert (noise[3:] * noise[:-3]).mean() == pytest.approx(0, abs=0.02)


def test_the_same_visit_gives_the_same_bytes_and_the_noise_that_was_asked_for() -> None:
    patient = Patient.draw(6, prevalence={})
    visit = replace(Acquisition.draw(6, SITES["site-c"]), below_mm=-20.0, above_mm=28.0, motion_mm=(0.0, 0.0))
    visit = replace(visit.coarsened(2.0), noise_hu=5.0, strap_mm=None)
    one, again, other = (take(patient, replace(visit, noise_seed=seed)).scan.hu for seed in (1, 1, 2))
    assert one.tobytes() == again.tobytes()
    middle = (slice(None), slice(40, -40), slice(40, -40))
    size = (1.085 / patient.anatomy.mean_scale) ** 3
    spread = np.std((one - other.astype(float))[middle]) / np.sqrt(2)
    assert spread == pytest.approx(5.0 * size * 1.12, rel=0.12)


def test_metal_belongs_to_the_patient_alone() -> None:
    assert metal_of(11) == metal_of(11)
    everyone = [metal_of(seed) for seed in range(4000)]
    filled = np.mean([any(piece.place_mm[2] < -60 for piece in pieces) for pieces in everyone])
    assert filled == pytest.approx(FILLED, abs=4 * np.sqrt(FILLED / 4000))
    assert {len(pieces) for pieces in everyone} >= {0, 1, 2, 5}


def test_metal_is_seen_in_the_slices_that_cut_it() -> None:
    pieces = [Metal((0.0, 0.0, 0.0), 2.0, 200.0)]
    places = np.array([[5.0, -7.0, 1.0]])
    origin = np.array([30.0, 30.0, 0.0])
    (spot,) = spots_in(pieces, places, origin, STEPS, 5.0)
    assert (spot.row, spot.col) == pytest.approx((37.0, 25.0))
    assert 0 < spot.share < 0.8
    assert spots_in(pieces, places, origin + np.array([0.0, 0.0, 5.6]), STEPS, 5.0) == []


def test_streaks_are_lines_through_the_metal_that_fade() -> None:
    hu = np.zeros((101, 101), dtype=np.float32)
    pieces = [Metal((0.0, 0.0, 0.0), 2.0, 200.0)]
    (spot,) = spots_in(pieces, np.array([[0.0, 0.0, 0.0]]), np.array([50.0, 50.0, 0.0]), STEPS, 1.0)
    lay_metal(hu, [spot], 1.0, np.random.default_rng(7))
    assert hu[50, 50] == pytest.approx(METAL_HU)
    np.testing.assert_allclose(hu, hu[::-1, ::-1], atol=1e-2)  # the same on both sides
    rows, cols = np.mgrid[-50:51, -50:51]
    away = np.hypot(rows, cols)
    near, far = (hu[(away > low) & (away < low + 8)].std() for low in (6, 40))
    assert near > 3 * far > 3
    assert abs(hu[away > 6].mean()) < 0.3 * hu[away > 6].std()


def test_petrous_streaks_do_not_heed_what_lies_in_the_brain() -> None:
    anatomy = Anatomy.draw(8)
    visit = replace(Acquisition.draw(8, SITES["site-b"]), cupping_hu=0.0, petrous_hu=10.0, petrous_streaks_hu=6.0)
    axes = torch.arange(-60, 61, 4.0), torch.arange(-90, 41, 4.0), torch.arange(-50, 60, 4.0)
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    added = []
    for findings in ((), (one_of("iph", 8), one_of("sdh", 8))):
        patient = Patient(8, anatomy, findings)
        before = patient.paint(points, 2.0)
        values = before.hu.clone()
        added.append((_hardened(before, visit, patient, points).hu - values)[before.cavity_mm < -2])
    torch.testing.assert_close(added[0], added[1], atol=1e-3, rtol=0)
    assert added[0].min() < -5
    assert added[0][points[before.cavity_mm < -2][:, 2] > 10].abs().max() < 0.05


def test_bone_is_denser_at_a_lower_voltage_and_brain_is_not() -> None:
    assert mineral_factor(80) / mineral_factor(140) == pytest.approx(1.47)
    assert mineral_factor(120) == 1
    patient, usual = Patient.draw(8), Acquisition.draw(8, SITES["site-c"])
    points = (torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * 180
    hu = {}
    for kvp in (100.0, 120.0):
        visit = replace(usual, protocol=replace(usual.protocol, kvp=kvp), cupping_hu=0.0, petrous_hu=0.0)
        hu[kvp] = _seen_at(patient.paint(points, 1.0), replace(visit, petrous_streaks_hu=0.0), patient, points).hu
    bone = hu[120.0] > MINERAL_HU
    assert 500 < bone.sum() < 15_000
    torch.testing.assert_close(hu[100.0][~bone], hu[120.0][~bone])
    torch.testing.assert_close(hu[100.0][bone] - MINERAL_HU, (hu[120.0][bone] - MINERAL_HU) * mineral_factor(100))


def test_what_a_fracture_changes_follows_the_voltage() -> None:
    """Oracle: the same head without the fracture, wherever its change is the whole difference: the scalp swells too."""
    anatomy, points = Anatomy.draw(8), (torch.rand(400_000, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * 180
    broken, sound = Patient(8, anatomy, (one_of("fracture", 8),)), Patient(8, anatomy, ())
    usual = replace(Acquisition.draw(8, SITES["site-c"]), cupping_hu=0.0, petrous_hu=0.0, petrous_streaks_hu=0.0)
    whole, changes = None, []
    for kvp in (120.0, 100.0):
        visit = replace(usual, protocol=replace(usual.protocol, kvp=kvp))
        with_it, without = (_seen_at(one.paint(points, 1.0), visit, one, points) for one in (broken, sound))
        change = with_it.changes["fracture"].hu
        if whole is None:
            whole = ((with_it.hu - change - without.hu).abs() < 0.01) & (change < -300)
        torch.testing.assert_close((with_it.hu - change)[whole], without.hu[whole], atol=0.01, rtol=0)
        changes.append(change[whole])
    assert whole is not None
    assert whole.sum() > 20
    assert (changes[1] < changes[0]).all()


def test_a_strap_lies_over_skin_and_in_air_alone() -> None:
    y, x = np.mgrid[60:-61:-1, -60:61]
    head, sinus = np.hypot(x, y) < 40, np.hypot(x, y - 30) < 6
    hu = np.where(head & ~sinus, 40.0, -1000.0).astype(np.float32)
    lay_strap(hu, y[:, :1].astype(float), 1.0)
    assert (hu[head & ~sinus] == 40).all()
    assert (hu[sinus] == -1000).all()
    band = ~head & (hu > -990)
    assert hu[band].max() == BAND_HU
    assert y[band].min() > -21
    assert np.hypot(x, y)[band].max() < 46


@pytest.mark.parametrize("name", SITES)
def test_the_field_of_view_makes_the_pixels(name: str) -> None:
    for seed in range(12):
        visit = Acquisition.draw(seed, SITES[name])
        low, high = visit.protocol.field_mm
        assert low <= visit.field_mm <= high
        assert round(visit.field_mm / visit.pixel_mm) == MATRIX
        coarse = visit.coarsened(2.0)
        assert coarse.field_mm == visit.field_mm
        assert coarse.noise_hu < visit.noise_hu


def test_some_scans_are_truncated() -> None:
    site = SITES["site-d"]
    never = replace(site, protocols=tuple(replace(protocol, truncated=0.0) for protocol in site.protocols))
    always = replace(site, protocols=tuple(replace(protocol, truncated=1.0) for protocol in site.protocols))
    low = high = 0
    for seed in range(60):
        usual, cut = Acquisition.draw(seed, never), Acquisition.draw(seed, always)
        assert replace(cut, protocol=usual.protocol, below_mm=usual.below_mm, above_mm=usual.above_mm) == usual
        below, above = usual.below_mm - cut.below_mm, usual.above_mm - cut.above_mm
        assert (below > 0) != (above > 0)
        assert max(below, 2 * above) == pytest.approx(np.clip(max(below, 2 * above), *MISSED_MM))
        low, high = low + (below > 0), high + (above > 0)
    assert low > high > 5


def test_sites_differ_in_nearly_everything_that_scanners_differ_in() -> None:
    habits = (
        "manufacturer", "kernel", "thickness_mm", "tilt_deg", "blur_mm", "noise_hu", "offset_hu", "field_mm",
        "transfer_syntax", "truncated", "strap", "wings_mm",
    )  # fmt: skip
    defaults = {name: getattr(Protocol, name, None) for name in habits}
    for habit in habits:
        values = {site.name: {getattr(protocol, habit) for protocol in site.protocols} for site in SITES.values()}
        assert len(set.union(*values.values()) | {defaults[habit]} - {None}) > 2, habit
    for one, other in combinations(SITES.values(), 2):
        differing = [
            habit
            for habit in habits
            if {getattr(p, habit) for p in one.protocols} != {getattr(p, habit) for p in other.protocols}
        ]
        assert len(differing) >= 9, (one.name, other.name, differing)


def test_motion_is_as_far_as_asked_at_any_pixel() -> None:
    """Of a spot that moves by 1.6 mm down and 0.8 mm across the middle shifts by four tenths of that."""
    visit = replace(Acquisition.draw(1, SITES["site-a"]), motion_mm=(0.8, 1.6))
    for pixel_mm in (0.5, 1.0, 2.0, 4.0):
        hu = np.full((6, 64, 64), -1000.0, dtype=np.float32)
        hu[:, 30:33, 40:43] = 40.0
        hu[:, -6:] = 200.0  # the couch
        moved = _moved(torch.from_numpy(hu), replace(visit, pixel_mm=pixel_mm)).numpy()
        (changed,) = np.nonzero((moved != hu).any(axis=(1, 2)))
        assert 2 <= len(changed) < 6
        for plane in moved[changed]:
            spot = plane[20:45, 30:55] + 1000.0
            down, across = ((spot * axis).sum() / spot.sum() for axis in np.mgrid[20:45, 30:55])
            expected = 31 + 0.4 * 1.6 / pixel_mm, 41 + 0.4 * 0.8 / pixel_mm
            assert (down, across) == pytest.approx(expected, abs=1e-3)
            np.testing.assert_allclose(plane[:20], -1000)  # nothing of the couch comes in at the top


@pytest.mark.parametrize("pixel_mm", [0.5, 2.0])
def test_noise_falls_off_over_the_same_length_at_any_pixel(pixel_mm: float) -> None:
    """Noise beside the skin to noise in open air; 3 mm away nothing of the body is left."""
    rows = round(240 / pixel_mm)
    hu = np.full((40, rows, rows), -1000.0, dtype=np.float32)
    hu[:, :, : rows // 2] = 40.0
    visit = replace(Acquisition.draw(1, SITES["site-a"]), pixel_mm=pixel_mm)
    visit = replace(visit, protocol=replace(visit.protocol, gap_mm=5.0, thickness_mm=5.0))
    drawn = _noise(torch.from_numpy(hu), visit, Patient.draw(1, prevalence={}), np.full(40, 5.0))
    noise = drawn.numpy().std(axis=(0, 1))
    near, far = rows // 2 + round(4 / pixel_mm), rows // 2 + round(12 / pixel_mm)
    assert noise[near : near + max(2, round(4 / pixel_mm))].mean() == pytest.approx(
        noise[far : far + 4].mean(), rel=0.12
    )


@pytest.mark.parametrize("below_mm", [70.0, 13.0, 12.0, -10.0])
def test_two_stacks_join_without_a_gap_wherever_they_begin(below_mm: float) -> None:
    visit = Acquisition.draw(1, SITES["site-b"])
    protocol = next(one for one in SITES["site-b"].protocols if one.second_stack)
    positions, thickness = replace(visit, protocol=protocol, below_mm=below_mm, above_mm=60.0).slices_mm
    assert positions[0] == -below_mm
    np.testing.assert_allclose(np.diff(positions), (thickness[1:] + thickness[:-1]) / 2)


def test_tissues_fill_the_head_and_change_nothing() -> None:
    patient = Patient.draw(12, prevalence={"iph": 1.0})
    visit = replace(Acquisition.draw(12, SITES["site-a"]).coarsened(4.0), below_mm=10.0, above_mm=30.0)
    plain, kept = take(patient, visit), take(patient, visit, tissues=True)
    assert plain.scan.hu.tobytes() == kept.scan.hu.tobytes()
    assert set(kept.shares) == set(plain.shares) == {"iph", "edema"}
    assert (set(plain.tissues), set(kept.tissues)) == (set(), set(TISSUES))
    middle = kept.scan.hu[kept.tissues["brain"] > 0.9]
    assert 20 < np.median(middle) < 45
    assert np.median(kept.scan.hu[kept.tissues["skull"] > 0.9]) > 300


@pytest.mark.parametrize("name", ["iph", "sdh", "fracture"])
def test_a_twin_is_bit_equal_beyond_the_reach_of_the_finding(name: str) -> None:
    """The reach: cells of the coarse grid whose maps or fields differ, voxels with a share of the finding.

    Widened by a pixel each for kernel, sharpening, motion and the change of noise in air, and by a slice.
    """
    seed = next(seed for seed in range(200) if len(metal_of(seed)) > 1)
    visit = replace(Acquisition.draw(seed, SITES["site-a"]).coarsened(4.0), blur_mm=1.0, sharpening=0.2)
    visit = replace(visit, motion_mm=(1.5, 0.7), strap_mm=30.0, below_mm=90.0)
    ill = Patient(seed, Anatomy.draw(seed), (one_of(name, seed),))
    well = ill.without(name)
    taken, scan = take(ill, visit), take(well, visit).scan
    rows, cols = (
        np.arange(n)[:, None] * step
        for n, step in zip(scan.hu.shape[1:], (scan.row_step_mm, scan.col_step_mm), strict=True)
    )
    points = scan.origins_mm[:, None, None] + rows[:, None] + cols
    head_mm = visit.to_head(torch.from_numpy(points.reshape(-1, 3).astype(np.float32)))
    shared = well.bend.values.shape[-1]  # further fields are of the finding alone; its shares tell where they act
    bent = (ill.bend.values[..., :shared] != well.bend.values).any(dim=-1, keepdim=True).float()
    reach = Grid(bent.numpy(), *COARSE.corners).sample(head_mm).reshape(scan.hu.shape).numpy() > 0
    for share in taken.shares.values():
        reach |= share > 0
    within = binary_dilation(reach, np.ones((1, 3, 3), dtype=bool), iterations=4)
    beyond = ~binary_dilation(within, np.ones((3, 1, 1), dtype=bool))
    differ = taken.scan.hu != scan.hu
    assert differ[reach].mean() > 0.05
    assert (beyond & (scan.hu > -200)).sum() > 0.1 * (scan.hu > -200).sum()
    assert not differ[beyond].any()
    assert (scan.hu == 3071).any()  # metal
