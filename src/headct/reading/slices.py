"""Slices: the images that stand for one position, and which of them are the same image again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from headct.reading import geometry
from headct.reading.instances import Instance

T = TypeVar("T")


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

    def without(self, files: frozenset[str]) -> Slice | None:
        """The slice as if these files (names) were not there; None if no image is left."""
        copies = tuple(image for image in self.copies if image.source.name not in files)
        doubles = tuple(image for image in self.doubles if image.source.name not in files)
        if self.chosen.source.name not in files:
            return Slice(self.chosen, copies, doubles)
        if copies:
            return Slice(copies[0], copies[1:], doubles)
        return Slice(doubles[0], (), doubles[1:]) if doubles else None


def preference(image: Instance) -> tuple[Any, ...]:
    """Sorts the better of two copies first: whole, without loss, not compressed; then by names, so that it is sure."""
    encoding = image.pixels
    return bool(image.fault), encoding.lossy, encoding.encapsulated, image.sop_uid, image.source.name, image.frame or 0


def collapse_copies(images: list[Instance]) -> list[Slice]:
    """Slices with the images that share SOP Instance UID, frame and place folded into one."""
    return [
        Slice(chosen, copies=tuple(copies))
        for chosen, *copies in groups(
            sorted(images, key=preference),
            _identity,
        )
    ]


def _identity(image: Instance) -> Hashable:
    """What two copies have in common. Some exporters number the images of every patient from 1: a UID is not enough."""
    owner = (image.patient_id, image.study_uid, image.series_uid)
    return owner, image.sop_uid, image.frame, image.position_mm, image.row_step_mm, image.col_step_mm


def collapse_reencoded(slices: list[Slice]) -> list[Slice]:
    """Folds images of one place and one acquisition that differ in their compression: one image, exported twice."""
    folded = []
    for first, *others in groups(sorted(slices, key=lambda one: preference(one.chosen)), _acquisition):
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


# Several slices


def along_mm(slices: Sequence[Slice]) -> np.ndarray:
    """Positions (n,) of slices of one grid along their common normal."""
    first = slices[0].chosen
    across = geometry.normal(first.row_step_mm, first.col_step_mm)
    return np.array([one.chosen.position_mm for one in slices]) @ across


def groups(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items with equal keys together; groups and items in the order in which they first come."""
    by_key: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        by_key[key(item)].append(item)
    return list(by_key.values())
