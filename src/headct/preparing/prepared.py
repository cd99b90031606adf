"""A scan in, an array out, or the reason why not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headct.preparing import head, published
from headct.preparing.head import Head
from headct.preparing.recipe import Frame, Recipe, named
from headct.preparing.resample import Grid, bounds_mm, resample
from headct.scan import GeometryError, Rejection, Scan

MIN_COVERAGE = 0.7
"""Share of the brain that a head CT must cover.

Routine head CT has 0.9 or more even where it misses the vertex or the foramen magnum. Scans of something else that
take some brain along (orbits, sinuses, temporal bones, perfusion slabs) have 0.5 or less. The estimate errs by up to
0.1, and 0.7 lies between.
"""

MAX_EXTENT_MM = 2500.0
"""No scanner images more than this of a patient; sizes grow without bound beyond."""
MIN_PIXEL_MM = 0.02
"""No CT of a patient has pixels this small."""


@dataclass(frozen=True)
class Prepared:
    """What a recipe made of a scan."""

    array: np.ndarray
    """Our recipes: int16 HU (X, Y, Z), RAS. Published ones: their dtype, (C, ...) along `recipe.axes`."""
    affine: np.ndarray
    """(4, 4) from voxel (i, j, k) of the spatial axes to RAS mm; of the first copy, where windows are stacked."""
    recipe: Recipe
    coverage: float | None
    """Estimated share of the brain that was scanned, 0 to 1; None where no head was looked for."""
    flags: tuple[str, ...]
    """Those of the scan."""

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.array.shape))
        return f"Prepared({self.array.dtype} {shape}, recipe {self.recipe.name} ({self.recipe.id}))"


def prepare(
    scan: Scan, recipe: str | Recipe = "head", *, check_head: bool = True, min_coverage: float | None = None
) -> Prepared | Rejection:
    """The array of a scan by a recipe or its name, or a rejection, which names no files because a scan has none.

    With `check_head`, a scan without a skull with a brain in it is rejected (`no-head`), and one that covers less of
    the brain than `min_coverage` (`MIN_COVERAGE` unless given) too (`cropped`). Without, our recipes frame whatever
    is not air. What cannot be of a patient by its size (`no-geometry`), and what the recipe cannot be applied to
    (`recipe-unfit`), is rejected as well. Raises Misuse for an unknown name.
    """
    recipe = named(recipe)
    if (strange := _strange_size(scan)) is not None:
        return Rejection.because("no-geometry", strange, ())
    found = head.find_head(scan) if check_head else None
    if check_head:
        fault = _judge(found, MIN_COVERAGE if min_coverage is None else min_coverage)
        if fault is not None:
            return fault
    if frame := recipe.step(Frame):
        array, affine = _framed(scan, found, frame)
    else:
        try:
            image = published.apply(recipe, *_as_published(scan, recipe))
        except (published.Unfit, GeometryError) as error:
            return Rejection.because("recipe-unfit", f"{recipe.name}: {error}", ())
        array, affine = image.values, image.affine
    return Prepared(array, affine, recipe, found.coverage if found else None, scan.header.flags)


def _strange_size(scan: Scan) -> str | None:
    """What is wrong with the size of a scan that cannot be a patient's, if it is."""
    low, high = bounds_mm(scan)
    extent_mm = float(np.max(high - low))
    if extent_mm > MAX_EXTENT_MM:
        return f"the scan extends over {extent_mm:.0f} mm, more than a patient can"
    if min(scan.pixel_mm) < MIN_PIXEL_MM:
        return f"its pixels measure {min(scan.pixel_mm):.4f} mm, less than a scanner resolves"
    return None


def _judge(found: Head | None, least: float) -> Rejection | None:
    """Why a head is not enough of one, if it is not."""
    if found is None:
        return Rejection.because("no-head", "no skull with a brain in it was found", ())
    if found.coverage < least:
        sentence = f"about {found.coverage:.0%} of the brain is covered, {least:.0%} are asked for"
        return Rejection.because("cropped", sentence, ())
    return None


def _framed(scan: Scan, found: Head | None, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """int16 HU (X, Y, Z) and affine, in one resample."""
    grid: Grid = head.frame_head(found, frame) if found else head.frame_object(scan, frame)
    values = resample(scan, grid, frame.fill_hu)
    return np.rint(values, out=values).astype(np.int16, order="C"), grid.affine


def _as_published(scan: Scan, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine in the order in which they are stored. Raises GeometryError for unevenly spaced slices."""
    affine = scan.affine()
    return scan.as_read() if recipe.as_read else scan.hu, affine
