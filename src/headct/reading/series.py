"""From headers to volumes: which images belong together, in which order, and which are one too many.

Images with one Series Instance UID are split where they do not share a grid (matrix, pixel size, orientation), where
two kernels, energies, image types, thicknesses or frames of reference *overlap in space*, and where positions repeat
and a time or acquisition tells the repetitions apart. Contiguous stacks stay together whatever they differ in: a
skull base of 4 mm slices under a vertex of 7 mm slices is one head. Order is position along the normal, nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeVar

import numpy as np

from headct.reading import geometry
from headct.reading.faults import Fault
from headct.reading.geometry import LIMITS
from headct.reading.instances import GridFile, Instance
from headct.scan import Rejection

T = TypeVar("T")

FEW_DOUBLES = 0.2
"""Share of positions that may be occupied twice and still be slips (one slice taken again), not a second pass."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A position of a volume: the image chosen for it, and those that stand in where it cannot be decoded.

    `copies` are the same image again (the same SOP Instance UID, or the same acquisition compressed differently);
    `doubles` are other images at the same position.
    """

    chosen: Instance
    copies: tuple[Instance, ...] = ()
    doubles: tuple[Instance, ...] = ()

    @property
    def candidates(self) -> tuple[Instance, ...]:
        """All images of this position, in the order in which they are tried."""
        return (self.chosen, *self.copies, *self.doubles)


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
    def files(self) -> tuple[str, ...]:
        """Names of all files of the volume, each once, sorted; copies and doubles included."""
        if self.grid is not None:
            return self.grid.source.files
        return tuple(sorted({name for part in self.slices for one in part.candidates for name in one.source.files}))

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
        left = [kept for part in self.slices if (kept := _slice_without(part, frozenset(files))) is not None]
        dropped = self.file_dropped or not set(files).isdisjoint(self.files)
        return replace(self, slices=tuple(left), file_dropped=dropped) if left else None


def _slice_without(part: Slice, files: frozenset[str]) -> Slice | None:
    copies = tuple(image for image in part.copies if image.source.name not in files)
    doubles = tuple(image for image in part.doubles if image.source.name not in files)
    if part.chosen.source.name not in files:
        return Slice(part.chosen, copies, doubles)
    if copies:
        return Slice(copies[0], copies[1:], doubles)
    return Slice(doubles[0], (), doubles[1:]) if doubles else None


def assemble(headers: Iterable[Instance | GridFile]) -> tuple[list[Volume], list[Rejection]]:
    """Volumes, and rejections of what cannot be part of one; pure, and independent of the order of its input.

    Every file ends in a volume (as a slice, a copy or a double), in a rejection, or, for a multi-frame file, in
    several of them.
    """
    headers = list(headers)
    volumes, rejections = _grid_volumes([header for header in headers if isinstance(header, GridFile)])
    for group in _by_series(_collapse_copies([header for header in headers if isinstance(header, Instance)])):
        parts = list(_split(group))
        for part in parts:
            try:
                volumes.append(_volume(part, repeated=len(parts) > 1))
            except Fault as fault:
                rejections.append(fault.rejection(*_file_names(part)))
    rejections.sort(key=lambda rejection: (rejection.files, rejection.code))
    return sorted(volumes, key=_reading_order), rejections


def _reading_order(volume: Volume) -> tuple[Any, ...]:
    return volume.files[0], [image.frame or 0 for image in volume.images], volume.files


def _file_names(part: Sequence[Slice]) -> tuple[str, ...]:
    return tuple(sorted({name for one in part for image in one.candidates for name in image.source.files}))


def _grid_volumes(grids: list[GridFile]) -> tuple[list[Volume], list[Rejection]]:
    volumes, rejections = [], []
    for _, same in groupby(sorted(grids, key=lambda g: (g.digest, g.source.name)), key=lambda g: g.digest):
        first, *others = same
        volumes.append(Volume(grid=first))
        sentence = f"the same bytes as {first.source.name}"
        rejections += [Rejection.because("duplicate-file", sentence, other.source.files) for other in others]
    return volumes, rejections


# Copies of one image


def _preference(image: Instance) -> tuple[Any, ...]:
    """Sorts the better of two copies first: whole, without loss, not compressed; then by names, so that it is sure."""
    encoding = image.pixels
    return bool(image.fault), encoding.lossy, encoding.encapsulated, image.sop_uid, image.source.name, image.frame or 0


def _collapse_copies(images: list[Instance]) -> list[Slice]:
    """Slices with the images that share SOP Instance UID, frame and place folded into one."""
    return [
        Slice(chosen, copies=tuple(copies))
        for chosen, *copies in _groups(
            sorted(images, key=_preference),
            _identity,
        )
    ]


def _identity(image: Instance) -> Hashable:
    """What two copies have in common. Some exporters number the images of every patient from 1: a UID is not enough."""
    owner = (image.patient_id, image.study_uid, image.series_uid)
    return owner, image.sop_uid, image.frame, image.position_mm, image.row_step_mm, image.col_step_mm


def _collapse_reencoded(slices: list[Slice]) -> list[Slice]:
    """Folds images of one place and one acquisition that differ in their compression: one image, exported twice."""
    folded = []
    for first, *others in _groups(sorted(slices, key=lambda one: _preference(one.chosen)), _acquisition):
        same = [one for one in others if one.chosen.pixels.transfer_syntax == first.chosen.pixels.transfer_syntax]
        copies = [image for one in others if one not in same for image in one.candidates]
        folded += [replace(first, copies=(*first.copies, *copies)), *same]
    return folded


def _acquisition(one: Slice) -> Hashable:
    image = one.chosen
    return (
        image.frame,
        tuple(round(mm, 3) for mm in image.position_mm),
        image.image_type,
        image.kernel,
        image.kvp,
        image.thickness_mm,
        image.temporal_position,
        image.acquisition_number,
        image.acquisition_time,
        image.content_time,
    )


# Series, and what shares a grid


def _by_series(slices: list[Slice]) -> list[list[Slice]]:
    return _groups(slices, lambda one: _series_key(one.chosen))


def _series_key(image: Instance) -> Hashable:
    """Series Instance UID; without one, the folder and what else can be known of belonging together."""
    if image.series_uid:
        return image.study_uid, image.series_uid
    folder = image.source.name.rpartition("/")[0]
    return folder, image.patient_id, image.study_uid, image.frame_of_reference_uid, image.series_description


def _split(group: list[Slice]) -> Iterator[list[Slice]]:
    for part in _by_grid(group):
        parts = [_collapse_reencoded(part)]
        for overlapping in (_by_frame_of_reference, _by_kernel, _by_energy, _by_image_type, _by_thickness):
            parts = [piece for whole in parts for piece in overlapping(whole)]
        for whole in parts:
            yield from _by_time(whole)


def _by_grid(slices: list[Slice]) -> list[list[Slice]]:
    """Slices that share matrix, pixel size and orientation."""
    parts: list[list[Slice]] = []
    for one in sorted(slices, key=lambda s: (s.chosen.row_step_mm, s.chosen.col_step_mm, _preference(s.chosen))):
        fitting = next((part for part in parts if _share_grid(part[0].chosen, one.chosen)), None)
        if fitting is None:
            parts.append([one])
        else:
            fitting.append(one)
    return parts


def _share_grid(one: Instance, other: Instance) -> bool:
    return (
        (one.pixels.rows, one.pixels.cols) == (other.pixels.rows, other.pixels.cols)
        and geometry.same_frame(one.row_step_mm, other.row_step_mm)
        and geometry.same_frame(one.col_step_mm, other.col_step_mm)
    )


def _along_mm(slices: Sequence[Slice]) -> np.ndarray:
    first = slices[0].chosen
    across = geometry.normal(first.row_step_mm, first.col_step_mm)
    return np.array([one.chosen.position_mm for one in slices]) @ across


# Stacks that overlap in space


def _by_frame_of_reference(slices: list[Slice]) -> list[list[Slice]]:
    """De-identified series may have another Frame of Reference UID in every slice: only overlapping ones count."""
    return _unstack(slices, _groups(slices, lambda one: one.chosen.frame_of_reference_uid))


def _by_kernel(slices: list[Slice]) -> list[list[Slice]]:
    return _unstack(slices, _groups(slices, lambda one: one.chosen.kernel))


def _by_energy(slices: list[Slice]) -> list[list[Slice]]:
    return _unstack(slices, _groups(slices, lambda one: one.chosen.kvp))


def _by_image_type(slices: list[Slice]) -> list[list[Slice]]:
    return _unstack(slices, _groups(slices, lambda one: one.chosen.image_type))


def _by_thickness(slices: list[Slice]) -> list[list[Slice]]:
    """Classes of thickness; values within a few percent of each other are one, unknown ones are one."""
    ordered = sorted(slices, key=lambda one: one.chosen.thickness_mm or 0.0)
    classes: list[list[Slice]] = []
    for one in ordered:
        mm = one.chosen.thickness_mm or 0.0
        if classes and mm <= (classes[-1][0].chosen.thickness_mm or 0.0) * (1 + LIMITS.thickness_share):
            classes[-1].append(one)
        else:
            classes.append([one])
    return _unstack(slices, classes)


def _unstack(slices: list[Slice], classes: list[list[Slice]]) -> list[list[Slice]]:
    """Classes joined as far as they lie beside each other; those that overlap in space become volumes of their own."""
    if len(classes) == 1:
        return [slices]
    near_mm = geometry.same_position_mm(_along_mm(slices))
    spans = sorted(((np.sort(_along_mm(one)), one) for one in classes), key=lambda span: (span[0][0], -len(span[0])))
    stacks: list[list[tuple[np.ndarray, list[Slice]]]] = []
    for span in spans:
        beside = next((stack for stack in stacks if not any(_overlap(span[0], s[0], near_mm) for s in stack)), None)
        if beside is None:
            stacks.append([span])
        else:
            beside.append(span)
    return [[one for _, members in stack for one in members] for stack in stacks]


def _overlap(a_mm: np.ndarray, b_mm: np.ndarray, near_mm: float) -> bool:
    """True where two sorted sets of positions share a range; one slice too far at the seam of two stacks is none."""
    shared = max(_within(a_mm, b_mm, near_mm), _within(b_mm, a_mm, near_mm))
    return shared > 1 or 2 * shared >= min(len(a_mm), len(b_mm))


def _within(a_mm: np.ndarray, b_mm: np.ndarray, near_mm: float) -> int:
    return int(np.count_nonzero((a_mm > b_mm[0] - near_mm) & (a_mm < b_mm[-1] + near_mm)))


# Positions that repeat


def _by_time(slices: list[Slice]) -> list[list[Slice]]:
    """Passes over the head, where positions repeat and something tells the passes apart; else everything."""
    places = geometry.place_numbers(_along_mm(slices))
    counts = np.bincount(places)
    doubled = int(np.count_nonzero(counts > 1))
    if len(counts) == 1 or doubled <= max(1, FEW_DOUBLES * len(counts)):
        return [slices]
    for clock in _CLOCKS:
        passes = _passes(slices, places, clock)
        if passes is not None and len(passes) == counts.max():
            return passes
    return [slices]


_CLOCKS: tuple[Callable[[Instance], Any], ...] = (
    lambda image: image.temporal_position,
    lambda image: image.acquisition_number,
    lambda image: image.acquisition_time or None,
    lambda image: image.content_time or None,
    lambda image: image.instance_number,
)


def _passes(slices: list[Slice], places: np.ndarray, clock: Callable[[Instance], Any]) -> list[list[Slice]] | None:
    """Slices in the order of a clock, cut where a position would come up again; None where the clock cannot tell.

    Each tick is taken whole: an axial scanner counts one acquisition for every rotation of two or four slices.
    """
    ticks: dict[Any, list[int]] = defaultdict(list)
    for index, one in enumerate(slices):
        ticks[clock(one.chosen)].append(index)
    if None in ticks or len(ticks) == 1:
        return None
    passes: list[list[Slice]] = []
    seen: set[int] = set()
    for tick in sorted(ticks):
        here = {int(places[index]) for index in ticks[tick]}
        if len(here) < len(ticks[tick]):
            return None
        if not passes or here & seen:
            passes.append([])
            seen = set()
        passes[-1] += [slices[index] for index in ticks[tick]]
        seen |= here
    return passes


# One volume


def _volume(slices: list[Slice], *, repeated: bool) -> Volume:
    """The volume of these slices. Raises Fault where they are none: all at one position, or with too wide a gap."""
    along_mm = _along_mm(slices)
    places = geometry.place_numbers(along_mm)
    if len(slices) > 1 and places.max() == 0:
        raise Fault("same-position", f"{len(slices)} images at one position: a repeated slice, not a volume")
    larger = _larger_acquisition(slices)
    members: dict[int, list[Slice]] = defaultdict(list)
    for place, one in zip(places.tolist(), slices, strict=True):
        members[place].append(one)
    volume = Volume(
        slices=tuple(_merge(sorted(members[place], key=larger)) for place in sorted(members)),
        repeated=repeated or len(members) < len(slices),
    )
    geometry.review(volume.origins_mm, volume.across, volume.thicknesses_mm)
    return volume


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


def _groups(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items with equal keys together; groups and items in the order in which they first come."""
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())
