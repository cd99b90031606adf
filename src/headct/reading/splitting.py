"""Which slices belong together: by series, by grid, and where two stacks cover one range, by what tells them apart.

Images with one Series Instance UID are split where they are of two patients or do not share a grid (matrix, pixel size,
orientation), where two kernels, energies, image types, thicknesses or frames of reference *overlap in space*, and where
an acquisition or a time tells passes over the same range apart. Contiguous stacks stay together whatever they differ
in: a skull base of 4 mm slices under a vertex of 7 mm slices is one head. A value that is not stated splits nothing,
nor does a slice or two with values of their own that fill a hole of a stack.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from headct.reading import geometry
from headct.reading.faults import Fault
from headct.reading.geometry import LIMITS
from headct.reading.instances import Instance
from headct.reading.slices import Slice, along_mm, collapse_reencoded, groups, preference

FEW_DOUBLES = 0.2
"""Share of positions that may be occupied twice and still be slips (one slice taken again), not a second pass."""

FEW_STRAYS = 2
"""Slices with values of their own that may belong to the stack around them."""

Class = list[Slice]
Value = Callable[[Instance], Any]
"""What is asked of an image; None or empty where it is not stated."""


# Series


def by_series(slices: list[Slice]) -> Iterator[list[Slice]]:
    """Slices of one series of one study of one patient; whoever is not named there belongs to the only one named."""
    for series in groups(slices, lambda one: _series_key(one.chosen)):
        for study in _by_owner(series, lambda image: image.study_uid):
            yield from _by_owner(study, lambda image: image.patient_id)


def _series_key(image: Instance) -> Hashable:
    """Series Instance UID; without one, the folder and what else can be known of belonging together."""
    if image.series_uid:
        return image.series_uid
    folder = image.source.name.rpartition("/")[0]
    return folder, image.frame_of_reference_uid, image.series_description


def _by_owner(slices: list[Slice], owner: Value) -> list[list[Slice]]:
    several = len({owner(one.chosen) for one in slices} - {""}) > 1
    return groups(slices, lambda one: owner(one.chosen)) if several else [slices]


def split(series: list[Slice]) -> Iterator[list[Slice]]:
    """The slices of each volume in a series; a position may still be taken several times."""
    for part in _by_grid(series):
        stacks = [collapse_reencoded(part)]
        for classes in _CLASSES:
            stacks = [stack for whole in stacks for stack in _unstack(whole, classes(whole))]
        for whole in stacks:
            yield from _by_pass(whole)


# What shares a grid


def _by_grid(slices: list[Slice]) -> list[list[Slice]]:
    """Slices that share matrix, pixel size and orientation."""
    parts: list[list[Slice]] = []
    for one in sorted(slices, key=lambda s: (s.chosen.row_step_mm, s.chosen.col_step_mm, preference(s.chosen))):
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


# Stacks that overlap in space


def _by_value(value: Value) -> Callable[[list[Slice]], tuple[list[Class], Class]]:
    """Divides slices into classes of equal values and those where the value is not stated."""

    def classes(slices: list[Slice]) -> tuple[list[Class], Class]:
        stated = [one for one in slices if value(one.chosen)]
        return groups(stated, lambda one: value(one.chosen)), [one for one in slices if not value(one.chosen)]

    return classes


def _by_thickness(slices: list[Slice]) -> tuple[list[Class], Class]:
    """As `_by_value`; values within a few percent of each other are one."""
    classes: list[Class] = []
    least_mm = 0.0
    for one in sorted(slices, key=lambda one: one.chosen.thickness_mm or 0.0):
        if one.chosen.thickness_mm is None:
            continue
        if classes and one.chosen.thickness_mm <= least_mm * (1 + LIMITS.thickness_share):
            classes[-1].append(one)
        else:
            classes.append([one])
            least_mm = one.chosen.thickness_mm
    return classes, [one for one in slices if one.chosen.thickness_mm is None]


_CLASSES = (
    # de-identified series may have another Frame of Reference UID in every slice: only overlapping ones count
    _by_value(lambda image: image.frame_of_reference_uid),
    _by_value(lambda image: image.kernel),
    _by_value(lambda image: image.kvp),
    _by_value(lambda image: image.image_type),
    _by_thickness,
)


def _unstack(slices: list[Slice], divided: tuple[list[Class], Class]) -> list[list[Slice]]:
    """Classes joined as far as they lie beside each other; those that overlap in space become volumes of their own."""
    classes, unstated = divided
    if len(classes) + bool(unstated) == 1:
        return [slices]
    near_mm = geometry.same_position_mm(along_mm(slices))
    spans = sorted(
        ((np.sort(along_mm(one)), one) for one in _at_home(classes, unstated, near_mm)),
        key=lambda span: (span[0][0], -len(span[0])),
    )
    stacks: list[list[tuple[np.ndarray, list[Slice]]]] = []
    for span in spans:
        beside = next((stack for stack in stacks if not any(_overlap(span[0], s[0], near_mm) for s in stack)), None)
        if beside is None:
            stacks.append([span])
        else:
            beside.append(span)
    return [[one for _, members in stack for one in members] for stack in stacks]


def _at_home(classes: list[Class], unstated: Class, near_mm: float) -> list[Class]:
    """The classes, after slices that do not state their value, and strays, moved to a class that has room for them."""
    large = [list(one) for one in classes if len(one) > FEW_STRAYS or len(classes) == 1]
    large.sort(key=lambda one: -len(one))
    small = [_settle(one, large, _hole_mm) for one in classes if len(one) <= FEW_STRAYS and len(classes) > 1]
    return [some for some in (*large, *small, _settle(unstated, large, lambda _: near_mm)) if some]


def _settle(some: Class, homes: list[Class], room_mm: Callable[[Class], float]) -> Class:
    """Moves each slice to the first home that has none as near to it as `room_mm`; those left that have no home."""
    left: Class = []
    for one in some:
        home = next((home for home in homes if _nearest_mm(one, home) > room_mm(home)), None)
        (left if home is None else home).append(one)
    return left


def _hole_mm(stack: Class) -> float:
    """How far from all slices a place must be where one is missing."""
    gaps_mm = np.diff(np.sort(along_mm(stack)))
    gaps_mm = gaps_mm[gaps_mm > LIMITS.position_mm]
    return float(np.median(gaps_mm)) / LIMITS.wide if len(gaps_mm) else np.inf


def _nearest_mm(one: Slice, others: list[Slice]) -> float:
    place_mm, *others_mm = along_mm([one, *others])
    return float(np.min(np.abs(np.array(others_mm) - place_mm)))


def _overlap(a_mm: np.ndarray, b_mm: np.ndarray, near_mm: float) -> bool:
    """True where two sorted sets of positions share a range; one slice too far at the seam of two stacks is none."""
    shared = max(_within(a_mm, b_mm, near_mm), _within(b_mm, a_mm, near_mm))
    return shared > 1 or 2 * shared >= min(len(a_mm), len(b_mm))


def _within(a_mm: np.ndarray, b_mm: np.ndarray, near_mm: float) -> int:
    return int(np.count_nonzero((a_mm > b_mm[0] - near_mm) & (a_mm < b_mm[-1] + near_mm)))


# Passes over the same range


def repeats(places: np.ndarray) -> bool:
    """True where slices, by the numbers of their positions (n,), come twice so often that it is no slip."""
    counts = np.bincount(places)
    return int(np.count_nonzero(counts > 1)) > max(1, FEW_DOUBLES * len(counts))


def _by_pass(slices: list[Slice]) -> list[list[Slice]]:
    """Passes over the head, where positions repeat or interleave and something tells the passes apart; else all.

    No slice is ever chosen from one pass and its neighbour from another.
    """
    places = geometry.place_numbers(along_mm(slices))
    if places.max() == 0:
        return [slices]
    if repeats(places):
        for clock in (*_SCANNER_CLOCKS, *_OTHER_CLOCKS):
            passes = _passes(slices, places, clock)
            if len(passes) == np.bincount(places).max():
                return passes
        return [slices]
    for clock in _SCANNER_CLOCKS:
        passes = _passes(slices, places, clock)
        large = all(len(one) > FEW_DOUBLES * len(slices) for one in passes)
        if len(passes) > 1 and large and _share_range(passes) and all(_is_whole(one) for one in passes):
            return passes
    return [slices]


_SCANNER_CLOCKS: tuple[Callable[[Instance], Any], ...] = (
    lambda image: image.temporal_position,
    lambda image: image.acquisition_number,
    lambda image: image.acquisition_time or None,
)

_OTHER_CLOCKS: tuple[Callable[[Instance], Any], ...] = (
    lambda image: image.content_time or None,
    lambda image: image.instance_number,
    lambda image: image.source.name.rpartition("/")[0],
)
"""Asked only where positions repeat: these change within a pass as well."""


def _passes(slices: list[Slice], places: np.ndarray, clock: Callable[[Instance], Any]) -> list[list[Slice]]:
    """Slices in the order of a clock, cut where the next ones lie within what was passed; none if it cannot tell.

    Each tick is taken whole: an axial scanner counts one acquisition for every rotation of two or four slices.
    """
    ticks = groups(range(len(slices)), lambda index: clock(slices[index].chosen))
    times = [clock(slices[tick[0]].chosen) for tick in ticks]
    if None in times or any(len(set(places[tick])) < len(tick) for tick in ticks):
        return []
    heights_mm = along_mm(slices)
    near_mm = geometry.same_position_mm(heights_mm)
    passes: list[list[int]] = []
    for _, tick in sorted(zip(times, ticks, strict=True), key=lambda timed: timed[0]):
        if not passes or _overlap(np.sort(heights_mm[tick]), np.sort(heights_mm[passes[-1]]), near_mm):
            passes.append([])
        passes[-1] += tick
    return [[slices[index] for index in one] for one in passes]


def _share_range(passes: list[list[Slice]]) -> bool:
    """True where of each pass and the next, one has most of its slices within the other."""
    spans = [np.sort(along_mm(one)) for one in passes]
    return all(
        2 * max(_within(a_mm, b_mm, 0.0) / len(a_mm), _within(b_mm, a_mm, 0.0) / len(b_mm)) > 1
        for a_mm, b_mm in pairwise(spans)
    )


def _is_whole(slices: list[Slice]) -> bool:
    """True where a pass is a volume by itself, and not every other slice of one."""
    ordered = [slices[index].chosen for index in np.argsort(along_mm(slices))]
    origins_mm = np.array([image.position_mm for image in ordered])
    thicknesses_mm = np.array([np.nan if image.thickness_mm is None else image.thickness_mm for image in ordered])
    across = geometry.normal(ordered[0].row_step_mm, ordered[0].col_step_mm)
    try:
        return "skipped-tissue" not in geometry.review(origins_mm, across, thicknesses_mm)
    except Fault:
        return False
