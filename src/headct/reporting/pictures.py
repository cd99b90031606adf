"""Slices of a canonical array as small pictures inside the page, in radiology's habits.

Arrays here are Hounsfield units `(X, Y, Z)`, RAS: x grows to the patient's right, y to anterior, z to superior.
Axial slices are seen from the feet and coronal ones from the front, so the patient's right lies on the viewer's left;
sagittal ones look to the viewer's left. A pixel is square whatever the voxel, and air around the slice is black.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from headct.scan import AIR_HU

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")

ACROSS: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis of the array that a plane cuts."""

SIDES: dict[Plane, tuple[str, str]] = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P")}
"""Which side of the patient lies at the left and at the right edge of the picture."""

QUALITIES = (15, 25, 35, 45, 55, 65, 75, 85)
"""WebP qualities among which the best is sought that fits a picture into its share of the page."""


class Window(NamedTuple):
    """A display window: what is black, what is white, and its name."""

    name: str
    level_hu: float
    width_hu: float

    def __str__(self) -> str:
        return f"{self.name} {self.level_hu:g}/{self.width_hu:g}".strip()


class View(NamedTuple):
    """A volume in HU (X, Y, Z), RAS, and the window in which it is looked at."""

    window: Window
    hu: np.ndarray


def shades(hu: np.ndarray, window: Window) -> np.ndarray:
    """Grey values uint8, same shape: 0 at level - width / 2 and below, 255 at level + width / 2 and above."""
    darkest_hu = window.level_hu - window.width_hu / 2
    share = (np.asarray(hu, dtype=np.float32) - darkest_hu) / window.width_hu
    return np.round(np.clip(share, 0, 1) * 255).astype(np.uint8)


def cut(
    array: np.ndarray, plane: Plane, spacing_mm: Sequence[float], mm_per_pixel: float, index: int | None = None
) -> np.ndarray:
    """One slice as the viewer sees it, HU float32 (rows, cols), square pixels; the middle slice unless `index` says.

    Shrinking averages, enlarging interpolates linearly, so no edge rings in a narrow window.
    """
    if array.ndim != 3:
        raise ValueError(f"a slice is cut from an array (X, Y, Z), got shape {array.shape}")
    axis = ACROSS[plane]
    middle = array.shape[axis] // 2 if index is None else index
    # the remaining axes are (left to right or back to front, then upwards): both are turned for the viewer
    seen = np.take(array, middle, axis=axis).T[::-1, ::-1].astype(np.float32)
    col_mm, row_mm = (spacing for spacing_axis, spacing in enumerate(spacing_mm) if spacing_axis != axis)
    rows = max(1, round(seen.shape[0] * row_mm / mm_per_pixel))
    cols = max(1, round(seen.shape[1] * col_mm / mm_per_pixel))
    if (rows, cols) == seen.shape:
        return seen
    return np.asarray(Image.fromarray(seen).resize((cols, rows), Image.Resampling.BILINEAR))


def side_by_side(slices: Sequence[np.ndarray]) -> np.ndarray:
    """Slices (rows, cols) in one picture (tallest, sum of cols), each centred in height, air between."""
    rows = max(seen.shape[0] for seen in slices)
    return np.hstack([_centred(seen, rows) for seen in slices])


def _centred(seen: np.ndarray, rows: int) -> np.ndarray:
    above = (rows - seen.shape[0]) // 2
    below = rows - seen.shape[0] - above
    return np.pad(seen, ((above, below), (0, 0)), constant_values=AIR_HU)


def webp(grey: np.ndarray, quality: int) -> bytes:
    """A grey picture uint8 (rows, cols) as WebP; the same picture gives the same bytes."""
    with io.BytesIO() as stream:
        Image.fromarray(grey).save(stream, "WEBP", quality=quality, method=4)
        return stream.getvalue()


def png(grey: np.ndarray) -> bytes:
    """A grey picture uint8 (rows, cols) as PNG, without loss."""
    with io.BytesIO() as stream:
        Image.fromarray(grey).save(stream, "PNG", optimize=True)
        return stream.getvalue()


def fitting(pictures: Sequence[np.ndarray], limit_bytes: int) -> list[bytes]:
    """All pictures as WebP at the best quality at which together they stay within the limit, else at the lowest."""
    best = [webp(grey, QUALITIES[0]) for grey in pictures]
    first, beyond = 1, len(QUALITIES)  # where the best quality may still lie
    while first < beyond:
        middle = (first + beyond) // 2
        tried = [webp(grey, QUALITIES[middle]) for grey in pictures]
        if sum(map(len, tried)) <= limit_bytes:
            best, first = tried, middle + 1
        else:
            beyond = middle
    return best


def data_uri(picture: bytes) -> str:
    """The picture as the address that an `img` inside the page takes."""
    kind = "webp" if picture[8:12] == b"WEBP" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def sides(planes: Sequence[Plane], widths: Sequence[int]) -> Markup:
    """The letters of each plane's left and right edge, for planes side by side with these widths in pixels.

    They lie over the picture; the picture's alternative text says the same in words.
    """
    boxes = Markup("").join(
        Markup('<i style="width:{}%"><b>{}</b><b>{}</b></i>').format(f"{100 * width / sum(widths):.4g}", *SIDES[plane])
        for plane, width in zip(planes, widths, strict=True)
    )
    return Markup('<span class="sides" aria-hidden="true">{}</span>').format(boxes)


def framed(picture: bytes, width: int, height: int, letters: Markup, alt: str) -> Markup:
    """An `img` with its letters over it; loads when it comes into view."""
    return Markup('<span class="ct"><img src="{}" width="{}" height="{}" alt="{}" loading="lazy">{}</span>').format(
        data_uri(picture), width, height, alt, letters
    )


def alt_text(subject: str, planes: Sequence[Plane], window: Window) -> str:
    """What a strip of slices shows, for those who do not see it."""
    names = ", ".join(planes[:-1]) + " and " + planes[-1] if len(planes) > 1 else planes[0]
    slices = "slices" if len(planes) > 1 else "slice"
    named = f"{window.name} window, " if window.name else ""
    return f"{names} {slices} of {subject}, {named}level {window.level_hu:g}, width {window.width_hu:g} HU"


def slice_picture(
    array: np.ndarray,
    spacing_mm: Sequence[float],
    window: Window,
    *,
    subject: str,
    plane: Plane = "axial",
    index: int | None = None,
    mm_per_pixel: float | None = None,
    limit_bytes: int = 12_000,
) -> Markup:
    """One slice as a figure with its sides marked and its window written beneath."""
    seen = cut(array, plane, spacing_mm, mm_per_pixel or min(spacing_mm), index)
    (picture,) = fitting([shades(seen, window)], limit_bytes)
    rows, cols = seen.shape
    image = framed(picture, cols, rows, sides([plane], [cols]), alt_text(subject, [plane], window))
    return Markup('<figure class="slice">{}<figcaption>{}</figcaption></figure>').format(image, str(window))


def _enlarge(subject: str, window: Window) -> Markup:
    """A check box that lies over its figure; the style sheet gives a checked one the whole width."""
    named = f"Enlarge {subject}, {window}"
    return Markup('<label class="enlarge"><input type="checkbox" aria-label="{}"></label>').format(named)


def montage(
    views: Sequence[View], spacing_mm: Sequence[float], *, subject: str, mm_per_pixel: float, limit_bytes: int
) -> Markup:
    """The three mid-slices of each view: a strip a window, all at one scale and together within `limit_bytes`.

    Views have one shape; most often they are one volume in several windows. A strip of several grows when clicked.
    """
    strips, widths = [], [0, 0, 0]
    for window, hu in views:
        slices = [cut(hu, plane, spacing_mm, mm_per_pixel) for plane in PLANES]
        widths = [one.shape[1] for one in slices]
        strips.append(shades(side_by_side(slices), window))
    letters = sides(PLANES, widths)
    figures = [
        Markup('<figure class="strip w-{}">{}<figcaption>{}</figcaption>{}</figure>').format(
            window.name,
            framed(picture, strip.shape[1], strip.shape[0], letters, alt_text(subject, PLANES, window)),
            str(window),
            _enlarge(subject, window) if len(views) > 1 else "",
        )
        for (window, _), strip, picture in zip(views, strips, fitting(strips, limit_bytes), strict=True)
    ]
    return Markup('<div class="montage">{}</div>').format(Markup("").join(figures))
