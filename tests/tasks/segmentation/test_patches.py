"""Training patches: classes come as often as others, and image and mask are moved alike."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from headct.tasks.segmentation.patches import Augmentation, Draw, Example, Kept, cut, draw

SHAPE = (20, 24, 16)
NO_AUGMENTATION = Augmentation(mirror=0, turn_deg=0, zoom=0, shift_hu=0, stretch=0, noise_hu=0)
STILL = {
    "scan": 0, "number": 0, "axis_deg": (0.0, 0.0, 0.0), "zoom": 1.0, "mirrored": False,
    "shift_hu": 0.0, "stretch": 1.0, "noise_hu": 0.0, "noise_seed": 0,
}  # fmt: skip


def example(seed: int = 0) -> Example:
    """An array whose values say what class each voxel is."""
    numbers = np.random.default_rng(seed).integers(0, 3, SHAPE).astype(np.uint8)
    return Example(numbers.astype(np.int16) * 100, numbers, np.array([2.0, 2.0, 2.0]))


def test_rare_classes_come_as_often_as_others() -> None:
    """Class 1 fills half of every scan, class 2 one voxel of one scan in ten."""
    numbers = [np.zeros(SHAPE, np.uint8) for _ in range(10)]
    for one in numbers:
        one[:10] = 1
    numbers[7][15, 3, 5] = 2
    examples = [Example(one.astype(np.int16), one, np.ones(3)) for one in numbers]
    holders = [np.arange(10), np.arange(10), np.array([7]), np.array([], dtype=int)]
    rng = np.random.default_rng(0)
    drawn = [draw(rng, holders, examples.__getitem__, NO_AUGMENTATION) for _ in range(600)]
    counts = Counter(one.number for one in drawn)
    assert set(counts) == {0, 1, 2}
    assert min(counts.values()) > 150
    for one in drawn:
        if one.number:
            assert numbers[one.scan][tuple(int(value) for value in one.centre)] == one.number


def test_the_same_generator_gives_the_same_patch() -> None:
    one, other = (
        draw(np.random.default_rng(3), [np.array([0])], lambda scan: example(), Augmentation()) for _ in range(2)
    )
    assert one == other
    for first, second in zip(cut(example(), one, (8, 8, 8), 0), cut(example(), other, (8, 8, 8), 0), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("centre", [(10.0, 12.0, 8.0), (0.0, 0.0, 0.0), (19.0, 23.0, 15.0)])
def test_an_unmoved_patch_is_a_box_of_the_array(centre: tuple[float, float, float]) -> None:
    image, numbers = cut(example(), Draw(centre=centre, **STILL), (8, 9, 8), 0)
    assert image.shape == (1, 8, 9, 8)
    torch.testing.assert_close(image[0], numbers.float() * 100)
    whole = example().numbers
    boxes = (whole[i : i + 8, j : j + 9, k : k + 8] for i in range(13) for j in range(16) for k in range(9))
    assert any(np.array_equal(box, numbers.numpy()) for box in boxes)


def test_a_patch_larger_than_the_array_is_filled_with_air() -> None:
    image, numbers = cut(example(), Draw(centre=(3.0, 3.0, 3.0), **STILL), (24, 24, 24), 0)
    assert (image[0, :2] == -1000).all()
    assert (numbers[:2] == 0).all()
    np.testing.assert_array_equal(numbers[2:22, :, 4:20], example().numbers)


def test_image_and_mask_turn_alike_and_left_becomes_right() -> None:
    """A block in HU, so that the mask is where the values are; nearest voxels and interpolated ones differ a little."""
    hu = np.full(SHAPE, -1000, np.int16)
    hu[6:14, 8:18, 4:12] = 40
    one = Example(hu, (hu > 0).astype(np.uint8), np.array([1.0, 1.0, 2.0]))
    moved = Draw(centre=(9.5, 11.5, 7.5), **STILL | {"axis_deg": (5.0, -12.0, 20.0), "zoom": 1.1})
    image, numbers = cut(one, moved, (16, 16, 12), 0)
    there = image[0] > -480
    assert 2 * float((there & (numbers > 0)).sum()) / float(there.sum() + (numbers > 0).sum()) > 0.97
    mirrored, flipped = cut(one, Draw(**{**moved.__dict__, "mirrored": True}), (16, 16, 12), 0)
    torch.testing.assert_close(mirrored, image.flip(1))
    torch.testing.assert_close(flipped, numbers.flip(0))


def test_values_change_as_drawn_and_scaled_arrays_do_not() -> None:
    varied = Draw(centre=(10.0, 12.0, 8.0), **STILL | {"shift_hu": 7.0, "stretch": 1.5, "noise_hu": 10.0})
    plain, noisy = (
        cut(example(), one, (16, 16, 16), 0)[0] for one in (Draw(centre=(10.0, 12.0, 8.0), **STILL), varied)
    )
    apart = noisy - plain * 1.5 - 7
    assert abs(float(apart.mean())) < 1
    assert float(apart.std()) == pytest.approx(10, rel=0.1)
    scaled = Example(
        np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype(np.float32), example().numbers, np.ones(3)
    )
    image, _ = cut(scaled, varied, (16, 16, 16), 0)
    np.testing.assert_array_equal(image, scaled.array[:, 2:18, 4:20, 0:16])


def test_scans_are_kept_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []

    def load(scan: int) -> Example:
        loads.append(scan)
        return example(scan)

    size = example().array.nbytes + example().numbers.nbytes
    monkeypatch.setattr("headct.tasks.segmentation.patches.CACHE_BYTES", 2 * size)
    kept = Kept(load)
    for scan in (0, 1, 0, 2, 0, 1):
        assert np.array_equal(kept(scan).numbers, example(scan).numbers)
    assert loads == [0, 1, 2, 1]
