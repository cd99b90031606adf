"""Masks and their classes: the two grids on which they may lie, and what is refused.

Oracles: a mask drawn by a formula on both grids, and SimpleITK's resampling of the labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from detection import made
from tasks.segmentation import drawn

from headct.failure import Misuse
from headct.preparing import prepare, recipes
from headct.preparing.masks import on_grid
from headct.tasks.segmentation.classes import read_classes
from headct.tasks.segmentation.masks import Masks, gathered, same_grid
from headct.virtual.phantom import Phantom

AFFINE = np.diag([*made.SPACING_MM, 1.0])


def test_classes_by_a_table_by_name_and_by_value(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("value,name\n3,brain\n7,iph\n8,ivh\n")
    everything = read_classes([tmp_path])
    assert everything.names == ("brain", "iph", "ivh")
    assert everything.of(np.array([0, 3, 8, 7]), tmp_path).tolist() == [0, 1, 3, 2]
    some = read_classes([tmp_path], "ich=iph+ivh, brain")
    assert some.of(np.array([0, 3, 8, 7, 99]), tmp_path).tolist() == [0, 2, 1, 1, 0]
    assert read_classes([tmp_path / "bare"], "a=1+4,b=2").values == ((1, 4), (2,))


@pytest.mark.parametrize(
    ("table", "wanted", "says"),
    [
        ("", "", "is not known"),
        ("value,name\n1,brain\n", "brian", "did you mean brain"),
        ("value,name\n1,brain\n", "brain,b=1", "the value 1 comes twice"),
        ("value,name\n1,brain\n", "brain=1,brain=2", "the class brain comes twice"),
        ("value,name\n1,br/ain\n", "", "cannot be called"),
        ("value,name\n1,ödem\n", "", "cannot be called"),
        ("value,name\n1,all\n", "", "the mean over classes"),
        ("value,name\n1,brain\n2,iph\n", "iph=1", "iph is the value 1, and 2 in"),
        ("number,name\n1,brain\n", "", "no table of classes"),
        ("value,name\n0,brain\n", "", "above 0"),
    ],
)
def test_classes_that_mean_nothing(table: str, wanted: str, says: str, tmp_path: Path) -> None:
    if table:
        (tmp_path / "classes.csv").write_text(table)
    with pytest.raises(Misuse, match=says):
        read_classes([tmp_path], wanted)


def test_values_that_are_no_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("value,name\n1,brain\n")
    classes = read_classes([tmp_path])
    for values, says in (([0, 2], "does not name"), ([0.0, np.nan], "value nan"), ([0, 0.5], "0.5"), ([-1, 0], "-1")):
        with pytest.raises(Misuse, match=says):
            classes.of(np.array(values), tmp_path / "mask.nii.gz")


def test_a_mask_on_the_prepared_grid_is_taken_as_it_is(tmp_path: Path) -> None:
    cohort = drawn.make(tmp_path / "c", 4)
    (masks,) = gathered([cohort], [], "")
    scan_id = masks.scan_ids[3]
    numbers = masks.of(scan_id, cohort.array(scan_id))
    np.testing.assert_array_equal(numbers, drawn.numbers_of({"ich": 1, "sdh": 1}))


@pytest.mark.parametrize("tilt_deg", [0.0, 15.0])
def test_a_mask_on_the_scanners_grid_is_brought_over_with_its_shear(tilt_deg: float, tmp_path: Path) -> None:
    """Oracle: a ball, which is known by its formula on either grid."""
    scan = Phantom(0).scan(slices=24, gap_mm=6.0, rows=64, cols=60, pixel_mm=3.6, tilt_deg=tilt_deg)
    prepared = prepare(scan, recipes["head-coarse"], check_head=False)
    affine = scan.affine()[:, [2, 1, 0, 3]]
    middle_mm = affine[:3, :3] @ [30, 32, 12] + affine[:3, 3]

    def ball(shape: tuple[int, ...], by: np.ndarray) -> np.ndarray:
        places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ by[:3, :3].T + by[:3, 3]
        return (np.linalg.norm(places - middle_mm, axis=-1) < 30).astype(np.uint8)

    found = on_grid(ball((60, 64, 24), affine), affine, prepared.array.shape, prepared.affine, 2)
    true = ball(prepared.array.shape, prepared.affine)
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.92  # slices 6 mm apart
    centre = np.argwhere(found).mean(axis=0) @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]
    assert np.linalg.norm(centre - middle_mm) < 0.7


def test_a_voxel_becomes_what_fills_most_of_it() -> None:
    """Oracle: SimpleITK's nearest voxels on a grid twice as fine, of which eight are counted."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 4, (7, 8, 9)).astype(np.uint8)
    affine, target = np.diag([2.0, 2.5, 3.0, 1.0]), np.diag([2.0, 2.5, 3.0, 1.0])
    affine[:3, 3], target[:3, 3] = (3.0, -2.0, 5.0), (4.7, 0.4, 4.1)
    image = sitk.GetImageFromArray(numbers.transpose(2, 1, 0))
    image.SetSpacing((2.0, 2.5, 3.0))
    image.SetOrigin(affine[:3, 3].tolist())
    grid = sitk.Image((12, 14, 16), sitk.sitkUInt8)
    grid.SetSpacing((1.0, 1.25, 1.5))
    grid.SetOrigin((target[:3, 3] - np.array([0.5, 0.625, 0.75])).tolist())
    fine = sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor))
    eights = fine.transpose(2, 1, 0).reshape(6, 2, 7, 2, 8, 2).transpose(0, 2, 4, 1, 3, 5).reshape(6, 7, 8, 8)
    votes = np.stack([(eights == number).sum(axis=-1) for number in range(4)])
    expected = 3 - votes[::-1].argmax(axis=0)  # the later one where two fill as much
    np.testing.assert_array_equal(on_grid(numbers, affine, (6, 7, 8), target, 4), expected)


def test_memory_is_bounded_without_another_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(1).integers(0, 3, (9, 8, 7)).astype(np.uint8)
    target = np.array([[1.3, 0.2, 0, -0.4], [0, 1.1, 0, 0.6], [0, 0.3, 1.7, 0], [0, 0, 0, 1]])
    whole = on_grid(numbers, np.eye(4), (7, 8, 5), target, 3)
    monkeypatch.setattr("headct.preparing.masks.AT_A_TIME", 3 * 8 * 5)
    np.testing.assert_array_equal(on_grid(numbers, np.eye(4), (7, 8, 5), target, 3), whole)


def test_what_is_too_small_for_the_grid_keeps_a_voxel() -> None:
    """So that a scan with a small lesion stays one with a lesion, which can be missed."""
    numbers = np.zeros((40, 40, 40), np.uint8)
    numbers[8:32, 8:32, 8:32] = 1
    numbers[21, 17, 30] = 2
    found = on_grid(numbers, np.eye(4), (10, 10, 10), np.diag([4.0, 4.0, 4.0, 1.0]), 4)
    assert np.argwhere(found == 2).tolist() == [[5, 4, 8]]  # 21, 17 and 30 mm, to the nearest
    assert set(np.unique(found)) == {0, 1, 2}


@pytest.mark.parametrize(("moved_voxels", "same"), [(0.05, True), (0.5, False)])
def test_half_a_voxel_beside_is_another_grid(moved_voxels: float, same: bool) -> None:
    affine = np.diag([0.45, 0.45, 5.0, 1.0])
    for axis in range(3):
        other = affine.copy()
        other[axis, 3] += moved_voxels * affine[axis, axis]
        assert same_grid((512, 512, 30), affine, (512, 512, 30), other) == same


def test_masks_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    cohort = drawn.make(tmp_path / "c", 2)
    (masks,) = gathered([cohort], [], "")
    scan_id = masks.scan_ids[1]
    path, array = masks.path(scan_id), cohort.array(scan_id)
    assert path is not None
    numbers = drawn.numbers_of({"ich": 1, "sdh": 0})
    beside = AFFINE.copy()
    beside[0, 3] = 4.0
    for given, affine, says in (
        (numbers[:-1], AFFINE, r"has the shape 47 x 56 x 48; scan .* acquired as 2 x 2 x 2 and prepared as 48 x 56"),
        (numbers, beside, "has the shape 48 x 56 x 48"),
        (np.zeros((2, 2, 2), np.uint8), np.diag([9.0, 9, 9, 1]), "the voxels of .* measure 9 x 9 x 9 mm"),
        (np.zeros((2, 2), np.uint8), AFFINE, "give one 3D label map"),
    ):
        drawn.write_mask(path, given, affine)
        with pytest.raises(Misuse, match=says):
            masks.of(scan_id, array)
    path.write_bytes(b"no volume")
    with pytest.raises(Misuse, match="cannot be read as NIfTI"):
        masks.of(scan_id, array)


def test_cohorts_and_folders_without_masks(tmp_path: Path) -> None:
    cohort = made.make(tmp_path / "c", 2)
    with pytest.raises(Misuse, match="there is no folder of masks"):
        gathered([cohort], [], "a=1")
    with pytest.raises(Misuse, match="1 cohorts and 2 folders"):
        gathered([cohort], [tmp_path, tmp_path], "a=1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Misuse, match=r"no scan of .* has a mask"):
        gathered([cohort], [tmp_path / "empty"], "a=1")
    twice = drawn.make(tmp_path / "once", 2), drawn.make(tmp_path / "twice", 3)
    with pytest.raises(Misuse, match=r"2 scans of .*twice are in another cohort too"):
        gathered(list(twice), [], "")
    with pytest.raises(Misuse, match="holds no scans"):
        gathered([made.make(tmp_path / "none", 0)], [tmp_path / "empty"], "a=1")


def test_what_is_drawn_in_air_lies_beside_its_scan(tmp_path: Path) -> None:
    cohort = drawn.make(tmp_path / "c", 1)
    classes = read_classes([tmp_path / "c" / "masks"])
    masks = Masks(cohort, tmp_path / "c" / "masks", classes)
    assert masks.scan_ids
    from headct.tasks.segmentation import masks as room

    numbers = drawn.numbers_of({"ich": 1, "sdh": 0})
    air = np.full(made.SHAPE, -1000, np.int16)
    with pytest.raises(Misuse, match="lies in air"):
        room._expect_on_head(numbers, AFFINE, numbers, AFFINE, air, Path("mask.nii.gz"))
    with pytest.raises(Misuse, match="lies in the prepared array"):
        room._expect_on_head(numbers, AFFINE, np.zeros_like(numbers), AFFINE, None, Path("mask.nii.gz"))
