"""Finding and framing the head. Oracle: heads drawn in millimetres, whose braincase is centred on the origin and
reaches `INNER_MM`; brains cut by our own hand; real scans where they are there. The grid of the search is 3 mm, so
that 2 mm is what two acquisitions of one head may differ by, 5 mm what the top may be off."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from preparing.heads import INNER_MM, Anatomy, Bottle, Chest, Scanner
from preparing.volumes import flipped, part, permuted, scan_of, scan_of_dicom
from scipy.spatial.transform import Rotation

from headct.preparing import recipes
from headct.preparing.head import COARSE_MM, CoarseView, Head, _quantiles, find_head, frame_head, frame_object
from headct.preparing.recipe import Frame
from headct.scan import Scan
from headct.virtual.phantom import Phantom

QUICK = Scanner(pixels=108, pixel_mm=2.3, gaps_mm=5.0, samples=1)
FRAME = recipes["head"].step(Frame)


def head_in(scan: Scan) -> Head:
    head = find_head(scan)
    assert head is not None
    return head


def difference_mm(first: Head, second: Head) -> float:
    parts = (*np.subtract(first.center_mm, second.center_mm), first.top_mm - second.top_mm)
    return float(np.abs(parts).max())


@pytest.fixture(scope="module")
def usual() -> Head:
    return head_in(QUICK.scan(Anatomy()))


@pytest.mark.parametrize(
    "anatomy",
    [
        Anatomy(),
        Anatomy(size=1.12, skull_mm=9.0, scalp_mm=9.0),
        Anatomy(size=0.85, skull_mm=4.0),
        Anatomy(size=0.62, skull_mm=2.0, scalp_mm=2.5, brain_hu=22),  # a newborn
        Anatomy(craniectomy=True),
        Anatomy(bleed_ml=120),
        Anatomy(metal=True),
        Anatomy(brain_hu=8.0),
        Anatomy(brain_hu=42.0),
    ],
    ids=["adult", "large", "child", "newborn", "craniectomy", "large bleed", "metal", "water", "dense"],
)
def test_a_head_is_found_where_it_is(anatomy):
    head = head_in(replace(QUICK, pixel_mm=1.6, pixels=160).scan(anatomy))
    np.testing.assert_allclose(head.center_mm, 0, atol=3)
    np.testing.assert_allclose(head.top_mm, INNER_MM[2] * anatomy.size, atol=5)
    assert head.coverage > 0.97


@pytest.mark.parametrize(
    "anatomy",
    [
        Anatomy(table=False),
        Anatomy(headrest=False),
        Anatomy(body=False, table=False, headrest=False),
        Anatomy(bleed_ml=60),
    ],
    ids=["no table", "no headrest", "nothing but the head", "bleed"],
)
def test_what_lies_around_the_head_does_not_move_the_frame(anatomy, usual):
    assert frame_head(head_in(QUICK.scan(anatomy)), FRAME) == frame_head(usual, FRAME)


@pytest.mark.parametrize("arms_up", [False, True])
def test_neck_shoulders_and_arms_do_not_move_the_frame(arms_up, usual):
    long = replace(QUICK, pixel_mm=3.4, pixels=150, first_mm=-300.0)
    assert difference_mm(head_in(long.scan(Anatomy(arms_up=arms_up))), usual) < 2


@pytest.mark.parametrize(
    "scanner",
    [
        replace(QUICK, tilt_deg=20.0),
        replace(QUICK, tilt_deg=-20.0),
        replace(QUICK, gaps_mm=1.0),
        replace(QUICK, gaps_mm=0.6, noise_hu=60.0),
        replace(QUICK, gaps_mm=7.0, samples=3),
        replace(QUICK, gaps_mm=(3.0,) * 24 + (8.0,) * 19),
        replace(QUICK, pixels=200, center_mm=(50.0, 40.0)),
        replace(QUICK, first_mm=-90.0, last_mm=78.0),
    ],
    ids=["tilt 20", "tilt -20", "1 mm", "0.6 mm and noise", "7 mm", "uneven", "off centre", "no more than the head"],
)
def test_how_it_is_acquired_moves_the_frame_little(scanner, usual):
    assert difference_mm(head_in(scanner.scan(Anatomy())), usual) < 3


def test_where_it_is_acquired_moves_the_frame_along():
    offset = (80.0, -412.0, 1650.0)
    first, second = (head_in(replace(QUICK, offset_mm=o).scan(Anatomy())) for o in ((0.0, 0.0, 0.0), offset))
    np.testing.assert_allclose(np.subtract(second.center_mm, first.center_mm), offset[:2], atol=1e-6)
    assert second.top_mm - first.top_mm == pytest.approx(offset[2], abs=1e-6)


@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
def test_any_plane(plane):
    heads = [
        head_in(Phantom(3).scan(slices=70, gap_mm=3.0, rows=96, cols=96, pixel_mm=2.4, plane=p))
        for p in ("axial", plane)
    ]
    assert difference_mm(*heads) < 2


@pytest.mark.parametrize("degrees", [(25, 0, 0), (-25, 0, 0), (0, 0, 40), (5, 12, 15)], ids=str)
def test_a_turned_head_is_still_a_head(degrees):
    """The patient turned, not the gantry: the slices are oblique to the head."""
    scan = QUICK.scan(Anatomy(table=False, headrest=False))
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    turned = replace(
        scan,
        origins_mm=scan.origins_mm @ turn.T,
        row_step_mm=turn @ scan.row_step_mm,
        col_step_mm=turn @ scan.col_step_mm,
    )
    head = head_in(turned)
    np.testing.assert_allclose(head.center_mm, 0, atol=16)  # the base of the skull makes the braincase asymmetric
    assert head.coverage > 0.97


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)], ids=str)
def test_how_it_is_stored_changes_nothing(order):
    scan = replace(QUICK, gaps_mm=4.0).scan(Anatomy())
    again = flipped(permuted(scan, order), slices=True, rows=True, cols=False)
    assert find_head(again) == find_head(scan)


@pytest.mark.parametrize(
    "thing",
    [
        Anatomy(empty=True),
        Anatomy(empty=True, body=False, headrest=False, table=False),
        Chest(),
        Bottle(),
        Bottle(inside_hu=30.0, wall_hu=-40.0),
        Bottle(inside_hu=90.0, wall_hu=1000.0),
    ],
    ids=["plastic head", "plastic head alone", "chest", "water", "soft ball in fat", "dense cylinder"],
)
def test_what_is_no_head(thing):
    for noise_hu in (0.0, 40.0):
        assert find_head(replace(QUICK, pixel_mm=2.8, noise_hu=noise_hu).scan(thing)) is None


@pytest.mark.parametrize(
    "scanner",
    [
        replace(QUICK, pixel_mm=3.4, pixels=150, first_mm=-300.0, last_mm=-80.0),
        replace(QUICK, first_mm=120.0, last_mm=200.0),
    ],
    ids=["neck and shoulders", "air above the head"],
)
def test_where_there_is_no_head(scanner):
    assert find_head(scanner.scan(Anatomy())) is None


@pytest.mark.parametrize("values", [(-1024, -770), (-1024, 3071), (0, 1)])
def test_noise_is_no_head(values):
    noise = np.random.default_rng(0).integers(*values, (64, 64, 20)).astype(np.int16)
    assert find_head(scan_of(noise, np.diag([3.0, 3.0, 5.0, 1.0]))) is None


def brain_share(whole: Scan, cut: Scan) -> float:
    """Of the voxels between the innermost surface of the skull, how many the cut scan has: by the drawing's formula."""

    def volume(scan: Scan) -> float:
        row, col = np.meshgrid(*map(np.arange, scan.hu.shape[1:]), indexing="ij")
        in_plane = row[..., None] * scan.row_step_mm + col[..., None] * scan.col_step_mm
        points = scan.origins_mm[:, None, None] + in_plane
        inside = np.sum((points / INNER_MM) ** 2, axis=-1) < 1
        inside &= points[..., 2] > Anatomy._base(points[..., 0], points[..., 1])
        return float(inside.sum())

    return volume(cut) / volume(whole)


@pytest.mark.parametrize("tilt_deg", [0.0, 18.0])
@pytest.mark.parametrize(
    ("first", "last"), [(0, 66), (0, 58), (0, 51), (0, 46), (30, 74), (36, 74), (41, 74), (30, 55), (38, 44)]
)
def test_coverage_of_a_scan_that_ends_within_the_brain(tilt_deg, first, last):
    whole = replace(QUICK, gaps_mm=3.0, tilt_deg=tilt_deg).scan(Anatomy())
    cut = part(whole, first, last)
    assert head_in(cut).coverage == pytest.approx(brain_share(whole, cut), abs=0.1)


def test_a_single_slice_covers_next_to_nothing():
    for tilt_deg in (0.0, 20.0):
        scan = replace(QUICK, first_mm=0.0, last_mm=0.0, tilt_deg=tilt_deg).scan(Anatomy())
        assert head_in(scan).coverage < 0.08


def test_a_narrow_field_of_view_covers_less():
    """The forehead lies outside: rows begin 110 mm behind the middle and end 30 mm before it."""
    narrow = replace(QUICK, pixels=62, center_mm=(0.0, -40.0)).scan(Anatomy())
    assert head_in(narrow).coverage == pytest.approx(brain_share(QUICK.scan(Anatomy()), narrow), abs=0.1)


@pytest.mark.parametrize("last_mm", [52.0, 42.0, 32.0])
def test_a_missing_vertex_is_placed_where_it_would_be(last_mm, usual):
    head = head_in(replace(QUICK, last_mm=last_mm).scan(Anatomy()))
    assert head.top_mm == pytest.approx(usual.top_mm, abs=6)


@pytest.mark.parametrize("seed", range(6))
def test_from_vertex_to_skull_base_and_ear_to_ear_it_is_in_the_box(seed):
    phantom = Phantom(seed)
    grid = frame_head(head_in(phantom.scan(rows=96, cols=96, pixel_mm=2.4)), FRAME)
    low = np.array(grid.first_mm) - 1
    high = low + np.array(grid.shape) * grid.spacing_mm
    for name in ("vertex", "right-ear", "foramen-magnum"):
        place = phantom.landmarks_mm[name]
        assert np.all((place > low) & (place < high)), name


def test_all_our_recipes_frame_the_same_box():
    head = Head((1.3, -20.7), 66.1, 1.0)
    boxes = set()
    for name in ("head", "head-axial", "head-fine", "head-coarse"):
        grid = frame_head(head, recipes[name].step(Frame))
        low = np.array(grid.first_mm) - np.array(grid.spacing_mm) / 2
        boxes.add((*low, *(low + np.array(grid.shape) * grid.spacing_mm)))
    assert boxes == {(-94.0, -132.0, -106.0, 98.0, 92.0, 86.0)}


def test_without_a_head_whatever_is_not_air_is_framed():
    scan = QUICK.scan(Bottle())
    grid = frame_object(replace(scan, origins_mm=scan.origins_mm + np.array([30.0, 0.0, 7.0])), FRAME)
    middle = np.array(grid.first_mm) + (np.array(grid.shape) - 1) * grid.spacing_mm / 2
    np.testing.assert_allclose(middle[:2], [30, 0], atol=3)
    assert grid.first_mm[2] + (grid.shape[2] - 0.5) * 2 == pytest.approx(97 + FRAME.above_vertex_mm, abs=5)
    frame_object(replace(scan, hu=np.full_like(scan.hu, -1000)), FRAME)  # even if all is air


def test_the_coarse_view_of_a_tilted_scan_is_level():
    scan = replace(QUICK, tilt_deg=20.0).scan(Anatomy())
    np.testing.assert_allclose(CoarseView.of(scan).turn @ scan.normal, [0, 0, 1], atol=1e-6)


def test_a_real_head_in_both_of_its_files(shared):
    """28 tilted, uneven slices as DICOM, and what dcm2niix makes of them: 56 even ones of another resample."""
    raw = scan_of_dicom(shared / "data/dicom/ge_hispeed_tilt")
    nifti = nibabel.load(shared / "data/nifti/ge_hispeed_dcm2niix_tilt_eq_1mm.nii.gz")
    volume = np.maximum(np.asarray(nifti.dataobj), -1024)
    heads = head_in(raw), head_in(scan_of(volume, nifti.affine))
    assert difference_mm(*heads) < 2
    assert min(head.coverage for head in heads) > 0.97


PLASTIC_AND_NOISE = [
    "philips_phantom_flat/S2010",
    "philips_phantom_tilt_neg/S2010",
    "siemens_tilt_iop_only",
    "ge_uneven_shuffled",
]


@pytest.mark.parametrize("name", PLASTIC_AND_NOISE)
def test_real_plastic_and_noise_is_no_head(shared, name):
    assert find_head(scan_of_dicom(shared / "data/dicom" / name)) is None


def test_vessels_without_a_head_are_no_head(shared):
    nifti = nibabel.load(shared / "data/nifti/CT_AVM.nii.gz")
    assert find_head(scan_of(np.rint(np.asarray(nifti.dataobj)), nifti.affine)) is None


@pytest.mark.parametrize("voxels", [1, 2, 5, 400, 3000])
def test_quantiles_are_those_of_all_points_within_the_voxels(voxels: int) -> None:
    rng = np.random.default_rng(voxels)
    positions_mm = rng.integers(0, 60, voxels) * COARSE_MM + rng.uniform(0, 0.3, voxels)
    within_mm = positions_mm[:, None] + COARSE_MM * ((np.arange(8) + 0.5) / 8 - 0.5)
    shares = [0.0, 0.01, float(rng.uniform()), 0.99, 1.0]
    np.testing.assert_allclose(_quantiles(positions_mm, shares), np.quantile(within_mm, shares), atol=1e-9)
