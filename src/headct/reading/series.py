"""From headers to volumes: which images belong together, in which order, and which are one too many.

`slices` folds copies, `splitting` finds what belongs together; here each stack becomes a volume, if it can be one.
Order is position along the normal, nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from headct.reading import geometry
from headct.reading.faults import Fault
from headct.reading.files import Source
from headct.reading.geometry import LIMITS
from headct.reading.instances import GridFile, Instance
from headct.reading.slices import Slice, along_mm, collapse_copies
from headct.reading.splitting import by_series, repeats, split
from headct.scan import Rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A future scan: either ordered `slices` of DICOM images, or one `grid` file that holds a whole volume.

    `repeated` is True where the series had more images than positions, whatever became of them; `file_dropped` where
    some of its files were left out after it was assembled.
    """

    slices: tuple[Slice, ...] = ()
    grid: GridFile | None = None
    repeated: bool = False
    file_dropped: bool = False

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where its images come from, copies and doubles included; a file of many frames comes up for each."""
        if self.grid is not None:
            return (self.grid.source,)
        return tuple(image.source for part in self.slices for image in part.candidates)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files of the volume, each once, sorted; copies and doubles included."""
        return tuple(sorted({name for source in self.sources for name in source.files}))

    @property
    def images(self) -> tuple[Instance, ...]:
        """The chosen image of each slice, in order; none for a grid file."""
        return tuple(part.chosen for part in self.slices)

    @property
    def thicknesses_mm(self) -> np.ndarray:
        """Slice thickness (slices,), NaN where not stated."""
        return np.array([np.nan if image.thickness_mm is None else image.thickness_mm for image in self.images])

    @property
    def across(self) -> np.ndarray:
        """Unit normal (3,) along which the slices are ordered."""
        return geometry.normal(self.images[0].row_step_mm, self.images[0].col_step_mm)

    @property
    def origins_mm(self) -> np.ndarray:
        """Centres of the first voxels, (slices, 3), RAS."""
        return np.array([image.position_mm for image in self.images])

    def without(self, *files: str) -> Volume | None:
        """The volume as if these files (names) were not there; None if no slice is left."""
        if self.grid is not None:
            return None if set(files) & set(self.grid.source.files) else self
        left = [kept for part in self.slices if (kept := part.without(frozenset(files))) is not None]
        dropped = self.file_dropped or not set(files).isdisjoint(self.files)
        return replace(self, slices=tuple(left), file_dropped=dropped) if left else None


def assemble(headers: Iterable[Instance | GridFile]) -> tuple[list[Volume], list[Rejection]]:
    """Volumes, and rejections of what cannot be part of one; pure, and independent of the order of its input.

    Every file ends in a volume (as a slice, a copy or a double), in a rejection, or, for a multi-frame file, in
    several of them.
    """
    headers = list(headers)
    volumes, rejections = _grid_volumes([header for header in headers if isinstance(header, GridFile)])
    for series in by_series(collapse_copies([header for header in headers if isinstance(header, Instance)])):
        parts = list(split(series))
        for part in parts:
            try:
                volume, astray = _without_astray(_volume(part, repeated=len(parts) > 1))
                geometry.review(volume.origins_mm, volume.across, volume.thicknesses_mm)
            except Fault as fault:
                rejections.append(fault.rejection(*_file_names(part)))
            else:
                volumes.append(volume)
                rejections += astray
    rejections.sort(key=lambda rejection: (rejection.files, rejection.code))
    return sorted(volumes, key=_reading_order), rejections


def _reading_order(volume: Volume) -> tuple[Any, ...]:
    return volume.files[0], [image.frame or 0 for image in volume.images], volume.files


def _file_names(slices: Iterable[Slice]) -> tuple[str, ...]:
    return tuple(sorted({name for one in slices for image in one.candidates for name in image.source.files}))


def _grid_volumes(grids: list[GridFile]) -> tuple[list[Volume], list[Rejection]]:
    volumes, rejections = [], []
    for _, same in groupby(sorted(grids, key=lambda g: (g.digest, g.source.name)), key=lambda g: g.digest):
        first, *others = same
        volumes.append(Volume(grid=first))
        sentence = f"the same content as {first.source.name}"
        rejections += [Rejection.because("duplicate-file", sentence, other.source.files) for other in others]
    return volumes, rejections


# One volume


def _volume(slices: list[Slice], *, repeated: bool) -> Volume:
    """The volume of these slices. Raises Fault where all share a position, or nothing tells two passes apart."""
    places = geometry.place_numbers(along_mm(slices))
    if len(slices) > 1 and places.max() == 0:
        raise Fault("same-position", f"{len(slices)} images at one position: a repeated slice, not a volume")
    if repeats(places):
        sentence = (
            f"{len(slices)} images at {places.max() + 1} positions, and nothing tells apart which belong together"
        )
        raise Fault("same-position", sentence)
    larger = _larger_acquisition(slices)
    members: dict[int, list[Slice]] = defaultdict(list)
    for place, one in zip(places.tolist(), slices, strict=True):
        members[place].append(one)
    return Volume(
        slices=tuple(_merge(sorted(members[place], key=larger)) for place in sorted(members)),
        repeated=repeated or len(members) < len(slices),
    )


def _without_astray(volume: Volume) -> tuple[Volume, list[Rejection]]:
    """The volume without slices that lie beside it, and rejections of these; a file of many frames is not taken apart.

    Raises Fault where they are too many.
    """
    aside_mm = geometry.aside_mm(volume.origins_mm, volume.across)
    astray = [(part, mm) for part, mm in zip(volume.slices, aside_mm, strict=True) if mm > LIMITS.aside_mm]
    if not astray:
        return volume, []
    files = [_file_names([replace(part, doubles=())]) for part, _ in astray]
    names = {name for some in files for name in some}
    left = volume.without(*names)
    if left is None or len(left.slices) + len(astray) < len(volume.slices):
        raise Fault("no-geometry", f"{len(astray)} of {len(volume.slices)} slices lie beside the others")
    sentences = [f"by its position it lies {mm:.0f} mm beside the other slices of its series" for _, mm in astray]
    rejections = [Rejection.because("no-geometry", *told) for told in zip(sentences, files, strict=True)]
    return left, rejections


def _larger_acquisition(slices: list[Slice]) -> Callable[[Slice], tuple[Any, ...]]:
    """Sorts whole images first, then those of the acquisition that has most slices, then by UID."""
    sizes: dict[int | None, int] = defaultdict(int)
    for one in slices:
        sizes[one.chosen.acquisition_number] += 1
    return lambda one: (
        bool(one.chosen.fault),
        -sizes[one.chosen.acquisition_number],
        one.chosen.sop_uid,
        one.chosen.frame or 0,
        one.chosen.source.name,
    )


def _merge(same_place: list[Slice]) -> Slice:
    first, *others = same_place
    return replace(first, doubles=tuple(image for one in others for image in one.candidates))
