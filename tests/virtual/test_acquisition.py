"""What a scanner does to a head: the colour of its noise, streaks, coverage, and what differs from site to site."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from headct.virtual.acquisition import MATRIX, MISSED_MM, Acquisition, _hardened, take
from headct.virtual.anatomy import Anatomy
from headct.virtual.archive import sharper
from headct.virtual.findings.mixture import one_of
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
    noise = noise_of(np.random.default_rng(1), (12, size, size), STANDARD, pixel_mm)
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
    noise = noise_of(np.random.default_rng(2), (4, 256, 256), STANDARD, 0.48)
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
    found = [mean_per_mm(noise_of(np.random.default_rng(3), (2, 256, 256), k, 0.48), 0.48) for k in (coarser, finer)]
    assert found[0] < 0.97 * found[1]


def test_a_second_series_for_bone_has_finer_and_stronger_noise() -> None:
    visit = Acquisition.draw(3, SITES["site-c"])
    sharp = sharper(visit)
    assert sharp.noise_hu > 2 * visit.noise_hu
    soft, fine = (one.kernel.noise_power(np.array([0.15, 0.55])) for one in (visit, sharp))
    assert fine[1] / fine[0] > 3 * soft[1] / soft[0]
    assert (sharp.turn_deg, sharp.noise_seed) == (visit.turn_deg, visit.noise_seed)


def test_large_pixels_hold_the_mean_of_small_ones() -> None:
    fine = noise_of(np.random.default_rng(4), (6, 512, 512), STANDARD, 0.5)
    blocks = fine.reshape(6, 128, 4, 128, 4).mean(axis=(2, 4))
    assert blocks.std() == pytest.approx(STANDARD.spread(2.0) / STANDARD.spread(0.5), rel=0.03)
    direct = noise_of(np.random.default_rng(5), (6, 128, 128), STANDARD, 2.0) * blocks.std()
    assert mean_per_mm(direct, 2.0) == pytest.approx(mean_per_mm(blocks, 2.0), rel=0.03)


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
    noise = correlated(np.random.default_rng(6).standard_normal((30, 64, 64), dtype=np.float32), asked)
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


def test_a_strap_lies_over_skin_and_in_air_alone() -> None:
    y, x = np.mgrid[60:-61:-1, -60:61]
    head = np.hypot(x, y) < 40
    hu = np.where(head, 40.0, -1000.0).astype(np.float32)
    lay_strap(hu, y[:, :1].astype(float), 1.0)
    assert (hu[head] == 40).all()
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


def test_sites_differ_in_everything_that_scanners_differ_in() -> None:
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
