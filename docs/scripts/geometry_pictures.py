"""Draws the pictures of docs/explanation/geometry.md from the phantom: `python docs/scripts/geometry_pictures.py`.

Each picture sets what a careless reader would make of a series beside what it is. The phantom is a virtual head: no
patient was scanned for these pages.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import map_coordinates

from headct.preparing import Prepared, prepare
from headct.scan import AIR_HU, Scan
from headct.virtual.phantom import Phantom

FOLDER = Path(__file__).resolve().parents[1] / "explanation" / "geometry"
BRAIN, WIDE, SOFT_AND_AIR = (40.0, 120.0), (-1000.0, 4200.0), (-400.0, 1400.0)  # level and width
PIXEL_MM = 0.8
PAPER, INK, SOFT, WRONG, RIGHT = (84, 86, 90), (255, 255, 255), (225, 225, 225), (255, 150, 90), (90, 200, 255)
HEADING_PX, GAP_PX = 44, 10

Y_MM = np.arange(118, -142, -PIXEL_MM)  # from the face to the back
X_MM = np.arange(110, -110, -PIXEL_MM)  # from the patient's right to the left
Z_MM = np.arange(102, -88, -PIXEL_MM)  # from the vertex downwards


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def picture(hu: np.ndarray, window: tuple[float, float] = BRAIN) -> Image.Image:
    """Values (rows, cols) in a window (level, width), as a colour picture to draw on."""
    level, width = window
    grey = np.clip((hu - level) / width + 0.5, 0, 1) * 255
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


def panels(entries: Sequence[tuple[Image.Image, str, tuple[int, int, int]]]) -> Image.Image:
    """Pictures side by side, each under a heading of one or two lines in a colour."""
    width = sum(image.width for image, _, _ in entries) + GAP_PX * (len(entries) + 1)
    height = max(image.height for image, _, _ in entries) + HEADING_PX + GAP_PX
    sheet, left = Image.new("RGB", (width, height), PAPER), GAP_PX
    draw = ImageDraw.Draw(sheet)
    for image, heading, colour in entries:
        draw.multiline_text((left, 5), heading, fill=colour, font=font(14), spacing=3)
        sheet.paste(image, (left, HEADING_PX))
        left += image.width + GAP_PX
    return sheet


def sagittal_points() -> np.ndarray:
    """Points (rows, cols, 3) of the midline plane, a little to the right, seen from the patient's right."""
    z, y = np.meshgrid(Z_MM, Y_MM, indexing="ij")
    return np.stack([np.full_like(z, 3.0), y, z], axis=-1)


def axial_points(z_mm: float) -> np.ndarray:
    """Points (rows, cols, 3) of an axial plane, seen from the feet."""
    y, x = np.meshgrid(Y_MM, X_MM, indexing="ij")
    return np.stack([x, y, np.full_like(x, z_mm)], axis=-1)


def values_at(scan: Scan, points_mm: np.ndarray) -> np.ndarray:
    """Values (...) at points (..., 3), by linear interpolation between the voxels' true places."""
    numbers, positions = np.arange(len(scan.hu)), scan.origins_mm @ scan.normal
    along = np.interp(points_mm @ scan.normal, positions, numbers, left=-1, right=len(scan.hu))
    origins = np.stack([np.interp(along, numbers, axis) for axis in scan.origins_mm.T], axis=-1)
    in_plane = points_mm - origins
    row = in_plane @ scan.row_step_mm / (scan.row_step_mm @ scan.row_step_mm)
    col = in_plane @ scan.col_step_mm / (scan.col_step_mm @ scan.col_step_mm)
    return map_coordinates(scan.hu.astype(np.float32), [along, row, col], order=1, cval=AIR_HU)


def stacked(scan: Scan, gap_mm: float) -> Scan:
    """The scan as a reader sees it that puts slice upon slice with one gap, upright: the mistake of this page."""
    pixel = scan.pixel_mm[0]
    steps = np.arange(len(scan.hu))[:, None] * np.array([0.0, 0.0, gap_mm])
    origins = scan.origins_mm[0] + steps
    middle_z_mm = scan.origins_mm[:, 2].mean() + scan.row_step_mm[2] * scan.hu.shape[1] / 2
    origins[:, 2] += middle_z_mm - origins[:, 2].mean()
    return replace(scan, origins_mm=origins, row_step_mm=np.array([0.0, -pixel, 0.0]))


def midline(scan: Scan) -> Image.Image:
    """The midline plane of a scan."""
    return picture(values_at(scan, sagittal_points()))


def to_pixel(y_mm: float, z_mm: float) -> tuple[float, float]:
    """Where a point of the midline plane lies in its picture: (column, row)."""
    return (Y_MM[0] - y_mm) / PIXEL_MM, (Z_MM[0] - z_mm) / PIXEL_MM


def with_slices(scan: Scan, *, every: int = 1, missing: Sequence[float] = ()) -> Image.Image:
    """The head in the midline plane with a line for each slice, or every few."""
    image = picture(Phantom(0).hu_at(sagittal_points()))
    draw = ImageDraw.Draw(image)
    rows = scan.hu.shape[1] - 1
    for origin in scan.origins_mm[::every]:
        end = origin + rows * scan.row_step_mm
        draw.line([to_pixel(origin[1], origin[2]), to_pixel(end[1], end[2])], fill=RIGHT)
    for z_mm in missing:
        draw.line([to_pixel(Y_MM[0], z_mm), to_pixel(Y_MM[-1], z_mm)], fill=WRONG, width=3)
    return image


def head(**settings: object) -> Scan:
    return Phantom(0).scan(**{"rows": 200, "cols": 16, "pixel_mm": 1.2, "centre_mm": (0.0, -11.0, 10.0), **settings})


def tilt() -> Image.Image:
    """Slices of a tilted gantry, stacked upright and at their places."""
    scan = head(tilt_deg=20.0, slices=60, gap_mm=3.0)
    return panels([
        (with_slices(scan, every=3), "The gantry leans by 20°,\nthe table moves straight", INK),
        (midline(stacked(scan, 3.0)), "Stacked as if upright:\nthe head is sheared", WRONG),
        (midline(scan), "Each slice at its position:\nthe head as it is", RIGHT),
    ])  # fmt: skip


def uneven() -> Image.Image:
    """Slices of 4 mm below and 7 mm above."""
    scan = head(positions_mm=[*range(-80, -4, 4), *range(-1, 90, 7)], thickness_mm=4.0)
    return panels([
        (with_slices(scan), "4 mm at the base of the skull,\n7 mm above it", INK),
        (midline(stacked(scan, 4.0)), "Stacked by Slice Thickness 4 mm:\na flattened vault", WRONG),
        (midline(scan), "Each slice at its position:\nthe head as it is", RIGHT),
    ])  # fmt: skip


def missing_and_doubled() -> Image.Image:
    """One slice missing, one doubled."""
    every = np.arange(-80.0, 90.0, 5.0)
    gone = head(positions_mm=np.delete(every, [15, 16, 17]))
    doubled = head(positions_mm=every)
    repeated = replace(doubled, hu=np.insert(doubled.hu, [12, 12, 12, 12], doubled.hu[12], axis=0),
                       origins_mm=np.arange(len(every) + 4)[:, None] * [0, 0, 5.0] + doubled.origins_mm[0])  # fmt: skip
    return panels([
        (with_slices(gone, missing=(5.0, 10.0, 15.0)), "Three slices did not arrive", INK),
        (midline(stacked(gone, 5.0)), "Pushed together: a low head.\nWe refuse, or bridge one and say so", WRONG),
        (midline(repeated), "Four copies of one slice kept:\na high head. We drop copies", WRONG),
    ])  # fmt: skip


def axes() -> Image.Image:
    """The two conventions of patient coordinates, and what mixing them up does."""
    hu = Phantom(0).hu_at(axial_points(Phantom(0).landmarks_mm["calcification"][2]), table=False)
    ras, lps, mixed = picture(hu), picture(hu), picture(hu[:, ::-1])
    _arrows(ras, -1, -1)
    _arrows(lps, 1, 1)
    for image in (ras, lps, mixed):
        draw = ImageDraw.Draw(image)
        for side, place in (("R", 6), ("L", image.width - 18)):
            draw.text((place, image.height // 2 - 8), side, fill=SOFT, font=font(18))
    return panels([
        (ras, "RAS, used here: x grows to the\npatient's right, y to the front", INK),
        (lps, "LPS, in DICOM: x grows to the\npatient's left, y to the back", INK),
        (mixed, "Mixed up: the nodule of the right\nhemisphere is now on the left", WRONG),
    ])  # fmt: skip


def _arrows(image: Image.Image, x_to: int, y_to: int) -> None:
    """Axes from the middle of a picture: x to the right of the picture and y down for +1, else left and up."""
    draw, (middle_x, middle_y) = ImageDraw.Draw(image), (image.width // 2, image.height // 2)
    for dx, dy, name in ((60 * x_to, 0, "x"), (0, 60 * y_to, "y")):
        tip_x, tip_y = middle_x + dx, middle_y + dy
        draw.line([(middle_x, middle_y), (tip_x, tip_y)], fill=RIGHT, width=3)
        wings = [(tip_x - dx / 6 + side * dy / 12, tip_y - dy / 6 + side * dx / 12) for side in (-1, 1)]
        draw.polygon([(tip_x, tip_y), *wings], fill=RIGHT)
        draw.text((tip_x - 4 + 8 * abs(dy) // 60, tip_y + 4 - 24 * (dx != 0)), name, fill=RIGHT, font=font(17))


def padding() -> Image.Image:
    """What scanners write outside their round field of view."""
    hu = Phantom(0).hu_at(axial_points(12.0))
    y, x = np.meshgrid(Y_MM, X_MM, indexing="ij")
    outside = np.hypot(x, y + 12) > 106
    stored = np.where(outside, -3024, hu)
    return panels([
        (picture(stored, WIDE), "Stored: -3024 outside the circle,\na value that no matter has", WRONG),
        (picture(np.where(outside, AIR_HU, hu), WIDE), "Read: air, -1000.\nBlack is -3100, white is 1100 HU", RIGHT),
    ])  # fmt: skip


def frame() -> Image.Image:
    """What the recipe `head` takes of a head on its table."""
    scan = Phantom(0).scan(slices=48, gap_mm=5.0, rows=110, cols=110, pixel_mm=3.0, centre_mm=(0.0, -30.0, -15.0))
    prepared = prepare(scan, "head")
    assert isinstance(prepared, Prepared)
    low, high = (prepared.affine[:3, :3] @ corner + prepared.affine[:3, 3] for corner in _ends(prepared))
    y_mm, z_mm = np.arange(128, -188, -PIXEL_MM), np.arange(108, -132, -PIXEL_MM)
    z, y = np.meshgrid(z_mm, y_mm, indexing="ij")
    midline = picture(Phantom(0).hu_at(np.stack([np.full_like(z, 3.0), y, z], axis=-1)), SOFT_AND_AIR)
    x_mm = np.arange(124, -124, -PIXEL_MM)
    y, x = np.meshgrid(y_mm, x_mm, indexing="ij")
    axial = picture(Phantom(0).hu_at(np.stack([x, y, np.full_like(x, 6.0)], axis=-1)), SOFT_AND_AIR)
    for image, (left, top), (right, bottom) in (
        (midline, (y_mm[0] - high[1], z_mm[0] - high[2]), (y_mm[0] - low[1], z_mm[0] - low[2])),
        (axial, (x_mm[0] - high[0], y_mm[0] - high[1]), (x_mm[0] - low[0], y_mm[0] - low[1])),
    ):
        box = [edge / PIXEL_MM for edge in (left, top, right, bottom)]
        ImageDraw.Draw(image).rectangle(box, outline=RIGHT, width=2)
    return panels([
        (midline, "From the side: the frame of the recipe\n«head»; the neck below is left out", INK),
        (axial, "From the feet: placed by the brain,\nnot by table and head rest", INK),
    ])  # fmt: skip


def _ends(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Voxel coordinates of two opposite corners of the frame."""
    return np.array([-0.5] * 3), np.array(prepared.array.shape) - 0.5


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "tilt": tilt,
    "uneven": uneven,
    "missing": missing_and_doubled,
    "axes": axes,
    "padding": padding,
    "frame": frame,
}


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw().save(folder / f"{name}.webp", quality=82, method=6)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:2]))
