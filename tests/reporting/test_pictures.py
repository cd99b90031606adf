"""Oracles: where a bright corner of a known array must appear by radiology's convention, Pillow's own decoder, and
`headct.preparing.windows` for the grey values (tolerance: half a step of 255 grey values, from rounding)."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from headct.preparing import windows
from headct.reporting.pictures import (
    PLANES,
    Plane,
    View,
    Window,
    cut,
    data_uri,
    fitting,
    montage,
    png,
    shades,
    side_by_side,
    sides,
    slice_picture,
    webp,
)
from headct.scan import AIR_HU

BRAIN = Window("brain", 40, 80)


def lit(*, x: slice = slice(None), y: slice = slice(None), z: slice = slice(None)) -> np.ndarray:
    """Air (8, 10, 12) with one part at 100 HU."""
    array = np.full((8, 10, 12), AIR_HU, dtype=np.int16)
    array[x, y, z] = 100
    return array


def bright_half(picture: np.ndarray) -> str:
    """Which half of a picture holds the light: left, right, upper or lower."""
    rows, cols = np.nonzero(picture > 0)
    height, width = picture.shape
    if len(set(rows.tolist())) == height:
        return "left" if cols.mean() < (width - 1) / 2 else "right"
    return "upper" if rows.mean() < (height - 1) / 2 else "lower"


@pytest.mark.parametrize(
    ("plane", "part", "half"),
    [
        ("axial", {"x": slice(4, 8)}, "left"),  # the patient's right
        ("axial", {"y": slice(5, 10)}, "upper"),  # anterior
        ("coronal", {"x": slice(4, 8)}, "left"),
        ("coronal", {"z": slice(6, 12)}, "upper"),  # superior
        ("sagittal", {"y": slice(5, 10)}, "left"),  # the face looks to the viewer's left
        ("sagittal", {"z": slice(6, 12)}, "upper"),
    ],
)
def test_radiological_convention(plane: Plane, part: dict[str, slice], half: str) -> None:
    assert bright_half(cut(lit(**part), plane, (1, 1, 1), 1)) == half


def test_the_middle_slice_unless_another_is_asked_for() -> None:
    array = lit(z=slice(6, 7))
    assert cut(array, "axial", (1, 1, 1), 1).min() == 100
    assert cut(array, "axial", (1, 1, 1), 1, index=5).max() == AIR_HU


def test_pixels_are_square_whatever_the_voxel() -> None:
    array = np.zeros((20, 30, 10), dtype=np.int16)  # 20 x 30 x 40 mm
    sizes = {plane: cut(array, plane, (1, 1, 4), 0.5).shape for plane in PLANES}
    assert sizes == {"axial": (60, 40), "coronal": (80, 40), "sagittal": (80, 60)}


def test_resampling_does_not_overshoot_at_an_edge() -> None:
    array = np.full((30, 30, 8), 40, dtype=np.int16)
    array[15:] = 1500
    for mm_per_pixel in (0.4, 2.0):
        seen = cut(array, "coronal", (1, 1, 4), mm_per_pixel)
        assert seen.min() >= 40
        assert seen.max() <= 1500


def test_a_slice_needs_a_volume() -> None:
    with pytest.raises(ValueError, match=r"\(X, Y, Z\)"):
        cut(np.zeros((1, 4, 4, 4)), "axial", (1, 1, 1), 1)


@pytest.mark.parametrize("name", windows.WINDOWS)
def test_grey_values_are_those_of_the_window(name: str) -> None:
    hu = np.arange(-1100, 3000, dtype=np.int16)
    expected = 255 * windows.apply(hu, [windows.WINDOWS[name]])[0]
    got = shades(hu, Window(name, *windows.WINDOWS[name]))
    assert np.abs(got - expected).max() <= 0.5 + 1e-4


def test_strips_are_padded_with_air() -> None:
    strip = side_by_side([np.zeros((4, 2)), np.zeros((2, 3))])
    assert strip.shape == (4, 5)
    assert strip[[0, -1], 2:].tolist() == [[AIR_HU] * 3] * 2


def test_letters_stand_over_their_planes() -> None:
    html = sides(PLANES, [10, 10, 20])
    assert re.findall(r'width:(\d+)%"><b>(\w)</b><b>(\w)</b>', html) == [
        ("25", "R", "L"),
        ("25", "R", "L"),
        ("50", "A", "P"),
    ]


def textured(seed: int = 0) -> np.ndarray:
    """A grey picture that compresses about as a head does."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(120, 25, (96, 112)), 0, 255).astype(np.uint8)


def test_png_is_exact_and_webp_is_close() -> None:
    grey = textured()
    decoded = [np.asarray(Image.open(io.BytesIO(data)).convert("L")) for data in (png(grey), webp(grey, 85))]
    assert np.array_equal(decoded[0], grey)
    assert np.abs(decoded[1].astype(int) - grey).mean() < 8  # grey values; noise is the hardest case for WebP


def test_pictures_take_the_best_quality_that_fits() -> None:
    pictures = [textured(seed) for seed in range(3)]
    sizes = [sum(map(len, fitting(pictures, limit))) for limit in (7_000, 12_000, 10**6)]
    assert sizes[0] <= 7_000 < sizes[1] <= 12_000 < sizes[2]
    assert fitting(pictures, 10**6) == [webp(grey, 85) for grey in pictures]


def test_pictures_that_never_fit_take_the_lowest_quality() -> None:
    assert fitting([textured()], 1) == [webp(textured(), 15)]


def test_the_kind_of_picture_is_told_from_its_bytes() -> None:
    assert data_uri(png(textured())).startswith("data:image/png;base64,")
    assert data_uri(webp(textured(), 50)).startswith("data:image/webp;base64,")


def test_a_slice_as_a_figure() -> None:
    html = slice_picture(lit(), (1, 1, 1), BRAIN, subject='scan "<1>"')
    assert "<figcaption>brain 40/80</figcaption>" in html
    assert 'loading="lazy"' in html
    assert "axial slice of scan &#34;&lt;1&gt;&#34;, brain window, level 40, width 80 HU" in html
    assert re.findall(r"<b>(\w)</b>", html) == ["R", "L"]


def test_a_montage_has_a_strip_for_each_window_at_one_scale() -> None:
    views = [View(Window(name, *levels), lit(z=slice(0, 6))) for name, levels in windows.WINDOWS.items()]
    html = montage(views, (2, 2, 2), subject="scan a", mm_per_pixel=1, limit_bytes=9_000)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert captions == ["brain 40/80", "subdural 80/200", "bone 600/2800"]
    assert set(re.findall(r'width="(\d+)" height="(\d+)"', html)) == {("52", "24")}
    assert re.findall(r'type="checkbox" aria-label="Enlarge scan a, (\w+) ', html) == ["brain", "subdural", "bone"]
    assert "checkbox" not in montage(views[:1], (2, 2, 2), subject="scan a", mm_per_pixel=1, limit_bytes=9_000)
    encoded = re.findall(r"base64,([^\"]+)", html)
    assert sum(len(base64.b64decode(part)) for part in encoded) <= 9_000
    assert html == montage(views, (2, 2, 2), subject="scan a", mm_per_pixel=1, limit_bytes=9_000)
