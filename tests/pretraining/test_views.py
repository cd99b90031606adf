"""Views: drawn, then applied.

Oracles: the same interpolation by scipy, which never sees PyTorch's coordinates; volumes that are linear in mm, which
trilinear interpolation returns exactly; and bookkeeping of boxes. Tolerances in HU are a rounding of float32 at the
size of the values (1000 HU: 1e-4) times the eight products of an interpolation.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from pretraining.memory_cohort import heads
from scipy.ndimage import convolve1d, gaussian_filter, map_coordinates, uniform_filter1d
from scipy.spatial.transform import Rotation

from headct.failure import Misuse
from headct.pretraining import views
from headct.pretraining.views import (
    Crops,
    View,
    ViewSettings,
    crop,
    draw,
    draw_views,
    head_box,
    rescanned,
    see,
    slabs,
    windowed,
)

CROPS = Crops(views=1, shape=(9, 10, 11), edge_mm=(15.0, 40.0), overhang=0.0)


def view(**changes: object) -> View:
    plain = {
        "centre_mm": (20.0, 24.0, 22.0),
        "voxel_mm": 2.0,
        "angles_deg": (0.0, 0.0, 0.0),
        "mirrored": False,
        "scale_hu": 1.0,
        "shift_hu": 0.0,
        "noise_hu": 0.0,
        "noise_seed": 1,
        "soft_mm": 0.0,
        "sharp": 0.0,
        "slice_mm": 0.0,
        "level": 0.0,
        "width": 1.0,
    }
    return View(**{**plain, **changes})  # type: ignore[arg-type]


def by_scipy(hu: np.ndarray, view: View, shape: tuple[int, int, int], spacing_mm: np.ndarray) -> np.ndarray:
    """The crop by another library: rotation matrices from scipy, linear splines, air outside."""
    index = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"), axis=-1)
    turn = Rotation.from_euler("xyz", view.angles_deg, degrees=True)  # about fixed axes: x first
    at_mm = turn.apply(index.reshape(-1, 3) * view.voxel_mm) + view.centre_mm
    values = map_coordinates(hu.astype(float), (at_mm / spacing_mm).T, order=1, mode="grid-constant", cval=-1000)
    return np.asarray(values.reshape(shape))


@settings(max_examples=25, deadline=None)
@given(
    centre_mm=st.tuples(*[st.floats(0, 50)] * 3),
    voxel_mm=st.floats(1.5, 4.0),
    angles_deg=st.tuples(*[st.floats(-30, 30)] * 3),
    spacing_mm=st.tuples(*[st.sampled_from([1.9, 2.0, 4.0])] * 3),
)
def test_a_crop_equals_scipys(
    centre_mm: tuple[float, float, float],
    voxel_mm: float,
    angles_deg: tuple[float, float, float],
    spacing_mm: tuple[float, float, float],
) -> None:
    hu = np.random.default_rng(0).integers(-1000, 2000, (20, 22, 24)).astype(np.int16)
    drawn = view(centre_mm=centre_mm, voxel_mm=voxel_mm, angles_deg=angles_deg)
    ours = crop(torch.from_numpy(hu)[None], [drawn], CROPS, spacing_mm)[0].numpy()
    theirs = by_scipy(hu, drawn, CROPS.shape, np.array(spacing_mm))
    # neighbours differ by up to 3000 HU, places are right to 1e-5 voxels in float32
    assert_allclose(ours, theirs, atol=0.1)


def test_a_volume_linear_in_mm_is_returned_at_its_places() -> None:
    spacing_mm = np.array([2.0, 1.0, 4.0])
    at_mm = np.stack(
        np.meshgrid(*(np.arange(n) * mm for n, mm in zip((30, 60, 15), spacing_mm, strict=True)), indexing="ij"),
        axis=-1,
    )
    hu = torch.from_numpy(at_mm @ [3.0, -2.0, 1.0])[None].float()
    drawn = view(centre_mm=(30.0, 31.0, 29.0), voxel_mm=1.5)
    found = crop(hu, [drawn], CROPS, tuple(spacing_mm))[0]
    for corner in [(0, 0, 0), (8, 9, 10), (3, 7, 2)]:
        mm = np.array(drawn.centre_mm) + (np.array(corner) - (np.array(CROPS.shape) - 1) / 2) * 1.5
        assert found[corner].item() == pytest.approx(mm @ [3.0, -2.0, 1.0], abs=1e-3)


def test_coarse_views_average_before_they_sample() -> None:
    # 8 mm voxels from 2 mm ones: a fine stripe pattern must become its mean, not one of its values
    hu = torch.zeros(1, 40, 40, 40)
    hu[:, ::2] = 100.0
    coarse = Crops(views=1, shape=(4, 4, 4), edge_mm=(32.0, 32.0), overhang=0.0)
    found = crop(hu, [view(centre_mm=(39.0, 39.0, 39.0), voxel_mm=8.0)], coarse, (2.0, 2.0, 2.0))
    assert_allclose(found.numpy(), 50.0, atol=1e-3)


def test_coarse_views_stay_in_place() -> None:
    at_mm = torch.arange(40.0)[:, None, None].expand(40, 40, 40) * 2.0
    coarse = Crops(views=1, shape=(3, 3, 3), edge_mm=(24.0, 24.0), overhang=0.0)
    found = crop(at_mm[None], [view(centre_mm=(37.0, 40.0, 40.0), voxel_mm=8.0)], coarse, (2.0, 2.0, 2.0))
    assert_allclose(found[0, :, 1, 1].numpy(), [29.0, 37.0, 45.0], atol=1e-3)


def test_outside_the_array_lies_air() -> None:
    hu = torch.full((1, 10, 10, 10), 40.0)
    found = crop(hu, [view(centre_mm=(500.0, 9.0, 9.0))], CROPS, (2.0, 2.0, 2.0))
    assert torch.all(found == -1000)


def test_head_box_holds_the_head_and_not_the_specks() -> None:
    hu = np.full((40, 50, 60), -1000, dtype=np.int16)
    hu[10:31, 5:46, 20:51] = 30
    hu[0, 0, 0] = hu[39, 49, 59] = 500
    box = head_box(hu)
    assert np.all(box[0] >= [10, 5, 20])
    assert np.all(box[0] <= [11, 6, 21])
    assert np.all(box[1] >= [29, 44, 49])
    assert np.all(box[1] <= [30, 45, 50])


def test_head_box_of_air_is_everything() -> None:
    assert head_box(np.full((4, 5, 6), -1000, dtype=np.int16)).tolist() == [[0, 0, 0], [3, 4, 5]]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), edge=st.floats(20, 300), overhang=st.floats(0, 0.4))
def test_crops_lie_on_the_head(seed: int, edge: float, overhang: float) -> None:
    crops = Crops(views=1, shape=(8, 10, 8), edge_mm=(edge, edge * 1.2), overhang=overhang)
    box_mm = np.array([[20.0, 10.0, 30.0], [180.0, 210.0, 160.0]])
    drawn = draw(np.random.default_rng(seed), ViewSettings(), crops, box_mm)
    half_mm = drawn.voxel_mm * np.array(crops.shape) / 2
    free_mm = 2 * half_mm * overhang  # may lie outside the head
    first_mm, last_mm = np.array(drawn.centre_mm) - half_mm + free_mm, np.array(drawn.centre_mm) + half_mm - free_mm
    within = (first_mm >= box_mm[0] - 1e-6) & (last_mm <= box_mm[1] + 1e-6)
    around = (first_mm <= box_mm[0] + 1e-6) & (last_mm >= box_mm[1] - 1e-6)
    assert np.all(np.where(last_mm - first_mm <= box_mm[1] - box_mm[0], within, around))
    assert edge / 8 <= drawn.voxel_mm <= edge * 1.2 / 8 + 1e-9


def test_equal_seeds_draw_equal_views_and_equal_views_make_equal_tensors() -> None:
    hu = torch.from_numpy(np.stack(heads(2)))
    boxes = [head_box(one.numpy()) * 2.0 for one in hu]
    settings = ViewSettings(mirror=0.5, soft_mm=1.5, sharp=0.3, slice_mm=6.0, window=0.2)
    crops = Crops(views=2, shape=(8, 8, 8), edge_mm=(30, 40), overhang=0.1)
    first, second, third = (
        [draw_views(np.random.default_rng((seed, n)), settings, crops, box) for n, box in enumerate(boxes)]
        for seed in (5, 5, 6)
    )
    assert first == second
    assert first != third
    before = hu.clone()
    for number in range(2):
        one, two = (
            see(hu, [views[number] for views in draws], crops, (2.0, 2.0, 2.0), [(40, 80), (600, 2800)])
            for draws in (first, second)
        )
        assert torch.equal(one.image, two.image)
        assert one.image.shape == (2, 2, 8, 8, 8)
        assert one.spacing_mm.tolist() == [[pytest.approx(views[number].voxel_mm)] * 3 for views in first]
        assert 0 <= one.air < 0.8
    assert torch.equal(hu, before), "the scans themselves were changed"


def test_a_batch_of_views_equals_each_alone() -> None:
    hu = torch.from_numpy(np.stack(heads(3)))
    drawn = [
        view(
            angles_deg=(0.0, 10.0 * n, 5.0),
            centre_mm=(24.0, 28.0 - n, 24.0),
            mirrored=n == 1,
            noise_hu=3.0,
            noise_seed=n,
            soft_mm=1.5 * n,
            sharp=0.2 * n,
            slice_mm=5.0 * n,
        )
        for n in range(3)
    ]
    together = rescanned(crop(hu, drawn, CROPS, (2.0, 2.0, 2.0)), drawn)
    for n in range(3):
        alone = rescanned(crop(hu[n : n + 1], drawn[n : n + 1], CROPS, (2.0, 2.0, 2.0)), drawn[n : n + 1])
        torch.testing.assert_close(together[n], alone[0], atol=1e-3, rtol=0)  # HU


def test_jitter_stretches_around_water_and_shifts() -> None:
    hu = torch.tensor([-1000.0, 0.0, 40.0, 1000.0]).reshape(1, 2, 2, 1)
    changed = rescanned(hu, [view(scale_hu=1.02, shift_hu=-3.0)])
    assert changed.flatten().tolist() == pytest.approx([-1023.0, -3.0, 37.8, 1017.0])


def test_noise_has_the_drawn_strength() -> None:
    flat = torch.zeros(1, 30, 30, 30)
    noise = rescanned(flat, [view(noise_hu=4.0)])
    # 27,000 draws: the standard deviation is known to 0.4 %
    assert noise.std().item() == pytest.approx(4.0, rel=0.02)


def test_kernels_and_slices_equal_scipys() -> None:
    hu = torch.from_numpy(np.random.default_rng(0).normal(30, 10, (1, 12, 14, 16)).astype(np.float32))
    soft = rescanned(hu, [view(soft_mm=2.0)])[0].numpy()
    assert_allclose(soft, gaussian_filter(hu[0].numpy(), (1, 1, 0), mode="nearest", truncate=3), atol=1e-3)
    sharp = rescanned(hu, [view(sharp=0.5)])[0].numpy()
    blurred = gaussian_filter(hu[0].numpy(), (0.75, 0.75, 0), mode="nearest", radius=(3, 3, 0))
    assert_allclose(sharp, hu[0].numpy() * 1.5 - 0.5 * blurred, atol=1e-3)
    thick = rescanned(hu, [view(slice_mm=6.0)])[0].numpy()
    assert_allclose(thick, uniform_filter1d(hu[0].numpy(), 3, axis=2, mode="nearest"), atol=1e-3)
    partly = rescanned(hu, [view(slice_mm=4.0)])[0].numpy()  # half of either neighbour
    assert_allclose(partly, convolve1d(hu[0].numpy(), [0.25, 0.5, 0.25], axis=2, mode="nearest"), atol=1e-3)


def tilted(degrees: float) -> np.ndarray:
    """The normal of slices whose gantry is tilted: turned about the patient's left-right axis."""
    return np.array([0.0, -np.sin(np.radians(degrees)), np.cos(np.radians(degrees))])


def wall(along: np.ndarray, width: float = 3.0, n: int = 41) -> torch.Tensor:
    """HU (1, n, n, n) that rise smoothly across a plane through the middle, whose normal is `along`."""
    places = np.stack(np.meshgrid(*[np.arange(n) - n // 2] * 3, indexing="ij"), axis=-1)
    return torch.from_numpy(100 * np.tanh(places @ along / width))[None].float()


INNER = (slice(None), *[slice(10, -10)] * 3)


@pytest.mark.parametrize("degrees", [-25.0, 12.0, 20.0])
def test_slices_are_averaged_across_a_tilted_gantry(degrees: float) -> None:
    """A wall that stands on tilted slices stays as sharp as it was; averaged along z it would be blurred.

    And one that lies in the slice is averaged as if nothing were tilted.
    """
    normal, thick = tilted(degrees), [view(slice_mm=16.0)]  # 8 voxels of 2 mm
    across = np.cross(normal, [1.0, 0.0, 0.0])
    standing = wall(across)
    true, along_z = rescanned(standing, thick, normal[None]), rescanned(standing, thick)
    assert (true - standing)[INNER].abs().max() < 0.1
    assert (along_z - standing)[INNER].abs().max() > 0.9
    lying, upright = rescanned(wall(normal), thick, normal[None]), rescanned(wall(np.array([0, 0, 1.0])), thick)
    assert lying[0, 20, 20, 20].item() == pytest.approx(0, abs=0.1)
    slope, straight = (float(hu[0, 20, 20, 21] - hu[0, 20, 20, 19]) / 2 for hu in (lying, upright))
    assert slope / np.cos(np.radians(degrees)) == pytest.approx(straight, rel=0.01)


def test_a_turned_or_mirrored_view_averages_along_the_same_slices() -> None:
    normal = tilted(15.0)
    plain = Crops(views=1, shape=(31, 31, 31), edge_mm=(62.0, 62.0), overhang=0.0)
    hu = wall(np.cross(normal, [1.0, 0.0, 0.0]))
    for changes in ({"angles_deg": (-10.0, -8.0, 30.0)}, {"angles_deg": (-10.0, 12.0, 25.0), "mirrored": True}):
        seen = [view(centre_mm=(40.0, 40.0, 40.0), slice_mm=16.0, **changes)]
        before = crop(hu, seen, plain, (2.0, 2.0, 2.0))
        # the crop's own linear interpolation leaves ripples, which a mean takes away
        assert (rescanned(before, seen, normal[None]) - before)[INNER].abs().max() < 0.8
        assert (rescanned(before, seen) - before)[INNER].abs().max() > 2.5


def test_taps_along_an_axis_are_those_of_a_mean() -> None:
    for axis in range(3):
        taps = slabs([view(slice_mm=8.0)], np.eye(3)[axis][None])[0]  # 4 voxels
        assert taps.shape == tuple(5 if other == axis else 1 for other in range(3))
        assert taps.ravel().tolist() == pytest.approx([0.125, 0.25, 0.25, 0.25, 0.125])
    both = slabs([view(slice_mm=8.0), view(slice_mm=14.0)], np.stack([tilted(20.0), np.zeros(3)]))
    assert both.sum(axis=(1, 2, 3)).tolist() == pytest.approx([1.0, 1.0])
    assert both[1, 0, both.shape[2] // 2].tolist() == pytest.approx([1 / 7] * 7)  # not known: the third axis
    assert np.allclose(both, both[:, ::-1, ::-1, ::-1])  # nothing is moved


def test_a_mirrored_view_shows_the_other_side() -> None:
    hu = torch.from_numpy(np.stack(heads(1))).float()
    middle = tuple((n - 1) * 1.0 for n in hu.shape[1:])
    plain, mirrored = (crop(hu, [view(centre_mm=middle, mirrored=m)], CROPS, (2.0, 2.0, 2.0)) for m in (False, True))
    torch.testing.assert_close(plain.flip(1), mirrored, atol=1e-2, rtol=0)


def test_windows_may_vary() -> None:
    hu = torch.tensor([0.0, 20.0, 40.0, 80.0]).reshape(1, 2, 2, 1)
    assert windowed(hu, [view()], [(40, 80)]).flatten().tolist() == pytest.approx([0, 0.25, 0.5, 1])
    wide = windowed(hu, [view(level=0.25, width=1.5)], [(40, 80)])  # level 60, width 120: 0 to 120 HU
    assert wide.flatten().tolist() == pytest.approx([0, 20 / 120, 40 / 120, 80 / 120])


def test_impossible_crops_are_refused() -> None:
    with pytest.raises(Misuse, match="rising range"):
        Crops(views=1, shape=(4, 4, 4), edge_mm=(20.0, 10.0), overhang=0.0)


def test_mixed_precision_does_not_reach_hounsfield_units() -> None:
    hu = torch.from_numpy(np.random.default_rng(0).normal(900, 50, (2, 8, 8, 8)).astype(np.float32))
    drawn = [view(soft_mm=2.0, slice_mm=5.0), view(sharp=0.5)]
    plain = rescanned(hu, drawn)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rescanned(hu, drawn), plain)
        seen = see(hu, drawn, CROPS, (2.0, 2.0, 2.0), [(40, 80)])
    assert torch.equal(seen.image, see(hu, drawn, CROPS, (2.0, 2.0, 2.0), [(40, 80)]).image)


def test_numbers_reach_the_device_in_a_few_copies_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One each for the crop, the other scanner, the windows and the spacing."""
    copies = []

    def counted(array: np.ndarray, device: torch.device, real=views.sent) -> torch.Tensor:
        copies.append(array.shape)
        return real(array, device)

    monkeypatch.setattr(views, "sent", counted)
    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, None)
    monkeypatch.setattr(torch.Tensor, "new_tensor", None)
    for batch in (1, 3):
        copies.clear()
        hu = torch.from_numpy(np.stack(heads(batch)))
        drawn = [view(soft_mm=2.0, slice_mm=5.0, sharp=0.1 * n) for n in range(batch)]
        see(hu, drawn, CROPS, (2.0, 2.0, 2.0), [(40, 80), (600, 2800)])
        assert len(copies) == 4
